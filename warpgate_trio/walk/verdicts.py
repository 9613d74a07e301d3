"""Why a walk gave no Pipe: the verdict, and what this side lacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, final

from ..address.nat_profile import UNKNOWN, NatProfiles, describe
from ..link import RefuseReason
from ..names import NameFailure
from ..punch.outlook import is_unforeseeable
from ..report import Known, Verdict
from ..signal import RefusalReason
from ..sockaddr import FAMILIES
from .session import Session

__all__ = ["ThisSide", "Unresolved", "decide_verdict", "describe_nats", "find_barriers", "take_stock"]

NOTHING_KNOWN: Final = NatProfiles()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Unresolved:
    """The part of DNS in a walk's failure.

    Attributes:
      names: host names of servers that cannot be resolved now.
      no_signal: signal servers are configured, and none of their names can be resolved.
      no_stun: STUN servers are configured, and none of their names can be resolved or has a remembered address.
    """

    names: Mapping[str, NameFailure] = field(default_factory=dict)
    no_signal: bool = False
    no_stun: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ThisSide:
    """What this side has for walks.

    Attributes:
      signal, stun: whether servers of this kind are configured.
      silent: where no signal server is connected, each of them with the reason.
    """

    signal: bool = True
    stun: bool = True
    silent: Sequence[str] = ()


def find_barriers(session: Session, phases: Sequence[str | None], this_side: ThisSide, ours: NatProfiles) -> set[Known]:
    """What prevents a punch between the two sides, as far as their NATs are known."""
    if not _punches(phases):
        return set()
    peers = session.peer.nat_profiles
    here, there = (each.get(None, 4).udp for each in (ours, peers))
    found = {
        Known.NO_STUN_HERE: not this_side.stun,
        Known.NO_STUN_THERE: not peers,
        Known.UDP_BLOCKED_HERE: here.blocked,
        Known.UDP_BLOCKED_THERE: there.blocked,
        Known.BOTH_SYMMETRIC: is_unforeseeable(here) and is_unforeseeable(there),
    }
    return {known for known, holds in found.items() if holds}


def _punches(phases: Sequence[str | None]) -> bool:
    return any(phase in ("punch", "spray") for phase in phases)


def describe_nats(nats: NatProfiles) -> list[str]:
    """Describe the NATs of an address, in one sentence for each address family."""
    profiles = {af: nats.get(None, af) for af in FAMILIES}
    return [
        f"IPv{af}: UDP {describe(each.udp)}, TCP {describe(each.tcp)}"
        for af, each in profiles.items()
        if each.udp != UNKNOWN or each.tcp != UNKNOWN
    ]


def take_stock(
    session: Session,
    phases: Sequence[str | None],
    this_side: ThisSide,
    ours: NatProfiles = NOTHING_KNOWN,
    *,
    no_common_server: bool = False,
) -> tuple[set[Known], list[str]]:
    """What this side lacked that the walk could have used: as `Known` for the advice, and in sentences.

    Args:
      ours: what is known of our own NATs.
      no_common_server: only a common rendezvous server was missing for relaying by one.
    """
    punches = _punches(phases)
    known: set[Known] = set()
    lacks: list[str] = []
    if session.refusal is not None:  # the peer was reached, so nothing was lacking
        return ({Known.TAKEN} if session.refusal.reason == RefuseReason.TAKEN else known), lacks
    if session.evidence.token_missing:
        known.add(Known.NO_RELAY_TOKEN)
        lacks.append("neither side has the relay token of a server that both use")
    if no_common_server:
        known.add(Known.NO_COMMON_SERVER)
        lacks.append("this side has no rendezvous server in common with the peer: none could relay")
    if not this_side.signal:
        known.add(Known.NO_SIGNAL_HERE)
    if (session.evidence.signalled or punches) and not this_side.signal:
        lacks.append("no signal server is configured here")
    elif session.evidence.signalled and this_side.silent:
        lacks.append(f"no signal server is connected: {'; '.join(this_side.silent)}")
    if punches and not this_side.stun:
        lacks.append("no STUN server is configured here: no way through a NAT is known")
    return known | find_barriers(session, phases, this_side, ours), lacks


_BY_REFUSAL: Final[Mapping[int, Verdict]] = {
    RefuseReason.UNAUTHORIZED: Verdict.REFUSED,
    RefuseReason.NOT_ACCEPTING: Verdict.NOT_ACCEPTING,
    RefuseReason.BUSY: Verdict.BUSY,
    RefuseReason.TAKEN: Verdict.BUSY,
    RefuseReason.UNSUPPORTED: Verdict.UNSUPPORTED,
}


def decide_verdict(
    session: Session,
    *,
    planned: bool,
    timed_out: bool,
    unresolved: Unresolved,
    relays: bool = False,
    better: bool = False,
) -> Verdict:
    """The reason that explains most: first what the peer itself said, then what was observed, then what was missing.

    Args:
      planned: the walk had combos to try.
      timed_out: the walk's deadline has passed.
      unresolved: server names that DNS does not resolve.
      relays: the walk had a relay to fall back to.
      better: the walk searched for a better path of an existing Link.
    """
    if session.refusal is not None:
        return _BY_REFUSAL.get(session.refusal.reason, Verdict.NOT_ACCEPTING)
    evidence = session.evidence
    if not planned:
        return Verdict.NO_BETTER_PATH if better else Verdict.NOTHING_TO_TRY
    if timed_out:
        return Verdict.TIMED_OUT
    if evidence.broke_off or session.spent:
        return Verdict.BROKE_OFF
    if evidence.wrong_peer:
        return Verdict.WRONG_PEER
    if evidence.clock_corrected and not evidence.answered:
        return Verdict.CLOCK_OFF  # the peer told its time, signals were stamped by it, and no answer came
    if evidence.turned_down is not None:
        return Verdict.BUSY if evidence.turned_down is RefusalReason.BUSY else Verdict.UNSUPPORTED
    if better:
        return Verdict.NO_BETTER_PATH
    if evidence.answered and unresolved.no_stun:
        return Verdict.NO_DNS  # nothing could be punched
    if evidence.relay_forbids:
        return Verdict.RELAY_FORBIDS
    if evidence.answered or evidence.token_missing:  # a server reports the latter only of a peer that is connected
        return Verdict.RELAY_FAILED if relays else Verdict.NO_RELAY_CONFIGURED
    if evidence.best_delivery is None and evidence.signalled and unresolved.no_signal:
        return Verdict.NO_DNS
    if evidence.best_delivery is None:
        return Verdict.NO_SIGNAL if evidence.signalled else Verdict.UNREACHABLE
    return Verdict.PEER_OFFLINE if evidence.offline else Verdict.PEER_SILENT
