"""Local ports that lead to the peer's network, with two nodes and real sockets on loopback."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio

from tests.hangs import HANG
from tests.identities import ALICE, BOB
from tests.nodes import config, loopback_node, pipes
from tests.waiting import wait_until
from warpgate_trio import Node, Pipe, anyone
from warpgate_trio.errors import TargetRefused
from warpgate_trio.forwarding import (
    Answer,
    Bindable,
    Exposed,
    Target,
    handle_bound,
    handle_forward,
    is_forward,
    open_target,
    serve_forward,
    serve_reverse,
)
from warpgate_trio.forwarding.copying import MAX_PIECES, resetting, send_pieces
from warpgate_trio.forwarding.lookups import MAX_WAITING
from warpgate_trio.link import RefuseReason
from warpgate_trio.link.channel import Channel
from warpgate_trio.link.openings import Openings
from warpgate_trio.servers.rendezvous import open_rendezvous

pytestmark = pytest.mark.usefixtures("jumping_clock")


class Service:
    """A TCP service on loopback, which echoes unless the test gives it another function for its connections."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self.target = Target("127.0.0.1", listener.socket.getsockname()[1])
        self.count = 0

    async def echo(self, stream: trio.SocketStream) -> None:
        self.count += 1
        async for data in stream:
            await stream.send_all(data)
        await stream.send_eof()


@asynccontextmanager
async def service(
    serve: Callable[[Service, trio.SocketStream], Awaitable[None]] = Service.echo,
) -> AsyncGenerator[Service]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    found = Service(listener)

    async def handler(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async with stream:
                await serve(found, stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.serve_listeners, handler, [listener]))
        yield found
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def exposing(exposed: Exposed, bindable: Bindable | None = None) -> AsyncGenerator[Pipe]:
    """Alice's Pipe to Bob, who exposes targets."""
    with trio.fail_after(HANG):
        async with pipes() as (ours, _theirs, both), trio.open_nursery() as nursery:
            nursery.start_soon(serve, both.bob, partial(handle_forward, exposed=exposed, bindable=bindable))
            yield ours
            nursery.cancel_scope.cancel()


async def serve(node: Node, handler: Callable[[Pipe], Awaitable[None]]) -> None:
    """An application's loop over its listener, for Pipes that forward."""

    async def one(pipe: Pipe) -> None:
        try:
            async with pipe:
                assert is_forward(pipe)
                await handler(pipe)
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(one, await node.listener.accept())


@asynccontextmanager
async def forwarded(
    pipe: Pipe, target: Target, problems: list[Exception] | None = None
) -> AsyncGenerator[tuple[str, int]]:
    """A local port that leads to the target."""
    told = [] if problems is None else problems
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve_forward, lambda: pipe, target, listener, on_problem=told.append))
        yield "127.0.0.1", listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([data async for data in stream])


async def test_a_port_leads_to_a_target_of_the_peers() -> None:
    """Each connection is a stream of its own, and each of its directions ends by itself."""
    async with service() as there, exposing(Exposed([str(there.target)])) as pipe:
        async with forwarded(pipe, there.target) as port:
            for size in (0, 1, 3_000_000):
                data = os.urandom(size)
                async with await trio.open_tcp_stream(*port) as stream, trio.open_nursery() as nursery:

                    async def send(stream: trio.SocketStream = stream, data: bytes = data) -> None:
                        await stream.send_all(data)
                        await stream.send_eof()

                    nursery.start_soon(send)
                    assert await read_all(stream) == data
            assert there.count == 3


async def test_who_speaks_first_does_not_matter() -> None:
    """A service that speaks first and ends its direction at once still receives what the client sends."""
    heard: list[bytes] = []

    async def greet(_: Service, stream: trio.SocketStream) -> None:
        await stream.send_all(b"220 hello")
        await stream.send_eof()
        heard.append(await read_all(stream))

    async with service(greet) as there, exposing(Exposed([str(there.target)])) as pipe:
        async with forwarded(pipe, there.target) as port, await trio.open_tcp_stream(*port) as stream:
            assert await read_all(stream) == b"220 hello"
            await stream.send_all(b"and goodbye")
            await stream.send_eof()
            while not heard:
                await trio.lowlevel.checkpoint()
    assert heard == [b"and goodbye"]


