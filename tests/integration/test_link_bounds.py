"""Bounds on what all Links of a node hold together, and on what a peer may make a Link do."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from math import inf

import pytest
import trio
import trio.testing
from msgspec.structs import replace

from tests.identities import ALICE, BOB, CAROL, MALLORY
from tests.integration.test_lanes import attach, cut, lasting
from tests.links import LASTING, End, RawPeer, link_of, raw_end
from tests.nodes import config, loopback_node, pipes
from tests.waiting import wait_until
from warpgate_trio import Node, PathsConfig, Pipe, anyone
from warpgate_trio.config import Budgets
from warpgate_trio.errors import PeerRefused
from warpgate_trio.link import Link, RefuseReason
from warpgate_trio.link.handshake import ATTACHES_PER_MINUTE
from warpgate_trio.link.replay import ReplayMemory
from warpgate_trio.link.states import LinkState
from warpgate_trio.servers.rendezvous import open_rendezvous

# --- memory ---


@pytest.mark.slow("a megabyte on each of four connections")
async def test_links_whose_peers_acknowledge_nothing_keep_no_more_than_their_node_may(nursery: trio.Nursery) -> None:
    """The bound holds however much credit the peers give."""
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
            monkeypatch.setattr(link.protocol, "_take_items", lambda *_: None)  # Bob acknowledges nothing
        await ours.send_all(bytes(100_000))
        assert memory.held >= 100_000
    assert memory.held == 0


# --- Links that wait ---


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lowers the bounds so that a test can reach them."""
    monkeypatch.setattr("warpgate_trio.node.links.MAX_WAITING", 4)
    monkeypatch.setattr("warpgate_trio.node.links.MAX_WAITING_PER_PEER", 3)


def lose_path(pipe: Pipe) -> None:
    """The path is lost, without a goodbye, and no other is found."""
    link = link_of(pipe)
    for lane in list(link._lanes.values()):
        link._lose(lane, trio.BrokenResourceError("it is cut"))


@asynccontextmanager
async def several(
    *counts: int, paths: PathsConfig | None = None
) -> AsyncGenerator[tuple[Node, list[list[Pipe]], list[list[Pipe]]]]:
    """Bob, and `counts` Pipes of each peer, ours and theirs, each on a Link of its own; nobody searches for a path."""
    async with open_rendezvous() as server, AsyncExitStack() as stack:
        bob = await stack.enter_async_context(loopback_node(BOB, config(server, paths=paths), authorize=anyone))
        ours: list[list[Pipe]] = []
        theirs: list[list[Pipe]] = []
        for identity, count in zip((ALICE, CAROL, MALLORY), counts, strict=False):
            node = await stack.enter_async_context(loopback_node(identity, config(server, paths=paths)))
            node._runtime.links.keep = keep_nothing
            bob._runtime.links.keep = keep_nothing
            ours.append([])
            theirs.append([])
            for _ in range(count):
                ours[-1].append(await node.auto_connect(bob.address))
                theirs[-1].append(await bob.listener.accept())
                await theirs[-1][-1].ping()
        yield bob, ours, theirs


async def keep_nothing(_link: Link, _reach: object) -> None:
    """A search that finds no path."""


def standing(pipes: list[Pipe]) -> list[int]:
    """The numbers of the Pipes that are not broken."""
    return [number for number, pipe in enumerate(pipes) if link_of(pipe).protocol.failure is None]


@pytest.mark.slow("some nodes")
@pytest.mark.usefixtures("few", "jumping_clock")
async def test_of_the_links_of_a_peer_without_a_path_the_oldest_gives_way() -> None:
    async with several(5) as (bob, _ours, (theirs,)):
        for number in (1, 0, 2):
            lose_path(theirs[number])
            await trio.sleep(1.0)
        assert standing(theirs) == [0, 1, 2, 3, 4]
        lose_path(theirs[3])
        assert standing(theirs) == [0, 2, 3, 4]
        with pytest.raises(trio.BrokenResourceError, match="too many links wait for a path"):
            await theirs[1].receive_some()
        assert len(bob._runtime.links._waiting) == 3
        await theirs[4].ping()


