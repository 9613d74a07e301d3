"""How long `auto_connect` takes on loopback, nodes open: to the accepted Pipe, and to the first echoed byte."""

from __future__ import annotations

import time

import trio

from benchmarks._nodes import open_pair, spread
from warpgate_trio import Node, Pipe

RUNS = 50


async def echo(pipe: Pipe) -> None:
    async with pipe:
        async for data in pipe:
            await pipe.send_all(data)


async def connect(caller: Node, listener: Node) -> tuple[float, float]:
    """Milliseconds to the accepted Pipe and to the first echoed byte."""
    began = time.perf_counter()
    async with await caller.auto_connect(listener.address) as pipe:
        accepted = time.perf_counter()
        await pipe.send_all(b"x")
        await pipe.receive_some(1)
        return 1000 * (accepted - began), 1000 * (time.perf_counter() - began)


async def main() -> None:
    async with open_pair() as (caller, listener), trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, [listener.listener])
        await connect(caller, listener)  # the first call imports modules and warms up
        times = [await connect(caller, listener) for _ in range(RUNS)]
        print(f"auto_connect on loopback, {RUNS} runs; target: a median under 20 ms to the accepted Pipe")
        print("  accepted Pipe    ", spread([each[0] for each in times], "ms"))
        print("  first echoed byte", spread([each[1] for each in times], "ms"))
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
