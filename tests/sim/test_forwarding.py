"""What a forwarded connection costs, in round trips of a simulated network."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio

from tests.sim.walks import RTT, in_world
from warpgate_trio import serve_pipes
from warpgate_trio.forwarding import (
    Bindable,
    Exposed,
    Target,
    handle_bound,
    handle_forward,
    open_target,
    serve_forward,
    serve_reverse,
)
from warpgate_trio.testing.walks import NodePair

pytestmark = pytest.mark.slow("whole nodes with TLS, in a world with servers of every kind")

PORT = 8000


async def answer(stream: trio.SocketStream) -> None:
    """A service that answers a request."""
    async for data in stream:
        await stream.send_all(data.upper())


async def greet(stream: trio.SocketStream) -> None:
    """A service that sends first."""
    await stream.send_all(b"HELLO")


async def first_bytes(port: int, asked: bytes) -> tuple[bytes, float]:
    """The first answer on a new connection, and the seconds until it came."""
    began = trio.current_time()
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(asked)
        return bytes(await stream.receive_some()), trio.current_time() - began


SERVICES = pytest.mark.parametrize(("service", "asked"), [(answer, b"hello"), (greet, b"")])
Service = Callable[[trio.SocketStream], Awaitable[object]]


async def check(port: int, asked: bytes) -> None:
    heard, took = await first_bytes(port, asked)
    assert heard == b"HELLO"
    assert took == pytest.approx(RTT, abs=0.002)


@SERVICES
def test_a_port_of_ours_has_its_first_byte_after_one_round_trip(service: Service, asked: bytes) -> None:
    async def main(nodes: NodePair) -> None:
        async with await nodes.alice.auto_connect(nodes.bob.address) as pipe, trio.open_nursery() as nursery:
            with nodes.net.hosts["bob"]:
                await nursery.start(partial(trio.serve_tcp, service, PORT))
                handler = partial(handle_forward, exposed=Exposed([str(PORT)]))
                nursery.start_soon(serve_pipes, handler, nodes.bob)
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            async with listener:
                nursery.start_soon(serve_forward, lambda: pipe, Target.parse(str(PORT)), listener)
                await check(listener.socket.getsockname()[1], asked)
                nursery.cancel_scope.cancel()

    in_world(main, accepting=False)


@SERVICES
def test_a_port_of_the_peers_has_its_first_byte_after_one_round_trip(service: Service, asked: bytes) -> None:
    async def main(nodes: NodePair) -> None:
        async with await nodes.alice.auto_connect(nodes.bob.address) as pipe, trio.open_nursery() as nursery:
            await nursery.start(partial(trio.serve_tcp, service, PORT))
            nursery.start_soon(serve_pipes, partial(handle_bound, target=Target.parse(str(PORT))), nodes.alice)
            bob = nodes.net.hosts["bob"]
            with bob:
                handler = partial(handle_forward, exposed=Exposed(), bindable=Bindable(["127.0.0.1:*"]))
                nursery.start_soon(serve_pipes, handler, nodes.bob)
            where = await nursery.start(serve_reverse, pipe, Target.parse("0", least=0))
            await bob.run(partial(check, int(where.rpartition(":")[2]), asked))
            nursery.cancel_scope.cancel()

    in_world(main, accepting=False)


def test_a_name_is_looked_up_at_the_host_that_exposes() -> None:
    """So `localhost` leads to the exposing host itself."""

    async def main(nodes: NodePair) -> None:
        async with await nodes.alice.auto_connect(nodes.bob.address) as pipe, trio.open_nursery() as nursery:
            with nodes.net.hosts["bob"]:
                await nursery.start(partial(trio.serve_tcp, greet, PORT, host="127.0.0.1"))
                handler = partial(handle_forward, exposed=Exposed([f"localhost:{PORT}"]))
                nursery.start_soon(serve_pipes, handler, nodes.bob)
            async with await open_target(pipe, Target("localhost", PORT)) as stream:
                assert await stream.receive_some() == b"HELLO"
            nursery.cancel_scope.cancel()

    in_world(main, accepting=False)
