"""A virtual internet for Trio programs: virtual time, TCP and UDP, NATs, faults, and one seed for all of it.

Programs run unchanged on simulated hosts, because `trio.socket` gives them simulated sockets::

    from warpgate_trio.sim import Link, Network, presets, simulate

    async def main() -> None:
        async with Network(seed=7) as net:
            server = net.host("server", link=Link(latency=0.02))
            alice = net.lan("home", nat=presets.LINUX).host("alice")
            ...

    simulate(main, seed=7)

It needs Trio and the standard library, and nothing of warpgate_trio.
"""

from __future__ import annotations

from . import presets
from .determinism import deterministic
from .faults import Fault, Kind
from .host import Host, Interface, current_host
from .link import Link
from .nat import Nat
from .nat_axes import (
    Behavior,
    Conflict,
    Filtering,
    Hairpin,
    Mapping,
    NatConfig,
    Pooling,
    Refresh,
    Timers,
    Unsolicited,
)
from .nat_ports import Block, Hash, Preserve, Sequential, Uniform
from .nat_verdicts import Forward
from .netstat import Netstat
from .network import Network, simulate
from .packet import Icmp
from .router import Router
from .segment import Segment

__all__ = [
    "Behavior",
    "Block",
    "Conflict",
    "Fault",
    "Filtering",
    "Forward",
    "Hairpin",
    "Hash",
    "Host",
    "Icmp",
    "Interface",
    "Kind",
    "Link",
    "Mapping",
    "Nat",
    "NatConfig",
    "Netstat",
    "Network",
    "Pooling",
    "Preserve",
    "Refresh",
    "Router",
    "Segment",
    "Sequential",
    "Timers",
    "Uniform",
    "Unsolicited",
    "current_host",
    "deterministic",
    "presets",
    "simulate",
]
