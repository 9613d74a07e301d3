"""The interface that pairing needs of a server, of whichever kind."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

from ..servers.mailbox_frames import Claim, Claimed, Offer, Offered, Post, Settle

__all__ = ["FromServer", "MailboxChannel", "MailboxServer", "ToServer"]

ToServer: TypeAlias = Offer | Claim | Post | Settle
"""Frames to a server."""
FromServer: TypeAlias = Offered | Claimed | Post | Settle
"""Frames from a server."""


class MailboxChannel(Protocol):
    """A connection for one offer, or for one claim, which does not show the node's own key.

    `servers.mailbox_frames` has the frames.
    """

    async def send(self, frame: ToServer) -> None:
        """Send a frame.  Cancelled: the channel may be broken.

        Raises:
          PairingUnavailable: the connection has ended.
        """
        ...

    async def receive(self) -> FromServer:
        """The next frame from the server.

        Raises:
          PairingUnavailable: the connection has ended, or the server sent something else.
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
        """Whether the server gives the smallest free nameplate; otherwise the offerer draws one."""
        ...

    def check(self) -> None:
        """Check its connections now, because there is reason to doubt them: the host may have changed its network."""
        ...

    def open(self) -> AbstractAsyncContextManager[MailboxChannel]:
        """Connect, for the time of the body.  An offer can be resumed by the next connection.

        Raises:
          OSError: the server cannot be reached.
          PairingUnavailable: it was reached, but refused us, closed the connection, or cannot pair.
        """
        ...
