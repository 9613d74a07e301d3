"""Peers that are called by their keys when nodes have only an MQTT broker, at which anybody may publish."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio

from tests.identities import ALICE, BOB, CAROL
from tests.memory_broker import URL, MemoryBroker
from tests.memory_broker import memory_broker as memory_broker
from tests.sim.test_dial_by_key import LIES, Scene, record_of, scene
from tests.sim.worlds import run
from warpgate_trio import Node, NodeConfig, Servers
from warpgate_trio.errors import PeerNotFound
from warpgate_trio.report import LookupOutcome
from warpgate_trio.signal.mqtt.channel import MqttChannel
from warpgate_trio.signal.mqtt.key_topic import KeyTopic
from warpgate_trio.signal.mqtt.record_upkeep import AGAIN_BURST, AGAIN_PERIOD
from warpgate_trio.sim import Network

CONFIG = NodeConfig(servers=Servers(mqtt=[URL]))
TOPIC = KeyTopic("", BOB.public_key)


async def open_bob(here: Scene) -> Node:
    return await here.node("bob", BOB, CONFIG, listens=True)


async def open_alice(here: Scene) -> Node:
    return await here.node("alice", ALICE, CONFIG)


def channel_of(node: Node) -> MqttChannel:
    (slot,) = node._runtime.hub._keeper.own
    assert isinstance(slot.channel, MqttChannel)
    return slot.channel


async def outcome(alice: Node) -> LookupOutcome:
    with pytest.raises(PeerNotFound) as caught:
        await alice.refresh_address(BOB.peer_id)
    (lookup,) = caught.value.lookups
    return lookup.outcome


def said(broker: MemoryBroker) -> int:
    """How many messages were published to Bob's topic."""
    return sum(topic == TOPIC.name for topic, _ in broker.published)


def test_three_round_trips_to_the_broker_are_what_it_costs(memory_broker: MemoryBroker) -> None:
    """As with a rendezvous server: one for the key record, and two for the question to the peer and its answer."""

    async def body(net: Network) -> list[float]:
        async with scene(net) as here:
            bob, alice = await open_bob(here), await open_alice(here)
            began = trio.current_time()
            assert await alice.find_address(BOB.peer_id) == bob.address
            found = trio.current_time()
            async with await alice.auto_connect(BOB.peer_id) as pipe:
                assert pipe.peer_id == BOB.peer_id
            asked = trio.current_time()
            with pytest.raises(PeerNotFound):
                await alice.find_address(CAROL.peer_id)
            assert memory_broker.subscribed[TOPIC.name], "Bob's own connection"
            return [found - began, trio.current_time() - asked]

    trip = 2 * memory_broker.latency
    there, nobody = run(body)
    assert there == pytest.approx(3 * trip, abs=0.01)
    assert nobody == pytest.approx(3 * trip, abs=0.01)


def test_a_look_up_leaves_nothing_behind(memory_broker: MemoryBroker) -> None:
    """However it ends, and however many look-ups run at once."""

    async def body(net: Network) -> None:
        async with scene(net) as here:
            alice = await open_alice(here)
            for patience in (0.01, 0.04, 0.06, 0.11, 1.0):
                async with trio.open_nursery() as nursery:
                    for each in range(3):
                        nursery.start_soon(give_up, alice, patience * (1 + each))
            await trio.sleep(1)
            assert memory_broker.subscribed[TOPIC.name] == []
            bob = await open_bob(here)
            found: list[object] = []

            async def find() -> None:
                found.append(await alice.refresh_address(BOB.peer_id))

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(find)
            assert found == [bob.address] * 3
            await trio.sleep(1)
            assert len(memory_broker.subscribed[TOPIC.name]) == 1, "Bob's own"

    async def give_up(alice: Node, patience: float) -> None:
        with trio.move_on_after(patience):
            assert await outcome(alice) is LookupOutcome.NOBODY

    run(body)


