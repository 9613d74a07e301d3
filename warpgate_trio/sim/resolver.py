"""The DNS resolver of a simulated network, behind trio.socket.set_custom_hostname_resolver.

Trio handles numeric addresses itself, without the resolver.  IPv6 addresses come first if the asking host has IPv6 (a
simple form of RFC 6724); the addresses of a family come in the order in which they were added to the name.  Lookups of
a name can be slow, hang, or fail: `Network.spoil_name`.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Mapping
from typing import Any, Final, final

import trio
from trio.abc import HostnameResolver

from .addr import ANY4, ANY6, LOOPBACK4, LOOPBACK6, canonical, is_v6, map_to_v6
from .host import Host, current_host
from .names import canonical_name
from .network_base import NetworkBase

_V4MAPPED: Final = getattr(socket, "AI_V4MAPPED", 8)
_ALL: Final = getattr(socket, "AI_ALL", 0x10)
_NUMERICSERV: Final = getattr(socket, "AI_NUMERICSERV", 0x400)
_FLAGS: Final = int(  # the complement of an enum member lacks the bits that have no name
    socket.AI_PASSIVE
    | socket.AI_CANONNAME
    | socket.AI_NUMERICHOST
    | socket.AI_ADDRCONFIG
    | _V4MAPPED
    | _ALL
    | _NUMERICSERV
)
_ERRORS: Final = {  # glibc's words
    socket.EAI_BADFLAGS: "Bad value for ai_flags",
    socket.EAI_FAMILY: "ai_family not supported",
    socket.EAI_SERVICE: "Servname not supported for ai_socktype",
    socket.EAI_SOCKTYPE: "ai_socktype not supported",
    socket.EAI_AGAIN: "Temporary failure in name resolution",
    socket.EAI_FAIL: "Non-recoverable failure in name resolution",
    socket.EAI_NONAME: "Name or service not known",
}
_SERVICES: Final = {"http": 80, "https": 443, "domain": 53, "ntp": 123, "stun": 3478, "mqtt": 1883}


@final
class Resolver(HostnameResolver):
    """Answers from the names of one network."""

    def __init__(self, net: NetworkBase[Host]) -> None:
        self._net = net

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,  # noqa: A002 (Trio's name)
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """As `socket.getaddrinfo`; socket.gaierror(EAI_NONAME) for a name that the network does not have."""
        here = current_host()
        await trio.lowlevel.checkpoint()
        if host is not None and not flags & socket.AI_NUMERICHOST:
            await self._take_time(canonical_name(host))
        await here.clock.wait()
        return look_up(self._net.names, here, host, port, family, type, proto, flags)

    async def _take_time(self, name: str) -> None:
        await trio.sleep(self._net.resolver_delay)
        trouble = self._net.name_troubles.get(name)
        if trouble is None:
            return
        if trouble.delay == math.inf:
            await trio.sleep_forever()
        await trio.sleep(trouble.delay)
        if trouble.error is not None:
            raise _error(trouble.error)

    async def getnameinfo(self, sockaddr: tuple[str, int] | tuple[str, int, int, int], flags: int) -> tuple[str, str]:
        """As `socket.getnameinfo`; socket.gaierror(EAI_NONAME) with NI_NAMEREQD for an address without a name."""
        await trio.lowlevel.checkpoint()
        if not isinstance(sockaddr, tuple):
            raise TypeError("getnameinfo() argument 1 must be a tuple")
        try:
            address = canonical(sockaddr[0])
        except ValueError:
            raise _error(socket.EAI_NONAME) from None
        if len(sockaddr) != 2 and not is_v6(address):
            raise OSError("IPv4 sockaddr must be 2 tuple")
        name = None
        if not flags & socket.NI_NUMERICHOST:
            await trio.sleep(self._net.resolver_delay)
            names = {"localhost": [LOOPBACK4, LOOPBACK6], **self._net.names}
            name = next((each for each, found in names.items() if address in found), None)
        if name is None and flags & socket.NI_NAMEREQD:
            raise _error(socket.EAI_NONAME)
        port = sockaddr[1] & 0xFFFF
        service = next((each for each, number in _SERVICES.items() if number == port), str(port))
        return name or address, str(port) if flags & socket.NI_NUMERICSERV else service


def look_up(
    names: Mapping[str, list[str]],
    here: Host,
    host: bytes | str | None,
    port: bytes | str | int | None,
    family: int = 0,
    type: int = 0,  # noqa: A002 (Trio's name)
    proto: int = 0,
    flags: int = 0,
) -> list[Any]:
    """Look a name up for the host `here`, at once: `getaddrinfo` without delays and without spoiled names."""
    if flags & ~_FLAGS or (flags & socket.AI_CANONNAME and host is None):
        raise _error(socket.EAI_BADFLAGS)
    if family not in (0, socket.AF_INET, socket.AF_INET6):
        raise _error(socket.EAI_FAMILY)
    if host is None and port is None:
        raise _error(socket.EAI_NONAME)
    name = None if host is None else canonical_name(host)
    kinds = _kinds(type, proto)
    number = _service(port, numeric=bool(flags & _NUMERICSERV))
    found = _addresses(names, name, flags)
    if flags & socket.AI_ADDRCONFIG:
        families = {is_v6(address) for address in here.addresses}
        found = [address for address in found if is_v6(address) in families]
    answers: list[Any] = []
    for address in _of_family(found, family, flags):
        title = name if flags & socket.AI_CANONNAME and not answers else ""
        for kind, protocol in kinds:
            if is_v6(address):
                answers.append((socket.AF_INET6, kind, protocol, title, (address, number, 0, 0)))
            else:
                answers.append((socket.AF_INET, kind, protocol, title, (address, number)))
    if not answers:
        raise _error(socket.EAI_NONAME)
    if name is not None:
        has_v6 = any(is_v6(address) for address in here.addresses)
        answers.sort(key=lambda answer: (answer[0] == socket.AF_INET6) != has_v6)
    return answers


def _addresses(names: Mapping[str, list[str]], name: str | None, flags: int) -> list[str]:
    if name is None:
        return [ANY4, ANY6] if flags & socket.AI_PASSIVE else [LOOPBACK6, LOOPBACK4]
    try:
        return [canonical(name)]
    except ValueError:
        if flags & socket.AI_NUMERICHOST:
            return []
    return [LOOPBACK6, LOOPBACK4] if name == "localhost" else names.get(name, [])


def _error(code: int) -> socket.gaierror:
    return socket.gaierror(code, _ERRORS.get(code, "Name resolution failed"))


def _of_family(addresses: list[str], family: int, flags: int) -> list[str]:
    """The addresses of a family.  For IPv6 with AI_V4MAPPED, IPv4 ones too, if there is no IPv6 one or with AI_ALL."""
    if family == 0:
        return addresses
    wanted = [address for address in addresses if is_v6(address) == (family == socket.AF_INET6)]
    if family == socket.AF_INET6 and flags & _V4MAPPED and (not wanted or flags & _ALL):
        wanted += [map_to_v6(address) for address in addresses if not is_v6(address)]
    return wanted


def _service(port: bytes | str | int | None, *, numeric: bool) -> int:
    if port is None:
        return 0
    text = port.decode("ascii") if isinstance(port, bytes) else str(port)
    if text.isdecimal() and int(text) < 1 << 32:
        return int(text) & 0xFFFF  # as glibc does with ports above 65535
    if numeric:
        raise _error(socket.EAI_NONAME)
    if text not in _SERVICES:
        raise _error(socket.EAI_SERVICE)
    return _SERVICES[text]


def _kinds(kind: int, proto: int) -> list[tuple[socket.SocketKind, int]]:
    both = [(socket.SOCK_STREAM, socket.IPPROTO_TCP), (socket.SOCK_DGRAM, socket.IPPROTO_UDP)]
    found = [(k, p) for k, p in both if kind in (0, k) and proto in (0, p)]
    if not found:
        raise _error(socket.EAI_SOCKTYPE)
    return found
