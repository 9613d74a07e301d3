"""Scripts of random small steps, to find unforeseen differences between simulated hosts and real namespaces.

A script is a seed.  Its result contains no random ports of NATs, so that two runs can be compared: a port of the script
itself has a name, and any other is named by the order in which it was first seen.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from random import Random

import trio

from tests.sim.programs import World, bound, reusable

STEPS = 12
PAUSE = 0.12  # seconds; a packet takes 0.04, and so does its answer
LAST_PAUSE = 0.5  # so that a late packet of the last step is noticed
TCP_STEPS = 7
PATIENCE = 0.3  # seconds of one connect; the longest one that ends by itself takes SKEWS[-1] + 0.12
SKEWS = (0.0, 0.02, 0.1)  # seconds between two starts: not near 0.04 and 0.08, where the result changes

Endpoint = tuple[str, int]


async def udp_script(world: World, seed: int, port: int, *, neighbour: bool) -> list[str]:
    """Hosts behind two NATs and outside send datagrams to each other; returns what each received, and from where.

    With `neighbour` two hosts behind the first NAT use the same port.
    """
    random = Random(seed)
    places = {"a": world.a, "a2": world.a2, "b": world.b, "one": world.one, "two": world.two}
    inside = {"a": world.outside_a, "a2": world.outside_a, "b": world.outside_b}
    actors = [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("one", 0), ("one", 1), ("two", 0)]
    actors += [("a2", 0)] if neighbour else []
    routers = {world.outside_a: "A", world.outside_b: "B"}
    names: dict[Endpoint, str] = {}
    for name, address in (("A", world.outside_a), ("B", world.outside_b), ("one", world.one.ip), ("two", world.two.ip)):
        names |= {(address, port + number): f"{name}:{number}" for number in (0, 1)}
    seen = list(names)  # all endpoints that a script may send to
    heard: list[str] = []

    async def listen(label: str, sock: trio.socket.SocketType) -> None:
        while True:
            data, source = await sock.recvfrom(100)
            if source not in names:
                names[source] = f"{routers.get(source[0], source[0])}:?{len(names)}"
            if source not in seen:
                seen.append(source)
            heard.append(f"{label} heard {data.decode()} from {names[source]}")

    told: list[str] = []
    sockets = {(name, number): await bound(places[name], port + number) for name, number in actors}
    async with trio.open_nursery() as nursery:
        for (name, number), sock in sockets.items():
            nursery.start_soon(listen, f"{name}:{number}", sock)
        for step in range(STEPS):
            name, number = random.choice(actors)
            foreign = [end for end in seen if end[0] not in (places[name].ip, inside.get(name))]
            target = random.choice(sorted(foreign, key=names.__getitem__))
            told.append(f"{step}: {name}:{number} to {names[target]}")
            await sockets[name, number].sendto(f"{step}".encode(), target)
            await trio.sleep(PAUSE)
            told += sorted(heard)
            heard.clear()
        await trio.sleep(LAST_PAUSE)
        told += sorted(heard)
        nursery.cancel_scope.cancel()
    for sock in sockets.values():
        sock.close()
    return told


def was_late(told: Sequence[str]) -> bool:
    """Whether a datagram of a `udp_script` came after its own step, because the machine is busy."""
    step = ""
    for line in told:
        before, _, heard = line.partition(" heard ")
        if not heard:
            step = before.partition(":")[0]
        elif heard.partition(" ")[0] != step:
            return True
    return False


async def tcp_script(world: World, seed: int, port: int) -> list[str]:
    """Hosts listen and connect to each other repeatedly on the same ports; returns the result of each connect.

    A connect without an answer is given up, and the NATs keep its state; connections stay open to the end.
    """
    random = Random(seed)
    places = {"a": world.a, "b": world.b, "one": world.one}
    outside = {"a": world.outside_a, "b": world.outside_b, "one": world.one.ip}
    sockets: list[trio.socket.SocketType] = []
    listening: set[str] = set()
    told: list[str] = []
    heard: list[str] = []

    async def accept(name: str, listener: trio.socket.SocketType) -> None:
        while True:
            sock, source = await listener.accept()
            sockets.append(sock)
            heard.append(f"{name} accepted {next(each for each in outside if outside[each] == source[0])}")

    async def connect(name: str, target: str, delay: float) -> None:
        await trio.sleep(delay)
        sock = reusable(places[name])
        sockets.append(sock)
        word = "no answer"
        with trio.move_on_after(PATIENCE):
            try:
                await sock.bind(("0.0.0.0", port))
                await sock.connect((outside[target], port))
                word = "connected"
            except OSError as error:
                word = errno.errorcode[error.errno or 0]
        if word != "connected":
            sock.close()
        heard.append(f"{name} to {target}: {word}")

    async with trio.open_nursery() as nursery:
        for step in range(TCP_STEPS):
            what = random.choice(("listen", "connect", "connect", "both", "both", "both"))
            name, target = random.sample(sorted(places), 2)
            if what == "listen":
                told.append(f"{step}: {name} listens")
                if name not in listening:
                    listening.add(name)
                    listener = reusable(places[name])
                    sockets.append(listener)
                    await listener.bind(("0.0.0.0", port))
                    listener.listen()
                    nursery.start_soon(accept, name, listener)
                continue
            skew = random.choice(SKEWS) if what == "both" else None
            told.append(f"{step}: {name} to {target}" + ("" if skew is None else f" and back {skew} later"))
            async with trio.open_nursery() as step_nursery:
                step_nursery.start_soon(connect, name, target, 0.0)
                if skew is not None:
                    step_nursery.start_soon(connect, target, name, skew)
            await trio.sleep(PAUSE)
            told += sorted(heard)
            heard.clear()
        nursery.cancel_scope.cancel()
    for sock in sockets:
        sock.close()
    return told
