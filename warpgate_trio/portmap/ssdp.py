"""SSDP: the search for UPnP gateways, and which of the URLs in the answers may be fetched.  No I/O.

Any host in the network can answer, and an answer names a URL to fetch.  So only HTTP URLs with an IP address are
accepted.  The address has to be the gateway's or in our own network, and must be neither our own nor a special one,
such as loopback.
"""

from __future__ import annotations

from ipaddress import IPv4Network, ip_address, ip_network
from typing import Final, final
from urllib.parse import urlsplit

import msgspec

from ..address.scope import AddressScope, scope_of
from ..errors import PortMapMalformed
from ..sockaddr import IpAddress, TransportAddress, show_address

__all__ = [
    "GROUP",
    "GROUP6",
    "PORT",
    "TARGETS",
    "TARGETS6",
    "Reply",
    "Url",
    "judge_location",
    "parse_reply",
    "parse_url",
    "search",
]

GROUP: Final = "239.255.255.250"
GROUP6: Final = "ff02::c"
PORT: Final = 1900
"""The port at which gateways receive searches (UPnP Device Architecture 1.1 §1.2)."""
TARGETS: Final = (
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
    "upnp:rootdevice",
)
"""Search targets: some gateways answer to only one of them."""
TARGETS6: Final = ("urn:schemas-upnp-org:device:InternetGatewayDevice:2", "upnp:rootdevice")
"""Search targets over IPv6: only gateways of the second version know pinholes."""
MAX_REPLY: Final = 2048
"""Bytes of an answer: a dozen headers in one datagram."""
MAX_URL: Final = 512
"""Characters of a URL."""


@final
class Url(msgspec.Struct, frozen=True):
    """An HTTP URL of a gateway.

    Attributes:
      target: path and query.
      scope: for a link-local IPv6 address, our interface, as ``%2``; never taken from a gateway's text.
    """

    ip: IpAddress
    port: int
    target: str
    scope: str = ""

    @property
    def address(self) -> TransportAddress:
        """The address to connect to."""
        return f"{self.ip}{self.scope}", self.port

    @property
    def authority(self) -> str:
        """The value of the Host header: some gateways want the port even where it is 80."""
        return show_address((str(self.ip), self.port))


@final
class Reply(msgspec.Struct, frozen=True):
    """An answer to a search."""

    location: str
    target: str


def search(target: str, authority: str = f"{GROUP}:{PORT}") -> bytes:
    """A search for devices of type `target`, to be answered within a second."""
    return (
        f'M-SEARCH * HTTP/1.1\r\nHOST: {authority}\r\nMAN: "ssdp:discover"\r\nMX: 1\r\nST: {target}\r\n\r\n'
    ).encode()


def parse_reply(data: bytes) -> Reply:
    """Read an answer to a search, leniently.

    Raises:
      PortMapMalformed: it is no answer, or has no location.
    """
    if len(data) > MAX_REPLY:
        raise PortMapMalformed(f"a search answer has {len(data)} bytes, more than {MAX_REPLY}")
    first, *lines = data.decode("ascii", "replace").replace("\r\n", "\n").split("\n")
    if not first.startswith("HTTP/1.") or " 200" not in first:
        raise PortMapMalformed("the datagram is not a search answer")
    headers = {name.strip().lower(): value.strip() for name, found, value in (x.partition(":") for x in lines) if found}
    if not headers.get("location"):
        raise PortMapMalformed("a search answer has no LOCATION header")
    return Reply(headers["location"], headers.get("st", ""))


def parse_url(text: str, base: Url | None = None) -> Url:
    """Read a URL of a gateway; a relative one is resolved against `base`.

    Raises:
      PortMapMalformed: the URL cannot be used: it has another scheme, or a name instead of an address.
    """
    text = text.strip()
    if len(text) > MAX_URL or not text.isascii() or not text.isprintable() or " " in text:
        raise PortMapMalformed("a gateway sent an invalid URL")
    try:
        parts = urlsplit(text)
        port = parts.port
        if not parts.scheme and not parts.netloc and base is not None:
            path = parts.path if parts.path.startswith("/") else base.target.rpartition("/")[0] + "/" + parts.path
            return Url(base.ip, base.port, _target(path, parts.query), base.scope)
        ip = ip_address((parts.hostname or "").partition("%")[0])
    except ValueError as error:
        raise PortMapMalformed(f"a gateway sent an invalid URL: {error}") from None
    if parts.scheme.lower() != "http" or port == 0 or parts.username is not None:
        raise PortMapMalformed("a gateway sent a URL that is not allowed (only http://, without a login)")
    scope = base.scope if base is not None and base.ip == ip else ""
    return Url(ip, port or 80, _target(parts.path, parts.query), scope)


def _target(path: str, query: str) -> str:
    return (path or "/") + (f"?{query}" if query else "")


def judge_location(text: str, *, gateway: IpAddress, local: IpAddress, prefix: int, index: int = 0) -> Url:
    """The URL of a description that an answer names, if it may be fetched.

    Args:
      text: the location in the answer.
      gateway: the gateway of our routes; any other host has to be in our network.
      local, prefix: our address there, and the length of its network's prefix.
      index: the index of the interface, which becomes the scope of a link-local address: most IPv6 routes have one.

    Raises:
      PortMapMalformed: the location may not be fetched.
    """
    url = parse_url(text)
    network = ip_network((local, prefix), strict=False)
    edges = (network.network_address, network.broadcast_address) if isinstance(network, IPv4Network) else ()
    near = url.ip == gateway or (url.ip.version == network.version and url.ip in network and url.ip not in edges)
    on_link = scope_of(url.ip) is AddressScope.LINK_LOCAL
    bad = scope_of(url.ip) in (AddressScope.LOOPBACK, AddressScope.NO_HOST) or (on_link and url.ip.version == 4)
    if not near or bad or url.ip == local:
        raise PortMapMalformed(f"a search answer points to {url.authority}, which cannot be a gateway of this network")
    return msgspec.structs.replace(url, scope=f"%{index}") if on_link else url
