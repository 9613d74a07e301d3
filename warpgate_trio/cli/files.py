"""Open files: how many this process may have, and what each service of `serve` gets of them.

A command may raise the process's own limit, a library must not.  Who runs out of files cannot even accept a connection
to refuse it, so what strangers can make us hold is less than what there is, and one service leaves the other its share.
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
"""Files that we ask for at most, where the system sets no limit: three times what `serve` can use."""
RESERVED: Final = 64
"""Files for what is not a connection: listeners, streams, the log, certificates, a look at the interfaces."""
STUN_SHARE: Final = 0.25
"""Of the rest, for STUN and TURN over TCP."""
RELAYS_SHARE: Final = 0.25
"""Of the rest, for relayed addresses of TURN."""
CROWD: Final = 8 / 9
"""Of a service's share, what its `Gate` fills; the rest is for connections that a proxy has not named yet, and for ones
that give way and are not closed yet."""


def raise_file_limit() -> int:
    """Have as many open files as the system lets this process have; returns the number."""
    try:
        import resource
    except ImportError:  # Windows, where sockets are no files
        return PLENTY
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return PLENTY
    wanted = PLENTY if hard == resource.RLIM_INFINITY else hard
    if wanted > soft:
        with suppress(ValueError, OSError):  # macOS has a lower limit than the one that it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return soft


@dataclass(frozen=True, kw_only=True)
class Shares:
    """The limits of the services that hold files, by their defaults and by the files that there are."""

    rendezvous: RendezvousLimits
    stun: StunLimits
    turn: TurnLimits


def share_files(files: int, *, stun: bool, turn: bool) -> Shares:
    """What each service gets; `turn`: the STUN server is a TURN server too, which has both their shares.

    Relayed addresses are sockets, of which none gives way to another, so they fill their share.
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
