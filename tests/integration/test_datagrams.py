"""Batches of datagrams: the same checks on the kernel's sockets and on the simulator's."""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable
from typing import NoReturn

import pytest
import trio
import trio.testing

from tests.cancel_sweep import cuts
from tests.hangs import HANG
from tests.sim.worlds import run
from warpgate_trio.conflict import Conflict
from warpgate_trio.ports.datagrams import BATCH, MAX_DATAGRAM, MAX_ERRORS, Datagram, DatagramSocket
from warpgate_trio.sim import Network

Check = Callable[[DatagramSocket, DatagramSocket], Awaitable[None]]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


async def on_sockets(function: Check, address: str) -> None:
    with trio.fail_after(HANG):
        ends = [await DatagramSocket.bind((address, 0)) for _ in range(2)]
        try:
            await function(*ends)
        finally:
            for end in ends:
                end.close()
                end.close()
                assert end.fileno() == -1


@pytest.mark.parametrize(
    "address", ["127.0.0.1", pytest.param("::1", marks=pytest.mark.needs("ipv6"))], ids=["ipv4", "ipv6"]
)
@pytest.mark.parametrize("function", CHECKS, ids=lambda function: function.__name__)
async def test_on_the_kernel(function: Check, address: str) -> None:
    await on_sockets(function, address)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("function", CHECKS, ids=lambda function: function.__name__)
def test_in_the_simulator(function: Check, address: str) -> None:
    async def world(net: Network) -> None:
        await net.host("a").run(on_sockets, function, address)

    run(world)


# The checks


@check
async def batches_go_whole_and_come_in_order(a: DatagramSocket, b: DatagramSocket) -> None:
    sent = [b"%d" % number for number in range(BATCH + 10)]
    await a.send_batch([(data, b.local) for data in sent])
    got: list[Datagram] = []
    while len(got) < len(sent):
        batch = await b.receive_batch()
        assert 1 <= len(batch) <= BATCH
        got += batch
    assert got == [(data, a.local) for data in sent]


@check
async def a_batch_is_no_longer_than_asked(a: DatagramSocket, b: DatagramSocket) -> None:
    await a.send_batch([(b"%d" % number, b.local) for number in range(5)])
    await trio.testing.wait_all_tasks_blocked()
    got: list[bytes] = []
    while len(got) < 5:
        batch = await b.receive_batch(2)
        assert len(batch) <= 2
        got += [data for data, _ in batch]
    assert got == [b"0", b"1", b"2", b"3", b"4"]


@check
async def each_call_is_a_checkpoint(a: DatagramSocket, b: DatagramSocket) -> None:
    with trio.testing.assert_checkpoints():
        await a.send_batch([])
    with trio.testing.assert_checkpoints():
        await a.send_batch([(b"x", b.local)])
    with trio.testing.assert_checkpoints():
        assert await b.receive_batch() == [(b"x", a.local)]


@check
async def a_cancelled_receive_loses_nothing(a: DatagramSocket, b: DatagramSocket) -> None:
    got: list[bytes] = []
    number = 0
    for cut in cuts():
        await a.send_batch([(b"%d" % number, b.local)])
        number += 1
        with cut:
            got += [data for data, _ in await b.receive_batch()]
    while len(got) < number:
        got += [data for data, _ in await b.receive_batch()]
    assert got == [b"%d" % each for each in range(number)]


@check
async def a_receive_that_waits_is_cancelled(a: DatagramSocket, b: DatagramSocket) -> None:
    with trio.move_on_after(0.01) as scope:
        await b.receive_batch()
    assert scope.cancelled_caught


@check
async def a_cancelled_send_sends_nothing_more(a: DatagramSocket, b: DatagramSocket) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await a.send_batch([(b"never", b.local)])
    await a.send_batch([(b"x", b.local)])
    assert await b.receive_batch() == [(b"x", a.local)]


@check
async def what_cannot_be_sent_is_counted_and_dropped(a: DatagramSocket, b: DatagramSocket) -> None:
    host, _ = b.local
    await a.send_batch(
        [
            (b"first", b.local),
            (bytes(70_000), b.local),
            (b"no port", (host, 0)),
            (b"no such port", (host, 1 << 16)),
            (b"last", b.local),
        ]
    )
    got: list[bytes] = []
    while len(got) < 2:
        got += [data for data, _ in await b.receive_batch()]
    assert got == [b"first", b"last"]
    assert a.errors == {"EMSGSIZE": 1, "EINVAL": 1, "OverflowError": 1}


@check
async def what_is_too_long_is_counted_and_dropped(a: DatagramSocket, b: DatagramSocket) -> None:
    sizes = [MAX_DATAGRAM, MAX_DATAGRAM + 1, 60_000, 0]
    await a.send_batch([(bytes(size), b.local) for size in sizes])
    got: list[bytes] = []
    while len(got) < 2:
        got += [data for data, _ in await b.receive_batch()]
    assert got == [bytes(MAX_DATAGRAM), b""]
    assert b.errors == {"oversize": 2}


