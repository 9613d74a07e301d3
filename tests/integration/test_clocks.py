"""Clocks that are wrong or are set: nothing is replayed, nobody is shut out, and no old address stays in use."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.identities import ALICE, BOB, CAROL
from tests.integration.test_security import give, sealed
from tests.nodes import LoopbackHost, address_of, closed_port, config, loopback_node
from tests.waiting import wait_until
from warpgate_trio import Node, NodeConfig, PeerAddress, Servers, anyone
from warpgate_trio.clock.estimate import ClockEstimate
from warpgate_trio.errors import AddressNotYetValid
from warpgate_trio.servers.rendezvous import RendezvousServer, open_rendezvous
from warpgate_trio.signal import Cancel

pytestmark = pytest.mark.usefixtures("jumping_clock")

DAY = 24 * 3600.0


class StillHost(LoopbackHost):  # type: ignore[misc]  # final outside of the tests
    """A host whose wall clock shows what the test sets it to."""

    def __init__(self, shows: float) -> None:
        super().__init__()
        self.shows = shows

    def wall_time(self) -> float:
        return self.shows


async def test_a_step_of_a_tenth_of_a_second_by_ntp_replays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server replays a message that has just left the window, when NTP sets the clock back by 0.1 s."""
    start = 1_800_000_000.0
    host = StillHost(start)
    step = trio.Event()
    measured = 0

    async def measure(*args: object, **kwargs: object) -> ClockEstimate:
        nonlocal measured
        measured += 1
        if measured == 2:
            await step.wait()
        elif measured > 2:
            await trio.sleep_forever()
        return ClockEstimate(
            offset=0.0 if measured == 1 else -0.1,
            uncertainty=0.01,
            measured_at=trio.current_time(),
            wall_at=host.wall_time(),
        )

    monkeypatch.setattr("warpgate_trio.clock.corrected.measure_offset", measure)
    monkeypatch.setattr("warpgate_trio.clock.corrected.CHECK_INTERVAL", 0.001)
    monkeypatch.setattr("warpgate_trio.clock.corrected.INTERVAL", 0.001)
    node_config = NodeConfig(servers=Servers(ntp=["ntp://127.0.0.1:1"]))
    async with loopback_node(BOB, node_config, authorize=anyone, host=host) as bob:
        await wait_until(lambda: measured >= 2)
        own = address_of(ALICE, port=1)
        first = sealed(ALICE, bob.address, own, Cancel(), owner="core", time=start)
        assert give(bob, first) == "Accepted"
        host.shows = start + 300.05
        later = sealed(ALICE, bob.address, own, Cancel(), owner="core", time=host.shows, message_id=b"2" * 16)
        assert give(bob, later) == "Accepted"  # the first one is forgotten, since its timestamp is too old
        step.set()
        await wait_until(lambda: measured >= 3)
        host.shows += 0.01
        assert bob._runtime.clock.now() < start + 300
        assert "Accepted" not in give(bob, first)


async def test_a_wall_clock_that_is_put_back_by_an_hour_shuts_no_peer_out() -> None:
    """The owner corrects the clock.  Messages that the node has received and forgotten stay out; Alice gets in."""
    host = LoopbackHost()
    async with (
        open_rendezvous() as server,
        loopback_node(BOB, config(server), authorize=anyone, host=host) as bob,
        loopback_node(ALICE, config(server)) as alice,
    ):
        await alice.wait_signals()
        await bob.wait_signals()
        host.skew = 3600.0
        old = sealed(CAROL, bob.address, address_of(CAROL, port=1), Cancel(), owner="core", time=host.wall_time())
        assert give(bob, old) == "Accepted"
        host.skew += 400.0
        when = host.wall_time()
        more = sealed(
            CAROL, bob.address, address_of(CAROL, port=1), Cancel(), owner="core", time=when, message_id=b"2" * 16
        )
        assert give(bob, more) == "Accepted"
        host.skew = 0.0
        async with await alice.connect(bob.address, plugin="reverse_connect", timeout=10) as pipe:
            assert pipe.path.plugin == "reverse_connect"
        assert "Accepted" not in give(bob, old)


# -- address records of a clock that was ahead -------------------------------------------------------------------------


@asynccontextmanager
async def bob_on(server: RendezvousServer, skew: float) -> AsyncGenerator[Node]:
    """Bob's node, whose clock is off by `skew` seconds, on a port that no other run of it has."""
    async with loopback_node(BOB, config(server), authorize=anyone, host=LoopbackHost(skew=skew)) as bob:
        await bob.wait_signals()
        yield bob


