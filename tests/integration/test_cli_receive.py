"""The command `receive` without a network: its Pipes are streams in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from tests import transfers
from tests.hangs import HANG
from tests.identities import ALICE, BOB
from tests.transfers import SMALL_BLOCK, content, make_tree, wired
from warpgate_trio import Pipe
from warpgate_trio.cli.exits import ExitCode
from warpgate_trio.cli.options import Settings
from warpgate_trio.cli.receive import _Receiving
from warpgate_trio.errors import TransferRefused
from warpgate_trio.files import Inbox, Progress, Reason, look_at, send_outgoing
from warpgate_trio.identity import peer_id_from_key

pytestmark = pytest.mark.usefixtures("small_blocks")
small_blocks = transfers.small_blocks

FIRST, SECOND = peer_id_from_key(ALICE.public_key), peer_id_from_key(BOB.public_key)


class Running:
    """A `receive` without --keep that lets everybody in; `call` opens a peer's Pipe to it."""

    def __init__(self, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._arrive, self._arrived = trio.open_memory_channel[Pipe](4)
        self.command = _Receiving(
            Settings(quiet=True), Inbox(into), guests=cast("Any", self), code=None, save=None, keep=False
        )
        self.codes: list[ExitCode] = []
        monkeypatch.setattr(self.command, "_opened", self._opened)

    async def authorize(self, _: str) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    @asynccontextmanager
    async def _opened(self, _: object) -> AsyncIterator[Any]:
        yield SimpleNamespace(listener=SimpleNamespace(accept=self._arrived.receive))

    async def run(self) -> None:
        self.codes.append(await self.command.run(cast("Any", None)))

    async def is_let_in(self, peer_id: str) -> bool:
        return await self.command._authorize(peer_id)

    async def call(self, peer_id: str) -> Pipe:
        assert await self.is_let_in(peer_id)
        ours, theirs, _ = wired(sender=peer_id)
        cast("Any", theirs).path = SimpleNamespace(plugin="direct", af=4, route_type="NIC_BIND")
        await self._arrive.send(theirs)
        return ours


@asynccontextmanager
async def receiving(into: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Running]:
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            running = Running(into, monkeypatch)
            nursery.start_soon(running.run)
            yield running


async def speak_of_something_else(pipe: Pipe) -> None:
    await pipe.send_all(b"SSH-2.0-OpenSSH_9.2\r\n")
    await pipe.send_eof()


async def break_before_the_offer(pipe: Pipe) -> None:
    await trio.testing.wait_all_tasks_blocked()
    cast("Any", pipe)._wire.cut()


async def say_nothing(_: Pipe) -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("do", [speak_of_something_else, break_before_the_offer, say_nothing])
async def test_a_pipe_that_is_no_transfer_shuts_out_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, do: Any
) -> None:
    root, into = make_tree(tmp_path / "tree", {"a": SMALL_BLOCK}), tmp_path / "into"
    async with receiving(into, monkeypatch) as running:
        await do(await running.call(FIRST))
        await trio.testing.wait_all_tasks_blocked()
        async with await running.call(SECOND) as pipe:
            await send_outgoing(pipe, look_at([root]))
    assert running.codes == [ExitCode.OK]
    assert content(into / "tree") == content(root)


async def test_who_was_let_in_before_another_ones_files_came_hears_no(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that comes later is not let in.  Neither of the two ends the transfer that is under way."""
    root, into = make_tree(tmp_path / "tree", {"a": 100 * SMALL_BLOCK, "b": SMALL_BLOCK}), tmp_path / "into"
    monkeypatch.setattr("warpgate_trio.files.sources.BATCH", SMALL_BLOCK)
    began, go_on = trio.Event(), trio.Event()
    async with receiving(into, monkeypatch) as running:
        early = await running.call(SECOND)

        async def send() -> None:
            async with await running.call(FIRST) as pipe:
                send_all = pipe.send_all

                async def stop_in_the_middle(data: Any) -> None:
                    if began.is_set():
                        await go_on.wait()
                    await send_all(data)

                def watch(progress: Progress) -> None:
                    if progress.stage == "moving":
                        began.set()

                monkeypatch.setattr(pipe, "send_all", stop_in_the_middle)
                await send_outgoing(pipe, look_at([root]), on_progress=watch)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await began.wait()
            while await running.is_let_in(SECOND):
                await trio.lowlevel.checkpoint()
            assert await running.is_let_in(FIRST)
            with pytest.raises(TransferRefused) as caught:
                await send_outgoing(early, look_at([root / "b"]))
            early.close()  # type: ignore[attr-defined]
            go_on.set()
    assert (caught.value.reason, caught.value.by_peer) == (Reason.UNWANTED, True)
    assert FIRST not in str(caught.value)
    assert running.codes == [ExitCode.OK]
    assert content(into / "tree") == content(root)
    assert not (into / "b").exists()
