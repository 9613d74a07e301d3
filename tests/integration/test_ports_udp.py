"""A UDP port with many users: the same checks on the kernel's sockets and on the simulator's."""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.cancel_sweep import cuts
from tests.hangs import HANG
from tests.panicking import PanicException
from tests.sim.worlds import run
from warpgate_trio.errors import StunError, StunMalformed, StunRefused, StunTimeout
from warpgate_trio.ports import udp as udp_port
from warpgate_trio.ports.datagrams import BATCH, Datagram, DatagramSocket
from warpgate_trio.ports.udp import MAX_QUEUED, UdpPort, UdpPorts
from warpgate_trio.sim import Network
from warpgate_trio.sockaddr import TransportAddress
from warpgate_trio.stun.codec import BINDING, ERROR_CODE, REALM, XOR_MAPPED_ADDRESS, ErrorCode, MessageClass, encode
from warpgate_trio.stun.transaction import StunTransaction, binding_request

MAPPED: TransportAddress = ("203.0.113.7", 4321)
MAPPED_V6: TransportAddress = ("2001:db8::7", 4321)
ADDRESSES = ["127.0.0.1", "::1"]


class Ends:
    """A port, and a plain socket that plays all other parties."""

    def __init__(self, ports: UdpPorts, port: UdpPort, other: DatagramSocket) -> None:
        self.ports, self.port, self.other = ports, port, other

    @property
    def mapped(self) -> TransportAddress:
        return MAPPED_V6 if ":" in self.other.local[0] else MAPPED

    async def say(self, *datagrams: bytes, to: UdpPort | None = None) -> None:
        await self.other.send_batch([(data, (to or self.port).local) for data in datagrams])
        await trio.testing.wait_all_tasks_blocked()

    async def hear(self, limit: int = BATCH) -> list[bytes]:
        return [data for data, _ in await self.other.receive_batch(limit)]

    async def answer(self, *, tell: TransportAddress | None = None, ignore: int = 0) -> bytes:
        """Acts as a STUN server for one request; returns the answer that was sent."""
        while True:
            for data, source in await self.other.receive_batch():
                if ignore:
                    ignore -= 1
                    continue
                said = response(data, tell or self.mapped)
                await self.other.send_batch([(said, source)])
                return said


def response(request: bytes, mapped: TransportAddress) -> bytes:
    return encode(BINDING, MessageClass.SUCCESS, request[8:20], [XOR_MAPPED_ADDRESS(mapped)])


Check = Callable[[Ends], Awaitable[None]]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


@asynccontextmanager
async def open_ports() -> AsyncGenerator[UdpPorts]:
    ports = UdpPorts()
    async with trio.open_nursery() as nursery:
        async with ports.running(nursery):
            yield ports
        nursery.cancel_scope.cancel()
    assert len(ports) == 0


@asynccontextmanager
async def ends(address: str = "127.0.0.1") -> AsyncGenerator[Ends]:
    with trio.fail_after(HANG):
        async with open_ports() as ports:
            port = await ports.open(address)
            other = await DatagramSocket.bind((address, 0))
            try:
                yield Ends(ports, port, other)
            finally:
                other.close()


async def on(function: Check, address: str) -> None:
    async with ends(address) as both:
        await function(both)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", pytest.param("::1", marks=pytest.mark.needs("ipv6"))], ids=["ipv4", "ipv6"]
)
@pytest.mark.parametrize("function", CHECKS, ids=lambda function: function.__name__)
async def test_on_the_kernel(function: Check, address: str) -> None:
    await on(function, address)


