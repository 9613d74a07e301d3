"""A machine of the lab as a host of the package, for nodes that run in this process."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address

import trio

from tests.kernel.namespaces import Namespace, SocketsOfNamespaces
from warpgate_trio import host as machine
from warpgate_trio.host import Gateway, Interface, RealHost
from warpgate_trio.linux import wait_difference


class HostInNamespace:
    """The host (`warpgate_trio.host`) of nodes that run in a `Namespace`."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._real = RealHost()
        self.random = random.Random(0)

    def interfaces(self) -> tuple[Interface, ...]:
        with self._namespace.inside():
            return RealHost().interfaces()  # a new RealHost has no cached list

    async def wait_change(self) -> None:
        await wait_difference(self.interfaces)

    def source_address(self, dest: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address | None:
        with self._namespace.inside():
            return self._real.source_address(dest)

    def gateways(self) -> tuple[Gateway, ...]:
        with self._namespace.inside():
            return self._real.gateways()

    def name(self) -> str:
        return self._real.name()

    def environment(self) -> Mapping[str, str]:
        return {}

    def wall_time(self) -> float:
        return self._real.wall_time()

    def asleep(self) -> float:
        return self._real.asleep()

    def entropy(self, n: int) -> bytes:
        return self._real.entropy(n)

    def spare_descriptors(self) -> int:
        return self._real.spare_descriptors()

    def machine_fingerprint(self) -> bytes:
        return b"this machine" + bytes(20)


@asynccontextmanager
async def inside(namespace: Namespace) -> AsyncGenerator[None]:
    previous = trio.socket.set_custom_socket_factory(SocketsOfNamespaces())
    host = HostInNamespace(namespace)
    provider = machine.set_provider(lambda: host)
    try:
        with namespace:
            yield
    finally:
        trio.socket.set_custom_socket_factory(previous)
        machine.set_provider(provider)
