"""Names in a simulated network, behind trio.socket.set_custom_hostname_resolver.

Numeric addresses never get here: Trio answers them itself.  A host asks with its own addresses in mind: IPv6 answers
come first where it has IPv6 of its own (RFC 6724 in short); of one family they come in the order in which the name was
given them.  Lookups of a name can be slow, hang, or fail: `Network.spoil_name`.
"""

from __future__ import annotations

import math
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

import trio
from trio.abc import HostnameResolver

from .addr import ANY4, ANY6, LOOPBACK4, LOOPBACK6, canonical, is_v6, map_to_v6
from .host import current_host

if TYPE_CHECKING:
    from .network import Network

_ERRORS: Final = {  # glibc's words
    socket.EAI_AGAIN: "Temporary failure in name resolution",
    socket.EAI_FAIL: "Non-recoverable failure in name resolution",
    socket.EAI_NONAME: "Name or service not known",
}
_SERVICES: Final = {"http": 80, "https": 443, "domain": 53, "ntp": 123, "stun": 3478, "mqtt": 1883}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NameTrouble:
    """What is wrong with a name: its lookups take `delay` seconds more, and then fail with `error`, an EAI number."""

    delay: float = 0.0
    error: int | None = None


@final
class Resolver(HostnameResolver):
    """Answers from the names of one network."""

    def __init__(self, net: Network) -> None:
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
        name = None if host is None else host.decode("ascii").lower()
        await self._take_time(name)
        number = self._service(port)
        answers: list[Any] = []
        for address in self._addresses(name, passive=bool(flags & socket.AI_PASSIVE)):
            v6 = is_v6(address)
            if family == socket.AF_INET and v6:
                continue
            if family == socket.AF_INET6 and not v6:
                if not flags & socket.AI_V4MAPPED:
                    continue
                address, v6 = map_to_v6(address), True
            for kind, protocol in _kinds(type, proto):
                if v6:
                    answers.append((socket.AF_INET6, kind, protocol, "", (address, number, 0, 0)))
                else:
                    answers.append((socket.AF_INET, kind, protocol, "", (address, number)))
        if not answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        has_v6 = any(is_v6(address) for address in here.addresses)
        answers.sort(key=lambda answer: (answer[0] == socket.AF_INET6) != has_v6)
        return answers

    async def _take_time(self, name: str | None) -> None:
        await trio.sleep(self._net.resolver_delay)
        trouble = self._net.name_troubles.get(name or "")
        if trouble is None:
            return
        if trouble.delay == math.inf:
            await trio.sleep_forever()
        await trio.sleep(trouble.delay)
        if trouble.error is not None:
            raise socket.gaierror(trouble.error, _ERRORS.get(trouble.error, "Name resolution failed"))

    def _addresses(self, name: str | None, *, passive: bool) -> list[str]:
        if name is None:
            return [ANY6, ANY4] if passive else [LOOPBACK6, LOOPBACK4]
        if name == "localhost":
            return [LOOPBACK6, LOOPBACK4]
        try:
            return [canonical(name)]
        except ValueError:
            return self._net.names.get(name, [])

    @staticmethod
    def _service(port: bytes | str | int | None) -> int:
        if port is None:
            return 0
        if isinstance(port, int):
            return port
        text = port.decode("ascii") if isinstance(port, bytes) else port
        if text.isdecimal():
            return int(text)
        if text not in _SERVICES:
            raise socket.gaierror(socket.EAI_SERVICE, "Servname not supported for ai_socktype")
        return _SERVICES[text]

    async def getnameinfo(self, sockaddr: tuple[str, int] | tuple[str, int, int, int], flags: int) -> tuple[str, str]:
        """The name of an address, or the address where it has none or NI_NUMERICHOST is set."""
        await trio.sleep(self._net.resolver_delay)
        address, port = canonical(sockaddr[0]), sockaddr[1]
        name = address
        if not flags & socket.NI_NUMERICHOST:
            name = next((n for n, addresses in self._net.names.items() if address in addresses), address)
        return name, str(port)


def _kinds(kind: int, proto: int) -> list[tuple[socket.SocketKind, int]]:
    both = [(socket.SOCK_STREAM, socket.IPPROTO_TCP), (socket.SOCK_DGRAM, socket.IPPROTO_UDP)]
    return [(k, p) for k, p in both if kind in (0, k) and proto in (0, p)]
