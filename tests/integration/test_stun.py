"""The STUN client and server over real sockets, with all that either side can do wrong."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio

from tests.cancel_sweep import cuts
from tests.hangs import HANG
from tests.ports import free_port
from warpgate_trio.errors import StunError, StunMalformed, StunRefused, StunTimeout
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers.stun import StunLimits, open_stun_server
from warpgate_trio.stun.client import (
    MAX_STRANGERS,
    open_stun_stream,
    query_all_udp,
    query_stream,
    query_udp,
    race_tcp,
    race_udp,
    resolve,
    share_port,
    transact_stream,
)
from warpgate_trio.stun.codec import (
    BINDING,
    ERROR_CODE,
    SOFTWARE,
    XOR_MAPPED_ADDRESS,
    ChangeRequest,
    ErrorCode,
    MessageClass,
    decode,
    encode,
)
from warpgate_trio.stun.transaction import StunAnswer, StunTransaction, binding_request

Address = tuple[str, int]
MAPPED = ("127.0.0.9", 9)
QUICK: dict[str, Any] = {"rto": 0.01, "tries": 1, "last_wait": 1}

pytestmark = pytest.mark.usefixtures("bounded")


@asynccontextmanager
async def udp(host: str = "127.0.0.1") -> AsyncGenerator[trio.socket.SocketType]:
    family = trio.socket.AF_INET6 if ":" in host else trio.socket.AF_INET
    with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as sock:
        await sock.bind((host, 0))
        yield sock


def success(request: bytes, mapped: Address = MAPPED) -> bytes:
    return encode(BINDING, MessageClass.SUCCESS, decode(request).transaction_id, [XOR_MAPPED_ADDRESS(mapped)])


@asynccontextmanager
async def fake(*answers: Callable[[bytes], bytes]) -> AsyncGenerator[Address]:
    """A UDP server that sends all of these answers to each request."""
    async with udp() as sock, open_background_nursery() as nursery:

        async def serve() -> None:
            while True:
                request, source = await sock.recvfrom(2000)
                for answer in answers:
                    await sock.sendto(answer(request), source)

        nursery.start_soon(serve)
        yield sock.getsockname()


@asynccontextmanager
async def fake_stream(talk: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncGenerator[trio.SocketStream]:
    """A stream to a TCP server that runs `talk` with this connection."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with open_background_nursery() as nursery, listener:

        async def serve() -> None:
            async with await listener.accept() as stream:
                await talk(stream)

        nursery.start_soon(serve)
        async with open_stun_stream(listener.socket.getsockname()) as stream:
            yield stream


async def stay_silent(_: trio.SocketStream) -> None:
    await trio.sleep_forever()


# -- client and server -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=pytest.mark.needs("ipv6"))])
async def test_one_address_over_udp_and_tcp(host: str) -> None:
    async with open_stun_server(host=host) as server:
        async with udp(host) as sock:
            answer = await query_udp(sock, server.address)
            assert answer.mapped == sock.getsockname()[:2]
            assert answer.other_address is None
            assert not answer.retransmitted
            assert 0 < answer.rtt < 1
        async with open_stun_stream(server.address) as stream:
            for _ in range(3):
                assert (await query_stream(stream)).mapped == stream.socket.getsockname()[:2]
        assert server.statistics().answered == 4
        url = f"stun:[::1]:{server.address[1]}" if host == "::1" else f"stun:127.0.0.1:{server.address[1]}"
        assert server.urls == (url,)