@asynccontextmanager
async def alice_who_heard_from_the_future(server: RendezvousServer) -> AsyncGenerator[tuple[Node, PeerAddress]]:
    """Alice, and an address that Bob told her when his clock was three days ahead; he is not there any more."""
    async with loopback_node(ALICE, config(server), authorize=anyone) as alice:
        await alice.wait_signals()
        async with bob_on(server, 3 * DAY) as bob:
            ahead = await alice.refresh_address(bob.address)
            assert ahead == bob.address
        yield alice, ahead


async def test_the_text_that_is_passed_beats_a_record_of_a_clock_that_was_ahead() -> None:
    async with open_rendezvous() as server, alice_who_heard_from_the_future(server) as (alice, ahead):
        async with bob_on(server, 0.0) as bob:
            assert bob.address.seq < ahead.seq
            async with await alice.auto_connect(str(bob.address), plugins=["direct_connect"], timeout=10) as pipe:
                assert pipe.path.remote[1] == next(bob.address.endpoints())[1].port


async def test_what_the_peer_says_itself_beats_a_record_of_a_clock_that_was_ahead() -> None:
    async with open_rendezvous() as server, alice_who_heard_from_the_future(server) as (alice, ahead):
        async with bob_on(server, 0.0) as bob:
            await bob.announce_address(alice.address)
            await wait_until(lambda: alice._runtime.view.known_address(BOB.public_key) != ahead)
            assert alice._runtime.view.known_address(BOB.public_key) == bob.address
            # It also takes precedence over the old text, whose sequence number is higher.
            async with await alice.auto_connect(str(ahead), plugins=["direct_connect"], timeout=10) as pipe:
                assert pipe.path.remote[1] == next(bob.address.endpoints())[1].port


async def test_asking_the_peer_heals_it_where_the_old_text_is_passed() -> None:
    async with open_rendezvous() as server, alice_who_heard_from_the_future(server) as (alice, ahead):
        async with bob_on(server, 0.0) as bob:
            assert await alice.refresh_address(str(ahead)) == bob.address
            assert alice._runtime.view.known_address(BOB.public_key) == bob.address


@pytest.mark.slow("a walk asks the peer after a moment of its own")
async def test_a_walk_with_the_old_text_is_healed_by_the_peers_answer() -> None:
    """Alice has learned nothing herself: all she has is a text, written by a clock that was minutes ahead."""
    async with open_rendezvous() as server, loopback_node(ALICE, config(server)) as alice, bob_on(server, 0.0) as bob:
        await alice.wait_signals()
        old = address_of(BOB, port=await closed_port(), now=LoopbackHost().wall_time() + 200)
        assert old.seq > bob.address.seq
        async with await alice.auto_connect(str(old), plugins=["direct_connect"], timeout=10) as pipe:
            assert pipe.path.remote[1] == next(bob.address.endpoints())[1].port


async def test_what_is_passed_is_tried_beside_what_the_peer_said() -> None:
    """Bob told his address when his clock was three minutes ahead, and has moved since; now he cannot be asked."""
    async with open_rendezvous() as server, loopback_node(ALICE, config(server)) as alice:
        async with bob_on(server, 200.0) as bob:
            await alice.wait_signals()
            heard = await alice.refresh_address(bob.address)
        async with loopback_node(BOB, config(), authorize=anyone) as bob:
            assert bob.address.seq < heard.seq
            async with await alice.auto_connect(bob.address, plugins=["direct_connect"], timeout=10) as pipe:
                assert pipe.path.remote[1] == next(bob.address.endpoints())[1].port
                assert alice._runtime.view.known_address(BOB.public_key) == heard


# -- a clock that is behind --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", [400.0, DAY, 1.7e9])
async def test_who_is_behind_asks_the_peer_what_time_it_is(behind: float) -> None:
    async with open_rendezvous() as server, bob_on(server, 0.0) as bob:
        async with loopback_node(ALICE, config(server), host=LoopbackHost(skew=-behind)) as alice:
            await alice.wait_signals()
            async with await alice.auto_connect(str(bob.address), timeout=10) as pipe:
                assert pipe.peer_id == bob.peer_id


async def test_who_is_behind_and_can_ask_nobody_hears_that_a_clock_is_wrong() -> None:
    async with loopback_node(BOB, config(), authorize=anyone) as bob:
        async with loopback_node(ALICE, config(), host=LoopbackHost(skew=-3600)) as alice:
            with pytest.raises(AddressNotYetValid, match="one of the two clocks is wrong"):
                await alice.auto_connect(str(bob.address), timeout=0.2)