async def test_what_a_client_has_said_already_goes_with_the_question_for_its_pipe() -> None:
    writes: list[bool] = []
    first: list[int] = []

    async def echo(there: Service, stream: trio.SocketStream) -> None:
        async for data in stream:
            first.append(len(writes))
            await stream.send_all(data)

    async with service(echo) as there, exposing(Exposed([str(there.target)])) as pipe:
        flush = pipe.carrier.flush

        async def counted() -> None:
            writes.append(True)
            await flush()

        await pipe.ping()
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener, await trio.open_tcp_stream(*listener.socket.getsockname()[:2]) as stream:
            await stream.send_all(b"hello")
            async with trio.open_nursery() as nursery:
                pipe.carrier.flush = counted  # type: ignore[method-assign]
                nursery.start_soon(serve_forward, lambda: pipe, there.target, listener)
                assert await stream.receive_some() == b"hello"
                nursery.cancel_scope.cancel()
    assert first == [1]


async def test_pieces_are_sent_in_order_however_much_of_them_the_system_takes() -> None:
    pieces: list[bytes | memoryview] = [os.urandom(size) for size in (1, 70_000, 3)]
    pieces += [memoryview(os.urandom(size)) for size in range(1, 2 * MAX_PIECES)]
    ours, theirs = trio.socket.socketpair()
    ours.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, 4096)
    async with trio.SocketStream(ours) as sender, trio.SocketStream(theirs) as receiver:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await send_pieces(sender, pieces)
                await sender.send_eof()

            nursery.start_soon(send)
            assert await read_all(receiver) == b"".join(pieces)
        await receiver.aclose()
        with pytest.raises(trio.BrokenResourceError, match="the connection broke: Broken pipe"):
            await send_pieces(sender, pieces)


async def test_what_is_not_exposed_is_reset() -> None:
    """The service gets nothing of it, and the connections beside it are not disturbed."""
    problems: list[Exception] = []
    async with service() as there, service() as hidden, exposing(Exposed([str(there.target)])) as pipe:
        async with forwarded(pipe, hidden.target, problems) as port:
            async with await trio.open_tcp_stream(*port) as stream:
                with pytest.raises(trio.BrokenResourceError) as raised:
                    await stream.receive_some()
            assert isinstance(raised.value.__cause__, OSError)
            assert raised.value.__cause__.errno == errno.ECONNRESET
        (problem,) = problems
        assert isinstance(problem, TargetRefused)
        assert problem.answer == Answer.NOT_EXPOSED
        assert str(problem) == f"{hidden.target} is not exposed here"
        assert hidden.count == 0
        further = await open_target(pipe, there.target)
        async with further:
            await further.send_all(b"ping")
            assert await further.receive_some() == b"ping"


async def test_a_target_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = Target("127.0.0.1", taken.getsockname()[1])
    async with exposing(Exposed(["127.0.0.1:*"])) as pipe:
        with pytest.raises(TargetRefused, match="refused") as raised:
            await open_target(pipe, nobody)
        assert raised.value.answer == Answer.UNREACHABLE


async def test_a_name_that_leads_nowhere() -> None:
    async with exposing(Exposed(["nowhere.invalid:80"])) as pipe:
        with pytest.raises(TargetRefused, match=r"nowhere\.invalid:80: the name cannot be resolved"):
            await open_target(pipe, Target("nowhere.invalid", 80))


async def test_a_name_that_leads_elsewhere_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked up once, and the address that was judged is dialled (no DNS rebinding)."""
    asked = 0

    async def answer(host: str, port: int, **_: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        nonlocal asked
        asked += 1
        await trio.lowlevel.checkpoint()
        return [(2, 1, 6, "", ("127.0.0.1" if asked == 1 else "127.0.0.2", port))]

    async with service() as there, exposing(Exposed([f"127.0.0.1:{there.target.port}"])) as pipe:
        monkeypatch.setattr(trio.socket, "getaddrinfo", answer)
        further = await open_target(pipe, Target("there.lan", there.target.port))
        async with further:
            await further.send_all(b"ping")
            assert await further.receive_some() == b"ping"
        assert asked == 1
        with pytest.raises(TargetRefused, match="not exposed"):
            await open_target(pipe, Target("there.lan", there.target.port))


async def test_a_name_on_the_list_does_not_lead_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(host: str, port: int, **_: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        await trio.lowlevel.checkpoint()
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    async with service() as there, exposing(Exposed([f"there.lan:{there.target.port}"])) as pipe:
        monkeypatch.setattr(trio.socket, "getaddrinfo", answer)
        with pytest.raises(TargetRefused, match="not exposed"):
            await open_target(pipe, Target("there.lan", there.target.port))
        assert there.count == 0


@pytest.mark.parametrize("label", ["tcp:", "tcp:nonsense", "tcp:h:0", "bind:h:70000", "tcp:" + "x" * 240 + ":1"])
async def test_labels_that_name_no_target(label: str) -> None:
    async with exposing(Exposed(["127.0.0.1:*"])) as pipe, await pipe.open_pipe(label) as further:
        answer = await further.receive_some(1)
        assert answer == bytes([Answer.MALFORMED])


async def test_a_target_that_does_not_answer_is_waited_for_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(host: str, port: int, **_: object) -> list[object]:
        await trio.sleep_forever()
        raise AssertionError

    async with exposing(Exposed(["slow.lan:80"])) as pipe:
        monkeypatch.setattr(trio.socket, "getaddrinfo", never)
        with pytest.raises(TargetRefused, match="did not answer in 10 s"):
            await open_target(pipe, Target("slow.lan", 80))


async def test_a_peer_that_has_too_many_names_looked_up_hears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service beside it that needs no lookup is still served."""
    problems: list[int] = []

    async def never(*_: object, **__: object) -> list[object]:
        await trio.sleep_forever()
        raise AssertionError

    async def ask(pipe: Pipe, number: int) -> None:
        with pytest.raises(TargetRefused) as raised:
            await open_target(pipe, Target(f"slow{number}.lan", 80))
        problems.append(raised.value.answer)

    async with service() as there, exposing(Exposed(["10.0.0.0/8:*", str(there.target)])) as pipe:
        monkeypatch.setattr(trio.socket, "getaddrinfo", never)
        async with trio.open_nursery() as nursery:
            for number in range(MAX_WAITING + 1):
                nursery.start_soon(ask, pipe, number)
            async with await open_target(pipe, there.target) as further:
                await further.send_all(b"ping")
                assert await further.receive_some() == b"ping"
    assert problems == [Answer.BUSY, *[Answer.UNREACHABLE] * MAX_WAITING]


