"""Who stands behind an address, as far as limits are concerned, and how what is scarce is shared among them.

Whoever has one IPv6 address has its whole /64 (RFC 6177), 2**64 addresses to come from, so that is the least that a
limit has to count.  An ordinary home has a /56, 256 of those, and a business a /48: whoever counts /64s alone is
exhausted by one customer.  So what is shared is shared by *tiers*, the /48 first, within it the /56, within that the
/64; of IPv4 the /24, which one customer of a hoster may have, and the address.  An IPv4 address in IPv6 form counts as
what it is.

* `Gate` counts connections.  When it is full, a newcomer takes the place of one of the heaviest: of the /48 that holds
  most, in there of the /56 that holds most, and so on, provided that the newcomer's own prefix stays the lighter one.
  So somebody with a few connections is served while somebody with many of them holds everything.
* `Budget` counts bytes.  Nothing can be taken back there, so nobody gets more than a share of what is still free
  (dynamic thresholds: Choudhury and Hahne, 1998); whoever comes later finds something left.

What is counted for one alone has two simpler means.  A `TokenBucket` bounds how often, `TokenBuckets` has one for each
of many, and a `BoundedMap` bounds of how many anything is remembered.  They know no clock: `now` is in seconds of any
that does not jump.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Final, Generic, TypeVar, final

import trio

from .sockaddr import parse_ip, unmapped

__all__ = [
    "BoundedMap",
    "Budget",
    "Gate",
    "Place",
    "SubscriberRates",
    "TokenBucket",
    "TokenBuckets",
    "prefixes",
    "subscriber",
]

SHARE: Final = 0.5
"""Share of what is free that one /48 or /24 may hold of a `Budget`: alone it gets a third of all, ten of them leave
a sixth."""
WIDER: Final = 4
"""Times as often as one subscriber a network may that has several: of IPv6 a /56, and a /48 as often again."""
_UNNAMED_SHARE: Final = 8  # One in so many places more for connections whose proxy has not yet said who they are of.
_TIERS: Final[dict[int, tuple[int, ...]]] = {4: (3, 4), 6: (6, 7, 8)}  # Bytes of the prefixes, by IP version.


@lru_cache(maxsize=1024)
def subscriber(host: str) -> str:
    """A key for the subscriber that has an address (an IP literal, with or without a scope)."""
    ip = unmapped(parse_ip(host))
    return ip.packed[:8].hex() if ip.version == 6 else str(ip)


@lru_cache(maxsize=1024)
def prefixes(host: str) -> tuple[bytes, ...]:
    """The prefixes that an address is counted under, the shortest first.  No two of different kinds are equal."""
    ip = unmapped(parse_ip(host))
    return tuple(ip.packed[:length] for length in _TIERS[ip.version])


@final
class Place:
    """One place of a `Gate`, for the time of `Gate.admit`.

    Attributes:
      scope: is cancelled when the place goes to somebody else.
    """

    __slots__ = ("_gate", "path", "scope")

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.scope: trio.CancelScope = trio.CancelScope()
        self.path: tuple[bytes, ...] | None = None

    def name(self, host: str) -> bool:
        """Say whose place it is that was given to nobody in particular; False: there is none for that subscriber."""
        self._gate._unnamed.discard(self)
        return self._gate._enter(self, host)


@final
class _Group:
    """A prefix: how many places are held under it, and by which parts of it."""

    __slots__ = ("_by_weight", "_most", "held", "parts", "places")

    def __init__(self) -> None:
        self.held = 0
        self.parts: dict[bytes, _Group] = {}
        self.places: dict[Place, None] = {}  # of the longest prefixes alone; in the order of their coming
        self._by_weight: dict[int, dict[bytes, None]] = {}
        self._most = 0

    def heaviest(self) -> bytes:
        """The part that holds most."""
        return next(iter(self._by_weight[self._most]))

    def reweigh(self, key: bytes, by: int) -> None:
        """A part holds one more, or one less."""
        part = self.parts[key]
        if part.held:
            equals = self._by_weight[part.held]
            del equals[key]
            if not equals:
                del self._by_weight[part.held]
        part.held += by
        if part.held:
            self._by_weight.setdefault(part.held, {})[key] = None
        else:
            del self.parts[key]
        self._most = max(self._most, part.held)
        if self._most not in self._by_weight:
            self._most -= 1  # what held most was this part, and now it holds one less


@final
class Gate:
    """Counts what is under way, in all and per subscriber; see the module's page for who gets in when it is full.

    Args:
      total: places in all.
      per_address: of one IPv4 address or IPv6 /64.
      oldest_first: which one of the heaviest subscriber gives way.  The oldest, where what is honest is over soon; the
        youngest, where what is honest stays.
    """

    def __init__(self, *, total: int, per_address: int, oldest_first: bool = False) -> None:
        self._limit = total
        self._per_address_limit = per_address
        self._oldest_first = oldest_first
        self._all = _Group()
        self._unnamed: set[Place] = set()
        self._unnamed_limit = max(1, total // _UNNAMED_SHARE)

    @property
    def held(self) -> int:
        """Places that are taken, those of nobody in particular included."""
        return self._all.held + len(self._unnamed)

    @contextmanager
    def admit(self, host: str | None) -> Generator[Place | None]:
        """Hold one place for `host` during the body; yields None, and holds none, when there is none.

        The body is cancelled, and left quietly, when its place goes to a lighter subscriber.

        Args:
          host: an IP literal; None: a trusted proxy's connection, whose subscriber `Place.name` tells soon.
        """
        place = Place(self)
        if not (self._enter(place, host) if host is not None else self._enter_unnamed(place)):
            yield None
            return
        try:
            with place.scope:
                yield place
        finally:
            self._leave(place)

    def _enter_unnamed(self, place: Place) -> bool:
        if len(self._unnamed) >= self._unnamed_limit:
            return False
        self._unnamed.add(place)
        return True

    def _enter(self, place: Place, host: str) -> bool:
        path = prefixes(host)
        group: _Group | None = self._all
        for key in path:
            group = group.parts.get(key) if group is not None else None
        if group is not None and group.held >= self._per_address_limit:
            return False
        if self._all.held >= self._limit:
            other = self._who_gives_way(path)
            if other is None:
                return False
            self._leave(other)
            other.scope.cancel()
        place.path = path
        self._count(path, 1)[-1].places[place] = None
        return True

    def _leave(self, place: Place) -> None:
        """Idempotent: who gave way leaves once more."""
        self._unnamed.discard(place)
        path, place.path = place.path, None
        if path is not None:
            del self._count(path, -1)[-1].places[place]

    def _count(self, path: tuple[bytes, ...], by: int) -> list[_Group]:
        groups = [self._all]
        for key in path:
            groups.append(groups[-1].parts.setdefault(key, _Group()))
        self._all.held += by
        for group, key in zip(groups, path, strict=False):
            group.reweigh(key, by)
        return groups

    def _who_gives_way(self, path: tuple[bytes, ...]) -> Place | None:
        """One of the heaviest, or None where the newcomer would be as heavy."""
        group = self._all
        for key in path:
            heaviest = group.heaviest() if group.parts else key
            if heaviest != key:
                own = group.parts.get(key)
                if (own.held if own is not None else 0) + 1 >= group.parts[heaviest].held:
                    return None
                group = group.parts[heaviest]
                while group.parts:
                    group = group.parts[group.heaviest()]
                return next(iter(group.places) if self._oldest_first else reversed(group.places))
            if key not in group.parts:
                return None  # a gate without places
            group = group.parts[key]
        return None  # the newcomer's own subscriber is the heaviest


@final
class Budget:
    """Counts bytes that are held, in all and per subscriber.

    Args:
      total: bytes in all.
      per_address: of one IPv4 address or IPv6 /64.

    Attributes:
      held: bytes that are held now.
    """

    def __init__(self, *, total: int, per_address: int) -> None:
        self._limit = total
        self._per_address_limit = per_address
        self._held: Counter[bytes] = Counter()
        self.held: int = 0

    def take(self, host: str, amount: int) -> bool:
        """Take bytes on behalf of `host`; False, and nothing is taken, where its share or all is used up."""
        path = prefixes(host)
        if self._held[path[-1]] + amount > self._per_address_limit:
            return False
        if self._held[path[0]] + amount > SHARE * (self._limit - self.held):
            return False
        self.held += amount
        self._held.update(dict.fromkeys(path, amount))
        return True

    def give_back(self, host: str, amount: int) -> None:
        """Give back what was taken."""
        self.held -= amount
        for prefix in prefixes(host):
            self._held[prefix] -= amount
            if not self._held[prefix]:
                del self._held[prefix]


@final
class TokenBucket:
    """`burst` at once, `rate` per second after that; it begins full.  A clock that goes back earns nothing."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._tokens = float(burst)
        self._at = math.inf  # nothing is earned before the first use: it is full

    def earn(self, now: float) -> None:
        """Time has gone by."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = now

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Take so many if there are as many, else none."""
        self.earn(now)
        if self._tokens < amount:
            return False
        self._tokens -= amount
        return True

    def spend(self, amount: float) -> None:
        """Take so many though there may be fewer: what is missing has to be earned first."""
        self._tokens -= amount

    def give_back(self, amount: float = 1.0) -> None:
        """What was taken was not used."""
        self._tokens = min(self._burst, self._tokens + amount)

    def seconds_until(self, now: float, amount: float = 1.0) -> float:
        """Seconds until there are so many; 0.0: there are."""
        missing = amount - self._tokens
        return max(0.0, self._at + missing / self._rate - now) if missing > 0 else 0.0

    def is_full(self, now: float) -> bool:
        """Whether it is as good as a new one."""
        self.earn(now)
        return self._tokens >= self._burst


