"""A node on a machine of the kernel lab, as a separate program that is controlled by commands.

It reads a command from each line of stdin, and answers with one line:

* ``warm``: the address of the node, when it is warm;
* ``call PLUGIN BYTES ADDRESS``: the seconds taken, and the plugin that connected.  ``walk`` as PLUGIN stands for all
  plugins, ``relay_first`` for all with a relay first;
* ``renew``: replaces the node by a new one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import final

import trio

from tests.kernel.lab import Host
from warpgate_trio import EXT_BIND, ConnectError, Identity, Node, Pipe, anyone, load_config, open_node

__all__ = ["PATIENCE", "RemoteNode", "node_on"]

PATIENCE = 20.0
"""Timeout in seconds for a node to get warm, and for one run."""


async def be_node(config: str) -> None:
    commands = aiter(trio.wrap_file(sys.stdin))
    while True:
        async with (
            open_node(load_config(file=config), identity=Identity.generate(), authorize=anyone) as node,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(trio.serve_listeners, echo, [node.listener])
            again = await obey(node, commands)
            nursery.cancel_scope.cancel()
        if not again:
            return
        print("renewed", flush=True)


async def obey(node: Node, commands: AsyncIterator[str]) -> bool:
    async for command in commands:
        match command.split():
            case ["warm"]:
                await warm(node)
                print(node.address, flush=True)
            case ["call", plugin, size, address]:
                try:
                    print(json.dumps(await call(node, plugin, int(size), address)), flush=True)
                except ConnectError as error:
                    print(json.dumps(f"{error.verdict.value}: {error}"), flush=True)
            case ["renew"]:
                return True
    return False


async def echo(pipe: Pipe) -> None:
    async with pipe:
        async for data in pipe:
            await pipe.send_all(data)


async def warm(node: Node) -> None:
    """Wait until a node has everything that it keeps ready for calls."""
    await node.wait_signals()
    nat = node._runtime.nat
    clock = node._runtime.view.clock
    while not (  # noqa: ASYNC110 - it does not tell anybody
        nat._udp.warm.get(4)
        and nat._tcp.warm.get(4)
        and nat.profiles.get(None, 4).udp.endpoint_independent is not None
        and not nat.measuring[4].locked()
        and clock.uncertainty() < 1
    ):
        await trio.sleep(0.02)


async def call(node: Node, plugin: str, size: int, address: str) -> tuple[float, str]:
    """Seconds to the first echoed byte of a first write of some size, and the plugin; waits for the whole echo."""
    began = time.perf_counter()
    pipe = await (
        node.auto_connect(address, timeout=PATIENCE / 2, relay_first=plugin == "relay_first")
        if plugin in ("walk", "relay_first")
        else node.connect(address, plugin=plugin, af=4, route_type=EXT_BIND, timeout=PATIENCE / 2)
    )
    found = pipe.path.plugin
    async with pipe, trio.open_nursery() as nursery:
        nursery.start_soon(pipe.send_all, bytes(size))
        size -= len(await pipe.receive_some(size))
        taken = time.perf_counter() - began
        while size:
            size -= len(await pipe.receive_some(size))
        return taken, found


@final
class RemoteNode:
    """A node on a machine of the lab."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._answers = bytearray()

    async def ask(self, command: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with trio.fail_after(PATIENCE):
            await self._process.stdin.send_all(f"{command}\n".encode())
            while b"\n" not in self._answers:
                more = await self._process.stdout.receive_some()
                if not more:
                    raise RuntimeError(f"the node ended at {command!r}")
                self._answers += more
        answer, _, rest = bytes(self._answers).partition(b"\n")
        self._answers[:] = rest
        return answer.decode()


@asynccontextmanager
async def node_on(host: Host, config: Path) -> AsyncGenerator[RemoteNode]:
    words = [sys.executable, "-m", "benchmarks._lab_nodes", str(config)]
    process = await trio.lowlevel.open_process(
        host.machine.command(words), pass_fds=[host.machine.fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield RemoteNode(process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


if __name__ == "__main__":
    trio.run(be_node, sys.argv[1])
