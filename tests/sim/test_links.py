"""Links with their random losses and delays, and schedules of faults."""

from __future__ import annotations

import socket
from dataclasses import replace
from itertools import pairwise

import pytest
import trio
import trio.testing

from tests.sim.programs import bound, receive
from tests.sim.worlds import run
from warpgate_trio.sim import (
    Fault,
    Kind,
    Link,
    Network,
    presets,
)


# Links
@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"loss": 1.5}, "share"),
        ({"latency": -1}, "seconds"),
        ({"bandwidth": 0}, "bits per second"),
        ({"mtu": 10}, "MTU"),
        ({"loss": 0.1, "burst": 0.5}, "one packet or more"),
        ({"loss": 0.7, "burst": 2}, "67% at most"),
    ],
)
def test_links_that_make_no_sense(wrong: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Link(**wrong)  # type: ignore[arg-type]


async def burst(net: Network, link: Link, count: int) -> list[tuple[float, int]]:
    """(Arrival, number) of datagrams that are sent together."""
    a, b = await bound(net.host("a", link=(link, Link())), 1), await bound(net.host("b"), 1)
    b.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
    for number in range(count):
        await a.sendto(number.to_bytes(2, "big") + bytes(98), (b.host.ip, 1))  # type: ignore[attr-defined]
    arrivals = []
    while (found := await receive(b, 60)) is not None:
        arrivals.append((trio.current_time(), int.from_bytes(found[0][:2], "big")))
    a.close()
    b.close()
    return arrivals


def test_jitter_spreads_and_keeps_the_order() -> None:
    found = run(lambda net: burst(net, Link(latency=1, jitter=0.5), 200))
    assert [n for _, n in found] == list(range(200))
    assert all(1 <= when <= 1.5 for when, _ in found)
    assert len({when for when, _ in found}) > 3


def test_reordering_holds_some_back() -> None:
    found = run(lambda net: burst(net, Link(latency=1, reorder=0.3, reorder_by=0.2), 200))
    late = [n for when, n in found if when > 1.1]
    assert 30 < len(late) < 90
    assert sorted(n for _, n in found) == list(range(200))
    assert [n for _, n in found] != list(range(200))


def test_loss_and_duplication_come_in_the_share_that_was_asked_for() -> None:
    found = run(lambda net: burst(net, Link(loss=0.2, duplicate=0.1), 1000))
    numbers = [n for _, n in found]
    assert 750 < len(set(numbers)) < 850
    assert 50 < len(numbers) - len(set(numbers)) < 110


def runs_of_losses(passed: list[int], count: int) -> list[int]:
    """The lengths of the runs of lost packets, from the numbers of those that passed."""
    return [after - before - 1 for before, after in pairwise([-1, *passed, count]) if after - before > 1]


def in_bursts(link: Link, fault: Fault | None = None, seed: int = 0) -> list[int]:
    """The numbers of the packets that pass, of 20,000."""

    async def world(net: Network) -> list[int]:
        way = net.host("a", link=(link, Link())).interfaces[0].tx
        if fault is not None:
            net.schedule([fault])
            await trio.sleep(1)
        return [number for number in range(20_000) if not isinstance(way.carry(100, 0.0), str)]

    return run(world, seed=seed)


@pytest.mark.parametrize(("loss", "burst"), [(0.02, 8), (0.12, 25), (0.25, 40), (0.6, 2)])
def test_losses_in_bursts_keep_their_share(loss: float, burst: int) -> None:
    """On links and as faults, share and mean length are within four standard deviations of a geometric distribution."""
    by_link = in_bursts(Link(loss=loss, burst=burst))
    by_fault = in_bursts(Link(), Fault(at=0, target="a:up", kind=Kind.LOSS, value=loss, burst=burst))
    for passed in (by_link, by_fault):
        runs = runs_of_losses(passed, 20_000)
        few = 4 / len(runs) ** 0.5
        assert sum(runs) / 20_000 == pytest.approx(loss, rel=2 * few)
        assert sum(runs) / len(runs) == pytest.approx(burst, rel=few)
    assert in_bursts(Link(loss=loss, burst=burst)) == by_link != in_bursts(Link(loss=loss, burst=burst), seed=1)


def test_a_burst_of_one_is_loss_that_knows_nothing_of_what_was_lost() -> None:
    passed = in_bursts(Link(loss=0.5))
    runs = runs_of_losses(passed, 20_000)
    assert passed == in_bursts(Link(loss=0.5, burst=1))
    assert sum(runs) / len(runs) == pytest.approx(2, rel=0.1)


def test_all_is_lost_in_bursts_of_any_length() -> None:
    assert in_bursts(Link(loss=1, burst=7)) == []


def test_the_two_ways_of_a_link_have_their_own_bursts() -> None:
    async def world(net: Network) -> None:
        link = net.host("a").interfaces[0]
        net.schedule([Fault(at=0, target="a", kind=Kind.LOSS, value=0.3, burst=10)])
        await trio.sleep(1)
        up, down = ([isinstance(way.carry(100, 0.0), str) for _ in range(1000)] for way in (link.tx, link.rx))
        assert up != down

    run(world)


def test_bandwidth_queues_and_drops() -> None:
    link = Link(bandwidth=128 * 8 * 10, queue=128 * 20)  # ten datagrams a second, twenty may wait
    found = run(lambda net: burst(net, link, 50))
    assert [n for _, n in found] == list(range(20))
    assert found[0][0] == pytest.approx(0.1)
    assert found[-1][0] == pytest.approx(2.0)


# Luck
def test_bystanders_change_nobodys_luck() -> None:
    """Each purpose has its own named stream of random numbers."""

    async def lonely(net: Network) -> list[tuple[float, int]]:
        return await burst(net, Link(latency=0.1, jitter=0.1, loss=0.3, duplicate=0.2), 100)

    async def crowded(net: Network) -> list[tuple[float, int]]:
        noisy = await bound(net.lan("home", nat=presets.LINUX_SYMMETRIC, uplink=Link(loss=0.5)).host("noisy"), 5)

        async def chatter() -> None:
            for n in range(50):
                await noisy.sendto(b"x", ("11.9.9.9", 1 + n))
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(chatter)
            found = await burst(net, Link(latency=0.1, jitter=0.1, loss=0.3, duplicate=0.2), 100)
        noisy.close()
        return found

    assert [n for _, n in run(lonely)] == [n for _, n in run(crowded)]


# Faults
def test_faults_print_as_the_code_that_makes_them() -> None:
    fault = Fault(at=1.5, target="home:up", kind=Kind.LOSS, until=3, value=0.25)
    assert repr(fault) == "Fault(at=1.5, target='home:up', kind=Kind.LOSS, until=3, value=0.25)"
    assert eval(repr(fault)) == fault
    hole = Fault(at=0, target="a", kind=Kind.PAYLOAD_HOLE, value=600, after=3)
    assert repr(hole) == "Fault(at=0, target='a', kind=Kind.PAYLOAD_HOLE, value=600, after=3)"
    assert eval(repr(hole)) == hole
    bursts = Fault(at=0, target="a", kind=Kind.LOSS, value=0.25, burst=8)
    assert repr(bursts) == "Fault(at=0, target='a', kind=Kind.LOSS, value=0.25, burst=8)"
    assert eval(repr(bursts)) == bursts
    path = Fault(at=0, target="a", kind=Kind.BLACKHOLE, peer="b")
    assert repr(path) == "Fault(at=0, target='a', kind=Kind.BLACKHOLE, peer='b')"
    assert eval(repr(path)) == path
    assert eval(repr(Fault(at=0, target="a", kind=Kind.REBOOT))) == Fault(at=0, target="a", kind=Kind.REBOOT)


def test_bad_faults_are_refused() -> None:
    with pytest.raises(ValueError, match="lasts"):
        Fault(at=2, until=1, target="a", kind=Kind.LOSS)
    with pytest.raises(ValueError, match="no sense"):
        Fault(at=2, target="a", kind=Kind.LOSS, value=2)
    with pytest.raises(ValueError, match="at most"):
        Fault(at=2, target="a", kind=Kind.LOSS, value=0.9, burst=2)
    for wrong in ({"kind": Kind.PAYLOAD_HOLE, "after": -1}, {"kind": Kind.MTU_BLACKHOLE, "after": 3}):
        with pytest.raises(ValueError, match="makes no sense"):
            Fault(at=2, target="a", value=600, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no bursts"):
        Fault(at=2, target="a", kind=Kind.DELAY, value=2, burst=2)
    with pytest.raises(ValueError, match="befalls all"):
        Fault(at=2, target="a", kind=Kind.SLEEP, peer="b")

    async def world(net: Network) -> None:
        net.host("a")
        with pytest.raises(ValueError, match="there is no 'b'"):
            net.schedule([Fault(at=0, target="b", kind=Kind.LOSS)])
        with pytest.raises(ValueError, match="there is no 'a:side'"):
            net.schedule([Fault(at=0, target="a:side", kind=Kind.LOSS)])
        with pytest.raises(ValueError, match="there is no 'b'"):
            net.schedule([Fault(at=0, target="a", kind=Kind.BLACKHOLE, peer="b")])
        with pytest.raises(ValueError, match="no router"):
            net.schedule([Fault(at=0, target="a", kind=Kind.REBIND)])

    run(world)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (Kind.LOSS, 1.0, [1, 0, 0, 1]),
        (Kind.BLACKHOLE, 0.0, [1, 0, 0, 1]),
        (Kind.DUPLICATE, 1.0, [1, 2, 2, 1]),
        (Kind.MTU_BLACKHOLE, 100.0, [1, 1, 0, 1]),
    ],
)
def test_faults_of_links(kind: Kind, value: float, expected: list[int]) -> None:
    async def world(net: Network) -> None:
        a, b = await bound(net.host("a"), 1), await bound(net.host("b"), 1)
        net.schedule([Fault(at=10, until=20, target="a:up", kind=kind, value=value)])
        counts = []
        for when, size in ((5, 10), (12, 10), (14, 200), (25, 200)):
            await trio.sleep_until(when)
            await a.sendto(bytes(size), (b.host.ip, 1))  # type: ignore[attr-defined]
            await trio.sleep(0.5)
            counts.append(0)
            while b.is_readable():
                await b.recv(1000)
                counts[-1] += 1
        assert counts == expected
        a.close()
        b.close()

    run(world)


