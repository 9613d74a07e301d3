"""Whether the NATs of two peers allow a punch or a spray: rules over two profiles (docs/punching.md).  No I/O.

Theory of operation.  M is a side's mapping and F its filtering (RFC 4787).  A packet of A to the endpoint that B
announced can be the first to pass B's NAT if

    D(A→B) = F_B is endpoint-independent: the mapping that a server saw is open, whatever B's next one will be;
             or M_B is endpoint-independent or B's next port is predicted,
             and F_B is not port-dependent or A sends from the announced endpoint (M_A independent, or predicted)

A pair can punch if D(A→B) or D(B→A), since the other side answers to the source that it sees.  The answer has to leave
by the mapping that let A in.  Where M_B is endpoint-dependent and F_B endpoint-independent, it does so only if it is
the first packet of B to A:

* Over UDP it is, since B waits for A's packet (`udp_punch`).
* Over TCP both sides send at once.  If A sends from the announced endpoint, B has sent there before.  B's answer then
  leaves by that other mapping, and A's NAT has to let it in, too.

A side without address translation is endpoint-independent by nature.  So sides with only a firewall, as with IPv6, can
always punch.

The logic has three values.  A pair is HOPELESS only if every deciding property of both profiles is known.  For a stale
profile the caller passes `profile.UNKNOWN`, which never makes a pair hopeless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from ..address.nat_profile import Allocation, Filtering, TransportProfile, describe
from ..combos import Likelihood
from .spray import Role, SprayPlan, plan_both_hard, plan_spray, seen_at_one_address, spray_roles

__all__ = ["Outlook", "SprayOutlook", "punch_outlook", "spray_outlook"]

LIKELY_SPRAY: Final = 0.5
"""The computed probability from which a spray is likely rather than doubtful."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """How likely a punch is, and the reason in one sentence."""

    likelihood: Likelihood
    why: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SprayOutlook:
    """How likely a spray is.

    Attributes:
      likelihood, why: as in `Outlook`.
      role: our role; None where a spray is not needed or not possible.
      plan: its size; None where `role` is None, and where the spray is not worth a packet.
      probability: computed from what the profiles claim.
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
    """Whether packets of this side come from the endpoint that it announces."""
    independent = profile.endpoint_independent
    if independent or profile.predictable:
        return True
    return independent if profile.allocation is not Allocation.UNKNOWN else None


def is_unforeseeable(profile: TransportProfile) -> bool:
    """Whether it is known that the mapping towards a new destination cannot be predicted."""
    return _announced(profile) is False


def _gets_in(source: TransportProfile, target: TransportProfile) -> bool | None:
    """D(source→target); see the module's docstring."""
    by_port = (
        None if target.filtering is Filtering.UNKNOWN else target.filtering is not Filtering.ADDRESS_AND_PORT_DEPENDENT
    )
    unfiltered = None if target.filtering is Filtering.UNKNOWN else target.filtering is Filtering.ENDPOINT_INDEPENDENT
    return _or(unfiltered, _and(_announced(target), _or(by_port, _announced(source))))


def _meets(source: TransportProfile, target: TransportProfile, *, at_once: bool) -> bool | None:
    """Whether a packet of `source` passes the NAT of `target`, and the answer passes back."""
    if not at_once:
        return _gets_in(source, target)
    moves = _announced(source)
    answered = _or(_announced(target), None if moves is None else not moves)
    return _and(_gets_in(source, target), _or(answered, _gets_in(target, source)))


def _barred(ours: TransportProfile, peers: TransportProfile, shared_address: bool) -> Outlook | None:
    """The outlook where something decides before mapping and filtering do; else None."""
    if ours.blocked or peers.blocked:
        side = "our" if ours.blocked else "the peer's"
        return _hopeless(f"{side} network blocks this transport")
    if shared_address:
        if ours.hairpin is False and peers.hairpin is False:
            return _hopeless("both are behind one NAT, which has no hairpinning")
        if not (ours.hairpin and peers.hairpin):
            return _doubtful("both are behind one NAT, which may have no hairpinning")
    return None


def punch_outlook(
    ours: TransportProfile, peers: TransportProfile, *, at_once: bool = False, shared_address: bool = False
) -> Outlook:
    """Whether the two sides can punch.  Symmetric in the two sides, except for the sentence.

    Args:
      at_once: both sides send at the same time, as over TCP; otherwise in turn, as over UDP.
      shared_address: both have the same external address, so that the NAT which they share has to hairpin.
    """
    barred = _barred(ours, peers, shared_address)
    if barred is not None:
        return barred
    possible = _or(_meets(ours, peers, at_once=at_once), _meets(peers, ours, at_once=at_once))
    pair = f"{describe(ours)} with {describe(peers)}"
    if possible is None:
        return _doubtful(f"not enough is known of the NATs: {pair}")
    if not possible:
        return _hopeless(f"each NAT filters the other side's first packet: {pair}")
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
    """Whether a spray is worthwhile, our role in it, and its size; for `we_are_lower` see `spray_roles`."""
    barred = _barred(ours, peers, shared_address)
    if barred is not None and barred.likelihood is Likelihood.HOPELESS:
        return SprayOutlook(likelihood=barred.likelihood, why=barred.why)
    role = spray_roles(ours, peers, we_are_lower=we_are_lower)
    if role is None:
        return SprayOutlook(
            likelihood=Likelihood.HOPELESS, why="both mappings are endpoint-independent: no spray is needed"
        )
    if role is Role.BOTH:
        plan = plan_both_hard(ours, peers)
        if not plan.worth_it:
            known = Allocation.UNKNOWN not in (ours.allocation, peers.allocation)
            likelihood = Likelihood.HOPELESS if known else Likelihood.DOUBTFUL
            size = (
                "their port ranges are too large for a spray"
                if known
                else "their port ranges are not known, so a spray is not worth it"
            )
            if known and seen_at_one_address(ours, peers):
                size = "the one that both are behind would have to hairpin, too"
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
