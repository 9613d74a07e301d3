"""The results of sends when an address or a link goes: one program, in the simulator and on the kernel.

docs/simulator.md has the answers as a table.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import pytest
import trio

from tests.kernel.lab import Host as Machine
from tests.kernel.lab import open_lab
from tests.kernel.namespaces import SocketsOfNamespaces
from tests.kernel.wire import Device, Wire
from tests.sim.programs import Place, udp
from tests.sim.worlds import run
from warpgate_trio.sim import Link, Network

NEW: Final = "203.0.113.77"
PORT: Final = 7000
SOON: Final = 1.0  # seconds in which a packet arrives, or an error comes
Answers = dict[str, str]
CHANGES: Final = ("link down", "another address", "no address")


async def sends(a: Place, b: Place, change: Callable[[], None]) -> Answers:
    """The results of sends on sockets that were opened before a change, and after it."""
    old, answers = a.ip, dict[str, str]()
    with b:
        sink = udp()
        listener = trio.socket.socket()
    with a:
        wild, bound, connected, both, late = (udp() for _ in range(5))
        stream, dialler, binder = (trio.socket.socket() for _ in range(3))
    to = b.ip, PORT

    async def outcome(call: Callable[[], Awaitable[object]]) -> str:
        try:
            with trio.fail_after(SOON):
                await call()
        except OSError as error:
            # By their source code, older kernels return EINVAL for an IPv4 source address that the host lacks.
            return errno.errorcode[errno.ENETUNREACH if error.errno == errno.EINVAL else error.errno or 0]
        except trio.TooSlowError:
            return "waits"
        return "done"

    async def arrives(call: Callable[[], Awaitable[object]]) -> str:
        done = await outcome(call)
        with trio.move_on_after(SOON):
            _, (source, _) = await sink.recvfrom(10)
            return f"from the {'old' if source == old else 'new'} one"
        return done

    with sink, listener, wild, bound, connected, both, late, stream, dialler, binder:
        await sink.bind(to)
        await listener.bind(to)
        listener.listen()
        await wild.bind(("0.0.0.0", 0))
        await bound.bind((old, 0))
        await connected.connect(to)
        await both.bind((old, 0))
        await both.connect(to)
        await stream.connect(to)
        with (await listener.accept())[0]:
            change()
            answers["unbound"] = await arrives(partial(wild.sendto, b"x", to))
            answers["bound"] = await arrives(partial(bound.sendto, b"x", to))
            answers["connected"] = await arrives(partial(connected.send, b"x"))
            answers["bound and connected"] = await arrives(partial(both.send, b"x"))
            answers["connect"] = await outcome(partial(late.connect, to))
            answers["stream send"] = await outcome(partial(stream.send, b"x"))
            answers["stream receive"] = await outcome(partial(stream.recv, 10))
            answers["stream connect"] = await outcome(partial(dialler.connect, to))
            answers["bind to it"] = await outcome(partial(binder.bind, (old, 0)))
    return answers


def simulated(what: str) -> Answers:
    async def world(net: Network) -> Answers:
        link = Link(latency=0.0125)
        a, b = net.host("a", link=link), net.host("b", link=link)

        def change() -> None:
            if what == "link down":
                a.interfaces[0].take_down()
            elif what == "another address":
                a.change_address()
            else:
                net.internet.take_away(a.ip)

        def start() -> None:  # at the instant of the system call, as `ip` does
            net.wire.act(change)

        return await sends(a, b, start)

    return run(world)


async def in_the_kernel(what: str, wire: Wire) -> Answers:
    async with open_lab(wire, "open", "open") as lab:
        a, b = (home.host for home in lab.homes)
        return await sends(a, b, partial(change_the_kernel, a, what, lab.internet.owners))


def change_the_kernel(a: Machine, what: str, owners: dict[bytes, Device]) -> None:
    if what == "link down":
        a.machine.ip_commands("link set eth0 down")
        return
    if what == "another address":
        owners[bytes(map(int, NEW.split(".")))] = owners[bytes(map(int, a.ip.split(".")))]
        a.machine.ip_commands(f"addr add {NEW}/32 dev eth0")
    a.machine.ip_commands(f"addr del {a.ip}/24 dev eth0")


SILENT: Final = {"stream send": "done", "stream receive": "waits"}
EXPECTED: Final = {
    "link down": {
        **dict.fromkeys(
            ("unbound", "bound", "connected", "bound and connected", "connect", "stream connect"), "ENETUNREACH"
        ),
        **SILENT,
        "bind to it": "done",
    },
    "another address": {
        "unbound": "from the new one",
        **dict.fromkeys(("bound", "connected", "bound and connected"), "ENETUNREACH"),
        "connect": "done",
        **SILENT,
        "stream connect": "done",
        "bind to it": "EADDRNOTAVAIL",
    },
    "no address": {
        **dict.fromkeys(
            ("unbound", "bound", "connected", "bound and connected", "connect", "stream connect"), "ENETUNREACH"
        ),
        **SILENT,
        "bind to it": "EADDRNOTAVAIL",
    },
}


@pytest.mark.parametrize("what", CHANGES)
def test_in_the_simulator(what: str) -> None:
    assert simulated(what) == EXPECTED[what]


@pytest.mark.slow("real time: what does not come is waited for")
@pytest.mark.needs("network_namespaces", "nft", "tun")
async def test_in_the_kernel() -> None:
    trio.socket.set_custom_socket_factory(SocketsOfNamespaces())
    found: dict[str, Answers] = {}

    async def one(what: str, wire: Wire) -> None:
        found[what] = await in_the_kernel(what, wire)

    with Wire() as wire:
        async with trio.open_nursery() as nursery:
            for what in CHANGES:
                nursery.start_soon(one, what, wire)
    assert found == EXPECTED


@pytest.mark.parametrize("down", [False, True])
def test_of_ipv6_the_source_is_not_looked_at(down: bool) -> None:
    """Found in Linux 6.18: a socket whose address is gone still sends, as long as there is a route."""

    async def world(net: Network) -> None:
        a, b = net.host("a"), net.host("b")
        old = a.ip6
        with a:
            bound = trio.socket.socket(trio.socket.AF_INET6, trio.socket.SOCK_DGRAM)
        with b:
            sink = trio.socket.socket(trio.socket.AF_INET6, trio.socket.SOCK_DGRAM)
        with bound, sink:
            await bound.bind((old, 0))
            await sink.bind((b.ip6, PORT))
            if down:
                a.interfaces[0].take_down()
                with pytest.raises(OSError, match="unreachable"):
                    await bound.sendto(b"x", (b.ip6, PORT))
            else:
                a.change_address()
                await bound.sendto(b"x", (b.ip6, PORT))
                assert (await sink.recvfrom(10))[1][0] == old

    run(world, ipv6=True)
