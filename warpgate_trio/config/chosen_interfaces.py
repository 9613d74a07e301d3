"""A `Host` whose user has said which interfaces a node may use: ``[interfaces] include`` and ``exclude``.

What is left out is marked, not hidden: an address on it is this machine's all the same, and a peer that has it dialled
must not get through to us by it.  So it is neither published nor measured, no socket is bound to it, and packets for
which the routes would take it are sent from an address of another interface.
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
    """`host`, as a node with this configuration sees it."""
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
            is_virtual=interface.is_virtual and not named,  # who names one knows where it leads
            is_excluded=(bool(self._include) and not named) or _fits(interface.name, self._exclude),
        )

    async def wait_change(self) -> None:
        await self._host.wait_change()

    def source_address(self, dest: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address | None:
        source = self._host.source_address(dest)
        if source is None or source == dest:  # our own address; it leads to us by whatever interface
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
