"""Two processes with one key, as two nodes of one identity: a call reaches the one whose address the caller has."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.hangs import HANG
from tests.identities import ALICE, BOB, CAROL
from tests.nodes import config, loopback_node
from tests.servers_mqtt import Broker, make_mosquitto
from tests.servers_mqtt import amqtt as amqtt
from tests.servers_mqtt import any_broker as any_broker
from tests.servers_mqtt import libraries as libraries
from tests.servers_mqtt import mosquitto_fixture as mosquitto_fixture
from tests.waiting import wait_until
from warpgate_trio import ConnectError, Identity, Node, NodeConfig, PeerAddress, Servers, anyone
from warpgate_trio.node import runtime
from warpgate_trio.servers.rendezvous import Rendezvous, RendezvousServer, open_rendezvous
from warpgate_trio.servers.rendezvous_frames import MAX_FRAME
from warpgate_trio.signal import Delivery, SignalHub
from warpgate_trio.signal.core import OWNER, Cancel
from warpgate_trio.signal.instances import HAS_TOPIC, SILENCE
from warpgate_trio.signal.mqtt.channel import MqttChannel
from warpgate_trio.websocket import serve_websocket

pytestmark = pytest.mark.slow("three or four nodes and their server")

Signals = Callable[[], AbstractAsyncContextManager[NodeConfig]]
"""Opens a server or a broker for signals; yields the configuration that names it."""


async def call_back(alice: Node, text: PeerAddress | str, listener: Node) -> None:
    """Connects by reverse_connect, which needs signals, and checks that `listener` gets the Pipe."""
    with trio.fail_after(HANG):
        pipe = await alice.connect(text, plugin="reverse_connect")
        async with pipe, await listener.listener.accept() as other:
            await pipe.send_all(b"x")
            assert await other.receive_some() == b"x"


def heard(node: Node) -> int:
    """How many signals of others the node has opened and accepted."""
    counters = node._runtime.router.counters
    return counters["Accepted"]


def handed(node: Node, monkeypatch: pytest.MonkeyPatch) -> list[bytes | None]:
    """A list that gets, for each signal that the node opens from now on, the instance that it is addressed to."""
    meant: list[bytes | None] = []
    presence = node._runtime.presence
    real = presence.is_there

    def is_there(instance: bytes | None) -> bool:
        meant.append(instance)
        return real(instance)

    monkeypatch.setattr(presence, "is_there", is_there)
    return meant


def as_if_asked_long_ago(node: Node) -> None:
    """Makes all that have not answered the node yet count as silent for `SILENCE` seconds."""
    asked = node._runtime.sender.correspondents._asked
    for key in list(asked):
        since = asked.get(key)
        assert since is not None
        asked.put(key, since - SILENCE)


@asynccontextmanager
async def open_old_rendezvous() -> AsyncGenerator[RendezvousServer]:
    """Today's server, limited to version 1 of the protocol."""
    rendezvous = Rendezvous()
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        serve = partial(serve_websocket, rendezvous.handle, listeners, max_message=MAX_FRAME, handshake_timeout=5)
        await nursery.start(serve)
        yield RendezvousServer(rendezvous, (f"ws://127.0.0.1:{port}",), port)
        nursery.cancel_scope.cancel()
    listeners[0].socket.close()


@asynccontextmanager
async def mqtt(broker: Broker) -> AsyncGenerator[NodeConfig]:
    await trio.lowlevel.checkpoint()
    yield NodeConfig(servers=Servers(mqtt=[str(broker.url)]))


MQTT = pytest.param("mqtt", marks=pytest.mark.needs("mosquitto"))


@pytest.fixture(params=["rendezvous", "rendezvous_v1", MQTT])
def signals(request: pytest.FixtureRequest) -> Signals:
    """Today's server, one of the first release, or a broker."""

    @asynccontextmanager
    async def rendezvous() -> AsyncGenerator[NodeConfig]:
        opener = open_rendezvous if request.param == "rendezvous" else open_old_rendezvous
        async with opener() as server:
            yield config(server)

    if request.param != "mqtt":
        return rendezvous
    broker: Broker = request.getfixturevalue("mosquitto")
    return lambda: mqtt(broker)


@asynccontextmanager
async def node(
    identity: Identity, node_config: NodeConfig, authorize: Callable[[str], Awaitable[bool]] | None = None
) -> AsyncGenerator[Node]:
    async with loopback_node(identity, node_config, authorize=authorize) as opened:
        with trio.fail_after(HANG):
            await opened.wait_signals()
            await opened._runtime.hub.wait_topic()
        yield opened


@asynccontextmanager
async def old_node(
    identity: Identity,
    node_config: NodeConfig,
    authorize: Callable[[str], Awaitable[bool]] | None = None,
) -> AsyncGenerator[Node]:
    """A node of a release without topics of processes: it has its key's topic, and publishes to such topics only."""

    async def has_none(channel: MqttChannel) -> None:
        await trio.lowlevel.checkpoint()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MqttChannel, "_find_own_topic", has_none)
        async with loopback_node(identity, node_config, authorize=authorize) as opened:
            await opened.wait_signals()
            patch.undo()
            assert HAS_TOPIC not in opened.address.capabilities
            yield opened