def test_a_payload_hole_lets_the_first_large_packets_pass() -> None:
    """Each direction and each fault has its own count, and small packets always pass."""

    async def world(net: Network) -> None:
        way = net.host("a").interfaces[0]

        def passing(*sizes: int, down: bool = False) -> list[bool]:
            return [not isinstance((way.rx if down else way.tx).carry(size, 0.0), str) for size in sizes]

        net.schedule([Fault(at=1, until=10, target="a", kind=Kind.PAYLOAD_HOLE, value=600, after=3)])
        assert passing(700, 700, 700, 700) == 4 * [True]
        await trio.sleep(2)
        assert passing(700, 100, 601, 600, 700, 700, 100, 600, 1500) == [*5 * [True], False, True, True, False]
        assert passing(700, 700, 700, 700, 700, down=True) == [True, True, True, False, False]
        net.schedule([Fault(at=0, until=20, target="a:up", kind=Kind.PAYLOAD_HOLE, value=100, after=1)])
        await trio.sleep(9)
        assert passing(700, 200, 100) == [True, False, True]
        await trio.sleep(20)
        assert passing(700, 700) == [True, True]

    run(world)


def test_a_fault_may_concern_one_path_alone() -> None:
    """Packets to a router's other peers pass; the peer's current addresses count."""

    async def world(net: Network) -> None:
        lan = net.lan("home", nat=presets.LINUX)
        net.lan("other", nat=presets.LINUX)
        a, b, c = [await bound(host, 1000) for host in (lan.host("a"), net.host("b"), net.host("c"))]

        async def passing(way: str) -> list[bool]:
            """Whether datagrams pass in direction `way` between a and b, and between a and c."""
            found = []
            for other in (b, c):
                await a.sendto(b"?", (other.host.ip, 1000))  # type: ignore[attr-defined]
                asked = await receive(other, 1)
                if asked is not None:
                    await other.sendto(b"!", asked[1])
                answered = await receive(a, 1)
                found.append((asked if way == "home:up" else answered) is not None)
            return found

        for way in ("home:up", "home:down"):
            net.schedule([Fault(at=0, until=10, target=way, kind=Kind.BLACKHOLE, peer="b")])
            assert await passing(way) == [False, True]
            net.hosts["b"].change_address()
            net.schedule([Fault(at=0, until=10, target=way, kind=Kind.BLACKHOLE, peer="other")])
            assert await passing(way) == [False, True]
            await trio.sleep(10)
            assert await passing(way) == [True, True]
        for each in (a, b, c):
            each.close()

    run(world)


