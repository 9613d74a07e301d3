"""One suite of behaviours that must pass both on the kernel's loopback and on the simulator.

A behaviour is an async function that uses 127.0.0.1 or ::1 through trio.socket and asserts what it sees.  Those that
depend on Linux's errnos run against the kernel only on Linux.
"""

from __future__ import annotations

import errno
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from warpgate_trio.sim import Network, simulate

BEHAVIOURS: list[Callable[[], Awaitable[None]]] = []
L4 = "127.0.0.1"


def behaviour(fn: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    BEHAVIOURS.append(fn)
    return fn


def on_kernel(fn: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(20):
            await fn()

    trio.run(main)


def on_simulator(fn: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Network(time_limit=3600) as net:
            await net.host("alone").run(fn)
            assert not net.netstat(), str(net.netstat())

    simulate(main)


def fails_with(*codes: int) -> pytest.RaisesExc[OSError]:
    return pytest.RaisesExc(OSError, check=lambda error: error.errno in codes)


def stream(family: int = socket.AF_INET) -> trio.socket.SocketType:
    return trio.socket.socket(family, socket.SOCK_STREAM)


def datagram(family: int = socket.AF_INET) -> trio.socket.SocketType:
    return trio.socket.socket(family, socket.SOCK_DGRAM)


async def listening(family: int = socket.AF_INET, host: str = L4) -> trio.socket.SocketType:
    sock = stream(family)
    await sock.bind((host, 0))
    sock.listen()
    return sock


async def pair() -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    """Two connected stream sockets."""
    with await listening() as listener:
        client = stream()
        await client.connect(listener.getsockname())
        server, address = await listener.accept()
        assert address == client.getsockname()
        return client, server


@asynccontextmanager
async def on_one_port(
    *wanted: tuple[Callable[[], trio.socket.SocketType], str],
) -> AsyncGenerator[list[trio.socket.SocketType]]:
    """Sockets on one port, each on its own address; retries if the port is taken on one of the addresses."""
    for _ in range(100):
        with ExitStack() as stack:
            found: list[trio.socket.SocketType] = []
            try:
                for make, host in wanted:
                    sock = stack.enter_context(make())
                    await sock.bind((host, found[0].getsockname()[1] if found else 0))
                    found.append(sock)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            yield found
            return
    raise AssertionError("no port can be had on all of these addresses")


async def until_readable(sock: trio.socket.SocketType) -> None:
    """Wait until a socket has bytes, an end or an error.  Even on loopback that may take a moment."""
    while not sock.is_readable():  # noqa: ASYNC110 - there is no event that both the kernel and the simulator have
        await trio.sleep(0.001)


async def blocks(fn: Callable[[], Awaitable[object]], seconds: float = 0.05) -> bool:
    """Whether a call blocks, as opposed to being slow on a busy machine."""
    ended = trio.Event()

    async def call() -> None:
        await fn()
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        with trio.move_on_after(seconds):
            await ended.wait()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return not ended.is_set()


# TCP


@behaviour
async def tcp_connect_and_names() -> None:
    a, b = await pair()
    with a, b:
        assert a.getpeername() == b.getsockname()
        assert b.getpeername() == a.getsockname()
        assert a.family == socket.AF_INET
        assert a.type == b.type == socket.SOCK_STREAM
        assert a.fileno() != -1


@behaviour
async def tcp_carries_bytes_both_ways() -> None:
    a, b = await pair()
    with a, b:
        assert await a.send(b"hello") == 5
        assert await b.recv(100) == b"hello"
        await b.send(bytearray(b"and"))
        await b.send(memoryview(b" back"))
        got = b""
        while len(got) < 8:
            got += await a.recv(3)
        assert got == b"and back"


@behaviour
async def tcp_peek_leaves_the_bytes() -> None:
    a, b = await pair()
    with a, b:
        await a.send(b"xyz")
        assert await b.recv(2, socket.MSG_PEEK) == b"xy"
        assert await b.recv(9) == b"xyz"


@behaviour
async def tcp_recv_into_and_recvfrom_and_recvmsg() -> None:
    a, b = await pair()
    with a, b:
        await a.send(b"12345678")
        buffer = bytearray(4)
        assert await b.recv_into(buffer, 2) == 2
        assert buffer == b"12\0\0"
        data, address = await b.recvfrom(2)
        assert (data, address) == (b"34", None)
        data, ancillary, _, address = await b.recvmsg(2)
        assert (data, ancillary, address) == (b"56", [], None)
        with pytest.raises(ValueError, match="buffer"):
            await b.recv_into(buffer, 5)


@behaviour
async def tcp_sendmsg_joins_buffers() -> None:
    a, b = await pair()
    with a, b:
        assert await a.sendmsg([b"one", b"two"]) == 6
        assert await b.recv(10) == b"onetwo"


@behaviour
async def tcp_takes_no_more_than_it_may_hold_unsent() -> None:
    with stream() as listener, stream() as a:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await listener.bind((L4, 0))
        listener.listen()
        await a.connect(listener.getsockname())
        b, _ = await listener.accept()
        a.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 16384)
        with b:
            taken = await a.send(bytes(1 << 20))
            assert 16384 <= taken <= 32768  # with the peer's receive buffer
            with trio.move_on_after(0.01) as scope:
                await a.send(b"x")
            assert scope.cancelled_caught
            while taken:
                taken -= len(await b.recv(65536))


@behaviour
async def tcp_connection_refused() -> None:
    with stream() as nobody, stream() as sock:
        await nobody.bind((L4, 0))  # has the port, and does not listen
        with fails_with(errno.ECONNREFUSED):
            await sock.connect(nobody.getsockname())
        assert sock.fileno() != -1
        with fails_with(errno.ECONNABORTED):
            await sock.connect(nobody.getsockname())
        with fails_with(errno.ECONNREFUSED):  # the socket can be used again
            await sock.connect(nobody.getsockname())


@behaviour
async def tcp_socket_may_try_again_after_a_refusal() -> None:
    with stream() as first, stream() as sock, stream() as nobody:
        for each in (first, sock):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await first.bind((L4, 0))
        await sock.bind(first.getsockname())  # an explicit port, which the socket keeps
        await nobody.bind((L4, 0))
        name = sock.getsockname()
        with fails_with(errno.ECONNREFUSED):
            await sock.connect(nobody.getsockname())
        with await listening() as listener:
            with fails_with(errno.ECONNABORTED):  # Linux: this call only resets the socket
                await sock.connect(listener.getsockname())
            await sock.connect(listener.getsockname())
            assert sock.getsockname() == name


@behaviour
async def tcp_operations_in_the_wrong_state() -> None:
    with stream() as sock:
        with fails_with(errno.ENOTCONN):
            await sock.recv(1)
        with fails_with(errno.EPIPE):
            await sock.send(b"x")
        with fails_with(errno.ENOTCONN):
            sock.getpeername()
        with fails_with(errno.ENOTCONN):
            sock.shutdown(socket.SHUT_WR)
        with fails_with(errno.EINVAL):
            await sock.accept()
        assert sock.getsockname() == ("0.0.0.0", 0)
    with await listening() as listener:
        with fails_with(errno.EISCONN):
            await listener.connect((L4, 1))
        with fails_with(errno.ENOTCONN):
            await listener.recv(1)
    a, b = await pair()
    with a, b:
        with fails_with(errno.EISCONN):
            await b.connect(a.getsockname())
        with fails_with(errno.EINVAL):
            a.listen()
        with fails_with(errno.EINVAL):
            await a.accept()
        with fails_with(errno.EINVAL):
            await a.bind((L4, 0))


@behaviour
async def everything_is_a_checkpoint() -> None:
    with await listening() as listener, stream() as sock, datagram() as a, datagram() as b:
        with trio.testing.assert_checkpoints():
            await sock.connect(listener.getsockname())
        with trio.testing.assert_checkpoints():
            accepted, _ = await listener.accept()
        with accepted:
            with trio.testing.assert_checkpoints():
                await sock.send(b"x")
            with trio.testing.assert_checkpoints():
                await accepted.recv(1)
            with trio.testing.assert_checkpoints():
                await accepted.wait_writable()
        with trio.testing.assert_checkpoints():
            await a.bind((L4, 0))
        with trio.testing.assert_checkpoints():
            await a.sendto(b"x", a.getsockname())
        with trio.testing.assert_checkpoints():
            await a.recvfrom(1)
        with trio.testing.assert_checkpoints():
            await b.connect(a.getsockname())
        with trio.testing.assert_checkpoints():
            await b.send(b"x")
        with trio.testing.assert_checkpoints():
            await a.recv(1)


@behaviour
async def tcp_zero_bytes() -> None:
    a, b = await pair()
    with a, b:
        assert await a.send(b"") == 0
        assert await a.recv(0) == b""


@behaviour
async def tcp_half_close() -> None:
    a, b = await pair()
    with a, b:
        await a.send(b"last words")
        a.shutdown(socket.SHUT_WR)
        assert a.did_shutdown_SHUT_WR
        assert await b.recv(100) == b"last words"
        assert await b.recv(100) == b""
        assert await b.recv(100) == b""
        with fails_with(errno.EPIPE):
            await a.send(b"more")
        await b.send(b"answer")
        assert await a.recv(100) == b"answer"


@behaviour
async def tcp_shutdown_for_reading() -> None:
    a, b = await pair()
    with a, b:
        a.shutdown(socket.SHUT_RD)
        assert not a.did_shutdown_SHUT_WR
        assert await a.recv(1) == b""
        await a.send(b"still")
        assert await b.recv(9) == b"still"


@behaviour
async def tcp_close_is_end_of_stream() -> None:
    a, b = await pair()
    with b:
        await a.send(b"bye")
        a.close()
        assert await b.recv(9) == b"bye"
        assert await b.recv(9) == b""


@behaviour
async def tcp_writing_to_a_closed_peer() -> None:
    a, b = await pair()
    with b:
        a.close()
        assert await b.recv(1) == b""
        await b.send(b"x")
        with fails_with(errno.EPIPE, errno.ECONNRESET):
            for _ in range(100):
                await b.send(b"x")
                await trio.sleep(0.01)


@behaviour
async def tcp_close_with_unread_data_resets() -> None:
    a, b = await pair()
    with b:
        await b.send(b"never read")
        await until_readable(a)
        a.close()
        with fails_with(errno.ECONNRESET):
            await b.recv(1)
        assert await b.recv(1) == b""
        with fails_with(errno.EPIPE):
            await b.send(b"x")


@behaviour
async def tcp_linger_zero_resets() -> None:
    a, b = await pair()
    with b:
        a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        a.close()
        with fails_with(errno.ECONNRESET):
            await b.recv(1)


@behaviour
async def tcp_data_before_a_reset_can_be_read() -> None:
    a, b = await pair()
    with b:
        await a.send(b"kept")
        await until_readable(b)
        a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        a.close()
        await trio.sleep(0.01)
        with fails_with(errno.ECONNRESET):
            while await b.recv(100):
                pass


@behaviour
async def tcp_so_error_shows_an_error_once() -> None:
    a, b = await pair()
    with b:
        a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        a.close()
        await until_readable(b)
        assert b.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
        assert b.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert await b.recv(1) == b""


@behaviour
async def tcp_backpressure() -> None:
    a, b = await pair()
    with a, b:
        sent = 0
        while sent < 1 << 26 and not await blocks(a.wait_writable):
            sent += await a.send(bytes(1 << 16))
        assert sent < 1 << 26
        got = 0
        while got < sent:
            got += len(await b.recv(1 << 20))
        assert got == sent
        await a.wait_writable()


@behaviour
async def tcp_a_big_transfer_is_intact() -> None:
    a, b = await pair()
    data = bytes(range(256)) * 4096
    with a, b:

        async def send() -> None:
            with memoryview(data) as view:
                at = 0
                while at < len(data):
                    at += await a.send(view[at:])
            a.shutdown(socket.SHUT_WR)

        got = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while chunk := await b.recv(50000):
                got += chunk
        assert got == data


@behaviour
async def tcp_closing_wakes_the_reader_and_the_acceptor() -> None:
    a, b = await pair()
    listener = await listening()

    async def expect_closed(fn: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await fn()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed, partial(a.recv, 1))
        nursery.start_soon(expect_closed, listener.accept)
        await trio.testing.wait_all_tasks_blocked()
        a.close()
        listener.close()
    with fails_with(errno.EBADF):
        await a.recv(1)
    with fails_with(errno.EBADF):
        await a.send(b"x")
    with fails_with(errno.EBADF):
        a.getsockname()
    with fails_with(errno.EBADF):
        listener.listen()
    assert a.fileno() == -1
    a.close()
    b.close()


@behaviour
async def tcp_two_readers_are_one_too_many() -> None:
    a, b = await pair()
    with a, b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.recv, 1)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await a.recv(1)
            nursery.cancel_scope.cancel()


@behaviour
async def tcp_cancelling_connect_closes_the_socket() -> None:
    sock = stream()
    with await listening() as listener, trio.CancelScope() as scope:
        scope.cancel()
        await sock.connect(listener.getsockname())
    assert scope.cancelled_caught
    assert sock.fileno() == -1


@behaviour
async def tcp_cancelling_recv_loses_nothing() -> None:
    a, b = await pair()
    with a, b:
        assert await blocks(lambda: b.recv(10))
        await a.send(b"x")
        with trio.CancelScope() as scope:
            scope.cancel()
            await b.recv(10)
        assert await b.recv(10) == b"x"


@behaviour
async def tcp_wrong_arguments() -> None:
    a, b = await pair()
    with a, b:
        with pytest.raises(TypeError):
            await a.recv(1.5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="negative"):
            await a.recv(-1)
        with pytest.raises(TypeError):
            await a.send("text")  # type: ignore[arg-type]
    with stream() as sock:
        with pytest.raises(ValueError, match="address"):
            await sock.connect("127.0.0.1")
        with pytest.raises(ValueError, match="address"):
            await sock.bind((L4, 1, 2))
        with pytest.raises(OverflowError):
            await sock.bind((L4, 70000))


@behaviour
async def tcp_bind_rules() -> None:
    async with on_one_port((stream, L4), (stream, "127.0.0.2")) as (listener, elsewhere):
        listener.listen()
        port = listener.getsockname()[1]
        with stream() as sock:
            with fails_with(errno.EADDRINUSE):
                await sock.bind((L4, port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with fails_with(errno.EADDRINUSE):  # somebody listens
                await sock.bind(("0.0.0.0", port))
        with fails_with(errno.EINVAL):
            await elsewhere.bind((L4, 0))
    with stream() as sock, fails_with(errno.EADDRNOTAVAIL):
        await sock.bind(("192.0.2.77", 0))


@behaviour
async def tcp_reuse_options() -> None:
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        with stream() as first, stream() as second, stream() as plain:
            first.setsockopt(socket.SOL_SOCKET, option, 1)
            second.setsockopt(socket.SOL_SOCKET, option, 1)
            await first.bind((L4, 0))
            await second.bind(first.getsockname())
            with fails_with(errno.EADDRINUSE):
                await plain.bind(first.getsockname())
            first.listen()
            if option == socket.SO_REUSEADDR:
                with fails_with(errno.EADDRINUSE):
                    second.listen()
            else:
                second.listen()


@behaviour
async def tcp_reuse_must_be_said_before_the_first_bind() -> None:
    with stream() as first, stream() as second:
        await first.bind((L4, 0))
        second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with fails_with(errno.EADDRINUSE):
            await second.bind(first.getsockname())


@behaviour
async def tcp_a_listener_beside_a_connected_socket_on_one_port() -> None:
    with await listening() as far, stream() as near, stream() as listener:
        for sock in (near, listener):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        await near.bind((L4, 0))
        await listener.bind(near.getsockname())
        listener.listen()
        await near.connect(far.getsockname())
        with stream() as caller:
            await caller.connect(listener.getsockname())
            (await listener.accept())[0].close()


@behaviour
async def tcp_the_same_pair_of_endpoints_is_taken() -> None:
    with await listening() as far, stream() as first, stream() as second:
        for sock in (first, second):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await first.bind((L4, 0))
        await second.bind(first.getsockname())
        await first.connect(far.getsockname())
        with fails_with(errno.EADDRNOTAVAIL):
            await second.connect(far.getsockname())


@behaviour
async def tcp_a_socket_can_connect_to_itself() -> None:
    with stream() as sock:
        await sock.bind((L4, 0))
        await sock.connect(sock.getsockname())
        await sock.send(b"echo")
        assert await sock.recv(9) == b"echo"


@behaviour
async def tcp_wildcards() -> None:
    with await listening(host="0.0.0.0") as listener, stream() as sock:
        assert listener.getsockname()[0] == "0.0.0.0"
        await sock.connect(("0.0.0.0", listener.getsockname()[1]))
        assert sock.getpeername()[0] == L4
        accepted, _ = await listener.accept()
        with accepted:
            assert accepted.getsockname()[0] == L4


@behaviour
async def tcp_dual_stack() -> None:
    with stream(socket.AF_INET6) as listener, stream() as sock:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        await listener.bind(("::", 0))
        listener.listen()
        await sock.connect((L4, listener.getsockname()[1]))
        accepted, address = await listener.accept()
        with accepted:
            assert address[0] == "::ffff:127.0.0.1"
            assert len(address) == 4
            assert accepted.getsockname()[0] == "::ffff:127.0.0.1"


@behaviour
async def tcp_v6only() -> None:
    def v6only() -> trio.socket.SocketType:
        sock = stream(socket.AF_INET6)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        return sock

    async with on_one_port((v6only, "::"), (stream, "0.0.0.0")) as (listener, other):
        listener.listen()
        with stream() as sock, fails_with(errno.ECONNREFUSED):  # because the other socket does not listen
            await sock.connect((L4, other.getsockname()[1]))
        with fails_with(errno.EINVAL):
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)


@behaviour
async def tcp_over_ipv6() -> None:
    with await listening(socket.AF_INET6, "::1") as listener, stream(socket.AF_INET6) as sock:
        await sock.connect(listener.getsockname())
        assert sock.getpeername()[:2] == listener.getsockname()[:2]
        assert len(sock.getsockname()) == 4
        (await listener.accept())[0].close()


@behaviour
async def tcp_closed_listener_resets_what_waits() -> None:
    listener = await listening()
    with stream() as sock:
        await sock.connect(listener.getsockname())
        listener.close()
        with fails_with(errno.ECONNRESET):
            await sock.recv(1)


@behaviour
async def tcp_a_port_in_use_by_an_accepted_connection() -> None:
    listener = await listening()
    with stream() as sock:
        await sock.connect(listener.getsockname())
        accepted, _ = await listener.accept()
        name = listener.getsockname()
        listener.close()
        with accepted, stream() as other:
            with fails_with(errno.EADDRINUSE):
                await other.bind(name)


@behaviour
async def tcp_options() -> None:
    with await listening() as listener, stream() as sock:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, struct.pack("i", 1))
        assert struct.unpack("i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 4)) == (1,)
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 64
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 5)
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 5
        with fails_with(errno.EINVAL):
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 0)
        with fails_with(errno.EINVAL):
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 256)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 30000)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 60000
        with fails_with(errno.ENOPROTOOPT):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_ERROR, 1)
        with pytest.raises(TypeError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, None)  # type: ignore[call-overload]


