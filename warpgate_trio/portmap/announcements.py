"""What gateways say unasked: that they have started anew, or have another address outside.

PCP and NAT-PMP announce that to 224.0.0.1, port 5350 (RFC 6886 §3.2.1, RFC 6887 §14.1); UPnP's devices say to
239.255.255.250, port 1900, that they leave, and under which BOOTID they are there (UPnP Device Architecture 1.1 §1.2).
It is a reason to look, and no more: what has changed is asked of the gateway.  A host firewall may keep all of it away,
as it does by default on many systems, so looking does not depend on it.
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
    """Whether a gateway says that it has changed."""
    for decode, kind in ((natpmp.decode, natpmp.ExternalAddress), (pcp.decode, pcp.Announced)):
        try:
            if isinstance(decode(data), kind):
                return True
        except PortMapMalformed:
            pass
    return False


@final
class Boots:
    """What a gateway's NOTIFY messages say: the last BOOTID, of which a new one is a restart."""

    def __init__(self) -> None:
        self._last: str | None = None

    def is_announcement(self, data: bytes) -> bool:
        """Whether the gateway leaves, or has started anew since it was heard last."""
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
    """Call `announced` for what the gateway announces to the network that `local` is in; return where none is heard."""
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
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)  # others listen, too
            await sock.bind((str(ip), port))
            sock.setsockopt(trio.socket.IPPROTO_IP, trio.socket.IP_ADD_MEMBERSHIP, ip.packed + local.packed)
            while True:
                data, source = await sock.recvfrom(ssdp.MAX_REPLY)
                if source[0] == str(gateway) and says(data, source):
                    announced()
    except OSError as error:  # a system that binds to no group, or lets one program listen: the checks go on
        logger.debug("announcements of %s are not heard: %s", gateway, error)
