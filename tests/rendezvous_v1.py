"""A client and a server of the first release's rendezvous protocol, independent of the package's code.

They never change, because nodes of the first release go on speaking this protocol.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import final

from warpgate_trio.identity import Identity, verify
from warpgate_trio.websocket import WebSocket, open_websocket

MAX_FRAME = 37 + 16_384
CONTEXT = b"warpgate-trio rendezvous v1"


class Refused(Exception):
    """The server sent ERROR: its code and text."""


@final
class OldClient:
    """A registered client; it sends one payload at a time."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def next_frame(self) -> bytes:
        frame = await self._websocket.receive()
        if frame[0] == 0x07:
            raise Refused(frame[1], frame[2:].decode())
        return frame

    async def send(self, receiver: bytes, payload: bytes) -> int:
        """Send a payload; returns how many connections it was delivered to."""
        await self._websocket.send(struct.pack("!BI32s", 0x04, 7, receiver) + payload)
        kind, number, count = struct.unpack("!BIH", await self.next_frame())
        assert (kind, number) == (0x05, 7)
        return int(count)

    async def receive(self) -> bytes:
        frame = await self.next_frame()
        assert frame[0] == 0x06
        return frame[1:]


async def register(websocket: WebSocket, identity: Identity) -> OldClient:
    """Register a client.

    Raises:
      Refused: the server answers with ERROR.
    """
    kind, version, nonce = struct.unpack("!BB32s", await websocket.receive())
    assert (kind, version) == (0x01, 1), "the first release takes no other challenge"
    key = identity.public_key
    await websocket.send(struct.pack("!B32s64s", 0x02, key, identity.sign(CONTEXT, nonce + key)))
    client = OldClient(websocket)
    assert await client.next_frame() == b"\x03"
    return client


@asynccontextmanager
async def old_client(url: str, identity: Identity) -> AsyncGenerator[OldClient]:
    async with open_websocket(url, max_message=MAX_FRAME, close_timeout=0.05) as websocket:
        yield await register(websocket, identity)


async def old_server(websocket: WebSocket) -> None:
    """Serve one client, which can send to itself only."""
    nonce = bytes(range(32))
    await websocket.send(struct.pack("!BB32s", 0x01, 1, nonce))
    kind, key, signature = struct.unpack("!B32s64s", await websocket.receive())
    assert kind == 0x02
    assert verify(key, signature, CONTEXT, nonce + key)
    await websocket.send(b"\x03")
    while True:
        frame = await websocket.receive()
        kind, number, receiver = struct.unpack("!BI32s", frame[:37])
        assert kind == 0x04
        if receiver == key:
            await websocket.send(b"\x06" + frame[37:])
        await websocket.send(struct.pack("!BIH", 0x05, number, int(receiver == key)))
