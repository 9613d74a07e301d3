"""Limits of open files: that of the process, and the share of each service of `serve`.

A command may raise the process's limit; a library must not.  A process without free descriptors cannot accept a
connection, not even to refuse it.  The services therefore limit the files that strangers can occupy to less than the
process may open, and each service has a share of its own.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..servers.rendezvous_core import RendezvousLimits
    from ..servers.stun_core import StunLimits
    from ..servers.turn_limits import TurnLimits

__all__ = ["Shares", "raise_file_limit", "share_files"]

PLENTY: Final = 65536
"""The limit to set if the system has none: three times what `serve` can use."""
RESERVED: Final = 64
"""Files reserved for everything but connections: listeners, standard streams, the log, certificates, interfaces."""
STUN_SHARE: Final = 0.25
"""Share of the remaining files for STUN and TURN over TCP."""
RELAYS_SHARE: Final = 0.25
"""Share of the remaining files for relayed addresses of TURN."""
CROWD: Final = 8 / 9
"""Share of a service's files that its `Gate` may fill.  The rest is for connections whose client a proxy has not named
yet, and for connections that give way but are not closed yet."""


def raise_file_limit() -> int:
    """Raise the limit of open files as far as the system allows; returns the new limit."""
    try:
        import resource
    except ImportError:  # Windows, where sockets are no files
        return PLENTY
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return PLENTY
    wanted = PLENTY if hard == resource.RLIM_INFINITY else hard
    if wanted > soft:
        with suppress(ValueError, OSError):  # the real limit of macOS is lower than the reported one
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return soft


@dataclass(frozen=True, kw_only=True)
class Shares:
    """The limits of the services, from their defaults and the number of files available."""

    rendezvous: RendezvousLimits
    stun: StunLimits
    turn: TurnLimits


def share_files(files: int, *, stun: bool, turn: bool) -> Shares:
    """The limits of each service; `turn`: the STUN server is also a TURN server, which has both shares.

    Relayed addresses are sockets that never give way to others, so they may fill their whole share.
    """
    from ..servers.rendezvous_core import RendezvousLimits
    from ..servers.stun_core import StunLimits
    from ..servers.turn_limits import TurnLimits

    left = max(files - RESERVED, 2)
    for_stun = int(left * STUN_SHARE) if stun else 0
    for_relays = int(left * RELAYS_SHARE) if turn else 0
    over_tcp = max(1, int(for_stun * CROWD))
    rendezvous, of_stun, of_turn = RendezvousLimits(), StunLimits(), TurnLimits()
    return Shares(
        rendezvous=replace(
            rendezvous,
            connections=min(rendezvous.connections, max(1, int((left - for_stun - for_relays) * CROWD))),
        ),
        stun=replace(of_stun, connections=min(of_stun.connections, over_tcp)),
        turn=replace(
            of_turn,
            connections=min(of_turn.connections, over_tcp),
            allocations=min(of_turn.allocations, max(1, for_relays)),
        ),
    )
