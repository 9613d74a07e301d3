"""A file over loopback beside what the Pipe itself carries: megabytes a second, two processes, interleaved runs.

Each ratio comes from two consecutive transfers on one Link.  The first sends bytes from memory, which the receiver
drops.  The second sends as many bytes from a file to a file; its time runs from the offer to the answer that the file
has its name.  The files are in memory by default (`--folder`), so that the disk does not count.

Beside the times stands the processor time of both processes, sender and receiver, which other programs on the machine
disturb less.  The last line is the bound where both share two processors, which a Pipe alone keeps busy: the rate if a
transfer took only the processor time of the Pipe and of a plain copy of the file in the same run.

With `--rtt` the two are in network namespaces on a hub that delays every frame (root, Linux).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import psutil
import trio

from benchmarks import delayed_hub
from warpgate_trio import Identity, NodeConfig, Pipe, anyone, open_node, serve_pipes
from warpgate_trio.files import receive_files, send_files

PIECE = bytes(1 << 20)


async def serve(into: Path) -> None:
    """Receive files, or as many bytes as the label of a Pipe says."""

    async def handler(pipe: Pipe) -> None:
        if pipe.label == "files":
            await receive_files(pipe, into=into)
            return
        left = int(pipe.label or 1)  # the first Pipe keeps the Link open
        while left > 0 and (data := await pipe.receive_some()):
            left -= len(data)
        await pipe.send_all(b"k")
        await pipe.send_eof()
        async for _ in pipe:
            pass

    async with open_node(NodeConfig(), identity=Identity.generate(), authorize=anyone) as node:
        print(node.address, flush=True)
        await serve_pipes(handler, node)


async def bare(main: Pipe, size: int) -> float:
    async with await main.open_pipe(str(size)) as pipe:
        began = time.perf_counter()
        for _ in range(size // len(PIECE)):
            await pipe.send_all(PIECE)
        await pipe.receive_some(1)
        return size / 1e6 / (time.perf_counter() - began)


async def files(main: Pipe, path: Path, size: int) -> float:
    async with await main.open_pipe("files") as pipe:
        began = time.perf_counter()
        await send_files(pipe, [path])
        return size / 1e6 / (time.perf_counter() - began)


def copied(path: Path, to: Path) -> float:
    """Processor seconds of a plain copy of a GB."""
    began, size = time.process_time(), 0
    with path.open("rb", buffering=0) as source, to.open("wb", buffering=0) as file:
        while piece := source.read(len(PIECE)):
            size += file.write(piece)
    seconds = time.process_time() - began
    to.unlink()
    return 1e9 * seconds / size


def cpu(process: int) -> float:
    """Processor seconds that a process has used."""
    times = psutil.Process(process).cpu_times()
    return times.user + times.system


async def measure(address: str, receiver: int, path: Path, into: Path, size: int, runs: int) -> None:
    async with open_node(NodeConfig(), identity=Identity.generate()) as node, await node.auto_connect(address) as main:
        await bare(main, min(64 << 20, size))
        pairs, bounds = [], []
        for _ in range(runs):
            used = [(cpu(os.getpid()), cpu(receiver))]
            pair = [await bare(main, size)]
            used.append((cpu(os.getpid()), cpu(receiver)))
            pair.append(await files(main, path, size))
            used.append((cpu(os.getpid()), cpu(receiver)))
            shutil.rmtree(into)
            pairs.append(pair)
            copy = await trio.to_thread.run_sync(copied, path, path.with_name("copy.bin"))
            (a, b), (c, d) = ([1e9 * (y - x) / size for x, y in zip(*each, strict=True)] for each in pairwise(used))
            print(
                f"pipe {pair[0]:4.0f} MB/s, file {pair[1]:4.0f} MB/s: {pair[1] / pair[0]:.2f}; "
                f"CPU s/GB pipe {a:.2f} + {b:.2f}, file {c:.2f} + {d:.2f}: {(a + b) / (c + d):.2f}; copy {copy:.2f}",
                flush=True,
            )
            bounds.append((a + b) / (a + b + copy))
        print(f"median {statistics.median(b / a for a, b in pairs):.2f} (bar 0.8)")
        print(f"two processors would let it have at most {statistics.median(bounds):.2f}")


@contextmanager
def made(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A folder with a file of a size in MiB."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="warpgate-files-") as name:
        with (Path(name) / "one.bin").open("wb") as file:
            for _ in range(mebibytes):
                file.write(os.urandom(1 << 20))
        yield Path(name)


def serving(folder: Path, *within: str) -> subprocess.Popen[str]:
    """The receiving process."""
    words = [*within, sys.executable, "-m", "benchmarks.file_transfer", "--serve", str(folder / "into")]
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


async def far(folder: Path, rtt: float, mebibytes: int, runs: int) -> None:
    """The same between two namespaces."""
    names = ("receiver", "sender")
    delayed_hub.wire_up(names)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(delayed_hub.forward, names, rtt / 2)
        with serving(folder, "ip", "netns", "exec", "receiver") as receiver:
            try:
                assert receiver.stdout is not None
                address = (await trio.to_thread.run_sync(receiver.stdout.readline)).strip()
                words = ["ip", "netns", "exec", "sender", sys.executable, "-m", "benchmarks.file_transfer"]
                sizes = ["--mebibytes", str(mebibytes), "--runs", str(runs), "--folder", str(folder)]
                await trio.run_process([*words, *sizes, "--call", address, str(receiver.pid)])
            finally:
                receiver.kill()
        nursery.cancel_scope.cancel()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.file_transfer", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--mebibytes", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where the files are (/dev/shm)")
    parser.add_argument("--rtt", type=float, metavar="MS", help="milliseconds between the two")
    parser.add_argument("--lab", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--call", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    folder, size = options.folder, options.mebibytes << 20
    if options.serve is not None:
        trio.run(serve, options.serve)
    elif options.call is not None:
        address, receiver = options.call
        trio.run(measure, address, int(receiver), folder / "one.bin", folder / "into", size, options.runs)
    elif options.rtt is not None and options.lab is None:
        if sys.platform != "linux" or os.geteuid() != 0:
            print("skipped: it needs root on Linux, for network namespaces of its own")
            return 0
        delayed_hub.reenter(["-m", "benchmarks.file_transfer", *arguments, "--lab", str(options.rtt / 1000)])
    else:
        with made(folder, options.mebibytes) as there:
            if options.lab is not None:
                trio.run(far, there, options.lab, options.mebibytes, options.runs)
                return 0
            with serving(there) as process:
                assert process.stdout is not None
                try:
                    address = process.stdout.readline().strip()
                    trio.run(measure, address, process.pid, there / "one.bin", there / "into", size, options.runs)
                finally:
                    process.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
