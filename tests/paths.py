"""Datagram paths for tests of carriers: a socket to one peer, with optional faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import trio

from warpgate_trio.ports.datagrams import DatagramSocket
from warpgate_trio.sockaddr import TransportAddress

Filter = Callable[[list[bytes]], list[bytes]]
"""Maps a batch to the datagrams that are really sent."""


@final
class SocketPath:
    """A `DatagramPath` over its own `DatagramSocket`.

    Attributes:
      sent: the lengths of the datagrams sent, if `keep` is set.
      filter: changes or drops datagrams on their way out.
    """

    def __init__(self, sock: DatagramSocket, remote: TransportAddress) -> None:
        self.sock = sock
        self.local = sock.local
        self.remote = remote
        self.filter: Filter | None = None
        self.sent: list[bytes] = []
        self.keep = False

    def _with_peer(self, datagrams: Sequence[bytes]) -> list[tuple[bytes, TransportAddress]]:
        datagrams = list(datagrams)
        if self.filter is not None:
            datagrams = self.filter(datagrams)
        if self.keep:
            self.sent += datagrams
        remote = self.remote
        return [(datagram, remote) for datagram in datagrams]

    async def send(self, datagrams: Sequence[bytes]) -> None:
        await self.sock.send_batch(self._with_peer(datagrams))

    def send_nowait(self, datagrams: Sequence[bytes]) -> None:
        self.sock.send_nowait(self._with_peer(datagrams))

    async def receive(self) -> list[bytes]:
        while True:
            batch = [data for data, source in await self.sock.receive_batch() if source == self.remote]
            if batch:
                return batch

    def close_nowait(self) -> None:
        self.sock.close()


async def connect_paths(family: int = trio.socket.AF_INET) -> tuple[SocketPath, SocketPath]:
    """Two ends of a path on loopback."""
    host = "::1" if family == trio.socket.AF_INET6 else "127.0.0.1"
    one, other = await DatagramSocket.bind((host, 0)), await DatagramSocket.bind((host, 0))
    return SocketPath(one, other.local), SocketPath(other, one.local)