async def test_a_caller_beside_a_listener_takes_nothing_of_its_calls(signals: Signals) -> None:
    async with signals() as servers:
        async with (
            node(BOB, servers, anyone) as listener,
            node(CAROL, servers, anyone) as carol,
            node(ALICE, servers) as alice,
            node(BOB, servers) as caller,
        ):
            text = str(listener.address)
            await call_back(caller, carol.address, carol)  # Carol learns that key's address from the caller
            await wait_until(lambda: carol._runtime.view.known_address(BOB.public_key) == caller.address)
            for each in (alice, carol):
                async with await each.auto_connect(text), await listener.listener.accept():
                    pass
                await call_back(each, text, listener)
                assert await each.refresh_address(text) == listener.address


async def test_a_caller_takes_no_call_of_a_listener_that_was_restarted(signals: Signals) -> None:
    """The caller's address is the latest that Carol has for the key, and the caller would answer at its own port."""
    async with signals() as servers:
        async with node(BOB, servers, anyone) as gone:
            text = str(gone.address)
        async with (
            node(BOB, servers, anyone) as listener,
            node(CAROL, servers, anyone) as carol,
            node(BOB, servers) as caller,
        ):
            await call_back(caller, carol.address, carol)
            with trio.fail_after(HANG):
                async with await carol.auto_connect(text), await listener.listener.accept():
                    pass


