"""Minimal TURN servers on loopback, for tests of clients on real sockets."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from tests.hangs import HANG
from tests.turn_model import ModelServer
from warpgate_trio.ports.datagrams import DatagramSocket
from warpgate_trio.sockaddr import TransportAddress


class UdpServer:
    """A UDP socket with a `ModelServer` for each client.

    Attributes:
      dead: whether it answers nothing.
      code: the error code that answers each authenticated Allocate.
    """

    def __init__(self, sock: DatagramSocket) -> None:
        self._sock = sock
        self.url = f"turn:{sock.local[0]}:{sock.local[1]}"
        self.clients: dict[TransportAddress, ModelServer] = {}
        self.dead = False
        self.code = 0

    @property
    def allocations(self) -> int:
        return sum(each.allocation is not None for each in self.clients.values())

    async def run(self) -> None:
        while True:
            for data, source in await self._sock.receive_batch():
                client = self.clients.setdefault(source, ModelServer(allocate_with=self.code))
                if not self.dead and (answer := client.receive(data, trio.current_time())) is not None:
                    await self._sock.send_batch([(answer, source)])


@asynccontextmanager
async def open_servers(number: int = 1) -> AsyncGenerator[list[UdpServer]]:
    servers = [UdpServer(await DatagramSocket.bind(("127.0.0.1", 0))) for _ in range(number)]
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            for each in servers:
                nursery.start_soon(each.run)
            yield servers
            nursery.cancel_scope.cancel()
    for each in servers:
        each._sock.close()
