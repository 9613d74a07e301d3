"""What the Links of a node may hold together: memory for what is not acknowledged."""

from __future__ import annotations

from contextlib import AsyncExitStack, suppress

import pytest
import trio
import trio.testing

from tests.links import LASTING, End, RawPeer, raw_end
from tests.nodes import pipes
from warpgate_trio.link.replay import ReplayMemory

# --- memory ---


@pytest.mark.slow("a megabyte on each of four connections")
async def test_links_whose_peers_acknowledge_nothing_keep_no_more_than_their_node_may(nursery: trio.Nursery) -> None:
    """However much credit they give."""
    total, floor, count = 1 << 20, 64 * 1024, 4
    memory = ReplayMemory(total=total, floor=floor)

    async def send(end: End) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                await end.pipe.send_all(bytes(100_000))

    async def read(peer: RawPeer) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await peer.hear_until_end()

    async with AsyncExitStack() as stack, trio.open_nursery() as senders:
        for _ in range(count):
            end, peer = await stack.enter_async_context(raw_end(nursery, terms=LASTING))
            end.link.keep_within(memory)
            nursery.start_soon(read, peer)
            senders.start_soon(send, end)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert total // 2 < memory.held <= total + count * (floor + 128 * 1024)
        await stack.aclose()
    assert memory.held == 0


@pytest.mark.slow("two nodes")
@pytest.mark.usefixtures("jumping_clock")
async def test_a_node_counts_what_its_links_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pipes() as (ours, theirs, both):
        memory = both.alice._runtime.links._replay
        await theirs.ping()
        for link in both.bob._runtime.links._links:
            monkeypatch.setattr(link.protocol, "has_outbox", lambda _lane: False)  # it acknowledges nothing
        await ours.send_all(bytes(100_000))
        assert memory.held >= 100_000
    assert memory.held == 0
