"""Connections to real brokers, and to servers that pretend to be one: nothing hangs, leaks or is lost."""

from __future__ import annotations

import importlib.util
import random
import ssl
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.certificates import Authority
from tests.hangs import HANG
from tests.servers_mqtt import PASSWORD, USER, Broker, make_mosquitto, open_wire
from tests.servers_mqtt import amqtt as amqtt
from tests.servers_mqtt import any_broker as any_broker
from tests.servers_mqtt import libraries as libraries
from tests.servers_mqtt import mosquitto_fixture as mosquitto_fixture
from tests.waiting import wait_until
from warpgate_trio.config.server_url import ServerUrl
from warpgate_trio.errors import ConfigError
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.signal.mqtt.connection import MqttConnection, MqttError, check_available, check_no_asyncio
from warpgate_trio.signal.mqtt.connection import open_mqtt as real_open_mqtt

MAX = 16_384


@asynccontextmanager
async def open_mqtt(
    url: ServerUrl, *, ssl_context: ssl.SSLContext | None = None, close_timeout: float = 0.2
) -> AsyncGenerator[MqttConnection]:
    """Like the real `open_mqtt`, with a time limit for the body."""
    with trio.fail_after(HANG):
        async with real_open_mqtt(
            url, ssl_context=ssl_context, max_payload=MAX, close_timeout=close_timeout
        ) as connection:
            yield connection


