"""The client of UPnP gateways: found by SSDP, asked by SOAP, and believed after it was read back.

Gateways say 200 OK to what they do not do: ports above 65,535, full tables, renewals that extend nothing.  So the entry
is read after each request, and what it says counts: whose it is, and for how long.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, final

import trio

from ..address.scope import is_public
from ..errors import PortMapError, PortMapMalformed, PortMapRefused, PortMapTimeout
from ..sockaddr import IpAddress, socket_address
from . import ssdp
from .client import Claim, Client, Conflict, Denied, Found, Grant
from .http import request
from .igd import WAN, Service, envelope, read_answer, read_description
from .ssdp import Url

if TYPE_CHECKING:
    from .client import ProtocolName

__all__ = ["UpnpClient", "find_gateway"]

logger: logging.Logger = logging.getLogger(__name__)

SEARCHES: Final = (0.0, 1.0)
"""Seconds after which the search is sent: multicast is lost at times, on Wi-Fi above all."""
SEARCH_TIME: Final = 5.0
"""Seconds for answers: some gateways take four."""
MAX_LOCATIONS: Final = 8
"""Places named in answers that are asked: a network has a gateway or two, and other devices that answer."""
DESCRIPTION: Final = "warpgate-trio"
"""What our mappings are called in the router's table."""
_TTL: Final = 2  # of multicast, UPnP Device Architecture 1.1 §1.3.2
_CONNECTED: Final = frozenset({"connected", "up"})
_CONFLICTS: Final = frozenset({718, 729})
_PERMANENT_ONLY: Final = frozenset({725, 402})  # by the standard; "Invalid Args" of those who know no lease either
_DENIED: Final = 606
_NO_ENTRY: Final = frozenset({714, 713})


@final
@dataclass(frozen=True, slots=True)
class _Entry:
    """A mapping as the gateway has it."""

    client: str
    internal: str
    lease: int | None

    def is_for(self, local: IpAddress, internal: int) -> bool:
        return self.client == str(local) and self.internal == str(internal)


@final
class UpnpClient:
    """See `Client`.

    Args:
      service: one of `WAN`.
    """

    protocol: Final[ProtocolName] = "upnp"

    def __init__(self, local: IpAddress, service: Service) -> None:
        self._local = local
        self._service = service
        self._permanent = False
        self._left: dict[Claim, int] = {}

    async def map(self, claim: Claim, lifetime: int) -> Grant:
        try:
            known = await self._entry(claim)
        except PortMapRefused:  # a number of its own for what is not there
            known = None
        if known is not None and known.client != str(self._local):
            raise Conflict(718, f"port {claim.external} is {known.client or 'somebody'}'s already")
        if known is not None and not known.is_for(self._local, claim.internal):
            await self._delete(claim)  # ours, of an earlier run
            known = None
        await self._add(claim, lifetime)
        entry = await self._entry(claim)
        asked = 0 if self._permanent else lifetime
        if known is not None and entry is not None and not _is_extended(entry, known, asked):
            await self._delete(claim)
            await self._add(claim, lifetime)
            entry = await self._entry(claim)
        if entry is None or not entry.is_for(self._local, claim.internal):
            raise PortMapMalformed("the gateway says that it has mapped a port, and has not")
        left = entry.lease if entry.lease is not None else asked
        return Grant(claim, claim.external, await self.external(), left)

    async def unmap(self, claim: Claim) -> None:
        """A gateway that reads nothing back is told all the same: it was asked for, and nobody else had it."""
        try:
            entry = await self._entry(claim)
        except PortMapRefused:
            await self._delete(claim)
            return
        if entry is not None and entry.is_for(self._local, claim.internal):
            await self._delete(claim)

    async def check(self, grant: Grant) -> Found:
        entry = await self._entry(grant.claim)
        stands = entry is not None and entry.is_for(self._local, grant.claim.internal)
        return Found(stands, await self.external() if stands else None)

    async def status(self) -> str:
        """What the gateway says of its connection, in lower case."""
        return (await self._call("GetStatusInfo")).get("NewConnectionStatus", "").strip().lower()

    async def external(self) -> IpAddress | None:
        """The gateway's address on its other side, by its own word; None where it has none to tell."""
        try:
            told = (await self._call("GetExternalIPAddress")).get("NewExternalIPAddress", "")
            ip = ip_address(told.strip())
        except (PortMapRefused, PortMapMalformed, ValueError):
            return None
        return None if ip.is_unspecified else ip

    # -- one step each -----------------------------------------------------------------------------------------------

    async def _add(self, claim: Claim, lifetime: int) -> None:
        """Add the entry; for ever, where the gateway knows nothing else."""
        try:
            await self._add_for(claim, 0 if self._permanent else lifetime)
        except PortMapRefused as error:
            if error.code not in _PERMANENT_ONLY or self._permanent:
                raise
            await self._add_for(claim, 0)
            self._permanent = True

    async def _add_for(self, claim: Claim, lifetime: int) -> None:
        try:
            await self._call(
                "AddPortMapping",
                NewRemoteHost="",
                NewExternalPort=str(claim.external),
                NewProtocol=claim.transport.name,
                NewInternalPort=str(claim.internal),
                NewInternalClient=str(self._local),
                NewEnabled="1",
                NewPortMappingDescription=DESCRIPTION,
                NewLeaseDuration=str(lifetime),
            )
        except PortMapRefused as error:
            if error.code in _CONFLICTS:
                raise Conflict(error.code, str(error)) from None
            if error.code == _DENIED:
                raise Denied(error.code, str(error)) from None
            raise

    async def _delete(self, claim: Claim) -> None:
        await self._call("DeletePortMapping", **_name(claim))

    async def _entry(self, claim: Claim) -> _Entry | None:
        try:
            told = await self._call("GetSpecificPortMappingEntry", **_name(claim))
        except PortMapRefused as error:
            if error.code in _NO_ENTRY:
                return None
            raise
        lease = told.get("NewLeaseDuration", "")
        return _Entry(
            told.get("NewInternalClient", ""),
            told.get("NewInternalPort", ""),
            min(int(lease), 2**31) if lease.isdecimal() and len(lease) <= 10 else None,
        )

    async def _call(self, action: str, **arguments: str) -> Mapping[str, str]:
        status, answer = await request(
            self._local,
            "POST",
            self._service.control,
            headers=[
                ("Content-Type", 'text/xml; charset="utf-8"'),
                ("SOAPAction", f'"{self._service.kind}#{action}"'),
                ("Cache-Control", "no-cache"),
                ("Pragma", "no-cache"),
            ],
            body=envelope(self._service.kind, action, arguments),
        )
        return read_answer(status, answer, action)


