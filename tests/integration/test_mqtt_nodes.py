"""Whole nodes with MQTT brokers in their configuration, alone and beside rendezvous servers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from tests.hangs import HANG
from tests.identities import ALICE, BOB
from tests.nodes import loopback_node
from tests.ports import free_port
from tests.servers_mqtt import Broker, open_wire
from tests.servers_mqtt import amqtt as amqtt
from tests.servers_mqtt import any_broker as any_broker
from tests.servers_mqtt import libraries as libraries
from tests.servers_mqtt import mosquitto_fixture as mosquitto_fixture
from tests.waiting import wait_until
from warpgate_trio import Node, NodeConfig, Servers, anyone
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.signal import Delivery, ServerState, SignalHub


def node_config(*, websocket: str | None = None, mqtt: object = None) -> NodeConfig:
    servers = Servers(websocket=[websocket] if websocket else [], mqtt=[str(mqtt)] if mqtt else [])
    return NodeConfig(servers=servers)


async def wait_servers(*nodes: Node) -> None:
    with trio.fail_after(HANG):
        await wait_until(
            lambda: all(each.state is ServerState.CONNECTED for node in nodes for each in node.signal_servers)
        )


async def call_back(alice: Node, bob: Node) -> None:
    """Makes a Pipe that needs signals: Alice asks Bob to dial."""
    with trio.fail_after(HANG):
        pipe = await alice.connect(bob.address, plugin="reverse_connect")
        async with pipe, await bob.listener.accept() as other:
            await pipe.send_all(b"x")
            assert await other.receive_some() == b"x"


async def test_two_nodes_by_both_transports_at_once(any_broker: Broker) -> None:
    async with open_rendezvous() as server:
        servers = node_config(websocket=server.url, mqtt=any_broker.url)
        async with (
            loopback_node(BOB, servers, authorize=anyone) as bob,
            loopback_node(ALICE, servers, authorize=anyone) as alice,
        ):
            await wait_servers(alice, bob)
            await call_back(alice, bob)
            await call_back(bob, alice)


async def test_two_nodes_by_mqtt_alone(any_broker: Broker) -> None:
    servers = node_config(mqtt=any_broker.url)
    async with loopback_node(BOB, servers, authorize=anyone) as bob, loopback_node(ALICE, servers) as alice:
        await wait_servers(alice, bob)
        assert bob.address.signals == (str(any_broker.url),)
        await call_back(alice, bob)


async def test_two_nodes_that_share_the_broker_only(any_broker: Broker) -> None:
    async with open_rendezvous() as hers, open_rendezvous() as his:
        async with (
            loopback_node(BOB, node_config(websocket=his.url, mqtt=any_broker.url), authorize=anyone) as bob,
            loopback_node(ALICE, node_config(websocket=hers.url, mqtt=any_broker.url)) as alice,
        ):
            await wait_servers(alice, bob)
            await call_back(alice, bob)


@pytest.mark.needs("mosquitto")
async def test_two_nodes_that_share_nothing_but_a_transport(mosquitto: Broker, amqtt: Broker) -> None:
    """The hint in Bob's address leads Alice to his broker."""
    async with (
        loopback_node(BOB, node_config(mqtt=amqtt.url), authorize=anyone) as bob,
        loopback_node(ALICE, node_config(mqtt=mosquitto.url)) as alice,
    ):
        await wait_servers(alice, bob)
        await call_back(alice, bob)


