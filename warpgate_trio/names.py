"""The addresses of servers' names: looked up side by side, within bounds, and remembered.

Theory of operation.  `getaddrinfo` runs in a thread that nothing can cancel, and a resolver that does not answer keeps
it for as long as the C library has patience: five seconds, or half a minute.  So a lookup is not its asker's but a task
of `Names`, which waits for its thread to the end.  That bounds the threads exactly: one for a family of a name at a
time, however many ask for it, and `MAX_LOOKUPS` in all.  Askers wait for as long as they like.

What was found is remembered (`NameCache`, which does no I/O).  For `FRESH` seconds it is taken as it is.  After that
it is still used at once, while a new lookup is under way behind it, and when that fails or hangs, for `MAX_AGE`: a
server rarely moves, and a resolver often fails.  So a name costs its asker time only where nothing is known of it; and
who asks for several names together gets those that are known without waiting for the others for longer than `settle`.

The names of servers that may be needed when there is no time, and perhaps no resolver, are looked up ahead, and again
now and then (`Names.keep_fresh`).

A lookup asks for each address family by itself, since there are resolvers that never answer about one of them; when one
has come, the other gets `FAMILY_DELAY` more, and is added whenever it comes.  All addresses are kept, in the resolver's
order: which of them is alive, only who talks to them can tell.
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
"""Threads that look up names at a time: a node names about eight servers, with two families each, and Trio has 40
threads."""
FAMILY_DELAY: Final = 0.05
"""Seconds for the other family when one has come: the Resolution Delay of RFC 8305 §3."""
STAGGER: Final = 0.25
"""Seconds from one address to the next, the Connection Attempt Delay of RFC 8305 §5; none after a failure."""
MAX_NAMES: Final = 64
"""Names that are remembered; the one that was asked for longest ago gives way."""
MAX_ADDRESSES: Final = 8
"""Addresses of one family kept of a name: pools tell four."""
FRESH: Final = 30.0
"""Seconds for which an answer is taken without asking again: the time to live of names that are meant to move."""
MAX_AGE: Final = 86400.0
"""Seconds for which an answer is used while no newer one is to be had: resolvers are out for minutes, seldom for a day
(RFC 8767 §5 says one to three days)."""
RETRY: Final = 1.0
"""Seconds after a failure in which a name is not looked up again: RFC 2308 §7 lets a failure be kept for five minutes,
but a node that has just woken up waits for its network."""
KEPT_FRESH: Final = 300.0
"""Seconds from one lookup of a name that is kept to the next.  `getaddrinfo` does not tell how long an answer is good.
Names that are meant to move say half a minute to five minutes, so that what is known is seldom older than it may be;
and the resolver hears of each name twelve times an hour from a node that is idle."""
KEEP_RETRY: Final = 5.0
"""Seconds from a lookup of these that has failed to the next, at first; they double up to `KEPT_FRESH`."""
SETTLE: Final = 0.2
"""Seconds that further names are waited for where one is known: several times what a resolver nearby takes."""
SLOW: Final = 1.0
"""Seconds under way from which a lookup is said to have failed, in reports: what is slower than that spoils a punch."""


# --- What is remembered, without I/O ----------------------------------------------------------------------------------


@final
@dataclass(slots=True)
class _Entry:
    addresses: tuple[str, ...] = ()
    found_at: float = -math.inf
    failed_at: float = -math.inf
    failure: str | None = None  # of the last lookup


@final
class NameCache:
    """What lookups have told, and when; times in seconds of any clock that does not jump."""

    def __init__(self) -> None:
        self._entries: BoundedMap[str, _Entry] = BoundedMap(MAX_NAMES)

    def found(self, name: str, addresses: Sequence[str], now: float) -> None:
        """A lookup has told all addresses of a name; those of an earlier one are forgotten."""
        entry = self._entry(name)
        kept: list[str] = []
        for each in addresses:
            if sum(family_of(other) == family_of(each) for other in kept) < MAX_ADDRESSES:
                kept.append(each)
        entry.addresses, entry.found_at, entry.failure = tuple(kept), now, None

    def failed(self, name: str, why: str, now: float) -> None:
        """A lookup has failed; what an earlier one has told stays."""
        entry = self._entry(name)
        entry.failed_at, entry.failure = now, why

    def addresses(self, name: str, now: float) -> tuple[str, ...]:
        """What is known of a name and not too old; empty for nothing."""
        entry = self._entries.get(name)
        return entry.addresses if entry is not None and now - entry.found_at <= MAX_AGE else ()

    def is_due(self, name: str, now: float) -> bool:
        """Whether it is time to look a name up (again)."""
        entry = self._entries.get(name)
        return entry is None or (now - entry.found_at > FRESH and now - entry.failed_at >= RETRY)

    def failure(self, name: str) -> str | None:
        """Why the last lookup failed; None where it did not, or there was none."""
        entry = self._entries.get(name)
        return None if entry is None else entry.failure

    def _entry(self, name: str) -> _Entry:
        entry = self._entries.use(name)
        if entry is None:
            entry = _Entry()
            self._entries.put(name, entry)
        return entry


def in_turn(groups: Iterable[Sequence[TransportAddress]]) -> list[TransportAddress]:
    """The first of each group, then the second of each, and so on; each once."""
    lists = [list(group) for group in groups]
    longest = max(map(len, lists), default=0)
    return list(dict.fromkeys(group[at] for at in range(longest) for group in lists if at < len(group)))


# --- Looking up -------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NameFailure:
    """A name that cannot be resolved now.

    Attributes:
      why: in the resolver's words.
      remembered: whether an earlier answer is used meanwhile.
    """

    why: str
    remembered: bool


def describe_failures(failures: Mapping[str, NameFailure]) -> list[str]:
    """Sentences for reports: which names, and why."""
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
    """One that is under way; `first`: nothing was known of the name when it began, so until it is over what is known
    may be half of its answer."""

    began: float
    first: bool
    over: trio.Event = field(default_factory=trio.Event)


@final
class Names:
    """See the module's page.  The owner of all lookups of a node, which last no longer than `running`."""

    def __init__(self) -> None:
        self._cache = NameCache()
        self._lookups: dict[str, _Lookup] = {}
        self._room = trio.CapacityLimiter(MAX_LOOKUPS)
        self._nursery: trio.Nursery | None = None
        self._moved = trio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Names are looked up within the block.  At its end lookups are let go; a thread ends when its system call
        does."""
        async with open_background_nursery() as nursery:
            self._nursery = nursery
            try:
                yield
            finally:
                self._nursery = None

    async def look_up(
        self, names: Iterable[str], *, timeout: float, settle: float = SETTLE, fresh: bool = False
    ) -> dict[str, tuple[str, ...]]:
        """The addresses of names, all of them side by side; an IP address is its own.  One of which none is known is
        left out: `failures` says why.

        Args:
          timeout: seconds after which it returns with what there is.
          settle: the same from when one of the names is known; no time at all where that is an earlier answer.
          fresh: wait for new lookups, and take earlier answers only where they do not come.
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
                # From when it was begun, so that one that hangs delays nobody but its first asker.
                begun = max(lookup.began for _, lookup in waiting)
                scope.deadline = min(scope.deadline, begun + settle)
            async with trio.open_nursery() as nursery:
                for name, lookup in waiting:
                    nursery.start_soon(wait, name, lookup)
        return self._known(wanted)

    async def keep_fresh(self, names: Iterable[str]) -> None:
        """Have names known that will be needed, until cancelled: look them up now, and again from time to time."""
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
        """The machine has moved: names that are kept are looked up now, which may lead elsewhere in this network."""
        self._moved.set()
        self._moved = trio.Event()

    async def open_tcp_stream(self, host: str, port: int) -> trio.SocketStream:
        """As `trio.open_tcp_stream` does it (RFC 8305), by the addresses that `look_up` tells; the caller bounds the
        time.

        Raises:
          OSError: none of them can be connected to, with each reason in the group that is its cause; as a
            `socket.gaierror`, that there is none.
        """
        addresses = (await self.look_up([host], timeout=math.inf)).get(host, ())
        if not addresses:
            failure = self.failures([host]).get(host)
            raise trio.socket.gaierror(trio.socket.EAI_AGAIN, "no address" if failure is None else failure.why)
        return await open_first_tcp_stream(_alternating(addresses), port, host=host)

    def failures(self, names: Iterable[str]) -> dict[str, NameFailure]:
        """Those of these names whose last lookup has failed, or is slow, and why.  Looks nothing up."""
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
        """The lookup of a name that is under way, or a new one."""
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
            except Exception as error:  # OSError, and what Python's IDNA makes of a strange name
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
    """The resolver's first one, then one of the other family, and so on (RFC 8305 §4)."""
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
    """Connect to the first of some IP addresses that answers; the others are let go.  The caller bounds the time.

    Args:
      addresses: in the order in which they are tried.
      host: what they are the addresses of, for the error.

    Raises:
      OSError: none of them can be connected to, with each reason in the group that is its cause.
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
        for stream in streams:  # a dead heat, or a cancellation in the moment of success
            stream.socket.close()


async def connect_tcp(address: str, port: int) -> trio.SocketStream:
    """Connect to one IP address.  Raises OSError.

    `trio.open_tcp_stream` looks addresses up as names: for that Python imports tables of characters.
    """
    sock = trio.socket.socket(socket_family(address))
    try:
        await sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)
