"""Why a side ends a Link, as its GOAWAY says, and the exception that users of a Pipe at the other side get."""

from __future__ import annotations

from enum import IntEnum

from ..errors import PeerRefused, RemoteProtocolError
from .frames import RefuseReason

__all__ = ["GoAwayCode", "why_ended"]


class GoAwayCode(IntEnum):
    """Why a side ends a Link."""

    CLOSED = 0
    """Its last Pipe was closed there."""
    UNAUTHORIZED = 1
    """The other side is not let in any more."""


def why_ended(code: int) -> Exception:
    """The exception that breaks the Pipes after a GOAWAY of the peer."""
    if code == GoAwayCode.UNAUTHORIZED:
        return PeerRefused(RefuseReason.UNAUTHORIZED, "the peer has revoked this node's access")
    return RemoteProtocolError("the peer ended the link")
