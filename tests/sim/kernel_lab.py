"""The same NATs from Linux itself: network namespaces, nftables, and a wire of TUN devices with a delay.

Run as ``unshare --mount --net python -m tests.sim.kernel_lab`` by root; prints the answers to `cells.CELLS` as JSON.
Every interface of every namespace is a TUN device whose packets this process carries: at once on a LAN, after the delay
and six hops on the outside.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import json
import os
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from ipaddress import IPv4Address
from types import TracebackType
from typing import Final, final

import trio
from trio.abc import SocketFactory

from tests.sim.cells import CELLS, Cell
from tests.sim.programs import LATENCY

DELAY: Final = 2 * LATENCY
HOPS: Final = 6
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x1001
_CLONE_NEWNET: Final = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

MASQUERADE = (
    "table ip n {{ chain post {{ type nat hook postrouting priority srcnat; oifname wan masquerade {how}\n}}\n}}\n"
)
DROP = "table ip f { chain input { type filter hook input priority 0; iifname wan drop\n}\n}"
REJECT = (
    "table ip f { chain input { type filter hook input priority 0; "
    "iifname wan meta l4proto tcp reject with tcp reset; iifname wan reject\n}\n}"
)
# The map is written after source NAT, so its key is the real outside port; the set has the addresses that were sent to.
CONE = r"""
table ip n {{
  map eim {{
    type inet_proto . inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout 120s; size 65536;
  }}
  set seen {{ type inet_proto . inet_service . ipv4_addr; flags dynamic,timeout; timeout 120s; }}
  chain pre {{ type nat hook prerouting priority dstnat;
    iifname wan meta l4proto {{ tcp, udp }} {only} dnat ip to meta l4proto . th dport map @eim
  }}
  chain post {{ type nat hook postrouting priority srcnat; oifname wan masquerade
  }}
  chain track {{ type filter hook postrouting priority 110;
    oifname wan meta l4proto {{ tcp, udp }} update @seen {{ meta l4proto . th sport . ip daddr }}
    oifname wan meta l4proto {{ tcp, udp }} ct direction original \
      update @eim {{ meta l4proto . th sport : ct original ip saddr . ct original proto-src }}
  }}
}}
"""
RULES: Final = {
    "full-cone": CONE.format(only="") + DROP,
    "restricted": CONE.format(only="meta l4proto . th dport . ip saddr @seen") + DROP,
    "linux": MASQUERADE.format(how="") + DROP,
    "linux-local": MASQUERADE.format(how=""),
    "openwrt": MASQUERADE.format(how="") + REJECT,
    "linux-symmetric": MASQUERADE.format(how="random") + DROP,
}

_current: ContextVar[Namespace | None] = ContextVar("namespace", default=None)
_HOME: Final = os.open("/proc/self/ns/net", os.O_RDONLY)


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _sh(*command: str, stdin: str = "") -> None:
    subprocess.run(command, input=stdin, text=True, check=True)


@final
class Namespace:
    """A machine."""

    def __init__(self, name: str, ip: str) -> None:
        self.name = name
        self.ip = ip
        _sh("ip", "netns", "add", name)
        self._fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
        _sh("ip", "-n", name, "link", "set", "lo", "up")

    @contextmanager
    def inside(self) -> Generator[None]:
        _setns(self._fd)
        try:
            yield
        finally:
            _setns(_HOME)

    def __enter__(self) -> Namespace:
        _current.set(self)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _current.set(None)

    def tun(self, device: str, address: str) -> int:
        with self.inside():
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH", device.encode(), _IFF_TUN_NO_PI))
        _sh("ip", "-n", self.name, "addr", "add", address, "dev", device)
        _sh("ip", "-n", self.name, "link", "set", device, "up")
        return fd

    def rules(self, text: str) -> None:
        _sh("ip", "netns", "exec", self.name, "nft", "flush", "ruleset")
        _sh("ip", "netns", "exec", self.name, "nft", "-f", "-", stdin=text)


@final
class Wire(threading.Thread):
    """Carries packets between devices: `cables` maps a device to (seconds, hops, which device has an address)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.cables: dict[int, tuple[float, int, Callable[[str], int | None]]] = {}
        self.stop = False

    def run(self) -> None:
        waiting: list[tuple[float, int, int, bytes]] = []
        count = 0
        while not self.stop:
            timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 0.1
            for fd in select.select(list(self.cables), [], [], min(timeout, 0.1))[0]:
                packet = os.read(fd, 65536)
                delay, hops, owner = self.cables[fd]
                if packet[0] >> 4 != 4 or packet[8] <= hops:
                    continue
                target = owner(str(IPv4Address(packet[16:20])))
                if target is not None:
                    count += 1
                    heapq.heappush(waiting, (time.monotonic() + delay, count, target, _aged(packet, hops)))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, target, packet = heapq.heappop(waiting)
                os.write(target, packet)