@check
async def hops_are_of_one_batch(a: DatagramSocket, b: DatagramSocket) -> None:
    option = (
        (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
        if a.family == socket.AF_INET6
        else (socket.IPPROTO_IP, socket.IP_TTL)
    )
    a.setsockopt(*option, 17)
    await a.send_batch([(b"near", b.local)], hops=1)
    assert a.getsockopt(*option) == 17
    assert await b.receive_batch() == [(b"near", a.local)]


@check
async def closing_wakes_a_receiver(a: DatagramSocket, b: DatagramSocket) -> None:
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await b.receive_batch()

        await trio.testing.wait_all_tasks_blocked()
        b.close()
    with pytest.raises(trio.ClosedResourceError):
        await b.receive_batch()
    with pytest.raises(trio.ClosedResourceError):
        await b.send_batch([(b"x", a.local)])


# What only one of the two can show


class Stub:
    """A socket whose calls return what the test wants."""

    family = socket.AF_INET

    def __init__(self, reads: int = 0, writes: int = 0) -> None:
        self.reads, self.writes = reads, writes
        self.sent: list[bytes] = []
        self.ttl = 64
        self.ttls: list[int] = []
        self.waiting: list[int] = []
        self._one_waits = Conflict("another task waits for this descriptor")

    def recvfrom_nowait(self, size: int, /) -> tuple[bytes, tuple[str, int]]:
        if self.reads:
            self.reads -= 1
            raise ConnectionResetError(errno.ECONNRESET, "somebody else's port is closed")
        return b"x", ("192.0.2.1", 1)

    def sendto_nowait(self, data: bytes, address: object, /) -> int:
        if self.writes:
            self.writes -= 1
            raise BlockingIOError
        self.writes = 1
        self.sent.append(data)
        self.ttls.append(self.ttl)
        return len(data)

    async def wait_readable(self) -> NoReturn:
        raise AssertionError("it has something to say")

    async def wait_writable(self) -> None:
        with self._one_waits:  # as in Trio's own sockets
            await trio.lowlevel.checkpoint()
            self.waiting.append(self.ttl)

    def getsockname(self) -> tuple[str, int, int, int]:
        return "fe80::1", 5, 0, 2

    def setsockopt(self, level: int, optname: int, value: int, /) -> None:
        self.ttl = value

    def getsockopt(self, level: int, optname: int, /) -> int:
        return self.ttl

    def fileno(self) -> int:
        return 0

    def close(self) -> None:
        pass


def over(stub: Stub) -> DatagramSocket:
    return DatagramSocket(stub)  # type: ignore[arg-type]


async def test_errors_of_reading_are_counted_until_there_is_nothing_else() -> None:
    sock = over(Stub(reads=3))
    assert len(await sock.receive_batch()) == BATCH - 3
    assert sock.errors == {"ECONNRESET": 3}
    sock = over(Stub(reads=1 << 30))
    with pytest.raises(trio.BrokenResourceError, match="every read of the socket fails"):
        await sock.receive_batch()
    assert sock.errors == {"ECONNRESET": MAX_ERRORS}


async def test_a_full_socket_is_waited_for_with_its_usual_ttl() -> None:
    stub = Stub(writes=1)
    batch = [(b"%d" % number, ("192.0.2.1", 1)) for number in range(3)]
    await over(stub).send_batch(batch, hops=3)
    assert stub.sent == [b"0", b"1", b"2"]
    assert stub.ttls == [3, 3, 3]
    assert set(stub.waiting) == {64}


async def test_any_number_of_tasks_wait_for_a_full_socket() -> None:
    stub = Stub(writes=1)
    sock = over(stub)
    async with trio.open_nursery() as nursery:
        for sender in range(3):
            nursery.start_soon(sock.send_batch, [(b"%d" % sender, ("192.0.2.1", 1))] * 2)
    assert sorted(stub.sent) == [b"0", b"0", b"1", b"1", b"2", b"2"]


async def test_who_waits_for_a_full_socket_hears_that_it_was_closed() -> None:
    sock = await DatagramSocket.bind(("127.0.0.1", 0))
    sock._sock.sendto_nowait = Stub(writes=1 << 30).sendto_nowait  # type: ignore[method-assign]
    heard: list[str] = []

    async def send() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await sock.send_batch([(b"x", ("127.0.0.1", 1))])
        heard.append("closed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        nursery.start_soon(send)
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        sock.close()
    assert heard == ["closed", "closed"]


async def test_datagrams_in_a_row_that_find_no_way_out_are_counted() -> None:
    stub = Stub()
    sock = over(stub)
    answers: list[int | None] = []

    def send(data: bytes, address: object, /) -> int:
        number = answers.pop(0)
        if number is not None:
            raise OSError(number, "no")
        return len(data)

    stub.sendto_nowait = send  # type: ignore[method-assign]
    for number, expected in [
        (errno.ENETUNREACH, 1),
        (errno.EHOSTUNREACH, 2),
        (errno.EMSGSIZE, 2),
        (errno.EPERM, 3),
        (None, 0),
        (errno.EPERM, 1),
    ]:
        answers.append(number)
        await sock.send_batch([(b"x", ("192.0.2.1", 1))])
        assert sock.unreachable == expected
    assert sock.errors == {"ENETUNREACH": 1, "EHOSTUNREACH": 1, "EMSGSIZE": 1, "EPERM": 2}


def test_a_scope_is_part_of_the_address() -> None:
    assert over(Stub()).local == ("fe80::1%2", 5)


async def test_no_socket_stays_when_it_cannot_be_bound() -> None:
    with pytest.raises(OSError, match="assign"):
        await DatagramSocket.bind(("192.0.2.1", 0))
