"""Announcements of gateways: that they have restarted, or have a new external address.

PCP and NAT-PMP gateways send them to 224.0.0.1, port 5350 (RFC 6886 §3.2.1, RFC 6887 §14.1).  UPnP devices announce
their leaving, and their presence with a BOOTID, to 239.255.255.250, port 1900 (UPnP Device Architecture 1.1 §1.2).  An
announcement only causes a check: the gateway is asked what has changed.  Many systems' host firewalls block
announcements by default, so mappings are also checked without them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Final, final

import trio

from ..errors import PortMapMalformed
from ..sockaddr import IpAddress, TransportAddress
from . import natpmp, pcp, ssdp

__all__ = ["Boots", "is_announcement", "listen"]

logger: logging.Logger = logging.getLogger(__name__)

_GROUP: Final = IPv4Address("224.0.0.1")
_PORT: Final = 5350


def is_announcement(data: bytes) -> bool:
    """Whether `data` is an announcement of NAT-PMP or PCP."""
    for decode, kind in ((natpmp.decode, natpmp.ExternalAddress), (pcp.decode, pcp.Announced)):
        try:
            if isinstance(decode(data), kind):
                return True
        except PortMapMalformed:
            pass
    return False


@final
class Boots:
    """Detects restarts by a gateway's NOTIFY messages: a changed BOOTID means that it has restarted."""

    def __init__(self) -> None:
        self._last: str | None = None

    def is_announcement(self, data: bytes) -> bool:
        """Whether a message says that the gateway leaves, or that it has restarted since its last message."""
        first, *lines = data[: ssdp.MAX_REPLY].decode("ascii", "replace").splitlines() or [""]
        if not first.startswith("NOTIFY "):
            return False
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("nts") == "ssdp:byebye":
            return True
        boot = headers.get("bootid.upnp.org")
        if boot is None:
            return False
        before, self._last = self._last, boot
        return before not in (None, boot)


async def listen(local: IPv4Address, gateway: IpAddress, announced: Callable[[], None]) -> None:
    """Call `announced` for each announcement of the gateway in the network of `local`.

    Returns where announcements cannot be received.
    """
    boots = Boots()

    def is_notified(data: bytes, source: TransportAddress) -> bool:
        return boots.is_announcement(data)

    def is_announced(data: bytes, source: TransportAddress) -> bool:
        return source[1] == natpmp.PORT and is_announcement(data)

    async with trio.open_nursery() as nursery:
        for group, port, says in (
            (_GROUP, _PORT, is_announced),
            (IPv4Address(ssdp.GROUP), ssdp.PORT, is_notified),
        ):
            nursery.start_soon(_listen, local, gateway, (group, port), says, announced)


async def _listen(
    local: IPv4Address,
    gateway: IpAddress,
    group: tuple[IPv4Address, int],
    says: Callable[[bytes, TransportAddress], bool],
    announced: Callable[[], None],
) -> None:
    ip, port = group
    try:
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)  # other programs listen, too
            await sock.bind((str(ip), port))
            sock.setsockopt(trio.socket.IPPROTO_IP, trio.socket.IP_ADD_MEMBERSHIP, ip.packed + local.packed)
            while True:
                data, source = await sock.recvfrom(ssdp.MAX_REPLY)
                if source[0] == str(gateway) and says(data, source):
                    announced()
    except OSError as error:  # no bind to a group, or for one program only: mappings are checked all the same
        logger.debug("announcements of %s cannot be received: %s", gateway, error)
