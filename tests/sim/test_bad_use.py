"""Misuse of the simulator gets a clear error, and a way to see what happened."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import anyio
import pytest
import trio
import trio.testing

from tests.sim.programs import bound, reaches
from tests.sim.worlds import run
from warpgate_trio.sim import (
    Host,
    Link,
    Network,
    presets,
    reality,
    simulate,
)


def test_wrong_clocks_are_refused() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="virtual time"):
            async with Network():
                raise AssertionError

    trio.run(main)
    trio.run(main, clock=trio.testing.MockClock())


def test_a_network_is_entered_once() -> None:
    net = Network()

    async def main() -> None:
        async with net:
            pass

    simulate(main)
    with pytest.raises(RuntimeError, match="entered once"):
        simulate(main)


def test_building_mistakes() -> None:
    async def world(net: Network) -> None:
        net.host("a", address="11.0.0.5")
        with pytest.raises(ValueError, match="already"):
            net.host("a")
        with pytest.raises(ValueError, match="taken by a"):
            net.host("b", address="11.0.0.5")
        with pytest.raises(ValueError, match="does not belong"):
            net.host("c", address="192.0.2.1")
        with pytest.raises(ValueError, match="does not appear"):
            net.host("d", address="nonsense")
        assert list(net.hosts) == ["a"]
        assert net.host("d").ip == "11.0.0.1"  # as if nothing had happened
        with pytest.raises(ValueError, match="no host has"):
            net.add_name("x", "11.7.7.7")
        with pytest.raises(LookupError, match="no IPv6"):
            _ = net.hosts["a"].ip6
        with pytest.raises(RuntimeError, match="no IPv4 NAT"):
            router = net.lan("plain").router
            assert router is not None
            router.change_address()
        with pytest.raises(ValueError, match="no IPv4 block"):
            net.lan("home", nat=presets.OPEN).lan("inner")
        with pytest.raises(OSError, match="no sockets of address family"), net.hosts["a"]:
            trio.socket.socket(socket.AF_UNIX)

    run(world)


async def beat() -> None:
    while True:  # noqa: ASYNC110 - so that the clock has a next deadline
        await trio.sleep(1)


async def with_a_limiter_of_its_own() -> None:
    await trio.to_thread.run_sync(open, __file__, limiter=trio.CapacityLimiter(1))


async def by_anyio() -> None:
    await anyio.Path(__file__).read_text()


async def a_pipe() -> None:
    reading, writing = os.pipe()
    try:
        await trio.lowlevel.wait_readable(reading)
    finally:
        os.close(reading)
        os.close(writing)


async def a_socket() -> None:
    left, right = socket.socketpair()
    with trio.socket.from_stdlib_socket(left), right:
        await trio.socket.from_stdlib_socket(left).recv(1)


REALITY: list[tuple[Callable[[], Awaitable[object]], str]] = [
    (partial(trio.to_thread.run_sync, sum, ()), "a thread for sum "),
    (with_a_limiter_of_its_own, "a thread for open "),
    (trio.Path(__file__).read_text, r"a thread for \S*read_text "),
    (partial(trio.open_file, __file__), "a thread for open "),
    (by_anyio, r"a thread for \S*read_text "),
    (a_pipe, "a real socket, or another descriptor"),
    (a_socket, "a real socket"),
]


@pytest.mark.parametrize(("real", "said"), REALITY)
@pytest.mark.parametrize("quiet", [True, False])
def test_threads_and_real_descriptors_are_named_at_once(
    real: Callable[[], Awaitable[object]], said: str, quiet: bool
) -> None:
    """Also if no packet moves and no timer runs, and before the clock advances."""

    async def main() -> None:
        async with Network() as net:
            net.host("a")
            try:
                async with trio.open_nursery() as nursery:
                    if not quiet:
                        nursery.start_soon(beat)
                    await real()
            finally:
                assert trio.current_time() == 0

    for _ in range(3):
        with pytest.raises((RuntimeError, ExceptionGroup)) as caught:
            simulate(main)
        (error,) = caught.value.exceptions if isinstance(caught.value, ExceptionGroup) else [caught.value]
        assert isinstance(error, RuntimeError)
        assert re.match(said, str(error)), error


def test_who_waits_for_a_real_descriptor_is_named() -> None:
    async def main() -> None:
        async with Network():
            await a_pipe()

    with pytest.raises(RuntimeError, match=r"main at .*test_bad_use.py:\d+$"):
        simulate(main)


@pytest.fixture
def real_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


class OwnSocket(socket.socket):
    pass


WAYS_OUT: dict[str, Callable[[socket.socket], object]] = {
    "from_stdlib_socket": trio.socket.from_stdlib_socket,
    "fromfd": lambda sock: trio.socket.fromfd(sock.fileno()),
    "fileno": lambda sock: trio.socket.socket(fileno=sock.fileno()),
    "plain fromfd": lambda sock: socket.fromfd(sock.fileno(), socket.AF_UNIX, socket.SOCK_STREAM),
    "plain fileno": lambda sock: socket.socket(fileno=sock.fileno()),
    "subclass": lambda _: OwnSocket(),
}


@pytest.mark.parametrize("way", WAYS_OUT.values(), ids=WAYS_OUT)
def test_a_simulated_host_has_no_real_sockets(
    way: Callable[[socket.socket], object], real_pair: tuple[socket.socket, socket.socket]
) -> None:
    async def world(net: Network) -> None:
        with net.host("alice"), pytest.raises(RuntimeError, match=r"real machine.* simulated <Host alice"):
            way(real_pair[0])
        assert real_pair[0].getsockname() == ""  # as it was

    run(world)


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_PACKET])
def test_other_families_are_refused(family: int) -> None:
    async def world(net: Network) -> None:
        for make in (socket.socket, trio.socket.socket):
            with net.host(make.__module__), pytest.raises(OSError, match="no sockets of address family"):
                make(family)
        with net.hosts["socket"], pytest.raises(OSError, match="no pairs of sockets of address family"):
            socket.socketpair(socket.AF_INET6)

    run(world)


def test_blocking_sockets_are_refused() -> None:
    async def world(net: Network) -> None:
        net.host("b", link=Link(latency=0.1))
        with net.host("a"), socket.socket() as sock, socket.socket(type=socket.SOCK_DGRAM) as other:
            with pytest.raises(RuntimeError, match=r"socket.connect would block the whole simulation"):
                sock.connect(("b", 80))
            other.bind(("", 9))
            with pytest.raises(RuntimeError, match=r"socket.recv would block"):
                other.recv(1)

    run(world)


def test_flags_that_are_not_simulated_are_refused_by_name() -> None:
    async def world(net: Network) -> None:
        left, right = await net.host("a").run(in_pair)
        with left, right:
            await right.send(b"x")
            for call in (partial(left.send, b"x"), partial(left.recv, 1)):
                with pytest.raises(OSError, match="MSG_OOB") as caught:
                    await call(socket.MSG_OOB)
                assert caught.value.errno == errno.EOPNOTSUPP
            with pytest.raises(OSError, match="MSG_TRUNC"):
                await left.recv(1, socket.MSG_TRUNC)
            with pytest.raises(OSError, match="ancillary"):
                await left.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"")])
            assert await left.recv(1) == b"x"

    run(world)


async def in_pair() -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    return trio.socket.socketpair()


def test_real_sockets_of_the_standard_library_are_back_too() -> None:
    async def main() -> Host:
        async with Network() as net:
            with net.host("a"), socket.socket() as simulated:
                assert simulated.fileno() > 1000
            return net.hosts["a"]

    with simulate(main):  # its network was left
        left, right = socket.socketpair()
        with left, right, socket.socket() as sock:
            assert max(left.fileno(), right.fileno(), sock.fileno()) < 1000
            assert type(sock) is socket.socket


def test_a_trio_whose_threads_start_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("trio._core._thread_cache.ThreadCache.start_thread_soon")
    with pytest.raises(RuntimeError, match="where they start now"):
        reality._refuse_threads.__wrapped__()


def test_threads_are_back_after_a_network() -> None:
    async def main() -> int:
        async with Network():
            pass
        return await trio.to_thread.run_sync(lambda: 5)

    assert simulate(main) == 5


def test_a_run_that_hangs_says_what_it_was_doing() -> None:
    async def main() -> None:
        async with Network(seed=5, time_limit=100) as net:
            a, b = await bound(net.host("alice"), 1), await bound(net.host("bob"), 2)
            await a.sendto(b"anybody?", (b.host.ip, 2))  # type: ignore[attr-defined]
            await a.recvfrom(10)

    with pytest.raises(trio.TooSlowError) as caught:
        simulate(main)
    text = str(caught.value)
    for part in ("100 virtual seconds", "seed 5", "alice", "UDP 11.0.0.1:1 > 11.0.0.2:2"):
        assert part in text


def test_the_bodys_exception_comes_out_bare_with_an_explanation() -> None:
    async def main() -> None:
        async with Network(seed=77) as net:
            net.lan("home", nat=presets.CGN)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        simulate(main)
    (note,) = caught.value.__notes__
    assert "seed 77" in note
    assert "router home 11.0.0.1 NAT cgn" in note


def test_a_group_of_exceptions_comes_out_as_it_is() -> None:
    async def fail() -> None:
        raise KeyError("mine")

    async def main() -> None:
        async with Network(), trio.open_nursery() as nursery:
            nursery.start_soon(fail)

    with pytest.raises(ExceptionGroup) as caught:
        simulate(main)
    assert [type(one) for one in caught.value.exceptions] == [KeyError]


async def test_a_network_in_a_test_of_pytest_trio(autojump_clock: trio.testing.MockClock) -> None:
    async with Network() as net:
        a, b = await bound(net.host("a", link=Link(latency=1)), 1), await bound(net.host("b"), 1)
        assert await reaches(a, b, ("11.0.0.2", 1))
        assert trio.current_time() == 1
        a.close()
        b.close()


def test_a_failure_of_the_wire_comes_out_bare() -> None:
    async def main() -> None:
        async with Network() as net:
            net.wire.after(1, lambda: 1 // 0)
            await trio.sleep_forever()

    with pytest.raises(ZeroDivisionError):
        simulate(main)


def test_cancelling_from_outside() -> None:
    async def main() -> bool:
        with trio.move_on_after(3) as scope:
            async with Network():
                await trio.sleep_forever()
        return scope.cancelled_caught

    assert simulate(main)


def test_real_sockets_are_back_after_a_network() -> None:
    async def main() -> None:
        async with Network():
            pass
        with trio.socket.socket() as sock:
            assert sock.fileno() < 1000

    simulate(main)


def test_netstat_lists_what_is_there() -> None:
    async def world(net: Network) -> None:
        lan = net.lan("home", nat=presets.LINUX)
        a = await bound(lan.host("a"), 1000)
        await a.sendto(b"x", ("11.9.9.9", 9))
        async with trio.open_nursery() as nursery:
            with lan.hosts[0]:
                nursery.start_soon(trio.sleep_forever, name="sleeper")
            found = net.netstat()
            assert found
            assert [line for line in found.sockets if "UdpSocket on a" in line]
            assert found.tasks == ("sleeper on a",)
            assert found.mappings == ("home UDP 10.0.1.1:1000 = 11.0.0.1:1000 for 11.9.9.9:9",)
            assert "sleeper on a" in str(found)
            nursery.cancel_scope.cancel()
        a.close()
        assert not net.netstat()
        await trio.sleep(40)
        assert str(net.netstat()) == "nothing\n"

    run(world)
