"""UPnP's Internet Gateway Device, versions 1 and 2: its description, and SOAP.  No I/O.

Requests are exactly what miniupnpc sends, since gateways were tested with it.  Answers are read leniently.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Final, final

import msgspec

from ..errors import PortMapError, PortMapMalformed, PortMapRefused, printable
from .client import Gone
from .ssdp import Url, parse_url
from .xml import parse

__all__ = ["FIREWALL", "WAN", "Service", "envelope", "read_answer", "read_description"]

WAN: Final = (
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
)
"""Services that open ports."""
FIREWALL: Final = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1"
"""The service that opens pinholes."""
MAX_SERVICES: Final = 8
"""Services of one description that are asked: a router has one or two connections."""
MAX_VALUES: Final = 64
"""Values of one answer."""
_MAX_TEXT: Final = 200
_GONE: Final = frozenset({404, 410})
"""HTTP statuses (RFC 9110 §15.5) that mean that the service does not exist."""


@final
class Service(msgspec.Struct, frozen=True):
    """A service that a gateway offers: its type, and the URL for requests to it."""

    kind: str
    control: Url


def read_description(data: bytes, location: Url) -> list[Service]:
    """The services that open ports or pinholes, in the order of the description.

    Raises:
      PortMapMalformed: it is no description, or its services are at another address than `location`.
    """
    root = parse(data)
    if root.name != "root":
        raise PortMapMalformed("the gateway's description is not a UPnP description")
    base, found, foreign = location, list[Service](), 0
    if text := root.find("URLBase"):
        base = parse_url(text, location)
        if base.ip != location.ip:
            raise PortMapMalformed(f"the gateway's description points to another host, {base.ip}")
    for element in root.iterate():
        kind = element.find("serviceType")
        if element.name != "service" or kind not in (*WAN, FIREWALL) or len(found) >= MAX_SERVICES:
            continue
        control = parse_url(element.find("controlURL"), base)
        if control.ip == location.ip:
            found.append(Service(kind, control))
        else:
            foreign += 1
    if foreign and not found:
        raise PortMapMalformed("the gateway's description points to another host")
    return found


def envelope(service: str, action: str, arguments: Mapping[str, str]) -> bytes:
    """The body of a SOAP request."""
    inner = "".join(f"<{name}>{escape(value, quote=False)}</{name}>" for name, value in arguments.items())
    return (
        '<?xml version="1.0"?>\r\n'
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/">'
        f'<s:Body><u:{action} xmlns:u="{service}">{inner}</u:{action}></s:Body></s:Envelope>\r\n'
    ).encode()


def read_answer(status: int, data: bytes, action: str) -> dict[str, str]:
    """The values of a SOAP answer.

    Raises:
      PortMapRefused: the answer is an error; `code` is its UPnP number, or the HTTP status where it has none.
      Gone: the service no longer exists.
      PortMapMalformed: the bytes are no answer to `action`.
    """
    try:
        root = parse(data)
    except PortMapMalformed:
        if status == 200:
            raise
        raise _http_error(status, action) from None
    for element in root.iterate():
        if element.name == "UPnPError":
            number = element.find("errorCode")
            code = int(number) if number.isdecimal() and len(number) < 6 else status
            text = printable(element.find("errorDescription"), _MAX_TEXT)
            raise PortMapRefused(code, f"the gateway refuses {action}: {code} {text}".rstrip())
    if status != 200:
        raise _http_error(status, action)
    for element in root.iterate():
        if element.name == f"{action}Response":
            return {child.name: child.text for child in element.children[:MAX_VALUES]}
    raise PortMapMalformed(f"the gateway sent no valid answer to {action}")


def _http_error(status: int, action: str) -> PortMapError:
    """The error for an HTTP status without a UPnP error."""
    why = f"the gateway refuses {action}: HTTP {status}"
    return Gone(why) if status in _GONE else PortMapRefused(status, why)
