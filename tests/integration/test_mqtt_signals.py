"""Signals over MQTT, alone and beside WebSocket: what is promised, and how a failing server affects the others."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.certificates import Authority
from tests.hangs import HANG
from tests.hubs import anywhere, hub_for, states
from tests.hubs import no_long_pauses as no_long_pauses
from tests.identities import ALICE, BOB
from tests.ports import free_port
from tests.servers_mqtt import PASSWORD, USER, Broker, make_mosquitto, open_wire
from tests.servers_mqtt import amqtt as amqtt
from tests.servers_mqtt import any_broker as any_broker
from tests.servers_mqtt import libraries as libraries
from tests.servers_mqtt import mosquitto_fixture as mosquitto_fixture
from tests.waiting import wait_until
from warpgate_trio.config import ServerUrl
from warpgate_trio.errors import ConfigError, SignalUnavailable
from warpgate_trio.identity import Identity, peer_id_from_key
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.servers.rendezvous_frames import ANY_INSTANCE
from warpgate_trio.signal import Delivery, ServerState, SignalHub, open_channel
from warpgate_trio.signal import hub as hub_module
from warpgate_trio.signal import keeper as keeper_module
from warpgate_trio.signal.mqtt import channel as mqtt_channel
from warpgate_trio.signal.mqtt.channel import open_mqtt_channel
from warpgate_trio.signal.mqtt.connection import MqttConnection, MqttError, Publication, open_mqtt

CONNECTED, WAITING = ServerState.CONNECTED, ServerState.WAITING

pytestmark = pytest.mark.usefixtures("no_long_pauses")


# --- one broker ---


async def test_from_hub_to_hub_and_back(any_broker: Broker) -> None:
    async with hub_for(ALICE, any_broker.url) as alice, hub_for(BOB, any_broker.url) as bob:
        assert await alice.send(BOB.public_key, b"\x01request") is Delivery.QUEUED
        request = await bob.receive()
        assert (request.payload, request.via) == (b"\x01request", str(any_broker.url))
        assert await bob.send(ALICE.public_key, b"\x01" * 16_384, via=request.via) is Delivery.QUEUED
        assert (await alice.receive()).payload == b"\x01" * 16_384
        assert alice.rtt is not None
        assert 0 < alice.rtt < 1


async def test_a_receiver_that_is_not_there_is_no_news(any_broker: Broker) -> None:
    async with hub_for(ALICE, any_broker.url) as alice:
        assert await alice.send(BOB.public_key, b"\x01") is Delivery.QUEUED


@pytest.mark.slow("some hundred messages, which amqtt takes its time for")
async def test_many_signals_at_once(any_broker: Broker) -> None:
    """There are more than a connection takes at a time: none is refused, and none waits for a reconnection."""
    count = 200
    async with hub_for(ALICE, any_broker.url) as alice, hub_for(BOB, any_broker.url) as bob:
        async with open_background_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(alice.send, BOB.public_key, b"\x01x")
            for _ in range(count):
                assert (await bob.receive()).payload == b"\x01x"
        assert bob.dropped == 0


async def test_golden_topic(any_broker: Broker) -> None:
    """Two releases must find each other: the topic is a wire format."""
    topic = "warpgate-trio/1/" + peer_id_from_key(ALICE.public_key)
    assert topic == f"warpgate-trio/1/{ALICE.peer_id}"
    async with open_mqtt(any_broker.url, max_payload=100) as raw, hub_for(ALICE, any_broker.url) as alice:
        await raw.publish(topic, b"\x01x")
        assert (await alice.receive()).payload == b"\x01x"
        await raw.subscribe(f"warpgate-trio/1/{BOB.peer_id}")
        await alice.send(BOB.public_key, b"\x01y")
        assert (await raw.receive()).payload == b"\x01y"


async def test_the_path_goes_before_the_topic(any_broker: Broker) -> None:
    url = f"{any_broker.url}/some/team/"
    async with open_mqtt(any_broker.url, max_payload=100) as raw, hub_for(ALICE, url) as alice:
        await raw.publish(f"some/team/warpgate-trio/1/{ALICE.peer_id}", b"\x01x")
        assert (await alice.receive()).payload == b"\x01x"


@pytest.mark.parametrize("tail", ["/a+b", "/%20", "/$SYS", "/" + "a" * 129, "/?key=secret"])
def test_urls_that_no_topic_can_start_with(tail: str) -> None:
    with pytest.raises(ConfigError, match=r"^mqtt://broker\.example/"):
        SignalHub(ALICE, [ServerUrl.parse(f"mqtt://broker.example{tail}")])


async def test_what_is_no_signal_is_passed_over(any_broker: Broker) -> None:
    """Payloads that are empty, too long, or a forged echo of our own message."""
    topic = f"warpgate-trio/1/{ALICE.peer_id}"
    async with open_mqtt(any_broker.url, max_payload=100_000) as raw, hub_for(ALICE, any_broker.url) as alice:
        for payload in (b"", bytes(17), b"\0", b"\x01" * 16_385, b"\x01" * 100_000, b"\x01fine"):
            await raw.publish(topic, payload)
        assert (await alice.receive()).payload == b"\x01fine"


@pytest.mark.parametrize(("key", "payload"), [(bytes(31), b"x"), (bytes(32), b""), (bytes(32), bytes(16_385))])
async def test_wrong_lengths(any_broker: Broker, key: bytes, payload: bytes) -> None:
    async with open_channel(any_broker.url, ALICE) as channel:
        with pytest.raises(ValueError, match="bytes, not"):
            await channel.send(key, payload)
        assert channel.url == str(any_broker.url)
        assert "MqttChannel" in repr(channel)


async def test_a_channel_that_was_left(any_broker: Broker) -> None:
    async with open_mqtt_channel(any_broker.url, ALICE) as channel:
        pass
    with pytest.raises(SignalUnavailable, match="the channel is closed"):
        await channel.send(BOB.public_key, b"x")
    with pytest.raises(SignalUnavailable, match="the channel is closed"):
        await channel.receive()


async def test_what_nobody_receives_is_dropped_and_counted(any_broker: Broker) -> None:
    async with open_mqtt_channel(any_broker.url, ALICE) as channel:
        for number in range(66):
            await channel.send(ALICE.public_key, b"\x01%d" % number)
        await wait_until(lambda: channel.dropped == 2)
        assert [await channel.receive() for _ in range(64)] == [b"\x01%d" % number for number in range(64)]


@pytest.mark.needs("mosquitto")
@pytest.mark.slow("two TLS handshakes")
async def test_tls_password_and_ca_file(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    broker = make_mosquitto(tmp_path, tls=authority, password=True)
    try:
        broker.start()
        url = str(broker.url).replace("//", f"//{USER}:{PASSWORD.replace('/', '%2F')}@")
        async with hub_for(ALICE, url, ca_file=authority.ca_file) as alice:
            assert await alice.send(ALICE.public_key, b"\x01x") is Delivery.QUEUED
            assert (await alice.receive()).payload == b"\x01x"
            assert PASSWORD not in alice.status()[0].url
        async with hub_for(ALICE, broker.url, ca_file=authority.ca_file, connected=False) as alice:
            await wait_until(lambda: states(alice) == [WAITING])
            assert "not authorized" in (alice.status()[0].last_error or "")
    finally:
        broker.kill()


# --- a broker that comes and goes ---


@pytest.mark.needs("mosquitto")
async def test_a_broker_that_is_missing_at_the_start(mosquitto: Broker) -> None:
    mosquitto.kill()
    async with hub_for(ALICE, mosquitto.url, connected=False) as alice:
        await wait_until(lambda: states(alice) == [WAITING])
        async with open_background_nursery() as nursery:
            answers: list[Delivery] = []

            async def send() -> None:
                answers.append(await alice.send(ALICE.public_key, b"\x01x"))

            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            assert answers == []
            mosquitto.start()
            assert (await alice.receive()).payload == b"\x01x"
            await wait_until(lambda: answers == [Delivery.QUEUED])


@pytest.mark.slow("four starts of a broker")
@pytest.mark.needs("mosquitto")
@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_broker_that_is_restarted(mosquitto: Broker, how: str) -> None:
    async with hub_for(ALICE, mosquitto.url) as alice, hub_for(BOB, mosquitto.url) as bob:
        for _ in range(2):
            getattr(mosquitto, how)()
            await wait_until(lambda: CONNECTED not in states(alice) + states(bob))
            assert alice.rtt is None
            mosquitto.start()
            await wait_until(lambda: states(alice) + states(bob) == [CONNECTED] * 2)
            assert await alice.send(BOB.public_key, b"\x01x") is Delivery.QUEUED
            assert (await bob.receive()).payload == b"\x01x", "it has subscribed again"


@pytest.mark.needs("mosquitto")
async def test_a_message_in_flight_when_the_connection_breaks_is_published_again(mosquitto: Broker) -> None:
    async with open_wire(mosquitto) as wire, hub_for(ALICE, wire.url) as alice, hub_for(BOB, mosquitto.url) as bob:
        wire.swallow = True
        async with open_background_nursery() as nursery:
            answers: list[Delivery] = []

            async def send() -> None:
                answers.append(await alice.send(BOB.public_key, b"\x01x"))

            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert answers == []
            wire.swallow = False
            wire.cut()
            assert (await bob.receive()).payload == b"\x01x"
            await wait_until(lambda: answers == [Delivery.QUEUED])


@pytest.mark.needs("mosquitto")
async def test_a_message_in_flight_when_the_broker_dies_is_published_again(mosquitto: Broker) -> None:
    async with hub_for(ALICE, mosquitto.url) as alice:
        mosquitto.freeze()
        async with open_background_nursery() as nursery:
            answers: list[Delivery] = []

            async def send() -> None:
                answers.append(await alice.send(ALICE.public_key, b"\x01x"))

            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.01)
            mosquitto.kill()
            await wait_until(lambda: states(alice) != [CONNECTED])
            assert answers == []
            mosquitto.start()
            # Alice subscribes before she publishes, so she cannot miss her message to herself.
            assert (await alice.receive()).payload == b"\x01x"
            await wait_until(lambda: answers == [Delivery.QUEUED])


@pytest.mark.slow("a connection that breaks every few messages, and has to come back each time")
@pytest.mark.needs("mosquitto")
async def test_what_was_sent_has_arrived_however_often_the_connection_broke(
    mosquitto: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alice's connection comes and goes, Bob's holds: no message for which `send` has returned is lost.

    The broker has to take ownership of what it acknowledges (MQTT 3.1.1 §4.3.2).  amqtt only puts a message into a
    queue of the connection before it acknowledges it, and drops that queue together with the connection.
    """
    monkeypatch.setattr(keeper_module, "BACKOFF_LIMIT", 0.02)
    chance = random.Random(4)
    sent = 0
    heard: set[bytes] = set()
    breaks = 0
    async with open_wire(mosquitto) as wire, hub_for(ALICE, wire.url) as alice, hub_for(BOB, mosquitto.url) as bob:

        async def hear() -> None:
            while True:
                heard.add((await bob.receive()).payload)

        async def break_it() -> None:
            nonlocal breaks
            while breaks < 8:
                await wait_until(lambda: states(alice) == [CONNECTED])
                await trio.sleep(chance.uniform(0, 0.02))
                wire.cut()
                breaks += 1
                await wait_until(lambda: states(alice) != [CONNECTED])

        async with open_background_nursery() as nursery:
            nursery.start_soon(hear)
            nursery.start_soon(break_it)
            while sent < 60 or breaks < 2:  # a fast machine may send sixty before the connection is cut
                async with trio.open_nursery() as senders:
                    for number in range(sent, sent + 4):
                        senders.start_soon(alice.send, BOB.public_key, b"\x01%d" % number)
                sent += 4
            await wait_until(lambda: len(heard) == sent)


