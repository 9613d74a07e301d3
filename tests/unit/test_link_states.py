"""The state tables: each combination of state, role and frame is in the table, or an error of the frame's sender."""

from __future__ import annotations

from itertools import product

import pytest

from warpgate_trio.errors import LocalProtocolError, RemoteProtocolError
from warpgate_trio.link.frames import FrameType
from warpgate_trio.link.states import DirectionState, LinkState, Role, next_direction_state, next_link_state

F, L, D = FrameType, LinkState, DirectionState
DIALLER, LISTENER, INITIATOR, RESPONDER = Role.DIALLER, Role.LISTENER, Role.INITIATOR, Role.RESPONDER

PARTIES = [frozenset(pair) for pair in product((DIALLER, LISTENER), (INITIATOR, RESPONDER))]

# Written out again, not imported: state, frame, its sender, next state.
LINK: list[tuple[LinkState, FrameType, Role | None, LinkState]] = [
    (L.FRESH, F.PROOF, DIALLER, L.PROVEN),
    (L.PROVEN, F.COMMIT, INITIATOR, L.COMMITTED),
    (L.PROVEN, F.REFUSE, RESPONDER, L.ENDED),
    (L.PROVEN, F.PING, None, L.PROVEN),
    (L.PROVEN, F.PONG, None, L.PROVEN),
    (L.PROVEN, F.GOAWAY, None, L.ENDED),
    (L.COMMITTED, F.ACCEPT, RESPONDER, L.OPEN),
    (L.COMMITTED, F.REFUSE, RESPONDER, L.ENDED),
    (L.COMMITTED, F.DATA, INITIATOR, L.COMMITTED),
    (L.COMMITTED, F.PING, None, L.COMMITTED),
    (L.COMMITTED, F.PONG, None, L.COMMITTED),
    (L.COMMITTED, F.GOAWAY, None, L.ENDED),
    (L.OPEN, F.ACCEPT, None, L.OPEN),
    (L.OPEN, F.ACK, None, L.OPEN),
    (L.OPEN, F.AT, None, L.OPEN),
    (L.OPEN, F.DROP, None, L.OPEN),
    (L.OPEN, F.NEWS, None, L.OPEN),
    (L.PROVEN, F.ATTACH, INITIATOR, L.ATTACHING),
    (L.ATTACHING, F.ATTACHED, RESPONDER, L.OPEN),
    (L.ATTACHING, F.REFUSE, RESPONDER, L.ENDED),
    (L.ATTACHING, F.PING, None, L.ATTACHING),
    (L.ATTACHING, F.PONG, None, L.ATTACHING),
    (L.OPEN, F.REFUSE, None, L.OPEN),
    (L.OPEN, F.OPEN, None, L.OPEN),
    (L.OPEN, F.DATA, None, L.OPEN),
    (L.OPEN, F.CREDIT, None, L.OPEN),
    (L.OPEN, F.FIN, None, L.OPEN),
    (L.OPEN, F.RESET, None, L.OPEN),
    (L.OPEN, F.PING, None, L.OPEN),
    (L.OPEN, F.PONG, None, L.OPEN),
    (L.OPEN, F.GOAWAY, None, L.ENDED),
]
DIRECTION: list[tuple[DirectionState, FrameType, DirectionState]] = [
    (D.IDLE, F.ACCEPT, D.FLOWING),
    (D.IDLE, F.REFUSE, D.ABANDONED),
    (D.IDLE, F.RESET, D.ABANDONED),
    (D.FLOWING, F.DATA, D.FLOWING),
    (D.FLOWING, F.CREDIT, D.FLOWING),
    (D.FLOWING, F.FIN, D.FINISHED),
    (D.FLOWING, F.REFUSE, D.ABANDONED),
    (D.FLOWING, F.RESET, D.ABANDONED),
    (D.FINISHED, F.CREDIT, D.FINISHED),
    (D.FINISHED, F.REFUSE, D.FINISHED),
    (D.FINISHED, F.RESET, D.FINISHED),
    *((D.ABANDONED, kind, D.ABANDONED) for kind in (F.ACCEPT, F.REFUSE, F.DATA, F.CREDIT, F.FIN, F.RESET)),
]


@pytest.mark.parametrize("state", LinkState)
@pytest.mark.parametrize("kind", FrameType)
@pytest.mark.parametrize("party", PARTIES, ids=lambda party: "-".join(sorted(role.value for role in party)))
@pytest.mark.parametrize("ours", [True, False])
def test_link_table(state: LinkState, kind: FrameType, party: frozenset[Role], ours: bool) -> None:
    rule = next(((who, after) for at, what, who, after in LINK if (at, what) == (state, kind)), None)
    if rule is not None and (rule[0] is None or rule[0] in party):
        assert next_link_state(state, party, kind, ours=ours) is rule[1]
        return
    with pytest.raises(LocalProtocolError if ours else RemoteProtocolError) as caught:
        next_link_state(state, party, kind, ours=ours)
    roles = "/".join(sorted(role.value for role in party))
    assert str(caught.value) == f"{kind.name} by the {roles} while the link is {state.value}"


@pytest.mark.parametrize("state", DirectionState)
@pytest.mark.parametrize("kind", FrameType)
@pytest.mark.parametrize("ours", [True, False])
def test_direction_table(state: DirectionState, kind: FrameType, ours: bool) -> None:
    after = next((to for at, what, to in DIRECTION if (at, what) == (state, kind)), None)
    if after is not None:
        assert next_direction_state(state, kind, ours=ours) is after
        return
    with pytest.raises(LocalProtocolError if ours else RemoteProtocolError) as caught:
        next_direction_state(state, kind, ours=ours)
    assert str(caught.value) == f"{kind.name} on a channel whose direction is {state.value}"


def test_a_dialler_whose_role_in_the_session_is_not_known_may_prove_itself_and_no_more() -> None:
    party = frozenset({DIALLER})
    assert next_link_state(L.FRESH, party, F.PROOF, ours=False) is L.PROVEN
    with pytest.raises(RemoteProtocolError, match="COMMIT by the dialler"):
        next_link_state(L.PROVEN, party, F.COMMIT, ours=False)


def test_the_end_is_final() -> None:
    for kind, party in product(FrameType, PARTIES):
        with pytest.raises(LocalProtocolError):
            next_link_state(L.ENDED, party, kind, ours=True)