def test_delay_and_reordering() -> None:
    async def world(net: Network) -> None:
        a, b = await bound(net.host("a", link=Link(latency=0.1)), 1), await bound(net.host("b"), 1)
        to = (b.host.ip, 1)  # type: ignore[attr-defined]
        net.schedule([Fault(at=0, until=1, target="a", kind=Kind.DELAY, value=0.4)])
        await trio.sleep(0.5)
        await a.sendto(b"x", to)
        assert await receive(b, 5) is not None
        assert trio.current_time() == pytest.approx(1.0)
        net.schedule([Fault(at=0, until=0.5, target="a", kind=Kind.REORDER, value=1)])
        await trio.sleep(0.4)
        await a.sendto(b"first", to)
        await trio.sleep(0.105)
        await a.sendto(b"second", to)
        assert await receive(b, 5) == (b"first", (a.host.ip, 1))  # type: ignore[attr-defined]
        a.close()
        b.close()

    run(world)


def test_faults_of_routers() -> None:
    async def world(net: Network) -> None:
        lan = net.lan("home", nat=presets.LINUX)
        a, b = await bound(lan.host("a"), 1000), await bound(net.host("b"), 1)
        to = (b.host.ip, 1)  # type: ignore[attr-defined]
        net.schedule(
            [Fault(at=10, until=20, target="home", kind=Kind.REBOOT), Fault(at=30, target="home", kind=Kind.REBIND)]
        )
        seen = []
        for when in (5, 15, 25, 35):
            await trio.sleep_until(when)
            await a.sendto(b"?", to)
            found = await receive(b, 1)
            seen.append(None if found is None else found[1])
        assert seen[0] == seen[2] is not None
        assert seen[1] is None
        assert seen[3] not in (None, seen[0])
        a.close()
        b.close()

    run(world)