async def test_a_message_by_both_transports_counts_once(any_broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_rendezvous() as server:
        servers = node_config(websocket=server.url, mqtt=any_broker.url)
        async with loopback_node(BOB, servers, authorize=anyone) as bob, loopback_node(ALICE, servers) as alice:
            await wait_servers(alice, bob)
            sent = 0

            # Like the hub, but waits for both servers: an early answer from one must not make it skip the other.
            async def send(hub: SignalHub, receiver_key: bytes, payload: bytes, **_: object) -> Delivery:
                nonlocal sent
                sent += hub is alice._runtime.hub and receiver_key == BOB.public_key  # Bob also signals to his own key
                assert [slot.channel is not None for slot in hub._keeper.own] == [True, True]
                return max([await slot.channel.send(receiver_key, payload) for slot in hub._keeper.own if slot.channel])

            monkeypatch.setattr(SignalHub, "send", send)
            await call_back(alice, bob)
            counters = bob._runtime.router.counters
            with trio.fail_after(HANG):
                await wait_until(lambda: counters["Accepted"] + counters["Replayed"] == 2 * sent)
            assert counters["Accepted"] == counters["Replayed"] == sent > 0


@asynccontextmanager
async def dead_broker(kind: str, mosquitto: Broker) -> AsyncGenerator[str]:
    """The URL of a broker that does not work."""
    if kind == "frozen":
        mosquitto.freeze()
        yield str(mosquitto.url)
    elif kind == "killed":
        mosquitto.kill()
        yield str(mosquitto.url)
    elif kind == "slow":
        async with open_wire(mosquitto) as wire:
            wire.delay, wire.piece = 0.02, 1
            yield str(wire.url)
    else:
        async with AsyncExitStack() as stack:
            hole = stack.enter_context(trio.socket.socket())
            await hole.bind(("127.0.0.1", 0))
            hole.listen(0)
            for _ in range(2):  # after that the kernel drops SYNs
                filler = stack.enter_context(trio.socket.socket())
                with trio.move_on_after(0.05):
                    await filler.connect(hole.getsockname())
            yield f"mqtt://127.0.0.1:{hole.getsockname()[1]}"


@pytest.mark.needs("mosquitto")
@pytest.mark.slow("leaving a frozen broker may take the goodbye's 0.2 s, for each node")
@pytest.mark.parametrize("kind", ["frozen", "killed", "slow", "black hole"])
async def test_a_node_does_not_wait_for_a_dead_broker(kind: str, mosquitto: Broker) -> None:
    """It waits neither when it opens, nor when it signals by another server, nor when it closes."""
    async with open_rendezvous() as server, dead_broker(kind, mosquitto) as url:
        servers = node_config(websocket=server.url, mqtt=url)
        start = trio.current_time()
        async with loopback_node(BOB, servers, authorize=anyone) as bob, loopback_node(ALICE, servers) as alice:
            assert trio.current_time() - start < 5
            assert all(node.signal_servers[1].state is not ServerState.CONNECTED for node in (alice, bob))
            await alice.wait_signals()
            await bob.wait_signals()
            assert alice.signal_servers[0].state is ServerState.CONNECTED
            await call_back(alice, bob)
        assert trio.current_time() - start < 10


@pytest.mark.needs("mosquitto")
@pytest.mark.slow("each server is ended, and started again, once")
async def test_each_transport_fails_and_recovers_on_its_own(mosquitto: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warpgate_trio.signal.keeper.BACKOFF_FIRST", 0.01)
    port = free_port()
    servers = node_config(websocket=f"ws://127.0.0.1:{port}", mqtt=mosquitto.url)
    async with trio.open_nursery() as nursery:

        async def serve(*, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
            with trio.CancelScope() as scope:
                async with open_rendezvous(port=port):
                    task_status.started(scope)
                    await trio.sleep_forever()

        rendezvous = await nursery.start(serve)
        async with loopback_node(BOB, servers, authorize=anyone) as bob, loopback_node(ALICE, servers) as alice:

            async def wait_states(websocket: bool, mqtt: bool) -> None:
                wanted = [websocket, mqtt]
                with trio.fail_after(HANG):
                    for node in (alice, bob):
                        await wait_until(
                            lambda node=node: (
                                [  # type: ignore[misc]
                                    each.state is ServerState.CONNECTED for each in node.signal_servers
                                ]
                                == wanted
                            )
                        )

            await wait_states(True, True)
            mosquitto.kill()
            await wait_states(True, False)
            await call_back(alice, bob)
            mosquitto.start()
            await wait_states(True, True)
            rendezvous.cancel()
            await wait_states(False, True)
            await call_back(alice, bob)
            rendezvous = await nursery.start(serve)
            await wait_states(True, True)
            await call_back(alice, bob)
        nursery.cancel_scope.cancel()
