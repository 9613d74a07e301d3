"""Pairing by MQTT brokers: real ones, and one in memory to which strangers publish what they like."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast, final

import pytest
import trio

from tests.documented import page, table
from tests.hangs import HANG
from tests.identities import ALICE, BOB
from tests.nodes import address_of, loopback_node
from tests.servers_mqtt import Broker
from tests.servers_mqtt import amqtt as amqtt
from tests.servers_mqtt import any_broker as any_broker
from tests.servers_mqtt import libraries as libraries
from tests.servers_mqtt import mosquitto_fixture as mosquitto_fixture
from warpgate_trio import NodeConfig, Servers
from warpgate_trio.errors import CodeRefused, PairingUnavailable, RemoteProtocolError
from warpgate_trio.host import RealHost
from warpgate_trio.identity import Identity
from warpgate_trio.pairing import Us, accept_code, open_offer, parse_code
from warpgate_trio.pairing.broker_messages import MAX_PUBLISHED, BrokerMessage, Kind, mailbox_topic, try_topic
from warpgate_trio.pairing.brokers import ANSWER_WITHIN, _Channel
from warpgate_trio.pairing.mailbox import MailboxChannel
from warpgate_trio.pairing.offer_core import MAX_TRIES
from warpgate_trio.servers.mailbox_frames import MAX_POST, Outcome
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.signal.mqtt.connection import Publication

SLOW = pytest.mark.slow("a broker of its own, and key exchanges in Python")
ID: Final = bytes(range(8))
MESSAGES: Final = [
    ("010001020304050607", BrokerMessage(Kind.PROBE, ID)),
    ("020001020304050607", BrokerMessage(Kind.TAKEN, ID)),
    ("03000102030405060768656c6c6f", BrokerMessage(Kind.CLAIM, ID, b"hello")),
    ("04000102030405060768656c6c6f", BrokerMessage(Kind.POST, ID, b"hello")),
    ("05000102030405060702", BrokerMessage(Kind.SETTLE, ID, bytes([Outcome.WRONG]))),
]


# -- real brokers ------------------------------------------------------------------------------------------------------


def node_config(*, mqtt: object, websocket: str | None = None) -> NodeConfig:
    return NodeConfig(servers=Servers(websocket=[websocket] if websocket else [], mqtt=[str(mqtt)]))


@SLOW
async def test_two_nodes_pair_by_a_broker(any_broker: Broker) -> None:
    config = node_config(mqtt=any_broker.url)
    with trio.fail_after(HANG):
        async with loopback_node(BOB, config) as bob, loopback_node(ALICE, config) as alice:
            async with bob.offer_code() as offer:
                nameplate, one, _ = offer.code.split("-")
                assert int(nameplate) >= 1000
                with pytest.raises(CodeRefused, match="the code is wrong"):
                    await alice.accept_code(f"{nameplate}-{one}-{'acorn' if not offer.code.endswith('acorn') else one}")
                assert (await alice.accept_code(offer.code)).peer_id == BOB.peer_id
                assert (await offer.wait_paired()).peer_id == ALICE.peer_id


@SLOW
async def test_who_has_a_broker_alone_pairs_with_who_has_both(any_broker: Broker) -> None:
    with trio.fail_after(HANG):
        async with (
            open_rendezvous() as server,
            loopback_node(BOB, node_config(mqtt=any_broker.url, websocket=server.url)) as bob,
            loopback_node(ALICE, node_config(mqtt=any_broker.url)) as alice,
            bob.offer_code() as offer,
        ):
            while len(offer.servers) < 2:  # noqa: ASYNC110  # the other server may come a little later
                await trio.sleep(0.05)
            assert (await alice.accept_code(offer.code)).peer_id == BOB.peer_id
            assert (await offer.wait_paired()).peer_id == ALICE.peer_id


# -- a broker in memory ------------------------------------------------------------------------------------------------


@final
@dataclass
class Memory:
    """A broker in memory; a `deaf` one passes nothing on."""

    deaf: bool = False
    subscribed: dict[str, list[trio.MemorySendChannel[Publication]]] = field(default_factory=lambda: defaultdict(list))
    published: list[tuple[str, bytes]] = field(default_factory=list)

    def publish(self, topic: str, payload: bytes) -> None:
        self.published.append((topic, payload))
        for each in [] if self.deaf else list(self.subscribed[topic]):
            each.send_nowait(Publication(topic, payload))


@final
class Connection:
    """A connection to the broker in memory, in place of an `MqttConnection`."""

    def __init__(self, broker: Memory) -> None:
        self._broker = broker
        self._send, self._receive = trio.open_memory_channel[Publication](10_000)

    async def publish(self, topic: str, payload: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._broker.publish(topic, payload)

    async def subscribe(self, topic: str) -> None:
        await trio.lowlevel.checkpoint()
        self._broker.subscribed[topic].append(self._send)

    async def receive(self) -> Publication:
        return await self._receive.receive()

    def close(self) -> None:
        for each in self._broker.subscribed.values():
            if self._send in each:
                each.remove(self._send)
        self._send.close()
        self._receive.close()


@final
@dataclass
class Access:
    """A node's access to the broker: a `MailboxServer`."""

    broker: Memory
    name: str = "mqtt://memory"
    allocates: bool = False

    def check(self) -> None:
        """Does nothing: a connection in memory does not die unnoticed."""

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[MailboxChannel]:
        await trio.lowlevel.checkpoint()
        connection = Connection(self.broker)
        try:
            yield _Channel(cast(Any, connection), self.name, "")
        finally:
            connection.close()


