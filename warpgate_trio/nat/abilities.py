"""What a network can and cannot do, in words for people: a table of rules over a NAT profile.  Pure.

Theory of operation.  The rules apply `outlook` to a few typical peers.  Walks are planned by the same functions, so the
rules describe what an `auto_connect` will do.  There are three lists.  Entries of `can` and `cannot` hold whatever the
unknown axes of the profile turn out to be.  Anything else of interest to a user is `unknown`, with what would make it
known.  A rule is a condition and a sentence.  Every rule whose condition holds adds its sentence, in the order of the
table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal, final

from ..address import is_public
from ..address.nat_profile import Allocation, Filtering, Mapping, NatProfile, TransportProfile
from ..combos import Likelihood
from ..punch.outlook import punch_outlook, spray_outlook

__all__ = ["RULES", "Abilities", "Rule", "abilities"]

LENIENT: Final = TransportProfile(
    translated=True,
    blocked=False,
    mapping=Mapping.ENDPOINT_INDEPENDENT,
    filtering=Filtering.ADDRESS_DEPENDENT,
    allocation=Allocation.PRESERVING,
)
CONE: Final = replace(LENIENT, filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT)
STEPPING: Final = replace(CONE, mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT, allocation=Allocation.SEQUENTIAL, delta=1)
SYMMETRIC: Final = replace(CONE, mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT, allocation=Allocation.RANDOM)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """Sentences without their subject, which is the network ("connects over UDP to peers behind any NAT").

    Attributes:
      can: what works, as reliably as punching ever does.
      cannot: what does not work, whatever the unknown axes turn out to be.
      unknown: what is not known, and why.
    """

    can: tuple[str, ...] = ()
    cannot: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class Reach:
    """The kinds of peers that one transport gets through to."""

    def __init__(self, profile: TransportProfile, *, at_once: bool = False) -> None:
        self.profile: Final = profile
        self.at_once: Final = at_once  # how it is punched, see `outlook.punch_outlook`

    @cached_property
    def silent(self) -> bool:
        """Whether no server answered, which may be the servers' fault."""
        return not self.profile.blocked and self.profile.translated is None

    def _likelihood(self, peer: TransportProfile) -> Likelihood:
        return punch_outlook(self.profile, peer, at_once=self.at_once).likelihood

    @cached_property
    def lenient(self) -> Likelihood:
        return self._likelihood(LENIENT)

    @cached_property
    def cone(self) -> Likelihood:
        return self._likelihood(CONE)

    @cached_property
    def stepping(self) -> Likelihood:
        return self._likelihood(STEPPING)

    @cached_property
    def symmetric(self) -> Likelihood:
        return self._likelihood(SYMMETRIC)

    @property
    def hidden(self) -> bool:
        """Whether the mapping is unknown behind a NAT, as when only one server has answered."""
        return bool(self.profile.translated) and self.profile.mapping is Mapping.UNKNOWN

    def sprays_to(self, peer: TransportProfile) -> float:
        """The chance of a spray to a peer that punching cannot reach; 0 where it can, or where too little is known."""
        if (
            self.silent
            or self.profile.endpoint_independent is None
            or self._likelihood(peer) is not Likelihood.HOPELESS
        ):
            return 0.0
        outlook = spray_outlook(self.profile, peer)
        return outlook.probability if outlook.likelihood is Likelihood.LIKELY else 0.0


@final
class Facts:
    """What the rules look at."""

    def __init__(self, profile: NatProfile) -> None:
        self.udp: Final = Reach(profile.udp)
        self.tcp: Final = Reach(profile.tcp, at_once=True)
        # TCP filtering is not measured, since servers do not connect back.  The rules on relays assume UDP's filtering.
        filtering = profile.tcp.filtering or profile.udp.filtering
        self.tcp_as_udp: Final = Reach(replace(profile.tcp, filtering=filtering), at_once=True)
        self.external: Final = tuple(dict.fromkeys((*profile.udp.external, *profile.tcp.external)))

    @property
    def local(self) -> bool:
        """Whether no server saw a public address of ours: then they are all on this side of the way to the internet."""
        return bool(self.external) and not any(is_public(each) for each in self.external)

    @property
    def silent(self) -> bool:
        return self.udp.silent and self.tcp.silent


