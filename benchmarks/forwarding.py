"""What a forwarded connection costs: time to its first byte, throughput, and a thousand at once, over loopback.

The forwarding processes are those of users, ``listen --expose`` and ``forward``; client and service are in this one.

* A *connection* is a new TCP connection that sends a byte and receives it back.  The cost of forwarding is the
  difference to a direct connection, by medians of interleaved runs.  Beside it stands the cost of two plain forwarders
  without encryption, a dozen lines of Trio each: the difference is the most that could be gained.
* *Throughput* is that of one connection that receives what the service sends, beside that of a Pipe from another
  process to this one, and the processor time of each process.  A Pipe alone keeps two processors busy, so on a machine
  with two the connections at its ends take processor time from it: the last figure is the bound that follows.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import final

import psutil
import trio

from tests.end_to_end.processes import started
from warpgate_trio import Identity, NodeConfig, Pipe, anyone, open_node, serve_pipes
from warpgate_trio.cli.files import raise_file_limit

PIECE = bytes(1 << 20)


async def serve(stream: trio.SocketStream) -> None:
    """Echo everything; after a byte ``s``, send without end."""
    with trio.move_on_after(600):
        try:
            async for data in stream:
                if data == b"s":
                    while True:
                        await stream.send_all(PIECE)
                await stream.send_all(data)
            await stream.send_eof()
        except trio.BrokenResourceError:
            pass


async def bounce(port: int) -> float:
    """Milliseconds until a new connection has received its byte back."""
    began = time.perf_counter()
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"x")
        assert await stream.receive_some(1) == b"x"
        return 1000 * (time.perf_counter() - began)


@final
@dataclass(frozen=True, slots=True)
class Rate:
    """A transfer: its rate in 10^6 bytes per second, and the processor seconds of each process for 10^9 bytes."""

    rate: float
    processors: tuple[float, ...]


def used(processes: Sequence[int]) -> list[float]:
    """Processor seconds that each process has used so far."""
    return [sum(psutil.Process(each).cpu_times()[:2]) for each in processes]


async def rate_of(stream: trio.abc.ReceiveStream, size: int, processes: Sequence[int]) -> Rate:
    """Receive a number of bytes."""
    await stream.receive_some(1)
    before, left, began = used(processes), size, time.perf_counter()
    while left > 0:
        left -= len(await stream.receive_some(1 << 20))
    seconds = time.perf_counter() - began
    taken = tuple((now - then) / (size / 1e9) for now, then in zip(used(processes), before, strict=True))
    return Rate(size / 1e6 / seconds, taken)


async def rate(port: int, size: int, processes: Sequence[int]) -> Rate:
    """The throughput of one connection."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"s")
        return await rate_of(stream, size, processes)


async def lead(port: int) -> None:
    """Forward connections to another port as plainly as possible, until killed; prints its port."""

    async def handler(stream: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as further, trio.open_nursery() as nursery:
            nursery.start_soon(copy, stream, further)
            await copy(further, stream)

    async def copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
        async for data in source:
            await target.send_all(data)
        await target.send_eof()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listeners[0].socket.getsockname()[1], flush=True)
    await trio.serve_listeners(handler, listeners)


@contextmanager
def plainly_led(port: int) -> Iterator[int]:
    """A port that a separate process forwards to another one."""
    words = [sys.executable, "-m", "benchmarks.forwarding", "--lead", str(port)]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


async def send_without_end() -> None:
    """A node that sends to every caller, until killed; prints its address."""

    async def handler(pipe: Pipe) -> None:
        while True:
            await pipe.send_all(PIECE)

    async with open_node(NodeConfig(), identity=Identity.generate(), authorize=anyone) as node:
        print(node.address, flush=True)
        await serve_pipes(handler, node)


async def pipe_rate(size: int) -> Rate:
    """The throughput of a Pipe from a sending process to this one."""
    words = [sys.executable, "-m", "benchmarks.forwarding", "--send"]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as sender:
        assert sender.stdout is not None
        address = sender.stdout.readline().strip()
        try:
            async with open_node(NodeConfig(), identity=Identity.generate()) as node:
                async with await node.auto_connect(address) as pipe:
                    return await rate_of(pipe, size, [sender.pid, os.getpid()])
        finally:
            sender.kill()