def us(identity: Identity) -> Us:
    address = address_of(identity, port=4433, now=1_700_000_000)
    return Us(identity, lambda: address, RealHost().entropy)


pytestmark = pytest.mark.usefixtures("libraries")
in_memory = pytest.mark.usefixtures("jumping_clock")


@in_memory
@SLOW
async def test_what_a_broker_sees_names_nobody() -> None:
    broker = Memory()
    async with open_offer([Access(broker)], us(BOB)) as offer:
        await accept_code([Access(broker)], parse_code(offer.code), us(ALICE))
        code = parse_code(offer.code)
    seen = b"".join(payload for _, payload in broker.published)
    for each in (ALICE, BOB):
        assert each.public_key not in seen
    mailbox = mailbox_topic("", code.nameplate)
    assert {topic.removeprefix(mailbox)[:1] for topic, _ in broker.published} == {"", "/"}
    assert not any(broker.subscribed.values())


@in_memory
async def test_a_code_that_nobody_offers_is_given_up() -> None:
    start = trio.current_time()
    with pytest.raises(CodeRefused) as refused:
        await accept_code([Access(Memory())], parse_code("4711-guitar-orbit"), us(ALICE))
    assert refused.value.outcome == Outcome.UNKNOWN
    assert trio.current_time() - start == pytest.approx(ANSWER_WITHIN, abs=0.5)


@in_memory
async def test_a_broker_that_passes_nothing_on_takes_no_code() -> None:
    with pytest.raises(PairingUnavailable, match="does not deliver our own messages back"):
        async with open_offer([Access(Memory(deaf=True))], us(BOB)):
            raise AssertionError


@in_memory
@SLOW
async def test_two_offers_of_one_number_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second offer takes another number, because the first answers that its number is taken."""
    numbers = iter((4711, 12345, 23456, 4711, 34567, 45678))
    monkeypatch.setattr(
        "warpgate_trio.pairing.offering._draw_nameplates", lambda _: [next(numbers), next(numbers), next(numbers)]
    )
    broker = Memory()
    async with open_offer([Access(broker)], us(BOB)) as first, open_offer([Access(broker)], us(ALICE)) as second:
        assert [parse_code(each.code).nameplate for each in (first, second)] == [4711, 34567]


@in_memory
@SLOW
async def test_strangers_publish_what_they_like() -> None:
    broker = Memory()
    async with open_offer([Access(broker)], us(BOB)) as offer:
        code = parse_code(offer.code)
        topic = mailbox_topic("", code.nameplate)
        for data in (b"", b"\x00" * 9, b"\x06" * 20, bytes(MAX_PUBLISHED + 1)):
            broker.publish(topic, data)
        for kind in (Kind.TAKEN, Kind.POST, Kind.SETTLE):
            broker.publish(topic, BrokerMessage(kind, ID, b"" if kind is Kind.TAKEN else b"x").encode())
        for number in range(5):
            broker.publish(topic, BrokerMessage(Kind.CLAIM, bytes([number] * 8), b"junk").encode())
        assert (await accept_code([Access(broker)], code, us(ALICE))).peer_id == BOB.peer_id


@in_memory
async def test_a_flood_voids_a_code_and_gets_nothing_for_it() -> None:
    broker = Memory()
    async with open_offer([Access(broker)], us(BOB)) as offer:
        topic = mailbox_topic("", parse_code(offer.code).nameplate)
        for number in range(10 * MAX_TRIES):
            broker.publish(topic, BrokerMessage(Kind.CLAIM, number.to_bytes(8, "big"), b"junk").encode())
        with pytest.raises(
            CodeRefused, match="nobody was paired: the code is void, because it was tried more than 64 times"
        ):
            await offer.wait_paired()


# -- messages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("golden", "message"), MESSAGES)
def test_golden_messages(golden: str, message: BrokerMessage) -> None:
    assert message.encode().hex() == golden
    assert BrokerMessage.decode(bytes.fromhex(golden)) == message


@pytest.mark.parametrize(
    "data",
    [b"", b"\x01" * 8, b"\x01" * 10, b"\x03" * 9, b"\x03" + bytes(8 + MAX_POST + 1), b"\x05" * 11, b"\x00" * 9],
)
def test_what_is_no_message_is_none(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="pairing message"):
        BrokerMessage.decode(data)


def test_the_page_lists_each_kind() -> None:
    rows = table(page("wire_formats.md"), "pairing kind", "message")
    assert [(int(row["pairing kind"]), row["message"]) for row in rows] == [(each.value, each.name) for each in Kind]


def test_topics() -> None:
    assert mailbox_topic("", 7) == "warpgate-trio/1/pair/7"
    assert try_topic("team/", 7, ID) == "team/warpgate-trio/1/pair/7/0001020304050607"
