"""More small programs, about edge cases of NATs, for simulated hosts and real namespaces."""

from __future__ import annotations

import errno
from contextlib import ExitStack

import trio

from tests.sim.programs import Place, bound, receive, reusable


async def poisoned(client: Place, outside: str, one: Place, two: Place, port: int, wait: float) -> list[bool]:
    """A peer's packet comes before ours to that peer: which outside ports do we then have, for that peer and others?

    Returns whether the port is preserved to a server, to the early peer, then to a third endpoint, and to the first
    server again; whether the ports to the early peer and to the third endpoint are equal; and whether the early packet
    was delivered.
    """
    targets = [await bound(server, at) for server, at in ((one, port), (two, port), (one, port + 1))]
    sock = await bound(client, port)
    ports = []
    delivered = False
    with ExitStack() as stack:
        for each in (*targets, sock):
            stack.callback(each.close)
        for number, (server, at) in enumerate(((one, port), (two, port), (one, port + 1), (one, port))):
            if number == 1:
                await targets[1].sendto(b"early", (outside, port))
                delivered = await receive(sock, wait) is not None
            await sock.sendto(b"?", (server.ip, at))
            found = await receive(targets[number % 3], 1)
            assert found is not None
            ports.append(found[1][1])
    return [*(each == port for each in ports), ports[1] == ports[2], delivered]


async def hairpinned(client: Place, outside: str, port: int) -> list[str]:
    """The results of a host that connects to its own NAT's outside address, over TCP and over connected UDP."""
    with reusable(client) as sock:
        await sock.bind(("0.0.0.0", port))
        tcp = await _word(sock.connect((outside, port + 1)))
    with await bound(client, port) as sock:
        await sock.connect((outside, port + 1))
        await sock.send(b"?")
        udp = await _word(sock.recv(10))
    return [tcp, udp]


async def _word(call: object, limit: float = 0.5) -> str:
    with trio.move_on_after(limit):
        try:
            await call  # type: ignore[misc]
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "done"
    return "nothing"


async def retried(
    a: Place, outside_a: str, b: Place, outside_b: str, *, port: int, skew: float, period: float, patience: float
) -> bool:
    """Whether both connect on preserved ports, B `skew` later; a refused side retries `period` after its last start."""
    done: list[Place] = []

    async def connect(me: Place, peer: str, delay: float) -> None:
        await trio.sleep(delay)
        while True:
            next_start = trio.current_time() + period
            with reusable(me) as sock:
                await sock.bind(("0.0.0.0", port))
                try:
                    await sock.connect((peer, port))
                except OSError:
                    await trio.sleep_until(next_start)
                else:
                    done.append(me)
                    return

    with trio.move_on_after(patience):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect, a, outside_b, 0.0)
            nursery.start_soon(connect, b, outside_a, skew)
    return len(done) == 2


async def survives(a: Place, outside_a: str, b: Place, outside_b: str, *, port: int, wait: float) -> list[str]:
    """A connects to B's NAT for `wait` seconds and then listens; returns A's result, and that of B's connect to A."""
    with reusable(a) as sock:
        await sock.bind(("0.0.0.0", port))
        began = trio.current_time()
        seen = await _word(sock.connect((outside_b, port)), wait)
        await trio.sleep_until(began + wait)
    with reusable(a) as listener, reusable(b) as sock:
        await listener.bind(("0.0.0.0", port))
        listener.listen()
        await sock.bind(("0.0.0.0", port))
        return [seen, await _word(sock.connect((outside_a, port)))]


async def sprayed(
    easy: Place, outside_easy: str, hard: Place, outside_hard: str, *, port: int, ports: range, openers: int | None
) -> bool:
    """Whether a probe from one of the hard side's few sockets arrives after openers to all ports of its NAT."""
    cone = await bound(easy, port)
    sockets = [await bound(hard, port + number) for number in range(3)]
    with ExitStack() as stack:
        for sock in (cone, *sockets):
            stack.callback(sock.close)
        if openers is not None:
            cone.setsockopt(trio.socket.IPPROTO_IP, trio.socket.IP_TTL, openers)
        for each in ports:
            await cone.sendto(b"opener", (outside_hard, each))
        await trio.sleep(0.2)
        for sock in sockets:
            await sock.sendto(b"probe", (outside_easy, port))
        return await receive(cone, 0.5) is not None
