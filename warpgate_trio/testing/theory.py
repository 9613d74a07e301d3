"""Predictions for two peers of a world: whether they can dial each other, or punch through their NATs.

The predictions follow from the definitions of RFC 4787 and RFC 5382, and use no code of the simulated NATs or the
nodes, so that both can be tested against them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ..sim import Behavior, Conflict, Filtering, Hairpin, Hash, Mapping, NatConfig, Preserve, Sequential, Unsolicited
from .worlds import PeerPair, Place

__all__ = ["can_connect", "can_punch", "lets_out", "promised", "punch_possible", "reaches", "stacked"]

SIGNALS: Final = 443
"""The port of the signal server in `world`, which even strict firewalls let out."""
CROSSING: Final = 0.01
"""Seconds of one-way delay with which two packets that are sent at the same time are sure to cross on the way."""
_MAPPINGS: Final = [Mapping.EIM, Mapping.ADM, Mapping.APDM]
_FILTERS: Final = [Filtering.EIF, Filtering.ADF, Filtering.APDF]


def stacked(layers: Sequence[Behavior]) -> tuple[Mapping, Filtering]:
    """The behaviour of a stack of NATs seen from outside: the most dependent mapping and the strictest filtering."""
    mapping = max((one.mapping for one in layers), key=_MAPPINGS.index, default=Mapping.EIM)
    filtering = max((one.filtering for one in layers), key=_FILTERS.index, default=Filtering.EIF)
    return mapping, filtering


def promised(a: Sequence[Behavior], b: Sequence[Behavior]) -> bool:
    """Whether punching works by Ford, Srisuresh and Kegel (2005): no first packet gets in unless the mapping is EIM.

    This holds for real NATs.  `punch_possible` also covers NATs that are not EIM but filter endpoint-independently.
    """
    (mapping_a, filtering_a), (mapping_b, filtering_b) = stacked(a), stacked(b)
    eim_a, eim_b = mapping_a is Mapping.EIM, mapping_b is Mapping.EIM
    into_a = eim_a and (filtering_a is not Filtering.APDF or eim_b)
    into_b = eim_b and (filtering_b is not Filtering.APDF or eim_a)
    return into_a or into_b


def _gets_in(layers: Sequence[Behavior], peer_is_eim: bool) -> bool:
    """Whether the first packet of a peer, sent to the endpoint that a server saw, can get in through `layers`.

    A layer with endpoint-independent filtering lets it in regardless of its mapping behaviour, since the mapping that
    the server saw exists.  Any other layer must already have sent to the peer *from that mapping*.  So this layer and
    all layers inside of it must use the same mapping for the server and the peer.  If it filters by port too, the
    peer's packet must come from the endpoint that the peer announced.  For classic kinds of NATs this is the predicate
    of `promised`.
    """
    one_mapping = True
    for layer in reversed(layers):  # from the innermost outwards
        one_mapping = one_mapping and layer.mapping is Mapping.EIM
        knows = layer.filtering is Filtering.ADF or peer_is_eim
        if layer.filtering is not Filtering.EIF and not (one_mapping and knows):
            return False
    return True


def punch_possible(a: Sequence[Behavior], b: Sequence[Behavior], *, a_leads: bool = False) -> bool:
    """Whether two hosts behind these NATs, outermost first, can communicate by sending to the signalled endpoints.

    `a_leads`: a's packets arrive before b sends any.  This matters in one case: b's NATs are not EIM, but let a's
    packet in on the announced port.  If b's answer is its first packet to a, it comes from that port.  Otherwise it
    comes from the port of b's earlier packets, which a port-dependent filter of a does not admit.

    Preconditions: the hosts have different outermost addresses; pooling is paired; no port is in use by another host,
    and no quota is reached; symmetric NATs do not happen to preserve ports; no NAT has `Unsolicited.LOCAL`.
    """
    eim_a = all(one.mapping is Mapping.EIM for one in a)
    eim_b = all(one.mapping is Mapping.EIM for one in b)
    into_a, into_b = _gets_in(a, eim_b), _gets_in(b, eim_a)
    answered_by_b = eim_b or not eim_a or a_leads
    answered_by_a = eim_a or not eim_b
    return (into_b and answered_by_b) or (into_a and answered_by_a) or (into_a and into_b)


def can_punch(pair: PeerPair, *, tcp: bool = False) -> bool | None:
    """Whether two peers of a world can punch, sending to the endpoints that a server on the internet saw.

    None means that theory does not say: a NAT's next port could be predicted, or the order of packets decides.

    It is assumed that both keep trying within the lifetime of mappings.  They begin at the same time, or with packets
    whose TTL is too low to reach the other's NATs.  The preconditions of `punch_possible` are checked here: the
    transport passes; the peers have different outermost addresses, or a shared one that hairpins; no port is in use by
    another host.  Pooling and quotas do not matter, since each router of a `PeerPair` has one address and a peer needs
    few mappings.
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
            return None  # one SYN is refused; the answer to the other one is then outside the window left by the first
        if shared.hairpin is not Hairpin.EXTERNAL:
            return None if shared.hairpin is Hairpin.INTERNAL else False
    predictable = [one for one in layers if one.mapping is not Mapping.EIM]
    if any(isinstance(one.allocation, Preserve | Sequential) for one in predictable):
        return None
    if any(isinstance(one.allocation, Hash) and not one.allocation.remote for one in predictable):
        return None  # the same port for every remote: a second mapping gets another port, or none
    if tcp and any(one.mapping is not Mapping.EIM and one.filtering is not Filtering.APDF for one in layers):
        return None  # a SYN arrives on a port from which its answer will not leave
    if tcp and not all(one.simultaneous_open for one in layers):
        return None if True in possible else False
    return possible.pop()