@behaviour
async def tcp_is_readable() -> None:
    a, b = await pair()
    with a, b:
        assert not b.is_readable()
        await a.send(b"x")
        await until_readable(b)
        assert b.is_readable()


@behaviour
async def tcp_backlog_can_be_changed() -> None:
    with await listening() as listener:
        listener.listen(1)
        listener.listen(100)


# UDP


@behaviour
async def udp_send_and_receive() -> None:
    with datagram() as a, datagram() as b:
        await a.bind((L4, 0))
        await b.bind((L4, 0))
        assert await a.sendto(b"one", b.getsockname()) == 3
        assert await a.sendto(b"", b.getsockname()) == 0
        assert await a.sendto(b"two", 0, b.getsockname()) == 3
        assert await b.recvfrom(100) == (b"one", a.getsockname())
        assert await b.recvfrom(100) == (b"", a.getsockname())
        assert await b.recv(2) == b"tw"  # the rest of the datagram is gone
        assert not b.is_readable()


@behaviour
async def udp_is_bound_by_sending() -> None:
    with datagram() as a, datagram() as b:
        await b.bind((L4, 0))
        await a.sendto(b"x", b.getsockname())
        assert a.getsockname()[0] == "0.0.0.0"
        assert a.getsockname()[1] != 0
        assert (await b.recvfrom(1))[1] == (L4, a.getsockname()[1])


