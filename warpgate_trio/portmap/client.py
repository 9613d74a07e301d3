"""What the protocols have in common: a client of one gateway, what is asked of it, and what it gave."""

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
"""In order of preference, of those that answer within the same moment: what is told of failures, and what is known of
the other hosts of the network, decreases."""


class Conflict(PortMapRefused):
    """Somebody else has the external port."""


class Denied(PortMapRefused):
    """The gateway's settings forbid it; only its user can change that."""


class Gone(PortMapError):
    """The service is not where it was found: a gateway that has restarted may have it at another port."""


@final
@dataclass(frozen=True, slots=True)
class Claim:
    """A mapping that we asked for, or are about to ask for; it may stand at the gateway from then on.

    Attributes:
      internal: our port.
      external: the one that we name, at least 1024.
      nonce: 12 bytes by which PCP knows us again.
    """

    transport: Transport
    internal: int
    external: int
    nonce: bytes


@final
@dataclass(frozen=True, slots=True)
class Grant:
    """What a gateway gave.

    Attributes:
      external: the port that was opened.
      ip: at which address, where the gateway says so; it may be anything, and is believed by nobody as it is.
      lifetime: seconds from when it was given; 0: for ever, since it knows nothing else.
    """

    claim: Claim
    external: int
    ip: IpAddress | None
    lifetime: int


@final
@dataclass(frozen=True, slots=True)
class Found:
    """What became of a check.

    Attributes:
      stands: whether the gateway still knows the mapping; False where it has forgotten all of them.
      ip: its address on its other side, where it tells.
    """

    stands: bool
    ip: IpAddress | None = None


class Client(Protocol):
    """One gateway by one protocol.  Its methods raise `PortMapError`, or OSError where we have no way there."""

    @property
    def protocol(self) -> ProtocolName: ...

    async def map(self, claim: Claim, lifetime: int) -> Grant:
        """Make the mapping, or renew it.

        Raises:
          Conflict: another external port may do; this one is somebody else's.
          Denied: no port does.
          PortMapRefused: the gateway did not make or renew the mapping, not that it refuses what is asked of it then.
          Gone: it is to be looked for again.
          PortMapTimeout: the same.
          PortMapError: it did not work.
        """
        ...

    async def unmap(self, claim: Claim) -> None:
        """Delete the mapping, if it is ours; that it is not there is no error."""
        ...

    async def check(self, grant: Grant) -> Found:
        """Ask whether the mapping stands."""
        ...


def refused(protocol: str, code: int, name: str) -> PortMapError:
    """The error for a result of NAT-PMP or PCP."""
    kind = Denied if code == 2 else PortMapRefused  # NOT_AUTHORIZED, in both
    return kind(code, f"the gateway refuses by {protocol}: {name}")