@pytest.mark.parametrize("address", ADDRESSES, ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("function", CHECKS, ids=lambda function: function.__name__)
def test_in_the_simulator(function: Check, address: str) -> None:
    async def world(net: Network) -> None:
        await net.host("a").run(on, function, address)

    run(world)


# -- sorting -----------------------------------------------------------------------------------------------------------


@check
async def a_path_gets_what_its_remote_sends_in_batches_and_in_order(each: Ends) -> None:
    path = each.port.open_path(each.other.local)
    sent = [b"\x40%d" % number for number in range(BATCH + 10)]
    await each.say(*sent)
    got: list[bytes] = []
    while len(got) < len(sent):
        batch = await path.receive()
        assert 1 <= len(batch) <= BATCH
        got += batch
    assert got == sent
    await path.send([b"\x40a", b"\x40b"])
    path.send_nowait([b"\x40c"])
    heard: list[bytes] = []
    while len(heard) < 3:
        heard += await each.hear()
    assert heard == [b"\x40a", b"\x40b", b"\x40c"]
    assert (path.local, path.remote) == (each.port.local, each.other.local)


@check
async def what_belongs_to_nobody_is_counted(each: Ends) -> None:
    await each.say(b"\x40 quic without a path", b"", b"\x05", binding_request(bytes(12)))
    assert each.port.dropped == 4


@check
async def probes_go_to_who_listens_for_them_and_answers_go_back(each: Ends) -> None:
    seen: list[tuple[bytes, TransportAddress]] = []

    def listen(data: bytes, source: TransportAddress) -> list[Datagram]:
        seen.append((data, source))
        return [(b"\x40 answer", source)]

    each.port.listen_for_probes(listen)
    path = each.port.open_path(each.other.local)
    request = binding_request(bytes(12))
    await each.say(request, b"\x40")
    assert seen == [(request, each.other.local)]
    assert await each.hear() == [b"\x40 answer"]
    assert await path.receive() == [b"\x40"]  # probes and QUIC share the port
    each.port.listen_for_probes(None)
    await each.say(request)
    assert len(seen) == each.port.dropped == 1


@check
async def a_path_that_is_opened_for_a_probe_gets_what_comes_right_behind_it(each: Ends) -> None:
    paths: list[udp_port.UdpPath] = []

    def listen(data: bytes, source: TransportAddress) -> list[Datagram]:
        paths.append(each.port.open_path(source))
        return []

    each.port.listen_for_probes(listen)
    await each.say(binding_request(bytes(12)), b"\x40 first flight")
    assert await paths[0].receive() == [b"\x40 first flight"]


@check
async def a_source_with_a_handler_has_everything_of_it(each: Ends) -> None:
    seen: list[bytes] = []

    def handle(data: bytes, source: TransportAddress) -> list[Datagram]:
        seen.append(data)
        return [(data.upper(), source)]

    path = each.port.open_path(each.other.local)
    request = binding_request(bytes(12))
    with each.port.handler(each.other.local, handle):
        await each.say(b"\x40x", request)
        assert seen == [b"\x40x", request]
        assert (await each.hear())[0] == b"\x40X"
    await each.say(b"\x40y")
    assert len(seen) == 2
    assert await path.receive() == [b"\x40y"]


@check
async def an_answer_is_found_before_the_handler_of_its_source(each: Ends) -> None:
    """A TURN server has a handler, and is also sent requests over the same port."""
    seen: list[bytes] = []

    def handle(data: bytes, source: TransportAddress) -> list[Datagram]:
        seen.append(data)
        return []

    with each.port.handler(each.other.local, handle):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(each.answer)
            answer = await each.port.query(each.other.local, rto=1.0, tries=1)
        assert answer.mapped == each.mapped
        assert seen == []
        late = response(binding_request(bytes(12)), each.mapped)
        await each.say(late, b"\x40 relayed")
        assert seen == [late, b"\x40 relayed"]


@check
async def who_names_a_request_of_ours_from_elsewhere_answers_nothing(each: Ends) -> None:
    seen: list[bytes] = []

    def handle(data: bytes, source: TransportAddress) -> list[Datagram]:
        seen.append(data)
        return []

    asked = await DatagramSocket.bind((each.other.local[0], 0))
    transaction = StunTransaction(binding_request(bytes(12)), asked.local)
    forged = response(transaction.request, each.mapped)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(each.port.transact, transaction)
        await trio.testing.wait_all_tasks_blocked()
        each.port.listen_for_probes(handle)
        await each.say(forged)
        assert seen == []  # not taken for a probe either
        with each.port.handler(each.other.local, handle):
            await each.say(forged)
        assert seen == [forged]  # the source's handler gets it
        assert not transaction.done
        nursery.cancel_scope.cancel()
    asked.close()


@check
async def a_request_of_any_method_is_answered(each: Ends) -> None:
    """A TURN server's first response to Allocate (0x003) is an error that says how to authenticate."""
    transaction = StunTransaction(encode(0x003, MessageClass.REQUEST, bytes(12)), each.other.local)

    async def refuse() -> None:
        ((data, source),) = await each.other.receive_batch()
        refusal = encode(
            0x003, MessageClass.ERROR, data[8:20], [ERROR_CODE(ErrorCode(401, "Unauthorized")), REALM("r")]
        )
        await each.other.send_batch([(refusal, source)])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse)
        await each.port.transact(transaction)
    assert transaction.answer is not None
    assert transaction.answer.get(REALM) == "r"
    with pytest.raises(StunRefused, match="401 Unauthorized"):
        transaction.response()