@behaviour
async def udp_connected() -> None:
    with datagram() as a, datagram() as b, datagram() as stranger:
        await b.bind((L4, 0))
        await stranger.bind((L4, 0))
        await a.connect(b.getsockname())
        assert a.getpeername() == b.getsockname()
        assert a.getsockname()[0] == L4
        await a.send(b"hello")
        data, source = await b.recvfrom(9)
        assert (data, source) == (b"hello", a.getsockname())
        await stranger.sendto(b"not for you", a.getsockname())
        await b.sendto(b"for you", a.getsockname())
        assert await a.recv(99) == b"for you"
        await a.connect(stranger.getsockname())
        assert a.getpeername() == stranger.getsockname()


@behaviour
async def udp_refusal_shows_on_connected_sockets_only() -> None:
    with datagram() as nobody, datagram() as connected, datagram() as plain:
        await nobody.bind((L4, 0))
        await nobody.connect(nobody.getsockname())  # has the port, and accepts only its own packets
        await connected.connect(nobody.getsockname())
        await connected.send(b"x")
        with fails_with(errno.ECONNREFUSED):
            await connected.recv(1)
        await connected.send(b"x")
        await until_readable(connected)
        with fails_with(errno.ECONNREFUSED):
            await connected.send(b"x")
        await connected.send(b"x")
        await until_readable(connected)
        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
        await plain.sendto(b"x", nobody.getsockname())
        assert await blocks(lambda: plain.recv(1))
        await plain.sendto(b"x", nobody.getsockname())


