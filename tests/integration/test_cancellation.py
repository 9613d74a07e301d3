"""Operations that are cancelled anywhere leave nothing: no task, no socket, no server-side session.

Each operation is cancelled at its k-th checkpoint for every k (`tests.cancel_sweep`).  The walks, which consist of many
tasks, are also cancelled at every step of all tasks together.  The leak check of the tests finds a socket that stays
open; the nurseries ensure that no task stays.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import pytest
import trio
import trio.testing

from tests.cancel_sweep import cuts, step_cuts
from tests.hangs import HANG
from tests.identities import ALICE, BOB
from tests.links import link_of
from tests.nodes import Pair, config, loopback_node, pair
from tests.servers_mqtt import Broker
from tests.servers_mqtt import libraries as libraries
from tests.servers_mqtt import mosquitto_fixture as mosquitto_fixture
from tests.waiting import wait_until
from warpgate_trio import Node, NodeConfig, Servers, anyone, open_node
from warpgate_trio.config.server_url import ServerUrl
from warpgate_trio.servers.rendezvous import RendezvousServer, open_rendezvous
from warpgate_trio.signal import Inbox, InboxLimits, ServerState, open_channel


async def nothing_left(both: Pair, *, interrupted: bool = False) -> None:
    """Checks that Bob's waiting Pipes read as ended, or broken if the call was interrupted, and that no state stays."""
    await wait_until(lambda: not both.alice.stats().links and not both.alice.stats().attempts)
    while both.bob.stats().waiting_pipes:
        async with await both.bob.listener.accept() as pipe:
            with pytest.raises(trio.BrokenResourceError) if interrupted else nullcontext():
                async for _ in pipe:
                    pass
    await wait_until(
        lambda: not both.bob.stats().links and not both.bob.stats().attempts and not both.bob.stats().handshakes
    )


async def say_and_hear(url: ServerUrl) -> None:
    """The whole life of a channel, with a message to ourselves."""
    async with open_channel(url, ALICE) as channel:
        await channel.send(ALICE.public_key, b"\x01x")
        assert await channel.receive() == b"\x01x"


@pytest.mark.slow("a channel for each step of its life")
async def test_a_websocket_channel_at_any_tasks_step() -> None:
    async with open_rendezvous() as server:
        url = ServerUrl.parse(server.url)
        for cut in cuts():
            with cut:
                await say_and_hear(url)
            await wait_until(lambda: server.statistics().connections == 0)
        for steps in step_cuts():
            with steps:
                await say_and_hear(url)
            await wait_until(lambda: server.statistics().connections == 0)
        assert server.statistics().mailboxes == 0


@pytest.mark.needs("mosquitto")
@pytest.mark.slow("a channel for each step of its life")
async def test_an_mqtt_channel_at_any_tasks_step(mosquitto: Broker) -> None:
    for cut in cuts():
        with cut:
            await say_and_hear(mosquitto.url)
        await wait_until(lambda: mosquitto.connections() == 0)
    for steps in step_cuts():
        with steps:
            await say_and_hear(mosquitto.url)
        await wait_until(lambda: mosquitto.connections() == 0)
    assert mosquitto.count("Sending SUBACK to wg") > 10, "many were cut after they had subscribed"


@pytest.mark.needs("mosquitto")
@pytest.mark.slow("a node with both transports for each step of its beginning")
async def test_open_node_at_any_tasks_step_with_both_transports(mosquitto: Broker) -> None:
    async with open_rendezvous() as server:
        servers = Servers(websocket=[server.url], mqtt=[str(mosquitto.url)])
        for steps in step_cuts():
            with steps:
                async with loopback_node(ALICE, NodeConfig(servers=servers), authorize=anyone) as node:
                    while any(each.state is not ServerState.CONNECTED for each in node.signal_servers):
                        await node._runtime.hub._keeper.wait_changed()
            await wait_until(lambda: server.statistics().connections == 0)
            await wait_until(lambda: mosquitto.connections() == 0)
        assert mosquitto.count("Sending SUBACK to wg") > 10


@pytest.mark.slow("opens a node once for each of its checkpoints")
async def test_open_node() -> None:
    async with open_rendezvous() as server:
        for cut in cuts():
            with cut:
                async with open_node(config(server), identity=ALICE, authorize=anyone) as node:
                    await node.wait_signals()
                    await trio.lowlevel.checkpoint()
            await wait_until(lambda: server.statistics().connections == 0)


@pytest.mark.parametrize("plugin", ["direct_connect", "reverse_connect"])
@pytest.mark.slow("one connect for each of its checkpoints")
async def test_connect(plugin: str) -> None:
    async with pair() as both:
        for cut in cuts():
            with cut:
                await (await both.alice.connect(both.bob.address, plugin=plugin, af=4)).aclose()
            await nothing_left(both, interrupted=cut.caught)