def _always(device: int, _address: str) -> int:
    return device


def _aged(packet: bytes, hops: int) -> bytes:
    """A packet after some routers: a lower TTL, and the header's checksum to match."""
    if not hops:
        return packet
    header = packet[:8] + bytes([packet[8] - hops, packet[9], 0, 0]) + packet[12:20]
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return header[:10] + struct.pack("!H", ~total & 0xFFFF) + header[12:] + packet[20:]


@final
class Lab:
    """Two NATs, three hosts, two servers."""

    def __init__(self) -> None:
        _sh("mkdir", "-p", "/run/netns")
        _sh("mount", "-t", "tmpfs", "none", "/run/netns")
        self.outside_a, self.outside_b = "203.0.113.1", "203.0.113.2"
        self.nat_a, self.nat_b = Namespace("nata", self.outside_a), Namespace("natb", self.outside_b)
        self.a, self.a2 = Namespace("a", "10.1.0.2"), Namespace("a2", "10.1.0.3")
        self.b = Namespace("b", "10.2.0.2")
        self.one, self.two = Namespace("one", "203.0.113.10"), Namespace("two", "203.0.113.20")
        wire = self.wire = Wire()
        outside = {n.ip: n.tun("wan", f"{n.ip}/24") for n in (self.nat_a, self.nat_b, self.one, self.two)}
        wire.cables.update(dict.fromkeys(outside.values(), (DELAY, HOPS, outside.get)))
        for nat, gateway, hosts in ((self.nat_a, "10.1.0.1", (self.a, self.a2)), (self.nat_b, "10.2.0.1", (self.b,))):
            _sh("ip", "netns", "exec", nat.name, "sysctl", "-qw", "net.ipv4.ip_forward=1")
            lan = nat.tun("lan", f"{gateway}/24")
            owners = {}
            for host in hosts:
                owners[host.ip] = host.tun("eth0", f"{host.ip}/24")
                _sh("ip", "-n", host.name, "route", "add", "default", "via", gateway, "dev", "eth0", "onlink")
                wire.cables[owners[host.ip]] = (0.0, 0, partial(_always, lan))
            wire.cables[lan] = (0.0, 0, owners.get)
        wire.start()


@final
class Factory(SocketFactory):
    """Makes sockets in the current namespace."""

    def socket(self, family: int = 2, type: int = 1, proto: int = 0) -> trio.socket.SocketType:  # noqa: A002
        namespace = _current.get()
        assert namespace is not None
        with namespace.inside():
            return trio.socket.from_stdlib_socket(socket.socket(family, type, proto))


async def ask(lab: Lab, cell: Cell, port: int) -> object:
    trio.socket.set_custom_socket_factory(Factory())
    with trio.fail_after(20):
        return await cell.run(lab, port, 0.2)


def main() -> None:
    lab = Lab()
    answers = {}
    for number, cell in enumerate(CELLS):
        lab.nat_a.rules(RULES[cell.nat_a])
        lab.nat_b.rules(RULES[cell.nat_b])
        # Fresh ports for each, since what is tracked outlives the rules.
        answers[str(cell)] = trio.run(ask, lab, cell, 40000 + 10 * number)
    lab.wire.stop = True
    lab.wire.join()
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