@pytest.mark.slow("a frozen broker has to be given up first")
@pytest.mark.needs("mosquitto")
async def test_a_frozen_broker_is_left_and_found_again(mosquitto: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_channel, "PING_INTERVAL", 0.02)
    monkeypatch.setattr(mqtt_channel, "PONG_TIMEOUT", 0.2)
    monkeypatch.setattr(keeper_module, "CONNECT_TIMEOUT", 1.0)
    async with hub_for(ALICE, mosquitto.url) as alice:
        mosquitto.freeze()
        await wait_until(lambda: states(alice) != [CONNECTED])
        assert "no echo within 0" in (alice.status()[0].last_error or "") or alice.status()[0].last_error is None
        mosquitto.thaw()
        await wait_until(lambda: states(alice) == [CONNECTED])
        assert await alice.send(ALICE.public_key, b"\x01x") is Delivery.QUEUED


@pytest.mark.needs("mosquitto")
async def test_a_lost_subscription_is_noticed(mosquitto: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker still answers everything, but no longer delivers anything to us."""
    monkeypatch.setattr(mqtt_channel, "PING_INTERVAL", 0.02)
    monkeypatch.setattr(mqtt_channel, "PONG_TIMEOUT", 0.1)
    async with open_mqtt_channel(mosquitto.url, ALICE) as channel:
        client = channel._connection._client
        assert client is not None
        await channel._connection._call(lambda client: client.unsubscribe(channel._topic))
        with pytest.raises(SignalUnavailable, match="no echo within 0"):
            await channel.receive()
        with pytest.raises(SignalUnavailable, match="no echo within 0"):
            await channel.send(BOB.public_key, b"x")


ACLS = pytest.mark.parametrize("acl", ["", "topic read #\n", "topic write #\n"], ids=["nothing", "read", "write"])


@ACLS
@pytest.mark.needs("mosquitto")
async def test_a_broker_that_drops_everything_is_not_connected(
    acl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It grants the subscription, and acknowledges what it drops; only the missing echo of our message shows that."""
    monkeypatch.setattr(mqtt_channel, "ECHO_TIMEOUT", 0.05)
    broker = make_mosquitto(tmp_path, acl=acl)
    try:
        broker.start()
        async with hub_for(ALICE, broker.url, connected=False) as alice:
            await wait_until(lambda: broker.count("New client connected .* as wg") >= 3)
            assert CONNECTED not in states(alice)
            assert alice.rtt is None
            why = alice.status()[0].last_error or ""
            with pytest.raises(SignalUnavailable, match="ACL"):
                await alice.measure_server(broker.url, timeout=HANG)
    finally:
        broker.kill()
    assert f"no echo within 0.05 s of a message to our own topic warpgate-trio/1/{ALICE.peer_id}" in why
    assert [each.levelname for each in caplog.records if each.name == keeper_module.__name__] == ["WARNING"]


@pytest.mark.needs("mosquitto")
async def test_a_broker_that_lets_us_have_our_own_tree_is_connected(tmp_path: Path) -> None:
    broker = make_mosquitto(tmp_path, acl="topic readwrite some/team/#\n")
    try:
        broker.start()
        async with hub_for(ALICE, f"{broker.url}/some/team") as alice:
            assert alice.rtt is not None
    finally:
        broker.kill()


@pytest.mark.needs("mosquitto")
async def test_a_connection_that_ends_before_the_echo_says_so(mosquitto: Broker) -> None:
    async with open_wire(mosquitto) as wire, open_background_nursery() as nursery:
        wire.delay = 0.02

        async def cut() -> None:
            await wait_until(lambda: mosquitto.count("SUBACK") > 0)
            wire.cut()

        nursery.start_soon(cut)
        with pytest.raises(SignalUnavailable, match=r"lost|closed|broke"):  # not for lack of an echo
            async with open_mqtt_channel(wire.url, ALICE):
                pass


async def test_a_broker_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "CONNECT_TIMEOUT", 0.05)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        url = f"mqtt://127.0.0.1:{listener.socket.getsockname()[1]}"
        async with hub_for(ALICE, url, connected=False) as alice:
            await wait_until(lambda: states(alice) == [WAITING])
            assert (alice.status()[0].last_error or "").startswith("no answer within 0")


