"""When a signal server is asked whether it is still there."""

from __future__ import annotations

from math import inf

import pytest
import trio
from trio.testing import MockClock

from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.signal.keepalive import CHECK_TIMEOUT, KeepAlive


class Server:
    """Answers after `rtt` seconds, while it is there."""

    def __init__(self) -> None:
        self.began = trio.current_time()
        self.asked: list[float] = []
        self.rtt = 0.5

    async def ask(self) -> None:
        self.asked.append(trio.current_time() - self.began)
        await trio.sleep(self.rtt)


INTERVAL, TIMEOUT = 30.0, 10.0


async def keep(pings: KeepAlive, server: Server, ended: list[float]) -> None:
    try:
        await pings.run(server.ask, lambda rtt: None, interval=INTERVAL, timeout=TIMEOUT)
    except trio.TooSlowError:
        ended.append(trio.current_time() - server.began)


async def test_twice_a_minute_and_at_once_when_there_is_doubt(autojump_clock: MockClock) -> None:
    pings, server = KeepAlive(), Server()
    ended: list[float] = []
    async with open_background_nursery() as nursery:
        nursery.start_soon(keep, pings, server, ended)
        await trio.sleep(40)
        pings.check()
        pings.check()
        await trio.sleep(1)
        assert server.asked == pytest.approx([0.0, 30.5, 40.0])
        server.rtt = 100.0
        pings.check()
        await trio.sleep(5)
    assert ended == pytest.approx([41.0 + CHECK_TIMEOUT])


async def test_a_server_that_is_gone_is_missed_after_forty_seconds_at_the_latest(autojump_clock: MockClock) -> None:
    pings, server = KeepAlive(), Server()
    ended: list[float] = []
    async with open_background_nursery() as nursery:
        nursery.start_soon(keep, pings, server, ended)
        await trio.sleep(1)
        server.rtt = 100.0
        await trio.sleep(60)
    assert ended == pytest.approx([0.5 + INTERVAL + TIMEOUT])


async def test_doubt_shortens_what_is_being_asked(autojump_clock: MockClock) -> None:
    pings, server = KeepAlive(), Server()
    ended: list[float] = []
    async with open_background_nursery() as nursery:
        nursery.start_soon(keep, pings, server, ended)
        await trio.sleep(1)
        server.rtt = 100.0
        await trio.sleep(30)  # the next question was sent half a second ago
        pings.check()
        await trio.sleep(60)
    assert ended == pytest.approx([31.0 + CHECK_TIMEOUT])


@pytest.mark.parametrize(("doubted", "patience"), [(inf, TIMEOUT), (0, CHECK_TIMEOUT), (200, CHECK_TIMEOUT + 4.5)])
async def test_an_answer_that_waits_behind_much_else_is_waited_for(
    doubted: float, patience: float, autojump_clock: MockClock
) -> None:
    """While other data arrives from the server; after that, for the usual time.  `doubted`: when `check` is called."""
    server, ended = Server(), list[float]()
    heard_at = -inf
    pings = KeepAlive(lambda: heard_at)
    async with open_background_nursery() as nursery:
        nursery.start_soon(keep, pings, server, ended)
        await trio.sleep(INTERVAL / 2)
        server.rtt = 1000.0
        for step in range(800):
            heard_at = trio.current_time()
            if step == doubted:
                pings.check()
            await trio.sleep(0.1)
        assert ended == []
        silent_since = heard_at - server.began
        await trio.sleep(60)
    assert silent_since < ended[0] <= silent_since + 2 * patience
