"""What Linux alone tells of its network: default routes."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

__all__ = ["Route", "default_routes", "parse_ipv6_route", "parse_route"]

_RTF_GATEWAY: Final = 0x0002
Route: TypeAlias = tuple[str, IPv4Address | IPv6Address]
"""The name of an interface, and whom packets are handed to there."""


def default_routes() -> list[Route]:
    """The default routes that lead through a router, of the network namespace that this thread is in."""
    folder = "/proc/thread-self/net"
    return [*parse_route(_read(f"{folder}/route")), *parse_ipv6_route(_read(f"{folder}/ipv6_route"))]


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:  # no such family, or no /proc
        return ""


def parse_route(text: str) -> list[Route]:
    """Default routes: interface, destination, gateway, flags, three numbers, mask; addresses as the machine's words."""
    rows = [row for row in map(str.split, text.splitlines()[1:]) if len(row) >= 8]
    return [
        (row[0], IPv4Address(int(row[2], 16).to_bytes(4, sys.byteorder)))
        for row in rows
        if not int(row[1], 16) and not int(row[7], 16) and int(row[3], 16) & _RTF_GATEWAY
    ]


def parse_ipv6_route(text: str) -> list[Route]:
    """Default routes: destination and length, source and length, next hop, three numbers, flags, interface."""
    rows = [row for row in map(str.split, text.splitlines()) if len(row) == 10]
    return [
        (row[9], IPv6Address(int(row[4], 16)))
        for row in rows
        if not int(row[0], 16) and not int(row[1], 16) and int(row[4], 16) and int(row[8], 16) & _RTF_GATEWAY
    ]
