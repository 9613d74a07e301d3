"""Key records at real brokers: nodes that have nothing but a broker are called by peer id."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.hubs import no_long_pauses as no_long_pauses
from tests.identities import ALICE, BOB, CAROL
from tests.nodes import loopback_node
from tests.ports import free_port
from tests.servers_mqtt import Broker, Wire, make_mosquitto, open_wire
from tests.servers_mqtt import amqtt as amqtt
from tests.servers_mqtt import any_broker as any_broker
from tests.servers_mqtt import libraries as libraries
from tests.servers_mqtt import mosquitto_fixture as mosquitto_fixture
from tests.waiting import wait_until
from warpgate_trio import Node, NodeConfig, Servers, anyone
from warpgate_trio.address import KeyRecord
from warpgate_trio.config import ListenConfig
from warpgate_trio.errors import PeerNotFound, SignalUnavailable
from warpgate_trio.report import LookupOutcome
from warpgate_trio.signal import ServerState, SignalHub
from warpgate_trio.signal.mqtt.channel import MqttChannel, open_mqtt_channel
from warpgate_trio.signal.mqtt.connection import MqttConnection, open_mqtt
from warpgate_trio.signal.mqtt.key_topic import KeyTopic
from warpgate_trio.signal.mqtt.records import BrokerRecords

pytestmark = pytest.mark.usefixtures("no_long_pauses")


def config(broker: Broker | Wire) -> NodeConfig:
    return NodeConfig(servers=Servers(mqtt=[str(broker.url)]))


def records(node: Node) -> BrokerRecords | None:
    """The key records of the node's channel to its only broker, or None."""
    (slot,) = node._runtime.hub._keeper.own
    kept = slot.channel.records if slot.channel is not None else None
    assert kept is None or isinstance(kept, BrokerRecords)
    return kept


async def outcome(node: Node, peer_id: str) -> LookupOutcome:
    """The reason why the node does not find a peer."""
    with pytest.raises(PeerNotFound) as caught:
        await node.refresh_address(peer_id)
    (lookup,) = caught.value.lookups
    return lookup.outcome


@asynccontextmanager
async def listener(broker: Broker, *, kept: bool | None = True) -> AsyncGenerator[Node]:
    """Bob, who can be called, once he knows whether the broker keeps his record: `kept` is what he then knows."""
    async with loopback_node(BOB, config(broker), authorize=anyone) as bob:
        await bob.wait_published()  # gives up on servers after some seconds
        await wait_until(lambda: (here := records(bob)) is not None and here.kept is kept)
        yield bob


@asynccontextmanager
async def caller(broker: Broker) -> AsyncGenerator[Node]:
    async with loopback_node(ALICE, config(broker)) as alice:
        await alice.wait_signals()
        yield alice


async def test_a_peer_is_called_by_its_id_where_both_have_a_broker_alone(any_broker: Broker) -> None:
    with trio.fail_after(HANG):
        async with listener(any_broker) as bob, caller(any_broker) as alice:
            async with await alice.auto_connect(BOB.peer_id) as pipe, await bob.listener.accept() as other:
                await pipe.send_all(b"x")
                assert await other.receive_some() == b"x"
            assert await outcome(alice, CAROL.peer_id) is LookupOutcome.NOBODY


async def test_who_has_left_has_no_record(any_broker: Broker) -> None:
    with trio.fail_after(HANG):
        async with caller(any_broker) as alice:
            async with listener(any_broker) as bob:
                assert await alice.find_address(BOB.peer_id) == bob.address
            assert await outcome(alice, BOB.peer_id) is LookupOutcome.NOBODY


@pytest.mark.needs("mosquitto")
async def test_a_connection_that_breaks_takes_the_record_with_it(mosquitto: Broker) -> None:
    """The broker clears the record, so a node that has crashed leaves none there."""
    with trio.fail_after(HANG):
        async with open_wire(mosquitto) as wire, caller(mosquitto) as alice:
            broken = config(wire)
            async with loopback_node(BOB, broken, authorize=anyone) as bob:
                await wait_until(lambda: (here := records(bob)) is not None and here.kept is True)
                assert await alice.find_address(BOB.peer_id) == bob.address
                wire.target = free_port()  # the next connection leads nowhere
                wire.cut()
                await wait_until(lambda: bob.signal_servers[0].state is not ServerState.CONNECTED)
                await wait_until(lambda: mosquitto.count(r"Client wg\w+ closed") == 1)
                assert await outcome(alice, BOB.peer_id) is LookupOutcome.NOBODY


