"""The limits of a TURN server, and its counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final, final

from ..limits import Budget

__all__ = ["DEFAULT_LIMITS", "TurnLimits", "TurnQuotas", "TurnStatistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnLimits:
    """What clients and strangers can make the server do and hold.

    Attributes:
      rate: requests per second of one source (IPv4 address or IPv6 /64); each wider network may make four times as many
        as the one within it.  A node that relays a Pipe makes six at first, and then one a minute.
      burst: requests of one source at once; many nodes may be behind one carrier-grade NAT.
      total_rate: unauthenticated requests per second of all sources together, over UDP, where sources can be forged.
      total_burst: such requests of all sources at once.
      sources: sources and networks whose rate is remembered; beyond that the least recently seen one is forgotten.
      allocations: allocations in all, each a socket; one /48 or IPv4 /24 gets half of what is free at most.
      allocations_per_address: allocations of clients at one IPv4 address or IPv6 /64.
      allocations_per_user: allocations of one named user, or of one NAME in credentials of the shared secret;
        credentials without a NAME count by address only.
      permissions: permissions that one allocation may have.
      channels: channels that one allocation may have.
      connections: connections over TCP and TLS.
      connections_per_address: connections from one source.
      handshake: seconds for the TLS handshake.
      silence: seconds without a complete message after which a connection without an allocation is closed.
      queue: bytes that wait for one TCP client that does not read; beyond that datagrams for it are dropped.
      queued: bytes that wait for all TCP clients; one /48 or IPv4 /24 gets half of what is free at most.
      queued_per_address: bytes that wait for TCP clients at one IPv4 address or IPv6 /64.
    """

    rate: float = 50.0
    burst: int = 500
    total_rate: float = 5000.0
    total_burst: int = 10_000
    sources: int = 8192
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
    """Counts of what the server holds now (the first three) and has done so far.

    Attributes:
      answered: requests that succeeded.
      challenged: requests that were answered with 401 or 438.
      refused: requests that were answered with another error.
      limited: requests that exceeded a limit, and got no answer.
      ignored: malformed messages, and others than TURN requests and Send indications.
      relayed: datagrams relayed to peers and to clients.
      relayed_bytes: the bytes in them.
      dropped: datagrams without an allocation, a permission or an open relay, and malformed ones.
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
    """Counts allocations by their client's address and by user."""

    def __init__(self, limits: TurnLimits) -> None:
        self._per_user = limits.allocations_per_user
        self._places = Budget(total=limits.allocations, per_address=limits.allocations_per_address)
        self._accounts: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """The number of allocations."""
        return self._places.held

    def take(self, host: str, account: str) -> bool:
        """Count one more allocation, if a quota does not forbid it; an empty `account` has no quota."""
        if (account and self._accounts[account] >= self._per_user) or not self._places.take(host, 1):
            return False
        if account:
            self._accounts[account] += 1
        return True

    def give_back(self, host: str, account: str) -> None:
        """Count one allocation less."""
        self._places.give_back(host, 1)
        if account:
            self._accounts[account] -= 1
            if not self._accounts[account]:
                del self._accounts[account]
