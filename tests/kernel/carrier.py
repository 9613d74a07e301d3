"""Homes behind a carrier-grade NAT: their provider has one public address for all of them.

    host 192.168.77.2 ── lan router wan 100.64.0.2 ──┐
                                                     ├─ lan 100.64.0.1 carrier wan 5.5.0.40 ── outside 5.5.0.2
    host 192.168.77.2 ── lan router wan 100.64.0.3 ──┘

The carrier's NAT lets in replies only, gives each flow a random port, and does not hairpin.  In the carrier's network,
the routers of two homes reach each other.  Each router is a `tests.kernel.miniupnpd.Router`.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, final

import trio

from tests.kernel.lab import BRIDGE_SETTINGS, ROUTER_SETTINGS
from tests.kernel.miniupnpd import HOST, OUTSIDE, ROUTER, RULES, WAN, Router
from tests.kernel.namespaces import Namespace
from tests.requirements import find_program

CARRIER: Final = IPv4Address("100.64.0.1")
_RULES: Final = """
table ip carrier {{
  chain forward {{
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    ct status dnat accept
    iifname lan oifname wan accept
  }}
  chain input {{ type filter hook input priority 0; iifname {{ wan, lan }} ip daddr {wan} ct state new drop; }}
  chain prerouting {{ type nat hook prerouting priority dstnat; {forwarded} }}
  chain postrouting {{ type nat hook postrouting priority srcnat; oifname wan masquerade random; }}
}}
"""


@final
@dataclass(frozen=True, slots=True)
class Carrier:
    """The provider, and the homes that it serves."""

    outside: Namespace
    nat: Namespace
    homes: tuple[Router, ...]

    def forward(self, port: int) -> None:
        """Forward TCP at a port of the public address to the first home's router, as if the provider assigned it."""
        target = f"iifname wan tcp dport {port} dnat to {outside_of(0)};"
        self.nat.rules(_RULES.format(wan=WAN, forwarded=target))


def outside_of(number: int) -> IPv4Address:
    """The address of a home's router in the carrier's network."""
    return CARRIER + 1 + number


def that_maps_in_a_carriers_network(folder: Path) -> Path:
    """A miniupnpd that opens ports although its outside address is in 100.64/10.

    From 2.3.9 on, miniupnpd has an option for that.  Older ones have a list of private networks, each an address and
    its number of host bits.  This is a copy of the program with that network removed from the list.
    """
    program = find_program("miniupnpd")
    assert program is not None
    code = Path(program).read_bytes()
    entry = struct.pack("=II", int(CARRIER) - 1, 32 - 10)
    assert code.count(entry) == 1
    made = folder / "miniupnpd"
    made.write_bytes(code.replace(entry, struct.pack("=II", 0, 32 - 8)))
    made.chmod(made.stat().st_mode | stat.S_IXUSR)
    return made


@asynccontextmanager
async def open_carrier(folder: Path, homes: int = 1) -> AsyncGenerator[Carrier]:
    """A provider and its homes, without daemons yet; taken down at the end."""
    outside, nat = Namespace("outside"), Namespace("carrier")
    machines = [outside, nat]
    made: list[Router] = []
    try:
        nat.set_sysctl(ROUTER_SETTINGS)
        if os.path.exists("/proc/sys/net/bridge"):
            nat.set_sysctl(BRIDGE_SETTINGS)  # traffic between homes passes this bridge
        nat.ip_commands(
            "link add lan type bridge",
            f"addr add {CARRIER}/24 dev lan",
            "link set lan up",
            f"link add wan type veth peer name eth0 netns {outside.path}",
            f"addr add {WAN}/24 dev wan",
            "link set wan up",
        )
        outside.ip_commands(f"addr add {OUTSIDE}/24 dev eth0", "link set eth0 up")
        nat.rules(_RULES.format(wan=WAN, forwarded=""))
        for number in range(homes):
            router, host = Namespace(f"router{number}"), Namespace(f"host{number}")
            machines += [router, host]
            (folder / str(number)).mkdir()
            made.append(Router(outside, router, host, folder / str(number)))
            router.set_sysctl(ROUTER_SETTINGS)
            nat.ip_commands(
                f"link add home{number} type veth peer name wan netns {router.path}",
                f"link set home{number} master lan up",
            )
            router.ip_commands(
                f"addr add {outside_of(number)}/24 dev wan",
                "link set wan up",
                f"route add default via {CARRIER}",
                "link add lan type bridge",
                f"addr add {ROUTER}/24 dev lan",
                "link set lan up",
                f"link add port type veth peer name eth0 netns {host.path}",
                "link set port master lan up",
            )
            host.ip_commands(
                f"addr add {HOST}/24 dev eth0",
                "link set eth0 up",
                f"route add default via {ROUTER}",
            )
            router.rules(RULES)
        yield Carrier(outside, nat, tuple(made))
    finally:
        with trio.CancelScope(shield=True):
            for home in made:
                await home.stop()
        for machine in machines:
            machine.close()
