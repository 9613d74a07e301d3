"""What theory says about two peers of a world: whether they can dial each other, or punch through their NATs.

Written from the definitions of RFC 4787 and RFC 5382, without a look at the simulator's NATs or at any node, so that
both can be held against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ..sim import Behavior, Conflict, Filtering, Hairpin, Hash, Mapping, NatConfig, Preserve, Sequential, Unsolicited
from .worlds import PeerPair, Place

__all__ = ["can_connect", "can_punch", "lets_out", "promised", "punch_possible", "reaches", "stacked"]

SIGNALS: Final = 443
"""The port of the signal server in `world`, which the strictest of firewalls lets out."""
CROSSING: Final = 0.01
"""Seconds on the way in which two packets that leave at one time are sure to cross, and neither comes too early."""
_MAPPINGS: Final = [Mapping.EIM, Mapping.ADM, Mapping.APDM]
_FILTERS: Final = [Filtering.EIF, Filtering.ADF, Filtering.APDF]


def stacked(layers: Sequence[Behavior]) -> tuple[Mapping, Filtering]:
    """What a stack of NATs looks like from outside: mapped as the most dependent of them, filtered as the strictest."""
    mapping = max((one.mapping for one in layers), key=_MAPPINGS.index, default=Mapping.EIM)
    filtering = max((one.filtering for one in layers), key=_FILTERS.index, default=Filtering.EIF)
    return mapping, filtering


def promised(a: Sequence[Behavior], b: Sequence[Behavior]) -> bool:
    """As Ford, Srisuresh and Kegel (2005) have it: a packet does not get first behind a NAT that moves ports.

    That is what real NATs do.  `punch_possible` knows of ones besides that move ports and let everybody in.
    """
    (mapping_a, filtering_a), (mapping_b, filtering_b) = stacked(a), stacked(b)
    eim_a, eim_b = mapping_a is Mapping.EIM, mapping_b is Mapping.EIM
    into_a = eim_a and (filtering_a is not Filtering.APDF or eim_b)
    into_b = eim_b and (filtering_b is not Filtering.APDF or eim_a)
    return into_a or into_b


def _gets_in(layers: Sequence[Behavior], peer_is_eim: bool) -> bool:
    """Whether a peer's packet to the endpoint that a server saw can be the first that arrives behind `layers`.

    A layer that filters nothing lets it in, whatever it maps: the mapping that the server saw is there.  Any other
    must know the peer *in that mapping*, so it and all layers inside of it must use one mapping for server and peer;
    and to be known by port too, the peer must come from the endpoint that it announced.  For NATs of the classic
    kinds this is the predicate of `promised`.
    """
    one_mapping = True
    for layer in reversed(layers):  # from the innermost out
        one_mapping = one_mapping and layer.mapping is Mapping.EIM
        knows = layer.filtering is Filtering.ADF or peer_is_eim
        if layer.filtering is not Filtering.EIF and not (one_mapping and knows):
            return False
    return True


def punch_possible(a: Sequence[Behavior], b: Sequence[Behavior], *, a_leads: bool = False) -> bool:
    """Whether two hosts behind these NATs, outermost first, hear from each other by sending to what was signalled.

    `a_leads`: a's packets arrive before b sends any.  It matters in one case: b's NATs are not EIM and let a's packet
    in on the announced port.  Then b's answer comes from that port if it is the first thing that b sends to a, and
    else from the port of what it has sent before, which a port-dependent filter of a does not know.

    Preconditions: the hosts have different outermost addresses; pooling is paired; no port is another host's, and no
    quota is reached; symmetric NATs do not happen to preserve ports; no NAT has `Unsolicited.LOCAL`.
    """
    eim_a = all(one.mapping is Mapping.EIM for one in a)
    eim_b = all(one.mapping is Mapping.EIM for one in b)
    into_a, into_b = _gets_in(a, eim_b), _gets_in(b, eim_a)
    answered_by_b = eim_b or not eim_a or a_leads
    answered_by_a = eim_a or not eim_b
    return (into_b and answered_by_b) or (into_a and answered_by_a) or (into_a and into_b)


def can_punch(pair: PeerPair, *, tcp: bool = False) -> bool | None:
    """Whether two peers of a world can punch, sending to what a server on the internet saw; None: theory does not say.

    It presupposes that both keep trying within the lifetime of mappings.  They begin at one time, or with packets whose
    TTL is too low to come as far as the other's NATs.  The preconditions of `punch_possible` are checked here: the
    transport passes; the peers have different outermost addresses, or one that hairpins; no port is another's.  Where
    a NAT's next port could be predicted, or the order of packets decides, the answer is None.  Pooling and quotas do
    not matter, since each router of a `PeerPair` has one address and a peer needs few mappings.
    """

    def behind(place: Place) -> list[Behavior]:
        return [nat.tcp if tcp else nat.udp for nat in (*pair.shared, *place.nats)]

    alice, bob = behind(pair.alice), behind(pair.bob)
    layers = [*alice, *bob]
    if any(one.ports is not None for one in layers):
        return False if any(one.ports == () for one in layers) else None
    possible = {punch_possible(alice, bob, a_leads=first) for first in (True, False)}
    possible |= {punch_possible(bob, alice, a_leads=first) for first in (True, False)}
    if len(possible) > 1:
        return None
    if pair.shared:
        (*_, nearest) = pair.shared
        shared = nearest.tcp if tcp else nearest.udp
        own_local = any(one.unsolicited is Unsolicited.LOCAL for one in layers)
        crowded = any((nat.tcp if tcp else nat.udp).conflict is not Conflict.NEXT for nat in pair.shared)
        if len(pair.shared) > 1 or not (pair.alice.nats or pair.bob.nats) or own_local or crowded:
            return None
        if (
            tcp
            and shared.unsolicited not in (Unsolicited.DROP, Unsolicited.HOLD)
            and any(one.strict_isn for one in layers)
        ):
            return None  # one SYN is refused, and the other one's answer is then out of the window that it left behind
        if shared.hairpin is not Hairpin.EXTERNAL:
            return None if shared.hairpin is Hairpin.INTERNAL else False
    predictable = [one for one in layers if one.mapping is not Mapping.EIM]
    if any(isinstance(one.allocation, Preserve | Sequential) for one in predictable):
        return None
    if any(isinstance(one.allocation, Hash) and not one.allocation.remote for one in predictable):
        return None  # one port for every remote: the second one has to make do with another, or with none
    if tcp and any(one.mapping is not Mapping.EIM and one.filtering is not Filtering.APDF for one in layers):
        return None  # a SYN comes in on a port from which its answer will not leave
    if tcp and not all(one.simultaneous_open for one in layers):
        return None if True in possible else False
    return possible.pop()


def lets_out(nats: Sequence[NatConfig], port: int | None = None) -> bool:
    """Whether all of these NATs let TCP out to a port, or without one to every port."""
    return all(nat.tcp.ports is None or (port is not None and port in nat.tcp.ports) for nat in nats)


def reaches(dialler: Sequence[NatConfig], target: Sequence[NatConfig], port: int | None = None) -> bool:
    """Whether one who is behind these NATs (outermost first) can dial an address of the other's own interface.

    It can where that address is on a network that the dialling side is in, or that its own NATs are connected to; and
    where none of the NATs between forbids the port.
    """
    return tuple(dialler[: len(target)]) == tuple(target) and lets_out(dialler[len(target) :], port)


def can_connect(pair: PeerPair) -> bool:
    """Whether the nodes of two peers are sure to connect, without a relay and without luck; for `hypothesis.assume`.

    It holds for `world(pair)`, whose servers tell each node what its NATs do.  False is said of all that is not sure:
    NATs for which only guessing ports may help, which succeeds in most calls and not in all, or where theory has no
    answer; and links that lose packets, over which a call may fail by chance.
    """
    if any(link.loss for link in (pair.alice.link, pair.bob.link, pair.server)):
        return False
    # Equal NATs that are not the same one do not make one network, hence the marks.
    alice = (*pair.shared, *(replace(nat, source="alice's") for nat in pair.alice.nats))
    bob = (*pair.shared, *(replace(nat, source="bob's") for nat in pair.bob.nats))
    if not lets_out((*alice, *bob), SIGNALS):
        return False
    # Asked to dial back, a node goes only to public addresses and to those of its own network.
    dialled = reaches(alice, bob) or (reaches(bob, alice) and (not alice or alice == bob))
    if dialled or pair.shared:  # behind NATs that both share, dialling is all that is sure
        return dialled
    layers = (*pair.alice.nats, *pair.bob.nats)
    local = any(Unsolicited.LOCAL in (nat.udp.unsolicited, nat.tcp.unsolicited) for nat in layers)
    if local and pair.alice.link.latency + pair.bob.link.latency < CROSSING:
        return False
    return any(can_punch(pair, tcp=tcp) is True for tcp in (False, True))
