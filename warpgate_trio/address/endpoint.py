"""`Endpoint`: one transport address of a peer, as its address record and its signals carry it.

Decoding checks only the types of an `Endpoint`, not the ranges of its values.  So every decoded one has to pass
`check_endpoint`, as those of `Endpoint.make` do.
"""

from __future__ import annotations

import functools
import ipaddress
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Literal, final

import msgspec

from ..errors import AddressMalformed
from ..sockaddr import show_address

__all__ = ["AddressInterface", "Endpoint", "EndpointKind", "Transport"]  # the rest: address.py, interfaces.py

MAX_INTERFACES: Final = 16
"""Interfaces of one record."""
LATEST: Final = 253_402_300_799  # the end of year 9999, the last second that a datetime can hold
_V4_MAPPED: Final = bytes(10) + b"\xff\xff"  # RFC 4291 2.5.5.2; the system sends packets for it to the IPv4 address


class Transport(IntEnum):
    """The transport protocol of an endpoint."""

    TCP = 1
    UDP = 2


class EndpointKind(IntEnum):
    """How an endpoint is known, and from where it can be reached."""

    NIC = 1
    """An address of an interface of the peer."""
    EXT = 2
    """A public address: an interface's own, or one that a server saw (server-reflexive)."""
    MAPPED = 3
    """An address and port that a router has mapped through a port mapping protocol."""


@final
class Endpoint(msgspec.Struct, frozen=True, array_like=True):
    """One transport address of a peer.  `Endpoint.make` takes an `ip` instead of bytes, and checks all values.

    Attributes:
      transport: TCP or UDP.
      kind: NIC, EXT or MAPPED.
      address: 4 or 16 bytes, as on the wire; `ip` and `af` read it.
      prefix: the length of its network's prefix in bits, where known; shows whether two peers share a network.
      port: 1 to 65535.
      base: for EXT and MAPPED, the NIC endpoint from which it was derived (RFC 8445's "base"), as an index into the
        endpoints of the same interface.
      observed_at: for EXT and MAPPED, when it was last confirmed, in Unix seconds.
    """

    transport: Transport
    kind: EndpointKind
    address: bytes
    prefix: int | None
    port: int
    base: int | None
    observed_at: int | None

    @classmethod
    def make(
        cls,
        *,
        transport: Transport,
        kind: EndpointKind,
        ip: IPv4Address | IPv6Address | str,
        port: int,
        prefix: int | None = None,
        base: int | None = None,
        observed_at: int | None = None,
    ) -> Endpoint:
        """An endpoint from readable values.

        Raises:
          AddressMalformed: a value is out of range.
          ValueError: `ip` is no IP address.
        """
        packed = ipaddress.ip_address(ip).packed
        return check_endpoint(cls(transport, kind, packed, prefix, port, base, observed_at))

    @property
    def ip(self) -> IPv4Address | IPv6Address:
        return _ip_of(self.address)

    @property
    def af(self) -> Literal[4, 6]:
        """The address family, 4 or 6."""
        return 4 if len(self.address) == 4 else 6

    def __str__(self) -> str:
        return f"{self.kind.name.lower()} {self.transport.name.lower()} {show_address((str(self.ip), self.port))}"


@final
class AddressInterface(msgspec.Struct, frozen=True, array_like=True):
    """The endpoints that belong to one interface of the peer; `index` is the peer's own number for it."""

    index: int
    endpoints: tuple[Endpoint, ...]


@functools.lru_cache(maxsize=1024)  # a plan asks for the same few addresses hundreds of times
def _ip_of(address: bytes) -> IPv4Address | IPv6Address:
    return IPv4Address(address) if len(address) == 4 else IPv6Address(address)


def check_endpoint(endpoint: Endpoint) -> Endpoint:
    """Return `endpoint`, if each of its values is in range.

    Raises:
      AddressMalformed: one is not.
    """
    bits = 8 * len(endpoint.address)
    if bits not in (32, 128):
        raise AddressMalformed(f"an endpoint's address has 4 or 16 bytes, not {len(endpoint.address)}")
    if bits == 128 and endpoint.address.startswith(_V4_MAPPED):
        raise AddressMalformed("an endpoint has an IPv4-mapped IPv6 address; it has to be written as IPv4")
    if not 1 <= endpoint.port <= 65535:
        raise AddressMalformed(f"an endpoint's port is 1 to 65535, not {endpoint.port}")
    if endpoint.prefix is not None and not 0 <= endpoint.prefix <= bits:
        raise AddressMalformed(f"a prefix of IPv{endpoint.af} is 0 to {bits} bits long, not {endpoint.prefix}")
    if endpoint.base is not None and (endpoint.base < 0 or endpoint.kind is EndpointKind.NIC):
        raise AddressMalformed("only an endpoint that is not an interface's own is derived from another (base)")
    if endpoint.observed_at is not None and not 0 <= endpoint.observed_at <= LATEST:
        raise AddressMalformed(f"an endpoint has an invalid observation time, {endpoint.observed_at}")
    return endpoint