@pytest.mark.needs("mosquitto")
async def test_the_end_of_a_hub_leaves_nothing_at_the_broker(mosquitto: Broker) -> None:
    async with hub_for(ALICE, mosquitto.url) as alice:
        await alice.send(BOB.public_key, b"\x01x", hints=[f"mqtt://localhost:{mosquitto.port}"], may_connect=anywhere)
    await wait_until(lambda: mosquitto.connections() == 0)
    with pytest.raises(SignalUnavailable, match="not running"):
        await alice.send(BOB.public_key, b"x")


@pytest.mark.needs("mosquitto")
@pytest.mark.slow("as many hubs as a beginning has steps")
async def test_a_hub_cancelled_at_any_step(mosquitto: Broker) -> None:
    async def live() -> None:
        async with hub_for(ALICE, mosquitto.url) as alice:
            await alice.send(ALICE.public_key, b"\x01x")
            await alice.receive()
            await trio.sleep_forever()

    for steps in range(0, 400, 10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(live)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    for milliseconds in range(0, 40, 2):
        with trio.move_on_after(milliseconds / 1000):
            await live()
    with trio.fail_after(HANG):
        await wait_until(lambda: mosquitto.connections() == 0)


# --- several servers ---


@pytest.mark.slow("leaving a frozen broker takes the goodbye's 0.2 s, for each hub")
@pytest.mark.needs("mosquitto")
async def test_two_brokers_and_one_is_dead(mosquitto: Broker, amqtt: Broker) -> None:
    async with (
        hub_for(ALICE, mosquitto.url, amqtt.url, everywhere=True) as alice,
        hub_for(BOB, amqtt.url, mosquitto.url, everywhere=True) as bob,
    ):
        assert await alice.send(BOB.public_key, b"\x01both") is Delivery.QUEUED
        assert {(await bob.receive()).via for _ in range(2)} == {str(mosquitto.url), str(amqtt.url)}
        mosquitto.freeze()
        assert await alice.send(BOB.public_key, b"\x01one") is Delivery.QUEUED
        assert (await bob.receive()).via == str(amqtt.url)


async def test_a_rendezvous_server_that_hangs_does_not_hold_up_a_broker(any_broker: Broker) -> None:
    async with open_rendezvous() as server:
        async with (
            hub_for(ALICE, server.url, any_broker.url, everywhere=True) as alice,
            hub_for(BOB, any_broker.url) as bob,
        ):
            hanging = next(slot.channel for slot in alice._keeper.own if slot.url.scheme == "ws")
            assert hanging is not None
            release = trio.Event()
            late: list[bytes] = []

            async def hang(receiver_key: bytes, payload: bytes, *, instance: bytes | None = None) -> Delivery:
                await release.wait()
                late.append(payload)
                return Delivery.NOBODY_HOME

            hanging.send = hang  # type: ignore[method-assign]
            with trio.fail_after(HANG):
                assert await alice.send(BOB.public_key, b"\x01x") is Delivery.QUEUED
            assert (await bob.receive()).payload == b"\x01x"
            release.set()
            await wait_until(lambda: late == [b"\x01x"])  # the slow send was not cancelled, and did no harm


async def test_what_goes_on_behind_a_senders_back_is_bounded(
    any_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "MAX_TRAILING", 3)
    async with open_rendezvous() as server, hub_for(ALICE, server.url, any_broker.url, everywhere=True) as alice:
        hanging = next(slot.channel for slot in alice._keeper.own if slot.url.scheme == "ws")
        assert hanging is not None
        running: set[bytes] = set()

        async def hang(receiver_key: bytes, payload: bytes, *, instance: bytes | None = None) -> Delivery:
            running.add(payload)
            try:
                await trio.sleep_forever()
            finally:
                running.discard(payload)
            raise AssertionError

        hanging.send = hang  # type: ignore[method-assign]
        for number in range(5):
            assert await alice.send(BOB.public_key, b"\x01%d" % number) is Delivery.QUEUED
        await wait_until(lambda: running == {b"\x012", b"\x013", b"\x014"})
        monkeypatch.setattr(hub_module, "TRAILING_TIME", 0.01)
        assert await alice.send(BOB.public_key, b"\x015") is Delivery.QUEUED
        await wait_until(lambda: b"\x015" not in running)


async def test_delivered_is_better_than_queued(any_broker: Broker) -> None:
    async with open_rendezvous() as server:
        urls = (server.url, any_broker.url)
        async with hub_for(ALICE, *urls, everywhere=True) as alice, hub_for(BOB, *urls, everywhere=True) as bob:
            for _ in range(5):
                assert await alice.send(BOB.public_key, b"\x01x") >= Delivery.QUEUED
                # Both deliver it, unless the rendezvous server was so fast that the broker was not needed.
                assert (await bob.receive()).payload == b"\x01x"


# --- hints ---


async def test_a_visit_to_a_peers_broker(any_broker: Broker) -> None:
    """Alice and Bob share no server.  She has a broker, so a hint to Bob's broker may be followed."""
    async with hub_for(ALICE, f"mqtt://127.0.0.1:{free_port()}", connected=False) as alice:
        async with hub_for(BOB, any_broker.url) as bob:
            assert (
                await alice.send(BOB.public_key, b"\x01request", hints=[str(any_broker.url)], may_connect=anywhere)
                is Delivery.QUEUED
            )
            assert (await bob.receive()).payload == b"\x01request"
            assert await bob.send(ALICE.public_key, b"\x01reply") is Delivery.QUEUED
            reply = await alice.receive()
            assert (reply.payload, reply.via) == (b"\x01reply", str(any_broker.url))
            assert alice.status()[1].visiting


async def test_a_node_without_mqtt_does_not_follow_hints_to_it(any_broker: Broker) -> None:
    async with open_rendezvous() as server, hub_for(ALICE, server.url) as alice:
        hints = [str(any_broker.url), "mqtt://broker.example/?bad"]
        assert await alice.send(BOB.public_key, b"\x01x", hints=hints, may_connect=anywhere) is Delivery.NOBODY_HOME
        assert len(alice.status()) == 1


async def test_peers_that_share_one_of_their_transports(any_broker: Broker) -> None:
    async with open_rendezvous() as hers, open_rendezvous() as his:
        async with (
            hub_for(ALICE, hers.url, any_broker.url, everywhere=True) as alice,
            hub_for(BOB, his.url, any_broker.url, everywhere=True) as bob,
        ):
            assert await alice.send(BOB.public_key, b"\x01x") is Delivery.QUEUED
            assert (await bob.receive()).via == str(any_broker.url)
            # With Bob's hints she also visits his server, in the background.
            hints = [his.url, str(any_broker.url)]
            assert await alice.send(BOB.public_key, b"\x01y", hints=hints, may_connect=anywhere) is Delivery.QUEUED
            assert {(await bob.receive()).via for _ in range(2)} == {his.url, str(any_broker.url)}


def test_a_hub_without_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="aiomqtt"):
        SignalHub(ALICE, [ServerUrl.parse("mqtt://broker.example")])