@pytest.fixture
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lifts the rate limits, which exist to prevent as many requests in a second as these tests make."""
    limits = InboxLimits(rate=1e6, burst=10**6, sender_rate=1e6, sender_burst=10**6)
    monkeypatch.setattr("warpgate_trio.signal.router.Inbox", partial(Inbox, limits=limits))
    monkeypatch.setattr("warpgate_trio.node.responder.DIALS_PER_MINUTE", 10**6)


@pytest.mark.usefixtures("unlimited")
@pytest.mark.parametrize("plugin", ["direct_connect", "reverse_connect"])
@pytest.mark.slow("some hundred connects, each cancelled one task step later than the one before")
async def test_connect_at_any_tasks_step(plugin: str) -> None:
    async with pair() as both:
        for cut in step_cuts():
            with cut:
                await (await both.alice.connect(both.bob.address, plugin=plugin, af=4)).aclose()
            await nothing_left(both, interrupted=cut.caught)


@pytest.mark.slow("some hundred walks, each cancelled one task step later than the one before")
async def test_auto_connect_at_any_tasks_step() -> None:
    async with pair() as both:
        for cut in step_cuts():
            with cut:
                await (await both.alice.auto_connect(both.bob.address, early_data=b"early")).aclose()
            await nothing_left(both, interrupted=cut.caught)


@pytest.mark.slow("one walk for each of its checkpoints")
async def test_auto_connect() -> None:
    async with pair() as both:
        for cut in cuts():
            with cut:
                await (await both.alice.auto_connect(both.bob.address)).aclose()
            await nothing_left(both, interrupted=cut.caught)


async def test_accept_loses_no_pipe() -> None:
    async with pair() as both:
        accepted = 0
        for cut in cuts():
            made = await both.alice.auto_connect(both.bob.address, afs=[4])
            with cut:
                theirs = await both.bob.listener.accept()
                accepted += 1
                await theirs.aclose()
            if cut.caught and both.bob.stats().waiting_pipes:
                await (await both.bob.listener.accept()).aclose()
                accepted += 1
            await made.aclose()
        assert accepted == both.bob.stats().pipes_accepted


async def test_open_pipe() -> None:
    async with pair() as both, await both.alice.auto_connect(both.bob.address) as pipe:
        await (await both.bob.listener.accept()).send_all(b"x")
        for cut in cuts():
            with cut:
                await (await pipe.open_pipe("again")).aclose()
            await wait_until(lambda: len(link_of(pipe).protocol.channels) == 1)
            while both.bob.stats().waiting_pipes:
                await (await both.bob.listener.accept()).aclose()
        assert await pipe.receive_some() == b"x"


async def test_pipe_operations_leave_the_pipe_whole() -> None:
    async with pair() as both, await both.alice.auto_connect(both.bob.address) as ours:
        theirs = await both.bob.listener.accept()
        sent = bytearray()
        for cut in cuts():
            with cut:
                await ours.send_all(b"0123456789")
            await ours.send_all(b"|")
            got = bytearray()
            while not got.endswith(b"|"):
                got += await theirs.receive_some()
            assert b"0123456789".startswith(got[:-1])
            sent += got
        for cut in cuts():
            await ours.send_all(b"abc")
            received = b""
            with cut:
                received = await theirs.receive_some()
            if not received:
                received = await theirs.receive_some()
            assert received == b"abc"
        await theirs.aclose()


async def test_a_cancelled_end_of_a_pipe_is_an_end() -> None:
    """`send_eof` may be repeated after a cancelled one, and ends the stream once; a cancelled `aclose` aborts."""
    async with pair() as both, await both.alice.auto_connect(both.bob.address) as first:
        other = await both.bob.listener.accept()
        for cut in cuts():
            with cut:
                await first.ping()
        for cut in cuts():
            ours = await first.open_pipe()
            theirs = await both.bob.listener.accept()
            await ours.send_all(b"last words")
            with cut:
                await ours.send_eof()
            await ours.send_eof()
            assert b"".join([data async for data in theirs]) == b"last words"
            await ours.aclose()
            await theirs.aclose()
        for cut in cuts():
            ours = await first.open_pipe()
            theirs = await both.bob.listener.accept()
            with cut:
                await ours.aclose()
            with pytest.raises(trio.ClosedResourceError):
                await ours.send_all(b"x")
            with trio.fail_after(HANG):
                if cut.caught:
                    with pytest.raises(trio.BrokenResourceError, match="the peer aborted it"):
                        await theirs.receive_some()
                else:
                    assert await theirs.receive_some() == b""
            await theirs.aclose()
        await wait_until(lambda: len(link_of(first).protocol.channels) == 1)
        await other.aclose()


async def test_refresh_address() -> None:
    async with pair() as both:
        for cut in cuts():
            with cut:
                assert await both.alice.refresh_address(both.bob.address) == both.bob.address
            await nothing_left(both)


async def test_a_cancelled_walk_ends_the_peers_work() -> None:
    """The peer learns of it, and stops dialling for a session that is over."""

    async def dawdling(_: str) -> bool:
        await trio.sleep_forever()
        return True

    async with pair(authorize=dawdling) as both:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def call() -> None:
                    await both.alice.connect(both.bob.address, plugin="reverse_connect", af=4)

                nursery.start_soon(call)
                await wait_until(lambda: bool(both.bob._runtime.peer_work))
                scope.cancel()
        assert scope.cancelled_caught
        await wait_until(lambda: not both.bob._runtime.peer_work)


async def leave(node: Node, server: RendezvousServer) -> None:
    await node.wait_signals()
    assert server.statistics().connections >= 1


async def test_a_closed_node_leaves_nothing_on_the_server() -> None:
    async with open_rendezvous() as server:
        async with loopback_node(BOB, config(server)) as bob:
            await leave(bob, server)
        await wait_until(lambda: server.statistics().connections == 0)
        assert server.statistics().mailboxes == 0
