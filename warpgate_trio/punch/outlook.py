"""Whether two peers' NATs let them punch, or spray: rules over two profiles (docs/punching.md).  Pure.

Theory of operation.  With M for mapping and F for filtering, a packet of A to the endpoint that B announced can be the
first to get in at B when

    D(A→B) = F_B is by nothing: the mapping that a server saw is there, whatever B's next one will be;
             or M_B is endpoint-independent, or B's next port is predicted,
             and F_B is not by port, or A comes from where it said that it would (M_A independent, or predicted)

and a pair can punch when D(A→B) or D(B→A), as the other side answers to the source that it sees.  It has to answer by
the mapping that let A in.  Where M_B is dependent, and F_B by nothing, it does if that answer is the first that it
sends to A.  Over UDP it is, since B waits to be heard (`udp_punch`).  Over TCP both send at once: if A comes from where
it said, B has sent there before, by another mapping, from which its answer comes; and A has to let that in too.

A side that nothing translates is endpoint-independent by nature, so firewalls, IPv6's above all, always can.

The logic is of three values.  HOPELESS takes two profiles in which everything that decides is known; an unknown never
makes it, and neither does one's age (whose profile is stale passes `profile.UNKNOWN` in its place).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from ..address.nat_profile import Allocation, Filtering, TransportProfile, describe
from ..combos import Likelihood
from .spray import Role, SprayPlan, plan_both_hard, plan_spray, seen_at_one_address, spray_roles

__all__ = ["Outlook", "SprayOutlook", "punch_outlook", "spray_outlook"]

LIKELY_SPRAY: Final = 0.5
"""The computed chance from which a spray is likely rather than doubtful."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is to be expected of a punch, and one sentence on why."""

    likelihood: Likelihood
    why: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SprayOutlook:
    """What is to be expected of a spray.

    Attributes:
      likelihood, why: as in `Outlook`.
      role: ours; None when there is nothing to spray for.
      plan: what it takes; None when `role` is, and when it is not worth a packet.
      probability: the computed one, by the profiles' claims.
    """

    likelihood: Likelihood
    why: str
    role: Role | None = None
    plan: SprayPlan | None = None
    probability: float = 0.0


def _hopeless(why: str) -> Outlook:
    return Outlook(likelihood=Likelihood.HOPELESS, why=why)


def _doubtful(why: str) -> Outlook:
    return Outlook(likelihood=Likelihood.DOUBTFUL, why=why)


def _likely(why: str) -> Outlook:
    return Outlook(likelihood=Likelihood.LIKELY, why=why)


def _or(a: bool | None, b: bool | None) -> bool | None:
    if a or b:
        return True
    return None if a is None or b is None else False


def _and(a: bool | None, b: bool | None) -> bool | None:
    if a is False or b is False:
        return False
    return None if a is None or b is None else True


def _announced(profile: TransportProfile) -> bool | None:
    """Whether packets of this side come from where it says that they will."""
    independent = profile.endpoint_independent
    if independent or profile.predictable:
        return True
    return independent if profile.allocation is not Allocation.UNKNOWN else None


def is_unforeseeable(profile: TransportProfile) -> bool:
    """Whether nobody can tell where packets to somebody new will come from, and that is known."""
    return _announced(profile) is False


def _gets_in(source: TransportProfile, target: TransportProfile) -> bool | None:
    """D(source→target)."""
    by_port = (
        None if target.filtering is Filtering.UNKNOWN else target.filtering is not Filtering.ADDRESS_AND_PORT_DEPENDENT
    )
    unfiltered = None if target.filtering is Filtering.UNKNOWN else target.filtering is Filtering.ENDPOINT_INDEPENDENT
    return _or(unfiltered, _and(_announced(target), _or(by_port, _announced(source))))