@pytest.mark.needs("mosquitto")
async def test_a_brokers_hint_is_judged_like_any_other(mosquitto: Broker) -> None:
    """The node has a broker itself, and would visit others."""
    reached: list[bytes] = []

    async def inside(stream: trio.SocketStream) -> None:
        reached.append(await stream.receive_some())

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with open_background_nursery() as nursery, hub_for(ALICE, mosquitto.url) as alice:
        await nursery.start(trio.serve_listeners, inside, listeners)
        port = listeners[0].socket.getsockname()[1]
        hints = [
            f"mqtt://127.0.0.1:{port}",
            f"mqtt://localhost:{port}",
            f"mqtt://me:secret@127.0.0.1:{port}",
            f"mqtt://127.0.0.1:{port}/team",
        ]
        assert await alice.send(BOB.public_key, b"\x01x", hints=hints, may_connect=lambda _: False) is Delivery.QUEUED
        while alice._trailing and not alice._trailing[-1].over.is_set():
            await trio.lowlevel.checkpoint()
        assert len(alice.status()) == 1
    assert reached == []


# --- several processes of one key ---


def topic_of(identity: Identity, instance: bytes) -> str:
    return f"warpgate-trio/1/{identity.peer_id}/{instance.hex()}"


@pytest.mark.parametrize("listens", [True, False])
async def test_golden_topic_of_a_process(any_broker: Broker, listens: bool) -> None:
    async with (
        open_mqtt(any_broker.url, max_payload=100) as raw,
        hub_for(ALICE, any_broker.url, listens=listens) as alice,
    ):
        await alice.wait_topic()
        assert alice.has_topic
        level = "0000000000000000" if listens else alice.instance.hex()
        await raw.publish(f"warpgate-trio/1/{ALICE.peer_id}/{level}", b"\x01x")
        assert (await alice.receive()).payload == b"\x01x"
        await raw.subscribe(f"warpgate-trio/1/{BOB.peer_id}/#")
        await alice.send(BOB.public_key, b"\x01y", topic=b"instance")
        assert await raw.receive() == Publication(f"warpgate-trio/1/{BOB.peer_id}/696e7374616e6365", b"\x01y")
        await alice.send(BOB.public_key, b"\x01y", instance=b"instance")
        assert await raw.receive() == Publication(f"warpgate-trio/1/{BOB.peer_id}", b"\x01y")