@pytest.mark.needs("mosquitto")
async def test_a_record_that_somebody_clears_or_replaces_is_published_again(mosquitto: Broker) -> None:
    topic = KeyTopic("", BOB.public_key)
    with trio.fail_after(HANG):
        async with listener(mosquitto) as bob, open_mqtt(mosquitto.url, max_payload=2000) as enemy:
            await enemy.subscribe(topic.name, retained=True)
            ours = (await enemy.receive()).payload
            assert topic.open(ours) == bob._runtime.key_record.current()  # type: ignore[union-attr]
            for junk in (b"", b"\1nonsense", topic.seal(b"\1nonsense", bytes(12))):
                await enemy.publish(topic.name, junk, retain=True)
                assert (await enemy.receive()).payload == junk
                assert topic.open((await enemy.receive()).payload) == topic.open(ours)
            async with caller(mosquitto) as alice:
                assert await alice.find_address(BOB.peer_id) == bob.address


@pytest.mark.needs("mosquitto")
async def test_the_newest_of_two_processes_has_the_record(mosquitto: Broker) -> None:
    """The older process leaves that record alone, and publishes its own again once the newest is gone."""
    topic = KeyTopic("", BOB.public_key)
    with trio.fail_after(HANG):
        async with open_mqtt(mosquitto.url, max_payload=2000) as stranger:
            await stranger.subscribe(topic.name, retained=True)
            async with listener(mosquitto) as first:
                one = topic.open((await stranger.receive()).payload)
                await trio.sleep(0.002)  # a record's timestamp is in milliseconds
                async with listener(mosquitto) as second:
                    two = topic.open((await stranger.receive()).payload)
                    assert two == second._runtime.key_record.current() != one  # type: ignore[union-attr]
                assert (await stranger.receive()).payload == b""
                assert topic.open((await stranger.receive()).payload) == one
                assert first.peer_id == second.peer_id


@pytest.mark.needs("mosquitto")
@pytest.mark.slow("as many hubs as publishing has steps")
async def test_a_hub_cancelled_at_any_step_leaves_nothing_retained(
    mosquitto: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MqttConnection.publish
    topic = KeyTopic("", BOB.public_key)
    made = KeyRecord.issue(BOB, issued_ms=1, signals=[str(mosquitto.url)], instance=b"instance").to_bytes()
    begun = trio.Event()

    async def publish(connection: MqttConnection, topic: str, payload: bytes, *, retain: bool = False) -> None:
        if retain:
            begun.set()
        await real(connection, topic, payload, retain=retain)

    monkeypatch.setattr(MqttConnection, "publish", publish)
    with trio.fail_after(HANG):
        for steps in range(0, 40, 4):
            begun = trio.Event()
            hub = SignalHub(BOB, [mosquitto.url])
            hub.publish_key_record(lambda: made)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hub.run)
                await begun.wait()
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        async with open_mqtt(mosquitto.url, max_payload=2000) as stranger:
            await wait_until(lambda: mosquitto.connections() == 1)
            await stranger.subscribe(topic.name, retained=True)
            await stranger.publish(topic.name, b"end")
            assert (await stranger.receive()).payload == b"end"


@pytest.mark.needs("mosquitto")
async def test_a_broker_that_has_lost_it_is_told_again(mosquitto: Broker) -> None:
    with trio.fail_after(HANG):
        async with listener(mosquitto) as bob, caller(mosquitto) as alice:
            mosquitto.kill()
            await wait_until(lambda: records(bob) is None and records(alice) is None)
            mosquitto.start()
            await wait_until(lambda: (here := records(bob)) is not None and here.kept is True)
            await alice.wait_signals()
            assert await alice.refresh_address(BOB.peer_id) == bob.address


@pytest.mark.needs("mosquitto")
@pytest.mark.parametrize("how", ["cut", "left"])
async def test_a_look_up_ends_with_its_connection(mosquitto: Broker, how: str) -> None:
    caught: list[SignalUnavailable] = []

    async def look_up(channel: MqttChannel) -> None:
        with pytest.raises(SignalUnavailable, match=str(wire.url)) as raised:
            await channel.records.look_up(BOB.public_key)
        caught.append(raised.value)

    with trio.fail_after(HANG):
        async with open_wire(mosquitto) as wire, trio.open_nursery() as nursery:
            async with open_mqtt_channel(wire.url, ALICE) as channel:
                wire.swallow = True
                nursery.start_soon(look_up, channel)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert caught == []
                if how == "cut":
                    wire.cut()
                    with pytest.raises(SignalUnavailable):
                        await channel.receive()
    assert len(caught) == 1


