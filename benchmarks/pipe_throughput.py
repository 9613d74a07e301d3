"""A Pipe beside `trio.SSLStream` and raw Trio TCP: megabytes a second, two processes, interleaved runs.

The Pipe carries everything: TLS, proof, frames, credit.  Each ratio is made of two runs that follow each other, and
the median of the ratios is what counts; single rates on a shared machine vary by a factor of two.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial

import trio

from warpgate_trio import Identity, Node, NodeConfig, PeerAddress, anyone, open_node
from warpgate_trio.carrier import TlsContexts

SIZES = (16 * 1024, 64 * 1024, 256 * 1024)
KINDS = ("tcp", "ssl", "pipe")
KEY = Identity.from_seed(bytes(32))


async def drain(stream: trio.abc.Stream, total: int) -> None:
    """Read `total` bytes, and confirm it."""
    got = 0
    while got < total:
        data = await stream.receive_some()
        if not data:
            return
        got += len(data)
    await stream.send_all(b"k")
    with suppress(trio.BrokenResourceError):
        await stream.receive_some(1)  # wait until the sender closes the stream, in any way


async def serve(total: int) -> None:
    contexts = TlsContexts(KEY)

    async def plain(stream: trio.SocketStream) -> None:
        kind = (await stream.receive_some(1)).decode()
        await drain(trio.SSLStream(stream, contexts.server, server_side=True) if kind == "s" else stream, total)

    async with open_node(NodeConfig(), identity=KEY, authorize=anyone) as node, trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, plain, 0, host="127.0.0.1"))
        print(listeners[0].socket.getsockname()[1], node.address, flush=True)
        while True:
            pipe = await node.listener.accept()
            nursery.start_soon(drain, pipe, total)


async def one(kind: str, size: int, total: int, node: Node, port: int, address: str) -> float:
    """Bytes per second of one transfer."""
    stream: trio.abc.Stream
    if kind == "pipe":
        stream = await node.auto_connect(address)
    else:
        stream = tcp = await trio.open_tcp_stream("127.0.0.1", port)
        await tcp.send_all(kind[:1].encode())
        if kind == "ssl":
            stream = secure = trio.SSLStream(tcp, TlsContexts(KEY).client)
            await secure.do_handshake()
    chunk = bytes(size)
    began = time.perf_counter()
    for _ in range(total // size):
        await stream.send_all(chunk)
    await stream.receive_some(1)
    elapsed = time.perf_counter() - began
    await trio.aclose_forcefully(stream)
    return total / elapsed


async def measure(total: int, runs: int, port: int, address: str) -> None:
    async with open_node(NodeConfig(), identity=Identity.generate()) as node:
        print(f"{total >> 20} MiB a run, median of {runs} interleaved runs, MB/s")
        print(f"{'write':>8s} {'tcp':>7s} {'ssl':>7s} {'pipe':>7s} {'pipe/ssl':>9s} {'pipe/tcp':>9s}")
        for size in SIZES:
            rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for _ in range(runs):
                for kind in KINDS:
                    rates[kind].append(await one(kind, size, total, node, port, address))
            rate = {kind: statistics.median(each) / 1e6 for kind, each in rates.items()}
            to_ssl = statistics.median(a / b for a, b in zip(rates["pipe"], rates["ssl"], strict=True))
            to_tcp = statistics.median(a / b for a, b in zip(rates["pipe"], rates["tcp"], strict=True))
            row = f"{size >> 10:>5d} Ki {rate['tcp']:>7.0f} {rate['ssl']:>7.0f} {rate['pipe']:>7.0f}"
            print(f"{row} {to_ssl:>9.2f} {to_tcp:>9.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=128)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    total = options.mebibytes << 20
    if options.serve:
        trio.run(serve, total)
        return
    command = [sys.executable, "-m", "benchmarks.pipe_throughput", "--serve", "--mebibytes", str(options.mebibytes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port, _, address = server.stdout.readline().strip().partition(" ")
            PeerAddress.from_text(address)
            trio.run(measure, total, options.runs, int(port), address)
        finally:
            server.kill()


if __name__ == "__main__":
    main()
