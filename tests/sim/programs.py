"""Small programs over plain trio.socket that show what a network does, for simulated hosts and real namespaces.

Hole punching here is a few lines, not the package's code. Both sides know each other's endpoint as a server saw it (the
signalling is a Python variable), send to it periodically, and answer to a packet's source.
"""

from __future__ import annotations

import errno
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, final

import trio

from warpgate_trio.sim import Filtering, Host, Link, Mapping, NatConfig, Network

Endpoint = tuple[str, int]
EVERY = 0.1
PATIENCE = 4.0
LATENCY = 0.02  # seconds of each end's access line, so 0.04 s one way
LINK = Link(latency=LATENCY)


class Place(Protocol):
    """Where programs run: a simulated host, or a namespace."""

    @property
    def ip(self) -> str:
        """Its address."""
        ...

    def __enter__(self) -> object: ...

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class World(Protocol):
    """Two NATs with two hosts behind the first and one behind the second, and two servers outside."""

    outside_a: str
    outside_b: str

    @property
    def a(self) -> Place: ...

    @property
    def a2(self) -> Place: ...

    @property
    def b(self) -> Place: ...

    @property
    def one(self) -> Place: ...

    @property
    def two(self) -> Place: ...


def udp() -> trio.socket.SocketType:
    """A UDP socket of the current host."""
    return trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)


async def bound(host: Place, port: int = 0) -> trio.socket.SocketType:
    """A UDP socket on a port of a host."""
    with host:
        sock = udp()
    await sock.bind(("0.0.0.0", port))
    return sock


async def receive(sock: trio.socket.SocketType, within: float) -> tuple[bytes, Endpoint] | None:
    """The next datagram, or None when none comes."""
    with trio.move_on_after(within):
        data, source = await sock.recvfrom(65535)
        return data, source
    return None


def reusable(host: Place) -> trio.socket.SocketType:
    """A TCP socket that can share its port."""
    with host:
        sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_STREAM)
    sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
    sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEPORT, 1)
    return sock


async def reaches(a: trio.socket.SocketType, b: trio.socket.SocketType, to: tuple[str, int]) -> bool:
    """Whether a datagram to an endpoint arrives."""
    await a.sendto(b"?", to)
    return await receive(b, 5) is not None


async def serve_addresses(host: Place, port: int, *, task_status: trio.TaskStatus[None]) -> None:
    """Tell clients, over UDP and TCP, their source endpoint."""
    sock = await bound(host, port)
    listener = reusable(host)
    await listener.bind(("0.0.0.0", port))
    listener.listen()

    async def answer() -> None:
        while True:
            caller, address = await listener.accept()
            callers.append(caller)
            await caller.send(f"{address[0]} {address[1]}".encode())

    callers: list[trio.socket.SocketType] = []
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            task_status.started()
            while True:
                _, source = await sock.recvfrom(100)
                await sock.sendto(f"{source[0]} {source[1]}".encode(), source)
    finally:
        for one in (sock, listener, *callers):
            one.close()


def parse(data: bytes) -> Endpoint:
    address, port = data.decode().split()
    return address, int(port)


async def ask_udp(sock: trio.socket.SocketType, server: Endpoint) -> Endpoint:
    """The outside endpoint of a socket."""
    while True:
        await sock.sendto(b"?", server)
        found = await receive(sock, 0.5)
        if found is not None:
            return parse(found[0])


# Classification (RFC 5780) and Linux's overloading of ports


async def classify(client: Place, one: Place, two: Place, port: int, wait: float = 1.0) -> tuple[Mapping, Filtering]:
    """The mapping and filtering of a client's NAT, measured with two servers of two ports each."""
    sock = await bound(client, port)
    servers = {(h.ip, port + n): await bound(h, port + n) for h in (one, two) for n in (0, 1)}
    seen = []
    for address, server in servers.items():
        await sock.sendto(b"?", address)
        found = await receive(server, wait)
        assert found is not None
        seen.append(found[1])
    mapping = {1: Mapping.EIM, 2: Mapping.ADM, 4: Mapping.APDM}[len(set(seen))]
    fresh = await bound(client, port + 1)
    (first, near, far, _) = servers.items()
    await fresh.sendto(b"?", first[0])
    found = await receive(first[1], wait)
    assert found is not None
    heard = []
    for _, server in (near, far):
        await server.sendto(b"!", found[1])
        heard.append(await receive(fresh, wait) is not None)
    for one_socket in (sock, fresh, *servers.values()):
        one_socket.close()
    filters = {(True, True): Filtering.EIF, (True, False): Filtering.ADF, (False, False): Filtering.APDF}
    return mapping, filters[heard[0], heard[1]]


