"""Who stands behind an address, as far as limits are concerned: one subscriber, who has it or all of its neighbours.

Whoever has one IPv6 address has its whole /64 (RFC 6177), 2**64 addresses to come from, so that is what a limit has to
count.  An IPv4 address in IPv6 form counts as what it is.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import final

__all__ = ["Gate", "subscriber"]


@lru_cache(maxsize=1024)
def subscriber(host: str) -> str:
    """A key for the subscriber that has an address (an IP literal, with or without a scope)."""
    ip = ip_address(host.partition("%")[0])
    if isinstance(ip, IPv6Address):
        mapped = ip.ipv4_mapped
        return str(mapped) if mapped is not None else ip.packed[:8].hex()
    return str(ip)


@final
class Gate:
    """Counts what is under way, in all and per subscriber.

    Attributes:
      held: in all.
    """

    def __init__(self, *, total: int, per_address: int) -> None:
        self._limit = total
        self._per_address_limit = per_address
        self._per_address: dict[str, int] = {}
        self.held: int = 0

    @contextmanager
    def admit(self, host: str) -> Generator[bool]:
        """Hold one place for `host` during the body; yields False, and holds none, when there is none."""
        key = subscriber(host)
        of_host = self._per_address.get(key, 0)
        if self.held >= self._limit or of_host >= self._per_address_limit:
            yield False
            return
        self.held += 1
        self._per_address[key] = of_host + 1
        try:
            yield True
        finally:
            self.held -= 1
            self._per_address[key] -= 1
            if not self._per_address[key]:
                del self._per_address[key]