def _meets(source: TransportProfile, target: TransportProfile, *, at_once: bool) -> bool | None:
    """Whether a packet of `source` gets in at `target`, and its answer back."""
    if not at_once:
        return _gets_in(source, target)
    moves = _announced(source)
    answered = _or(_announced(target), None if moves is None else not moves)
    return _and(_gets_in(source, target), _or(answered, _gets_in(target, source)))


def _barred(ours: TransportProfile, peers: TransportProfile, shared_address: bool) -> Outlook | None:
    """What decides before mapping and filtering do."""
    if ours.blocked or peers.blocked:
        side = "our" if ours.blocked else "the peer's"
        return _hopeless(f"{side} network lets nothing of this transport out")
    if shared_address:
        if ours.hairpin is False and peers.hairpin is False:
            return _hopeless("both are behind one NAT, which does not lead packets back in")
        if not (ours.hairpin and peers.hairpin):
            return _doubtful("both are behind one NAT, which may not lead packets back in")
    return None


def punch_outlook(
    ours: TransportProfile, peers: TransportProfile, *, at_once: bool = False, shared_address: bool = False
) -> Outlook:
    """Whether the two can punch.  Symmetric in the two sides but for the sentence.

    `at_once`: both send at one instant, as over TCP; else in turn, as over UDP.
    `shared_address`: both look the same from outside, so that their packets have to be led back by the NAT they share.
    """
    barred = _barred(ours, peers, shared_address)
    if barred is not None:
        return barred
    possible = _or(_meets(ours, peers, at_once=at_once), _meets(peers, ours, at_once=at_once))
    pair = f"{describe(ours)} with {describe(peers)}"
    if possible is None:
        return _doubtful(f"not enough is known of the NATs: {pair}")
    if not possible:
        return _hopeless(f"neither NAT lets the other's first packet in: {pair}")
    guessed = sum(each.endpoint_independent is not True and each.predictable for each in (ours, peers))
    if guessed == 2:
        return _doubtful(f"both sides' next ports have to be predicted: {pair}")
    return _likely(f"{'one next port has to be predicted' if guessed else 'the NATs allow it'}: {pair}")


def spray_outlook(
    ours: TransportProfile,
    peers: TransportProfile,
    *,
    we_are_lower: bool = True,
    shared_address: bool = False,
) -> SprayOutlook:
    """Whether a spray is worth it, which part is ours, and how large it is; for `we_are_lower` see `spray_roles`."""
    barred = _barred(ours, peers, shared_address)
    if barred is not None and barred.likelihood is Likelihood.HOPELESS:
        return SprayOutlook(likelihood=barred.likelihood, why=barred.why)
    role = spray_roles(ours, peers, we_are_lower=we_are_lower)
    if role is None:
        return SprayOutlook(
            likelihood=Likelihood.HOPELESS, why="both sides keep their ports: whatever works needs no spray"
        )
    if role is Role.BOTH:
        plan = plan_both_hard(ours, peers)
        if not plan.worth_it:
            known = Allocation.UNKNOWN not in (ours.allocation, peers.allocation)
            likelihood = Likelihood.HOPELESS if known else Likelihood.DOUBTFUL
            size = (
                "their ranges too large to meet in"
                if known
                else "their ranges not known, so that no packet is worth it"
            )
            if known and seen_at_one_address(ours, peers):
                size = "the one that both are behind would have to lead packets back in, too"
            return SprayOutlook(likelihood=likelihood, why=f"both NATs are symmetric, and {size}", role=role)
    else:
        plan = plan_spray(peers if role is Role.EASY else ours)
    certain = ours.endpoint_independent is not None and peers.endpoint_independent is not None
    likely = certain and plan.probability >= LIKELY_SPRAY and barred is None
    return SprayOutlook(
        likelihood=Likelihood.LIKELY if likely else Likelihood.DOUBTFUL,
        why=f"{plan.probability:.1%} with {plan.sockets} sockets and {plan.openers} openers"
        if certain
        else "not known which side is symmetric, if any",
        role=role,
        plan=plan,
        probability=plan.probability,
    )
