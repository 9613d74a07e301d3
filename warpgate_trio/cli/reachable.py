"""The URLs by which a server of `serve` is reached, and the configuration for its peers."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from ..sockaddr import bracketed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..config import ServerUrl, TurnServer
    from ..host import Interface
    from ..sockaddr import IpAddress

__all__ = ["configuration", "leads_here", "reachable_urls", "turn_urls", "with_login"]

MAX_URLS: Final = 4
"""URLs offered for one server.  A node keeps a connection to each URL in its configuration."""


def reachable_urls(
    urls: Iterable[str], interfaces: Sequence[Interface], external_ips: Iterable[IpAddress] = ()
) -> list[str]:
    """The URLs of a server, the best first: public before private, IPv4 before IPv6, loopback only as the last resort.

    For a server that listens on all addresses, they have this machine's addresses.  External addresses, those of a NAT
    in front of the machine, replace the addresses of their family.
    """
    external = {ip.version: ip for ip in external_ips}
    found: dict[str, tuple[bool, bool, int]] = {}
    for url in urls:
        prefix, name, port = _parts(url)
        try:
            listening = ip_address(name)
        except ValueError:
            found.setdefault(url, (False, False, 0))
            continue
        if listening.version in external:
            addresses = [external[listening.version]]
        else:
            addresses = _own_addresses(listening, interfaces) if listening.is_unspecified else [listening]
        for ip in addresses:
            text = f"{prefix}{bracketed(str(ip))}:{port}"
            found.setdefault(text, _rank(ip))
    ordered = sorted(found, key=lambda url: found[url])
    useful = [url for url in ordered if not found[url][0]]
    return (useful or ordered)[:MAX_URLS]


def _parts(url: str) -> tuple[str, str, str]:
    """Split a URL into the part before the host (``ws://``, ``stun:``), the host without brackets, and the port."""
    prefix, host, port = re.fullmatch(r"([a-z]+:(?://)?)(.*):(\d+)", url).groups()  # type: ignore[union-attr]
    return prefix, host.strip("[]"), port


def _rank(ip: IpAddress) -> tuple[bool, bool, int]:
    from ..address import is_public

    return ip.is_loopback, not is_public(ip), ip.version


def _own_addresses(wildcard: IpAddress, interfaces: Sequence[Interface]) -> list[IpAddress]:
    from ..address.interfaces import lasting_addresses

    ours = [each for used in interfaces if used.is_used for each in lasting_addresses(used, wildcard.version)]
    loopback = [each for interface in interfaces if interface.is_loopback for each in interface.addresses]
    return [each.ip for each in (*ours, *loopback) if each.ip.version == wildcard.version]


def turn_urls(urls: Iterable[str], interfaces: Sequence[Interface], external_ips: Iterable[IpAddress]) -> list[str]:
    """The URLs of a TURN server at its best address of each family: over UDP, then TCP, then TLS.

    A node tries at most eight servers, one after the other, before it gives up on a relay.
    """
    external, offered = tuple(external_ips), list(urls)
    plain, encrypted = (
        _best_of_each_family(reachable_urls([url for url in offered if url.startswith(scheme)], interfaces, external))
        for scheme in ("turn:", "turns:")
    )
    return [*plain, *(f"{url}?transport=tcp" for url in plain), *encrypted]


def _best_of_each_family(urls: Iterable[str]) -> list[str]:
    best: dict[int, str] = {}
    for url in urls:
        best.setdefault(6 if ":" in _parts(url)[1] else 4, url)
    return list(best.values())


def with_login(server: TurnServer) -> ServerUrl:
    """The URL of a TURN server with the login in it."""
    import msgspec

    return msgspec.structs.replace(server.url, username=server.username, password=server.password)


def configuration(
    servers: Mapping[str, Sequence[str]], turn: Sequence[TurnServer] = (), relay_token: str | None = None
) -> str:
    """The configuration to paste, as TOML: the URLs by key of ``[servers]``, those of the TURN server with its login,
    and the token, which one of the two peers needs.
    """
    import tomli_w

    lines = ["# for config.toml on both peers' machines (`warpgate-trio config --show` says where it is)"]
    if not leads_here(servers):
        lines.append("# this machine has no public address: only peers in its own network reach this")
    table: dict[str, Any] = {key: list(urls) for key, urls in servers.items()}
    if turn:
        table["turn"] = [{"url": str(each.url), "username": each.username, "password": each.password} for each in turn]
    if relay_token is not None:
        table["relay_token"] = relay_token
    return "\n".join([*lines, tomli_w.dumps({"servers": table})])


def leads_here(servers: Mapping[str, Sequence[str]]) -> bool:
    """Whether peers elsewhere can dial any of these URLs: a public address, or a DNS name."""
    from ..address import is_public
    from ..config import ServerUrl

    for name in (ServerUrl.parse(url).host for urls in servers.values() for url in urls):
        try:
            if is_public(ip_address(name)):
                return True
        except ValueError:  # a DNS name
            return True
    return False
