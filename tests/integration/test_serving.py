"""`serve_pipes`: a handler for each Pipe, and how its Pipe ends; and the errors without a running Trio."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.identities import ALICE, BOB
from tests.nodes import config, loopback_node
from warpgate_trio import Node, Pipe, anyone, open_node, serve_pipes
from warpgate_trio.servers.rendezvous import open_rendezvous

pytestmark = pytest.mark.usefixtures("jumping_clock")


@asynccontextmanager
async def served(handler: Callable[[Pipe], Awaitable[object]]) -> AsyncGenerator[tuple[Pipe, trio.Nursery, Node]]:
    """A Pipe to a node that is served by `handler`, and the nursery in which that runs."""
    async with loopback_node(BOB, config(), authorize=anyone) as bob, loopback_node(ALICE, config()) as alice:
        with trio.fail_after(HANG):
            async with trio.open_nursery() as nursery:
                await nursery.start(serve_pipes, handler, bob)
                async with await alice.auto_connect(bob.address, afs=[4]) as pipe:
                    yield pipe, nursery, bob
                nursery.cancel_scope.cancel()


async def test_a_pipe_is_closed_well_when_its_handler_returns() -> None:
    async def greet(pipe: Pipe) -> None:
        await pipe.send_all(b"hello " + await pipe.receive_some())

    async with served(greet) as (pipe, _, _):
        async with await pipe.open_pipe() as second:
            for each, name in ((second, b"second"), (pipe, b"first")):
                await each.send_all(name)
                assert b"".join([data async for data in each]) == b"hello " + name


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_handler_that_fails_aborts_its_pipe_is_logged_and_ends_nothing_else(
    grouped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(pipe: Pipe) -> None:
        data = await pipe.receive_some()
        await pipe.send_all(data)
        if data == b"bad":
            error = ValueError("the handler's own fault")
            raise ExceptionGroup("of a nursery", [error]) if grouped else error

    async with served(fail) as (pipe, _, _):
        async with await pipe.open_pipe() as second:
            await second.send_all(b"bad")
            assert await second.receive_some() == b"bad"
            with pytest.raises(trio.BrokenResourceError, match="the peer aborted it"):
                await second.receive_some()
        await pipe.send_all(b"good")
        assert b"".join([data async for data in pipe]) == b"good"
    (record,) = [each for each in caplog.records if each.name == "warpgate_trio.node.serving"]
    assert record.levelno == logging.ERROR
    assert f"a handler failed, <Pipe to {ALICE.peer_id[:8]}" in record.message
    assert "the handler's own fault" in caplog.text


async def test_a_peer_that_breaks_off_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    ended = trio.Event()

    async def read(pipe: Pipe) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pipe.receive_some)
        finally:
            ended.set()

    with caplog.at_level(logging.INFO, "warpgate_trio.node.serving"):
        async with served(read) as (pipe, _, _):
            pipe.abort()
            await ended.wait()
            await trio.testing.wait_all_tasks_blocked()
    (record,) = [each for each in caplog.records if each.name == "warpgate_trio.node.serving"]
    assert (record.levelno, record.exc_info) == (logging.INFO, None)
    assert record.message.endswith("pipe broken: the peer aborted it")


async def test_a_handler_that_is_cancelled_aborts_its_pipe() -> None:
    begun = trio.Event()

    async def wait(_: Pipe) -> None:
        begun.set()
        await trio.sleep_forever()

    async with served(wait) as (pipe, nursery, _):
        await begun.wait()
        nursery.cancel_scope.cancel()
        with trio.fail_after(HANG, shield=True), pytest.raises(trio.BrokenResourceError, match="the peer aborted it"):
            await pipe.receive_some()


async def test_a_handler_that_is_done_ends_its_pipe_well_though_it_is_cancelled_by_then() -> None:
    """The handler's last step cancels the nursery, and leaves nothing to interrupt."""
    nurseries: list[trio.Nursery] = []

    async def last(pipe: Pipe) -> None:
        await pipe.send_all(await pipe.receive_some())
        nurseries[0].cancel_scope.cancel()

    async with served(last) as (pipe, nursery, _):
        nurseries.append(nursery)
        await pipe.send_all(b"all")
        with trio.fail_after(HANG, shield=True):
            assert b"".join([data async for data in pipe]) == b"all"


async def test_it_ends_with_the_listener_and_its_exceptions_leave_bare() -> None:
    async def interrupted(_: Pipe) -> None:
        await trio.lowlevel.checkpoint()
        raise KeyboardInterrupt

    with trio.fail_after(HANG):
        async with loopback_node(BOB, config(), authorize=anyone) as bob, loopback_node(ALICE, config()) as alice:
            await alice.auto_connect(bob.address, afs=[4])
            with pytest.raises(KeyboardInterrupt):
                await serve_pipes(interrupted, bob)
            await bob.listener.aclose()
            with pytest.raises(trio.ClosedResourceError, match="this listener was closed"):
                await serve_pipes(interrupted, bob)
            with pytest.raises(trio.ClosedResourceError, match="this listener was closed"):
                await serve_pipes(interrupted, alice)  # Alice was opened without `authorize`


# -- where Trio does not run -------------------------------------------------------------------------------------------


async def use_node() -> None:
    async with open_node():
        raise AssertionError("it was opened")


async def use_server() -> None:
    async with open_rendezvous():
        raise AssertionError("it was opened")


async def use_serve_pipes() -> None:
    await serve_pipes(anyone, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("use", [use_node, use_server, use_serve_pipes])
def test_a_call_outside_of_trio_says_so(use: Callable[[], Awaitable[None]]) -> None:
    name = use.__name__.removeprefix("use_").replace("node", "open_node").replace("server", "open_rendezvous")
    with pytest.raises(RuntimeError, match=rf"^{name} needs Trio: call it in an async function that trio\.run"):
        use().__await__().send(None)


@pytest.mark.slow("an interpreter of its own: MQTT's library changes asyncio.run for good")
def test_a_call_under_asyncio_says_so() -> None:
    program = "import asyncio, warpgate_trio as w; asyncio.run(w.open_node().__aenter__())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    expected = "RuntimeError: open_node needs Trio, and this is asyncio: start the program with trio.run(main)"
    assert done.stderr.splitlines()[-1] == expected
