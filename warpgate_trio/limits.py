"""Limits by subscriber: which addresses count as one subscriber, and how scarce resources are shared among them.

A subscriber with one IPv6 address has its whole /64 (RFC 6177) of 2**64 addresses, so a limit has to count at least
/64s.  An ordinary home has a /56, with 256 of these, and a business a /48: a limit that counts only /64s is exhausted
by one customer.  So resources are shared by *tiers*: first by /48, within it by /56, within that by /64; with IPv4 by
/24, which one customer of a hoster may have, and by address.  An IPv4-mapped IPv6 address counts as the IPv4 address.

* `Gate` counts connections.  When it is full, a newcomer takes a place of the heaviest holder: of the /48 that holds
  most, within it of the /56 that holds most, and so on, provided that the newcomer's own prefix stays the lighter one.
  So a subscriber with few connections is served though another one holds all the places.
* `Budget` counts bytes.  They cannot be taken back, so a /48 gets only a share of what is still free (dynamic
  thresholds: Choudhury and Hahne, 1998), a /56 only as much as its /48 has left of that, and something is left for
  those that come later.
* `SubscriberRates` bounds rates: each network may do a multiple of what the next smaller one within it may.

There are simpler means for single counts.  A `TokenBucket` bounds a rate, `TokenBuckets` has one for each of many keys,
and a `BoundedMap` bounds how many keys are remembered.  They have no clock: `now` is in seconds of any clock that does
not jump.
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
a sixth.  A /56 may hold what its /48 has left: alone it gets a fifth of all, and the next one a twelfth."""
WIDER: Final = 4
"""Factor between the rates of a network and of the next smaller one within it: a /56 may do four times what a /64 may,
and a /48 four times what a /56 may."""
_UNNAMED_SHARE: Final = 8  # 1/8 more places, for connections whose proxy has not named the subscriber yet.
_TIERS: Final[dict[int, tuple[int, ...]]] = {4: (3, 4), 6: (6, 7, 8)}  # Prefix lengths in bytes, by IP version.


@lru_cache(maxsize=1024)
def subscriber(host: str) -> str:
    """A key for the subscriber of an address (an IP literal, with or without a scope)."""
    ip = unmapped(parse_ip(host))
    return ip.packed[:8].hex() if ip.version == 6 else str(ip)


@lru_cache(maxsize=1024)
def prefixes(host: str) -> tuple[bytes, ...]:
    """The prefixes that an address is counted under, the shortest first.  Those of different tiers are never equal."""
    ip = unmapped(parse_ip(host))
    return tuple(ip.packed[:length] for length in _TIERS[ip.version])


@final
class Place:
    """One place of a `Gate`, held during `Gate.admit`.

    Attributes:
      scope: cancelled when the place is given to another subscriber.
    """

    __slots__ = ("_gate", "path", "scope")

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.scope: trio.CancelScope = trio.CancelScope()
        self.path: tuple[bytes, ...] | None = None

    def name(self, host: str) -> bool:
        """Name the subscriber of a place that was taken without one; False where there is no place for it."""
        self._gate._unnamed.discard(self)
        return self._gate._enter(self, host)


@final
class _Group:
    """A prefix: how many places are held under it, and by which longer prefixes."""

    __slots__ = ("_by_weight", "_most", "held", "parts", "places")

    def __init__(self) -> None:
        self.held = 0
        self.parts: dict[bytes, _Group] = {}
        self.places: dict[Place, None] = {}  # only of the longest prefixes; in the order of arrival
        self._by_weight: dict[int, dict[bytes, None]] = {}
        self._most = 0

    def heaviest(self) -> bytes:
        """The part that holds most places."""
        return next(iter(self._by_weight[self._most]))

    def reweigh(self, key: bytes, by: int) -> None:
        """Note that a part holds one more (`by` is 1) or one less (-1)."""
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
            self._most -= 1  # this part held most, and now it holds one less


