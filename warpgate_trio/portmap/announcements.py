"""What gateways say unasked: that they have started anew, or have another address outside.

PCP and NAT-PMP announce that to 224.0.0.1, port 5350 (RFC 6886 §3.2.1, RFC 6887 §14.1).  It is a reason to look, and no
more: what has changed is asked of the gateway.  A host firewall may keep all of it away, as it does by default on many
systems, so looking does not depend on it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Final

import trio

from ..errors import PortMapMalformed
from ..sockaddr import IpAddress
from . import natpmp, pcp

__all__ = ["is_announcement", "listen"]

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


async def listen(local: IPv4Address, gateway: IpAddress, announced: Callable[[], None]) -> None:
    """Call `announced` for what the gateway announces to the network that `local` is in; return where none is heard."""
    try:
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)  # others listen, too
            await sock.bind((str(_GROUP), _PORT))
            sock.setsockopt(trio.socket.IPPROTO_IP, trio.socket.IP_ADD_MEMBERSHIP, _GROUP.packed + local.packed)
            while True:
                data, source = await sock.recvfrom(pcp.MAX_MESSAGE)
                if source == (str(gateway), natpmp.PORT) and is_announcement(data):
                    announced()
    except OSError as error:  # a system that binds to no group, or lets one program listen: the checks go on
        logger.debug("announcements of %s are not heard: %s", gateway, error)