@pytest.mark.parametrize("who", ["the client", "the service"])
async def test_what_breaks_is_broken_at_the_other_end(who: str) -> None:
    """On either side, a reset is not taken for the end of a stream."""
    broke = trio.Event()
    go_on = trio.Event()

    def reset(stream: trio.SocketStream) -> None:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        stream.socket.close()

    async def serve_one(_: Service, stream: trio.SocketStream) -> None:
        await stream.send_all(b"x")
        if who == "the service":
            reset(stream)
            return
        go_on.set()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        broke.set()

    async with service(serve_one) as there, exposing(Exposed([str(there.target)])) as pipe:
        async with forwarded(pipe, there.target) as port, await trio.open_tcp_stream(*port) as stream:
            if who == "the client":
                await go_on.wait()
                reset(stream)
                await broke.wait()
            else:
                with pytest.raises(trio.BrokenResourceError):
                    while await stream.receive_some():
                        pass


@pytest.mark.slow("ten times as much as the two ends take without being read")
async def test_a_connection_that_takes_no_reset_is_closed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS takes no socket option once both sides have ended; what left the body, here a cancellation, is raised."""
    ours, theirs = socket.socketpair()
    with theirs, trio.CancelScope() as scope:
        connection = trio.SocketStream(trio.socket.from_stdlib_socket(ours))

        def setsockopt(*_: object) -> None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

        monkeypatch.setattr(connection, "setsockopt", setsockopt)
        async with resetting(connection):
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert connection.socket.fileno() == -1


async def test_a_client_that_leaves_in_the_middle_ends_that_connection_alone() -> None:
    """Both directions of that connection break at once, on both sides."""

    async def flood(_: Service, stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        while True:
            await stream.send_all(bytes(1 << 20))

    problems: list[Exception] = []
    async with service(flood) as there, service() as beside, exposing(Exposed(["127.0.0.1:*"])) as pipe:
        async with forwarded(pipe, there.target, problems) as port, forwarded(pipe, beside.target) as other:
            for _ in range(10):
                async with await trio.open_tcp_stream(*port) as stream:
                    await stream.send_all(b"go")
                    await stream.receive_some(1)
            async with await trio.open_tcp_stream(*other) as stream:
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"x"
    assert len(problems) == 10
    assert all(isinstance(each, trio.BrokenResourceError) for each in problems)


async def test_the_end_of_the_link_resets_what_it_carries() -> None:
    async with service() as there, exposing(Exposed([str(there.target)])) as pipe:
        async with forwarded(pipe, there.target) as port, await trio.open_tcp_stream(*port) as stream:
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
            pipe._link.end_nowait(abort=True)  # type: ignore[attr-defined]
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()


async def test_what_a_client_says_to_a_peer_that_is_busy_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals, answer_one = iter([True, True]), Openings.answer_one

    def answer(openings: Openings, channel: Channel) -> None:
        if next(refusals, False):
            openings._protocol.refuse_channel(channel, RefuseReason.BUSY)
        else:
            answer_one(openings, channel)

    monkeypatch.setattr(Openings, "answer_one", answer)
    async with service() as found, exposing(Exposed([str(found.target)])) as pipe:
        async with forwarded(pipe, found.target) as where, await trio.open_tcp_stream(*where) as client:
            await client.send_all(b"once")
            await client.send_eof()
            assert await read_all(client) == b"once"
    assert next(refusals, None) is None


async def test_a_client_that_is_reset_before_the_peer_has_answered() -> None:
    """The reset is not taken for the end of its stream."""
    problems: list[Exception] = []
    async with service() as found, pipes() as (pipe, _theirs, _both):  # nobody takes Pipes there
        async with forwarded(pipe, found.target, problems) as where:
            async with await trio.open_tcp_stream(*where) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await wait_until(lambda: bool(problems))
    (problem,) = problems
    assert isinstance(problem, trio.BrokenResourceError)


async def test_many_connections_at_once() -> None:
    async with service() as there, exposing(Exposed([str(there.target)])) as pipe:
        async with forwarded(pipe, there.target) as port, trio.open_nursery() as nursery:

            async def one(number: int) -> None:
                async with await trio.open_tcp_stream(*port) as stream:
                    await stream.send_all(b"%d" % number)
                    await stream.send_eof()
                    assert await read_all(stream) == b"%d" % number

            for number in range(100):
                nursery.start_soon(one, number)


# --- the other way round ---


@asynccontextmanager
async def reversing(bindable: Bindable) -> AsyncGenerator[tuple[Node, Pipe]]:
    """Alice, who lets Bob open Pipes for forwarding, and her Pipe to him."""
    with trio.fail_after(HANG):
        async with open_rendezvous() as server, loopback_node(BOB, config(server), authorize=anyone) as bob:
            async with loopback_node(ALICE, config(server), authorize=anyone) as alice, trio.open_nursery() as nursery:
                await alice.wait_signals()
                async with await alice.auto_connect(bob.address) as ours, await bob.listener.accept():
                    nursery.start_soon(serve, bob, partial(handle_forward, exposed=Exposed(), bindable=bindable))
                    yield alice, ours
                    nursery.cancel_scope.cancel()


async def test_a_port_of_the_peers_leads_to_a_target_of_ours() -> None:
    async with service() as here, reversing(Bindable(["127.0.0.1:*"])) as (alice, pipe):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, alice, partial(handle_bound, target=here.target))
            with trio.CancelScope() as listening:
                async with trio.open_nursery() as inner:
                    where = await inner.start(serve_reverse, pipe, Target("127.0.0.1", 0))
                    host, _, port = where.rpartition(":")
                    async with await trio.open_tcp_stream(host, int(port)) as stream:
                        await stream.send_all(b"to alice")
                        await stream.send_eof()
                        assert await read_all(stream) == b"to alice"
                    listening.cancel()
            while True:  # until the peer learns of it
                await trio.sleep(0.01)
                try:
                    late = await trio.open_tcp_stream(host, int(port))
                except OSError:
                    break
                await trio.aclose_forcefully(late)
            nursery.cancel_scope.cancel()
    assert here.count == 1


async def test_a_port_that_the_peer_may_not_have() -> None:
    async with reversing(Bindable(["127.0.0.1:8080"])) as (_alice, pipe):
        with pytest.raises(TargetRefused, match=r"listening on 0\.0\.0\.0:8080 is not allowed here"):
            await serve_reverse(pipe, Target("0.0.0.0", 8080))


async def test_a_port_that_is_taken() -> None:
    async with service() as there, reversing(Bindable(["127.0.0.1:*"])) as (_alice, pipe):
        with pytest.raises(TargetRefused, match="in use"):
            await serve_reverse(pipe, there.target)


async def test_a_port_whose_target_does_not_answer() -> None:
    """A connection to that port is reset."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = Target("127.0.0.1", taken.getsockname()[1])
    problems: list[Exception] = []
    async with reversing(Bindable(["127.0.0.1:*"])) as (alice, pipe), trio.open_nursery() as nursery:
        nursery.start_soon(serve, alice, partial(handle_bound, target=nobody, on_problem=problems.append))
        where = await nursery.start(serve_reverse, pipe, Target("127.0.0.1", 0))
        host, _, port = where.rpartition(":")
        stream = await trio.open_tcp_stream(host, int(port))
        async with stream:
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        nursery.cancel_scope.cancel()
    assert [str(each) for each in problems] == [f"all attempts to connect to {nobody} failed: Connection refused"]


async def test_who_opens_no_pipes_has_no_ports_either() -> None:
    async with exposing(Exposed()) as pipe:
        with pytest.raises(TargetRefused, match="not allowed here"):
            await serve_reverse(pipe, Target("127.0.0.1", 0))
        with pytest.raises(TargetRefused, match="not exposed"):
            await open_target(pipe, Target("127.0.0.1", 22))