# Presets
async def round_trip(net: Network, link: Link) -> float:
    a, b = await bound(net.host("a", link=link), 1), await bound(net.host("b"), 1)
    await a.sendto(b"", (b.host.ip, 1))  # type: ignore[attr-defined]
    assert await receive(b, 60) is not None
    await b.sendto(b"", (a.host.ip, 1))  # type: ignore[attr-defined]
    assert await receive(a, 60) is not None
    a.close()
    b.close()
    return trio.current_time()


@pytest.mark.parametrize(
    ("name", "mbit", "rtt", "loss", "burst"),
    [
        ("fibre", 100, 0.016, 0.001, 1),
        ("cable", 25, 0.04, 0.01, 6),
        ("dsl", 8, 0.09, 0.02, 8),
        ("mobile", 3, 0.2, 0.03, 10),
        ("weak-mobile", 1.5, 0.3, 0.05, 12),
        ("crowded-mobile", 0.8, 0.45, 0.08, 20),
        ("satellite", 25, 0.6, 0.015, 6),
        ("fading", 0.5, 0.45, 0.12, 25),
        ("last-bar", 0.256, 0.8, 0.25, 40),
    ],
)
def test_the_nine_links(name: str, mbit: float, rtt: float, loss: float, burst: int) -> None:
    """The named round trip is that to a peer without delay, and the queue holds the data of one round trip."""
    link = presets.LINKS[name]
    assert (link.bandwidth, link.loss, link.burst) == (mbit * 1e6, loss, burst)
    kind = replace(link, loss=0, burst=1)
    assert run(lambda net: round_trip(net, kind)) == pytest.approx(rtt, abs=2.1 * 28 * 8 / link.bandwidth)

    async def flood(net: Network) -> int:
        """How many full packets of a burst pass."""
        way = net.host("a", link=kind).interfaces[0].tx
        return sum(not isinstance(way.carry(1500, 0.0), str) for _ in range(2000))

    assert run(flood) == mbit * 1e6 * rtt / 8 // 1500 >= 10
    assert len(presets.LINKS) == 9
