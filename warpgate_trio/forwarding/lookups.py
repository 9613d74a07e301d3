"""Name lookups on behalf of peers, in a few threads that no single peer can occupy alone.

Theory of operation.  `getaddrinfo` runs in a thread that cannot be cancelled.  If the resolver does not answer, the
thread is occupied until the C library gives up.  Trio has 40 such threads for the whole program, and peers choose the
names.  Therefore each lookup is a system task of the Trio run, not part of the request, which times out much earlier.
The task releases its place only when its thread has ended.

A lookup first waits for one of the `MAX_OF_PEER` places of its peer, and then for one of the `MAX_LOOKUPS` places of
all peers.  So the common queue holds at most `MAX_OF_PEER` lookups of one peer.  Requests of one peer for the same name
share a lookup.  Requests of different peers do not: one would have to wait for the other's place.  A lookup that has
not started is cancelled when no request waits for it any more.
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
"""Threads that look up names for peers at a time.  Of Trio's 40 threads, a node's own names take 16."""
MAX_OF_PEER: Final = 2
"""Of `MAX_LOOKUPS`, threads for one peer: only four peers together can occupy all of them."""
MAX_WAITING: Final = 32
"""Names of one peer that are being looked up or wait for it; a further name is refused.  A working resolver answers
within some 50 ms, so the last name has its turn within a second.  Connections to one name count once."""


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
    """A peer that has lookups; they are kept by name."""

    lookups: dict[str, _Lookup] = field(default_factory=dict)
    places: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(MAX_OF_PEER))


@final
class NameLookups:
    """Limits lookups as the module describes.  `lookups_of_this_run` returns the instance of the Trio run."""

    def __init__(self) -> None:
        self._room = trio.CapacityLimiter(MAX_LOOKUPS)
        self._askers: dict[str, _Asker] = {}

    async def look_up(self, target: Target, peer_id: str) -> Sequence[IpAddress]:
        """Look up the addresses of a target's name for a peer.  There is no timeout; the caller sets one.

        Raises:
          TargetRefused: the lookup failed (UNREACHABLE), or the peer has too many other lookups (BUSY).
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
        except Exception as error:  # OSError, and errors of Python's IDNA codec for invalid names
            lookup.problem = reason_of(error)  # raised here, it would crash the run: this is a system task
        finally:
            self._forget(host, peer_id, lookup)
            lookup.over.set()

    def _forget(self, host: str, peer_id: str, lookup: _Lookup) -> None:
        """Remove a lookup that has ended or is being cancelled."""
        asker = self._askers.get(peer_id)
        if asker is not None and asker.lookups.get(host) is lookup:
            del asker.lookups[host]
            if not asker.lookups:
                del self._askers[peer_id]


_of_this_run: Final[trio.lowlevel.RunVar[NameLookups]] = trio.lowlevel.RunVar("warpgate_trio.forwarding.lookups")


def lookups_of_this_run() -> NameLookups:
    """The lookups of the current Trio run.  All nodes of a run share them, as they share its threads."""
    try:
        return _of_this_run.get()
    except LookupError:
        lookups = NameLookups()
        _of_this_run.set(lookups)
        return lookups