_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


@final
class BoundedMap(Generic[_Key, _Value]):
    """What is remembered of at most `size` keys: one more, and the oldest falls out.

    A key is as old as the last `put` or `use` of it.
    """

    __slots__ = ("_items", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: OrderedDict[_Key, _Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: _Key) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[_Key]:
        """The keys, the oldest first."""
        return iter(self._items)

    def get(self, key: _Key) -> _Value | None:
        """What is remembered, None for nothing; the key stays as old as it is."""
        return self._items.get(key)

    def use(self, key: _Key) -> _Value | None:
        """The same, and the key is the youngest from now on."""
        value = self._items.get(key)
        if value is not None:
            self._items.move_to_end(key)
        return value

    def put(self, key: _Key, value: _Value) -> None:
        """Remember something, in place of what was there; the key is the youngest then."""
        self._items[key] = value
        self._items.move_to_end(key)
        if len(self._items) > self._size:
            self._items.popitem(last=False)

    def pop(self, key: _Key) -> _Value | None:
        """Forget a key; what it had, None for nothing."""
        return self._items.pop(key, None)

    def forget_while(self, is_over: Callable[[_Value], bool]) -> None:
        """Forget the oldest one for as long as it is over."""
        while self._items and is_over(next(iter(self._items.values()))):
            self._items.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        self._items.clear()


@final
class TokenBuckets(Generic[_Key]):
    """A `TokenBucket` for each key, of `size` keys; of a key that was forgotten the bucket is full again."""

    __slots__ = ("_buckets", "_burst", "_rate")

    def __init__(self, rate: float, burst: float, size: int) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: BoundedMap[_Key, TokenBucket] = BoundedMap(size)

    def take(self, key: _Key, now: float) -> bool:
        """Take one of a key's, if there is one."""
        bucket = self._buckets.use(key)
        if bucket is None:
            bucket = TokenBucket(self._rate, self._burst)
            self._buckets.put(key, bucket)
        return bucket.take(now)


@final
class SubscriberRates:
    """How often who stands behind an address may: one address or /64 `burst` times at once and `rate` times a second,
    each wider network that it is in `WIDER` times as often as the one within.

    Args:
      size: prefixes that are counted; of one that was forgotten the bucket is full again.
    """

    __slots__ = ("_buckets", "_burst", "_rate")

    def __init__(self, rate: float, burst: float, size: int) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: BoundedMap[bytes, TokenBucket] = BoundedMap(size)

    def take(self, host: str, now: float) -> bool:
        """Take one of an address (an IP literal), if there is one of it and of each network around it.

        The widest is asked first: of a network that has no more, none of its many addresses is remembered.
        """
        taken: list[TokenBucket] = []
        path = prefixes(host)
        for wider, prefix in zip(reversed(range(len(path))), path, strict=True):
            bucket = self._buckets.use(prefix)
            if bucket is None:
                bucket = TokenBucket(self._rate * WIDER**wider, self._burst * WIDER**wider)
                self._buckets.put(prefix, bucket)
            if not bucket.take(now):
                for each in taken:
                    each.give_back()
                return False
            taken.append(bucket)
        return True