@final
@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table."""

    says: Literal["can", "cannot", "unknown"]
    applies: Callable[[Facts], bool]
    sentence: str | Callable[[Facts], str]


LIKELY, DOUBTFUL, HOPELESS = Likelihood.LIKELY, Likelihood.DOUBTFUL, Likelihood.HOPELESS


def _any_nat(reach: Reach) -> bool:
    return not reach.silent and {reach.cone, reach.stepping, reach.symmetric} == {LIKELY}


def _any_but_random(reach: Reach) -> bool:
    return not reach.silent and reach.cone is reach.stepping is LIKELY is not reach.symmetric


def _cones(reach: Reach) -> bool:
    return not reach.silent and reach.cone is LIKELY is not reach.stepping


def _lenient_only(reach: Reach) -> bool:
    return not reach.silent and reach.lenient is LIKELY is not reach.cone


def _open(reach: Reach) -> bool:
    return reach.profile.translated is False and reach.profile.filtering is Filtering.ENDPOINT_INDEPENDENT


def _helpless(profile: TransportProfile) -> bool:
    """Whether peers behind symmetric NATs with random ports are out of reach, whatever the unknown axes are."""
    reach = Reach(profile)
    no_spray = spray_outlook(profile, SYMMETRIC).likelihood is HOPELESS
    return not reach.silent and reach.symmetric is HOPELESS and no_spray


def _needs_relay(facts: Facts, *, stepping: bool) -> bool:
    """Whether peers behind symmetric NATs need a relay: with `stepping` all of them, without only those with random
    ports."""
    udp, tcp = facts.udp, facts.tcp_as_udp
    helpless = _helpless(udp.profile) and tcp.symmetric is HOPELESS
    return helpless and (udp.stepping is tcp.stepping is HOPELESS) is stepping


def _may_need_relay(facts: Facts) -> bool:
    surely = _helpless(facts.udp.profile) and facts.tcp_as_udp.symmetric is HOPELESS
    strictest = _strictest(facts.udp.profile)
    return _helpless(strictest) and not surely and facts.tcp.symmetric is not LIKELY


def _strictest(profile: TransportProfile) -> TransportProfile:
    """The profile, with unknown filtering replaced by the strictest: by address and port."""
    unknown = profile.filtering is Filtering.UNKNOWN
    return replace(profile, filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT) if unknown else profile


def _percent(chance: float) -> str:
    return f"{chance:.0%}".replace("%", " %")


WITHIN: Final = "the servers that answer are within this network: what lies between it and the internet is not known"
"""The only sentence in that case: the rules would describe the path to those servers, not the path to the internet."""

RULES: Final[tuple[Rule, ...]] = (
    # Nothing to go by.
    Rule("unknown", lambda f: f.silent, "no STUN server answers: nothing is known"),
    Rule(
        "unknown",
        lambda f: f.udp.silent and not f.tcp.silent,
        "no STUN server answers over UDP: nothing is known of UDP",
    ),
    Rule(
        "unknown",
        lambda f: f.tcp.silent and not f.udp.silent,
        "no STUN server answers over TCP: nothing is known of TCP",
    ),
    # UDP.
    Rule(
        "cannot",
        lambda f: bool(f.udp.profile.blocked),
        "UDP is blocked: no STUN server answers over UDP, though the network works",
    ),
    Rule("can", lambda f: _open(f.udp), "is open: any peer can reach this host's own addresses over UDP"),
    Rule("can", lambda f: _any_nat(f.udp), "connects over UDP to peers behind any NAT"),
    Rule(
        "can",
        lambda f: _any_but_random(f.udp),
        "connects over UDP to peers behind any NAT but symmetric ones with random ports",
    ),
    Rule("can", lambda f: _cones(f.udp), "connects over UDP to peers behind cone NATs, as most homes have them"),
    Rule(
        "can",
        lambda f: _lenient_only(f.udp),
        "connects over UDP to peers in the open and behind NATs that do not filter by port",
    ),
    Rule(
        "can",
        lambda f: f.udp.sprays_to(SYMMETRIC) > 0,
        lambda f: (
            f"reaches peers behind symmetric NATs with random ports by a spray of packets over UDP, in "
            f"{_percent(f.udp.sprays_to(SYMMETRIC))} of the tries"
        ),
    ),
    Rule(
        "can",
        lambda f: f.udp.sprays_to(CONE) > 0,
        lambda f: (
            f"reaches peers behind cone NATs by a spray of packets over UDP, in "
            f"{_percent(f.udp.sprays_to(CONE))} of the tries"
        ),
    ),
    Rule(
        "unknown",
        lambda f: not f.udp.silent and f.udp.cone is LIKELY and f.udp.stepping is DOUBTFUL,
        "may meet peers behind symmetric NATs with sequential ports: each side has to guess the other's next port",
    ),
    Rule(
        "unknown",
        lambda f: _any_but_random(f.udp) and f.udp.symmetric is DOUBTFUL and not f.udp.hidden,
        "UDP filtering is unknown; measuring it takes a STUN server with two addresses (RFC 5780): peers behind "
        "symmetric NATs may get through at once",
    ),
    # TCP.
    Rule(
        "cannot",
        lambda f: bool(f.tcp.profile.blocked),
        "TCP is blocked except for some ports, such as 443: no STUN server answers over TCP, though the network works",
    ),
    Rule("can", lambda f: _any_nat(f.tcp), "punches TCP with peers behind any NAT"),
    Rule(
        "can",
        lambda f: _any_but_random(f.tcp),
        "punches TCP with peers behind any NAT but symmetric ones with random ports",
    ),
    Rule("can", lambda f: _cones(f.tcp), "punches TCP with peers behind cone NATs"),
    Rule(
        "cannot",
        lambda f: not f.tcp.silent and not f.tcp.profile.blocked and f.tcp.cone is HOPELESS,
        "does not punch TCP with peers whose NAT filters by port: the external port of its next connection cannot be "
        "predicted",
    ),
    # Both.
    Rule(
        "unknown",
        lambda f: f.udp.hidden or f.tcp.hidden,
        "the one STUN server that answers does not show whether the NAT is symmetric: a second STUN server at another "
        "address is needed",
    ),
    Rule(
        "cannot",
        lambda f: bool(f.udp.profile.blocked and f.tcp.profile.blocked),
        "needs a relay with every peer outside",
    ),
    Rule(
        "cannot",
        lambda f: not (f.udp.profile.blocked and f.tcp.profile.blocked) and _needs_relay(f, stepping=True),
        "needs a relay with peers behind symmetric NATs",
    ),
    Rule(
        "cannot",
        lambda f: _needs_relay(f, stepping=False),
        "needs a relay with peers behind symmetric NATs with random ports",
    ),
    Rule(
        "unknown",
        _may_need_relay,
        "may need a relay with peers behind symmetric NATs with random ports: this NAT's filtering is unknown",
    ),
    Rule(
        "cannot",
        lambda f: f.udp.profile.hairpin is False and bool(f.udp.profile.translated),
        "does not hairpin: peers behind the same NAT can reach each other only by their private addresses",
    ),
    Rule(
        "unknown",
        lambda f: len(f.external) > 1,
        lambda f: (
            f"has several external addresses ({', '.join(map(str, f.external))}): a peer may see another one than STUN "
            "servers do"
        ),
    ),
)
"""Every rule whose condition holds adds its sentence."""


def abilities(profile: NatProfile) -> Abilities:
    """What the network behind a profile can and cannot do."""
    facts = Facts(profile)
    if facts.local:
        return Abilities(unknown=(WITHIN,))
    said: dict[str, list[str]] = {"can": [], "cannot": [], "unknown": []}
    for rule in RULES:
        if rule.applies(facts):
            said[rule.says].append(rule.sentence if isinstance(rule.sentence, str) else rule.sentence(facts))
    return Abilities(**{name: tuple(sentences) for name, sentences in said.items()})