@behaviour
async def udp_errors() -> None:
    with datagram() as sock:
        with fails_with(errno.EDESTADDRREQ):
            await sock.send(b"x")
        with fails_with(errno.ENOTCONN):
            sock.getpeername()
        with fails_with(errno.ENOTCONN):
            sock.shutdown(socket.SHUT_WR)
        with fails_with(errno.EMSGSIZE):
            await sock.sendto(bytes(65508), (L4, 9))
        with fails_with(errno.EINVAL):
            await sock.sendto(b"x", (L4, 0))
        with fails_with(errno.EOPNOTSUPP):
            sock.listen()
        with fails_with(errno.EOPNOTSUPP):
            await sock.accept()
        with fails_with(errno.EACCES, errno.ENETUNREACH):  # the latter without any route
            await sock.sendto(b"x", ("255.255.255.255", 9))
        with pytest.raises(ValueError, match="address"):
            await sock.sendto(b"x")  # type: ignore[call-overload]
        with pytest.raises(TypeError):
            await sock.sendto(b"x", 0, 0, (L4, 9))  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="address"):
            await sock.sendto(b"x", "nobody")
    with fails_with(errno.EBADF):
        await sock.sendto(b"x", (L4, 9))
    with fails_with(errno.EBADF):
        await sock.recvfrom(1)