@check
async def a_datagram_on_which_a_handler_fails_is_dropped(each: Ends) -> None:
    """A port's task runs in the node.  A handler that fails over hostile bytes must end neither it nor the port."""
    errors: list[BaseException] = [ZeroDivisionError("a bug"), PanicException("in Rust")]

    def fail(data: bytes, source: TransportAddress) -> list[Datagram]:
        raise errors.pop(0)

    path = each.port.open_path(each.other.local)
    each.port.listen_for_probes(fail)
    logger = logging.getLogger(udp_port.__name__)
    logger.disabled = True
    try:
        await each.say(binding_request(bytes(12)), binding_request(bytes(12)))
    finally:
        logger.disabled = False
    assert not errors
    assert not each.port.closed
    assert each.port.dropped == 2
    await each.say(b"\x40y")
    assert await path.receive() == [b"\x40y"]


@check
async def a_reader_that_stops_costs_what_is_new_and_no_memory(each: Ends) -> None:
    path = each.port.open_path(each.other.local)
    for _ in range(0, MAX_QUEUED + 2 * BATCH, BATCH):
        await each.say(*[b"\x40%d" % number for number in range(BATCH)])
    assert path.dropped == 2 * BATCH
    got = 0
    while got < MAX_QUEUED:
        got += len(await path.receive())
    assert got == MAX_QUEUED


# -- paths -------------------------------------------------------------------------------------------------------------


@check
async def there_is_one_path_to_a_remote(each: Ends) -> None:
    path = each.port.open_path(each.other.local)
    with pytest.raises(ValueError, match="already"):
        each.port.open_path(each.other.local)
    path.close_nowait()
    path.close_nowait()
    again = each.port.open_path(each.other.local)
    path.close_nowait()  # closing the old path again does not affect the new one
    await each.say(b"\x40")
    assert await again.receive() == [b"\x40"]


@check
async def a_closed_path_says_so(each: Ends) -> None:
    path = each.port.open_path(each.other.local)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect, trio.ClosedResourceError, path.receive)
        await trio.testing.wait_all_tasks_blocked()
        path.close_nowait()
    with pytest.raises(trio.ClosedResourceError):
        await path.send([b"\x40"])
    path.send_nowait([b"\x40"])
    await each.say(b"\x40")
    assert each.port.dropped == 1


@check
async def a_port_that_is_closed_breaks_its_paths(each: Ends) -> None:
    path = each.port.open_path(each.other.local)
    await each.say(b"\x40 still there")
    async with trio.open_nursery() as nursery:
        other = each.port.open_path((each.other.local[0], 9))
        nursery.start_soon(expect, trio.BrokenResourceError, other.receive)
        await trio.testing.wait_all_tasks_blocked()
        each.port.close_nowait()
        each.port.close_nowait()
    assert await path.receive() == [b"\x40 still there"]
    with pytest.raises(trio.BrokenResourceError):
        await path.receive()
    with pytest.raises(trio.BrokenResourceError):
        await path.send([b"\x40"])
    path.send_nowait([b"\x40"])
    path.close_nowait()
    with pytest.raises(trio.ClosedResourceError):
        each.port.open_path(each.other.local)
    with pytest.raises(trio.ClosedResourceError):
        await each.port.send([(b"x", each.other.local)])
    each.port.send_nowait([(b"x", each.other.local)])
    assert len(each.ports) == 0
    assert "closed" in repr(each.port)


@check
async def a_released_port_lives_as_long_as_its_last_path(each: Ends) -> None:
    paths = [each.port.open_path((each.other.local[0], port)) for port in (1, 2)]
    each.port.release()
    each.port.release()
    assert not each.port.closed
    paths[0].close_nowait()
    assert not each.port.closed
    paths[1].close_nowait()
    assert each.port.closed
    without = await each.ports.open(each.other.local[0])
    without.release()
    assert without.closed