def _name(claim: Claim) -> dict[str, str]:
    return {"NewRemoteHost": "", "NewExternalPort": str(claim.external), "NewProtocol": claim.transport.name}


def _is_extended(entry: _Entry, before: _Entry, asked: int) -> bool:
    """Whether a renewal has given more time; what lasts for ever, and what does not tell, needs none."""
    if entry.lease is None or before.lease is None or not entry.lease or not asked:
        return True
    return entry.lease > before.lease or entry.lease >= asked // 2


# --- Finding it -------------------------------------------------------------------------------------------------------


async def find_gateway(local: IpAddress, prefix: int, gateway: IpAddress) -> Client:
    """Search the network of `local`, and choose among what answers: connected, with a public address; then any.

    Raises:
      PortMapTimeout: nothing answers.
      PortMapError: what answers is no gateway.
      OSError: nothing can be sent from there.
    """
    problems: list[PortMapError | OSError] = []
    best: UpnpClient | None = None
    async with _locations(local, prefix, gateway) as locations:
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
    status, data = await request(local, "GET", location)
    if status != 200:
        raise PortMapMalformed(f"{location.authority} answers its description's place with HTTP {status}")
    services = [each for each in read_description(data, location) if each.kind in WAN]
    if not services:
        raise PortMapMalformed(f"{location.authority} has no service that opens ports")
    return services


async def _choose(local: IpAddress, services: list[Service]) -> tuple[UpnpClient, bool]:
    """The best of a gateway's connections, and whether it leads to the internet."""
    connected: UpnpClient | None = None
    for service in services:
        client = UpnpClient(local, service)
        try:
            if await client.status() in _CONNECTED:
                connected = connected or client
                ip = await client.external()
                if ip is not None and is_public(ip):
                    return client, True
        except PortMapRefused as error:
            logger.debug("%s tells nothing of its state: %s", service.control.authority, error)
    return connected or UpnpClient(local, services[0]), False


@asynccontextmanager
async def _locations(
    local: IpAddress, prefix: int, gateway: IpAddress
) -> AsyncGenerator[trio.MemoryReceiveChannel[Url]]:
    """Search, and hand out the places that are named and may be asked, each once, for `SEARCH_TIME`."""
    send, receive = trio.open_memory_channel[Url](MAX_LOCATIONS)
    with receive:
        async with trio.open_nursery() as nursery:
            with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
                await sock.bind((str(local), 0))
                sock.setsockopt(trio.socket.IPPROTO_IP, trio.socket.IP_MULTICAST_IF, local.packed)
                sock.setsockopt(trio.socket.IPPROTO_IP, trio.socket.IP_MULTICAST_TTL, _TTL)
                nursery.start_soon(_search, sock, gateway)
                nursery.start_soon(_hear, sock, send, local, prefix, gateway)
                yield receive
                nursery.cancel_scope.cancel()


async def _search(sock: trio.socket.SocketType, gateway: IpAddress) -> None:
    """By multicast, and to the gateway alone: a host firewall lets in the answers to the second only."""
    for pause in SEARCHES:
        await trio.sleep(pause)
        for target in ssdp.TARGETS:
            for to in (ssdp.GROUP, str(gateway)):
                try:
                    await sock.sendto(ssdp.search(target), (to, ssdp.PORT))
                except OSError as error:  # no route for multicast: the gateway may answer all the same
                    logger.debug("%s cannot be searched: %s", to, error)


async def _hear(
    sock: trio.socket.SocketType,
    send: trio.MemorySendChannel[Url],
    local: IpAddress,
    prefix: int,
    gateway: IpAddress,
) -> None:
    seen: set[Url] = set()
    with send, trio.move_on_after(SEARCH_TIME):
        while len(seen) < MAX_LOCATIONS:
            try:
                data, source = await sock.recvfrom(ssdp.MAX_REPLY + 1)
            except ConnectionError:  # an ICMP error about the search
                continue
            try:
                url = ssdp.judge_location(ssdp.parse_reply(data).location, gateway=gateway, local=local, prefix=prefix)
            except PortMapMalformed as error:
                logger.debug("%s: %s", socket_address(source), error)
                continue
            if url not in seen:
                seen.add(url)
                await send.send(url)
