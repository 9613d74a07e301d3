"""Transfers over several Pipes, which are streams in memory: what ends one Pipe, and what ends the transfer."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn, cast

import pytest
import trio

from tests import transfers
from tests.hangs import HANG
from tests.transfers import SMALL_BLOCK, content, make_tree, wired
from warpgate_trio import Pipe
from warpgate_trio.errors import AddressExpired, PeerNotFound, RemoteProtocolError, TransferError, TransferFailed
from warpgate_trio.files import Inbox, Reason, keep_sending, look_at, looking_again, serve_inbox

pytestmark = pytest.mark.usefixtures("jumping_clock", "small_blocks")
small_blocks = transfers.small_blocks


@asynccontextmanager
async def receiver(inbox: Inbox) -> AsyncGenerator[Callable[..., Pipe]]:
    """Yields a function that opens a Pipe to a receiver, which receives by each of them."""

    async def receive(pipe: Pipe) -> None:
        with suppress(TransferError, RemoteProtocolError, trio.BrokenResourceError):
            async with pipe:
                await inbox.receive(pipe)

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:

            def open_pipe(carries: int | None = None) -> Pipe:
                ours, theirs, _ = wired(carries)
                nursery.start_soon(receive, theirs)
                return ours

            yield open_pipe
            nursery.cancel_scope.cancel()


def gone(root: Path) -> None:
    (root / "b").unlink()


def device(root: Path) -> None:
    """Replaces the file by a device, which can be looked at, and which no receiver takes."""
    (root / "b").unlink()
    (root / "b").symlink_to(os.devnull)


@pytest.mark.parametrize("change", [gone, device])
async def test_a_named_file_that_cannot_be_offered_any_more_has_changed(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """The transfer ends with `CHANGED`, not with the error of the second look, which is no documented end of one."""
    root = make_tree(tmp_path / "from", {"a": SMALL_BLOCK, "b": SMALL_BLOCK})
    paths = [root / "a", root / "b"]
    outgoing = look_at(paths)
    change(root)
    async with receiver(Inbox(tmp_path / "into")) as open_pipe:

        async def call() -> Pipe:
            return open_pipe()

        with pytest.raises(TransferFailed, match="'b'") as caught:
            await keep_sending(call, outgoing, patience=60.0, look_again=looking_again(paths, outgoing))
    assert caught.value.reason == Reason.CHANGED
    assert isinstance(caught.value.__cause__, OSError | ValueError)


AWAY = [
    PeerNotFound("a" * 52, "no server of ours knows it"),
    AddressExpired("3 s ago"),
    trio.BrokenResourceError("cut"),
]


@pytest.mark.parametrize("away", AWAY)
async def test_a_peer_that_files_were_sent_to_is_called_again(tmp_path: Path, away: Exception) -> None:
    """A server that is away for a minute, or an address that has expired, does not end the transfer."""
    root, into = make_tree(tmp_path / "from", {"a": 3 * SMALL_BLOCK}), tmp_path / "into"
    told: list[Exception] = []
    async with receiver(Inbox(into)) as open_pipe:
        calls = iter((2 * SMALL_BLOCK, away, away, None))

        async def call() -> Pipe:
            how = next(calls)
            if isinstance(how, Exception):
                raise how
            return open_pipe(how)

        await keep_sending(call, look_at([root]), patience=60.0, on_break=lambda error, _: told.append(error))
    assert told[1:] == [away, away]
    assert content(into / "from") == content(root)


@pytest.mark.parametrize("away", AWAY)
@pytest.mark.parametrize("reached", [False, True])
async def test_who_is_away_for_good_ends_it(tmp_path: Path, away: Exception, reached: bool) -> None:
    """A failure of the first call ends it at once, a later one after `patience`."""
    root = make_tree(tmp_path / "from", {"a": 3 * SMALL_BLOCK})
    told: list[Exception] = []
    async with receiver(Inbox(tmp_path / "into")) as open_pipe:
        ways = [2 * SMALL_BLOCK] if reached else []

        async def call() -> Pipe:
            if ways:
                return open_pipe(ways.pop())
            raise away

        with pytest.raises(type(away)) as caught:
            await keep_sending(call, look_at([root]), patience=60.0, on_break=lambda error, _: told.append(error))
    assert caught.value is away
    assert bool(told) == reached


@pytest.mark.parametrize("count", [2, 3, 5])
async def test_of_several_pipes_of_one_peer_the_newest_alone_is_received_by(count: int) -> None:
    """This holds even if they arrive while the previous Pipe is still being cleaned up."""
    live: list[Pipe] = []
    most = 0

    class Slow:
        async def receive(self, pipe: Pipe, **_: object) -> NoReturn:
            nonlocal most
            live.append(pipe)
            most = max(most, len(live))
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(1.0)
                live.remove(pipe)

    arrive, arrived = trio.open_memory_channel[Pipe](count)
    inbox = cast("Inbox", Slow())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve_inbox, arrived.receive, inbox, on_received=lambda *_: None))
        pipes = [wired()[1] for _ in range(count)]
        for pipe in pipes:
            await arrive.send(pipe)
            await trio.sleep(0.1)
        await trio.sleep(2.0 * count)
        assert (most, live) == (1, pipes[-1:])
        nursery.cancel_scope.cancel()