async def test_who_hears_what_is_meant_for_one_process(any_broker: Broker) -> None:
    async with (
        hub_for(ALICE, any_broker.url) as alice,
        hub_for(BOB, any_broker.url) as listener,
        hub_for(BOB, any_broker.url, listens=False) as caller,
        hub_for(BOB, any_broker.url, listens=False) as other,
    ):
        everybody = (alice, listener, caller, other)
        for each in everybody:
            await each.wait_topic()
        for topic, payload in ((ANY_INSTANCE, b"\x01listener"), (caller.instance, b"\x01caller"), (None, b"\x01all")):
            await alice.send(BOB.public_key, payload, topic=topic)
        assert [(await listener.receive()).payload for _ in range(2)] == [b"\x01listener", b"\x01all"]
        assert [(await caller.receive()).payload for _ in range(2)] == [b"\x01caller", b"\x01all"]
        assert (await other.receive()).payload == b"\x01all"


@pytest.mark.parametrize("listens", [True, False])
async def test_what_comes_by_other_topics_is_passed_over(any_broker: Broker, listens: bool) -> None:
    """A broker may deliver messages to which nobody has subscribed."""
    async with hub_for(ALICE, any_broker.url, listens=listens) as hub:
        await hub.wait_topic()
        channel = hub._keeper.own[0].channel
        assert isinstance(channel, mqtt_channel.MqttChannel)
        key = f"warpgate-trio/1/{ALICE.peer_id}"
        theirs = topic_of(ALICE, hub.instance if listens else ANY_INSTANCE)
        for topic in (f"x{key}", f"{key}x", f"{key}/", f"{theirs}/b", key.rpartition("/")[0], theirs):
            channel._connection._arrived.send_nowait(Publication(topic, b"\x01foreign"))
        channel._connection._arrived.send_nowait(Publication(channel._own_topic, b"\x01ours"))
        assert (await hub.receive()).payload == b"\x01ours"