def test_look_ups_that_follow_one_another_at_once_find_it_each_time(memory_broker: MemoryBroker) -> None:
    """Between two look-ups the subscription may end, or continue."""

    async def body(net: Network) -> None:
        async with scene(net) as here:
            await open_bob(here)
            records = channel_of(await open_alice(here)).records
            for _ in range(20):
                found, _ = await records.look_up(BOB.public_key)
                assert found is LookupOutcome.RECORD

    run(body)


def test_a_record_that_comes_behind_what_is_none_is_found(memory_broker: MemoryBroker) -> None:
    """The owner publishes its record again during a look-up, which has received junk so far."""

    async def body(net: Network) -> None:
        async with scene(net) as here:
            hub = (await open_alice(here))._runtime.hub
            memory_broker.publish(TOPIC.name, b"\1junk", retain=True)
            shown = record_of(BOB, net.epoch + net.wire.now, URL)
            async with trio.open_nursery() as nursery:

                async def publish() -> None:
                    await trio.sleep(memory_broker.latency * 3)
                    memory_broker.publish(TOPIC.name, TOPIC.seal(shown, bytes(12)))

                nursery.start_soon(publish)
                (answer,) = await hub.look_up(BOB.public_key, patience=10.0)
            assert (answer.outcome, answer.record) == (LookupOutcome.RECORD, shown)

    run(body)


@pytest.mark.parametrize("expected", [each for each in LIES if each is not LookupOutcome.NOBODY])
def test_what_a_stranger_has_published_in_the_place_of_who_is_absent(
    memory_broker: MemoryBroker, expected: LookupOutcome
) -> None:
    async def body(net: Network) -> None:
        async with scene(net) as here:
            alice = await open_alice(here)
            shown = LIES[expected](net.epoch + net.wire.now)
            assert shown is not None
            memory_broker.publish(TOPIC.name, TOPIC.seal(shown, bytes(12)), retain=True)
            assert await outcome(alice) is expected
            memory_broker.publish(TOPIC.name, b"\1junk", retain=True)
            assert await outcome(alice) is LookupOutcome.MALFORMED
            memory_broker.publish(TOPIC.name, b"", retain=True)
            assert await outcome(alice) is LookupOutcome.NOBODY

    run(body)


def test_a_record_that_is_put_back_is_noticed_by_both(memory_broker: MemoryBroker) -> None:
    """The owner publishes its own record again, and a node that has seen a newer record rejects the old one."""

    async def body(net: Network) -> None:
        async with scene(net) as here:
            old = TOPIC.seal(record_of(BOB, net.epoch - 60, URL), bytes(12))
            alice = await open_alice(here)
            async with AsyncExitStack() as stack:
                bob = await open_bob(Scene(net, stack))
                assert await alice.refresh_address(BOB.peer_id) == bob.address
                memory_broker.publish(TOPIC.name, old, retain=True)
                await trio.sleep(1)
                assert await alice.refresh_address(BOB.peer_id) == bob.address
            memory_broker.publish(TOPIC.name, old, retain=True)
            assert await outcome(alice) is LookupOutcome.ROLLED_BACK

    run(body)


def test_who_clears_it_for_ever_has_it_published_at_a_bounded_rate(memory_broker: MemoryBroker) -> None:
    async def body(net: Network) -> None:
        async with scene(net) as here:
            await open_bob(here)
            alice = await open_alice(here)
            before = said(memory_broker)
            for _ in range(150):
                memory_broker.publish(TOPIC.name, b"", retain=True)
                await trio.sleep(0.5)
            assert 75 / AGAIN_PERIOD <= said(memory_broker) - before - 150 <= AGAIN_BURST + 75 / AGAIN_PERIOD + 1
            await trio.sleep(AGAIN_PERIOD)
            await alice.refresh_address(BOB.peer_id)

    run(body)


def test_a_broker_that_forgets_is_no_failure(memory_broker: MemoryBroker) -> None:
    memory_broker.forgets = True

    async def body(net: Network) -> None:
        async with scene(net) as here:
            bob, alice = await open_bob(here), await open_alice(here)
            assert channel_of(bob).records.kept is False
            assert memory_broker.retained == {}
            with here.host("alice"):
                async with await alice.auto_connect(bob.address):
                    pass

    run(body)