def lets_out(nats: Sequence[NatConfig], port: int | None = None) -> bool:
    """Whether all of these NATs let TCP out to a port, or without one to every port."""
    return all(nat.tcp.ports is None or (port is not None and port in nat.tcp.ports) for nat in nats)


def reaches(dialler: Sequence[NatConfig], target: Sequence[NatConfig], port: int | None = None) -> bool:
    """Whether a dialler behind NATs (outermost first) can dial an address of the target's own interface.

    It can if that address is on the dialler's network, or on a network to which one of its NATs is connected, and if
    none of the NATs between forbids the port.
    """
    return tuple(dialler[: len(target)]) == tuple(target) and lets_out(dialler[len(target) :], port)


def can_connect(pair: PeerPair) -> bool:
    """Whether the nodes of two peers are sure to connect, without a relay and without luck; for `hypothesis.assume`.

    It holds for `world(pair)`, in which each node learns from the servers how its NATs behave.  It is False for
    everything that is not sure: NATs for which only port guessing may help, which succeeds in most calls but not in
    all; NATs for which theory has no answer; and links that lose packets, over which a call may fail by chance.
    """
    if any(link.loss for link in (pair.alice.link, pair.bob.link, pair.server)):
        return False
    # Mark the NATs as alice's and bob's: equal configurations do not mean that both are behind the same NAT.
    alice = (*pair.shared, *(replace(nat, source="alice's") for nat in pair.alice.nats))
    bob = (*pair.shared, *(replace(nat, source="bob's") for nat in pair.bob.nats))
    if not lets_out((*alice, *bob), SIGNALS):
        return False
    # A node that is asked to dial back dials only public addresses and those of its own network.
    dialled = reaches(alice, bob) or (reaches(bob, alice) and (not alice or alice == bob))
    if dialled or pair.shared:  # behind shared NATs, only dialling is sure
        return dialled
    layers = (*pair.alice.nats, *pair.bob.nats)
    local = any(Unsolicited.LOCAL in (nat.udp.unsolicited, nat.tcp.unsolicited) for nat in layers)
    if local and pair.alice.link.latency + pair.bob.link.latency < CROSSING:
        return False
    return any(can_punch(pair, tcp=tcp) is True for tcp in (False, True))
