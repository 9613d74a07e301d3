"""Two homes and a few servers, on one internet, made of network namespaces.

    a ── nat ──┐                      ┌── nat ── b
    a2 ───┘    │    ~~ 6 routers ~~   │
               ├──────── wire ────────┤
    server 203.0.113.2 and .3 ──┘  └── bystander 203.0.113.9

The round trip between any two outside interfaces takes `rtt`, for peers and servers alike. A home of the kind `open`
has no NAT: its host has a public address. Everything belongs to this process and ends with it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, final

import trio

from tests.kernel.namespaces import Namespace
from tests.kernel.nats import Nat, Transport, nat, restriction
from tests.kernel.wire import HOPS, Device, Segment, Wire

RTT: Final = 0.05
SERVER, SECOND, BYSTANDER = "203.0.113.2", "203.0.113.3", "203.0.113.9"
ROUTER_SETTINGS: Final = {"ipv4/ip_forward": "1"}
BRIDGE_SETTINGS: Final = {"bridge/bridge-nf-call-iptables": "0"}
"""For kernels that filter bridged packets: the NAT must not see what passes a home's bridge."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class Host:
    """A machine on which programs run, and one of its addresses."""

    machine: Namespace
    ip: str

    def __enter__(self) -> Host:
        self.machine.__enter__()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.machine.__exit__(exc_type, exc, traceback)


@final
@dataclass(frozen=True, eq=False, slots=True)
class Home:
    """A NAT and the hosts behind it.

    Attributes:
      outside: the address that the internet sees.
      router: None where there is no NAT.
      second: the second host; None unless it was asked for.
    """

    nat: Nat
    outside: str
    host: Host
    second: Host | None
    router: Namespace | None


@asynccontextmanager
async def open_lab(
    wire: Wire,
    *kinds: Nat | str,
    second: bool = False,
    rtt: float = RTT,
    hops: int = HOPS,
    only: Transport | None = None,
) -> AsyncGenerator[Lab]:
    """A lab with homes of some kinds.

    It is built and taken down in threads. The kernel takes a tenth of a second for either, mostly waiting, which would
    delay every other lab of this process.
    """

    def build() -> Lab:
        lab = Lab(wire, rtt=rtt, hops=hops, only=only)
        try:
            for kind in kinds:
                lab.home(kind, second=second)
        except BaseException:
            lab.close()
            raise
        return lab

    lab = await trio.to_thread.run_sync(build)
    try:
        yield lab
    finally:
        with trio.CancelScope(shield=True):  # bounded: the kernel only removes what was made
            await trio.to_thread.run_sync(lab.close)


@final
class Lab:
    """An internet with homes and servers, until `close`; made by `open_lab`.

    Args:
      wire: carries the packets; several labs may share one.
      rtt: seconds of a round trip between any two outside interfaces.
      hops: routers in the middle; a packet with a TTL of 3 passes its own NAT and dies there.
      only: the transport that remains; the other one is dropped in every home, except to and from servers.
    """

    def __init__(self, wire: Wire, *, rtt: float = RTT, hops: int = HOPS, only: Transport | None = None) -> None:
        self._wire = wire
        self._delay = rtt / 4  # a round trip passes two access lines twice
        self._only = only
        self._machines: list[Namespace] = []
        self._devices: list[Device] = []
        self.internet: Final = Segment(wire, hops=hops)
        self.homes: list[Home] = []
        try:
            server = self._on_the_internet("server", SERVER, SECOND)
            self.server: Final = Host(server, SERVER)
            self.second_server: Final = Host(server, SECOND)
            self.bystander: Final = Host(self._on_the_internet("bystander", BYSTANDER), BYSTANDER)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for device in self._devices:
            self._wire.remove(device)
        for machine in self._machines:
            machine.close()
        self._devices.clear()
        self._machines.clear()

    def home(self, kind: Nat | str, *, second: bool = False, lan: str | None = None) -> Home:
        """Build a home.

        Args:
          kind: see `tests.kernel.nats.nat`.
          second: whether there are two hosts behind the NAT.
          lan: the first three bytes of its private addresses; each home has its own if not given.
        """
        wanted = nat(kind) if isinstance(kind, str) else kind
        number = len(self.homes) + 1
        name, outside = "abcdefgh"[number - 1], f"203.0.113.{10 + number}"
        home = (
            self._home_open(wanted, name, outside)
            if wanted.is_open
            else self._home_nat(wanted, name, outside, lan or f"192.168.{number}", 2 if second else 1)
        )
        self.homes.append(home)
        return home

    def _machine(self, name: str) -> Namespace:
        machine = Namespace(name)
        self._machines.append(machine)
        return machine

    def _on_the_internet(self, name: str, *addresses: str, device: str = "eth0") -> Namespace:
        machine = self._machine(name)
        self._devices.append(self.internet.attach(machine, device, self._delay, *addresses))
        return machine

    def _home_open(self, wanted: Nat, name: str, outside: str) -> Home:
        machine = self._on_the_internet(name, outside)
        if rules := restriction("input", wanted, self._only, (SERVER, SECOND)):
            machine.rules(rules)
        return Home(wanted, outside, Host(machine, outside), None, None)

    def _home_nat(self, wanted: Nat, name: str, outside: str, lan: str, hosts: int) -> Home:
        router = self._on_the_internet(f"nat-{name}", outside, device="wan")
        router.set_sysctl(ROUTER_SETTINGS)
        if os.path.exists("/proc/sys/net/bridge"):
            router.set_sysctl(BRIDGE_SETTINGS)
        behind = [Host(self._machine(f"{name}{n or ''}"), f"{lan}.{100 + n}") for n in range(hosts)]
        router.ip_commands(
            f"link add lan address {_mac(0)} type bridge",
            f"addr add {lan}.1/24 dev lan",
            "link set lan up",
            *(
                command
                for n, host in enumerate(behind)
                for command in (
                    f"link add port{n} type veth peer name eth0 address {_mac(n + 1)} netns {host.machine.path}",
                    f"link set port{n} master lan up",
                    f"neigh add {host.ip} lladdr {_mac(n + 1)} dev lan nud permanent",
                )
            ),
        )
        for host in behind:
            host.machine.ip_commands(
                f"addr add {host.ip}/24 dev eth0",
                "link set eth0 up",
                f"route add default via {lan}.1",
                f"neigh add {lan}.1 lladdr {_mac(0)} dev eth0 nud permanent",
            )
        router.rules(wanted.rules(outside, behind[0].ip, only=self._only, servers=(SERVER, SECOND)))
        return Home(wanted, outside, behind[0], behind[1] if hosts > 1 else None, router)


def _mac(number: int) -> str:
    # A known MAC address saves the first packet from waiting for ARP: in some tests it matters whose packet is first.
    return f"02:00:00:00:00:{number:02x}"
