"""A TCP proxy on loopback that does what networks do: cut, end, stall or garble a connection after so many bytes."""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from typing import final

import trio


class Fault(Enum):
    """What happens to a direction at the end of its script."""

    CUT = "cut"
    """Both connections are reset."""
    END = "end"
    """Both connections are closed in good order."""
    STALL = "stall"
    """Nothing more passes in either direction, and neither end is notified."""
    GARBLE = "garble"
    """The next byte arrives changed; the rest passes."""


@dataclass(frozen=True, slots=True)
class Script:
    """`fault` strikes once `after` bytes have passed."""

    fault: Fault
    after: int


@final
class Wire:
    """`address` is where to dial; `passed` counts bytes there and back."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.passed = [0, 0]
        self.struck = trio.Event()
        self._stalled = False

    async def serve(
        self, listener: trio.socket.SocketType, target: trio.socket.SocketType, *scripts: Script | None
    ) -> None:
        dialed, _ = await listener.accept()
        async with trio.open_nursery() as nursery:
            try:
                for direction, (source, sink) in enumerate(((dialed, target), (target, dialed))):
                    nursery.start_soon(self._pump, direction, source, sink, scripts[direction])
                await trio.sleep_forever()
            finally:
                dialed.close()

    async def _pump(
        self, direction: int, source: trio.socket.SocketType, sink: trio.socket.SocketType, script: Script | None
    ) -> None:
        try:
            while True:
                if script is not None and self.passed[direction] >= script.after:
                    if script.fault is not Fault.GARBLE:
                        await self._strike(script.fault, source, sink)
                        return
                    data = bytes([(await source.recv(1) or b"\0")[0] ^ 0x55])
                    script = None
                    self.struck.set()
                else:
                    data = await source.recv(
                        65536 if script is None else min(65536, script.after - self.passed[direction])
                    )
                if not data:
                    sink.shutdown(trio.socket.SHUT_WR)
                    return
                if self._stalled:
                    await trio.sleep_forever()
                view = memoryview(data)
                while view:
                    view = view[await sink.send(view) :]
                self.passed[direction] += len(data)
        except (OSError, trio.ClosedResourceError):
            return

    async def _strike(self, fault: Fault, *sockets: trio.socket.SocketType) -> None:
        self.struck.set()
        if fault is Fault.STALL:
            self._stalled = True
            return
        for sock in sockets:
            if fault is Fault.CUT:
                sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()


@asynccontextmanager
async def open_wire(
    target: tuple[str, int], *, there: Script | None = None, back: Script | None = None
) -> AsyncGenerator[Wire]:
    """A proxy for one connection to `target`; `there` is the direction from the dialling end."""
    family = trio.socket.AF_INET6 if ":" in target[0] else trio.socket.AF_INET
    with trio.socket.socket(family) as listener, trio.socket.socket(family) as onward:
        await listener.bind((target[0], 0))
        listener.listen(1)
        await onward.connect(target)
        wire = Wire(listener.getsockname()[:2])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.serve, listener, onward, there, back)
            yield wire
            nursery.cancel_scope.cancel()