@behaviour
async def udp_from_loopback_to_elsewhere() -> None:
    with datagram() as sock:
        await sock.bind((L4, 0))
        with fails_with(errno.EINVAL, errno.ENETUNREACH):
            await sock.sendto(b"x", ("192.0.2.1", 9))


@behaviour
async def udp_biggest_datagram() -> None:
    with datagram() as a, datagram() as b:
        await b.bind((L4, 0))
        await a.sendto(bytes(65507), b.getsockname())
        assert len((await b.recvfrom(1 << 17))[0]) == 65507


@behaviour
async def udp_receive_buffer_has_an_end() -> None:
    with datagram() as a, datagram() as b:
        await b.bind((L4, 0))
        b.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20000)
        for _ in range(1000):
            await a.sendto(bytes(100), b.getsockname())
        await trio.sleep(0.01)
        count = 0
        while b.is_readable():
            await b.recv(100)
            count += 1
        assert 10 < count < 500


@behaviour
async def udp_reuse() -> None:
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        with datagram() as first, datagram() as second, datagram() as plain:
            first.setsockopt(socket.SOL_SOCKET, option, 1)
            second.setsockopt(socket.SOL_SOCKET, option, 1)
            await first.bind((L4, 0))
            await second.bind(first.getsockname())
            with fails_with(errno.EADDRINUSE):
                await plain.bind(first.getsockname())
            if option == socket.SO_REUSEADDR:
                await plain.sendto(b"x", first.getsockname())
                await until_readable(second)  # the socket that was bound last
                assert not first.is_readable()