@final
class Gate:
    """Bounds connections, in all and per subscriber; the module's docstring says which one gives way when it is full.

    Args:
      total: places in all.
      per_address: places of one IPv4 address or IPv6 /64.
      oldest_first: whether the heaviest subscriber loses its oldest or its youngest connection.  The oldest is right
        where honest connections are short, the youngest where they are long.
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
        """Places that are taken, those without a named subscriber included."""
        return self._all.held + len(self._unnamed)

    @contextmanager
    def admit(self, host: str | None) -> Generator[Place | None]:
        """Hold one place for `host` during the body; yields None where there is none.

        When the place is given to a lighter subscriber, the body is cancelled and left without an exception.

        Args:
          host: an IP literal; None for a connection of a trusted proxy, whose subscriber `Place.name` tells later.
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
        """Free a place.  Idempotent, since a place that gave way is left a second time."""
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
        """A place of the heaviest holder; None where the newcomer would be as heavy."""
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
    """Bounds bytes that are held, in all and per subscriber.

    Args:
      total: bytes in all.
      per_address: bytes of one IPv4 address or IPv6 /64.

    Attributes:
      held: bytes that are held now.
    """

    def __init__(self, *, total: int, per_address: int) -> None:
        self._limit = total
        self._per_address_limit = per_address
        self._held: Counter[bytes] = Counter()
        self.held: int = 0

    def take(self, host: str, amount: int) -> bool:
        """Take bytes on behalf of `host`; where its share or the total is used up, take nothing and return False."""
        path = prefixes(host)
        network, *parts, address = path
        if self._held[address] + amount > self._per_address_limit:
            return False
        left = SHARE * (self._limit - self.held) - self._held[network]
        if amount > left or any(self._held[part] + amount > left for part in parts):
            return False
        self.held += amount
        self._held.update(dict.fromkeys(path, amount))
        return True

    def give_back(self, host: str, amount: int) -> None:
        """Return bytes that were taken."""
        self.held -= amount
        for prefix in prefixes(host):
            self._held[prefix] -= amount
            if not self._held[prefix]:
                del self._held[prefix]


@final
class TokenBucket:
    """A token bucket: `burst` at once, `rate` per second after that.  It begins full.  A clock that goes back adds
    nothing.
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._tokens = float(burst)
        self._at = math.inf  # nothing is added before the first use, as it is full

    def earn(self, now: float) -> None:
        """Add the tokens of the time that has passed."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = now

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Take `amount` tokens if there are as many; else take none and return False."""
        self.earn(now)
        if self._tokens < amount:
            return False
        self._tokens -= amount
        return True

    def spend(self, amount: float) -> None:
        """Take `amount` tokens even if there are fewer; the debt has to be refilled first."""
        self._tokens -= amount

    def give_back(self, amount: float = 1.0) -> None:
        """Return tokens that were not used."""
        self._tokens = min(self._burst, self._tokens + amount)

    def seconds_until(self, now: float, amount: float = 1.0) -> float:
        """Seconds until there are `amount` tokens; 0.0 where there are."""
        missing = amount - self._tokens
        return max(0.0, self._at + missing / self._rate - now) if missing > 0 else 0.0

    def is_full(self, now: float) -> bool:
        """Whether it has its whole burst."""
        self.earn(now)
        return self._tokens >= self._burst


_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


@final
class BoundedMap(Generic[_Key, _Value]):
    """A mapping of at most `size` keys; with one more, the oldest is dropped.

    The age of a key counts from its last `put` or `use`.
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
        """The value of a key, or None; the key's age does not change."""
        return self._items.get(key)

    def use(self, key: _Key) -> _Value | None:
        """The value of a key, or None; the key becomes the youngest."""
        value = self._items.get(key)
        if value is not None:
            self._items.move_to_end(key)
        return value

    def put(self, key: _Key, value: _Value) -> None:
        """Set the value of a key, which becomes the youngest."""
        self._items[key] = value
        self._items.move_to_end(key)
        if len(self._items) > self._size:
            self._items.popitem(last=False)

    def pop(self, key: _Key) -> _Value | None:
        """Remove a key and return its value, or None."""
        return self._items.pop(key, None)

    def forget_while(self, is_over: Callable[[_Value], bool]) -> None:
        """Remove the oldest key as long as `is_over` is true for its value."""
        while self._items and is_over(next(iter(self._items.values()))):
            self._items.popitem(last=False)

    def clear(self) -> None:
        """Remove all keys."""
        self._items.clear()


@final
class TokenBuckets(Generic[_Key]):
    """A `TokenBucket` for each of at most `size` keys; the bucket of a key that was dropped is full again."""

    __slots__ = ("_buckets", "_burst", "_rate")

    def __init__(self, rate: float, burst: float, size: int) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: BoundedMap[_Key, TokenBucket] = BoundedMap(size)

    def take(self, key: _Key, now: float) -> bool:
        """Take one token of a key; False where there is none."""
        bucket = self._buckets.use(key)
        if bucket is None:
            bucket = TokenBucket(self._rate, self._burst)
            self._buckets.put(key, bucket)
        return bucket.take(now)


@final
class SubscriberRates:
    """Bounds the rate of each subscriber: `burst` at once and `rate` a second for an IPv4 address or /64, and `WIDER`
    times as much for each wider network as for the next smaller one.

    Args:
      size: the number of prefixes that are counted; the bucket of one that was dropped is full again.
    """

    __slots__ = ("_buckets", "_burst", "_rate")

    def __init__(self, rate: float, burst: float, size: int) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: BoundedMap[bytes, TokenBucket] = BoundedMap(size)

    def take(self, host: str, now: float) -> bool:
        """Take one token of an address (an IP literal) and of each network around it; False where one has none.

        The widest network is checked first.  Once it has no tokens, its many addresses do not take up memory.
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
