"""Addresses and prefixes.

An address travels through the simulator as its canonical text (``"10.0.0.1"``, ``"2001:db8::1"``): text is what
programs hand in and get out, its hash is cached, and two equal addresses are one dictionary key.  `canonical` is the
only way in; whatever is behind it holds no other spelling.
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
    """The one spelling of an address; ValueError for what is no address.  An IPv6 scope id is dropped."""
    parsed = ip_address(address.partition("%")[0]) if isinstance(address, str) else address
    return str(parsed)


def is_v6(address: str) -> bool:
    """Whether a canonical address is of IPv6."""
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
    """How a dual-stack socket shows an IPv4 address (RFC 4291, section 2.5.5.2)."""
    return address if is_v6(address) else _MAPPED + address


@lru_cache(maxsize=1 << 12)
def unmap(address: str) -> str:
    """The IPv4 address inside an IPv4-mapped one; any other address as it is."""
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
        """The address at an offset; negative counts from the end, -1 being the broadcast address of IPv4."""
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
