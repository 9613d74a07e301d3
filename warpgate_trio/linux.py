"""Network information that only Linux provides: default routes, the states of IPv6 addresses, and notifications of
changes (rtnetlink(7)).
"""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

import trio

__all__ = [
    "EXHAUSTED",
    "POLL_INTERVAL",
    "AddressStates",
    "Route",
    "default_routes",
    "ipv6_states",
    "parse_if_inet6",
    "parse_ipv6_route",
    "parse_route",
    "wait_difference",
]

POLL_INTERVAL: Final = 5.0
"""Seconds between two checks of the interfaces, where the system does not notify of changes: a move to another network
is noticed before a PING fails."""

EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of a process or host without free descriptors or memory: they say nothing about the network."""
_RTF_GATEWAY: Final = 0x0002
Route: TypeAlias = tuple[str, IPv4Address | IPv6Address]
"""The name of an interface, and the address of the next hop."""
AddressStates: TypeAlias = Mapping[tuple[str, IPv4Address | IPv6Address], int]
"""The kernel's flags of addresses, by interface and address."""


def default_routes() -> list[Route]:
    """The default routes through a router, in the network namespace of this thread.

    Raises:
      OSError: the host is out of descriptors or memory (`EXHAUSTED`).
    """
    return [*parse_route(_read("route")), *parse_ipv6_route(_read("ipv6_route"))]


def ipv6_states() -> AddressStates:
    """The flags of the IPv6 addresses in that namespace; empty without IPv6, or where the system does not tell.

    Errors as in `default_routes`.
    """
    return parse_if_inet6(_read("if_inet6"))


def _read(name: str) -> str:
    try:  # by the thread: setns(2) and unshare(2) change the namespace of one thread
        with open(f"/proc/thread-self/net/{name}", encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError as error:  # no such family, or no /proc
        if error.errno in EXHAUSTED:
            raise
        return ""


def parse_if_inet6(text: str) -> AddressStates:
    """Parse ``if_inet6``: lines of address, index, prefix length, scope and flags, all hexadecimal, and interface."""
    rows = (line.split() for line in text.splitlines())
    return {(row[5], IPv6Address(int(row[0], 16))): int(row[4], 16) for row in rows if len(row) == 6}


def parse_route(text: str) -> list[Route]:
    """Parse ``route`` for default routes.  A line has interface, destination, gateway, flags, three numbers and mask;
    addresses are hexadecimal in the host's byte order.
    """
    rows = [row for row in map(str.split, text.splitlines()[1:]) if len(row) >= 8]
    return [
        (row[0], IPv4Address(int(row[2], 16).to_bytes(4, sys.byteorder)))
        for row in rows
        if not int(row[1], 16) and not int(row[7], 16) and int(row[3], 16) & _RTF_GATEWAY
    ]


def parse_ipv6_route(text: str) -> list[Route]:
    """Parse ``ipv6_route`` for default routes.  A line has destination and length, source and length, next hop, three
    numbers, flags and interface.
    """
    rows = [row for row in map(str.split, text.splitlines()) if len(row) == 10]
    return [
        (row[9], IPv6Address(int(row[4], 16)))
        for row in rows
        if not int(row[0], 16) and not int(row[1], 16) and int(row[4], 16) and int(row[8], 16) & _RTF_GATEWAY
    ]


_GROUPS: Final = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_MESSAGES: Final = 64  # that are read together; further ones count as another change
_MESSAGE: Final = 65536


async def wait_difference(look: Callable[[], object]) -> None:
    """Wait until `look`, which lists this host's interfaces, returns something else than now.

    It is called when the system notifies of a possible change, and every `POLL_INTERVAL` where the system never does.
    """
    before = look()
    try:
        with await _open_news() as news:
            while look() == before:
                if await _wait_news(news):
                    return
    except OSError:
        while look() == before:  # noqa: ASYNC110 - nothing tells
            await trio.sleep(POLL_INTERVAL)


async def _open_news() -> trio.socket.SocketType:
    """A socket that becomes readable when an interface or an address of this network namespace changes.

    Raises:
      OSError: the system has no netlink, or denies it: a sandbox, systemd's RestrictAddressFamilies, Android.
    """
    if sys.platform != "linux":
        raise OSError(errno.EAFNOSUPPORT, "only Linux has netlink")
    news = trio.socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    try:
        await news.bind((0, _GROUPS))
    except BaseException:
        news.close()
        raise
    return news


async def _wait_news(news: trio.socket.SocketType) -> bool:
    """Wait on a socket of `_open_news` until something may have changed; True where notifications were lost.

    The messages are not decoded: most repeat what is known (each router advertisement does), and the list of
    interfaces has more information.
    """
    try:
        await news.recv(_MESSAGE)
        for _ in range(_MESSAGES):
            if not news.is_readable():
                break
            await news.recv(_MESSAGE)
    except OSError as error:
        if error.errno == errno.ENOBUFS:  # more than the socket holds
            return True
        raise
    return False