@pytest.mark.needs("linux")
@pytest.mark.parametrize("change", [ChangeRequest(ip=ip, port=port) for ip in (False, True) for port in (False, True)])
async def test_two_addresses_answer_from_elsewhere(change: ChangeRequest) -> None:
    async with open_stun_server(second_host="127.0.0.2") as server, udp() as sock:
        port = server.address[1]
        assert set(server.addresses) == {(host, port + n) for host in ("127.0.0.1", "127.0.0.2") for n in (0, 1)}
        there = (f"127.0.0.{1 + change.ip}", port + change.port)
        answer = await query_udp(sock, server.address, change=change, source=there)
        assert answer.mapped == sock.getsockname()
        assert answer.response_origin == answer.source == there
        assert answer.other_address == ("127.0.0.2", port + 1)
        assert repr(server) == f"<StunServer stun:127.0.0.1:{port} stun:127.0.0.2:{port}>"


@pytest.mark.needs("linux")
@pytest.mark.parametrize("change", [0, 2, 4, 6])
async def test_a_client_of_rfc3489_is_answered_from_elsewhere(change: int) -> None:
    """Such a client sends no magic cookie, a transaction id of 16 bytes, and CHANGE-REQUEST."""
    async with open_stun_server(second_host="127.0.0.2") as server, udp() as sock:
        number = bytes(range(100, 116))
        port = server.address[1]
        await sock.sendto(
            bytes.fromhex("00010008") + number + bytes.fromhex("00030004000000") + bytes([change]), server.address
        )
        with trio.fail_after(HANG):
            answer, source = await sock.recvfrom(200)
        assert source == (f"127.0.0.{1 + bool(change & 4)}", port + bool(change & 2))

        def address(type_: int, ip: str, port: int) -> bytes:
            return bytes([0, type_, 0, 8, 0, 1]) + port.to_bytes(2, "big") + bytes(map(int, ip.split(".")))

        assert answer == bytes.fromhex("01010024") + number + (
            address(1, *sock.getsockname()) + address(4, *source) + address(5, "127.0.0.2", port + 1)
        )


@pytest.mark.needs("linux")
async def test_two_addresses_over_tcp() -> None:
    async with open_stun_server(second_host="127.0.0.2") as server:
        for address in server.addresses:
            async with open_stun_stream(address) as stream:
                answer = await query_stream(stream)
                assert answer.response_origin == address
                assert answer.other_address in server.addresses


@pytest.mark.needs("ipv6")
async def test_all_addresses() -> None:
    async with open_stun_server(host=None) as server:
        assert [host for host, _ in server.addresses] == ["0.0.0.0", "::"]
        for host in ("127.0.0.1", "::1"):
            async with udp(host) as sock:
                assert (await query_udp(sock, (host, server.address[1]))).mapped == sock.getsockname()[:2]


async def test_a_local_port_can_be_held() -> None:
    """Law 1 for TCP: a listener, the STUN connection and the punching connections share one port."""
    async with open_stun_server() as server:
        with trio.socket.socket() as listener, trio.socket.socket() as punching:
            share_port(listener)
            await listener.bind(("127.0.0.1", 0))
            listener.listen()
            local = listener.getsockname()
            async with open_stun_stream(server.address, local=local) as stream:
                assert (await query_stream(stream)).mapped == local
                share_port(punching)
                await punching.bind(local)


@pytest.mark.usefixtures("jumping_clock")
async def test_racing_over_one_socket() -> None:
    def refuse(request: bytes) -> bytes:
        return encode(BINDING, MessageClass.ERROR, decode(request).transaction_id, [ERROR_CODE(ErrorCode(500, "no"))])

    async with open_stun_server() as server, fake() as dead, fake(refuse) as refusing, udp() as sock:
        answer = await race_udp(sock, [dead, refusing, server.address])
        assert answer.server == server.address
        found = await query_all_udp(sock, [refusing, server.address, dead], rto=0.02, tries=1, last_wait=1)
        assert isinstance(found[0], StunRefused)
        assert found[0].code == 500
        assert isinstance(found[1], StunAnswer)
        assert isinstance(found[2], StunTimeout)
        with pytest.raises(StunError):
            await race_udp(sock, [dead, refusing], **QUICK)
        with pytest.raises(StunError, match="no STUN server"):
            await race_udp(sock, [])
        assert await query_all_udp(sock, []) == []