@pytest.mark.needs("mosquitto")
async def test_a_lost_subscription_of_our_own_topic_is_noticed(
    mosquitto: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_channel, "PING_INTERVAL", 0.02)
    monkeypatch.setattr(mqtt_channel, "PONG_TIMEOUT", 0.1)
    with trio.fail_after(HANG):
        async with open_mqtt_channel(mosquitto.url, ALICE) as channel:
            await channel.wait_tells_apart()
            await channel._connection._call(lambda client: client.unsubscribe(topic_of(ALICE, ANY_INSTANCE)))
            with pytest.raises(SignalUnavailable, match="no echo within 0"):
                await channel.receive()


ONE_LEVEL = "topic readwrite warpgate-trio/1/+\n"
OLD_ACLS = pytest.mark.parametrize("more", ["", "topic read #\n", "topic write #\n"], ids=["alone", "read", "write"])


@OLD_ACLS
@pytest.mark.needs("mosquitto")
async def test_a_broker_whose_rules_know_the_topics_of_keys_alone(more: str, tmp_path: Path) -> None:
    """It grants any subscription, and drops messages on topics that its rules do not name."""
    broker = make_mosquitto(tmp_path, acl=ONE_LEVEL + more)
    try:
        broker.start()
        async with hub_for(ALICE, broker.url) as alice, hub_for(BOB, broker.url, listens=False) as bob:
            await wait_until(lambda: broker.count(r"(?:Denied|Received) PUBLISH from wg.*/[0-9a-f]{16}'") == 2)
            assert not alice.has_topic
            await alice.send(BOB.public_key, b"\x01x", topic=bob.instance)
            assert (await bob.receive()).payload == b"\x01x"
            await bob.send(ALICE.public_key, b"\x01y", topic=ANY_INSTANCE)
            assert (await alice.receive()).payload == b"\x01y"
            assert not bob.has_topic
    finally:
        broker.kill()


