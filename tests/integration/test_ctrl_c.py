"""Ctrl-C in the middle of a Link's work: the program gets it, and the peer learns that the Pipe was aborted."""

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
    """Installs Python's own handler, since the shell that runs the tests may have SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupted:
    """A socket that raises SIGINT right after its next `send`, before the sender runs again."""

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
    """Ctrl-C strikes in the sending task, or in the Link's own task, which sends what is owed to the peer."""
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
            await alice.pipe.ping()  # the handshake is over
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

    with suppress(KeyboardInterrupt):  # from whatever call it struck in
        trio.run(main)
    assert pressed == [True]
    assert [type(each) for each in heard] == [*([] if in_the_driver else [bytes]), PeerAborted]
