"""Every state of a Link and of a channel, and every transition.  Nothing that changes a state lives anywhere else.

Rule 1 (h11's): the tables do not know whether a frame is being sent or received, only *whose* it is.  So the same rules
bind us and the peer: a wrong frame of ours is a `LocalProtocolError`, a wrong one of theirs a `RemoteProtocolError`.

Rule 2: a party has two roles that are independent of each other.  Who dialled the carrier (DIALLER, else LISTENER)
decides who proves itself; who called (INITIATOR, else RESPONDER) decides who commits.  In a reverse connection they
cross.

    carrier:  FRESH --PROOF--> PROVEN --COMMIT--> COMMITTED --ACCEPT---> OPEN --GOAWAY--> ENDED
                                  |  \\--ATTACH--> ATTACHING --ATTACHED--/
                                  \\--REFUSE--> ENDED  \\--REFUSE--> ENDED

A Link that outlives its carriers is OPEN, then CLOSING from its own GOAWAY until that is acknowledged, then ENDED; a
GOAWAY of the peer's ends it at once.

A channel has two directions; each has a writer's half and a reader's half.  Once the writer has said FIN or the
reader has said RESET there is nothing more to come in that direction:

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
    """What a party is; every party has one of the first two and one of the last two."""

    DIALLER = "dialler"
    LISTENER = "listener"
    INITIATOR = "initiator"
    RESPONDER = "responder"


class LinkState(Enum):
    FRESH = "fresh"
    """Encrypted, but the dialler has not said who it is."""
    PROVEN = "proven"
    """Both keys are known; several carriers of one session may be in this state."""
    COMMITTED = "committed"
    """The initiator chose this carrier for a new Link and waits for the answer."""
    ATTACHING = "attaching"
    """The initiator offered this carrier to a Link that there is and waits for the answer."""
    OPEN = "open"
    """Channels."""
    CLOSING = "closing"
    """Of a Link that outlives its carriers, never of a carrier: GOAWAY was said here, and is not acknowledged."""
    ENDED = "ended"
    """Refused, or somebody went away."""


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
    LinkState.CLOSING: {},  # no carrier is
    LinkState.ENDED: {},
}


class DirectionState(Enum):
    IDLE = "idle"
    """OPEN went out, no answer yet: bytes may not flow.  The opener's own direction skips this where the other side
    takes early data."""
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
        FrameType.REFUSE: DirectionState.ABANDONED,  # of what was early
        FrameType.RESET: DirectionState.ABANDONED,
    },
    # CREDIT and RESET of the reader may cross the writer's FIN, and both sides' RESETs may cross each other.
    DirectionState.FINISHED: {
        FrameType.CREDIT: DirectionState.FINISHED,
        FrameType.REFUSE: DirectionState.FINISHED,
        FrameType.RESET: DirectionState.FINISHED,
    },
    # What the writer sent before it learned of the reader's RESET is still on its way; it is counted and dropped.
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
    """The Link's state after a frame of the party that has `roles`.

    Raises:
      LocalProtocolError, RemoteProtocolError: the table has no such transition; `ours` says whose fault that is.
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
