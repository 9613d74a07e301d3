"""A pytest plugin for tests of other projects: every async test runs on a simulated host.

    python -m pytest -p tests.sim.carried --pyargs trio._tests.test_socket

A test's own `mock_clock` or `autojump_clock` stays the clock of its run.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from warpgate_trio.sim import Network
from warpgate_trio.sim.determinism import deterministic


async def _on_a_host(test: Any) -> None:
    async with Network(ipv6=True) as net:
        await net.host("alone").run(test)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    given = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    clocks = [each for each in given.values() if isinstance(each, trio.testing.MockClock)]
    clock = clocks[0] if clocks else trio.testing.MockClock()
    clock.autojump_threshold = 0
    with deterministic(0):
        trio.run(_on_a_host, partial(test, **given), clock=clock)
    return True


@pytest.fixture
def mock_clock() -> trio.testing.MockClock:
    return trio.testing.MockClock()


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0)
