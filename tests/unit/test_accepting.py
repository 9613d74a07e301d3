"""The accept loop of servers and nodes, when there is nothing to accept with."""

from __future__ import annotations

import errno
import logging

import pytest
import trio
import trio.testing

from warpgate_trio.ports.accepting import PAUSE, REPORT_INTERVAL, accept_connections


class Listener:
    """Fails as it is told, then is closed."""

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
    """How many connections were taken."""
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
