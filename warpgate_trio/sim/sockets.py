"""Simulated UDP and TCP sockets with the waiting calls of `trio.socket`.

The order of checks, checkpoints and errors follows Trio's own socket class.  A call checks for cancellation, tries, and
executes a checkpoint whether it succeeds or fails; it waits only if it would block.  Two tasks that wait for the same
direction are an error, and closing wakes them with trio.ClosedResourceError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, SupportsIndex, TypeVar

import trio

from .addr import Endpoint
from .messages import Received, gather, room_in, scatter, size_of
from .nowait_socket import NowaitSocket
from .options import Buffer
from .plain_socket import PlainSocket
from .slots import Slot

T = TypeVar("T")


class VirtualSocket(NowaitSocket):
    """A socket on a simulated host."""

    @property
    def _sock(self) -> PlainSocket:
        """Its `socket.socket`, under the private name that Trio's own sockets use and other libraries read."""
        return PlainSocket.of(self)

    async def _attempt(self, slot: Slot, fn: Callable[[], T | None]) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.host.is_asleep:
            await self._wait_awake()
        try:
            result = fn()
        except BaseException:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise
        if result is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return result
        while True:
            await slot.wait()
            await self._wait_awake()
            result = fn()
            if result is not None:
                return result

    async def _wait_awake(self) -> None:
        """Wait while the host sleeps.  Not always a checkpoint."""
        await self.host.clock.wait()
        if self._number < 0:
            raise trio.ClosedResourceError("another task closed this socket")

    async def wait_readable(self) -> None:
        """Wait until the socket is readable, as `trio.lowlevel.wait_readable` does."""

        def readable() -> bool | None:
            self._check_open()
            return self.is_readable() or None

        await self._attempt(self._reading, readable)

    async def bind(self, address: Any) -> None:
        endpoint = await self._resolve(address, local=True)
        await trio.lowlevel.checkpoint()
        self.bind_now(endpoint)

    async def accept(self) -> tuple[NowaitSocket, Any]:
        return await self._attempt(self._reading, self.accept_now)

    # Receiving

    async def _receive(self, call: str, size: SupportsIndex, flags: int) -> Received:
        return await self._attempt(self._reading, lambda: self.receive_now(size_of(size, call), flags))

    async def recv(self, buflen: SupportsIndex, flags: int = 0, /) -> bytes:
        return (await self._receive("recv", buflen, flags)).bytes_for(flags)

    async def recvfrom(self, bufsize: SupportsIndex, flags: int = 0, /) -> tuple[bytes, Any]:
        found = await self._receive("recvfrom", bufsize, flags)
        return found.bytes_for(flags), self.received_from(found)

    async def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        return (await self.recvfrom_into(buffer, nbytes, flags))[0]

    async def recvfrom_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        with memoryview(buffer).cast("B") as view:
            found = await self._receive("recv_into", room_in(view, nbytes), flags)
            view[: len(found.data)] = found.data
        return found.length_for(flags), self.received_from(found)

    async def recvmsg(
        self, bufsize: SupportsIndex, ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        found = await self._receive("recvmsg", bufsize, flags)
        return found.bytes_for(flags), [], found.notes, self.received_from(found)

    async def recvmsg_into(
        self, buffers: Iterable[Buffer], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, Any]:
        views = [memoryview(each).cast("B") for each in buffers]
        found = await self._receive("recvmsg_into", sum(map(len, views)), flags)
        scatter(found.data, views)
        return found.length_for(flags), [], found.notes, self.received_from(found)

    # Sending

    async def _send(self, data: Buffer, flags: int, dst: Endpoint | None) -> int:
        with memoryview(data) as given, given.cast("B") as view:
            return await self._attempt(self._writing, lambda: self.send_now(view, flags, dst))

    async def send(self, data: Buffer, flags: int = 0, /) -> int:
        return await self._send(data, flags, None)

    async def sendto(self, *args: Any) -> int:
        dst = self._numeric(args[-1]) or await self._resolve(args[-1], local=False)
        if not 2 <= len(args) <= 3:
            raise TypeError(f"sendto() takes 2 or 3 arguments ({len(args)} given)")
        return await self._send(args[0], args[1] if len(args) == 3 else 0, dst)

    async def sendmsg(
        self,
        buffers: Iterable[Buffer],
        ancdata: Iterable[tuple[int, int, Buffer]] = (),
        flags: int = 0,
        address: Any = None,
        /,
    ) -> int:
        data = gather(buffers, ancdata)
        return await (self.send(data, flags) if address is None else self.sendto(data, flags, address))
