"""Finds UPnP gateways: SSDP searches for them, and their descriptions list their services."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import IPv4Address
from typing import Final

import trio

from ..address.scope import is_public
from ..errors import PortMapError, PortMapMalformed, PortMapRefused, PortMapTimeout
from ..sockaddr import IpAddress, show_address, socket_address, socket_family
from . import ssdp
from .client import Client, Gone
from .http import request
from .igd import FIREWALL, WAN, Service, read_description
from .pinholes import PinholeClient
from .ssdp import Url
from .upnp import UpnpClient

__all__ = ["find_gateway"]

logger: logging.Logger = logging.getLogger(__name__)

SEARCHES: Final = (0.0, 1.0)
"""Seconds before each sending of the search: multicast packets may be lost, above all on Wi-Fi."""
SEARCH_TIME: Final = 5.0
"""Seconds for answers: some gateways take four."""
MAX_LOCATIONS: Final = 8
"""Locations from answers that are asked: a network has one or two gateways, and other devices that answer."""
_TTL: Final = 2  # of multicast, UPnP Device Architecture 1.1 §1.3.2
_CONNECTED: Final = frozenset({"connected", "up"})


async def find_gateway(local: IpAddress, prefix: int, gateway: IpAddress, *, index: int = 0) -> Client:
    """Search the network of `local`, and choose a gateway.

    The first gateway that is connected and has a public address is taken; without one, the first that opens ports.
    Over IPv6, it is the first that opens pinholes.

    Args:
      local, prefix: our address, and the length of its network's prefix.
      gateway: the gateway of our routes.
      index: the index of the interface, for IPv6.

    Raises:
      PortMapTimeout: nothing answers.
      PortMapError: no device that answers is a usable gateway.
      OSError: nothing can be sent from `local`, or a device that answered cannot be reached.
    """
    problems: list[PortMapError | OSError] = []
    best: Client | None = None
    async with _locations(local, prefix, gateway, index) as locations:
        async for location in locations:
            try:
                client, good = await _choose(local, await _services(local, location))
            except (PortMapError, OSError) as error:
                problems.append(error)
                continue
            best = best or client
            if good:
                return client
    if best is not None:
        return best
    if problems:
        raise problems[0]
    raise PortMapTimeout("no UPnP gateway answers")


async def _services(local: IpAddress, location: Url) -> list[Service]:
    wanted = WAN if local.version == 4 else (FIREWALL,)
    status, data = await request(local, "GET", location)
    if status != 200:
        raise PortMapMalformed(f"{location.authority} answers the request for its description with HTTP {status}")
    services = [each for each in read_description(data, location) if each.kind in wanted]
    if not services:
        raise PortMapMalformed(f"{location.authority} has no service that opens ports")
    return services


async def _choose(local: IpAddress, services: list[Service]) -> tuple[Client, bool]:
    """The best of a gateway's connection services, and whether it leads to the internet."""
    if local.version == 6:
        return PinholeClient(local, services[0]), True
    connected: UpnpClient | None = None
    there: list[UpnpClient] = []
    gone: Gone | None = None
    for service in services:
        client = UpnpClient(local, service)
        try:
            if await client.status() in _CONNECTED:
                connected = connected or client
                ip = await client.external()
                if ip is not None and is_public(ip):
                    return client, True
        except PortMapRefused as error:
            logger.debug("%s does not report its connection status: %s", service.control.authority, error)
        except Gone as error:
            gone = error
            continue
        there.append(client)
    if gone is not None and not there:
        raise gone
    return connected or there[0], False


@asynccontextmanager
async def _locations(
    local: IpAddress, prefix: int, gateway: IpAddress, index: int
) -> AsyncGenerator[trio.MemoryReceiveChannel[Url]]:
    """Search for `SEARCH_TIME` seconds; yields a channel of the locations that may be asked, each once."""
    send, receive = trio.open_memory_channel[Url](MAX_LOCATIONS)
    with receive, trio.socket.socket(socket_family(str(local)), trio.socket.SOCK_DGRAM) as sock:
        await sock.bind((str(local), 0))
        if isinstance(local, IPv4Address):
            sock.setsockopt(trio.socket.IPPROTO_IP, trio.socket.IP_MULTICAST_IF, local.packed)
            sock.setsockopt(trio.socket.IPPROTO_IP, trio.socket.IP_MULTICAST_TTL, _TTL)
            there = [ssdp.GROUP, str(gateway)]
        else:
            sock.setsockopt(trio.socket.IPPROTO_IPV6, trio.socket.IPV6_MULTICAST_IF, index)
            there = [f"{ssdp.GROUP6}%{index}", f"{gateway}%{index}" if gateway.is_link_local else str(gateway)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_search, sock, there)
            nursery.start_soon(partial(_hear, sock, send, local=local, prefix=prefix, gateway=gateway, index=index))
            yield receive
            nursery.cancel_scope.cancel()


async def _search(sock: trio.socket.SocketType, there: list[str]) -> None:
    """Send the search by multicast and to the gateway: a host firewall lets in only the answers to the latter."""
    for pause in SEARCHES:
        await trio.sleep(pause)
        for to in there:
            group = ssdp.GROUP6 if ":" in to else ssdp.GROUP
            for target in ssdp.TARGETS if group == ssdp.GROUP else ssdp.TARGETS6:
                try:
                    await sock.sendto(ssdp.search(target, show_address((group, ssdp.PORT))), (to, ssdp.PORT))
                except OSError as error:  # no route for multicast: the gateway may answer all the same
                    logger.debug("the search for gateways cannot be sent to %s: %s", to, error)


async def _hear(
    sock: trio.socket.SocketType,
    send: trio.MemorySendChannel[Url],
    *,
    local: IpAddress,
    prefix: int,
    gateway: IpAddress,
    index: int,
) -> None:
    seen: set[Url] = set()
    with send, trio.move_on_after(SEARCH_TIME):
        while len(seen) < MAX_LOCATIONS:
            try:
                data, source = await sock.recvfrom(ssdp.MAX_REPLY + 1)
            except ConnectionError:  # an ICMP error about the search
                continue
            try:
                place = ssdp.parse_reply(data).location
                url = ssdp.judge_location(place, gateway=gateway, local=local, prefix=prefix, index=index)
            except PortMapMalformed as error:
                logger.debug("%s: %s", socket_address(source), error)
                continue
            if url not in seen:
                seen.add(url)
                await send.send(url)