async def test_racing_over_tcp_keeps_the_winner_open() -> None:
    async with open_stun_server() as server:
        async with race_tcp([("127.0.0.1", 1), server.address, server.address]) as (answer, stream):
            assert answer.mapped == stream.socket.getsockname()
            assert (await query_stream(stream)).mapped == answer.mapped
        with pytest.raises(StunError, match="cannot be reached: Connection refused"):
            async with race_tcp([("127.0.0.1", 1)]):
                raise AssertionError
        with pytest.raises(StunError, match="no STUN server"):
            async with race_tcp([]):
                raise AssertionError


# -- servers that a client may meet ------------------------------------------------------------------------------------


async def test_a_dead_server() -> None:
    async with udp() as dead, udp() as sock:
        with pytest.raises(StunTimeout, match="to 3 request"):
            await query_udp(sock, dead.getsockname(), rto=0.01, tries=3, last_wait=1)
        requests = [(await dead.recvfrom(100))[0] for _ in range(3)]
        assert len(set(requests)) == 1


async def test_a_lost_request_is_repeated() -> None:
    async with udp() as server, udp() as sock, open_background_nursery() as nursery:

        async def answer_the_second() -> None:
            await server.recvfrom(100)
            request, source = await server.recvfrom(100)
            await server.sendto(success(request), source)

        nursery.start_soon(answer_the_second)
        answer = await query_udp(sock, server.getsockname(), rto=0.02)
        assert answer.mapped == MAPPED
        assert answer.retransmitted


async def test_what_others_send_is_passed_over() -> None:
    async with open_stun_server() as server, udp() as stranger, udp() as sock:
        for _ in range(50):
            await stranger.sendto(success(binding_request(bytes(12))), sock.getsockname())
        await stranger.sendto(b"", sock.getsockname())
        await stranger.sendto(b"x" * 3000, sock.getsockname())
        assert (await query_udp(sock, server.address)).mapped == sock.getsockname()


async def test_a_right_answer_from_a_wrong_place_is_passed_over() -> None:
    async with udp() as server, udp() as other, udp() as sock, open_background_nursery() as nursery:

        async def answer() -> None:
            request, source = await server.recvfrom(100)
            await other.sendto(success(request), source)

        nursery.start_soon(answer)
        with pytest.raises(StunTimeout):
            await query_udp(sock, server.getsockname(), rto=0.03, tries=1, last_wait=1)


@pytest.mark.parametrize(
    "garbage",
    [lambda _: b"", lambda _: b"\1\1\0\4" + bytes(20), lambda request: request, lambda request: success(request)[:-1]],
)
async def test_garbage_from_the_server_is_passed_over(garbage: Callable[[bytes], bytes]) -> None:
    async with fake(garbage, success) as server, udp() as sock:
        assert (await query_udp(sock, server)).mapped == MAPPED


async def test_a_server_that_lies() -> None:
    async with fake(lambda request: success(request, ("224.0.0.1", 1))) as server, udp() as sock:
        with pytest.raises(
            StunMalformed, match=r"implausible mapped address 224\.0\.0\.1:1: an address that no host can have"
        ):
            await query_udp(sock, server)


async def test_a_server_that_cannot_be_asked() -> None:
    async with udp() as sock:
        with pytest.raises(StunError, match="cannot be asked") as caught:
            await query_udp(sock, ("::1", 3478))
        assert isinstance(caught.value.__cause__, OSError)


async def test_cancelled_in_the_middle() -> None:
    async with udp() as dead, udp() as sock:
        with trio.move_on_after(0.01) as scope:
            await query_udp(sock, dead.getsockname())
        assert scope.cancelled_caught
        async with open_stun_server() as server:
            assert (await query_udp(sock, server.address)).mapped == sock.getsockname()