@check
async def receiving_is_a_checkpoint_and_loses_nothing_when_cancelled(each: Ends) -> None:
    path = each.port.open_path(each.other.local)
    got: list[bytes] = []
    number = 0
    for cut in cuts():
        await each.say(b"\x40%d" % number)
        number += 1
        with cut:
            got += await path.receive()
    while len(got) < number:
        with trio.testing.assert_checkpoints():
            got += await path.receive()
    assert got == [b"\x40%d" % each for each in range(number)]
    await each.say(b"\x40last")
    await trio.testing.wait_all_tasks_blocked(
        0.01
    )  # the datagram is there before the call, which must make no difference
    with trio.testing.assert_checkpoints():
        assert await path.receive() == [b"\x40last"]


@check
async def a_receive_that_waits_is_cancelled_and_the_next_one_hears(each: Ends) -> None:
    path = each.port.open_path(each.other.local)
    with trio.move_on_after(0.01) as scope:
        await path.receive()
    assert scope.cancelled_caught
    await each.say(b"\x40")
    assert await path.receive() == [b"\x40"]


async def expect(kind: type[BaseException], call: Callable[[], Awaitable[object]]) -> None:
    with pytest.raises(kind):
        await call()


# -- asking a server ---------------------------------------------------------------------------------------------------


@check
async def a_server_is_asked_over_the_port_that_punches(each: Ends) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(each.answer)
        answer = await each.port.query(each.other.local, rto=0.2, tries=2)
    assert answer.mapped == each.mapped
    assert each.port.mapped == {each.other.local: each.mapped}
    assert each.port.mapped_at == pytest.approx(trio.current_time(), abs=1)
    assert not each.port._transactions


@check
async def a_lost_request_is_repeated(each: Ends) -> None:
    async def answer() -> None:
        await each.answer(ignore=1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        assert (await each.port.query(each.other.local, rto=0.02, tries=3)).retransmitted


@check
async def a_dead_server_costs_what_rfc_8489_says(each: Ends) -> None:
    each.port.mapped[each.other.local] = each.mapped  # from an earlier query
    started = trio.current_time()
    with pytest.raises(StunTimeout):
        await each.port.query(each.other.local, rto=0.01, tries=3)
    assert trio.current_time() - started >= 0.07
    assert len(await each.hear()) == 3
    assert not each.port._transactions


@check
async def an_answer_that_is_wrong_is_an_error(each: Ends) -> None:
    for said, kind in (
        (encode_error(), StunRefused),
        (lambda request: encode(BINDING, MessageClass.SUCCESS, request[8:20]), StunMalformed),
        (lambda request: response(request, ("0.0.0.0", 1)), StunMalformed),
    ):

        async def answer(said: Callable[[bytes], bytes] = said) -> None:
            ((data, source),) = await each.other.receive_batch()
            await each.other.send_batch([(said(data), source)])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            with pytest.raises(StunError) as caught:
                await each.port.query(each.other.local, rto=1.0, tries=1)
            assert isinstance(caught.value, kind)
    assert each.port.mapped == {}


def encode_error() -> Callable[[bytes], bytes]:
    return lambda request: encode(BINDING, MessageClass.ERROR, request[8:20], [ERROR_CODE(ErrorCode(400, "no"))])


@check
async def nobody_else_answers_for_a_server(each: Ends) -> None:
    """A stranger's answer is ignored, and does not end the query."""
    stranger = await DatagramSocket.bind((each.other.local[0], 0))
    probes: list[bytes] = []

    def listen(data: bytes, source: TransportAddress) -> list[Datagram]:
        probes.append(data)
        return []

    each.port.listen_for_probes(listen)
    try:

        async def answer() -> None:
            ((data, source),) = await each.other.receive_batch()
            await stranger.send_batch([(response(data, ("198.51.100.66", 6)), source)])
            await trio.testing.wait_all_tasks_blocked()
            await each.other.send_batch([(response(data, each.mapped), source)])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            assert (await each.port.query(each.other.local, rto=1.0, tries=1)).mapped == each.mapped
        assert probes == []  # it names our transaction, so it is no probe
    finally:
        stranger.close()


@check
async def a_port_that_is_closed_under_a_question(each: Ends) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect, trio.ClosedResourceError, lambda: each.port.query(each.other.local, rto=9, tries=1))
        await trio.testing.wait_all_tasks_blocked()
        each.port.close_nowait()
    assert each.port.mapped == {}
    assert not each.port._transactions
    with pytest.raises(trio.ClosedResourceError):
        await each.port.query(each.other.local, rto=1, tries=1)