@pytest.mark.parametrize("signals", ["rendezvous", MQTT], indirect=True)
async def test_what_is_meant_for_one_process_is_handed_to_no_other(
    signals: Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with signals() as servers:
        async with (
            node(BOB, servers, anyone) as listener,
            node(CAROL, servers, anyone) as carol,
            node(BOB, servers) as caller,
            node(ALICE, servers) as alice,
        ):
            theirs, its = handed(listener, monkeypatch), handed(caller, monkeypatch)
            await call_back(alice, str(listener.address), listener)
            await alice.refresh_address(listener.address)
            await caller.refresh_address(carol.address)  # its answer arrives after the signals to the listener
            assert set(its) == {caller.address.instance}
            assert set(theirs) == {listener.address.instance}


@pytest.mark.parametrize("signals", [MQTT], indirect=True)
async def test_what_is_meant_for_a_process_that_has_ended_is_handed_to_no_caller(
    signals: Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with signals() as servers:
        async with node(BOB, servers, anyone) as gone:
            text = str(gone.address)
        async with (
            node(BOB, servers, anyone) as listener,
            node(CAROL, servers, anyone) as carol,
            node(BOB, servers) as caller,
            node(ALICE, servers) as alice,
        ):
            its = handed(caller, monkeypatch)
            assert await alice.refresh_address(text) == listener.address
            await call_back(alice, text, listener)
            await caller.refresh_address(carol.address)
            assert set(its) == {caller.address.instance}


@pytest.mark.needs("mosquitto")
@pytest.mark.parametrize(
    ("acl", "says"), [("topic readwrite #\n", True), ("topic readwrite warpgate-trio/1/+\n", False)]
)
async def test_an_address_that_is_passed_on_says_whether_there_is_a_topic(
    acl: str, says: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the broker's rules name only the topics of keys, the address announces no other, and signals still work."""
    monkeypatch.setattr(runtime, "BROKER_PATIENCE", HANG if says else 0.02)
    broker = make_mosquitto(tmp_path, acl=acl)
    try:
        broker.start()
        async with mqtt(broker) as servers:
            async with (
                loopback_node(BOB, servers, authorize=anyone) as listener,
                loopback_node(BOB, servers) as caller,
                loopback_node(ALICE, servers) as alice,
            ):
                for each in (listener, caller, alice):
                    with trio.fail_after(HANG):
                        await each.wait_published()
                    assert (HAS_TOPIC in each.address.capabilities) is says
                await call_back(alice, str(listener.address), listener)
    finally:
        broker.kill()


@pytest.mark.parametrize("signals", [MQTT], indirect=True)
async def test_what_follows_an_answer_is_handed_to_the_process_that_gave_it(
    signals: Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds whatever address the first message was sent to."""
    async with signals() as servers:
        async with (
            node(BOB, servers, anyone) as listener,
            node(CAROL, servers, anyone) as carol,
            node(BOB, servers) as caller,
            node(ALICE, servers) as alice,
        ):
            theirs, its = handed(listener, monkeypatch), handed(caller, monkeypatch)
            sender, peer, one = alice._runtime.sender, unnamed(listener.address), bytes(16)
            sender.note_answer((BOB.public_key, one, one), listener.address)
            await sender.send(peer, Cancel(), owner=OWNER, session=one, attempt=one)
            await caller.refresh_address(carol.address)
            assert (theirs, its) == ([listener.address.instance], [caller.address.instance])


@pytest.mark.parametrize("signals", [MQTT], indirect=True)
@pytest.mark.parametrize("old", ["caller", "listener"])
async def test_a_release_before_topics_of_processes(old: str, signals: Signals) -> None:
    """Signals work in both directions, even beside a process of the same key that has a topic of its own."""
    async with signals() as servers:
        async with (
            (old_node if old == "listener" else node)(BOB, servers, anyone) as listener,
            node(BOB, servers),
            (old_node if old == "caller" else node)(ALICE, servers) as alice,
        ):
            text = str(listener.address)
            assert await alice.refresh_address(text) == listener.address
            await call_back(alice, text, listener)


@pytest.mark.parametrize("signals", [MQTT], indirect=True)
async def test_a_release_before_topics_of_processes_in_the_place_of_one_with(signals: Signals) -> None:
    """Nobody subscribes to the topic that the old address names; after `SILENCE` the topic of the key is used."""
    async with signals() as servers:
        async with node(BOB, servers, anyone) as gone:
            text = str(gone.address)
        async with old_node(BOB, servers, anyone) as listener, node(ALICE, servers) as alice:
            with pytest.raises(trio.TooSlowError):
                await alice.refresh_address(text, timeout=0.05)
            as_if_asked_long_ago(alice)
            assert await alice.refresh_address(text) == listener.address


@pytest.mark.parametrize("second_first", [False, True])
async def test_of_two_listeners_that_one_is_called_whose_address_it_is(signals: Signals, second_first: bool) -> None:
    async with signals() as servers:
        async with node(BOB, servers, anyone) as first, node(BOB, servers, anyone) as second:
            await wait_until(lambda: all(each._runtime.presence._warned for each in (first, second)))
            async with node(ALICE, servers) as alice:
                for each in (second, first) if second_first else (first, second):
                    for _ in range(3):
                        assert await alice.refresh_address(str(each.address)) == each.address
                        await call_back(alice, str(each.address), each)


async def test_two_listeners_are_both_told_once(signals: Signals, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "warpgate_trio.signal.presence")
    async with signals() as servers:
        async with node(BOB, servers, anyone) as first, node(BOB, servers):
            async with node(BOB, servers, anyone) as second:
                await wait_until(lambda: all(each._runtime.presence._warned for each in (first, second)))
            async with node(BOB, servers, anyone) as third:
                await wait_until(lambda: third._runtime.presence._warned)
    assert [BOB.peer_id in record.getMessage() for record in caplog.records] == [True] * 3


async def test_a_listener_that_was_restarted_is_reached_by_its_old_address(signals: Signals) -> None:
    async with signals() as servers:
        async with node(BOB, servers, anyone) as gone:
            text = str(gone.address)
        async with (
            node(BOB, servers, anyone) as listener,
            node(BOB, servers) as caller,
            node(ALICE, servers) as alice,
        ):
            assert caller.address.instance != listener.address.instance != PeerAddress.from_text(text).instance
            assert await alice.refresh_address(text) == listener.address
            await call_back(alice, text, listener)


async def test_a_listener_whose_server_has_not_noticed_that_the_one_before_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Signals to the dead connection get no answer; after `SILENCE` they are addressed to the key alone."""
    async with open_rendezvous() as server:
        servers = config(server)
        async with node(BOB, servers, anyone) as gone:
            monkeypatch.setattr(gone._runtime.router, "_handle", lambda _: None)
            text = str(gone.address)
            async with node(BOB, servers, anyone) as listener, node(ALICE, servers) as alice:
                with pytest.raises(trio.TooSlowError):
                    await alice.refresh_address(text, timeout=0.05)
                as_if_asked_long_ago(alice)
                assert await alice.refresh_address(text) == listener.address


async def test_peers_of_older_releases_reach_the_one_that_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither their addresses nor their messages name a process."""
    async with open_rendezvous() as server:
        servers = config(server)
        async with (
            node(BOB, servers, anyone) as listener,
            node(BOB, servers) as caller,
            node(ALICE, servers) as alice,
        ):
            monkeypatch.setattr(alice._runtime.hub, "send", send_as_before(alice._runtime.hub))
            before = heard(caller)
            await call_back(alice, unnamed(listener.address), listener)
            assert heard(caller) > before  # the caller has received all of it, and has not answered


def unnamed(address: PeerAddress) -> PeerAddress:
    """The same address, as an older release would have published it."""
    return PeerAddress.issue(
        BOB,
        seq=address.seq,
        issued_at=address.issued_at,
        expires_at=address.expires_at,
        host_salt=address.host_salt,
        host_id=address.host_id,
        signals=address.signals,
        interfaces=address.interfaces,
    )


def send_as_before(hub: SignalHub) -> Callable[..., Awaitable[Delivery]]:
    real = hub.send

    async def send(
        receiver_key: bytes, payload: bytes, *, instance: bytes | None = None, **options: object
    ) -> Delivery:
        return await real(receiver_key, payload, **options)  # type: ignore[arg-type]

    return send


async def test_who_only_calls_says_what_it_is_when_it_is_called_itself() -> None:
    async with open_rendezvous() as server:
        servers = config(server)
        async with node(BOB, servers) as caller, node(ALICE, servers) as alice:
            with pytest.raises(ConnectError) as caught:
                await alice.auto_connect(caller.address)
            assert caught.value.verdict.value == "not_accepting"
