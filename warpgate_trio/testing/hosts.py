"""Simulated hosts as `warpgate_trio.host.Host`s: with `simulated_hosts`, whole nodes run in the simulator unchanged.

The simulator does not depend on this package.  It installs its sockets behind `trio.socket`; this module installs its
interfaces, routes, clocks and entropy behind `warpgate_trio.host.current`.  The simulator's own context variable
determines the host, so a node uses the host on which it was opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Final, final

import trio

from .. import sim
from ..host import Gateway, Host, Interface, InterfaceAddress, set_provider

if TYPE_CHECKING:
    from random import Random

__all__ = ["SimulatedHost", "simulated_hosts"]

_LOOPBACK: Final = Interface(
    name="lo",
    index=1,  # as on Linux; the simulator's own begin at 2
    addresses=(
        InterfaceAddress(ip=ip_address("127.0.0.1"), prefix=8),
        InterfaceAddress(ip=ip_address("::1"), prefix=128),
    ),
    is_loopback=True,
    is_virtual=False,
)


_PORT_MAPPING: Final = (5351, 1900)  # NAT-PMP and PCP; SSDP
_FAR_AWAY: Final = ("192.0.2.1", "2001:db8::1")  # addresses for which the default routes are used


@final
class SimulatedHost:
    """A `warpgate_trio.host.Host` for a host of a `warpgate_trio.sim.Network`.

    Everything about it, its entropy too, depends on the network's seed and the host's name alone.  Keys that are made
    from this entropy must not protect anything real.
    """

    __slots__ = ("machine",)

    def __init__(self, machine: sim.Host) -> None:
        self.machine: Final = machine

    def __repr__(self) -> str:
        return f"SimulatedHost({self.machine!r})"

    def interfaces(self) -> tuple[Interface, ...]:
        attached = (
            Interface(
                name=each.name,
                index=each.index,
                addresses=tuple(_address(each, address, prefix.bits) for address, prefix in each.addresses),
                is_loopback=False,
                is_virtual=False,
            )
            for each in self.machine.interfaces
            if each.is_up
        )
        return (_LOOPBACK, *attached)

    async def wait_change(self) -> None:
        await self.machine.wait_change()

    def source_address(self, dest: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address | None:
        if dest.is_unspecified:  # as `RealHost`
            return None
        source = self.machine.source_for(str(dest))
        return None if source is None else ip_address(source)

    def gateways(self) -> tuple[Gateway, ...]:
        """The routers on which a program serves a port-mapping protocol; others cannot map ports."""
        routes = {(route.interface.index, route.gateway) for there in _FAR_AWAY if (route := self.machine.route(there))}
        routers = {each.index: each.segment.router for each in self.machine.interfaces}
        serving = {
            index
            for index, router in routers.items()
            if router is not None and any(map(router.stack.udp_ports.is_used, _PORT_MAPPING))
        }
        found = sorted((index, ip) for index, ip in routes if index in serving and ip is not None)
        return tuple(Gateway(index, ip_address(ip)) for index, ip in found)

    def name(self) -> str:
        return self.machine.name.lower()

    def environment(self) -> Mapping[str, str]:
        return {}  # a simulated host has none; the real machine's must not be visible

    def wall_time(self) -> float:
        return self.machine.wall_time()

    def asleep(self) -> float:
        return self.machine.asleep()

    def entropy(self, n: int) -> bytes:
        return self.machine.entropy(n)

    @property
    def random(self) -> Random:
        return self.machine.random

    def spare_descriptors(self) -> int:
        return self.machine.spare_descriptors

    def machine_fingerprint(self) -> bytes:
        # A host's name is unique in its network, and hosts of two networks never meet.
        return hashlib.sha256(f"simulated host\0{self.machine.name}".encode()).digest()


def _address(interface: sim.Interface, text: str, prefix: int) -> InterfaceAddress:
    """An interface's address.  In a cloud its prefix is the full length: hosts are routers apart, and share no LAN."""
    ip = ip_address(text)
    return InterfaceAddress(
        ip=ip,
        prefix=ip.max_prefixlen if interface.segment.cloud else prefix,
        is_deprecated=text in interface.deprecated,
        is_temporary=text in interface.temporary,
    )


def _here() -> Host:
    try:
        return SimulatedHost(sim.current_host())
    except RuntimeError:
        raise RuntimeError(
            "a Host was asked for outside any simulated host: inside simulated_hosts(), open nodes and servers "
            "with host.run(fn), or below `with host:`"
        ) from None


@asynccontextmanager
async def simulated_hosts() -> AsyncGenerator[None]:
    """Let `warpgate_trio.host.current` return the simulated host on which the calling code runs::

        async with Network(seed=7) as net, simulated_hosts():
            with net.host("alice"):
                async with open_node(...) as node:
                    ...

    The previous provider is restored at the end.  In between, code on no simulated host gets a RuntimeError, so that
    the real machine's clock and addresses never leak into a simulated world.
    """
    await trio.lowlevel.checkpoint()
    previous = set_provider(_here)
    try:
        yield
    finally:
        set_provider(previous)
