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
    """Reply to a message that was stamped outside our window: this is what our clock says.

    Attributes:
      time_ms: Unix milliseconds on the sender's clock.
    """

    NAME: ClassVar[str | None] = "Clock"
    time_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_MS)]


@final
class Cancel(Message, frozen=True):
    """The session is over for its sender, or the attempt that the header names: the receiver ends its part."""


class RefusalReason(enum.StrEnum):
    """Why a peer does not take part.  A reason that this release does not know reads as `OTHER`."""

    NOT_AUTHORIZED = "not_authorized"
    NOT_ACCEPTING = "not_accepting"  # nobody listens on this node, or it is closing
    BUSY = "busy"  # later it may be possible: see `Refused.retry_after`
    UNSUPPORTED = "unsupported"  # the plugin is not loaded there, or does not know this version of the message
    OTHER = "other"

    @classmethod
    def _missing_(cls, value: object) -> RefusalReason:
        return cls.OTHER


@final
class Refused(Message, frozen=True):
    """The peer got the request, and will not do it.

    Attributes:
      reason: why.
      retry_after: seconds after which to ask again; None: do not.
    """

    reason: RefusalReason
    retry_after: Annotated[float, msgspec.Meta(ge=0.0, le=3600.0)] | None = None


@final
class Failed(Message, frozen=True):
    """The peer tried, and it did not work out.  No detail: it would describe the peer's network to whoever asks."""


@final
class Here(Message, frozen=True):
    """To whoever has our own key: the instance that the sender's address names is there, and listens."""


@final
class AddressUpdate(Message, frozen=True):
    """Whoever has a Link with the sender learns where that is: every message has the sender's address.

    Said by who was not asked anything by signal, having been dialled at once.
    """


CORE_MESSAGES: dict[str, type[Message]] = {
    wire_name(OWNER, message): message for message in (ClockReply, Cancel, Refused, Failed, Here, AddressUpdate)
}
"""Wire name -> type."""
