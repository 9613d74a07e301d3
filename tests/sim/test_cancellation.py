"""A walk that is cancelled at any step of any task of its world leaves nothing, on either node or the server.

Each step is one walk in a world that goes on.  A minute later the sockets and tasks must be those from before, and the
next walk must work.  Virtual time makes that fast.

A test run takes some of the steps, others for each kind of walk; ``python -m tests.sim.test_cancellation`` takes all.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress

import pytest
import trio

from tests.cancel_sweep import step_cuts
from warpgate_trio import ConnectError
from warpgate_trio.sim import NatConfig, Netstat, presets, simulate
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.walks import open_nodes
from warpgate_trio.testing.worlds import PeerPair

LATER = 61.0  # seconds; rates are per minute, and TCP's TIME-WAIT lasts a minute


def still_there(found: Netstat) -> tuple[Counter[str], Counter[str]]:
    """The sockets and tasks without port numbers, because a node replaces warm ports that a walk has used up."""
    sockets, tasks = (Counter(re.sub(r"\d+", "", line) for line in lines) for lines in (found.sockets, found.tasks))
    return sockets, tasks


def sweep(pair: PeerPair, stride: int) -> tuple[int, int]:
    """Returns how many walks were cancelled, and how many Pipes bob accepted in them."""

    async def main() -> tuple[int, int]:
        walks = given = 0
        async with pair.build(time_limit=1e7) as net, simulated_hosts():
            async with open_nodes(net) as nodes, trio.open_nursery() as nursery:

                async def accept() -> None:
                    nonlocal given
                    while True:
                        async with await nodes.bob.listener.accept() as pipe:
                            given += 1
                            with suppress(trio.BrokenResourceError):  # a call that is cancelled in its last step
                                async for _ in pipe:
                                    pass

                with net.hosts["bob"]:
                    nursery.start_soon(accept)
                await trio.sleep(LATER)
                before = still_there(net.netstat())
                now = before
                for cut in step_cuts(stride):
                    walks += 1
                    with cut:
                        try:
                            pipe = await nodes.alice.auto_connect(nodes.bob.address, early_data=b"early")
                        except ConnectError:
                            pass
                        else:
                            await pipe.aclose()
                    await trio.sleep(LATER)
                    for _ in range(300):  # a node also asks its servers now and then
                        now = still_there(net.netstat())
                        if now == before:
                            break
                        await trio.sleep(0.1)
                    more = [sorted((a - b).elements()) for a, b in zip(now, before, strict=True)]
                    less = [sorted((b - a).elements()) for a, b in zip(now, before, strict=True)]
                    assert now == before, f"cut after {cut.number} steps: more {more}, less {less}"
                    for node in (nodes.alice, nodes.bob):
                        stats = node.stats()
                        assert (stats.links, stats.attempts, stats.handshakes) == (0, 0, 0), (cut.number, stats)
                nursery.cancel_scope.cancel()
            left = net.netstat()
            assert not left, str(left)
        return walks, given

    return simulate(main, seed=pair.seed)


WALKS: dict[str, tuple[NatConfig | None, NatConfig | None, int]] = {
    "direct": (None, None, 3),
    "direct-through-a-nat": (presets.LINUX, None, 4),
    "reverse": (None, presets.LINUX, 5),
    "cone-cone": (presets.LINUX, presets.LINUX_LOCAL, 13),
    "cone-symmetric": (presets.LINUX, presets.LINUX_SYMMETRIC, 101),  # a spray is thousands of packets, each time
}
"""The NATs of caller and listener, and the stride: a test run takes one step in so many."""


@pytest.mark.slow("dozens of walks, each cancelled some task steps later than the one before")
@pytest.mark.parametrize(("alice", "bob", "stride"), WALKS.values(), ids=WALKS)
def test_a_walk_can_be_cancelled_at_any_step_of_any_task(
    alice: NatConfig | None, bob: NatConfig | None, stride: int
) -> None:
    pair = PeerPair.between(alice, bob, rtt=0.05)
    steps, given = sweep(pair, stride)
    print(f"{steps} walks cut, of which the peer had {given}; {pair}")
    assert steps > 15


def main() -> None:
    """Runs every step of every walk, for many minutes; meant for changes of what a walk does."""
    for name, (alice, bob, _) in WALKS.items():
        steps, given = sweep(PeerPair.between(alice, bob, rtt=0.05), 1)
        print(f"{name}: {steps} walks cut, of which the peer had {given}", flush=True)


if __name__ == "__main__":
    main()