async def overload(clients: Sequence[Place], servers: Sequence[Place], port: int) -> list[bool]:
    """Two clients on one port send to both servers: for each of the four flows, whether the port was preserved."""
    sockets = [await bound(client, port) for client in clients]
    targets = [await bound(server, port) for server in servers]
    preserved = []
    for client, server in ((0, 0), (1, 1), (1, 0), (0, 1)):
        await sockets[client].sendto(b"?", (servers[server].ip, port))
        found = await receive(targets[server], 1)
        assert found is not None
        preserved.append(found[1][1] == port)
    for sock in (*sockets, *targets):
        sock.close()
    return preserved


# Punching


@final
@dataclass
class Side:
    """One of two peers."""

    host: Place
    seen: Endpoint | None = None  # the endpoint that a server saw
    heard: trio.Event = field(default_factory=trio.Event)  # set when something comes from the peer
    sockets: list[trio.socket.SocketType] = field(default_factory=list)


@contextmanager
def _sides(a: Place, b: Place) -> Generator[tuple[Side, Side]]:
    """Both peers; their sockets are closed at the end."""
    sides = (Side(a), Side(b))
    try:
        yield sides
    finally:
        for side in sides:
            for sock in side.sockets:
                sock.close()


async def punch_udp(
    server: Place,
    a: Place,
    b: Place,
    *,
    port: int = 40000,
    skew: float = 0.0,
    openers: int | None = None,
    patience: float = PATIENCE,
) -> bool:
    """Whether both receive from each other.  B begins `skew` seconds later; the first packets have TTL `openers`."""
    with _sides(a, b) as sides:
        return await _punch_udp(server, sides, port=port, skew=skew, openers=openers, patience=patience)


async def _punch_udp(
    server: Place, sides: tuple[Side, Side], *, port: int, skew: float, openers: int | None, patience: float
) -> bool:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_addresses, server, port)
        for side in sides:
            sock = await bound(side.host, port)
            side.sockets.append(sock)
            side.seen = await ask_udp(sock, (server.ip, port))
        if openers is not None:
            for side, other in (sides, sides[::-1]):
                sock = side.sockets[0]
                sock.setsockopt(trio.socket.IPPROTO_IP, trio.socket.IP_TTL, openers)
                assert other.seen is not None
                await sock.sendto(b"opener", other.seen)
                sock.setsockopt(trio.socket.IPPROTO_IP, trio.socket.IP_TTL, 64)
            await trio.sleep(0.2)  # the signal that both have opened
        with trio.move_on_after(patience + skew):
            async with trio.open_nursery() as probing:
                probing.start_soon(_until_both, sides, probing)
                for side, other, delay in ((sides[0], sides[1], 0.0), (sides[1], sides[0], skew)):
                    assert other.seen is not None
                    targets = {other.seen: None}
                    probing.start_soon(_probe, side, targets, delay)
                    probing.start_soon(_listen, side, targets)
        nursery.cancel_scope.cancel()
    return all(side.heard.is_set() for side in sides)


async def _until_both(sides: tuple[Side, Side], nursery: trio.Nursery) -> None:
    for side in sides:
        await side.heard.wait()
    nursery.cancel_scope.cancel()


async def _probe(side: Side, targets: dict[Endpoint, None], delay: float) -> None:
    await trio.sleep(delay)
    while True:
        for target in list(targets):
            await side.sockets[0].sendto(b"ack" if side.heard.is_set() else b"probe", target)
        await trio.sleep(EVERY)


