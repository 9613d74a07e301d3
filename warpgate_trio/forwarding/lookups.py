"""Names that peers have this side look up: in a few threads, of which no peer has all.

Theory of operation.  `getaddrinfo` runs in a thread that nothing can cancel, and a resolver that does not answer keeps
it for as long as the C library has patience.  Those threads are Trio's, 40 for all that a program does, and a peer
chooses which names are asked for.  So a lookup is not its asker's, who has given up long before, but a task of the run,
which gives its place back when its thread has ended, and not before.

A lookup waits for one of its peer's `MAX_OF_PEER` places, and with that for one of `MAX_LOOKUPS`.  So a peer is in that
queue that many times at most, and others wait behind no more of it.  A peer's connections to one name share a lookup;
peers do not, as one would wait where the other one has to.  What nobody waits for any more, and has not begun, is given
up.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, final

import trio

from ..errors import TargetRefused
from ..nurseries import reason_of
from ..sockaddr import IpAddress
from .targets import Target
from .wire import Answer

__all__ = ["MAX_LOOKUPS", "MAX_OF_PEER", "MAX_WAITING", "NameLookups", "lookups_of_this_run"]

MAX_LOOKUPS: Final = 8
"""Threads that look up names for peers at a time: of the 40 that Trio has, a node's own names take 16."""
MAX_OF_PEER: Final = 2
"""Of these, for one peer: four that each hold what they can are needed to keep the others waiting."""
MAX_WAITING: Final = 32
"""Names of one peer that are looked up or wait for it; a further one is refused.  A resolver that works answers within
some 50 ms, so that the last of them has its turn within a second; connections to one name count once."""


@final
@dataclass(slots=True)
class _Lookup:
    waiting: int = 0
    begun: bool = False
    addresses: Sequence[IpAddress] = ()
    problem: str | None = None
    over: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


@final
@dataclass(slots=True)
class _Asker:
    """A peer that has lookups, by the name that is looked up."""

    lookups: dict[str, _Lookup] = field(default_factory=dict)
    places: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(MAX_OF_PEER))


@final
class NameLookups:
    """See the module's page.  `lookups_of_this_run` has the one of a run."""

    def __init__(self) -> None:
        self._room = trio.CapacityLimiter(MAX_LOOKUPS)
        self._askers: dict[str, _Asker] = {}

    async def look_up(self, target: Target, peer_id: str) -> Sequence[IpAddress]:
        """The addresses of a target's name, for a peer.  The caller bounds the time.

        Raises:
          TargetRefused: it has none (UNREACHABLE), or the peer has too many others looked up (BUSY).
        """
        asker = self._askers.get(peer_id) or _Asker()
        lookup = asker.lookups.get(target.host)
        if lookup is None:
            if len(asker.lookups) >= MAX_WAITING:
                problem = f"{target}: busy, {MAX_WAITING} other names are being looked up for this peer"
                raise TargetRefused(Answer.BUSY, problem)
            lookup = asker.lookups[target.host] = _Lookup()
            self._askers[peer_id] = asker
            trio.lowlevel.spawn_system_task(
                self._run, target.host, peer_id, asker, lookup, name=f"looking up {target.host}", context=copy_context()
            )
        lookup.waiting += 1
        try:
            await lookup.over.wait()
        finally:
            lookup.waiting -= 1
            if not lookup.waiting and not lookup.begun:
                self._forget(target.host, peer_id, lookup)
                lookup.scope.cancel()
        if lookup.problem is not None:
            raise TargetRefused(Answer.UNREACHABLE, f"{target}: {lookup.problem}")
        return lookup.addresses

    async def _run(self, host: str, peer_id: str, asker: _Asker, lookup: _Lookup) -> None:
        try:
            with lookup.scope:
                async with asker.places, self._room:
                    lookup.begun = True
                    found = await trio.socket.getaddrinfo(host, 0, type=trio.socket.SOCK_STREAM)
                names = [name[0].partition("%")[0] for *_, name in found if isinstance(name[0], str)]
                lookup.addresses = [ip_address(name) for name in names]
        except Exception as error:  # OSError, and what Python's IDNA makes of a strange name
            lookup.problem = reason_of(error)  # nobody else would take it: a system task has no caller
        finally:
            self._forget(host, peer_id, lookup)
            lookup.over.set()

    def _forget(self, host: str, peer_id: str, lookup: _Lookup) -> None:
        """A lookup is over, or is to be."""
        asker = self._askers.get(peer_id)
        if asker is not None and asker.lookups.get(host) is lookup:
            del asker.lookups[host]
            if not asker.lookups:
                del self._askers[peer_id]


_of_this_run: Final[trio.lowlevel.RunVar[NameLookups]] = trio.lowlevel.RunVar("warpgate_trio.forwarding.lookups")


def lookups_of_this_run() -> NameLookups:
    """Those of the Trio run that this is called in: the threads are the run's, whatever nodes it has."""
    try:
        return _of_this_run.get()
    except LookupError:
        lookups = NameLookups()
        _of_this_run.set(lookups)
        return lookups
