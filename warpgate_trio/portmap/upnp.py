"""The client of UPnP gateways: requests go by SOAP, and results count after they were read back.

Gateways answer 200 OK to requests that they do not fulfil: ports above 65,535, full tables, renewals that extend
nothing.  So the entry is read back after each request, and its content counts: the owner, and the time left.  A mapping
that cannot be read back is not used.  It may exist all the same, so it is deleted.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, final

import msgspec

from ..errors import PortMapError, PortMapMalformed, PortMapRefused
from ..sockaddr import IpAddress
from .client import Claim, Conflict, Denied, Found, Gone, Grant
from .http import request
from .igd import Service, envelope, read_answer

if TYPE_CHECKING:
    from .client import ProtocolName

__all__ = ["DENIED", "UpnpClient", "call"]

logger: logging.Logger = logging.getLogger(__name__)

DESCRIPTION: Final = "warpgate-trio"
"""The description of our mappings in the router's table."""
_CONFLICTS: Final = frozenset({718, 729})
_PERMANENT_ONLY: Final = frozenset({725, 402})  # the standard's; "Invalid Args" of other gateways without lifetimes
DENIED: Final = 606
"""UPnP's error for requests that the gateway's user has to allow ("Action not authorized")."""
_NO_ENTRY: Final = frozenset({714, 713})


@final
class _Entry(msgspec.Struct, frozen=True):
    """A mapping as the gateway has it."""

    client: str
    internal: str
    lease: int | None

    def is_for(self, local: IpAddress, internal: int) -> bool:
        return self.client == str(local) and self.internal == str(internal)


@final
class UpnpClient:
    """A `Client` that speaks UPnP IGD over IPv4.

    Args:
      local: our address in the gateway's network.
      service: a service of one of the kinds in `WAN`.
    """

    protocol: Final[ProtocolName] = "upnp"

    def __init__(self, local: IpAddress, service: Service) -> None:
        self._local = local
        self._service = service
        self._permanent = False

    async def map(self, claim: Claim, lifetime: int) -> Grant:
        try:
            known = await self._entry(claim)
        except (PortMapRefused, Gone):  # some gateways have another error for a missing entry
            known = None
        if known is not None and known.client != str(self._local):
            raise Conflict(718, f"port {claim.external} is already mapped to {known.client or 'another host'}")
        if known is not None and not known.is_for(self._local, claim.internal):
            await self._delete(claim)  # our own, from an earlier run
            known = None
        await self._add(claim, lifetime)
        try:
            return await self._read_back(claim, lifetime, known)
        except PortMapRefused as error:  # a refusal of the later request: the mapping was made
            raise PortMapError(f"the gateway reports success, but the mapping cannot be read back: {error}") from error

    async def _read_back(self, claim: Claim, lifetime: int, known: _Entry | None) -> Grant:
        """Read the entry that was made, or renewed if `known`; one that was not extended is deleted and made again."""
        entry = await self._entry(claim)
        asked = 0 if self._permanent else lifetime
        if known is not None and entry is not None and not _is_extended(entry, known, asked):
            await self._delete(claim)
            await self._add(claim, lifetime)
            entry = await self._entry(claim)
        if entry is None or not entry.is_for(self._local, claim.internal):
            raise PortMapMalformed("the gateway reports success, but the mapping does not exist")
        left = entry.lease if entry.lease is not None else asked
        return Grant(claim, claim.external, await self.external(), left)

    async def unmap(self, claim: Claim) -> None:
        """Delete the mapping if it is ours, or cannot be read back: it was requested, and no other host had it."""
        try:
            entry = await self._entry(claim)
        except (PortMapRefused, Gone):
            await self._delete(claim)
            return
        if entry is not None and entry.is_for(self._local, claim.internal):
            await self._delete(claim)

    async def check(self, grant: Grant) -> Found:
        entry = await self._entry(grant.claim)
        stands = entry is not None and entry.is_for(self._local, grant.claim.internal)
        return Found(stands, await self.external() if stands else None)

    async def status(self) -> str:
        """The gateway's connection status, in lower case."""
        return (await self._call("GetStatusInfo")).get("NewConnectionStatus", "").strip().lower()

    async def external(self) -> IpAddress | None:
        """The external address that the gateway reports; None where it reports none."""
        try:
            told = (await self._call("GetExternalIPAddress")).get("NewExternalIPAddress", "")
            ip = ip_address(told.strip())
        except (PortMapRefused, Gone, PortMapMalformed, ValueError):
            return None
        return None if ip.is_unspecified else ip

    # -- one step each -----------------------------------------------------------------------------------------------

    async def _add(self, claim: Claim, lifetime: int) -> None:
        """Add the entry; for ever, where the gateway refuses lifetimes."""
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
            if error.code == DENIED:
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

    async def _call(self, action: str, **arguments: str) -> dict[str, str]:
        return await call(self._local, self._service, action, arguments)


async def call(local: IpAddress, service: Service, action: str, arguments: Mapping[str, str]) -> dict[str, str]:
    """Call one action of a service from `local`, and return the values of the answer; raises as `Client` says."""
    headers = [
        ("Content-Type", 'text/xml; charset="utf-8"'),
        ("SOAPAction", f'"{service.kind}#{action}"'),
        ("Cache-Control", "no-cache"),
        ("Pragma", "no-cache"),
    ]
    body = envelope(service.kind, action, arguments)
    try:
        status, answer = await request(local, "POST", service.control, headers=headers, body=body)
    except ConnectionError as error:
        raise Gone(str(error)) from error
    return read_answer(status, answer, action)


def _name(claim: Claim) -> dict[str, str]:
    return {"NewRemoteHost": "", "NewExternalPort": str(claim.external), "NewProtocol": claim.transport.name}


def _is_extended(entry: _Entry, before: _Entry, asked: int) -> bool:
    """Whether a renewal has extended the time; also True for a mapping without an end, or without a known one."""
    if entry.lease is None or before.lease is None or not entry.lease or not asked:
        return True
    return entry.lease > before.lease or entry.lease >= asked // 2
