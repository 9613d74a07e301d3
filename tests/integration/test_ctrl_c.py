"""Ctrl-C in the middle of what a Link does: the program hears of it, and the peer of a Pipe that was aborted."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trio

from tests.hangs import HANG
from tests.links import open_ends
from warpgate_trio.carrier import TlsCarrier
from warpgate_trio.carrier.tls import ByteSocket
from warpgate_trio.errors import PeerAborted
from warpgate_trio.link import Pipe


@pytest.fixture(autouse=True)
def default_handler() -> Iterator[None]:
    """Python's own, though the shell of the tests may have SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupted:
    """A socket after whose next `send` Ctrl-C is pressed, before whoever sends has had a turn."""

    def __init__(self, sock: ByteSocket) -> None:
        self._sock = sock
        self.armed = True

    async def send(self, data: memoryview, /) -> int:
        sent = await self._sock.send(data)
        if self.armed:
            self.armed = False
            signal.raise_signal(signal.SIGINT)
        return sent

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)


@pytest.mark.parametrize("in_the_driver", [False, True])
def test_what_was_being_sent_arrives_once_and_then_the_abort(in_the_driver: bool) -> None:
    """In the task that sends, and in the Link's own, which sends what the peer is owed."""
    heard: list[bytes | BaseException] = []
    pressed: list[bool] = []

    async def read(pipe: Pipe) -> None:
        try:
            while data := await pipe.receive_some():
                heard.append(data)
        except trio.BrokenResourceError as error:
            heard.append(error.__cause__ or error)

    async def main() -> None:
        with trio.fail_after(HANG):
            await talk()

    async def talk() -> None:
        async with trio.open_nursery() as nursery:
            alice, bob = await open_ends(nursery)
            nursery.start_soon(read, bob.pipe)
            carrier = alice.link.carrier
            assert isinstance(carrier, TlsCarrier)
            await alice.pipe.ping()  # nothing of the handshake is under way
            try:
                async with alice.pipe:
                    carrier._sock = Interrupted(carrier._sock)  # type: ignore[assignment]
                    if in_the_driver:
                        await alice.pipe.ping()
                    else:
                        await alice.pipe.send_all(b"in time")
                    await trio.sleep_forever()
            except KeyboardInterrupt:
                pressed.append(True)
            alice.link.end_nowait()

    with suppress(KeyboardInterrupt):  # of whatever it hit
        trio.run(main)
    assert pressed == [True]
    assert [type(each) for each in heard] == [*([] if in_the_driver else [bytes]), PeerAborted]
