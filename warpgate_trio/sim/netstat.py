"""A listing of open sockets, running tasks, closing connections and NAT mappings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import trio

from .host import Host, host_of
from .network_base import NetworkBase
from .packet import PROTOCOL_NAMES, show
from .router import Router
from .tcp_states import State


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Netstat:
    """A listing of a network, one line for each item; false if there are neither open sockets nor running tasks.

    Attributes:
      sockets: open sockets.
      tasks: tasks that run on a host of the network, except the calling one.
      lingering: connections whose socket is closed but whose state is not CLOSED; TIME-WAIT ends after a minute.
      mappings: mappings and forwards of all NATs and firewalls.
    """

    sockets: tuple[str, ...]
    tasks: tuple[str, ...]
    lingering: tuple[str, ...]
    mappings: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.sockets or self.tasks)

    def __str__(self) -> str:
        parts = [
            f"{title}:\n" + "".join(f"  {line}\n" for line in lines)
            for title, lines in (
                ("sockets", self.sockets),
                ("tasks", self.tasks),
                ("lingering", self.lingering),
                ("mappings", self.mappings),
            )
            if lines
        ]
        return "".join(parts) or "nothing\n"


def netstat(net: NetworkBase[Host]) -> Netstat:
    """Make the listing of a network."""
    return Netstat(
        sockets=tuple(repr(sock) for sock in net.open_sockets()),
        tasks=tuple(_tasks(net)),
        lingering=tuple(_lingering(net)),
        mappings=tuple(_mappings(net)),
    )


def _tasks(net: NetworkBase[Host]) -> Iterator[str]:
    if net.wire.ended is not None:
        return
    root = trio.lowlevel.current_root_task()
    me = trio.lowlevel.current_task()
    waiting = [] if root is None else [root]
    while waiting:
        task = waiting.pop()
        for nursery in task.child_nurseries:
            waiting.extend(sorted(nursery.child_tasks, key=lambda child: child.name, reverse=True))
        host = host_of(task.context)
        if host is not None and host.net is net and task is not me:
            yield f"{task.name} on {host.name}"


def _lingering(net: NetworkBase[Host]) -> Iterator[str]:
    for host in net.hosts.values():
        for (local, remote), connection in host.stack.tcp.connections.items():
            state = connection.endpoint.state
            if connection.endpoint.orphan or state is State.TIME_WAIT:
                yield f"{host.name} {show(local)} > {show(remote)} {state.value}"


def _mappings(net: NetworkBase[Host]) -> Iterator[str]:
    now = net.wire.now
    for host in net.hosts.values():
        if not isinstance(host, Router):
            continue
        for box in (host.nat, host.firewall6):
            if box is None:
                continue
            for mapping in box.mappings(now):
                peers = ", ".join(show(remote) for remote in mapping.sessions)
                name = PROTOCOL_NAMES[mapping.proto]
                yield f"{host.name} {name} {show(mapping.inside)} = {show(mapping.outside)} for {peers}"
            for forward in box.forwards(now):
                yield f"{host.name} {PROTOCOL_NAMES[forward.proto]} {forward.port} forwarded to {show(forward.inside)}"
