"""The client of UPnP gateways for IPv6: pinholes in their firewall (WANIPv6FirewallControl:1).

The gateway is searched for over IPv6, since it opens pinholes only for the address that asks.  A pinhole has a number.
A second request for the same pinhole returns the same number, which serves to delete one whose answer was lost to a
cancellation.  A pinhole cannot be read back; the gateway only shows whether it knows the number.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, final

from ..address.endpoint import Transport
from ..errors import PortMapMalformed, PortMapRefused
from ..sockaddr import IpAddress
from .client import Claim, Denied, Found, Grant
from .igd import Service
from .upnp import DENIED, call

if TYPE_CHECKING:
    from .client import ProtocolName

__all__ = ["PinholeClient"]

_NUMBER: Final = {Transport.TCP: "6", Transport.UDP: "17"}
_UNKNOWN: Final = frozenset({704, 402})  # NoSuchEntry; some report 402 for an unknown number
_MAX_ID: Final = 16


@final
class PinholeClient:
    """A `Client` that opens pinholes by UPnP."""

    protocol: Final[ProtocolName] = "upnp"

    def __init__(self, local: IpAddress, service: Service) -> None:
        self._local = local
        self._service = service
        self._ids: dict[Claim, str] = {}

    async def map(self, claim: Claim, lifetime: int) -> Grant:
        known = self._ids.get(_key(claim))
        if known is not None:
            try:
                await self._call("UpdatePinhole", UniqueID=known, NewLeaseTime=str(lifetime))
            except PortMapRefused as error:
                if error.code not in _UNKNOWN:
                    raise
                del self._ids[_key(claim)]
                known = None
        if known is None:
            self._ids[_key(claim)] = await self._add(claim, lifetime)
        return Grant(claim, claim.internal, self._local, lifetime)

    async def unmap(self, claim: Claim) -> None:
        known = self._ids.pop(_key(claim), None)
        if known is None:
            known = await self._add(claim, 1)  # requested without an answer: this returns its number
        await self._call("DeletePinhole", UniqueID=known)

    async def check(self, grant: Grant) -> Found:
        known = self._ids.get(_key(grant.claim))
        if known is None:
            return Found(False)
        try:
            await self._call("GetPinholePackets", UniqueID=known)
        except PortMapRefused as error:
            return Found(error.code not in _UNKNOWN, self._local)
        return Found(True, self._local)

    async def _add(self, claim: Claim, lifetime: int) -> str:
        try:
            told = await self._call(
                "AddPinhole",
                RemoteHost="",
                RemotePort="0",
                InternalClient=str(self._local),
                InternalPort=str(claim.internal),
                Protocol=_NUMBER[claim.transport],
                LeaseTime=str(lifetime),
            )
        except PortMapRefused as error:
            if error.code == DENIED:
                raise Denied(error.code, str(error)) from None
            raise
        number = told.get("UniqueID", "")
        if not number.isdecimal() or len(number) > _MAX_ID:
            raise PortMapMalformed("the gateway reports success, but gives the pinhole no valid number (UniqueID)")
        return number

    async def _call(self, action: str, **arguments: str) -> dict[str, str]:
        return await call(self._local, self._service, action, arguments)


def _key(claim: Claim) -> Claim:
    """The claim without its external port, which pinholes do not have."""
    return replace(claim, external=claim.internal)
