"""What a pairing needs of a server, whichever kind it is of."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

from ..servers.mailbox_frames import Claim, Claimed, Offer, Offered, Post, Settle

__all__ = ["FromServer", "MailboxChannel", "MailboxServer", "ToServer"]

ToServer: TypeAlias = Offer | Claim | Post | Settle
"""What is said to a server."""
FromServer: TypeAlias = Offered | Claimed | Post | Settle
"""What a server says."""


class MailboxChannel(Protocol):
    """A connection for one offer, or for one claim, under a key that nobody knows.

    What is said on it is `servers.mailbox_frames`'.
    """

    async def send(self, frame: ToServer) -> None:
        """Say something.  Cancelled: the channel may be broken.

        Raises:
          PairingUnavailable: the connection has ended.
        """
        ...

    async def receive(self) -> FromServer:
        """The next that the server says.

        Raises:
          PairingUnavailable: the connection has ended, or what came is none of it.
        """
        ...


class MailboxServer(Protocol):
    """A server that nodes can pair by."""

    @property
    def name(self) -> str:
        """Its URL, without a password."""
        ...

    @property
    def allocates(self) -> bool:
        """Whether it gives the smallest nameplate that is free; else the offerer draws one."""
        ...

    def check(self) -> None:
        """There is reason to doubt its connections, as where the machine has moved: ask now."""
        ...

    def open(self) -> AbstractAsyncContextManager[MailboxChannel]:
        """Connect, for the time of the body.  Each time by the same key, so that an offer can be come back to.

        Raises:
          OSError: it cannot be reached.
          PairingUnavailable: it was reached, and refused us, broke off, or cannot pair.
        """
        ...
