"""Hosts that sleep: for the network they are gone; for their programs nothing happens."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Awaitable, Callable

import pytest
import trio

from tests.sim.programs import bound, receive
from tests.sim.worlds import run
from warpgate_trio.sim import Fault, Host, Kind, Link, Network, presets
from warpgate_trio.testing import SimulatedHost, simulated_machine

LINK = Link(latency=0.02)


def asleep(begin: float, end: float, who: str = "alice") -> Fault:
    return Fault(at=begin, until=end, target=who, kind=Kind.SLEEP)


async def connected(a: Host, b: Host) -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    with b, trio.socket.socket() as listener:
        await listener.bind((b.ip, 80))
        listener.listen()
        with a:
            dialled = trio.socket.socket()
        await dialled.connect((b.ip, 80))
        return dialled, (await listener.accept())[0]


def test_its_clocks_tell_of_it() -> None:
    """Wall time and CLOCK_BOOTTIME go on, CLOCK_MONOTONIC does not."""

    async def world(net: Network) -> None:
        alice, bob = net.host("alice"), net.host("bob")
        net.schedule([asleep(10, 110), asleep(50, 210), asleep(300, 400)])
        wall, seen = alice.wall_time(), []
        for when in (5, 10.5, 120, 220, 350, 500):
            await trio.sleep_until(when)
            with alice:
                assert time.monotonic() + SimulatedHost(alice).asleep() == pytest.approx(when)
                assert time.time() - wall == pytest.approx(when)
            seen.append((alice.is_asleep, alice.asleep()))
        assert [each for each, _ in seen] == [False, True, True, False, True, False]
        assert [each for _, each in seen] == pytest.approx([0, 0.5, 110, 200, 250, 300])
        assert bob.asleep() == 0

    with simulated_machine():
        run(world)


def test_it_hears_nothing_and_says_nothing() -> None:
    async def world(net: Network) -> None:
        alice, bob = net.host("alice", link=LINK), net.host("bob")
        a, b = await bound(alice, 1), await bound(bob, 1)
        net.schedule([asleep(10, 20)])
        sent: list[float] = []

        async def chatter(sock: trio.socket.SocketType, to: Host) -> None:
            for second in range(30):
                await trio.sleep_until(second + 0.5)
                await sock.sendto(bytes([second]), (to.ip, 1))
                if to is bob:
                    sent.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(chatter, a, bob)
            nursery.start_soon(chatter, b, alice)
            await trio.sleep(29.9)
        heard: dict[str, list[int]] = {"alice": [], "bob": []}
        for name, sock in (("alice", a), ("bob", b)):
            while sock.is_readable():
                heard[name].append((await sock.recv(10))[0])
            sock.close()
        assert heard["alice"] == [*range(10), *range(20, 30)]
        # The send that was due at 10.5 s went on at the wake-up, and the following ones had waited for it.
        assert heard["bob"] == list(range(30))
        assert sent[10:20] == [20.0] * 10

    run(world)


def test_a_connection_outlives_any_sleep_and_goes_on_with_it() -> None:
    """TCP gives up after a quarter of an hour of retransmitting; a sleeping host does not retransmit."""

    async def world(net: Network) -> None:
        alice, bob = net.host("alice", link=LINK), net.host("bob", link=LINK)
        ours, theirs = await connected(alice, bob)
        net.schedule([asleep(10, 10_010), Fault(at=5, until=10_005, target="alice:up", kind=Kind.BLACKHOLE)])
        await trio.sleep_until(trio.current_time() + 9.5)
        await ours.send(b"written before")
        with trio.fail_after(10_010):
            assert await theirs.recv(100) == b"written before"
        woken = 10_010 + 4 * 0.02
        assert woken < trio.current_time() < woken + 2  # the rest of its retransmission timer
        alices = [each for each in net.trace.latest() if each.node == "alice" and each.event == "send"]
        assert not [each for each in alices if 11 < each.time < 10_009]
        await theirs.send(b"answer")
        assert await ours.recv(100) == b"answer"
        ours.close()
        theirs.close()
        await trio.sleep(100)
        assert not net.netstat().lingering

    run(world)


def test_what_its_peer_says_meanwhile_comes_when_it_wakes() -> None:
    async def world(net: Network) -> None:
        alice, bob = net.host("alice", link=LINK), net.host("bob", link=LINK)
        ours, theirs = await connected(alice, bob)
        net.schedule([asleep(1, 31)])
        await trio.sleep(2)
        await theirs.send(b"news")
        assert await ours.recv(100) == b"news"
        assert 31 < trio.current_time() < 60  # by bob's retransmission timer, which has doubled meanwhile
        ours.close()
        theirs.close()

    run(world)


def test_timers_count_the_time_awake() -> None:
    """A timer that is due in mid-sleep, one that is due after the sleep, and one that is set in mid-sleep."""

    async def world(net: Network) -> None:
        alice = net.host("alice")
        net.schedule([asleep(10, 30), asleep(40, 45)])
        rung: dict[str, float] = {}

        def set_timer(name: str, when: float) -> None:
            alice.clock.at(when, lambda: rung.__setitem__(name, trio.current_time()))

        set_timer("before", 9)
        set_timer("meanwhile", 12)
        set_timer("after", 19)
        set_timer("after both", 25)
        await trio.sleep(20)
        assert alice.clock.now == 10
        set_timer("at once", 10)
        await trio.sleep(50)
        assert rung == {"before": 9, "at once": 30, "meanwhile": 32, "after": 39, "after both": 50}

    run(world)


def test_what_is_closed_in_mid_sleep_says_so_afterwards() -> None:
    async def world(net: Network) -> None:
        ours, theirs = await connected(net.host("alice", link=LINK), net.host("bob", link=LINK))
        net.schedule([asleep(1, 31)])
        await trio.sleep(2)
        ours.close()
        assert await theirs.recv(100) == b""
        assert trio.current_time() > 31
        theirs.close()

    run(world)


Call = Callable[[Host, Host], Awaitable[object]]


async def look_up(alice: Host, bob: Host) -> None:
    with alice:
        await trio.socket.getaddrinfo("bob", 80)


async def dial(alice: Host, bob: Host) -> None:
    with alice, trio.socket.socket() as sock, pytest.raises(ConnectionRefusedError):
        await sock.connect((bob.ip, 81))


async def send(alice: Host, bob: Host) -> None:
    with await bound(alice) as sock:
        await sock.sendto(b"x", (bob.ip, 9))


async def connect_udp(alice: Host, bob: Host) -> None:
    with await bound(alice) as sock:
        await sock.connect((bob.ip, 9))


async def wait_writable(alice: Host, bob: Host) -> None:
    with await bound(alice) as sock, alice:
        await trio.lowlevel.wait_writable(sock.fileno())


async def receive_what_is_there(alice: Host, bob: Host) -> None:
    with await bound(alice, 7) as sock:
        assert await sock.recv(10) == b"early"


@pytest.mark.parametrize("call", [look_up, dial, send, connect_udp, wait_writable, receive_what_is_there])
def test_a_call_returns_when_it_wakes(call: Call) -> None:
    async def world(net: Network) -> None:
        alice, bob = net.host("alice"), net.host("bob")

        async def begin_awake() -> None:
            with await bound(alice, 7) as first, await bound(bob) as there:
                await there.sendto(b"early", (alice.ip, 7))
                await trio.sleep(2)  # asleep by then
                assert await first.recv(10) == b"early"
                assert trio.current_time() == 10

        net.schedule([asleep(1, 10)])
        if call is receive_what_is_there:
            await begin_awake()
            return
        await trio.sleep(2)
        with trio.move_on_after(3) as cancelled:
            await call(alice, bob)
        assert cancelled.cancelled_caught
        await call(alice, bob)
        assert trio.current_time() == 10

    run(world)


def test_who_waits_for_a_socket_that_is_closed_meanwhile_is_told() -> None:
    async def world(net: Network) -> None:
        alice, bob = net.host("alice"), net.host("bob")
        sock = await bound(alice)
        net.schedule([asleep(1, 10)])
        await trio.sleep(2)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await sock.sendto(b"x", (bob.ip, 9))
                assert trio.current_time() == 10

            await trio.sleep(1)
            sock.close()

    run(world)


def test_calls_that_cannot_wait_would_block() -> None:
    async def world(net: Network) -> None:
        alice, bob = net.host("alice"), net.host("bob")
        mine, there = await bound(alice, 1), await bound(bob, 1)
        await there.sendto(b"early", (alice.ip, 1))
        with alice:
            plain = socket.socket(type=socket.SOCK_DGRAM)
        plain.setblocking(False)
        net.schedule([asleep(1, 10)])
        await trio.sleep(2)
        calls: list[Callable[[], object]] = [
            lambda: mine.sendto_nowait(b"x", (bob.ip, 1)),  # type: ignore[attr-defined]
            lambda: mine.recvfrom_nowait(10),  # type: ignore[attr-defined]
            lambda: plain.sendto(b"x", (bob.ip, 1)),
        ]
        for call in calls:
            with pytest.raises(BlockingIOError) as caught:
                call()
            assert caught.value.errno == errno.EAGAIN
        await trio.sleep(10)
        assert calls[0]() == 1
        assert await receive(there, 1) is not None
        for sock in (mine, there, plain):
            sock.close()

    run(world)


def test_a_deadline_comes_in_mid_sleep_and_nothing_of_it_gets_out() -> None:
    """This is a limit of the model, which has one clock for all hosts."""

    async def world(net: Network) -> None:
        alice, bob = net.host("alice"), net.host("bob")
        a, b = await bound(alice, 1), await bound(bob, 1)
        net.schedule([asleep(1, 10)])
        with trio.move_on_after(5):
            await a.recv(10)
        assert trio.current_time() == 5
        await a.sendto(b"nothing came", (bob.ip, 1))
        assert await receive(b, 1) is not None
        assert trio.current_time() == 10
        a.close()
        b.close()

    run(world)


def test_only_a_host_sleeps_and_both_ways() -> None:
    async def world(net: Network) -> None:
        net.lan("home", nat=presets.LINUX).host("alice")
        for target in ("home", "alice:up"):
            with pytest.raises(ValueError, match="a host as a whole"):
                net.schedule([asleep(1, 2, target)])

    run(world)
    fault = asleep(1, 2)
    assert eval(repr(fault)) == fault
