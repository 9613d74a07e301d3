"""What a message of an attacker costs its victim: CPU per message, and memory per byte that the attacker sent.

Nodes and servers run in processes of their own, with the default limits.  The attacker is this process, on loopback,
from as many of its addresses as it needs.  CPU is the victim's process time between two quiet moments,
divided by the messages: the median of some rounds.  Where a limit is reached within a round, most messages
are refused, and the figure is that of a refusal, as in a flood.  Bytes are the growth of the victim's process, without
the kernel's socket memory, beside the bytes that the attacker sent, packet headers included.
"""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import ssl
import statistics
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial

import trio

from benchmarks._victims import Victim, victim
from warpgate_strategies.reverse_connect import DialMe
from warpgate_trio import Identity, NodeConfig, PeerAddress, Servers, open_node
from warpgate_trio.address import AddressInterface, Endpoint, EndpointKind, Transport
from warpgate_trio.carrier.quic_protocol import QuicProtocol
from warpgate_trio.config.server_url import ServerUrl
from warpgate_trio.errors import ConnectError, SignalError
from warpgate_trio.plugin import RouteType
from warpgate_trio.servers.rendezvous_core import RendezvousLimits
from warpgate_trio.signal import Delivery, SignalHub, open_channel, seal_message, wire_name

HANDSHAKE = 60 + 52
"""Bytes that the attacker sends in a TCP handshake: a SYN and an ACK with Linux's options."""
PACKET = 52
"""Bytes of headers in each later packet."""
SIGNAL = PACKET + 8 + 37
"""Bytes around a signal to a rendezvous server: packet, WebSocket frame and SEND."""
BATCH = 20
"""Datagrams between two short pauses, so that the victim's socket does not overflow."""


# --- what the attacker does ---


def sources() -> Iterator[str]:
    """Loopback addresses of this machine, one after the other; to the victim, each is another subscriber."""
    return (f"127.{a}.{b}.{c}" for a, b, c in itertools.product(range(1, 100), range(250), range(1, 250)))


def connect(port: int, source: str) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # ends with a reset: no TIME_WAIT
    return sock


def client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        CONTEXT.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


CONTEXT = client_context()


