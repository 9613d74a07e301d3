"""What a TURN server lets clients and strangers do, and what it counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final, final

from ..limits import Budget

__all__ = ["DEFAULT_LIMITS", "TurnLimits", "TurnQuotas", "TurnStatistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnLimits:
    """What clients, and strangers, can make the server do and hold.

    Attributes:
      rate: requests per second of one source (IPv4 address or IPv6 /64); a node that relays a Pipe makes six, and one a
        minute then.
      burst: requests of one source at once: many nodes may sit behind one carrier-grade NAT.
      total_rate: requests per second without credentials of all sources together, over UDP, where sources are forged.
      total_burst: such requests of all sources at once.
      sources: sources whose rate is remembered; beyond, the longest silent one is forgotten.
      allocations: relayed addresses in all, each a socket; one /48 or IPv4 /24 gets half of what is free at most.
      allocations_per_address: of these, of clients at one IPv4 address or IPv6 /64.
      allocations_per_user: of these, of one user: a name, or the name that credentials of the shared secret are for;
        those without a name count by address alone.
      permissions: addresses of peers that one allocation may have.
      channels: channels that one allocation may have.
      connections: connections over TCP and TLS.
      connections_per_address: of these, from one source.
      handshake: seconds for TLS's handshake.
      silence: seconds without a byte after which a connection without an allocation is closed.
      queue: bytes that wait for a client over TCP that does not read; what comes from peers meanwhile is dropped.
      queued: bytes that wait for all of them; one /48 or IPv4 /24 gets half of what is free at most.
      queued_per_address: bytes of these, for clients at one IPv4 address or IPv6 /64.
    """

    rate: float = 50.0
    burst: int = 500
    total_rate: float = 5000.0
    total_burst: int = 10_000
    sources: int = 4096
    allocations: int = 2048
    allocations_per_address: int = 128
    allocations_per_user: int = 256
    permissions: int = 64
    channels: int = 64
    connections: int = 2048
    connections_per_address: int = 128
    handshake: float = 10.0
    silence: float = 60.0
    queue: int = 256 * 1024
    queued: int = 64 * 1024 * 1024
    queued_per_address: int = 8 * 1024 * 1024


DEFAULT_LIMITS: Final = TurnLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnStatistics:
    """What the server holds now (first three), and has done so far.

    Attributes:
      answered: requests that succeeded.
      refused: requests that got an error, challenges and stale nonces apart.
      relayed: datagrams to peers and to clients.
      relayed_bytes: what was in them.
      dropped: datagrams that nobody may send, or that nobody is there for.
    """

    allocations: int
    permissions: int
    channels: int
    answered: int
    challenged: int
    refused: int
    limited: int
    ignored: int
    relayed: int
    relayed_bytes: int
    dropped: int


@final
class TurnQuotas:
    """Counts allocations, by the address of their client and by user."""

    def __init__(self, limits: TurnLimits) -> None:
        self._per_user = limits.allocations_per_user
        self._places = Budget(total=limits.allocations, per_address=limits.allocations_per_address)
        self._accounts: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """Allocations that are there."""
        return self._places.held

    def take(self, host: str, account: str) -> bool:
        """Count one more, if there may be; an empty `account` is nobody's."""
        if (account and self._accounts[account] >= self._per_user) or not self._places.take(host, 1):
            return False
        if account:
            self._accounts[account] += 1
        return True

    def give_back(self, host: str, account: str) -> None:
        """Count one less."""
        self._places.give_back(host, 1)
        if account:
            self._accounts[account] -= 1
            if not self._accounts[account]:
                del self._accounts[account]
