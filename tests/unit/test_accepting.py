"""The listeners of servers and nodes: their ports, and the accept loop when the process is out of resources."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, TypeAlias, cast

import pytest
import trio
import trio.testing

from tests.transfers import wired
from warpgate_trio.forwarding import Bindable, Exposed, handle_forward, serving
from warpgate_trio.node.sockets import open_listening_sockets
from warpgate_trio.ports import accepting
from warpgate_trio.ports.accepting import PAUSE, REPORT_INTERVAL, accept_connections
from warpgate_trio.servers.listening import listen


class Listener:
    """`accept` raises the given error numbers in turn (0: returns a connection); after the last one it is closed."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)

    def fileno(self) -> int:
        return 5

    async def accept(self) -> object:
        await trio.lowlevel.checkpoint()
        if not self.numbers:
            raise trio.ClosedResourceError
        number = self.numbers.pop(0)
        if number:
            raise OSError(number, "what accept says")
        return object(), ("192.0.2.1", 50000)


async def run(*numbers: int) -> int:
    """Accept from such a listener, and return the number of connections."""
    taken: list[object] = []
    await accept_connections(Listener(*numbers), lambda *each: taken.append(each))  # type: ignore[arg-type]
    return len(taken)


async def test_a_long_shortage_is_one_line_a_minute_without_a_traceback(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    tries = int(2.5 * REPORT_INTERVAL / PAUSE)
    assert await run(*[errno.EMFILE] * tries, 0) == 1
    assert trio.current_time() == pytest.approx(tries * PAUSE, rel=0.01)
    assert [record.getMessage() for record in caplog.records] == [
        "no connection can be accepted: what accept says; trying again"
    ] * 3
    assert all(record.levelno == logging.ERROR and record.exc_info is None for record in caplog.records)


async def test_what_is_wrong_with_one_connection_holds_up_no_other(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    assert await run(errno.ECONNABORTED, 0, errno.EPROTO, 0) == 2
    assert trio.current_time() == 0
    assert not caplog.records


async def test_a_listener_that_was_closed_between_two_accepts() -> None:
    assert await run(0, errno.EBADF, 0) == 1


# --- a port that another program listens on ---

_Use: TypeAlias = Callable[[list[trio.socket.SocketType]], None]


async def of_a_node(use: _Use) -> None:
    listeners = await open_listening_sockets(0)
    use(listeners)
    for each in listeners:
        each.close()


async def of_a_server(use: _Use) -> None:
    with ExitStack() as stack:
        use([await listen(stack, ("127.0.0.1", 0))])


async def of_a_peer(use: _Use) -> None:
    """A port on which this node listens at a peer's request."""

    async def accept(listener: trio.socket.SocketType, _: object) -> None:
        await trio.lowlevel.checkpoint()
        use([listener])
        ours.close()

    ours, theirs, _wire = cast("Any", wired())
    theirs.label = "bind:127.0.0.1:0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "accept_connections", accept)
        await handle_forward(theirs, exposed=Exposed(), bindable=Bindable(["127.0.0.1:*"]))


@pytest.mark.parametrize("listener", [of_a_node, of_a_server, of_a_peer])
@pytest.mark.parametrize(("platform", "said"), [("linux", True), ("darwin", True), ("win32", False)])
async def test_a_listener_takes_no_port_from_another_program(
    monkeypatch: pytest.MonkeyPatch, listener: Callable[[_Use], Awaitable[None]], platform: str, said: bool
) -> None:
    """On Windows, SO_REUSEADDR would allow that; elsewhere it only ignores connections in TIME_WAIT."""
    found: list[bool] = []

    def look(listeners: list[trio.socket.SocketType]) -> None:
        found.extend(bool(each.getsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR)) for each in listeners)

    monkeypatch.setattr(accepting, "sys", SimpleNamespace(platform=platform))
    await listener(look)
    assert found
    assert set(found) == {said}
