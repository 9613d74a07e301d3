"""Long transfers that begin by a relay, or must not, as their users run them (root, Linux).

Processes in the kernel lab (`tests/kernel/`): ``serve``, ``listen --echo``, and ``connect`` whose stdin is echoed.
Between two cone NATs, the Pipe changes from the relay to a direct path during the transfer.  Between two symmetric NATs
it stays on the relay, which is killed with signal 9 after a third.  A call that forbids relays sends nothing through
the server.  Every byte is compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import trio

from tests.kernel.enclosed import run_enclosed
from tests.kernel.test_relay_first import Passed, kill, quiet, transfer
from tests.kernel.transfers import PIECE
from tests.requirements import unmet

PACE = PIECE / 2e6
"""Seconds between pieces: 2 MB/s in each direction, which the lab's wire can carry beside other work."""


async def run(size: int) -> None:
    """Run all scenes, one after the other."""
    pieces = -(-size // PIECE)
    passed = Passed()
    cones, symmetric = ("port-restricted", "port-restricted"), ("symmetric", "symmetric")
    for name, kinds, words, servers, happens in (
        ("a relay is left", cones, ("--relay-first",), 1, quiet),
        ("a relay is killed", symmetric, ("--relay-first",), 2, kill),
        ("relays are forbidden", cones, ("--relay-first", "--phases", "direct,punch"), 1, passed.begin),
    ):
        began = time.monotonic()
        connected, changes, silence = await transfer(
            kinds, *words, servers=servers, happens=happens, pieces=pieces, pace=PACE
        )
        paths = " → ".join(change["new"]["plugin"] for change in changes if change["new"] is not None)
        print(f"{name}: {connected.partition(',')[0]}{' → ' + paths if paths else ''}")
        print(
            f"    {pieces * PIECE / 1e6:.0f} MB there and back in {time.monotonic() - began:.0f} s, as sent; "
            f"silent for {silence:.2f} s at most",
            flush=True,
        )
    print(f"    {passed.count} packets of more than 1,000 bytes passed by the server")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.relayed_transfer", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--megabytes", type=float, default=100.0, help="how much (100)")
    options = parser.parse_args(arguments)
    if missing := next(filter(None, map(unmet, ("network_namespaces", "nft", "tun"))), None):
        print(f"skipped: {missing}")
        return 0
    trio.run(run, int(options.megabytes * 1e6))
    return 0


if __name__ == "__main__":
    run_enclosed("benchmarks.relayed_transfer", main)
