"""Servers of a world that can be restarted.

    restarts = Restarts()
    async with pair.build() as net, simulated_hosts(), open_nodes(net, servers=restarts.of(*SERVERS)) as nodes:
        await restarts.restart("server", pause=3.0)

They end like killed programs: they send nothing, the kernel resets their connections, and their memory is lost.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import final

import trio

from ..nurseries import open_background_nursery
from ..sim import Host
from .walks import WorldServer

__all__ = ["Restarts"]


@final
class _Running:
    """A running server, until `kill` restarts it."""

    def __init__(self, server: WorldServer, host: Host) -> None:
        self.server = server
        self.host = host
        self.life = trio.CancelScope()
        self.opened = trio.Event()
        self.pause = 0.0

    async def run(self) -> None:
        while True:
            with trio.CancelScope() as self.life:
                async with self.server.open(self.host):
                    self.opened.set()
                    await trio.sleep_forever()
            await trio.sleep(self.pause)

    def kill(self, pause: float) -> None:
        self.pause = pause
        self.opened = trio.Event()
        self.life.cancel()


@final
class Restarts:
    """Restarts the servers of one world, by the names of their machines."""

    def __init__(self) -> None:
        self._running: dict[str, list[_Running]] = {}

    def of(self, *servers: WorldServer) -> tuple[WorldServer, ...]:
        """Restartable versions of servers, for `open_nodes` and for worlds of your own."""
        return tuple(map(self._restartable, servers))

    def _restartable(self, server: WorldServer) -> WorldServer:
        @asynccontextmanager
        async def opened(host: Host) -> AsyncGenerator[None]:
            running = _Running(server, host)
            async with open_background_nursery() as nursery:
                nursery.start_soon(running.run)
                await running.opened.wait()
                on_machine = self._running.setdefault(host.name, [])
                on_machine.append(running)
                try:
                    yield
                finally:
                    on_machine.remove(running)

        return replace(server, open=opened)

    async def restart(self, machine: str, *, pause: float = 0.0) -> None:
        """Kill the servers of a machine, and wait until they are up again, at the same addresses.

        Every TCP connection of the machine is reset.  While the servers are down, new connections are refused, and
        datagrams are answered with ICMP errors.

        Args:
          machine: the name of the host on which they run.
          pause: virtual seconds from their end to their new start.

        Raises:
          KeyError: the machine has no restartable server.
        """
        killed = self._running[machine]
        if not killed:
            raise KeyError(machine)
        killed[0].host.reset_connections()
        for running in killed:
            running.kill(pause)
        for running in killed:
            await running.opened.wait()
