"""A `Host` with only the interfaces that its user has chosen: ``[interfaces] include`` and ``exclude``.

Excluded interfaces are marked, not hidden: their addresses still belong to this host, and a peer must not make a node
dial itself by naming one.  An excluded interface is neither published nor measured, and no socket is bound to it.
Packets that the routes would send through it get a source address of another interface.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, final

from ..address.interfaces import lasting_addresses

if TYPE_CHECKING:
    from random import Random

    from ..host import Gateway, Host, Interface
    from .config import InterfacesConfig

__all__ = ["choose_interfaces"]


def choose_interfaces(host: Host, config: InterfacesConfig) -> Host:
    """`host` with the interfaces of this configuration; `host` itself where all are used."""
    return _ChosenInterfaces(host, config) if config.include or config.exclude else host


@final
class _ChosenInterfaces:
    def __init__(self, host: Host, config: InterfacesConfig) -> None:
        self._host = host
        self._include = config.include
        self._exclude = config.exclude

    def interfaces(self) -> tuple[Interface, ...]:
        return tuple(each if each.is_loopback else self._judged(each) for each in self._host.interfaces())

    def _judged(self, interface: Interface) -> Interface:
        named = _fits(interface.name, self._include)
        return dataclasses.replace(
            interface,
            is_virtual=interface.is_virtual and not named,  # a virtual interface is used if the user names it
            is_excluded=(bool(self._include) and not named) or _fits(interface.name, self._exclude),
        )

    async def wait_change(self) -> None:
        await self._host.wait_change()

    def source_address(self, dest: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address | None:
        source = self._host.source_address(dest)
        if source is None or source == dest:  # an own address, which leads here whatever its interface
            return source
        interfaces = self.interfaces()
        if not any(each.is_excluded and source in {own.ip for own in each.addresses} for each in interfaces):
            return source
        others = [own.ip for each in interfaces if each.is_used for own in lasting_addresses(each, dest.version)]
        return others[0] if others else None

    def gateways(self) -> tuple[Gateway, ...]:
        return self._host.gateways()

    def name(self) -> str:
        return self._host.name()

    def environment(self) -> Mapping[str, str]:
        return self._host.environment()

    def wall_time(self) -> float:
        return self._host.wall_time()

    def asleep(self) -> float:
        return self._host.asleep()

    def entropy(self, n: int) -> bytes:
        return self._host.entropy(n)

    @property
    def random(self) -> Random:
        return self._host.random

    def spare_descriptors(self) -> int:
        return self._host.spare_descriptors()

    def machine_fingerprint(self) -> bytes:
        return self._host.machine_fingerprint()


def _fits(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), glob.lower()) for glob in globs)
