"""Addresses and prefixes.

The simulator represents an address by its canonical text (``"10.0.0.1"``, ``"2001:db8::1"``): programs pass in and
receive text, its hash is cached, and equal addresses are one dictionary key.  `canonical` converts every address that
comes from a program; behind it there is no other spelling.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, final

Endpoint = tuple[str, int]
"""An address and a port."""

ANY4: Final = "0.0.0.0"
ANY6: Final = "::"
LOOPBACK4: Final = "127.0.0.1"
LOOPBACK6: Final = "::1"
BROADCAST: Final = "255.255.255.255"
_MAPPED: Final = "::ffff:"


@lru_cache(maxsize=1 << 16)
def canonical(address: str | IPv4Address | IPv6Address) -> str:
    """The canonical text of an address, without an IPv6 scope id.  Raises ValueError if it is no address."""
    parsed = ip_address(address.partition("%")[0]) if isinstance(address, str) else address
    return str(parsed)


def is_v6(address: str) -> bool:
    """Whether a canonical address is an IPv6 address."""
    return ":" in address


@lru_cache(maxsize=1 << 16)
def number(address: str) -> int:
    """An address as an integer."""
    return int(ip_address(address))


@lru_cache(maxsize=1 << 16)
def is_loopback(address: str) -> bool:
    return ip_address(address).is_loopback


@lru_cache(maxsize=1 << 12)
def is_multicast(address: str) -> bool:
    return ip_address(address).is_multicast


def map_to_v6(address: str) -> str:
    """An IPv4 address as a dual-stack socket shows it (RFC 4291, section 2.5.5.2); an IPv6 address unchanged."""
    return address if is_v6(address) else _MAPPED + address


@lru_cache(maxsize=1 << 12)
def unmap(address: str) -> str:
    """The IPv4 address in an IPv4-mapped IPv6 address; any other address unchanged."""
    if not is_v6(address):
        return address
    inner = IPv6Address(address).ipv4_mapped
    return address if inner is None else str(inner)


@final
class Prefix:
    """A block of addresses, such as ``192.168.1.0/24``."""

    __slots__ = ("_first", "_shift", "bits", "v6")

    def __init__(self, text: str) -> None:
        network = ip_network(text)
        self.v6: bool = network.version == 6
        self.bits: int = network.prefixlen
        self._shift = network.max_prefixlen - network.prefixlen
        self._first = int(network.network_address)

    def __contains__(self, address: str) -> bool:
        return is_v6(address) == self.v6 and number(address) >> self._shift == self._first >> self._shift

    def __str__(self) -> str:
        return f"{self[0]}/{self.bits}"

    def __repr__(self) -> str:
        return f"Prefix({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prefix) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __getitem__(self, index: int) -> str:
        """The address at an offset.  A negative offset counts from the end: -1 is the broadcast address of IPv4."""
        size = 1 << self._shift
        if not -size <= index < size:
            raise IndexError(f"{self.bits}-bit prefix has no address number {index}")
        value = self._first + index % size
        return str(IPv6Address(value) if self.v6 else IPv4Address(value))

    def subnet(self, bits: int, index: int) -> Prefix:
        """The `index`-th block of `bits` inside this one."""
        if not self.bits <= bits or index >= 1 << (bits - self.bits):
            raise ValueError(f"{self} has no /{bits} number {index}")
        width = 128 if self.v6 else 32
        first = self._first + (index << (width - bits))
        return Prefix(f"{IPv6Address(first) if self.v6 else IPv4Address(first)}/{bits}")

    def hosts(self) -> Iterator[str]:
        """Its addresses, without the first and, for IPv4, the last one."""
        for index in range(1, (1 << self._shift) - (0 if self.v6 else 1)):
            yield self[index]
