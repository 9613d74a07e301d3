"""The first day of two people with one server, as they live it (root, Linux).

Processes in the kernel lab (`tests/kernel/`), in homes behind different NATs.  They pair by a code.  Then a folder is
transferred, whose sender is killed with signal 9 after a third and started again.  Finally ssh connects to a machine
without any forwarded port, while the client's machine gets another address.  All data is compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import trio

from tests.kernel.enclosed import run_enclosed
from tests.kernel.test_first_day import live
from tests.requirements import unmet


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_day", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--megabytes", type=float, default=500.0, help="how much the folder has (500)")
    parser.add_argument(
        "--nats", default="port-restricted,symmetric", help="the two homes' (port-restricted,symmetric)"
    )
    options = parser.parse_args(arguments)
    needed = ("network_namespaces", "nft", "tun", "sshd", "root")
    if missing := next(filter(None, map(unmet, needed)), None):
        print(f"skipped: {missing}")
        return 0
    alice, bob = options.nats.split(",")
    trio.run(live, (alice, bob), int(options.megabytes * 1e6))
    return 0


if __name__ == "__main__":
    run_enclosed("benchmarks.first_day", main)
