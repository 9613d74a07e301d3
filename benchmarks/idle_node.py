"""What an idle node costs: CPU while it is connected to a signal server and nobody calls."""

from __future__ import annotations

import argparse
import time

import trio

from benchmarks._nodes import open_pair


async def main(seconds: float) -> None:
    async with open_pair():
        await trio.sleep(1)  # what starting up left to do
        cpu = time.process_time()
        await trio.sleep(seconds)
        share = 100 * (time.process_time() - cpu) / seconds
        print(f"two nodes and a rendezvous server in one process, idle for {seconds:g} s: {share:.3f} % of a core")
        print("target: under 1 % for one node")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    trio.run(main, parser.parse_args().seconds)
