"""Why a walk gave no Pipe: the one verdict, and what this side was without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..link import RefuseReason
from ..report import Known, Verdict
from ..signal import Delivery, RefusalReason
from .planned_walk import PlannedWalk
from .session import Session

__all__ = ["decide_verdict", "take_stock"]


def take_stock(session: Session, planned: PlannedWalk) -> tuple[set[Known], list[str]]:
    """What this side was without, for the advice and in sentences; what the walk had no use for is not missed."""
    here = planned.here()
    punches = any(phase in ("punch", "spray") for phase in planned.phases)
    known: set[Known] = set()
    lacks: list[str] = []
    if session.refusal is not None:  # it was reached with what there is
        return ({Known.TAKEN} if session.refusal.reason == RefuseReason.TAKEN else known), lacks
    if not here.signal:
        known.add(Known.NO_SIGNAL_HERE)
    if (session.signalled or punches) and not here.signal:
        lacks.append("no signal server is configured here")
    elif session.signalled and here.silent:
        lacks.append(f"no signal server is connected: {'; '.join(here.silent)}")
    if punches and not here.stun:
        known.add(Known.NO_STUN_HERE)
        lacks.append("no STUN server is configured here: no way through a NAT is known")
    if punches and not session.peer.nat_profiles:
        known.add(Known.NO_STUN_THERE)
    return known, lacks


_BY_REFUSAL: Final[Mapping[int, Verdict]] = {
    RefuseReason.UNAUTHORIZED: Verdict.REFUSED,
    RefuseReason.NOT_ACCEPTING: Verdict.NOT_ACCEPTING,
    RefuseReason.BUSY: Verdict.BUSY,
    RefuseReason.TAKEN: Verdict.BUSY,
    RefuseReason.UNSUPPORTED: Verdict.UNSUPPORTED,
}


def decide_verdict(session: Session, planned: PlannedWalk, *, timed_out: bool) -> Verdict:
    """The one reason that explains most: what the peer itself said, then what was seen, then what was missing."""
    if session.refusal is not None:
        return _BY_REFUSAL.get(session.refusal.reason, Verdict.NOT_ACCEPTING)
    if not planned.combos:
        return Verdict.NOTHING_TO_TRY
    if timed_out:
        return Verdict.TIMED_OUT
    if session.broke_off or session.spent:
        return Verdict.BROKE_OFF
    if session.wrong_peer:
        return Verdict.WRONG_PEER
    if session.clock_corrected and not session.answered:
        return Verdict.CLOCK_OFF  # it told us its time, we went by that, and it heard no more of us
    if session.turned_down is not None:
        return Verdict.BUSY if session.turned_down is RefusalReason.BUSY else Verdict.UNSUPPORTED
    unresolved = planned.unresolved()
    if session.answered and unresolved.no_stun:
        return Verdict.NO_DNS  # nothing could be punched
    if session.answered:
        return Verdict.NO_RELAY_CONFIGURED if not planned.has_relay else Verdict.UNREACHABLE
    if session.best_delivery is None and session.signalled and unresolved.no_signal:
        return Verdict.NO_DNS
    if session.best_delivery is None:
        return Verdict.NO_SIGNAL if session.signalled else Verdict.UNREACHABLE
    return Verdict.PEER_OFFLINE if session.best_delivery <= Delivery.NOBODY_HOME else Verdict.PEER_SILENT
