"""Small worlds for the simulator's tests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

from warpgate_trio.sim import Network, simulate

T = TypeVar("T")


def run(world: Callable[[Network], Awaitable[T]], *, seed: int = 0, limit: float = 86400.0, ipv6: bool = False) -> T:
    """Run `world(net)` in a new network; it must leave no socket and no task behind."""

    async def main() -> T:
        async with Network(seed, time_limit=limit, ipv6=ipv6) as net:
            result = await world(net)
            left = net.netstat()
            assert not left, str(left)
            return result

    return simulate(main, seed=seed)


@contextmanager
def may_break(possible: bool) -> Iterator[None]:
    """Let a Pipe break in the body if that is `possible`, whether the error comes bare or in an exception group.

    `contextlib.suppress` looks into groups from Python 3.12 on only.
    """
    if not possible:
        yield
        return
    try:
        yield
    except* trio.BrokenResourceError:
        pass