async def test_cancelled_anywhere() -> None:
    """A fixture of all tests checks that no socket is left."""
    async with open_stun_server() as server, udp() as sock:
        for cut in cuts():
            with cut:
                await race_udp(sock, [server.address, server.address])
        for cut in cuts():
            with cut:
                async with open_stun_stream(server.address) as stream:
                    await query_stream(stream)
        for cut in cuts():
            with cut:
                async with race_tcp([("127.0.0.1", 1), server.address, server.address]) as (_, stream):
                    await query_stream(stream)
    for cut in cuts():
        with cut:
            async with open_stun_server():
                await trio.lowlevel.checkpoint()


@pytest.mark.usefixtures("jumping_clock")
async def test_a_silent_stream() -> None:
    async with fake_stream(stay_silent) as stream:
        with pytest.raises(StunTimeout, match=r"within 0\.02 s"):
            await query_stream(stream, timeout=0.02)


async def test_a_stream_that_ends() -> None:
    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.receive_some()

    async with fake_stream(hang_up) as stream:
        with pytest.raises(StunError, match="closed the connection"):
            await query_stream(stream)


async def test_a_stream_that_is_closed_here() -> None:
    async with fake_stream(stay_silent) as stream:
        server = stream.socket.getpeername()
        await stream.aclose()
        with pytest.raises(StunError, match="broke"):
            await query_stream(stream, server=server)


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", success(binding_request(bytes(12))) * 100])
async def test_a_stream_of_something_else(data: bytes) -> None:
    async def talk(stream: trio.SocketStream) -> None:
        await stream.send_all(data)
        await trio.sleep_forever()

    async with fake_stream(talk) as stream:
        with pytest.raises(StunMalformed):
            await query_stream(stream)


async def test_late_answers_in_a_stream_are_passed_over() -> None:
    async def talk(stream: trio.SocketStream) -> None:
        request = bytes(await stream.receive_some())
        await stream.send_all(success(binding_request(bytes(12))) * MAX_STRANGERS + success(request))
        await trio.sleep_forever()

    async with fake_stream(talk) as stream:
        assert (await query_stream(stream)).mapped == MAPPED


async def test_any_stream_will_do_with_the_servers_address() -> None:
    async with open_stun_server() as server, open_stun_stream(server.address) as stream:
        both = trio.StapledStream(stream, stream)
        assert (await query_stream(both, server=server.address)).mapped == stream.socket.getsockname()
        with pytest.raises(TypeError):
            await query_stream(both)


async def test_a_request_of_any_method_over_a_stream() -> None:
    """The method here is TURN's Refresh (0x004)."""

    async def talk(stream: trio.SocketStream) -> None:
        request = await stream.receive_some()
        await stream.send_all(encode(0x004, MessageClass.SUCCESS, bytes(request[8:20]), [SOFTWARE("relay")]))

    async with fake_stream(talk) as stream:
        transaction = StunTransaction(encode(0x004, MessageClass.REQUEST, bytes(12)), ("127.0.0.1", 3478))
        await transact_stream(stream, transaction)
    assert transaction.response().get(SOFTWARE) == "relay"


async def test_resolving() -> None:
    assert await resolve("127.0.0.1", 5) == ("127.0.0.1", 5)
    assert await resolve("::1", 5) == ("::1", 5)
    with pytest.raises(StunError, match="cannot be found"):
        await resolve("::1", 5, family=trio.socket.AF_INET)


# -- clients that a server may meet ------------------------------------------------------------------------------------


async def test_what_is_no_request_gets_no_answer() -> None:
    async with open_stun_server() as server, udp() as sock:
        for data in (b"", b"hello", bytes(3000), success(binding_request(bytes(12)))):
            await sock.sendto(data, server.address)
        assert (await query_udp(sock, server.address)).mapped == sock.getsockname()
        assert server.statistics().ignored == 4
        with trio.move_on_after(0.02):
            raise AssertionError(await sock.recvfrom(100))


