"""A machine that moves to another network reconnects to its servers at once, and not when TCP notices."""

from __future__ import annotations

from contextlib import AsyncExitStack, suppress

import trio

from tests.identities import ALICE, BOB
from tests.sim.worlds import run
from warpgate_trio import NodeConfig, Servers, anyone, open_node
from warpgate_trio.errors import AttemptFailed
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.signal import ServerState
from warpgate_trio.sim import Fault, Kind, Network
from warpgate_trio.testing import simulated_hosts

CONFIG = NodeConfig(servers=Servers(websocket=["ws://server:443"]))


def test_who_has_moved_is_reached_again_within_seconds() -> None:
    """Pings alone would take forty seconds: thirty to the next one, and ten to wait for its answer."""

    async def body(net: Network) -> float:
        server, bobs, alices = (net.host(name) for name in ("server", "bob", "alice"))
        async with simulated_hosts(), AsyncExitStack() as stack:
            with server:
                await stack.enter_async_context(
                    open_rendezvous(host=None, port=443, public_urls=CONFIG.servers.websocket)
                )
            with bobs:
                bob = await stack.enter_async_context(open_node(CONFIG, identity=BOB, authorize=anyone))
            with alices:
                alice = await stack.enter_async_context(open_node(CONFIG, identity=ALICE))
            await bob.wait_signals()
            await alice.wait_signals()
            text = str(bob.address)
            await trio.sleep(31)  # just after a ping
            moved_at = trio.current_time()
            interface, old = bobs.interfaces[0], bobs.ip
            interface.segment.give(interface, interface.segment.free_address())
            bobs.remove_address(old)
            while True:
                with suppress(AttemptFailed, trio.TooSlowError):
                    assert await alice.refresh_address(text, timeout=1) == bob.address
                    return trio.current_time() - moved_at

    assert run(body) < 1.1  # a question before Bob's new connection is up is repeated after a second


def test_a_connection_from_an_address_that_is_gone_is_none_from_that_moment_on() -> None:
    """It ends without a closing handshake; the next one follows at once, and carries the signals sent meanwhile."""

    async def body(net: Network) -> float:
        server, bobs = net.host("server"), net.host("bob")
        async with simulated_hosts(), AsyncExitStack() as stack:
            with server:
                await stack.enter_async_context(
                    open_rendezvous(host=None, port=443, public_urls=CONFIG.servers.websocket)
                )
            with bobs:
                bob = await stack.enter_async_context(open_node(CONFIG, identity=BOB, authorize=anyone))
            await bob.wait_signals()
            await trio.sleep(1.0)
            bobs.change_address()
            moved_at = trio.current_time()
            bob.network_changed()
            assert [each.state for each in bob.signal_servers] == [ServerState.WAITING]
            await bob.wait_signals()
            return trio.current_time() - moved_at

    assert run(body) < 0.1


def test_a_connection_that_is_being_made_when_the_machine_moves_is_begun_anew() -> None:
    """Answers to the old address are lost, and TCP would retransmit at growing intervals."""

    async def body(net: Network) -> float:
        server, bobs = net.host("server"), net.host("bob")
        async with simulated_hosts(), AsyncExitStack() as stack:
            with server:
                await stack.enter_async_context(
                    open_rendezvous(host=None, port=443, public_urls=CONFIG.servers.websocket)
                )
            net.schedule([Fault(at=0.0, until=3.5, target="bob:down", kind=Kind.BLACKHOLE)])
            with bobs:
                bob = await stack.enter_async_context(open_node(CONFIG, identity=BOB, authorize=anyone))
            await trio.sleep(4.0)
            bobs.change_address()
            moved_at = trio.current_time()
            await bob.wait_signals()
            return trio.current_time() - moved_at

    assert run(body) < 0.5