@behaviour
async def udp_specific_address_wins() -> None:
    def shared() -> trio.socket.SocketType:
        sock = datagram()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return sock

    async with on_one_port((shared, L4), (shared, "0.0.0.0")) as (narrow, wide):
        with datagram() as sender:
            await sender.sendto(b"x", narrow.getsockname())
            await until_readable(narrow)
            assert not wide.is_readable()


@behaviour
async def udp_recv_into_and_recvmsg_and_sendmsg() -> None:
    with datagram() as a, datagram() as b:
        await a.bind((L4, 0))
        await b.bind((L4, 0))
        assert await a.sendmsg([b"12", b"34"], [], 0, b.getsockname()) == 4
        buffer = bytearray(10)
        count, source = await b.recvfrom_into(buffer)
        assert (count, bytes(buffer[:4]), source) == (4, b"1234", a.getsockname())
        await a.sendto(b"long one", b.getsockname())
        data, ancillary, flags, source = await b.recvmsg(4)
        assert (data, ancillary, source) == (b"long", [], a.getsockname())
        assert flags & socket.MSG_TRUNC
        await a.sendto(b"abc", b.getsockname())
        assert await b.recv_into(buffer) == 3


@behaviour
async def udp_closing_wakes_the_reader() -> None:
    sock = datagram()
    await sock.bind((L4, 0))

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await sock.recvfrom(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        sock.close()


@behaviour
async def udp_dual_stack() -> None:
    with datagram(socket.AF_INET6) as six, datagram() as four:
        six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        await six.bind(("::", 0))
        await four.bind((L4, 0))
        await four.sendto(b"x", (L4, six.getsockname()[1]))
        _, source = await six.recvfrom(1)
        assert source == ("::ffff:127.0.0.1", four.getsockname()[1], 0, 0)
        await six.sendto(b"y", source)
        assert await four.recvfrom(1) == (b"y", (L4, six.getsockname()[1]))


@behaviour
async def udp_over_ipv6() -> None:
    with datagram(socket.AF_INET6) as a, datagram(socket.AF_INET6) as b:
        await b.bind(("::1", 0))
        await a.sendto(b"x", b.getsockname())
        data, source = await b.recvfrom(9)
        assert data == b"x"
        assert source[0] == "::1"
        assert len(source) == 4


@behaviour
async def udp_multicast_group_membership() -> None:
    with datagram() as sock:
        request = socket.inet_aton("239.255.255.250") + socket.inet_aton("0.0.0.0")
        with fails_with(errno.EINVAL):
            bad = socket.inet_aton("10.1.1.1") + socket.inet_aton("0.0.0.0")
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, bad)
        with fails_with(errno.EADDRNOTAVAIL, errno.ENODEV):
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, request)


@behaviour
async def sockets_of_no_such_kind() -> None:
    with fails_with(errno.EPROTONOSUPPORT):
        trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_UDP)
    with fails_with(errno.EPROTONOSUPPORT):
        trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_TCP)


@behaviour
async def names_of_this_machine() -> None:
    found = await trio.socket.getaddrinfo("localhost", 80, socket.AF_INET, socket.SOCK_STREAM)
    assert found[0][4] == (L4, 80)
    with await listening() as listener, stream() as sock:
        await sock.connect(("localhost", listener.getsockname()[1]))
        (await listener.accept())[0].close()


async def answers(*args: object, **more: int) -> list[object]:
    """The addresses that a lookup returns, or the error that it raises."""
    try:
        found = await trio.socket.getaddrinfo(*args, **more)  # type: ignore[arg-type]
    except socket.gaierror as error:
        return [error.errno]
    return list(dict.fromkeys(each[4] for each in found if each[0] == socket.AF_INET or each[4][0] != "::1"))


@behaviour
async def lookups_and_their_flags() -> None:
    stream = {"type": socket.SOCK_STREAM}
    assert await answers("localhost", 70000, **stream) == [(L4, 4464)]  # glibc uses 16 bits of a port
    assert await answers("localhost", -1, **stream) == [socket.EAI_SERVICE]
    assert await answers("localhost", "no-such-service", **stream) == [socket.EAI_SERVICE]
    assert await answers("localhost", "https", **stream) == [(L4, 443)]
    assert await answers("localhost", "https", **stream, flags=socket.AI_NUMERICSERV) == [socket.EAI_NONAME]
    assert await answers("localhost", 80, **stream, flags=socket.AI_NUMERICHOST) == [socket.EAI_NONAME]
    assert await answers("localhost", 80, **stream, proto=socket.IPPROTO_UDP) == [socket.EAI_SOCKTYPE]
    assert await answers("localhost", 80, **stream, flags=1 << 20) == [socket.EAI_BADFLAGS]
    assert await answers("localhost", 80, family=77) == [socket.EAI_FAMILY]
    assert await answers(None, None) == [socket.EAI_NONAME]
    assert await answers(None, 80, **stream, flags=socket.AI_CANONNAME) == [socket.EAI_BADFLAGS]
    found = await trio.socket.getaddrinfo("localhost", 80, socket.AF_INET, socket.SOCK_STREAM, 0, socket.AI_CANONNAME)
    assert [each[3] for each in found] == ["localhost"]


