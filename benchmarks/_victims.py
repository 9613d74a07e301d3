"""The attacked nodes and servers of `attack_costs`, each in a process of its own that reports its CPU and memory."""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio

from warpgate_trio import Identity, NodeConfig, Servers, open_node
from warpgate_trio.ports.udp import UdpPorts
from warpgate_trio.servers.ntp import open_ntp
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.servers.rendezvous_core import RendezvousLimits
from warpgate_trio.servers.stun import open_stun_server

__all__ = ["Victim", "victim"]


async def report(traced: bool) -> None:
    """Answer each line of stdin, ``cpu`` with seconds of CPU and ``bytes`` with bytes of memory, until its end."""
    while question := await trio.to_thread.run_sync(sys.stdin.readline):
        if question == "cpu\n":
            print(time.process_time(), flush=True)
        else:
            gc.collect()
            print(tracemalloc.get_traced_memory()[0] if traced else resident(), flush=True)


def resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    raise OSError("no VmRSS in /proc/self/status")


async def nobody(_: str) -> bool:
    """The victim is a node that refuses strangers."""
    await trio.lowlevel.checkpoint()
    return False


@asynccontextmanager
async def node(server: str) -> AsyncGenerator[dict[str, Any]]:
    servers = Servers(websocket=[server] if server else [])
    async with open_node(NodeConfig(servers=servers), identity=Identity.generate(), authorize=nobody) as victim:
        if server:
            await victim.wait_signals()
        yield {"address": str(victim.address)}


@asynccontextmanager
async def rendezvous(unlimited: str) -> AsyncGenerator[dict[str, Any]]:
    """A rendezvous server; with `unlimited` it is the attacker's own, without limits."""
    many = RendezvousLimits(sends_per_second=1e9, send_burst=10**9)
    async with open_rendezvous(limits=many if unlimited else RendezvousLimits()) as server:
        yield {"url": server.url, "port": server.port}


@asynccontextmanager
async def stun(_: str) -> AsyncGenerator[dict[str, Any]]:
    async with open_stun_server(host="127.0.0.1", port=0) as server:
        yield {"port": server.address[1]}


@asynccontextmanager
async def ntp(_: str) -> AsyncGenerator[dict[str, Any]]:
    async with open_ntp(host="127.0.0.1", port=0) as server:
        yield {"port": server.port}


@asynccontextmanager
async def udp_port(_: str) -> AsyncGenerator[dict[str, Any]]:
    """A UDP port of a node, as used for punching and STUN."""
    ports = UdpPorts()
    async with trio.open_nursery() as nursery, ports.running(nursery):
        yield {"port": (await ports.open("127.0.0.1")).local[1]}
        nursery.cancel_scope.cancel()


VICTIMS = {each.__name__: each for each in (node, rendezvous, stun, ntp, udp_port)}


async def be_victim(role: str, argument: str, traced: bool) -> None:
    async with VICTIMS[role](argument) as about:
        if traced:
            tracemalloc.start()
        print(json.dumps(about), flush=True)
        await report(traced)


class Victim:
    """The process of a victim, seen from the attacker."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.about: dict[str, Any] = self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def _ask(self, question: str) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        return float(self._read())

    def cpu(self) -> float:
        """Its CPU time in seconds, after it has processed everything it has received."""
        last = self._ask("cpu")
        for _ in range(100):
            time.sleep(0.05)
            now = self._ask("cpu")
            if now - last < 0.002:
                return now
            last = now
        return last

    def bytes(self) -> float:
        """Its memory in bytes, after it has processed everything it has received."""
        self.cpu()
        return self._ask("bytes")

    @property
    def port(self) -> int:
        return int(self.about["port"])


@contextmanager
def victim(role: str, argument: str = "", *, traced: bool = False) -> Generator[Victim]:
    command = [sys.executable, "-m", "benchmarks._victims", role, argument, *["--traced"] * traced]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Victim(process)
        finally:
            process.kill()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=sorted(VICTIMS))
    parser.add_argument("argument", nargs="?", default="")
    parser.add_argument("--traced", action="store_true")
    options = parser.parse_args()
    trio.run(be_victim, options.role, options.argument, options.traced)
