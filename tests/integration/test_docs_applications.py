"""The code of docs/applications.md, run as it stands there."""

from __future__ import annotations

import re
from typing import Any

import pytest
import trio

from tests.documented import code, page
from tests.identities import ALICE, BOB
from tests.nodes import pair, pipes
from warpgate_trio import serve_pipes

pytestmark = pytest.mark.usefixtures("jumping_clock")
BLOCKS = code(page("applications.md"), "python")


def shown(name: str) -> Any:
    """A function that exactly one block of the page defines."""
    (block,) = [each for each in BLOCKS if re.search(rf"^(?:async )?def {name}\b", each, re.MULTILINE)]
    module: dict[str, Any] = {}
    exec(compile(block, name, "exec", dont_inherit=True), module)
    return module[name]


def test_every_block_is_run_here() -> None:
    names = [re.findall(r"^(?:async )?def (\w+)", block, re.MULTILINE) for block in BLOCKS]
    assert sorted(name for (name,) in names) == ["answer", "greet", "send_from", "show"]


@pytest.mark.slow("two nodes and a server")
async def test_answers_in_capitals() -> None:
    async with pair() as both, trio.open_nursery() as nursery:
        await nursery.start(serve_pipes, shown("answer"), both.bob)
        async with await both.alice.auto_connect(both.bob.address) as pipe:
            messages = pipe.messages()
            for word in (b"hello", b"", b"there"):
                await messages.send(word)
                assert await messages.receive() == word.upper()
            await messages.send_eof()
            assert [each async for each in messages] == []
        nursery.cancel_scope.cancel()


async def test_a_queue_whose_timeouts_cut_nothing_off() -> None:
    async with pipes() as (ours, theirs, _), trio.open_nursery() as nursery:
        into, queue = trio.open_memory_channel[bytes](1)
        nursery.start_soon(shown("send_from"), queue, ours.messages())
        with trio.move_on_after(1):
            await into.send(b"in time")
        assert await theirs.messages().receive() == b"in time"
        into.close()


async def test_a_greeting_by_anyio() -> None:
    async with pipes() as (ours, theirs, _), trio.open_nursery() as nursery:
        nursery.start_soon(shown("greet"), theirs)
        await ours.send_all(b"Ann\n")
        assert b"".join([data async for data in ours]) == b"hello Ann of " + ALICE.peer_id[:8].encode()


async def test_who_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    async with pipes() as (ours, theirs, both):
        await ours.send_all(b"hello")
        assert await theirs.receive_some() == b"hello"
        await ours.ping()
        shown("show")(both.alice)
    assert re.fullmatch(
        rf"{BOB.peer_id[:8]} live to (127\.0\.0\.1|::1), \d+ ms, 0 s, 5 B out, 0 B in\n", capsys.readouterr().out
    )
