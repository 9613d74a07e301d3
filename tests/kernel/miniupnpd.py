"""A home whose router runs a real miniupnpd, which opens ports on request.

    host 192.168.77.2, 2a00:77::2 ── lan (bridge) router wan ── outside 5.5.0.2, 2a00:5::2
                                        5.5.0.40, 2a00:5::40

The outside addresses are ones that belong to somebody.  miniupnpd takes the documentation addresses, which the rest of
the lab uses, for private ones.
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, final

import trio

from tests.hangs import HANG
from tests.kernel.lab import ROUTER_SETTINGS
from tests.kernel.namespaces import Namespace
from tests.requirements import find_program

OUTSIDE, WAN = IPv4Address("5.5.0.2"), IPv4Address("5.5.0.40")
HOST, ROUTER = IPv4Address("192.168.77.2"), IPv4Address("192.168.77.1")

RULES: Final = """
table inet filter {
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    iifname lan oifname wan accept
    jump miniupnpd
  }
  chain input { type filter hook input priority 0; iifname wan ct state new drop; }
  chain miniupnpd { }
  chain prerouting { type nat hook prerouting priority dstnat; jump prerouting_miniupnpd; }
  chain postrouting {
    type nat hook postrouting priority srcnat;
    jump postrouting_miniupnpd
    meta nfproto ipv4 oifname wan masquerade
  }
  chain prerouting_miniupnpd { }
  chain postrouting_miniupnpd { }
}
"""
SETTINGS: Final = """
ext_ifname=wan
listening_ip=lan
http_port=5000
min_lifetime=120
max_lifetime=86400
secure_mode=yes
system_uptime=no
uuid=12ace5f9-7164-4da2-b83c-20afa947cf27
lease_file={folder}/leases
lease_file6={folder}/leases6
allow 1024-65535 192.168.77.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""


@final
@dataclass(slots=True)
class Router:
    """The home, and its daemon if one runs."""

    outside: Namespace
    router: Namespace
    host: Namespace
    folder: Path
    daemon: trio.Process | None = None

    def rules(self) -> str:
        """The firewall's rules, with those of the daemon."""
        chains = ("prerouting_miniupnpd", "miniupnpd")
        return "".join(self.router.sh("nft", "list", "chain", "inet", "filter", chain) for chain in chains)

    async def start(
        self, *, upnp: bool = True, natpmp: bool = True, more: str = "", program: Path | None = None
    ) -> None:
        """Start the daemon (`program` or the installed one), with `more` configuration, and wait until it answers."""
        wanted = f"enable_upnp={_word(upnp)}\nenable_natpmp={_word(natpmp)}\n{more}\n"
        (self.folder / "conf").write_text(wanted + SETTINGS.format(folder=self.folder))
        found = program or find_program("miniupnpd")
        assert found is not None
        words = [str(found), "-d", "-f", str(self.folder / "conf"), "-P", str(self.folder / "pid")]
        with (self.folder / "log").open("ab") as log:
            self.daemon = await trio.lowlevel.open_process(
                self.router.command(words), pass_fds=[self.router.fd], stdout=log, stderr=subprocess.STDOUT
            )
        port = ":5000" if upnp else ":5351"
        with trio.fail_after(HANG):
            while port not in self.router.sh("ss", "-Hlntu"):
                assert self.daemon.poll() is None, (self.folder / "log").read_text()
                await trio.sleep(0.02)  # there is no event for its start

    async def stop(self) -> None:
        """Kill the daemon as a power cut does; its rules stay in the firewall."""
        if self.daemon is not None:
            self.daemon.kill()
            await self.daemon.wait()
            self.daemon = None


@asynccontextmanager
async def open_home(folder: Path) -> AsyncGenerator[Router]:
    """A home whose daemon does not run yet; taken down at the end."""
    machines = [Namespace(name) for name in ("outside", "router", "host")]
    outside, router, host = machines
    home = Router(outside, router, host, folder)
    try:
        for each in machines:
            each.set_sysctl({"ipv6/conf/all/accept_dad": "0", "ipv6/conf/default/accept_dad": "0"})
        router.set_sysctl(ROUTER_SETTINGS | {"ipv6/conf/all/forwarding": "1"})
        router.ip_commands(
            "link add lan type bridge",
            f"addr add {ROUTER}/24 dev lan",
            "addr add 2a00:77::1/64 dev lan nodad",
            "link set lan up",
            f"link add wan type veth peer name eth0 netns {outside.path}",
            f"addr add {WAN}/24 dev wan",
            "addr add 2a00:5::40/64 dev wan nodad",
            "link set wan up",
            f"link add port type veth peer name eth0 netns {host.path}",
            "link set port master lan up",
        )
        outside.ip_commands(
            f"addr add {OUTSIDE}/24 dev eth0",
            "addr add 2a00:5::2/64 dev eth0 nodad",
            "link set eth0 up",
            "route add 2a00:77::/64 via 2a00:5::40",
        )
        host.ip_commands(
            f"addr add {HOST}/24 dev eth0",
            "addr add 2a00:77::2/64 dev eth0 nodad",
            "link set eth0 up",
            f"route add default via {ROUTER}",
            "route add default via 2a00:77::1",
        )
        router.rules(RULES)
        yield home
    finally:
        with trio.CancelScope(shield=True):
            await home.stop()
        for each in machines:
            each.close()


def _word(flag: bool) -> str:
    return "yes" if flag else "no"
