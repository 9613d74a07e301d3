"""What a signal takes from node to node over each transport beside the raw server's, and how many one core can judge.

Latency is one way, from the sender's call to the receiver's return, through a server in a process of its own; the raw
figure is that of the plainest client of the same protocol through the same server: aiomqtt on plain asyncio for MQTT
(in a process of its own, since trio-asyncio changes asyncio), trio-websocket and an echo server for WebSocket.  Signals
per second are those that `SignalRouter.handle` opens, verifies, checks and routes, with the rate limits out of the way.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from benchmarks._nodes import spread
from warpgate_trio import Identity, PeerAddress
from warpgate_trio import host as machine
from warpgate_trio.clock.corrected import CorrectedClock
from warpgate_trio.config.server_url import ServerUrl
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.signal import Inbox, InboxLimits, Incoming, Message, Moment, SignalHub, seal_message
from warpgate_trio.signal.first_look import FirstLook
from warpgate_trio.signal.presence import Presence
from warpgate_trio.signal.router import Request, SignalRouter
from warpgate_trio.signal.sender import SignalSender

SIZE = 700
"""Bytes of a sealed signal that carries an address with a handful of endpoints."""
WARM_UP = 50
TARGET = 2000


class Ping(Message, frozen=True):
    text: str


# --- servers, each in a process of its own ---


async def serve_rendezvous() -> None:
    async with open_rendezvous() as server:
        print(server.url, flush=True)
        await trio.sleep_forever()


async def serve_echo() -> None:
    from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

    async def echo(request: WebSocketRequest) -> None:
        connection = await request.accept()
        try:
            while True:
                await connection.send_message(await connection.get_message())
        except ConnectionClosed:
            pass

    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, echo, "127.0.0.1", 0, None)
        print(f"ws://127.0.0.1:{server.port}", flush=True)


@contextmanager
def process(role: str, *arguments: str) -> Generator[str]:
    """Run this program in another role; yields the first line of its output."""
    command = [sys.executable, "-m", "benchmarks.signals", "--role", role, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        try:
            yield started.stdout.readline().strip()
        finally:
            started.kill()


@contextmanager
def mosquitto() -> Generator[str | None]:
    """The URL of a broker; None if mosquitto is not installed."""
    program = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if program is None:
        yield None
        return
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder, "mosquitto.conf")
        configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n")
        with subprocess.Popen([program, "-c", str(configuration)], stderr=subprocess.DEVNULL) as broker:
            try:
                while broker.poll() is None:
                    try:
                        socket.create_connection(("127.0.0.1", port)).close()
                        break
                    except OSError:
                        time.sleep(0.01)
                yield f"mqtt://127.0.0.1:{port}"
            finally:
                broker.kill()


# --- one way through a server: each returns milliseconds ---


@asynccontextmanager
async def open_hub(identity: Identity, url: str) -> AsyncGenerator[SignalHub]:
    hub = SignalHub(identity, [ServerUrl.parse(url)])
    async with trio.open_nursery() as nursery:
        await nursery.start(hub.run)
        await hub.wait_connected()
        yield hub
        nursery.cancel_scope.cancel()


async def by_hub(url: str, count: int) -> list[float]:
    alice, bob = Identity.generate(), Identity.generate()
    times = []
    async with open_hub(alice, url) as sender, open_hub(bob, url) as receiver, trio.open_nursery() as nursery:
        for _ in range(count + WARM_UP):
            start = time.perf_counter()
            nursery.start_soon(sender.send, bob.public_key, b"\x01" * SIZE)
            await receiver.receive()
            times.append(1000 * (time.perf_counter() - start))
    return times[WARM_UP:]


async def by_raw_websocket(url: str, count: int) -> list[float]:
    from trio_websocket import open_websocket_url

    times = []
    async with open_websocket_url(url) as connection:
        for _ in range(count + WARM_UP):
            start = time.perf_counter()
            await connection.send_message(b"\x01" * SIZE)
            await connection.get_message()
            times.append(1000 * (time.perf_counter() - start))
    return times[WARM_UP:]


async def by_raw_mqtt(url: str, count: int) -> list[float]:
    """On asyncio, in a process without trio-asyncio."""
    import aiomqtt

    where = ServerUrl.parse(url)
    times = []
    async with aiomqtt.Client(where.host, where.port) as sender, aiomqtt.Client(where.host, where.port) as receiver:
        await receiver.subscribe("t", qos=1)
        messages = receiver.messages
        for _ in range(count + WARM_UP):
            start = time.perf_counter()
            publishing = asyncio.create_task(sender.publish("t", b"\x01" * SIZE, qos=1))
            await anext(messages)
            times.append(1000 * (time.perf_counter() - start))
            await publishing
    return times[WARM_UP:]


# --- signals per second ---


async def per_second(count: int) -> float:
    """The number of signals of eight senders that one core opens, verifies, checks and routes in a second."""
    host = machine.current()
    receiver, senders = Identity.generate(), [Identity.generate() for _ in range(8)]
    now = int(host.wall_time())

    def address(identity: Identity) -> PeerAddress:
        return PeerAddress.issue(
            identity, seq=now, issued_at=now, expires_at=now + 3600, host_salt=bytes(8), host_id=bytes(16)
        )

    own, addresses = address(receiver), [address(each) for each in senders]
    blobs = [
        seal_message(
            senders[number % 8],
            own,
            addresses[number % 8],
            wire_name="bench.Ping",
            payload=Ping("x" * 100),
            message_id=host.entropy(16),
            session=host.entropy(16),
            attempt=host.entropy(16),
            in_reply_to=None,
            generation=0,
            time_ms=int(host.wall_time() * 1000),
        )
        for number in range(count)
    ]
    requests: list[Request] = []
    hub, clock = SignalHub(receiver, []), CorrectedClock(host)
    sender = SignalSender(
        identity=receiver,
        host=host,
        hub=hub,
        clock=clock,
        own_address=lambda: own,
        hints_of=lambda address: (),
        may_connect=lambda address, ip: False,
    )
    presence = Presence(
        identity=receiver,
        host=host,
        hub=hub,
        clock=clock,
        first_look=FirstLook(),
        own_address=lambda: own,
        listening=False,
    )
    router = SignalRouter(
        identity=receiver,
        hub=hub,
        sender=sender,
        presence=presence,
        messages={"bench.Ping": Ping},
        on_request=requests.append,
        on_cancel=lambda *_: None,
        on_address=lambda address: None,
        on_reply_wanted=lambda envelope, via, message: None,
        knows=lambda key: True,
        is_linked=lambda key: False,
    )
    unlimited = InboxLimits(rate=1e9, burst=10**9, sender_rate=1e9, sender_burst=10**9)
    router._inbox = Inbox(Moment(0.0, trio.current_time() - 60), unlimited)  # type: ignore[misc]
    start = time.process_time()
    for blob in blobs:
        router.handle(Incoming(blob, "ws://server"))
    elapsed = time.process_time() - start
    assert len(requests) == count, router.counters
    return count / elapsed


# --- all of it ---


def show(name: str, ours: list[float], raw: list[float]) -> None:
    print(f"{name}, one way:   {spread(ours, 'ms')}")
    print(f"{name}, raw:       {spread(raw, 'ms')}")
    extra = statistics.median(ours) - statistics.median(raw)
    print(f"{name}: {extra:+.2f} ms in the median")


def main(count: int, rounds: int) -> None:
    with process("rendezvous") as server, process("echo") as echo:
        ours: list[float] = []
        raw: list[float] = []
        for _ in range(rounds):  # interleaved, so that a busy moment of the machine affects both
            ours += trio.run(by_hub, server, count)
            raw += trio.run(by_raw_websocket, echo, count)
        show("WebSocket", ours, raw)
    with mosquitto() as broker:
        if broker is None:
            print("MQTT: skipped, mosquitto is not installed (as root on Debian: make lab-deps)")
        else:
            ours, raw = [], []
            for _ in range(rounds):
                ours += trio.run(by_hub, broker, count)
                with process("raw-mqtt", "--url", broker, "--count", str(count)) as line:
                    raw += map(float, line.split())
            show("MQTT", ours, raw)
    rates = [trio.run(per_second, 2000) for _ in range(rounds)]
    print(f"signals handled on one core: {statistics.median(rates):.0f} per second (median; target {TARGET})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="signals per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--role", choices=["rendezvous", "echo", "raw-mqtt"], help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "rendezvous":
        trio.run(serve_rendezvous)
    elif options.role == "echo":
        trio.run(serve_echo)
    elif options.role == "raw-mqtt":
        print(*asyncio.run(by_raw_mqtt(options.url, options.count)), flush=True)
        time.sleep(60)  # until the other end kills this process
    else:
        main(options.count, options.rounds)