async def _listen(side: Side, targets: dict[Endpoint, None]) -> None:
    while True:
        data, source = await side.sockets[0].recvfrom(100)
        if data in (b"probe", b"ack"):
            side.heard.set()
            targets.setdefault(source)


async def punch_tcp(
    server: Place,
    a: Place,
    b: Place,
    *,
    port: int = 40000,
    skew: float = 0.0,
    listeners: bool = True,
    patience: float = PATIENCE,
) -> bool:
    """Whether the two sides get a connection that carries data both ways."""
    with _sides(a, b) as sides:
        return await _punch_tcp(server, sides, port=port, skew=skew, listeners=listeners, patience=patience)


async def _punch_tcp(
    server: Place, sides: tuple[Side, Side], *, port: int, skew: float, listeners: bool, patience: float
) -> bool:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_addresses, server, port)
        listening: list[trio.socket.SocketType] = []
        for side in sides:
            known = reusable(side.host)
            side.sockets.append(known)
            await known.bind(("0.0.0.0", port))
            await known.connect((server.ip, port))
            side.seen = parse(await known.recv(100))
            listener = reusable(side.host)
            side.sockets.append(listener)
            await listener.bind(("0.0.0.0", port))
            if listeners:
                listener.listen()
            listening.append(listener)
        with trio.move_on_after(patience + skew):
            async with trio.open_nursery() as trying:
                trying.start_soon(_until_both, sides, trying)
                for side, other, delay in ((sides[0], sides[1], 0.0), (sides[1], sides[0], skew)):
                    assert other.seen is not None
                    trying.start_soon(_connect, side, other.seen, port, delay, trying)
                if listeners:
                    for side, listener in zip(sides, listening, strict=True):
                        trying.start_soon(_accept, side, listener, trying)
        nursery.cancel_scope.cancel()
    return all(side.heard.is_set() for side in sides)


async def _connect(side: Side, target: Endpoint, port: int, delay: float, nursery: trio.Nursery) -> None:
    await trio.sleep(delay)
    while True:
        sock = reusable(side.host)
        side.sockets.append(sock)
        await sock.bind(("0.0.0.0", port))
        try:
            await sock.connect(target)
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRNOTAVAIL:
                return  # the same connection came in through the listener
            await trio.sleep(0.01)
        else:
            nursery.start_soon(_talk, side, sock)
            return


async def _accept(side: Side, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
    while True:
        sock, _ = await listener.accept()
        side.sockets.append(sock)
        nursery.start_soon(_talk, side, sock)


async def _talk(side: Side, sock: trio.socket.SocketType) -> None:
    try:
        await sock.send(b"hello")
        if await sock.recv(5) == b"hello":
            side.heard.set()
    except OSError:
        pass


async def one_attempt(
    a: Place, outside_a: str, b: Place, outside_b: str, *, port: int = 40000, skew: float = 0.0, limit: float = 10.0
) -> tuple[str, float]:
    """Both connect once, on preserved ports, B `skew` later; returns A's result and its seconds after the start."""
    results: dict[str, tuple[str, float]] = {}

    async def connect(me: Place, peer: str, name: str, delay: float) -> None:
        started = trio.current_time()
        await trio.sleep(delay)
        with reusable(me) as sock:
            await sock.bind(("0.0.0.0", port))
            word = "pending"
            with trio.move_on_after(limit):
                try:
                    await sock.connect((peer, port))
                    word = "connected"
                except OSError as error:
                    word = errno.errorcode[error.errno or 0]
            results[name] = word, trio.current_time() - started

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect, a, outside_b, "a", 0.0)
        nursery.start_soon(connect, b, outside_a, "b", skew)
    return results["a"]


def behind(net: Network, name: str, layers: Sequence[NatConfig]) -> Host:
    """A simulated host behind NATs, the outermost first."""
    segment = net.internet
    for number, config in enumerate(layers):
        segment = segment.lan(f"{name}{number}", nat=config, uplink=LINK if number == 0 else None)
    return segment.host(name) if layers else segment.host(name, link=LINK)


def server_in(net: Network) -> Host:
    """A simulated server that is as far away as the peers are from each other."""
    return net.host("stun", address="11.200.0.1", link=LINK)