def upgrade(port: int) -> bytes:
    return (
        f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


def masked(payload: bytes) -> bytes:
    """One binary WebSocket frame of a client, with a mask of zeros."""
    assert len(payload) < 126
    return bytes((0x82, 0x80 | len(payload))) + bytes(4) + payload


STUN_REQUEST = bytes.fromhex("000100002112a442") + bytes(12)
STUN_ANSWER = bytes.fromhex("010100002112a442") + bytes(12)
NTP_REQUEST = bytes((0x23,)) + bytes(47)
QUIC_INITIAL = bytes.fromhex("c00000000108") + bytes(1194)


def flood(port: int, datagram: bytes, count: int, source: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        for number in range(count):
            sock.sendto(datagram, ("127.0.0.1", port))
            if number % BATCH == BATCH - 1:
                time.sleep(0.002)


@dataclass(frozen=True)
class Cost:
    """One row of the first table."""

    name: str
    microseconds: float
    sent: int


def cost(name: str, whom: Victim, sent: int, count: int, rounds: int, attack: Callable[[int], object]) -> Cost:
    """Measure `attack(count)`, which sends `count` messages of `sent` bytes each."""
    attack(max(count // 10, 1))  # warm up: some code is loaded at its first use
    values = []
    for _ in range(rounds):
        before = whom.cpu()
        attack(count)
        values.append((whom.cpu() - before) / count)
    return Cost(name, 1e6 * statistics.median(values), sent)


@dataclass(frozen=True)
class Holding:
    """One row of the second table: bytes that the victim holds, and bytes that the attacker sent, for each item."""

    name: str
    held: float
    sent: float


def holding(name: str, whom: Victim, sent: float, count: int, attack: Callable[[ExitStack, int], object]) -> Holding:
    """Measure `attack(stack, count)`, which makes the victim hold `count` items until `stack` is closed."""
    with ExitStack() as stack:
        before = whom.bytes()
        attack(stack, count)
        return Holding(name, (whom.bytes() - before) / count, sent)


# --- signals ---


def stranger(number: int) -> tuple[Identity, PeerAddress]:
    identity, now = Identity.generate(), int(time.time())
    endpoint = Endpoint.make(
        transport=Transport.TCP, kind=EndpointKind.EXT, ip=f"198.51.100.{1 + number % 254}", port=7000
    )
    record = PeerAddress.issue(
        identity,
        seq=now,
        issued_at=now,
        expires_at=now + 3600,
        host_salt=bytes(8),
        host_id=bytes(16),
        interfaces=[AddressInterface(1, (endpoint,))],
    )
    return identity, record


def request(to: PeerAddress, number: int) -> bytes:
    """A valid request of an unknown node."""
    identity, record = stranger(number)
    (_, endpoint) = next(record.endpoints())
    return seal_message(
        identity,
        to,
        record,
        wire_name=wire_name("reverse_connect", DialMe),
        payload=DialMe(af=4, route_type=RouteType.EXT_BIND, address=endpoint.address, port=endpoint.port),
        message_id=os.urandom(16),
        session=os.urandom(16),
        attempt=os.urandom(16),
        time_ms=int(1000 * time.time()),
    )


async def send_signals(url: str, receiver: bytes, blobs: Sequence[bytes]) -> None:
    """Through the attacker's own rendezvous server, which does not limit its rate."""
    hub = SignalHub(Identity.generate(), [ServerUrl.parse(url)])
    async with trio.open_nursery() as nursery:
        await nursery.start(hub.run)
        await hub.wait_connected()
        for blob in blobs:
            with suppress(SignalError):
                await hub.send(receiver, blob)
        nursery.cancel_scope.cancel()


def signal_costs(rounds: int) -> Iterator[Cost | Holding]:
    with victim("rendezvous", "unlimited") as server:
        url = server.about["url"]

        def sending(to: PeerAddress, make: Callable[[int], bytes]) -> Callable[[int], None]:
            def attack(count: int) -> None:
                trio.run(send_signals, url, to.public_key, [make(number) for number in range(count)])

            return attack

        for name, size, make in (
            ("signal of one byte", SIGNAL + 1, lambda _: b"\x01"),
            ("signal of 16 KiB of junk", SIGNAL + 16384, lambda _: b"\x01" + os.urandom(16383)),
        ):
            with victim("node", url) as whom:  # a new victim each time, with unused rate limits
                to = PeerAddress.from_text(whom.about["address"])
                yield cost(name, whom, size, 300, rounds, sending(to, make))
        values = []
        for _ in range(rounds):
            with victim("node", url) as whom:
                to = PeerAddress.from_text(whom.about["address"])
                size, attack = SIGNAL + len(request(to, 0)), sending(to, partial(request, to))
                values.append(cost("", whom, size, 200, 1, attack).microseconds)
        yield Cost("well-sealed request of a stranger, refused", statistics.median(values), size)
        with victim("node", url, traced=True) as whom:
            to = PeerAddress.from_text(whom.about["address"])
            attack = sending(to, partial(request, to))
            attack(20)
            yield holding("ids and rates of a stranger's signal", whom, size, 100, lambda _, count: attack(count))


# --- a node's listener ---


def listener_costs(rounds: int) -> Iterator[Cost | Holding]:
    with victim("node") as whom:
        to = PeerAddress.from_text(whom.about["address"])
        port = next(endpoint.port for _, endpoint in to.endpoints() if endpoint.af == 4)
        origin = sources()
        hello = client_hello()

        def talking(data: bytes) -> Callable[[int], None]:
            def attack(count: int) -> None:
                for source in itertools.islice(origin, count):
                    with connect(port, source) as sock:
                        if data:
                            sock.sendall(data)
                            with suppress(OSError):
                                sock.recv(16384)  # an answer, or the end
                        else:
                            time.sleep(0.001)

            return attack

        def whole_handshake(count: int) -> None:
            for source in itertools.islice(origin, count):
                with CONTEXT.wrap_socket(connect(port, source)):
                    pass

        yield cost("TCP connection, closed again", whom, HANDSHAKE, 200, rounds, talking(b""))
        yield cost("TCP connection with junk", whom, HANDSHAKE + PACKET + 64, 100, rounds, talking(os.urandom(64)))
        size = HANDSHAKE + PACKET + len(hello)
        yield cost("TLS ClientHello", whom, size, 100, rounds, talking(hello))
        yield cost("TLS handshake without a proof", whom, size + 2 * PACKET + 80, 100, rounds, whole_handshake)

        def idle(stack: ExitStack, count: int) -> None:
            for source in itertools.islice(origin, count):
                stack.enter_context(connect(port, source))

        def half_way(stack: ExitStack, count: int) -> None:
            for source in itertools.islice(origin, count):
                sock = stack.enter_context(connect(port, source))
                sock.sendall(hello)
                sock.recv(16384)

        def unproven(stack: ExitStack, count: int) -> None:
            for source in itertools.islice(origin, count):
                stack.enter_context(CONTEXT.wrap_socket(connect(port, source)))

    for name, sent, hold in (
        ("idle TCP connection", HANDSHAKE, idle),
        ("TLS handshake half-way", size, half_way),
        ("TLS connection without a proof", size + 2 * PACKET + 80, unproven),
    ):
        with victim("node") as whom:  # a new process: in one that has grown, further growth would not show
            to = PeerAddress.from_text(whom.about["address"])
            port = next(endpoint.port for _, endpoint in to.endpoints() if endpoint.af == 4)
            with ExitStack() as warm_up:
                hold(warm_up, 8)
            yield holding(name, whom, sent, 128, hold)
    with victim("node", traced=True) as whom:
        address = whom.about["address"]

        def call(_: object, count: int) -> None:
            trio.run(call_in_vain, address, count)

        call(None, 5)
        yield holding("remembered session of a stranger", whom, size + 6 * PACKET + 800, 25, call)


async def call_in_vain(address: str, count: int) -> None:
    async with open_node(NodeConfig(servers=Servers()), identity=Identity.generate()) as caller:
        for _ in range(count):
            with suppress(ConnectError):
                await caller.connect(address, plugin="direct_connect", timeout=10)


# --- datagrams ---


def datagram_costs(rounds: int) -> Iterator[Cost]:
    origin = sources()

    def flooding(whom: Victim, data: bytes) -> Callable[[int], None]:
        def attack(count: int) -> None:
            for source in itertools.islice(origin, count // 50):  # few from each source, below all rate limits
                flood(whom.port, data, 50, source)

        return attack

    with victim("udp_port") as whom:
        for name, data in (
            ("junk at a node's UDP port", os.urandom(100)),
            ("STUN answer that nobody asked for", STUN_ANSWER),
            ("QUIC packet from nobody's path", QUIC_INITIAL),
        ):
            yield cost(name, whom, 28 + len(data), 2000, rounds, flooding(whom, data))
    for role, name, request_bytes in (("stun", "STUN", STUN_REQUEST), ("ntp", "NTP", NTP_REQUEST)):
        with victim(role) as whom:
            junk = os.urandom(100)
            yield cost(f"junk at the {name} server", whom, 28 + len(junk), 2000, rounds, flooding(whom, junk))
            asking = flooding(whom, request_bytes)
            yield cost(f"{name} request, answered", whom, 28 + len(request_bytes), 1000, rounds, asking)


def quic_costs(rounds: int) -> Iterator[Cost]:
    """Packets that a punched path admits; measured on `QuicProtocol`, since the path exists only during a punch."""
    identity = Identity.generate()
    flights = [b"".join(QuicProtocol.dialing(now=0.0).transmit(0.0)[:1]) for _ in range(20)]
    for name, datagrams in (
        ("QUIC first flight", flights),
        ("QUIC first flight, forged", [flight[:-40] + os.urandom(40) for flight in flights]),
    ):
        values = []
        for _ in range(rounds):
            servers = [QuicProtocol.serving(identity) for _ in datagrams]
            began = time.process_time()
            for server, datagram in zip(servers, datagrams, strict=True):
                server.receive([datagram], 0.0)
                server.transmit(0.0)
            values.append((time.process_time() - began) / len(datagrams))
        yield Cost(name, 1e6 * statistics.median(values), 28 + len(datagrams[0]))


# --- a rendezvous server, and STUN over TCP ---


def server_costs(rounds: int) -> Iterator[Cost | Holding]:
    origin = sources()
    with victim("rendezvous") as whom:
        hello = upgrade(whom.port)
        bad = masked(b"\x02" + Identity.generate().public_key + os.urandom(64))

        def read_until_closed(sock: socket.socket) -> None:
            with suppress(OSError):
                while sock.recv(16384):
                    pass

        def junk(count: int) -> None:
            for source in itertools.islice(origin, count):
                with connect(whom.port, source) as sock:
                    sock.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
                    read_until_closed(sock)

        def upgraded(count: int) -> None:
            with ExitStack() as stack:
                for source in itertools.islice(origin, count):
                    sock = stack.enter_context(connect(whom.port, source))
                    sock.sendall(hello)
                    sock.recv(16384)

        def register_badly(count: int) -> None:
            for source in itertools.islice(origin, count):
                with connect(whom.port, source) as sock:
                    sock.sendall(hello)
                    sock.recv(16384)
                    sock.sendall(bad)
                    time.sleep(0.002)

        size = HANDSHAKE + PACKET + len(hello)
        yield cost("junk at the rendezvous server", whom, HANDSHAKE + PACKET + 14, 100, rounds, junk)
        yield cost("WebSocket handshake", whom, size, 100, rounds, upgraded)
        yield cost("REGISTER with a bad signature", whom, size + PACKET + len(bad), 100, rounds, register_badly)

    def idle(stack: ExitStack, count: int) -> None:
        for source in itertools.islice(origin, count):
            stack.enter_context(connect(whom.port, source))

    def unregistered(stack: ExitStack, count: int) -> None:
        for source in itertools.islice(origin, count):
            sock = stack.enter_context(connect(whom.port, source))
            sock.sendall(hello)
            sock.recv(16384)

    for role, name, sent, hold in (
        ("rendezvous", "idle TCP connection, rendezvous", HANDSHAKE, idle),
        ("rendezvous", "connection that has not registered", size, unregistered),
        ("stun", "idle TCP connection, STUN", HANDSHAKE, idle),
    ):
        with victim(role) as whom:
            with ExitStack() as warm_up:
                hold(warm_up, 8)
            yield holding(name, whom, sent, 128, hold)
    with victim("rendezvous") as whom:
        before = whom.bytes()
        after, queued = trio.run(fill_queues, whom, bytes(PAYLOAD), 4)
        yield Holding("16 KiB for a receiver that does not read", (after - before) / queued, PAYLOAD + SIGNAL)


PAYLOAD = 16384


async def fill_queues(whom: Victim, payload: bytes, receivers: int) -> tuple[float, int]:
    """Send payloads to receivers that register and then stop reading; the memory held, and the waiting payloads."""
    async with trio.open_nursery() as nursery:
        for _ in range(receivers):
            stopped = trio.Event()
            relay = await nursery.start(relay_until, stopped, whom.port)
            receiver = Identity.generate()
            await nursery.start(stay_registered, receiver, whom.about["url"], relay)
            stopped.set()
            delivery = Delivery.DELIVERED
            while delivery is Delivery.DELIVERED:
                sender = await open_hub(nursery, Identity.generate(), whom.about["url"])
                for _ in range(100):  # below the rate limit of one sender
                    delivery = await sender.send(receiver.public_key, payload)
                    if delivery is not Delivery.DELIVERED:
                        break
        held = await trio.to_thread.run_sync(whom.bytes)
        nursery.cancel_scope.cancel()
    return held, receivers * RendezvousLimits().queue


async def open_hub(nursery: trio.Nursery, identity: Identity, url: str) -> SignalHub:
    hub = SignalHub(identity, [ServerUrl.parse(url)])
    await nursery.start(hub.run)
    await hub.wait_connected()
    return hub


async def stay_registered(
    identity: Identity, url: str, relay: int, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Register at the server with this URL, over a connection through the local relay port."""

    async def dial(_host: str, _port: int) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", relay)

    async with open_channel(ServerUrl.parse(url), identity, dial=dial):
        task_status.started()
        await trio.sleep_forever()


async def relay_until(
    stopped: trio.Event, port: int, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    """Relay connections; when `stopped` is set they stay open, but nothing is read from the server any more."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, trio.open_nursery() as nursery:
        task_status.started(listener.socket.getsockname()[1])
        async with await listener.accept() as client:
            upstream = trio.socket.socket()
            upstream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await upstream.connect(("127.0.0.1", port))

            async def forth() -> None:
                while data := await client.receive_some():
                    await upstream.send(data)

            with upstream:
                nursery.start_soon(forth)
                while not stopped.is_set():
                    with trio.move_on_after(0.05):
                        await client.send_all(await upstream.recv(4096))
                await trio.sleep_forever()


# --- all of it ---


def main(rounds: int) -> None:
    began = time.monotonic()
    costs: list[Cost] = []
    held: list[Holding] = []
    measures = (listener_costs, signal_costs, datagram_costs, quic_costs, server_costs)
    for row in itertools.chain.from_iterable(measure(rounds) for measure in measures):
        if isinstance(row, Cost):
            costs.append(row)
        else:
            held.append(row)
    print(f"CPU of the attacked process for each message (median of {rounds} rounds), and a core's worth of them\n")
    print(f"{'message':46} {'bytes':>7} {'µs':>9} {'to fill a core':>22}")
    for each in costs:
        rate = 1e6 / max(each.microseconds, 0.1)
        needed = f"{rate:,.0f}/s, {8e-6 * rate * each.sent:,.1f} Mbit/s"
        print(f"{each.name:46} {each.sent:7.0f} {each.microseconds:9.1f} {needed:>22}")
    print("\nBytes that the attacked process holds for each, beside what the attacker sent\n")
    print(f"{'what is held':46} {'sent':>7} {'held':>9} {'held for a byte':>16}")
    for other in held:
        print(f"{other.name:46} {other.sent:7.0f} {other.held:9.0f} {other.held / other.sent:16.1f}")
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    main(parser.parse_args().rounds)
