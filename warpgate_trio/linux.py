"""What Linux alone tells of its network: default routes, which IPv6 addresses are good, and when that has changed
(rtnetlink(7)).
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
"""Seconds between two looks at the interfaces, where the system does not tell when they change: what moves to another
network is noticed before a ping would miss it."""

EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of a process or a machine that has no descriptor or no memory left: they say nothing of what was asked for."""
_RTF_GATEWAY: Final = 0x0002
Route: TypeAlias = tuple[str, IPv4Address | IPv6Address]
"""The name of an interface, and whom packets are handed to there."""
AddressStates: TypeAlias = Mapping[tuple[str, IPv4Address | IPv6Address], int]
"""The kernel's flags of addresses, by interface and address."""


def default_routes() -> list[Route]:
    """The default routes that lead through a router, of the network namespace that this thread is in.

    Raises OSError where the machine is exhausted.
    """
    return [*parse_route(_read("route")), *parse_ipv6_route(_read("ipv6_route"))]


def ipv6_states() -> AddressStates:
    """The flags of the IPv6 addresses there; nothing without IPv6, or where the system does not tell.

    Raises as `default_routes`.
    """
    return parse_if_inet6(_read("if_inet6"))


def _read(name: str) -> str:
    try:  # of this thread: setns(2) and unshare(2) change one thread
        with open(f"/proc/thread-self/net/{name}", encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError as error:  # no such family, or no /proc
        if error.errno in EXHAUSTED:
            raise
        return ""


def parse_if_inet6(text: str) -> AddressStates:
    """Its lines: address, index, length of the prefix, scope, flags, all in hexadecimal, and the interface's name."""
    rows = (line.split() for line in text.splitlines())
    return {(row[5], IPv6Address(int(row[0], 16))): int(row[4], 16) for row in rows if len(row) == 6}


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


_GROUPS: Final = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_MESSAGES: Final = 64  # that are taken together: more are another piece of news
_MESSAGE: Final = 65536


async def wait_difference(look: Callable[[], object]) -> None:
    """Wait until `look`, which lists this machine's interfaces, returns something else than now.

    It is asked when the system says that something may have changed, and where it says nothing every `POLL_INTERVAL`.
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

    OSError where the system has no netlink, or denies it: a sandbox, systemd's RestrictAddressFamilies, Android.
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
    """Wait until something may have changed, on a socket of `_open_news`; whether more of it was missed.

    What the messages say is not read: most repeat what is known (each router advertisement does), and the list of
    interfaces tells more than they do.
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
