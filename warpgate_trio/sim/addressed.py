"""How a socket parses and shows addresses, and how it chooses its source address."""

from __future__ import annotations

import errno
import socket as stdlib
from typing import Any, cast

import trio
from trio.socket import SocketType

from .addr import (
    ANY4,
    ANY6,
    LOOPBACK4,
    LOOPBACK6,
    Endpoint,
    canonical,
    is_loopback,
    is_multicast,
    is_v6,
    map_to_v6,
    unmap,
)
from .host import Host
from .options import IPV6, OptionSet
from .ports import Binding, os_error
from .resolver import look_up


class Addressed(SocketType):
    """The part of a simulated socket that handles addresses."""

    host: Host
    _kind: stdlib.SocketKind
    _family: stdlib.AddressFamily
    _proto: int
    _v6: bool
    _options: OptionSet
    _binding: Binding | None

    def _show(self, endpoint: Endpoint) -> Any:
        """An endpoint in the form of this socket's family."""
        address, port = endpoint
        return (map_to_v6(address), port, 0, 0) if self._v6 else (address, port)

    def _numeric(self, address: object) -> Endpoint | None:
        """The endpoint of a numeric address; None if it has to be resolved.  ValueError when it has the wrong shape."""
        size = len(cast("tuple[object, ...]", address)) if isinstance(address, tuple) else 0
        if self._v6:
            if not 2 <= size <= 4:
                raise ValueError("address should be a (host, port, [flowinfo, [scopeid]]) tuple")
        elif size != 2:
            raise ValueError("address should be a (host, port) tuple")
        host, port, *_ = cast("tuple[object, ...]", address)
        if isinstance(port, int) and isinstance(host, str):
            try:
                found = canonical(host)
            except ValueError:
                return None
            if is_v6(found) == self._v6:
                if not 0 <= port <= 65535:
                    raise OverflowError("port must be 0-65535.")
                return unmap(found), port
        return None

    async def _resolve(self, address: object, *, local: bool) -> Endpoint:
        """Resolve an address as Trio's sockets do.  Not always a checkpoint."""
        found = self._numeric(address)
        if found is not None:
            return found
        host, port, *_ = cast("tuple[Any, ...]", address)
        host = {"": None, "<broadcast>": "255.255.255.255"}.get(host, host)
        flags = stdlib.AI_PASSIVE if local else 0
        if self._v6 and not self._options.get(IPV6, stdlib.IPV6_V6ONLY):
            flags |= stdlib.AI_V4MAPPED
        with self.host:
            answers = await trio.socket.getaddrinfo(host, port, self._family, self._kind, self._proto, flags)
        name, number = answers[0][4][:2]
        assert isinstance(number, int)
        return unmap(canonical(str(name))), number

    def resolve_now(self, address: object, *, local: bool) -> Endpoint:
        """`_resolve` for calls that cannot wait: without the time that a lookup takes."""
        found = self._numeric(address)
        if found is not None:
            return found
        host, port, *_ = cast("tuple[Any, ...]", address)
        flags = stdlib.AI_PASSIVE if local else 0
        if self._dual():
            flags |= stdlib.AI_V4MAPPED
        names = self.host.net.names
        answers = look_up(names, self.host, host or None, port, self._family, self._kind, self._proto, flags)
        return unmap(canonical(answers[0][4][0])), answers[0][4][1]

    def _dual(self) -> bool:
        return self._v6 and not self._options.get(IPV6, stdlib.IPV6_V6ONLY)

    def _check_family(self, address: str) -> None:
        """Raise OSError(ENETUNREACH) for an IPv4 destination of an IPv6-only socket."""
        if self._v6 and not is_v6(address) and not self._dual():
            raise os_error(errno.ENETUNREACH)

    def _destination(self, endpoint: Endpoint) -> Endpoint:
        """Replace the unspecified address by loopback, as Linux does."""
        if endpoint[0] == ANY4:
            return LOOPBACK4, endpoint[1]
        if endpoint[0] == ANY6:
            return LOOPBACK6, endpoint[1]
        return endpoint

    def _source(self, dst: str) -> str:
        """The address from which this socket sends to `dst`."""
        binding = self._binding
        if binding is not None and not binding.wildcard and not is_multicast(binding.address):
            if is_v6(binding.address) != is_v6(dst):
                raise os_error(errno.ENETUNREACH if is_v6(dst) else errno.EINVAL)
            if is_loopback(binding.address) and dst not in self.host.own and not is_loopback(dst):
                raise os_error(errno.EINVAL)
            return binding.address
        found = self.host.source_for(dst)
        if found is None:
            raise os_error(errno.ENETUNREACH)
        return found

    def _new_binding(self, address: str, port: int) -> Binding:
        return Binding(
            address,
            port,
            v6only=self._v6 and not self._dual(),
            reuse_address=self._options.reuse_address,
            reuse_port=self._options.reuse_port,
        )