@pytest.mark.usefixtures("jumping_clock")
async def test_a_source_that_asks_too_much() -> None:
    async with open_stun_server(limits=StunLimits(rate=0.001, burst=2)) as server, udp() as sock:
        for _ in range(2):
            await query_udp(sock, server.address)
        with pytest.raises(StunTimeout):
            await query_udp(sock, server.address, **QUICK)
        async with open_stun_stream(server.address) as stream:
            for _ in range(2):
                await query_stream(stream)
            with pytest.raises(StunError):
                await query_stream(stream)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", success(binding_request(bytes(12)))])
async def test_a_connection_that_speaks_something_else_is_closed(data: bytes) -> None:
    async with open_stun_server() as server, open_stun_stream(server.address) as stream:
        await stream.send_all(data)
        assert await stream.receive_some() == b""


async def test_requests_in_pieces_and_in_a_row() -> None:
    async with open_stun_server() as server, open_stun_stream(server.address) as stream:
        requests = b"".join(binding_request(bytes([n]) * 12) for n in range(5))
        for at in range(0, len(requests), 7):
            await stream.send_all(requests[at : at + 7])
        got = b""
        while len(got) < 5 * 32:
            got += bytes(await stream.receive_some())
        found = [decode(got[at : at + 32]).transaction_id[0] for at in range(0, len(got), 32)]
        assert found == list(range(5))


async def test_a_silent_connection_is_closed() -> None:
    async with open_stun_server(limits=StunLimits(silence=0.02)) as server:
        async with open_stun_stream(server.address) as stream:
            assert await stream.receive_some() == b""
        async with open_stun_stream(server.address) as stream:
            await query_stream(stream)
            await stream.send_all(b"\0")  # one byte is no request
            assert await stream.receive_some() == b""


@pytest.mark.parametrize("limits", [StunLimits(connections=2), StunLimits(connections_per_address=2)])
async def test_connections_are_bounded_and_given_back(limits: StunLimits) -> None:
    async with open_stun_server(limits=limits) as server:
        async with open_stun_stream(server.address) as one, open_stun_stream(server.address) as two:
            await query_stream(one)
            await query_stream(two)
            async with open_stun_stream(server.address) as three:
                with pytest.raises(StunError):
                    await query_stream(three)
        while True:  # until the server has noticed the end
            async with open_stun_stream(server.address) as four:
                try:
                    await query_stream(four)
                except StunError:
                    continue
                break


async def test_a_server_survives_a_reset() -> None:
    async with open_stun_server() as server:
        for _ in range(3):
            async with open_stun_stream(server.address) as stream:
                stream.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                await stream.send_all(binding_request(bytes(12)) + b"\0")
        async with open_stun_stream(server.address) as stream:
            assert (await query_stream(stream)).mapped == stream.socket.getsockname()


async def test_a_server_without_descriptors_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with trio.socket.socket() as any_socket:
        kind: Any = type(any_socket)
    accept, faults = kind.accept, [errno.EMFILE]

    async def accept_or_fail(self: trio.socket.SocketType) -> Any:
        if faults:
            raise OSError(faults.pop(), "too many")
        return await accept(self)

    monkeypatch.setattr(kind, "accept", accept_or_fail)
    async with open_stun_server() as server, open_stun_stream(server.address) as stream:
        assert (await query_stream(stream)).mapped == stream.socket.getsockname()
    assert "no connection can be accepted: too many" in caplog.text


