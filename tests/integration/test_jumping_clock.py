"""`jumping_clock` of tests/conftest.py: the clock of tests whose time limits a slow machine must not use up."""

from __future__ import annotations

import time

import pytest
import trio
import trio.testing


@pytest.mark.usefixtures("jumping_clock")
async def test_it_is_the_clock_of_a_test_that_only_says_that_it_uses_it() -> None:
    began = time.monotonic()
    await trio.sleep(3600)
    assert trio.current_time() == pytest.approx(3600)
    assert time.monotonic() - began < 3600


async def test_work_takes_no_time(jumping_clock: trio.testing.MockClock) -> None:
    with trio.fail_after(0.001):
        time.sleep(0.02)  # noqa: ASYNC251  # the work
        await trio.lowlevel.checkpoint()
    assert jumping_clock.current_time() == 0


@pytest.mark.usefixtures("jumping_clock")
async def test_it_stands_while_a_thread_works() -> None:
    with trio.fail_after(0.001):
        await trio.to_thread.run_sync(time.sleep, 0.05)
    assert trio.current_time() == 0
    await trio.sleep(60)  # the clock goes on afterwards
    assert trio.current_time() == pytest.approx(60)