@behaviour
async def addresses_to_listen_on() -> None:
    found = await trio.socket.getaddrinfo(None, 80, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    assert [each[4][0] for each in found] == ["0.0.0.0", "::"]


@behaviour
async def names_of_addresses() -> None:
    ask = trio.socket.getnameinfo
    assert await ask((L4, 80), 0) == ("localhost", "http")
    assert await ask((L4, 80), socket.NI_NUMERICHOST) == (L4, "http")
    assert await ask((L4, 80), socket.NI_NUMERICSERV | socket.NI_NAMEREQD) == ("localhost", "80")
    assert await ask((L4, 12345), 0) == ("localhost", "12345")
    with pytest.raises(socket.gaierror):
        await ask(("localhost", 80), 0)
    with pytest.raises(OSError, match="2 tuple"):
        await ask((L4, 80, 0, 0), 0)


@behaviour
async def flags_that_change_nothing() -> None:
    a, b = await pair()
    with a, b, datagram() as one, datagram() as other:
        await other.bind((L4, 0))
        await a.send(b"xy", socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        await until_readable(b)
        assert await b.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b"x"
        assert await b.recv(9, socket.MSG_WAITALL) == b"xy"
        await one.sendto(b"xy", socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT, other.getsockname())
        assert await other.recv(9, socket.MSG_DONTWAIT) == b"xy"


@behaviour
async def udp_more_joins_datagrams() -> None:
    with datagram() as one, datagram() as other:
        await other.bind((L4, 0))
        name = other.getsockname()
        assert await one.sendto(b"one", socket.MSG_MORE, name) == 3
        assert await one.sendto(b"two", socket.MSG_MORE, (L4, 1)) == 3
        assert await one.sendto(b"three", name) == 5
        await one.sendto(b"alone", name)
        assert (await other.recv(99), await other.recv(99)) == (b"onetwothree", b"alone")


@behaviour
async def udp_trunc_tells_the_whole_length() -> None:
    with datagram() as sock:
        await sock.bind((L4, 0))
        for _ in range(3):
            await sock.sendto(b"12345678", sock.getsockname())
        buffer = bytearray(4)
        assert await sock.recv_into(buffer, 4, socket.MSG_TRUNC) == 8
        assert buffer == b"1234"
        assert (await sock.recvmsg(4))[::2] == (b"1234", socket.MSG_TRUNC)
        parts = bytearray(2), bytearray(3)
        assert await sock.recvmsg_into(parts) == (5, [], socket.MSG_TRUNC, sock.getsockname())
        assert b"".join(parts) == b"12345"


@behaviour
async def tcp_recvmsg_into() -> None:
    a, b = await pair()
    with a, b:
        await a.send(b"abcd")
        parts = bytearray(1), bytearray(9)
        assert (await b.recvmsg_into(parts))[:2] == (4, [])
        assert parts[1].rstrip(b"\0") == b"bcd"


@behaviour
async def options_of_four_arguments() -> None:
    with stream() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, None, 0)
        with fails_with(errno.EINVAL):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, None, 0)
        with fails_with(errno.EFAULT):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, None, 4)
        with pytest.raises(TypeError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1, 4)  # type: ignore[call-overload]


@behaviour
async def duplicates_are_one_socket() -> None:
    a, b = await pair()
    with a, b:
        with a.dup() as twin:
            assert twin.fileno() != a.fileno()
            assert twin.getsockname() == a.getsockname()
            a.close()
            with fails_with(errno.EBADF):
                await a.send(b"x")
            await twin.send(b"still open")
            assert await b.recv(99) == b"still open"
        assert await b.recv(1) == b""


@behaviour
async def closing_a_duplicate_wakes_its_own_reader() -> None:
    a, b = await pair()

    async def read(sock: trio.socket.SocketType) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await sock.recv(1)

    with b, a.dup() as twin:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, a)
            await trio.testing.wait_all_tasks_blocked()
            a.close()
        await b.send(b"x")
        assert await twin.recv(1) == b"x"


# Sockets that come from the standard library