@asynccontextmanager
async def fake_broker(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncGenerator[ServerUrl]:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await handler(stream)

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with open_background_nursery() as nursery:
        await nursery.start(trio.serve_listeners, serve, [listener])
        yield ServerUrl.parse(f"mqtt://127.0.0.1:{listener.socket.getsockname()[1]}")


def answers(data: bytes) -> Callable[[trio.SocketStream], Awaitable[None]]:
    """A broker that answers CONNECT with these bytes, and sends nothing more."""

    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(data)
        await trio.sleep_forever()

    return handler


# --- a working broker ---


async def test_there_and_back(any_broker: Broker) -> None:
    async with open_mqtt(any_broker.url) as connection:
        await connection.subscribe("there/and back")
        for payload in (b"x", b"\0" * MAX, bytes(range(256))):
            await connection.publish("there/and back", payload)
            received = await connection.receive()
            assert (received.topic, received.payload) == ("there/and back", payload)
        assert connection.dropped == 0


async def test_between_two_connections(any_broker: Broker) -> None:
    async with open_mqtt(any_broker.url) as alice, open_mqtt(any_broker.url) as bob:
        await alice.subscribe("alice")
        await bob.subscribe("bob")
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(alice.publish, "bob", b"%d" % number)
                nursery.start_soon(bob.publish, "alice", b"%d" % number)
        for each in (alice, bob):
            assert {(await each.receive()).payload for _ in range(10)} == {b"%d" % number for number in range(10)}


@pytest.mark.slow("150 messages, one after the other")
async def test_cancelled_receives_lose_nothing(any_broker: Broker) -> None:
    chance = random.Random(1)
    count = 150
    received: list[bytes] = []
    async with open_mqtt(any_broker.url) as connection, open_background_nursery() as nursery:
        await connection.subscribe("t")

        async def publish() -> None:
            for number in range(count):
                await connection.publish("t", b"%d" % number)

        nursery.start_soon(publish)
        while len(received) < count:
            with trio.move_on_after(chance.uniform(0, 0.002)):
                received.append((await connection.receive()).payload)
    assert received == [b"%d" % number for number in range(count)]


async def test_what_is_too_long_arrives_empty(any_broker: Broker) -> None:
    async with open_mqtt(any_broker.url) as connection:
        await connection.subscribe("t")
        await connection.publish("t", bytes(500_000))
        assert (await connection.receive()).payload == b""
        await connection.publish("t", b"the connection is as good as before")
        assert (await connection.receive()).payload == b"the connection is as good as before"


@pytest.mark.needs("mosquitto")
async def test_what_a_broker_kept_is_not_for_us(mosquitto: Broker) -> None:
    import paho.mqtt.publish as paho

    for payload in (b"kept", bytes(500_000)):
        keep = partial(paho.single, "t", payload, qos=1, retain=True, hostname="127.0.0.1", port=mosquitto.port)
        await trio.to_thread.run_sync(keep)
        async with open_mqtt(mosquitto.url) as connection:
            await connection.subscribe("t")
            await connection.publish("t", b"fresh")
            assert (await connection.receive()).payload == b"fresh"


@pytest.mark.slow("some hundred messages, which amqtt takes its time for")
async def test_a_burst_arrives_whole(any_broker: Broker) -> None:
    """What the broker has acknowledged arrives, although messages come faster than one task takes them."""
    count, at_once = 360, 60
    async with open_mqtt(any_broker.url) as bob, open_mqtt(any_broker.url) as alice, open_mqtt(any_broker.url) as carol:
        await bob.subscribe("bob")
        heard: list[bytes] = []

        async def hear() -> None:
            while True:
                heard.append((await bob.receive()).payload)

        async with open_background_nursery() as nursery:
            nursery.start_soon(hear)
            for start in range(0, count, at_once):
                async with trio.open_nursery() as burst:
                    for number in range(start, start + at_once):
                        burst.start_soon((alice, carol)[number % 2].publish, "bob", b"%d" % number)
            with trio.move_on_after(5):
                await wait_until(lambda: len(heard) == count)
        assert sorted(heard, key=int) == [b"%d" % number for number in range(count)]
        assert bob.dropped == 0


async def test_what_nobody_receives_is_dropped_and_counted(any_broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warpgate_trio.signal.mqtt.connection._INBOX", 64)
    async with open_mqtt(any_broker.url) as connection:
        await connection.subscribe("t")
        for number in range(70):
            await connection.publish("t", b"%d" % number)
        await wait_until(lambda: connection.dropped == 6)
        assert [(await connection.receive()).payload for _ in range(64)] == [b"%d" % number for number in range(64)]


@pytest.mark.needs("mosquitto")
async def test_every_way_out_says_disconnect(mosquitto: Broker) -> None:
    class Own(Exception):
        pass

    async with open_mqtt(mosquitto.url) as connection:
        assert repr(connection) == f"<MqttConnection to {mosquitto.url}>"
    with pytest.raises(Own):
        async with open_mqtt(mosquitto.url):
            raise Own
    with trio.CancelScope() as scope:
        async with open_mqtt(mosquitto.url) as connection:
            await connection.subscribe("t")
            scope.cancel()
            await trio.sleep_forever()
    # The exits of the blocks waited for the DISCONNECT, so nothing is waited for here.
    assert mosquitto.count("Received DISCONNECT") == 3
    assert mosquitto.connections() == 0
    for call in (connection.publish("t", b"x"), connection.subscribe("t"), connection.receive()):
        with pytest.raises(MqttError, match="closed"):
            await call


@pytest.mark.needs("mosquitto")
@pytest.mark.slow("a TLS handshake per case")
async def test_tls_and_password(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    broker = make_mosquitto(tmp_path, tls=authority, password=True)
    try:
        broker.start()
        good = ServerUrl.parse(str(broker.url).replace("//", f"//{USER}:{PASSWORD.replace('/', '%2F')}@"))
        async with open_mqtt(good, ssl_context=authority.client()) as connection:
            await connection.subscribe("t")
            await connection.publish("t", b"x")
            assert (await connection.receive()).payload == b"x"
        for wrong in (broker.url, ServerUrl.parse(str(broker.url).replace("//", f"//{USER}:wrong@"))):
            with pytest.raises(MqttError, match="the broker refuses us: we are not authorized"):
                async with open_mqtt(wrong, ssl_context=authority.client()):
                    pass
        with pytest.raises(MqttError, match=r"TLS handshake failed: .*CERTIFICATE_VERIFY_FAILED"):
            async with open_mqtt(good, ssl_context=other.client()):
                pass
        with pytest.raises(MqttError, match=r"TLS handshake failed: .*CERTIFICATE_VERIFY_FAILED"):
            async with open_mqtt(good):  # with the system's trusted certificates
                pass
        with pytest.raises(MqttError, match=r"the broker closed the connection|the connection to the broker broke"):
            async with open_mqtt(ServerUrl.parse(f"mqtt://127.0.0.1:{broker.port}")):
                pass
    finally:
        broker.kill()


# --- brokers that die, hang and lie ---


@pytest.mark.needs("mosquitto")
@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_broker_that_ends(mosquitto: Broker, how: str) -> None:
    async with open_mqtt(mosquitto.url) as connection:
        await connection.subscribe("t")
        await connection.publish("t", b"last words")
        await wait_until(lambda: connection._arrived.statistics().current_buffer_used == 1)
        getattr(mosquitto, how)()
        assert (await connection.receive()).payload == b"last words"
        for _ in range(2):
            with pytest.raises(MqttError, match=r"the broker closed the connection|the connection to the broker broke"):
                await connection.receive()
            with pytest.raises(MqttError, match=r"the broker closed the connection|the connection to the broker broke"):
                await connection.publish("t", b"x")
    with pytest.raises(OSError, match="all attempts to connect"):
        async with open_mqtt(mosquitto.url):
            pass
    mosquitto.start()
    async with open_mqtt(mosquitto.url) as connection:
        await connection.publish("t", b"x")


@pytest.mark.needs("mosquitto")
async def test_whoever_waits_for_a_broker_hears_of_its_death(mosquitto: Broker) -> None:
    async with open_mqtt(mosquitto.url) as connection:
        mosquitto.freeze()
        async with trio.open_nursery() as nursery:

            async def doomed(wait: Awaitable[object]) -> None:
                with pytest.raises(MqttError):
                    await wait

            for wait in (connection.publish("t", b"x"), connection.subscribe("t"), connection.receive()):
                nursery.start_soon(doomed, wait)
            await trio.testing.wait_all_tasks_blocked(0.02)
            mosquitto.kill()


@pytest.mark.needs("mosquitto")
async def test_a_frozen_broker(mosquitto: Broker) -> None:
    async with open_mqtt(mosquitto.url, close_timeout=0.05) as connection:
        await connection.subscribe("t")
        mosquitto.freeze()
        with trio.move_on_after(0.03) as scope:
            await connection.publish("t", b"x")
        assert scope.cancelled_caught
        with trio.move_on_after(0.03) as scope:
            async with open_mqtt(mosquitto.url, close_timeout=0.05):
                pass
        assert scope.cancelled_caught
        mosquitto.thaw()
        assert (await connection.receive()).payload == b"x", "a cancelled publish may go out all the same"
        await connection.publish("t", b"y")
        assert (await connection.receive()).payload == b"y"
        mosquitto.freeze()
        closing = trio.current_time()
    assert trio.current_time() - closing < 4, "paho's own patience is 5 s"


@pytest.mark.needs("mosquitto")
async def test_many_publications_at_once_wait_for_their_turn(mosquitto: Broker) -> None:
    async with open_mqtt(mosquitto.url, close_timeout=0.01) as connection:
        mosquitto.freeze()
        done = 0

        async def publish() -> None:
            nonlocal done
            await connection.publish("t", b"x")
            done += 1

        async with open_background_nursery() as nursery:
            for _ in range(150):
                nursery.start_soon(publish)
            await trio.testing.wait_all_tasks_blocked(0.02)
            mosquitto.thaw()
            await wait_until(lambda: done == 150)

            mosquitto.freeze()  # calls that wait for their turn must fail as well
            async with trio.open_nursery() as waiting:

                async def doomed() -> None:
                    with pytest.raises(MqttError):
                        await connection.publish("t", b"x")

                for _ in range(80):
                    waiting.start_soon(doomed)
                await trio.testing.wait_all_tasks_blocked(0.02)
                mosquitto.kill()


@pytest.mark.needs("mosquitto")
async def test_what_a_broker_leaves_unacknowledged_is_bounded(
    mosquitto: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warpgate_trio.signal.mqtt.connection._UNACKNOWLEDGED", 8)
    async with open_mqtt(mosquitto.url, close_timeout=0.01) as connection:
        mosquitto.freeze()
        async with open_background_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(connection.publish, "t", b"x")
            await trio.testing.wait_all_tasks_blocked(0.02)
            nursery.cancel_scope.cancel()
        with pytest.raises(MqttError):
            await connection.publish("t", b"x")


async def test_a_black_hole() -> None:
    """A TCP connect that nobody answers can be cancelled at once."""
    with trio.socket.socket() as hole:
        await hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        fillers = []
        try:
            for _ in range(2):  # after that the kernel drops SYNs
                filler = trio.socket.socket()
                fillers.append(filler)
                with trio.move_on_after(0.05):
                    await filler.connect(hole.getsockname())
            start = trio.current_time()
            with trio.move_on_after(0.05) as scope:
                async with open_mqtt(ServerUrl.parse(f"mqtt://127.0.0.1:{hole.getsockname()[1]}")):
                    pass
            assert scope.cancelled_caught
            assert trio.current_time() - start < 4, "paho's own patience is 5 s"
        finally:
            for filler in fillers:
                filler.close()


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts"])
async def test_a_broker_that_says_nothing(scheme: str) -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with fake_broker(handler) as url:
        start = trio.current_time()
        with trio.move_on_after(0.05) as scope:
            async with open_mqtt(ServerUrl.parse(str(url).replace("mqtt", scheme)), close_timeout=5):
                pass
        assert scope.cancelled_caught
        assert trio.current_time() - start < 4, "there was no goodbye to wait for"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", None),
        (b"\x20", None),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "does not speak MQTT"),
        (b"\x20\x02\0\x04", "the broker refuses us: the user name or password is wrong"),
        (b"\x20\x02\0\x63", "the broker refuses us: code 99"),
    ],
)
async def test_no_welcome(data: bytes, words: str | None) -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(data)

    async with fake_broker(handler) as url:
        with pytest.raises(MqttError, match=words or "the broker closed the connection"):
            async with open_mqtt(url):
                pass


@pytest.mark.parametrize(
    "data",
    [
        b"\x20\x02\0\0",
        b"\x34\x05\0\1t\0\1",
        b"\x30\xff\xff\xff\x7f\xff\xff",
        b"\x32\x05\0\x01\xff\0\x01",  # a topic that is not UTF-8
        b"\x32\x05\0\x01#\0\x01",  # ... that has a wildcard
        b"\x32\x01\0",  # ... that is cut off
        b"\x90\x03\x00\x63\x01\x40\x02\0\x63",  # answers to no request
    ],
)
async def test_garbage_after_the_welcome(data: bytes) -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"\x20\x02\0\0" + data)

    async with fake_broker(handler) as url:
        with pytest.raises(MqttError):
            async with open_mqtt(url) as connection:
                while True:
                    await connection.receive()


