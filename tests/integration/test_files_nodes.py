"""Transfers over Pipes of nodes on loopback: it does not matter who called, and transfers resume after breaks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from tests import transfers
from tests.hangs import HANG
from tests.nodes import BRIEF, pair, pipes
from tests.transfers import content, make_tree
from warpgate_trio import Pipe
from warpgate_trio.errors import TransferFailed, TransferRefused
from warpgate_trio.files import (
    Inbox,
    Progress,
    Reason,
    Received,
    keep_sending,
    look_at,
    looking_again,
    receive_files,
    resuming,
    send_files,
    serve_inbox,
)
from warpgate_trio.nurseries import open_background_nursery

pytestmark = [
    pytest.mark.usefixtures("jumping_clock", "small_blocks"),
    pytest.mark.slow("two nodes and a server, and files on the disk"),
]
small_blocks = transfers.small_blocks

TREE = {"a": 40_000, "sub/b": 100_000, "c": 0}


@pytest.mark.parametrize("caller_sends", [True, False])
async def test_it_does_not_matter_who_has_called(tmp_path: Path, caller_sends: bool) -> None:
    root, told = make_tree(tmp_path / "tree", TREE), list[Progress]()
    with trio.fail_after(HANG):
        async with pipes() as (ours, theirs, _):
            sender, receiver = (ours, theirs) if caller_sends else (theirs, ours)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(send_files, sender, [root], on_progress=told.append))
                received = await receive_files(receiver, into=tmp_path / "into")
            assert not nursery.child_tasks
    assert received.paths == (tmp_path / "into" / "tree",)
    assert content(tmp_path / "into" / "tree") == content(root)
    assert (told[0].stage, told[-1].stage, told[-1].done, told[-1].files) == ("offered", "done", 140_000, 3)
    assert [each.done for each in told] == sorted(each.done for each in told)


def cut(pipe: Pipe) -> None:
    """Closes the carrier of a Pipe, which breaks the Pipe."""
    pipe.carrier.close_nowait()


class Sending:
    """Alice sends to Bob until all has arrived.

    `breaks` maps a number of bytes that Bob has to what then happens to the Pipe in use, once for each Pipe; `changes`
    does the same for the bytes that Alice has sent.
    """

    def __init__(self, root: Path, inbox: Inbox) -> None:
        self.root = root
        self.inbox = inbox
        self.received: list[Received] = []
        self.problems: list[Exception] = []
        self.broke: list[Exception] = []
        self.pipes: list[Pipe] = []

    async def run(
        self,
        breaks: dict[int, Callable[[Pipe], object]],
        changes: dict[int, Callable[[], object]] | None = None,
        *,
        patience: float = 60.0,
    ) -> None:
        outgoing = look_at([self.root])
        with trio.fail_after(HANG):
            async with pair(paths=BRIEF) as both, open_background_nursery() as nursery:

                async def open_pipe() -> Pipe:
                    self.pipes.append(await both.alice.auto_connect(both.bob.address))
                    return self.pipes[-1]

                broken: set[Pipe] = set()
                ahead = {} if changes is None else changes

                def change(progress: Progress) -> None:
                    for size in [each for each in ahead if progress.done >= each and progress.stage == "moving"]:
                        ahead.pop(size)()

                def watch(_: Pipe, progress: Progress) -> None:
                    pipe = self.pipes[-1]
                    size = min(breaks, default=None)
                    if size is not None and progress.done >= size and pipe not in broken:
                        broken.add(pipe)
                        breaks.pop(size)(pipe)

                nursery.start_soon(
                    partial(
                        serve_inbox,
                        both.bob.listener.accept,
                        self.inbox,
                        on_received=lambda _, received: self.received.append(received),
                        on_problem=lambda _, error: self.problems.append(error),
                        on_progress=watch,
                    )
                )
                await keep_sending(
                    open_pipe,
                    outgoing,
                    patience=patience,
                    look_again=looking_again([self.root], outgoing),
                    on_break=lambda error, _: self.broke.append(error),
                    on_progress=change,
                )
                while not self.received:
                    await trio.lowlevel.checkpoint()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "PAUSES", (0.001,))
    monkeypatch.setattr("warpgate_trio.files.sources.BATCH", 10_000)


async def test_who_was_cut_off_calls_again_and_goes_on(tmp_path: Path) -> None:
    root, into = make_tree(tmp_path / "tree", TREE), tmp_path / "into"
    sending = Sending(root, Inbox(into))
    await sending.run({50_000: cut, 90_000: cut})
    assert len(sending.pipes) == 3
    assert len(sending.broke) == 2
    assert sending.received[0].there >= 50_000
    assert content(into / "tree") == content(root)


async def test_patience_has_an_end(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", TREE)
    with pytest.raises(trio.BrokenResourceError):
        await Sending(root, Inbox(tmp_path / "into")).run({50_000: cut}, patience=0)


async def test_a_file_that_changes_is_looked_at_again(tmp_path: Path) -> None:
    root, into = make_tree(tmp_path / "tree", TREE), tmp_path / "into"
    sending = Sending(root, Inbox(into))
    await sending.run({}, {10_000: lambda: (root / "sub" / "b").write_bytes(b"other" * 10_000)})
    assert [each.reason for each in sending.broke if isinstance(each, TransferFailed)] == [Reason.CHANGED]
    assert content(into / "tree") == content(root)


async def test_a_file_that_always_changes_is_given_up(tmp_path: Path) -> None:
    root, count = make_tree(tmp_path / "tree", TREE), 0

    def change() -> None:
        nonlocal count
        count += 1
        (root / "sub" / "b").write_bytes(bytes([count]) * 100_000)

    class Again(dict[int, Callable[[], object]]):
        def pop(self, *_: object) -> Callable[[], object]:
            return change

    with pytest.raises(TransferFailed) as caught:
        await Sending(root, Inbox(tmp_path / "into")).run({}, Again({1: change}))
    assert caught.value.reason == Reason.CHANGED
    assert count > resuming.MAX_CHANGES


async def test_what_is_refused_is_not_tried_again(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", TREE)
    sending = Sending(root, Inbox(tmp_path / "into", max_size=1000))
    with pytest.raises(TransferRefused, match="too large"):
        await sending.run({})
    assert not sending.broke


async def test_a_new_pipe_takes_the_place_of_one_that_says_nothing(tmp_path: Path) -> None:
    """A killed sender leaves a Pipe that may look alive for minutes; when the sender returns, it is served at once."""
    root, into = make_tree(tmp_path / "tree", TREE), tmp_path / "into"
    received: list[Received] = []
    with trio.fail_after(HANG):
        async with pipes() as (ours, theirs, both), trio.open_nursery() as nursery:
            arrived = [theirs]
            moved = trio.Event()

            async def accept() -> Pipe:
                return arrived.pop() if arrived else await both.bob.listener.accept()

            def watch(_: Pipe, progress: Progress) -> None:
                if progress.done >= 50_000:
                    moved.set()

            nursery.start_soon(
                partial(
                    serve_inbox,
                    accept,
                    Inbox(into),
                    on_received=lambda _, each: received.append(each),
                    on_progress=watch,
                )
            )
            outgoing = look_at([root])
            async with trio.open_nursery() as inner:
                inner.start_soon(send_files, ours, [root])
                await moved.wait()
                inner.cancel_scope.cancel()  # the Pipe stays open
            async with await ours.open_pipe() as second:
                await send_files(second, [root])
            while not received:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert outgoing.size == received[0].size
    assert received[0].there >= 30_000
    assert content(into / "tree") == content(root)
