"""Open files: how many this process may have, and what each service of `serve` gets of them.

A command may raise the process's own limit, a library must not.  Who runs out of files cannot even accept a connection
to refuse it, so what strangers can make us hold is less than what there is, and one service leaves the other its share.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..servers.rendezvous_core import RendezvousLimits
    from ..servers.stun_core import StunLimits

__all__ = ["raise_file_limit", "share_files"]

PLENTY: Final = 65536
"""Files that we ask for at most, where the system sets no limit: three times what `serve` can use."""
RESERVED: Final = 64
"""Files for what is not a connection: listeners, streams, the log, certificates, a look at the interfaces."""
STUN_SHARE: Final = 0.25
"""Of the rest, for STUN over TCP."""
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


def share_files(files: int, *, stun: bool) -> tuple[RendezvousLimits, StunLimits]:
    """The limits of the two services that hold connections, by their defaults and by the files that there are."""
    from ..servers.rendezvous_core import RendezvousLimits
    from ..servers.stun_core import StunLimits

    left = max(files - RESERVED, 2)
    for_stun = int(left * STUN_SHARE) if stun else 0
    return (
        RendezvousLimits(connections=min(RendezvousLimits().connections, max(1, int((left - for_stun) * CROWD)))),
        StunLimits(connections=min(StunLimits().connections, max(1, int(for_stun * CROWD)))),
    )
