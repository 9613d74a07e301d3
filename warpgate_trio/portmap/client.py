"""What the port mapping protocols have in common: the client of a gateway, its requests and its results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias, final

from ..address.endpoint import Transport
from ..config.config import PORTMAP_PROTOCOLS, PortMapProtocol
from ..errors import PortMapError, PortMapRefused
from ..sockaddr import IpAddress

__all__ = ["PROTOCOLS", "Claim", "Client", "Conflict", "Denied", "Found", "Gone", "Grant", "Protocols"]

ProtocolName: TypeAlias = PortMapProtocol
Protocols: TypeAlias = tuple[ProtocolName, ...]
PROTOCOLS: Final[Protocols] = PORTMAP_PROTOCOLS
"""In order of preference among protocols that answer at about the same time: earlier ones report failures in more
detail, and know more about the other hosts of the network."""


class Conflict(PortMapRefused):
    """Another host has the external port."""


class Denied(PortMapRefused):
    """The gateway's settings forbid mappings; only its user can change that."""


class Gone(PortMapError):
    """The service is not where it was found: a gateway that has restarted may offer it at another port."""


@final
@dataclass(frozen=True, slots=True)
class Claim:
    """A mapping that we have requested or are about to request, so that it may exist at the gateway.

    Attributes:
      internal: our port.
      external: the external port that we ask for, at least 1024.
      nonce: 12 bytes by which PCP recognizes the owner of a mapping.
    """

    transport: Transport
    internal: int
    external: int
    nonce: bytes


@final
@dataclass(frozen=True, slots=True)
class Grant:
    """A mapping that a gateway has made.

    Attributes:
      external: the external port that was opened.
      ip: the gateway's external address, where it reports one; it may be wrong, so it is not used unchecked.
      lifetime: seconds from the time of the answer; 0 means for ever, for gateways that know no lifetime.
    """

    claim: Claim
    external: int
    ip: IpAddress | None
    lifetime: int


@final
@dataclass(frozen=True, slots=True)
class Found:
    """The result of a check.

    Attributes:
      stands: whether the gateway still has the mapping; False also where a restart has erased all mappings.
      ip: the gateway's external address, where it reports one.
    """

    stands: bool
    ip: IpAddress | None = None


class Client(Protocol):
    """One gateway and one protocol.  Its methods raise `PortMapError`, or OSError where the gateway is unreachable."""

    @property
    def protocol(self) -> ProtocolName: ...

    async def map(self, claim: Claim, lifetime: int) -> Grant:
        """Make the mapping, or renew it, for `lifetime` seconds.

        Raises:
          Conflict: another host has this external port; another port may work.
          Denied: no port will work.
          PortMapRefused: the gateway has not made or renewed the mapping.  Refusals of later requests, for a mapping
            that was made, raise other errors.
          Gone: the gateway has to be searched for again.
          PortMapTimeout: the same.
          PortMapError: something else failed.
        """
        ...

    async def unmap(self, claim: Claim) -> None:
        """Delete the mapping, if it is ours; no error where it does not exist."""
        ...

    async def check(self, grant: Grant) -> Found:
        """Ask whether the mapping still exists."""
        ...


def refused(protocol: str, code: int, name: str) -> PortMapError:
    """The error for a result of NAT-PMP or PCP."""
    kind = Denied if code == 2 else PortMapRefused  # NOT_AUTHORIZED, in both
    return kind(code, f"the gateway refuses the {protocol} request: {name}")
