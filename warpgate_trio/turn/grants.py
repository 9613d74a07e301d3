"""What a TURN client wants of its allocation, and what of it was given: permissions and channels.  Pure.

A permission (RFC 8656 §9) lets all ports of an address in; a channel (§12) is for one port, and carries a permission.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, final

from ..errors import StunError
from ..sockaddr import TransportAddress
from .framing import CHANNELS

__all__ = ["MAX_GRANTS", "RENEWAL", "Grant", "Grants"]

RENEWAL: Final = 240.0
"""Seconds from a permission or a channel to its renewal: a permission lasts 300 (RFC 8656 §9), so a request that is
lost, and repeated for half a minute, does no harm."""
MAX_GRANTS: Final = 64
"""Permissions, and as many channels, of one allocation: a peer has a handful of addresses."""


@final
class Grant:
    """A permission or a channel that is wanted; whoever asks for it changes it.

    Attributes:
      peer: the peer's address; a permission is for all ports, and its own is 0.
      channel: the channel's number; None for a permission.
      granted: the server has said yes.
      error: why it said no.
      renew_at: when it is to be asked for again.
    """

    def __init__(self, peer: TransportAddress, channel: int | None) -> None:
        self.peer: Final = peer
        self.channel: Final = channel
        self.granted: bool = False
        self.error: StunError | None = None
        self.renew_at: float = math.inf

    @property
    def settled(self) -> bool:
        """Whether the server has said yes or no."""
        return self.granted or self.error is not None

    def give(self, now: float) -> None:
        """The server has said yes."""
        self.granted = True
        self.renew_at = now + RENEWAL

    def refuse(self, error: StunError) -> None:
        """The server has said no, or is gone; the first reason stays."""
        self.granted = False
        self.error = self.error or error
        self.renew_at = math.inf


@final
class Grants:
    """All of one allocation, in the order in which they were wanted."""

    def __init__(self) -> None:
        self._permissions: dict[str, Grant] = {}
        self._channels: dict[TransportAddress, Grant] = {}
        self._peers: dict[int, TransportAddress] = {}

    def __iter__(self) -> Iterator[Grant]:
        yield from self._permissions.values()
        yield from self._channels.values()

    def permission(self, ip: str) -> Grant:
        """That of an address; a new one where there is none.  Raises ValueError beyond `MAX_GRANTS`."""
        if ip not in self._permissions:
            self._check_room(self._permissions)
            self._permissions[ip] = Grant((ip, 0), None)
        return self._permissions[ip]

    def channel(self, peer: TransportAddress) -> Grant:
        """The same for a channel."""
        if peer not in self._channels:
            self._check_room(self._channels)
            number = CHANNELS[len(self._channels)]  # never another peer's: a number is not used twice (§12)
            self._channels[peer] = Grant(peer, number)
            self._peers[number] = peer
        return self._channels[peer]

    def _check_room(self, table: dict[str, Grant] | dict[TransportAddress, Grant]) -> None:
        if len(table) >= MAX_GRANTS:
            raise ValueError(f"one allocation has at most {MAX_GRANTS} permissions, and as many channels")

    def peer_of(self, channel: int) -> TransportAddress | None:
        """Whose channel it is."""
        return self._peers.get(channel)

    def channel_to(self, peer: TransportAddress) -> int | None:
        """The number of the channel to a peer, from the moment on at which it is wanted."""
        found = self._channels.get(peer)
        return found.channel if found is not None and found.error is None else None

    def lets_in(self, ip: str) -> bool:
        """Whether an address was let in, or is about to be."""
        return ip in self._permissions or any(peer[0] == ip for peer in self._channels)

    def lets_out(self, ip: str) -> bool:
        """Whether the server has said that it sends to an address."""
        permission = self._permissions.get(ip)
        return (permission is not None and permission.granted) or any(
            grant.granted for peer, grant in self._channels.items() if peer[0] == ip
        )