@pytest.mark.parametrize("acl", ["topic readwrite warpgate-trio/#\n", "topic readwrite warpgate-trio/1/+/#\n"])
@pytest.mark.needs("mosquitto")
async def test_a_broker_whose_rules_know_topics_of_processes(acl: str, tmp_path: Path) -> None:
    broker = make_mosquitto(tmp_path, acl=acl)
    try:
        broker.start()
        async with hub_for(ALICE, broker.url) as alice, hub_for(BOB, broker.url, listens=False) as bob:
            await alice.wait_topic()
            await bob.wait_topic()
            assert alice.has_topic
            assert bob.has_topic
    finally:
        broker.kill()


@pytest.mark.needs("mosquitto")
async def test_one_of_two_brokers_knows_the_topics_of_keys_alone(tmp_path: Path, amqtt: Broker) -> None:
    """An answer may come by either broker, so the address does not announce a topic of the process."""
    broker = make_mosquitto(tmp_path, acl=ONE_LEVEL)
    try:
        broker.start()
        async with hub_for(ALICE, broker.url, amqtt.url, everywhere=True) as alice:
            channel = alice._keeper.own[1].channel
            assert channel is not None
            await channel.wait_tells_apart()
            assert channel.tells_apart
            assert not alice.has_topic
            broker.kill()
            await wait_until(lambda: alice.has_topic)
    finally:
        broker.kill()


