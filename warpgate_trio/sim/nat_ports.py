"""How NATs choose outside ports (RFC 4787, section 4.2; RFC 7857, section 9).

An `Allocation` is the configuration; its `start` makes the state that one NAT keeps, a `PortSource`.  A source yields
candidates, possibly without end, and the NAT takes the first one that is free.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Final, Protocol, final

from .addr import Endpoint
from .short_repr import ShortRepr

ALL: Final = (1024, 65535)
PortRange = tuple[int, int]
"""First and last port."""

_RANDOM_TRIES: Final = 128  # as in nf_nat_l4proto_unique_tuple; then one after another


class PortSource(Protocol):
    """Yields the candidate ports of one NAT, best first."""

    def candidates(self, inside: Endpoint, remote: Endpoint) -> Iterator[int]:
        """Ports to try for a new mapping."""
        ...


class Allocation(Protocol):
    """A way to choose ports."""

    def start(self, random: Random) -> PortSource:
        """Make the state for one NAT, which draws from `random`."""
        ...


def _check(ports: PortRange) -> None:
    if not 0 < ports[0] <= ports[1] <= 65535:
        raise ValueError(f"a range of ports is (first, last) within 1 to 65535, not {ports}")


def _around(start: int, ports: PortRange) -> Iterator[int]:
    """All ports of a range, from `start` to its end and then from its beginning."""
    first, last = ports
    yield from range(start, last + 1)
    yield from range(first, start)


@final
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Uniform(ShortRepr):
    """A uniformly drawn port of a range; with `parity`, preferably of the parity of the inside port."""

    ports: PortRange = ALL
    parity: bool = False  # RFC 4787, section 4.2.2: even stays even

    def __post_init__(self) -> None:
        _check(self.ports)

    def start(self, random: Random) -> PortSource:
        return _UniformSource(self, random)


@final
class _UniformSource:
    def __init__(self, config: Uniform, random: Random) -> None:
        self._config = config
        self._random = random

    def candidates(self, inside: Endpoint, remote: Endpoint) -> Iterator[int]:
        first, last = self._config.ports
        draw = self._random.randint
        if self._config.parity:
            want = inside[1] % 2
            yield from (p for _ in range(_RANDOM_TRIES) if (p := draw(first, last)) % 2 == want)
            yield from (p for p in _around(draw(first, last), (first, last)) if p % 2 == want)
        for _ in range(_RANDOM_TRIES):
            yield draw(first, last)
        yield from _around(draw(first, last), (first, last))


@final
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Preserve(ShortRepr):
    """The inside port, if it is free and in the range; otherwise a port by the allocation `otherwise`."""

    otherwise: Allocation = field(default_factory=Uniform)
    ports: PortRange = (1, 65535)

    def __post_init__(self) -> None:
        _check(self.ports)

    def start(self, random: Random) -> PortSource:
        return _PreserveSource(self, self.otherwise.start(random))


@final
class _PreserveSource:
    def __init__(self, config: Preserve, otherwise: PortSource) -> None:
        self._config = config
        self._otherwise = otherwise

    def candidates(self, inside: Endpoint, remote: Endpoint) -> Iterator[int]:
        if self._config.ports[0] <= inside[1] <= self._config.ports[1]:
            yield inside[1]
        yield from self._otherwise.candidates(inside, remote)


@final
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Sequential(ShortRepr):
    """The last port plus `delta`; with one counter for all, or with `per_host` one for each inside host."""

    delta: int = 1
    ports: PortRange = ALL
    per_host: bool = False

    def __post_init__(self) -> None:
        _check(self.ports)
        if self.delta == 0:
            raise ValueError("a sequence of ports needs a step that is not 0")

    def start(self, random: Random) -> PortSource:
        return _SequentialSource(self, random)


@final
class _SequentialSource:
    def __init__(self, config: Sequential, random: Random) -> None:
        self._config = config
        self._random = random
        self._next: dict[str, int] = {}

    def candidates(self, inside: Endpoint, remote: Endpoint) -> Iterator[int]:
        first, last = self._config.ports
        size = last - first + 1
        whose = inside[0] if self._config.per_host else ""
        if whose not in self._next:
            self._next[whose] = self._random.randrange(size)
        for _ in range(size):
            offset = self._next[whose]
            self._next[whose] = (offset + self._config.delta) % size
            yield first + offset
        yield from _around(first, (first, last))  # a delta that shares a factor with the size misses some


@final
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Block(ShortRepr):
    """Each inside host has a block of `size` ports (RFC 7422); the port in it is drawn, or `sequential`."""

    size: int = 1024
    ports: PortRange = ALL
    sequential: bool = False

    def __post_init__(self) -> None:
        _check(self.ports)
        if not 1 <= self.size <= self.ports[1] - self.ports[0] + 1:
            raise ValueError(f"a block of {self.size} ports does not fit into {self.ports}")

    def start(self, random: Random) -> PortSource:
        return _BlockSource(self, random)


@final
class _BlockSource:
    def __init__(self, config: Block, random: Random) -> None:
        self._config = config
        self._random = random
        count = (config.ports[1] - config.ports[0] + 1) // config.size
        self._free = list(range(count))
        random.shuffle(self._free)
        self._sources: dict[str, PortSource] = {}

    def candidates(self, inside: Endpoint, remote: Endpoint) -> Iterator[int]:
        source = self._sources.get(inside[0])
        if source is None:
            if not self._free:
                return iter(())
            first = self._config.ports[0] + self._free.pop() * self._config.size
            block = (first, first + self._config.size - 1)
            way = Sequential(ports=block) if self._config.sequential else Uniform(ports=block)
            source = self._sources[inside[0]] = way.start(self._random)
        return source.candidates(inside, remote)


@final
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Hash(ShortRepr):
    """A port derived from a hash of the inside endpoint, and with `remote` of the remote one; then those after it."""

    ports: PortRange = ALL
    remote: bool = False

    def __post_init__(self) -> None:
        _check(self.ports)

    def start(self, random: Random) -> PortSource:
        return _HashSource(self, random.getrandbits(32))


@final
class _HashSource:
    def __init__(self, config: Hash, key: int) -> None:
        self._config = config
        self._key = key

    def candidates(self, inside: Endpoint, remote: Endpoint) -> Iterator[int]:
        first, last = self._config.ports
        what = (self._key, inside, remote if self._config.remote else None)
        start = first + zlib.crc32(repr(what).encode()) % (last - first + 1)
        return _around(start, self._config.ports)


def take(source: PortSource, inside: Endpoint, remote: Endpoint, limit: int) -> Iterator[int]:
    """At most `limit` candidates."""
    return islice(source.candidates(inside, remote), limit)
