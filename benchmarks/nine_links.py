"""A MiB each way at once over a Pipe on the nine links of the simulator: does it come, how often is its path suspected?

Virtual time, losses drawn one by one.  What each column counts, over both ends:

* suspected: how often an end suspected the path; all of them are false alarms, since the link is there;
* moved: how often an end changed over to another path because of that;
* dead: how often an end took a path for dead, and closed it;
* without: how often an end had no path at all.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import final

import trio

from warpgate_trio import ConnectError, PathState, Pipe
from warpgate_trio.sim import Link, presets, simulate
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import open_nodes
from warpgate_trio.testing.worlds import PeerPair

SIZE = 1 << 20


@final
class Deaths(logging.Handler):
    """Counts the paths that are closed as dead."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "the path is dead" in record.getMessage()


async def watch(pipe: Pipe, seen: Counter[str]) -> None:
    carrier = pipe.carrier
    while True:
        path = await pipe.wait_path_change()
        seen[path.state.value] += 1
        if path.state is PathState.LIVE and pipe.carrier is not carrier:
            seen["moved"] += 1
            carrier = pipe.carrier


async def send(pipe: Pipe) -> None:
    await pipe.send_all(bytes(SIZE))


async def receive(pipe: Pipe) -> None:
    got = 0
    while got < SIZE:
        got += len(await pipe.receive_some())


async def transfer(link: Link, who: str, limit: float, seen: Counter[str], seed: int) -> float:
    """Seconds until both ends have all data; infinity if that takes longer than `limit`."""
    pair = PeerPair.between(rtt=0.001, seed=seed)
    place = replace(getattr(pair, who), link=link)
    pair = replace(pair, alice=place) if who == "alice" else replace(pair, bob=place)
    async with pair.build(time_limit=1e7) as net, simulated_hosts(), open_nodes(net) as nodes:
        await trio.sleep(20.0)
        ours: Pipe | None = None
        while ours is None:
            with suppress(ConnectError):  # on the worst link, a call sometimes fails
                ours = await nodes.alice.auto_connect(nodes.bob.address, phases=["direct"])
        theirs: Pipe | None = None
        while theirs is None:
            theirs = await nodes.bob.listener.accept()
            try:
                await theirs.ping()
            except trio.BrokenResourceError:  # the Pipe of a call that alice has given up
                theirs = None
        async with ours, theirs, trio.open_nursery() as watching:
            for pipe in (ours, theirs):
                watching.start_soon(watch, pipe, seen)
            began = trio.current_time()
            with trio.move_on_after(limit) as scope:
                async with trio.open_nursery() as nursery:
                    for one, other in ((ours, theirs), (theirs, ours)):
                        nursery.start_soon(send, one)
                        nursery.start_soon(receive, other)
            watching.cancel_scope.cancel()
        return float("inf") if scope.cancelled_caught else trio.current_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=3600.0, help="virtual seconds for a transfer")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    deaths = Deaths()
    logger = logging.getLogger("warpgate_trio.link.link")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(deaths)
    logger.propagate = False
    print(f"{'link':<16s} {'of':<6s} {'seconds':>8s} {'suspected':>10s} {'moved':>6s} {'dead':>5s} {'without':>8s}")
    for name, link in presets.LINKS.items():
        for who in ("alice", "bob"):
            seen: Counter[str] = Counter()
            deaths.count = 0

            async def one(link: Link = link, who: str = who, seen: Counter[str] = seen) -> float:
                return await transfer(replace(link, burst=1), who, options.limit, seen, options.seed)

            seconds = simulate(one, seed=options.seed)
            counts = f"{seen['suspect']:>10d} {seen['moved']:>6d} {deaths.count:>5d} {seen['suspended']:>8d}"
            print(f"{name:<16s} {who:<6s} {seconds:>8.0f} {counts}", flush=True)


if __name__ == "__main__":
    main()