@pytest.mark.needs("linux")  # where all of 127/8 is this machine
async def test_a_few_subscribers_do_not_keep_everybody_else_out() -> None:
    limits = StunLimits(connections=4, connections_per_address=4)
    async with open_stun_server(limits=limits) as server, AsyncExitStack() as stack:
        held = [
            await stack.enter_async_context(await trio.open_tcp_stream(*server.address, local_address=f"127.0.0.{n}"))
            for n in (1, 2, 2, 2)
        ]
        for stream in held:
            await query_stream(stream)
        async with await trio.open_tcp_stream(*server.address, local_address="127.1.0.1") as light:
            assert (await query_stream(light)).mapped == light.socket.getsockname()
            with trio.fail_after(10):
                assert await held[-1].receive_some() == b"", "the youngest one of who holds most"


@pytest.mark.needs("ipv6")
async def test_connections_are_counted_by_subscriber(monkeypatch: pytest.MonkeyPatch) -> None:
    """With IPv6 a /64 counts as one subscriber: here ::1, and all that has the same prefix."""
    async with open_stun_server(host="::1", limits=StunLimits(connections_per_address=1)) as server:
        sources = iter([("::1", 1), ("::2", 2)])
        with trio.socket.socket(trio.socket.AF_INET6) as any_socket:
            socket_kind: Any = type(any_socket)
        accept, getpeername = socket_kind.accept, socket_kind.getpeername

        async def accept_as(self: Any) -> Any:
            connection, _ = await accept(self)
            seen[connection.fileno()] = next(sources)
            return connection, seen[connection.fileno()]

        seen: dict[int, tuple[str, int]] = {}
        monkeypatch.setattr(socket_kind, "accept", accept_as)
        monkeypatch.setattr(
            socket_kind, "getpeername", lambda self: seen.get(self.fileno()) or getpeername(self), raising=False
        )
        async with await trio.open_tcp_stream(*server.address) as one:
            with trio.fail_after(10):
                async with await trio.open_tcp_stream(*server.address) as other:
                    assert await other.receive_some() == b""
            assert one.socket.fileno() >= 0


@pytest.mark.needs("linux")  # where all of 127/8 is this machine
@pytest.mark.parametrize("asked", ["127.0.0.1", "127.0.0.2", pytest.param("::1", marks=pytest.mark.needs("ipv6"))])
async def test_an_answer_comes_from_where_it_was_asked(asked: str) -> None:
    """For a socket on all addresses the kernel would choose the source; a client ignores any other address."""
    async with open_stun_server(host=None) as server, udp("::1" if ":" in asked else "127.0.0.1") as sock:
        await sock.connect((asked, server.address[1]))
        await sock.send(binding_request(bytes(12)))
        with trio.fail_after(HANG):
            answer = decode(await sock.recv(1000))
    assert answer.get(XOR_MAPPED_ADDRESS) is not None


async def test_a_port_that_is_taken() -> None:
    async with open_stun_server() as server:
        with pytest.raises(OSError, match="in use"):
            async with open_stun_server(port=server.address[1]):
                raise AssertionError


async def test_a_server_that_is_started_again_has_its_port_at_once() -> None:
    """The kernel remembers the connections of the old server for a minute; that does not block the port."""
    port = free_port()
    for _ in range(2):
        async with open_stun_server(port=port) as server, open_stun_stream(server.address) as stream:
            assert (await query_stream(stream)).mapped == stream.socket.getsockname()
            await stream.send_all(b"\0" * 20)  # makes the server close first
            with pytest.raises(StunError):
                await query_stream(stream)


@pytest.mark.needs("linux")
async def test_no_port_behind_the_last() -> None:
    with pytest.raises(OSError, match="65535"):
        async with open_stun_server(port=65535, second_host="127.0.0.2"):
            raise AssertionError


@pytest.mark.parametrize(
    ("host", "second"),
    [(None, "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "::1"), ("0.0.0.0", "127.0.0.1"), ("x", "y")],
)
async def test_addresses_that_make_no_two(host: str | None, second: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        async with open_stun_server(host=host, second_host=second):
            raise AssertionError


async def test_what_the_body_raises_leaves_bare() -> None:
    with pytest.raises(KeyError):
        async with open_stun_server():
            raise KeyError
