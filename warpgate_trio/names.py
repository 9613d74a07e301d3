"""Resolves the host names of servers: concurrently, within bounds, and with a cache.

Theory of operation.  `getaddrinfo` runs in a thread, which cannot be cancelled.  If a resolver does not answer, the
thread lasts until the C library gives up: five seconds, or half a minute.  So a lookup is a task of `Names`, not of its
caller, and waits for its thread to the end.  That bounds the threads exactly: one at a time for each family of a name,
however many callers ask for it, and `MAX_LOOKUPS` in all.  Callers wait as long as they like.

Results are cached (`NameCache`, which does no I/O).  For `FRESH` seconds a result is used as it is.  After that it is
still used at once, while a new lookup runs in the background.  If that fails or hangs, the old result is used for up to
`MAX_AGE`, since servers rarely move and resolvers often fail.  So a caller waits only for names of which nothing is
known.  A caller that asks for several names gets the known ones without waiting longer than `settle` for the others.

Some servers may be needed when there is no time, and perhaps no resolver.  Their names are looked up in advance, and
regularly again (`Names.keep_fresh`).

A lookup queries each address family separately, since some resolvers never answer for one of them.  When one family's
answer has arrived, the other has `FAMILY_DELAY` more; a later answer is still added.  All addresses are kept, in the
resolver's order, since only a connection shows which of them work.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, final

import trio

from .limits import BoundedMap
from .nurseries import open_background_nursery
from .sockaddr import TransportAddress, family_of, socket_family

__all__ = [
    "FAMILY_DELAY",
    "FRESH",
    "KEEP_RETRY",
    "KEPT_FRESH",
    "MAX_ADDRESSES",
    "MAX_AGE",
    "MAX_LOOKUPS",
    "MAX_NAMES",
    "RETRY",
    "SETTLE",
    "SLOW",
    "NameCache",
    "NameFailure",
    "Names",
    "connect_tcp",
    "describe_failures",
    "in_turn",
    "open_first_tcp_stream",
]

logger: logging.Logger = logging.getLogger(__name__)

MAX_LOOKUPS: Final = 16
"""Concurrent threads for lookups: a node names about eight servers, with two families each, and Trio has 40 threads."""
FAMILY_DELAY: Final = 0.05
"""Seconds to wait for the other family when one has arrived: the Resolution Delay of RFC 8305 §3."""
STAGGER: Final = 0.25
"""Seconds from one address to the next, the Connection Attempt Delay of RFC 8305 §5; none after a failure."""
MAX_NAMES: Final = 64
"""Names in the cache; the one whose last lookup ended longest ago is dropped."""
MAX_ADDRESSES: Final = 8
"""Addresses of one family that are kept for a name: pools return four."""
FRESH: Final = 30.0
"""Seconds for which a result is used without a new lookup: the TTL of names that are meant to move."""
MAX_AGE: Final = 86400.0
"""Seconds for which a result is used while there is no newer one: resolvers fail for minutes, seldom for a day (RFC
8767 §5 says one to three days)."""
RETRY: Final = 1.0
"""Seconds after a failure in which a name is not looked up again: RFC 2308 §7 allows a failure to be cached for five
minutes, but a host that has just woken up may still be waiting for its network."""
KEPT_FRESH: Final = 300.0
"""Seconds between lookups of a name that is kept fresh.  `getaddrinfo` does not return the TTL.  Names that are meant
to move have one of half a minute to five minutes, so cached results are seldom outdated, and an idle node queries the
resolver twelve times an hour for each name."""
KEEP_RETRY: Final = 5.0
"""Seconds after a failed lookup of such a name until the next one, at first; they double up to `KEPT_FRESH`."""
SETTLE: Final = 0.2
"""Seconds to wait for further names where one is known: several times what a nearby resolver takes."""
SLOW: Final = 1.0
"""Seconds after which a lookup that is still under way counts as failed in reports: a slower one spoils a punch."""


# --- The cache, without I/O -------------------------------------------------------------------------------------------


@final
@dataclass(slots=True)
class _Entry:
    addresses: tuple[str, ...] = ()
    found_at: float = -math.inf
    failed_at: float = -math.inf
    failure: str | None = None  # of the last lookup


@final
class NameCache:
    """The results of lookups; times are in seconds of any clock that does not jump."""

    def __init__(self) -> None:
        self._entries: BoundedMap[str, _Entry] = BoundedMap(MAX_NAMES)

    def found(self, name: str, addresses: Sequence[str], now: float) -> None:
        """Store the addresses that a lookup found, in place of earlier ones."""
        entry = self._entry(name)
        kept: list[str] = []
        for each in addresses:
            if sum(family_of(other) == family_of(each) for other in kept) < MAX_ADDRESSES:
                kept.append(each)
        entry.addresses, entry.found_at, entry.failure = tuple(kept), now, None

    def failed(self, name: str, why: str, now: float) -> None:
        """Store that a lookup has failed; the addresses of an earlier one are kept."""
        entry = self._entry(name)
        entry.failed_at, entry.failure = now, why

    def addresses(self, name: str, now: float) -> tuple[str, ...]:
        """The addresses of a name that are not older than `MAX_AGE`; empty where there are none."""
        entry = self._entries.get(name)
        return entry.addresses if entry is not None and now - entry.found_at <= MAX_AGE else ()

    def is_due(self, name: str, now: float) -> bool:
        """Whether a name should be looked up now."""
        entry = self._entries.get(name)
        return entry is None or (now - entry.found_at > FRESH and now - entry.failed_at >= RETRY)

    def failure(self, name: str) -> str | None:
        """Why the last lookup failed; None where it succeeded, or there was none."""
        entry = self._entries.get(name)
        return None if entry is None else entry.failure

    def _entry(self, name: str) -> _Entry:
        entry = self._entries.use(name)
        if entry is None:
            entry = _Entry()
            self._entries.put(name, entry)
        return entry


def in_turn(groups: Iterable[Sequence[TransportAddress]]) -> list[TransportAddress]:
    """Interleave groups: the first of each, then the second of each, and so on, without duplicates."""
    lists = [list(group) for group in groups]
    longest = max(map(len, lists), default=0)
    return list(dict.fromkeys(group[at] for at in range(longest) for group in lists if at < len(group)))


# --- Looking up -------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NameFailure:
    """A name that cannot be resolved now.

    Attributes:
      why: the resolver's message.
      remembered: whether earlier addresses are used meanwhile.
    """

    why: str
    remembered: bool


def describe_failures(failures: Mapping[str, NameFailure]) -> list[str]:
    """Describe failures in sentences for reports: which names failed, and why."""
    said: list[str] = []
    for remembered in (False, True):
        names = [name for name, failure in failures.items() if failure.remembered is remembered]
        if names:
            shown = ", ".join([*names[:_SHOWN], *(["…"] if len(names) > _SHOWN else [])])
            why = failures[names[0]].why.removeprefix("the name cannot be resolved: ")
            rest = "; the addresses that they had before are used" if remembered else ""
            said.append(f"DNS does not resolve {shown}: {why}{rest}")
    return said


_SHOWN: Final = 4


@final
@dataclass(slots=True)
class _Lookup:
    """A lookup under way.

    Attributes:
      first: no address of the name was known when it began, so until it is over one family's may be missing.
    """

    began: float
    first: bool
    over: trio.Event = field(default_factory=trio.Event)


@final
class Names:
    """See the module's docstring.  It owns all lookups of a node, which last no longer than `running`."""

    def __init__(self) -> None:
        self._cache = NameCache()
        self._lookups: dict[str, _Lookup] = {}
        self._room = trio.CapacityLimiter(MAX_LOOKUPS)
        self._nursery: trio.Nursery | None = None
        self._moved = trio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """The scope of all lookups.  At its end they are abandoned; a thread ends when its system call does."""
        async with open_background_nursery() as nursery:
            self._nursery = nursery
            try:
                yield
            finally:
                self._nursery = None

    async def look_up(
        self, names: Iterable[str], *, timeout: float, settle: float = SETTLE, fresh: bool = False
    ) -> dict[str, tuple[str, ...]]:
        """The addresses of names, which are looked up concurrently.  The address of an IP literal is itself.

        A name without a known address is left out; `failures` says why.

        Args:
          timeout: seconds after which the addresses known by then are returned.
          settle: seconds to wait for further names once one is known, counted from the beginning of their lookups where
            one was known before.
          fresh: wait for new lookups, and use earlier addresses only where these fail.
        """
        await trio.lowlevel.checkpoint()
        wanted = tuple(dict.fromkeys(names))
        now = trio.current_time()
        waiting: list[tuple[str, _Lookup]] = []
        for name in wanted:
            under_way = self._lookups.get(name)
            halved = under_way is not None and under_way.first
            if _is_address(name) or not (fresh or halved or self._cache.is_due(name, now)):
                continue
            lookup = self._begin(name, now)
            if fresh or halved or not self._cache.addresses(name, now):
                waiting.append((name, lookup))
        with trio.CancelScope(deadline=now + timeout) as scope:

            async def wait(name: str, lookup: _Lookup) -> None:
                await lookup.over.wait()
                if self._cache.failure(name) is None:
                    scope.deadline = min(scope.deadline, trio.current_time() + settle)

            if not fresh and waiting and self._known(wanted):
                # Counted from the beginning of the lookup, so that one that hangs delays only its first caller.
                begun = max(lookup.began for _, lookup in waiting)
                scope.deadline = min(scope.deadline, begun + settle)
            async with trio.open_nursery() as nursery:
                for name, lookup in waiting:
                    nursery.start_soon(wait, name, lookup)
        return self._known(wanted)

    async def keep_fresh(self, names: Iterable[str]) -> None:
        """Keep names in the cache until cancelled: look them up now, and regularly again."""
        await trio.lowlevel.checkpoint()
        kept = [name for name in dict.fromkeys(names) if not _is_address(name)]
        pause = KEEP_RETRY
        while kept:
            due = [name for name in kept if self._cache.is_due(name, trio.current_time())]
            await self.look_up(due, timeout=KEEP_RETRY, settle=KEEP_RETRY, fresh=True)
            pause = min(2 * pause, KEPT_FRESH) if self.failures(kept) else KEPT_FRESH
            with trio.move_on_after(pause):
                await self._moved.wait()

    def refresh(self) -> None:
        """Look up the names of `keep_fresh` now, as the host has moved, and its new network may resolve differently."""
        self._moved.set()
        self._moved = trio.Event()

    async def open_tcp_stream(self, host: str, port: int) -> trio.SocketStream:
        """Connect as `trio.open_tcp_stream` does (RFC 8305), to the addresses of `look_up`; the caller bounds the time.

        Raises:
          OSError: no address can be connected to; the cause is a group with each reason.
          socket.gaierror: there is no address.
        """
        addresses = (await self.look_up([host], timeout=math.inf)).get(host, ())
        if not addresses:
            failure = self.failures([host]).get(host)
            raise trio.socket.gaierror(trio.socket.EAI_AGAIN, "no address" if failure is None else failure.why)
        return await open_first_tcp_stream(_alternating(addresses), port, host=host)

    def failures(self, names: Iterable[str]) -> dict[str, NameFailure]:
        """The names whose last lookup has failed, or is slow, with the reason.  Looks nothing up."""
        now = trio.current_time()
        found: dict[str, NameFailure] = {}
        for name in dict.fromkeys(names):
            lookup = self._lookups.get(name)
            why = self._cache.failure(name)
            if lookup is not None and not lookup.over.is_set() and now - lookup.began >= SLOW:
                why = f"no answer within {now - lookup.began:.0f} s"
            if why is not None:
                found[name] = NameFailure(why=why, remembered=bool(self._cache.addresses(name, now)))
        return found

    def _known(self, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        now = trio.current_time()
        known = {name: (name,) if _is_address(name) else self._cache.addresses(name, now) for name in names}
        return {name: addresses for name, addresses in known.items() if addresses}

    def _begin(self, name: str, now: float) -> _Lookup:
        """Return the lookup of a name that is under way, or begin one."""
        lookup = self._lookups.get(name)
        if lookup is None:
            lookup = _Lookup(now, first=not self._cache.addresses(name, now))
            if self._nursery is None:
                self._cache.failed(name, "the node has ended", now)
                lookup.over.set()
            else:
                self._lookups[name] = lookup
                self._nursery.start_soon(self._run, name, lookup)
        return lookup

    async def _run(self, name: str, lookup: _Lookup) -> None:
        told: dict[int, list[str]] = {}
        failures: dict[int, str] = {}
        first, both = trio.Event(), trio.Event()

        async def ask(family: int) -> None:
            try:
                async with self._room:
                    found = await trio.socket.getaddrinfo(name, 0, family=family, type=trio.socket.SOCK_DGRAM)
                told[family] = [str(sockaddr[0]).partition("%")[0] for _, _, _, _, sockaddr in found]
            except Exception as error:  # OSError, and the errors of Python's IDNA codec
                why = error.strerror if isinstance(error, OSError) else None
                failures[family] = why or str(error) or type(error).__name__
            addresses = [address for each in _FAMILIES for address in told.get(each, ())]
            if told.get(family):
                self._cache.found(name, list(dict.fromkeys(addresses)), trio.current_time())
            if len(told) + len(failures) == len(_FAMILIES):
                both.set()
            if addresses or both.is_set():
                first.set()

        try:
            async with trio.open_nursery() as nursery:
                for family in _FAMILIES:
                    nursery.start_soon(ask, family)
                await first.wait()
                with trio.move_on_after(FAMILY_DELAY):
                    await both.wait()
                if not any(told.values()):
                    why = next((failures[each] for each in reversed(_FAMILIES) if each in failures), "no address")
                    self._cache.failed(name, why, trio.current_time())
                    logger.debug("%s cannot be resolved: %s", name, why)
                lookup.over.set()
        finally:
            del self._lookups[name]
            lookup.over.set()


def _alternating(addresses: Sequence[str]) -> list[str]:
    """Alternate the families, beginning with that of the resolver's first address (RFC 8305 §4)."""
    first = family_of(addresses[0])
    groups = ([(each, 0) for each in addresses if (family_of(each) == first) is which] for which in (True, False))
    return [address for address, _ in in_turn(groups)]


_FAMILIES: Final = (trio.socket.AF_INET6, trio.socket.AF_INET)  # RFC 8305 prefers the first


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


async def open_first_tcp_stream(addresses: Iterable[str], port: int, *, host: str) -> trio.SocketStream:
    """Connect to the first of some IP addresses that answers, and abandon the others.  The caller bounds the time.

    Args:
      addresses: in the order in which they are tried.
      host: the name that they are the addresses of, for the error message.

    Raises:
      OSError: no address can be connected to; the cause is a group with each reason.
    """
    streams: list[trio.SocketStream] = []
    errors: list[BaseException] = []

    async def attempt(address: str, failed: trio.Event) -> None:
        try:
            streams.append(await connect_tcp(address, port))
        except OSError as error:
            errors.append(error)
            failed.set()
        else:
            nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed)
                with trio.move_on_after(STAGGER):
                    await failed.wait()
        if not streams:
            raise OSError(f"all attempts to connect to {host}:{port} failed") from BaseExceptionGroup("", errors)
        return streams.pop(0)
    finally:
        for stream in streams:  # a dead heat, or a cancellation at the moment of success
            stream.socket.close()


async def connect_tcp(address: str, port: int) -> trio.SocketStream:
    """Connect to one IP address; OSError where that fails.

    `trio.open_tcp_stream` looks addresses up as names, for which Python imports tables of characters.
    """
    sock = trio.socket.socket(socket_family(address))
    try:
        await sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)