@behaviour
async def plain_sockets_become_trios() -> None:
    """anyio and hypercorn make their listeners like this."""
    plain = socket.socket()
    plain.setblocking(False)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    plain.set_inheritable(True)
    plain.bind(("localhost", 0))
    plain.listen(5)
    assert plain.getsockname()[0] == L4
    with trio.socket.from_stdlib_socket(plain) as listener, stream() as sock:
        assert listener.getsockname() == plain.getsockname()
        assert listener.fileno() == plain.fileno()
        await sock.connect(listener.getsockname())
        accepted, address = await listener.accept()
        assert address == sock.getsockname()
        with accepted:
            await sock.send(b"hello")
            assert await accepted.recv(9) == b"hello"
    assert plain.fileno() == -1


@behaviour
async def pairs_of_sockets() -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        left, right = trio.socket.socketpair(type=kind)
        with left, right:
            await left.send(b"x")
            assert await right.recv(9) == b"x"
            await right.send(b"y")
            assert await left.recv(9) == b"y"


@behaviour
async def sockets_by_number() -> None:
    a, b = await pair()
    with b:
        with trio.socket.fromfd(a.fileno()) as same:
            assert same.fileno() != a.fileno()
            assert same.getsockname() == a.getsockname()
        await a.send(b"x")
        assert await b.recv(1) == b"x"
        number = a.detach()
        assert a.fileno() == -1
        with trio.socket.socket(fileno=number) as again:
            assert (again.fileno(), again.type) == (number, socket.SOCK_STREAM)
            await again.send(b"y")
            assert await b.recv(1) == b"y"
        assert await b.recv(1) == b""
        with fails_with(errno.EBADF):
            a.getsockname()


@behaviour
async def plain_sockets_that_do_not_block() -> None:
    with socket.socket() as listener, socket.socket() as caller, socket.socket(type=socket.SOCK_DGRAM) as plain:
        assert (caller.gettimeout(), caller.getblocking()) == (None, True)
        for each in (listener, caller, plain):
            each.setblocking(False)
            assert each.gettimeout() == 0
            each.bind((L4, 0))
        listener.listen()
        with pytest.raises(BlockingIOError):
            listener.accept()
        with pytest.raises(BlockingIOError):
            plain.recv(1)
        assert caller.connect_ex(listener.getsockname()) in (0, errno.EINPROGRESS)
        await trio.lowlevel.wait_readable(listener)
        accepted, address = listener.accept()
        with accepted:
            accepted.setblocking(False)
            assert address == caller.getsockname()
            await trio.lowlevel.wait_writable(caller)
            caller.sendall(b"12345")
            await trio.lowlevel.wait_readable(accepted.fileno())
            assert accepted.recv(2) == b"12"
            buffer = bytearray(2)
            assert accepted.recv_into(buffer) == 2
            assert accepted.recvmsg(9)[0] == b"5"
            assert accepted.family == socket.AF_INET
            assert accepted.getpeername() == address
        plain.sendto(b"to me", plain.getsockname())
        await trio.lowlevel.wait_readable(plain)
        assert plain.recvfrom(99) == (b"to me", plain.getsockname())
        with plain.dup() as twin:
            assert twin.getsockname() == plain.getsockname()


# Streams


@behaviour
async def stream_laws() -> None:
    async def maker() -> tuple[trio.SocketStream, trio.SocketStream]:
        a, b = await pair()
        return trio.SocketStream(a), trio.SocketStream(b)

    # No clogged maker: the kernel's buffers are elastic (test_carries.py tests it for the simulator).
    await trio.testing.check_half_closeable_stream(maker, None)


@behaviour
async def stream_errors() -> None:
    a, b = await pair()
    one, two = trio.SocketStream(a), trio.SocketStream(b)
    await one.send_eof()
    await one.send_eof()
    with pytest.raises(trio.ClosedResourceError):
        await one.send_all(b"x")
    assert await two.receive_some() == b""
    await two.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await two.receive_some()
    await one.aclose()


@behaviour
async def serving() -> None:
    async def echo(client: trio.SocketStream) -> None:
        async for chunk in client:
            await client.send_all(chunk)

    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(partial(trio.serve_tcp, echo, 0, host=L4))
        port = listeners[0].socket.getsockname()[1]
        async with await trio.open_tcp_stream(L4, port) as client:
            await client.send_all(b"hello")
            assert await client.receive_some() == b"hello"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("fn", BEHAVIOURS, ids=lambda fn: fn.__name__)
def test_simulator(fn: Callable[[], Awaitable[None]]) -> None:
    on_simulator(fn)


OF_THIS_MACHINE = [
    pytest.param(fn, marks=pytest.mark.needs("ipv6") if fn.__name__.endswith("over_ipv6") else ()) for fn in BEHAVIOURS
]


@pytest.mark.skipif(sys.platform != "linux", reason="the simulator follows Linux")
@pytest.mark.parametrize("fn", OF_THIS_MACHINE, ids=lambda fn: fn.__name__)
def test_kernel(fn: Callable[[], Awaitable[None]]) -> None:
    on_kernel(fn)


@pytest.mark.slow("another interpreter")
@pytest.mark.needs("network_namespaces")
def test_ports_that_others_have_on_some_address_fail_nothing() -> None:
    command = ["unshare", "--net", sys.executable, "-m", "tests.sim.crowded"]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