@pytest.mark.slow("some nodes")
@pytest.mark.usefixtures("few", "jumping_clock")
async def test_of_all_links_without_a_path_the_oldest_gives_way() -> None:
    async with several(3, 2, 1) as (_bob, _ours, (first, second, third)):
        for pipe in (first[0], second[0], second[1], third[0]):
            lose_path(pipe)
            await trio.sleep(1.0)
        assert standing(first) == [0, 1, 2]
        lose_path(first[1])
        assert standing(first) == [1, 2]
        assert (standing(second), standing(third)) == ([0, 1], [0])


@pytest.mark.slow("some nodes")
@pytest.mark.usefixtures("few", "jumping_clock")
async def test_a_link_that_has_found_a_path_no_longer_counts() -> None:
    async with several(5) as (bob, _ours, (theirs,)):
        for pipe in theirs[:3]:
            lose_path(pipe)
            await trio.sleep(1.0)
        link_of(theirs[0]).waits_since = inf  # as after an attach
        lose_path(theirs[3])
        assert standing(theirs) == [0, 1, 2, 3, 4]
        link_of(theirs[1])._fail(trio.BrokenResourceError("it is over"))
        lose_path(theirs[4])
        assert standing(theirs) == [0, 2, 3, 4]
        await trio.testing.wait_all_tasks_blocked()
        assert set(bob._runtime.links._waiting) == {link_of(theirs[number]) for number in (2, 3, 4)}


@pytest.mark.slow("some nodes")
@pytest.mark.usefixtures("few", "jumping_clock")
async def test_links_that_are_closed_and_not_acknowledged_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """They count once the time for a goodbye is over, even if their paths are well."""
    async with several(6) as (_bob, (ours,), (theirs,)):
        for pipe in ours:  # the peer answers PINGs, and acknowledges nothing
            monkeypatch.setattr(link_of(pipe).protocol, "_take_items", lambda *_: None)
        links = [link_of(pipe) for pipe in theirs]
        for pipe in theirs[:4]:
            await pipe.aclose()
        await trio.sleep(1.0)
        await theirs[4].aclose()
        assert all(link.protocol.state is LinkState.CLOSING for link in links[:5])
        await trio.sleep(Budgets().goodbye)
        await theirs[5].aclose()
        states = [link.protocol.state for link in links]
        assert states == [LinkState.ENDED] * 2 + [LinkState.CLOSING] * 4


# --- ATTACHes ---


@pytest.mark.usefixtures("jumping_clock")
async def test_a_link_is_attached_to_ten_times_a_minute() -> None:
    async with lasting(limit=1000) as (alice, bob):
        for _ in range(ATTACHES_PER_MINUTE):
            await attach(alice, bob)
            cut(alice)
            await wait_until(lambda: len(alice.link.protocol.lanes) == len(bob.link.protocol.lanes) == 1)
        with pytest.raises(PeerRefused) as refused:
            await attach(alice, bob)
        assert refused.value.reason == RefuseReason.BUSY
        await attach(alice, bob, by_bob=True)  # each side counts the other's attaches only
        await trio.sleep(60 / ATTACHES_PER_MINUTE)
        await attach(alice, bob)
        await alice.pipe.send_all(b"still")
        assert await bob.pipe.receive_some() == b"still"


@pytest.mark.usefixtures("jumping_clock")
async def test_who_proves_nothing_uses_up_no_attaches() -> None:
    async with lasting(limit=1000) as (alice, bob):
        for _ in range(2 * ATTACHES_PER_MINUTE):
            with pytest.raises(PeerRefused) as refused:
                await attach(alice, bob, spoil=lambda choice: replace(choice, mac=bytes(16)))
            assert refused.value.reason == RefuseReason.UNKNOWN_LINK
        await attach(alice, bob)