async def test_a_refused_subscription() -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"\x20\x02\0\0")
        subscribe = await stream.receive_some()
        await stream.send_all(b"\x90\x03" + subscribe[2:4] + b"\x80")
        await trio.sleep_forever()

    async with fake_broker(handler) as url:
        with trio.CancelScope() as scope:
            async with open_mqtt(url, close_timeout=0.01) as connection:
                with pytest.raises(MqttError, match="the broker refuses the subscription"):
                    await connection.subscribe("t")
                scope.cancel()


async def test_a_slow_way(any_broker: Broker) -> None:
    async with open_wire(any_broker) as wire:
        wire.delay, wire.piece = 0.002, 7
        async with open_mqtt(wire.url) as connection:
            await connection.subscribe("t")
            await connection.publish("t", bytes(60))
            assert (await connection.receive()).payload == bytes(60)


@pytest.mark.slow("as many connections as an opening has steps")
@pytest.mark.needs("mosquitto")
async def test_cancelled_at_any_step(mosquitto: Broker) -> None:
    async def live() -> None:
        async with open_mqtt(mosquitto.url) as connection:
            await connection.subscribe("t")
            await connection.publish("t", b"x")
            await connection.receive()
            await trio.sleep_forever()

    for steps in range(0, 200, 3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(live)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    for milliseconds in range(30):
        with trio.move_on_after(milliseconds / 1000):
            await live()
    await wait_until(lambda: mosquitto.connections() == 0)
    assert mosquitto.count("New client connected") > 10


# --- what it must not do to the process ---


def run_python(code: str, *arguments: str, flags: tuple[str, ...] = ("-X", "dev", "-W", "error")) -> str:
    done = subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(code), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow("a fresh interpreter")
def test_asyncio_is_untouched_while_no_broker_is_configured() -> None:
    code = """
        import asyncio, logging, sys, trio
        logging.disable()
        before = (asyncio.get_running_loop, asyncio.new_event_loop, asyncio.get_event_loop_policy)
        import warpgate_trio, warpgate_trio.signal.mqtt.connection, warpgate_trio.signal.mqtt.channel
        from warpgate_trio import Identity, NodeConfig, Servers, open_node
        from warpgate_trio.errors import SignalUnavailable

        async def main():
            config = NodeConfig(servers=Servers())
            async with open_node(config, identity=Identity.generate()) as node:
                from warpgate_trio.config import ServerUrl
                from warpgate_trio.signal import SignalHub
                hub = SignalHub(Identity.generate(), [ServerUrl.parse("ws://127.0.0.1:1")])
                async with trio.open_nursery() as nursery:
                    await nursery.start(hub.run)
                    with trio.move_on_after(0.2):  # a peer's hint is no reason either
                        await hub.send(bytes(32), b"x", hints=["mqtt://127.0.0.1:1"], may_connect=lambda _: True)
                    nursery.cancel_scope.cancel()

        trio.run(main)

        async def asyncio_main():
            return type(asyncio.get_running_loop()).__module__

        module = asyncio.run(asyncio_main())
        assert module.startswith("asyncio."), module
        assert before == (asyncio.get_running_loop, asyncio.new_event_loop, asyncio.get_event_loop_policy)
        assert not {"trio_asyncio", "aiomqtt", "paho"} & set(sys.modules)
        print("untouched")
    """
    assert run_python(code) == "untouched\n"


@pytest.mark.slow("a fresh interpreter")
def test_no_warning_and_no_loop_in_the_callers_task(any_broker: Broker) -> None:
    code = """
        import gc, sys, trio
        from warpgate_trio.signal.mqtt.connection import open_mqtt
        from warpgate_trio.config.server_url import ServerUrl

        async def main():
            url = ServerUrl.parse(sys.argv[1])
            async with open_mqtt(url, max_payload=100) as connection:
                import asyncio, trio_asyncio
                assert trio_asyncio.current_loop.get() is None
                try:
                    asyncio.get_running_loop()
                except RuntimeError:
                    pass
                await connection.subscribe("t")
                await connection.publish("t", b"x")
                await connection.receive()
            with trio.move_on_after(0.05):
                async with open_mqtt(url, max_payload=100):
                    await trio.sleep_forever()

        trio.run(main)
        gc.collect()
        print("quiet")
    """
    assert run_python(code, str(any_broker.url)) == "quiet\n"


BESIDE = """
    import asyncio, sys, trio
    from warpgate_trio import Identity, NodeConfig, Servers, open_node
    from warpgate_trio.errors import ConfigError

    async def look():
        config = NodeConfig(servers=Servers(mqtt=[sys.argv[1]]))
        try:
            async with open_node(config, identity=Identity.generate()) as node:
                with trio.fail_after(60):
                    await node.wait_signals()
                print("connected")
        except ConfigError as error:
            print(error)

    async def guest():
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        trio.lowlevel.start_guest_run(
            look, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=done.set_result
        )
        (await done).unwrap()

    async def below():
        trio.run(look)

    async def beside():
        await asyncio.to_thread(trio.run, look)

    async def twice():
        await asyncio.to_thread(trio.run, look)
        await guest()

    async def within():
        import trio_asyncio
        async with trio_asyncio.open_loop():
            await look()

"""


@pytest.mark.slow("a fresh interpreter for each way")
@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("asyncio.run(guest())", ["refused"]),
        ("asyncio.run(below())", ["refused"]),
        ("asyncio.run(beside())", ["connected"]),
        ("asyncio.run(twice())", ["connected", "refused"]),
        ("trio.run(within)", ["connected"]),
    ],
)
def test_beside_a_running_asyncio_loop(any_broker: Broker, way: str, said: list[str]) -> None:
    """Trio and asyncio in one thread are refused at once.  The error names a way out, and that works."""
    lines = run_python(BESIDE + f"    {way}\n", str(any_broker.url), flags=()).splitlines()
    assert len(lines) == len(said)
    for line, outcome in zip(lines, said, strict=True):
        if outcome == "connected":
            assert line == "connected"
        else:
            assert "one thread with an asyncio loop" in line
            assert "trio.run in a thread of its own" in line


async def test_another_loop_in_this_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    check_no_asyncio()
    monkeypatch.setattr(sys.modules["_asyncio"], "_get_running_loop", object)
    with pytest.raises(ConfigError, match="asyncio loop"):
        check_no_asyncio()
    with pytest.raises(ConfigError, match="asyncio loop"):
        async with open_mqtt(ServerUrl.parse("mqtt://127.0.0.1:1")):
            pass


# --- without the packages for MQTT ---


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    check_available()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"without the package aiomqtt and trio-asyncio$"):
        check_available()


async def test_a_package_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trio_asyncio", None)
    with pytest.raises(ConfigError, match=r"MQTT servers cannot be used"):
        async with open_mqtt(ServerUrl.parse("mqtt://127.0.0.1:1")):
            pass


async def test_another_scheme() -> None:
    with pytest.raises(ConfigError, match="not the URL of an MQTT broker"):
        async with open_mqtt(ServerUrl.parse("ws://127.0.0.1:1")):
            pass