@check
async def a_question_is_cancelled_anywhere(each: Ends) -> None:
    for cut in cuts():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(each.answer)
            with cut:
                await each.port.query(each.other.local, rto=0.5, tries=1)
            nursery.cancel_scope.cancel()
        assert not each.port._transactions
        with trio.move_on_after(0):
            await each.other.receive_batch()
    assert each.port.mapped == {each.other.local: each.mapped}


# -- the node's ports --------------------------------------------------------------------------------------------------


@check
async def ports_are_bounded(each: Ends) -> None:
    limit, udp_port.MAX_PORTS = udp_port.MAX_PORTS, 3  # type: ignore[misc]
    opened: list[UdpPort] = []
    refused = 0

    async def more() -> None:
        nonlocal refused
        try:
            opened.append(await each.ports.open(each.other.local[0]))
        except OSError:
            refused += 1

    try:
        async with trio.open_nursery() as nursery:  # at the same time, so that each sees the free room
            for _ in range(5):
                nursery.start_soon(more)
        assert (len(opened), refused, len(each.ports)) == (2, 3, 3)
        opened[0].close_nowait()
        await more()
        assert (len(opened), len(each.ports)) == (3, 3)
    finally:
        udp_port.MAX_PORTS = limit  # type: ignore[misc]


@check
async def a_port_that_is_taken_is_an_error_of_the_caller(each: Ends) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        await each.ports.open(each.other.local[0], each.other.local[1])
    assert caught.value.errno == errno.EADDRINUSE
    assert len(each.ports) == 1


@check
async def opening_is_cancelled_anywhere(each: Ends) -> None:
    for cut in cuts():
        with cut:
            (await each.ports.open(each.other.local[0])).release()
        assert len(each.ports) == 1


@check
async def leaving_closes_what_is_open_and_nothing_opens_after(each: Ends) -> None:
    async with open_ports() as ports:
        port = await ports.open(each.other.local[0])
        path = port.open_path(each.other.local)
    assert port.closed
    with pytest.raises(trio.BrokenResourceError):
        await path.send([b"\x40"])
    with pytest.raises(trio.ClosedResourceError):
        await ports.open(each.other.local[0])


@check
async def leaving_while_somebody_opens(each: Ends) -> None:
    async with trio.open_nursery() as nursery:
        async with open_ports() as ports:
            nursery.start_soon(expect, trio.ClosedResourceError, lambda: ports.open(each.other.local[0]))
            # `open` is at its first checkpoint when the block is left.
            await trio.lowlevel.cancel_shielded_checkpoint()
    assert len(ports) == 0


@check
async def a_node_that_is_cancelled_keeps_its_sockets_for_its_goodbyes(each: Ends) -> None:
    ports = UdpPorts()
    async with trio.open_nursery() as nursery:
        async with ports.running(nursery):
            port = await ports.open(each.other.local[0])
            path = port.open_path(each.other.local)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await each.say(b"\x40", to=port)
                assert await path.receive() == [b"\x40"]
                await path.send([b"\x40 goodbye"])
    assert port.closed
    assert await each.hear() == [b"\x40 goodbye"]


def test_who_has_a_port_is_told_when_three_datagrams_in_a_row_find_no_way_out() -> None:
    async def body(net: Network) -> None:
        machine, other = net.host("machine"), net.host("other")
        told: list[TransportAddress] = []
        with machine:
            ports = UdpPorts(on_unreachable=told.append)
            async with trio.open_nursery() as nursery:
                async with ports.running(nursery):
                    port = await ports.open(machine.ip)
                    there, nowhere = (other.ip, 9), ("192.0.2.1", 9)
                    machine.routes = [each for each in machine.routes if there[0] in each.prefix and each.prefix.bits]
                    for batch, count in [
                        ([nowhere] * 2, 0),
                        ([there, nowhere, nowhere], 0),
                        ([nowhere], 1),
                        ([nowhere] * 2, 1),
                        ([nowhere], 2),
                    ]:
                        await port.send([(b"x", each) for each in batch])
                        assert told == [port.local] * count
                nursery.cancel_scope.cancel()

    run(body)


async def test_too_many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ends() as both:

        def full(*_: object) -> None:
            raise OSError(errno.EMFILE, "too many open files")

        monkeypatch.setattr(trio.socket, "socket", full)
        with pytest.raises(OSError, match="too many"):
            await both.ports.open("127.0.0.1")
        assert len(both.ports) == 1