# --- brokers that have rules ---

SIGNALS = "topic readwrite warpgate-trio/1/+\ntopic readwrite warpgate-trio/1/+/0000000000000000\n"


@pytest.mark.needs("mosquitto")
@pytest.mark.parametrize(
    ("acl", "expected"),
    [
        ("topic readwrite warpgate-trio/1/key/+\n", LookupOutcome.NOBODY),
        ("topic write warpgate-trio/1/key/+\n", LookupOutcome.FORBIDDEN),
        ("topic read warpgate-trio/1/key/+\n", LookupOutcome.FORBIDDEN),
        ("", LookupOutcome.FORBIDDEN),
    ],
    ids=["all", "write", "read", "nothing"],
)
async def test_rules_for_the_topics_of_key_records(tmp_path: Path, acl: str, expected: LookupOutcome) -> None:
    """A lookup reports what the rules forbid, and signals still work."""
    broker = make_mosquitto(tmp_path, acl=SIGNALS + acl)
    try:
        broker.start()
        with trio.fail_after(HANG):
            async with listener(broker, kept=expected is LookupOutcome.NOBODY) as bob, caller(broker) as alice:
                assert await outcome(alice, CAROL.peer_id) is expected
                async with await alice.connect(bob.address, plugin="reverse_connect"):
                    pass
                assert broker.count(r"New client connected \S+ \S+ as wg") == 2
    finally:
        broker.kill()


@pytest.mark.needs("mosquitto")
@pytest.mark.slow("the broker closes two connections")
async def test_a_broker_that_retains_nothing_is_connected_to_all_the_same(tmp_path: Path) -> None:
    broker = make_mosquitto(tmp_path, retains=False)
    try:
        broker.start()
        with trio.fail_after(HANG):
            async with listener(broker, kept=None) as bob, caller(broker) as alice:
                assert await outcome(alice, BOB.peer_id) is LookupOutcome.NOBODY
                async with await alice.connect(bob.address, plugin="reverse_connect"):
                    pass
                assert broker.count(r"New client connected \S+ \S+ as wg") == 2
    finally:
        broker.kill()


@pytest.mark.needs("mosquitto")
async def test_a_broker_that_closes_over_a_retained_message_is_spared_it(
    mosquitto: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MQTT 3.1.1 §3.3.5 allows this.  After two closed connections the next publishes no record, and does the rest."""
    publish, subscribe = MqttConnection.publish, MqttConnection.subscribe
    closed: list[str] = []
    async with open_wire(mosquitto) as wire:

        async def publish_and_be_cut(
            connection: MqttConnection, topic: str, payload: bytes, *, retain: bool = False
        ) -> None:
            if retain:
                closed.append(topic)
                wire.cut()
            await publish(connection, topic, payload, retain=retain)

        async def subscribe_later(connection: MqttConnection, topic: str, *, retained: bool = False) -> None:
            if topic.count("/") > 2 and len(closed) < 2:
                await trio.sleep_forever()  # until the connection ends, before it has a topic of its own
            await subscribe(connection, topic, retained=retained)

        monkeypatch.setattr(MqttConnection, "publish", publish_and_be_cut)
        monkeypatch.setattr(MqttConnection, "subscribe", subscribe_later)
        with trio.fail_after(HANG):
            async with loopback_node(BOB, config(wire), authorize=anyone) as bob:
                await wait_until(lambda: len(closed) == 2 and bob._runtime.hub.has_topic)
                await bob.wait_published()
                assert (here := records(bob)) is not None
                assert here.kept is None
                assert len(closed) == 2


async def test_who_is_not_findable_publishes_nothing(any_broker: Broker) -> None:
    hidden = NodeConfig(servers=Servers(mqtt=[str(any_broker.url)]), listen=ListenConfig(findable=False))
    with trio.fail_after(HANG):
        async with loopback_node(BOB, hidden, authorize=anyone) as bob, caller(any_broker) as alice:
            await bob.wait_published()
            assert await outcome(alice, BOB.peer_id) is LookupOutcome.NOBODY
