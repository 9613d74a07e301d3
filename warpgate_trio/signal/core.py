"""The messages that every node understands, whatever plugins it has."""

from __future__ import annotations

import enum
from typing import Annotated, ClassVar, final

import msgspec

from .message import MAX_TIME_MS, Message, wire_name

__all__ = [
    "CORE_MESSAGES",
    "OWNER",
    "AddressUpdate",
    "Cancel",
    "ClockReply",
    "Failed",
    "Here",
    "RefusalReason",
    "Refused",
]

OWNER = "core"
"""The part before the dot in the wire names of these messages; no plugin may have it for a name."""


@final
class ClockReply(Message, frozen=True):
    """Reply to a message whose stamp was outside our window: the time on our clock.

    Attributes:
      time_ms: Unix milliseconds on the clock of the reply's sender.
    """

    NAME: ClassVar[str | None] = "Clock"
    time_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_MS)]


@final
class Cancel(Message, frozen=True):
    """The sender has ended the session, or the attempt that the header names; the receiver ends its side of it."""


class RefusalReason(enum.StrEnum):
    """Why a peer refuses a request.  A reason that this release does not know reads as `OTHER`."""

    NOT_AUTHORIZED = "not_authorized"
    NOT_ACCEPTING = "not_accepting"  # the node does not listen, or is closing
    BUSY = "busy"  # it may be possible later: see `Refused.retry_after`
    UNSUPPORTED = "unsupported"  # the plugin is not loaded there, or does not know this version of the message
    OTHER = "other"

    @classmethod
    def _missing_(cls, value: object) -> RefusalReason:
        return cls.OTHER


@final
class Refused(Message, frozen=True):
    """The peer has received the request and refuses it.

    Attributes:
      reason: why.
      retry_after: seconds after which to ask again; None: do not ask again.
    """

    reason: RefusalReason
    retry_after: Annotated[float, msgspec.Meta(ge=0.0, le=3600.0)] | None = None


@final
class Failed(Message, frozen=True):
    """The peer tried, and failed.  It gives no detail, which would describe its network to anybody who asks."""


@final
class Here(Message, frozen=True):
    """To all processes of our own key: the instance that the sender's address names is there and listens."""


@final
class AddressUpdate(Message, frozen=True):
    """Tells a peer that has a Link with the sender the sender's present address, which every message carries.

    A node sends it to a peer that has dialled it directly, without exchanging signals first.
    """


CORE_MESSAGES: dict[str, type[Message]] = {
    wire_name(OWNER, message): message for message in (ClockReply, Cancel, Refused, Failed, Here, AddressUpdate)
}
"""Wire name -> type."""
