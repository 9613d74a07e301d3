"""Whole nodes with MQTT brokers in their configuration, alone and beside rendezvous servers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from tests.nodes import ALICE, BOB, loopback_node
from tests.servers_mqtt import Broker
from tests.servers_mqtt import amqtt as amqtt
from tests.servers_mqtt import any_broker as any_broker
from tests.servers_mqtt import libraries as libraries
from tests.servers_mqtt import mosquitto_fixture as mosquitto_fixture
from warpgate_trio import Node, NodeConfig, Servers, anyone
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.signal import Delivery, ServerState, SignalHub


async def wait_until(condition: Callable[[], bool]) -> None:
    """For what other tasks and processes do in their own time."""
    while not condition():  # noqa: ASYNC110  # there is no event that a process could set
        await trio.sleep(0.001)


def node_config(*, websocket: str | None = None, mqtt: object = None) -> NodeConfig:
    servers = Servers(
        websocket=[websocket] if websocket else [], mqtt=[str(mqtt)] if mqtt else [], public_servers=False
    )
    return NodeConfig(servers=servers)


async def wait_servers(*nodes: Node) -> None:
    with trio.fail_after(5):
        await wait_until(
            lambda: all(each.state is ServerState.CONNECTED for node in nodes for each in node.signal_servers)
        )


async def call_back(alice: Node, bob: Node) -> None:
    """A Pipe that needs signals: Alice asks Bob to dial."""
    with trio.fail_after(5):
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

            # As the hub does it, but waiting for both, so that neither can spare the other.
            async def send(hub: SignalHub, receiver_key: bytes, payload: bytes, **_: object) -> Delivery:
                nonlocal sent
                sent += receiver_key == BOB.public_key
                assert [slot.channel is not None for slot in hub._own] == [True, True]
                return max([await slot.channel.send(receiver_key, payload) for slot in hub._own if slot.channel])

            monkeypatch.setattr(SignalHub, "send", send)
            await call_back(alice, bob)
            counters = bob._runtime.signals.counters
            with trio.fail_after(5):
                await wait_until(lambda: counters["Accepted"] + counters["Replayed"] == 2 * sent)
            assert counters["Accepted"] == counters["Replayed"] == sent > 0


@pytest.mark.needs("mosquitto")
async def test_a_node_does_not_wait_for_a_dead_broker(mosquitto: Broker) -> None:
    mosquitto.freeze()
    start = trio.current_time()
    async with loopback_node(ALICE, node_config(mqtt=mosquitto.url)) as alice:
        assert trio.current_time() - start < 0.2
        assert [each.state for each in alice.signal_servers] == [ServerState.CONNECTING]
    assert trio.current_time() - start < 0.5
