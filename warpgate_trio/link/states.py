"""Every state of a Link and of a channel, and every transition between them.

Rule 1 (h11's): the tables do not know whether a frame is being sent or received, only *whose* it is.  So the same rules
bind both sides: a wrong frame of ours is a `LocalProtocolError`, a wrong one of the peer's a `RemoteProtocolError`.

Rule 2: each side has two roles that are independent of each other.  The side that dialled the carrier (DIALLER, else
LISTENER) proves its identity; the side that called (INITIATOR, else RESPONDER) commits.  In a reverse connection the
dialler is the responder.

    carrier:  FRESH --PROOF--> PROVEN --COMMIT--> COMMITTED --ACCEPT---> OPEN --GOAWAY--> ENDED
                                  |  \\--ATTACH--> ATTACHING --ATTACHED--/
                                  \\--REFUSE--> ENDED  \\--REFUSE--> ENDED

A Link that outlives its carriers is OPEN, then CLOSING from its own GOAWAY until that is acknowledged, then ENDED; a
GOAWAY of the peer ends it at once.

A channel has two directions, each with a writer and a reader.  A direction ends with a FIN of the writer or a RESET of
either:

    direction:  IDLE --OPEN/COMMIT--> FLOWING --FIN--> FINISHED       (the writer's own end: EOF at the reader)
                                        \\--RESET--> ABANDONED         (by the writer: broken at the reader;
                                                                       by the reader: broken at the writer)
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from ..errors import LocalProtocolError, RemoteProtocolError
from .frames import FrameType

__all__ = ["DirectionState", "LinkState", "Role", "next_direction_state", "next_link_state"]


class Role(Enum):
    """The roles of a side; each side has one of the first two and one of the last two."""

    DIALLER = "dialler"
    LISTENER = "listener"
    INITIATOR = "initiator"
    RESPONDER = "responder"


class LinkState(Enum):
    FRESH = "fresh"
    """Encrypted, but the dialler has not proven its identity."""
    PROVEN = "proven"
    """Both keys are known; several carriers of one session may be in this state."""
    COMMITTED = "committed"
    """The initiator chose this carrier for a new Link and waits for the answer."""
    ATTACHING = "attaching"
    """The initiator offered this carrier to an existing Link and waits for the answer."""
    OPEN = "open"
    """Channels carry data."""
    CLOSING = "closing"
    """Only of a Link that outlives its carriers, never of a carrier: GOAWAY was sent and is not acknowledged yet."""
    ENDED = "ended"
    """Refused, or ended by a GOAWAY of either side."""


_ANY: Final = frozenset(Role)
_DIALLER: Final = frozenset({Role.DIALLER})
_INITIATOR: Final = frozenset({Role.INITIATOR})
_RESPONDER: Final = frozenset({Role.RESPONDER})

_Rule = tuple[frozenset[Role], LinkState]

_LINK: Final[Mapping[LinkState, Mapping[FrameType, _Rule]]] = {
    LinkState.FRESH: {
        FrameType.PROOF: (_DIALLER, LinkState.PROVEN),
    },
    LinkState.PROVEN: {
        FrameType.COMMIT: (_INITIATOR, LinkState.COMMITTED),
        FrameType.ATTACH: (_INITIATOR, LinkState.ATTACHING),
        FrameType.REFUSE: (_RESPONDER, LinkState.ENDED),
        FrameType.PING: (_ANY, LinkState.PROVEN),
        FrameType.PONG: (_ANY, LinkState.PROVEN),
        FrameType.GOAWAY: (_ANY, LinkState.ENDED),
    },
    LinkState.COMMITTED: {
        FrameType.ACCEPT: (_RESPONDER, LinkState.OPEN),
        FrameType.REFUSE: (_RESPONDER, LinkState.ENDED),
        FrameType.DATA: (_INITIATOR, LinkState.COMMITTED),  # early data
        FrameType.PING: (_ANY, LinkState.COMMITTED),
        FrameType.PONG: (_ANY, LinkState.COMMITTED),
        FrameType.GOAWAY: (_ANY, LinkState.ENDED),
    },
    LinkState.ATTACHING: {
        FrameType.ATTACHED: (_RESPONDER, LinkState.OPEN),
        FrameType.REFUSE: (_RESPONDER, LinkState.ENDED),
        FrameType.PING: (_ANY, LinkState.ATTACHING),
        FrameType.PONG: (_ANY, LinkState.ATTACHING),
    },
    LinkState.OPEN: {
        **dict.fromkeys(
            (
                FrameType.ACCEPT,
                FrameType.REFUSE,
                FrameType.OPEN,
                FrameType.DATA,
                FrameType.CREDIT,
                FrameType.FIN,
                FrameType.RESET,
                FrameType.PING,
                FrameType.PONG,
                FrameType.ACK,
                FrameType.AT,
                FrameType.DROP,
                FrameType.NEWS,
            ),
            (_ANY, LinkState.OPEN),
        ),
        FrameType.GOAWAY: (_ANY, LinkState.ENDED),
    },
    LinkState.CLOSING: {},  # no carrier has this state
    LinkState.ENDED: {},
}


class DirectionState(Enum):
    IDLE = "idle"
    """OPEN was sent and is not answered yet: no data may flow.  The opener's own direction skips this state where the
    other side takes early data."""
    FLOWING = "flowing"
    FINISHED = "finished"
    ABANDONED = "abandoned"


_DIRECTION: Final[Mapping[DirectionState, Mapping[FrameType, DirectionState]]] = {
    DirectionState.IDLE: {
        FrameType.ACCEPT: DirectionState.FLOWING,
        FrameType.REFUSE: DirectionState.ABANDONED,
        FrameType.RESET: DirectionState.ABANDONED,
    },
    DirectionState.FLOWING: {
        FrameType.DATA: DirectionState.FLOWING,
        FrameType.CREDIT: DirectionState.FLOWING,
        FrameType.FIN: DirectionState.FINISHED,
        FrameType.REFUSE: DirectionState.ABANDONED,  # early data was sent
        FrameType.RESET: DirectionState.ABANDONED,
    },
    # CREDIT and RESET of the reader may cross the writer's FIN, and both sides' RESETs may cross each other.
    DirectionState.FINISHED: {
        FrameType.CREDIT: DirectionState.FINISHED,
        FrameType.REFUSE: DirectionState.FINISHED,
        FrameType.RESET: DirectionState.FINISHED,
    },
    # Data that the writer sent before it received the reader's RESET may still arrive; it is counted and dropped.
    DirectionState.ABANDONED: {
        FrameType.ACCEPT: DirectionState.ABANDONED,
        FrameType.REFUSE: DirectionState.ABANDONED,
        FrameType.DATA: DirectionState.ABANDONED,
        FrameType.CREDIT: DirectionState.ABANDONED,
        FrameType.FIN: DirectionState.ABANDONED,
        FrameType.RESET: DirectionState.ABANDONED,
    },
}


def next_link_state(state: LinkState, roles: frozenset[Role], kind: FrameType, *, ours: bool) -> LinkState:
    """The state after a frame of the side that has `roles`.

    Raises:
      LocalProtocolError: the table has no such transition, and the frame is `ours`.
      RemoteProtocolError: the table has no such transition, and the frame is the peer's.
    """
    rule = _LINK[state].get(kind)
    if rule is None or not (rule[0] & roles):
        who = "/".join(sorted(role.value for role in roles))
        message = f"{kind.name} by the {who} while the link is {state.value}"
        raise LocalProtocolError(message) if ours else RemoteProtocolError(message)
    return rule[1]


def next_direction_state(state: DirectionState, kind: FrameType, *, ours: bool) -> DirectionState:
    """A direction's state after a frame of its channel; errors as in `next_link_state`."""
    after = _DIRECTION[state].get(kind)
    if after is None:
        message = f"{kind.name} on a channel whose direction is {state.value}"
        raise LocalProtocolError(message) if ours else RemoteProtocolError(message)
    return after