async def thousand(port: int, count: int) -> float:
    """Seconds until a number of simultaneous connections are open and each has an answer."""
    everybody, here = trio.Event(), 0

    async def one() -> None:
        nonlocal here
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"x")
            assert await stream.receive_some(1) == b"x"
            here += 1
            if here == count:
                everybody.set()
            await everybody.wait()
            await stream.send_all(b"y")
            assert await stream.receive_some(1) == b"y"

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
    return time.perf_counter() - began


@asynccontextmanager
async def forwarded() -> AsyncGenerator[tuple[int, int, Sequence[int]]]:
    """The port of the service, a forwarded port, and the processes: `listen`, `forward`, and this one."""
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=4096)
        port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        exposing = started("listen", "--ephemeral", "--allow-any", "--expose", str(port), "--json")
        listen = await stack.enter_async_context(exposing)
        address = (await listen.event())["address"]
        forwarding = started("forward", "--ephemeral", "--json", "0", f"{address}:{port}")
        forward = await stack.enter_async_context(forwarding)
        here = int((await forward.event())["listens"][0].rpartition(":")[2])
        yield port, here, [listen.process.pid, forward.process.pid, os.getpid()]
        nursery.cancel_scope.cancel()


async def run(connections: int, mebibytes: int, count: int) -> None:
    """Run all measurements."""
    async with forwarded() as (port, here, processes):
        with plainly_led(port) as second, plainly_led(second) as first:
            for each in (port, here, first):
                await bounce(each)
            before = used(processes)
            rows = [[await bounce(each) for each in (port, here, first)] for _ in range(connections)]
            taken = [1000 * (now - then) / connections for now, then in zip(used(processes), before, strict=True)]
        plain, led, simply = (statistics.median(each) for each in zip(*rows, strict=True))
        print(f"a connection: {led:.2f} ms, {plain:.2f} ms without: {led - plain:.2f} ms more (bar 1.2)")
        print(f"  by two forwarders of a dozen lines: {simply:.2f} ms, {simply - plain:.2f} more")
        print("  of a processor: listen {:.2f} ms, forward {:.2f}".format(*taken))
        size = mebibytes << 20
        sides = [
            [await rate(here, size, processes), await pipe_rate(size), await rate(port, size, [os.getpid()])]
            for _ in range(5)
        ]
        led, pipe, _ = (statistics.median(each.rate for each in side) for side in zip(*sides, strict=True))
        share = statistics.median(by_forward.rate / beside.rate for by_forward, beside, _ in sides)
        print(f"throughput: {led:.0f} MB/s, of a Pipe {pipe:.0f} MB/s: {share:.2f} of it (bar 0.7)")
        by_forward, by_pipe, plainly = (
            [statistics.median(each) for each in zip(*(one.processors for one in side), strict=True)]
            for side in zip(*sides, strict=True)
        )
        print(
            "  processor seconds for 10^9 bytes: listen {:.2f}, forward {:.2f}, client and service {:.2f}; "
            "a Pipe's sender {:.2f}, receiver {:.2f}; a connection without anything {:.2f}".format(
                *by_forward, *by_pipe, *plainly
            )
        )
        least = sum(by_pipe) + 2 * sum(plainly)
        print(f"  a Pipe and two connections take {least:.2f}: {sum(by_pipe) / least:.2f} of a Pipe on two processors")
        print(f"{count} connections at once, each with two answers: {await thousand(here, count):.1f} s")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.forwarding", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--connections", type=int, default=200, help="one after the other (200)")
    parser.add_argument("--mebibytes", type=int, default=256, help="of one transfer (256)")
    parser.add_argument("--at-once", type=int, default=1000, help="connections (1000)")
    parser.add_argument("--lead", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--send", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.send:
        trio.run(send_without_end)
    if options.lead is not None:
        trio.run(lead, options.lead)
    raise_file_limit()
    trio.run(run, options.connections, options.mebibytes, options.at_once)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
