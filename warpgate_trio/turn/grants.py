"""The permissions and channels that a TURN client requests for its allocation, and which were granted.  Pure.

A permission (RFC 8656 §9) covers all ports of an IP address.  A channel (§12) is bound to one port, and installs a
permission.
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
"""Seconds after which a permission or a channel is renewed.  A permission lasts 300 (RFC 8656 §9), so there is time
for half a minute of retransmissions."""
MAX_GRANTS: Final = 64
"""Permissions, and as many channels, of one allocation; a peer has a handful of addresses."""


@final
class Grant:
    """A requested permission or channel.

    Attributes:
      peer: the peer's address; its port is 0 for a permission, which covers all ports.
      channel: the channel's number; None for a permission.
      granted: the server has granted it.
      error: why it was refused; None if it was not.
      renew_at: when it is to be requested again.
    """

    def __init__(self, peer: TransportAddress, channel: int | None) -> None:
        self.peer: Final = peer
        self.channel: Final = channel
        self.granted: bool = False
        self.error: StunError | None = None
        self.renew_at: float = math.inf

    @property
    def settled(self) -> bool:
        """Whether the server has granted or refused it."""
        return self.granted or self.error is not None

    def give(self, now: float) -> None:
        """The server has granted it."""
        self.granted = True
        self.renew_at = now + RENEWAL

    def refuse(self, error: StunError) -> None:
        """The server has refused it, or the client has failed; the first reason is kept."""
        self.granted = False
        self.error = self.error or error
        self.renew_at = math.inf


@final
class Grants:
    """All permissions and channels of one allocation; iterates over the permissions, then the channels."""

    def __init__(self) -> None:
        self._permissions: dict[str, Grant] = {}
        self._channels: dict[TransportAddress, Grant] = {}
        self._peers: dict[int, TransportAddress] = {}

    def __iter__(self) -> Iterator[Grant]:
        yield from self._permissions.values()
        yield from self._channels.values()

    def permission(self, ip: str) -> Grant:
        """The permission for an IP address, created on demand.  Raises ValueError beyond `MAX_GRANTS`."""
        if ip not in self._permissions:
            self._check_room(self._permissions)
            self._permissions[ip] = Grant((ip, 0), None)
        return self._permissions[ip]

    def channel(self, peer: TransportAddress) -> Grant:
        """The channel to a peer, created on demand.  Raises ValueError beyond `MAX_GRANTS`."""
        if peer not in self._channels:
            self._check_room(self._channels)
            number = CHANNELS[len(self._channels)]  # a number is never given to another peer (§12)
            self._channels[peer] = Grant(peer, number)
            self._peers[number] = peer
        return self._channels[peer]

    def _check_room(self, table: dict[str, Grant] | dict[TransportAddress, Grant]) -> None:
        if len(table) >= MAX_GRANTS:
            raise ValueError(f"one allocation has at most {MAX_GRANTS} permissions, and as many channels")

    def peer_of(self, channel: int) -> TransportAddress | None:
        """The peer of a channel number; None where there is no such channel."""
        return self._peers.get(channel)

    def channel_to(self, peer: TransportAddress) -> int | None:
        """The number of the channel to a peer, usable as soon as it was requested; None if none was, or it failed."""
        found = self._channels.get(peer)
        return found.channel if found is not None and found.error is None else None

    def lets_in(self, ip: str) -> bool:
        """Whether a permission or channel was requested for an IP address, granted or not."""
        return ip in self._permissions or any(peer[0] == ip for peer in self._channels)

    def lets_out(self, ip: str) -> bool:
        """Whether the server has granted a permission or channel for an IP address."""
        permission = self._permissions.get(ip)
        return (permission is not None and permission.granted) or any(
            grant.granted for peer, grant in self._channels.items() if peer[0] == ip
        )