async def test_a_broker_that_refuses_topics_of_processes(any_broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker may judge a topic filter when somebody subscribes to it."""
    real = MqttConnection.subscribe
    refused: list[str] = []

    async def subscribe(connection: MqttConnection, topic: str, **options: bool) -> None:
        if topic.count("/") > 2:
            refused.append(topic)
            raise MqttError("the broker refuses the subscription")
        await real(connection, topic, **options)

    monkeypatch.setattr(MqttConnection, "subscribe", subscribe)
    async with hub_for(ALICE, any_broker.url) as alice, hub_for(BOB, any_broker.url, listens=False) as bob:
        await alice.wait_topic()
        await bob.wait_topic()
        assert len(refused) == 2
        await alice.send(BOB.public_key, b"\x01x", topic=bob.instance)
        assert (await bob.receive()).payload == b"\x01x"
        assert not alice.has_topic


@pytest.mark.needs("mosquitto")
async def test_a_broker_that_closes_over_topics_of_processes(
    mosquitto: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MQTT 3.1.1 §3.3.5 lets it close over an unauthorized PUBLISH.  The next connection does without such topics."""
    real = MqttConnection.publish
    closed: list[str] = []
    async with open_wire(mosquitto) as wire:

        async def publish(connection: MqttConnection, topic: str, payload: bytes) -> None:
            if topic.count("/") > 2:
                closed.append(topic)
                wire.cut()
            await real(connection, topic, payload)

        monkeypatch.setattr(MqttConnection, "publish", publish)
        async with hub_for(ALICE, wire.url, connected=False) as alice:
            await wait_until(lambda: len(closed) == 1 and states(alice) == [CONNECTED])
            await alice.send(ALICE.public_key, b"\x01x", topic=ANY_INSTANCE)
            assert (await alice.receive()).payload == b"\x01x"
            await alice.wait_topic()  # returns, since it is known that there is no such topic
            assert not alice.has_topic
            assert len(closed) == 1
            wire.cut()  # the connection after this one tries again
            await wait_until(lambda: len(closed) == 2 and states(alice) == [CONNECTED])
