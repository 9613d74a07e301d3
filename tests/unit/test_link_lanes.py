"""Which carrier each side of a Link sends on, and what proves that a carrier belongs to the Link; without I/O."""

from __future__ import annotations

import hmac
import struct
from typing import Any, Final, final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from warpgate_trio.errors import RemoteProtocolError
from warpgate_trio.link.attaching import LinkSecret
from warpgate_trio.link.channel import Channel
from warpgate_trio.link.frame_codec import encode
from warpgate_trio.link.frames import Accept, At, Drop, Proof, Terms
from warpgate_trio.link.lane import MAX_NEWS_WAITING, TRIAL, LaneProtocol
from warpgate_trio.link.lanes import MAX_LANES
from warpgate_trio.link.life import (
    HEARD_MAX,
    HEARD_PAUSES,
    HINT_SLACK,
    LINGER,
    PAUSES,
    RESPONDER_WAITS,
    SLACK_MAX,
    SUSPICION_TRIPS,
    Life,
)
from warpgate_trio.link.moving import ASK_INTERVAL, SPARE_FOR, YOUNG
from warpgate_trio.link.protocol import LinkProtocol
from warpgate_trio.link.quiet import Uplink
from warpgate_trio.link.replay import ReplayMemory
from warpgate_trio.link.states import DirectionState
from warpgate_trio.link.stream import ACK_DELAY

SESSION: Final = b"session........."
PROOF: Final = Proof(client_key=bytes(32), session_id=SESSION, attempt_id=bytes(16), signature=bytes(64))
TERMS: Final = Terms(resume_timeout=120, secret=b"h" * 16, instance=b"i" * 8)
SAYS_AGAIN: Final = replace(TERMS, keeps_ahead=False)
"""Terms of a peer to which unacknowledged data is sent again after a change, since it keeps nothing ahead."""
KEYS: Final[dict[str, Any]] = {"session_id": SESSION, "server_key": b"k" * 32}


# --- what proves that a carrier belongs to a Link ---


def test_each_part_of_what_is_proven_counts() -> None:
    halves = (b"a" * 16, b"b" * 16, b"l" * 16)
    ours, theirs = (LinkSecret(*halves, initiator=initiator) for initiator in (True, False))
    attach = ours.attach(lane=3, received=5, turn=7, **KEYS)
    assert theirs.holds(attach, **KEYS)
    assert theirs.holds(ours.attached(lane=3, received=5, turn=7, **KEYS), **KEYS)
    assert not ours.holds(attach, **KEYS), "its own side's, said back to it"
    for changes in ({"lane": 4}, {"received": 6}, {"turn": 8}, {"mac": bytes(16)}):
        assert not theirs.holds(replace(attach, **changes), **KEYS), changes
    for key, value in KEYS.items():
        assert not theirs.holds(attach, **(KEYS | {key: b"?" * len(value)})), key
    for others in (
        (b"b" * 16, b"a" * 16, b"l" * 16),
        (b"a" * 16, b"b" * 16, b"m" * 16),
        (b"a" * 16, b"c" * 16, b"l" * 16),
    ):
        assert not LinkSecret(*others, initiator=False).holds(attach, **KEYS)


@pytest.mark.parametrize("initiator", [True, False])
def test_golden_proofs(initiator: bool) -> None:
    """The MAC of docs/wire_formats.md, computed here without the package's code."""
    secret = LinkSecret(b"a" * 16, b"b" * 16, b"l" * 16, initiator=initiator)
    key = hmac.digest(b"a" * 16 + b"b" * 16, b"warpgate-trio link v1" + b"l" * 16, "sha256")
    side = b"i" if initiator else b"r"
    proven = side + struct.pack("!I16s9sQI", 3, SESSION, b"its key..", 5, 7)
    mac = hmac.digest(key, b"warpgate-trio attach v1" + proven, "sha256")[:16]
    where = {"lane": 3, "received": 5, "turn": 7}
    for frame in (secret.attach, secret.attached):
        assert frame(**where, session_id=SESSION, server_key=b"its key..").mac == mac


# --- two ends, and carriers that come and go ---


@final
class Wire:
    """One carrier, with the bytes that each end has put on it."""

    def __init__(self, a: LaneProtocol, b: LaneProtocol) -> None:
        self.lanes = {"a": a, "b": b}
        self.bytes = {"a": bytearray(), "b": bytearray()}
        self.holes: set[str] = set()
        """Ends whose bytes are lost from now on."""


@final
class Ends:
    """Two ends of a Link: `a` is the initiator."""

    def __init__(self, bobs: Terms = TERMS, *, greeted: bool = True) -> None:
        self.now = 1000.0
        first = Wire(self.lane(dialler=True), self.lane(dialler=False))
        self.wires = [first]
        self.links = {
            "a": LinkProtocol(first.lanes["a"], initiator=True),
            "b": LinkProtocol(first.lanes["b"], initiator=False),
        }
        first.lanes["a"].send_proof(PROOF)
        self.settle()
        self.links["a"].send_commit(session_id=SESSION, link_id=b"l" * 16, epoch=1, now=self.now, terms=TERMS)
        self.settle()
        self.links["b"].send_accept(now=self.now, terms=bobs)
        self.settle()
        if greeted:
            first.lanes["b"].send_ping(self.now)
            self.settle()

    def lane(self, *, dialler: bool) -> LaneProtocol:
        return LaneProtocol(dialler=dialler, initiator=dialler, now=self.now, idle_interval=1e6)

    def main(self, name: str) -> Channel:
        return self.links[name].channels[0]

    def flush(self, name: str) -> None:
        link = self.links[name]
        for wire in self.wires:
            lane = wire.lanes[name]
            while lane in link.lanes and link.has_outbox(lane):
                wire.bytes[name] += link.transmit(lane, self.now)

    def deliver(self, wire: Wire, name: str, size: int | None = None) -> None:
        """Deliver some of the bytes that an end has put on a carrier."""
        self.flush(name)
        raw = bytes(wire.bytes[name][:size])
        del wire.bytes[name][:size]
        other = "b" if name == "a" else "a"
        lane = wire.lanes[other]
        if raw and name not in wire.holes and lane in self.links[other].lanes and not lane.is_over:
            self.links[other].receive(lane, [raw], self.now)

    def settle(self) -> None:
        """Deliver everything that arrives, until neither end sends anything more."""
        for _ in range(100):
            for name in ("a", "b"):
                self.flush(name)
            if not any(wire.bytes[name] for wire in self.wires for name in ("a", "b")):
                return
            for wire in self.wires:
                for name in ("a", "b"):
                    self.deliver(wire, name)
        raise AssertionError("they never stop: both swap for ever")

    def send(self, name: str, data: bytes) -> None:
        self.flush(name)
        link, channel = self.links[name], self.main(name)
        active = link.lanes.active
        assert active is not None
        if link.note_data_sent(active, channel, memoryview(data), self.now):
            from warpgate_trio.link.frame_codec import data_header

            wire = next(wire for wire in self.wires if wire.lanes[name] is active)
            wire.bytes[name] += data_header(channel.id, len(data)) + data

    def read(self, name: str) -> bytes:
        channel = self.main(name)
        data = channel.take(None) if channel.buffered else b""
        if data:
            self.links[name].note_read(channel, len(data), self.now)
        return data

    def attach(self, name: str, took: float = 0.0, *, preferred: bool = False) -> Wire | None:
        """An end offers one more carrier, whose handshake took `took` seconds; returns None where there is no room.

        `preferred`: the end changes over to it, once it has passed its trial.
        """
        if len(self.wires) >= MAX_LANES or any(link.lanes.full for link in self.links.values()):
            return None
        other = "b" if name == "a" else "a"
        ours, theirs = self.lane(dialler=True), self.lane(dialler=False)
        ours.began = theirs.began = self.now - took
        ours.send_proof(PROOF)
        self.links[name].attach(ours, **KEYS, now=self.now, preferred=preferred)
        theirs.receive([b"".join(ours.take_outbox())], self.now)
        assert theirs.attach is not None
        assert self.links[other].judge_attach(theirs.attach, **KEYS) is None
        wire = Wire(ours, theirs) if name == "a" else Wire(theirs, ours)
        self.links[other].take_attach(theirs, **KEYS, now=self.now)
        answer = b"".join(theirs.take_outbox())
        ours.receive([answer], self.now)
        assert ours.attached is not None
        self.wires.append(wire)
        self.links[name].hear_attached(ours, ours.attached, **KEYS, now=self.now)
        if preferred:
            self.links[name].prefer(ours, self.now)
        return wire

    def cut(self, wire: Wire) -> None:
        """A carrier ends, and both ends notice that."""
        self.wires.remove(wire)
        for name, link in self.links.items():
            if wire.lanes[name] in link.lanes:
                link.lose(wire.lanes[name], self.now)

    def promote(self, name: str, wire: Wire) -> None:
        """An end changes over to a carrier without a trial."""
        link, lane = self.links[name], wire.lanes[name]
        if lane in link.lanes and lane is not link.lanes.active and not lane.is_over:
            link.lanes.promote(lane)
            link._stop_following()
            link._begin(lane, self.now)
            lane.hint(self.now)

    def prefer(self, name: str, wire: Wire) -> None:
        """An end finds a carrier better than its active one, and puts it on trial."""
        link, lane = self.links[name], wire.lanes[name]
        if lane in link.lanes and not lane.is_over:
            link.prefer(lane, self.now)

    def close_dropped(self) -> None:
        """As the shell does with carriers that one side has given up."""
        for wire in list(self.wires):
            if any(lane.is_over for lane in wire.lanes.values()):
                self.cut(wire)

    def is_good(self, wire: Wire) -> bool:
        """Whether a carrier works in both directions, and both ends consider it well."""
        return not wire.holes and all(lane.is_well for lane in wire.lanes.values())

    def wait_until_suspect(self, name: str, lane: LaneProtocol) -> None:
        link = self.links[name]
        while lane.life.life is Life.WELL:
            self.now = link.deadline(lane)
            link.handle_timer(lane, self.now)

    def speaks_on(self, name: str) -> Wire | None:
        active = self.links[name].lanes.active
        return next((wire for wire in self.wires if wire.lanes[name] is active), None)


def test_names_of_carriers_grow_and_are_not_used_twice() -> None:
    ends = Ends()
    names = []
    for name in ("a", "b", "b", "a"):
        wire = ends.attach(name)
        assert wire is not None
        names.append(wire.lanes[name].number)
        ends.settle()
        ends.cut(wire)
    assert names == [3, 2, 4, 5]


@pytest.mark.parametrize("seconds", [0, 1, 120])
def test_a_link_may_have_further_carriers_once_the_callee_has_heard_from_the_caller(seconds: int) -> None:
    """And only where both keep a Link without a carrier; a caller that vanished before would not come back."""
    for greeted in (False, True):
        ends = Ends(replace(TERMS, resume_timeout=seconds), greeted=greeted)
        assert ends.links["a"].movable is (seconds > 0)
        assert ends.links["b"].movable is (seconds > 0 and greeted)
        assert all(link.is_lasting is (seconds > 0) for link in ends.links.values())


def test_what_proves_a_carrier_is_made_of_the_callers_half_and_the_callees() -> None:
    ends = Ends(replace(TERMS, secret=b"b" * 16))
    secrets = [LinkSecret(TERMS.secret, b"b" * 16, b"l" * 16, initiator=initiator) for initiator in (True, False)]
    for name, (ours, theirs) in (("a", secrets), ("b", secrets[::-1])):
        wire = ends.attach(name)
        assert wire is not None
        lane = wire.lanes[name]
        assert lane.attach is not None
        assert lane.attached is not None
        assert theirs.holds(lane.attach, **KEYS)
        assert ours.holds(lane.attached, **KEYS)


def test_which_carriers_a_peer_may_offer() -> None:
    """Those whose ATTACH has a valid MAC and plausible claims."""
    secret = LinkSecret(TERMS.secret, TERMS.secret, b"l" * 16, initiator=True)
    ends = Ends()
    assert ends.attach("a") is not None
    ends.settle()
    ends.send("b", b"12345")

    def judge(
        link: LinkProtocol = ends.links["b"], *, lane: int = 5, received: int = 5, session: bytes = SESSION
    ) -> bool:
        attach = secret.attach(lane=lane, received=received, turn=0, **KEYS)
        return link.judge_attach(attach, session_id=session, server_key=KEYS["server_key"]) is None

    assert judge()
    assert judge(received=0)
    assert not judge(received=6), "more than was said"
    assert not judge(session=b"another session.")
    for lane in (0, 1, 2, 3, 4):
        assert not judge(lane=lane), "it is not the peer's to give, or there is one"
    ends.cut(ends.wires[0])
    assert not judge(lane=1), "it was the first one's"
    assert not judge(Ends(greeted=False).links["b"], received=0)
    ends.links["b"].break_all(ValueError("it is over"))
    assert not judge()


@pytest.mark.parametrize("what", ["lane", "mac"])
def test_an_answer_that_does_not_prove_the_link_is_not_believed(what: str) -> None:
    ends = Ends()
    ours, link = ends.lane(dialler=True), ends.links["a"]
    ours.send_proof(PROOF)
    link.attach(ours, **KEYS, now=ends.now)
    secret = LinkSecret(TERMS.secret, TERMS.secret, b"l" * 16, initiator=False)
    good = secret.attached(lane=3, received=0, turn=0, **KEYS)
    bad = secret.attached(lane=5, received=0, turn=0, **KEYS) if what == "lane" else replace(good, mac=bytes(16))
    with pytest.raises(RemoteProtocolError, match="does not prove that it has the link"):
        link.hear_attached(ours, bad, **KEYS, now=ends.now)
    assert len(link.lanes) == 1
    link.hear_attached(ours, good, **KEYS, now=ends.now)
    assert len(link.lanes) == 2


def test_who_was_called_waits_longer_on_each_carrier_before_it_asks() -> None:
    ends = Ends()
    assert ends.attach("b") is not None
    ends.settle()
    for name, waits in (("a", 1.0), ("b", RESPONDER_WAITS)):
        for wire in ends.wires:
            assert wire.lanes[name].life.deadline - ends.now == pytest.approx(1e6 * waits)


def test_the_round_trip_of_a_carrier_is_known_soon() -> None:
    ends = Ends()
    wire = ends.attach("a")
    assert wire is not None
    ends.settle()
    assert all(lane.life.answered for lane in wire.lanes.values())


@pytest.mark.parametrize("name", ["a", "b"])
def test_without_a_carrier_the_next_one_is_spoken_on_as_soon_as_it_is_there(name: str) -> None:
    ends = Ends()
    first = ends.wires[0]
    ends.cut(first)
    for each, link in ends.links.items():
        assert link.life is first.lanes[each].life, "the last one's, as long as there is none"
    wire = ends.attach(name)
    assert wire is not None
    assert ends.speaks_on("a") is ends.speaks_on("b") is wire
    for each, link in ends.links.items():
        assert link.life is wire.lanes[each].life


def test_the_carrier_that_is_spoken_on_needs_no_trial() -> None:
    ends = Ends()
    ends.attach("a")
    ends.settle()
    ends.prefer("a", ends.wires[0])
    assert not ends.links["a"].has_outbox(ends.wires[0].lanes["a"])


def test_who_hears_a_higher_turn_follows() -> None:
    ends = Ends()
    wire = ends.attach("a")
    assert wire is not None
    ends.settle()
    ends.promote("b", wire)
    ends.settle()
    assert ends.speaks_on("a") is ends.speaks_on("b") is wire
    assert [link.lanes.turn for link in ends.links.values()] == [1, 1]


@pytest.mark.parametrize("name", ["a", "b"])
def test_an_old_turn_is_not_followed(name: str) -> None:
    ends = Ends()
    wire, other = ends.attach("a"), "b" if name == "a" else "a"
    assert wire is not None
    ends.settle()
    ends.promote(name, wire)
    ends.settle()
    ends.wires[0].lanes[other].say(At(position=0, turn=0))
    ends.settle()
    assert ends.speaks_on("a") is ends.speaks_on("b") is wire
    assert [link.lanes.turn for link in ends.links.values()] == [1, 1]


def test_where_both_change_over_at_once_the_initiator_is_followed() -> None:
    ends = Ends()
    first, second = ends.wires[0], ends.attach("a")
    third = ends.attach("b")
    assert second is not None
    assert third is not None
    ends.settle()
    ends.promote("a", second)
    ends.promote("b", third)
    ends.settle()
    assert ends.speaks_on("a") is ends.speaks_on("b") is second is not first


def test_a_carrier_that_is_lost_gives_way_to_the_newest() -> None:
    ends = Ends()
    ends.attach("a")
    newest = ends.attach("b")
    ends.settle()
    ends.send("a", b"hello")
    lost = ends.wires[0]
    ends.cut(lost)
    assert all(lane.is_over for lane in lost.lanes.values())
    assert ends.speaks_on("a") is ends.speaks_on("b") is newest
    ends.settle()
    assert ends.read("b") == b"hello"


def test_a_frame_of_which_a_part_came_with_a_carrier_that_is_gone_comes_whole_on_the_next_one() -> None:
    ends = Ends()
    ends.attach("a")
    ends.settle()
    ends.links["a"].finish(ends.main("a"))
    ends.deliver(ends.wires[0], "a", 5)
    ends.cut(ends.wires[0])
    for _ in range(2):
        for each in "ab":
            ends.deliver(ends.wires[0], each)
    assert ends.main("b").incoming is DirectionState.FINISHED


def test_a_suspect_gives_way_to_one_that_is_well() -> None:
    ends = Ends()
    wire = ends.attach("a")
    ends.settle()
    lane = ends.wires[0].lanes["a"]
    ends.wires[0].holes = {"a"}
    ends.send("a", b"hello")
    ends.wait_until_suspect("a", lane)
    assert ends.speaks_on("a") is wire
    ends.settle()
    assert ends.read("b") == b"hello"
    assert ends.speaks_on("b") is wire


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_better_carrier_is_spoken_on_once_it_has_carried_bulk_each_way(name: str) -> None:
    ends = Ends()
    first, other = ends.wires[0], "b" if name == "a" else "a"
    wire = ends.attach(name)
    assert wire is not None
    ends.prefer(name, wire)
    ends.flush(name)
    assert len(wire.bytes[name]) > TRIAL
    ends.send(name, b"over the old one")
    ends.deliver(wire, name)
    assert ends.speaks_on(name) is ends.speaks_on(other) is first
    ends.deliver(wire, other)  # the answer to the trial
    assert ends.speaks_on(name) is wire
    ends.deliver(wire, name)  # AT
    assert ends.speaks_on(other) is first, "its own direction is not tried yet"
    ends.flush(other)
    assert len(wire.bytes[other]) > TRIAL
    ends.settle()
    assert ends.speaks_on(name) is ends.speaks_on(other) is wire
    assert [(link.lanes.turn, link.lanes.followed) for link in ends.links.values()] == [
        (1, name == "b"),
        (1, name == "a"),
    ]
    assert ends.read(other) == b"over the old one"
    assert len(ends.wires) == 2, "the old one is there, should it be needed"


@pytest.mark.parametrize("hole", ["a", "b"])
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_better_carrier_that_does_not_carry_bulk_one_way_costs_nothing(name: str, hole: str) -> None:
    ends = Ends()
    first, other = ends.wires[0], "b" if name == "a" else "a"
    wire = ends.attach(name)
    assert wire is not None
    ends.settle()
    wire.holes = {hole}
    ends.prefer(name, wire)
    ends.settle()
    ends.wait_until_suspect(name, wire.lanes[name])
    ends.settle()
    assert wire.lanes[name].was_dropped
    assert wire.lanes[other].was_dropped
    assert wire.lanes[name].is_over
    assert wire.lanes[other].is_over
    ends.close_dropped()
    for each in "ab":
        assert ends.speaks_on(each) is first
        ends.send(each, b"hello")
    ends.settle()
    assert ends.read("a") == ends.read("b") == b"hello"


def test_who_follows_tries_its_own_direction_and_brings_the_peer_back_where_that_is_a_hole() -> None:
    ends = Ends()
    first, wire = ends.wires[0], ends.attach("a")
    assert wire is not None
    ends.prefer("a", wire)
    ends.deliver(wire, "a")
    ends.deliver(wire, "b")
    assert ends.speaks_on("a") is wire
    ends.send("a", b"hello")
    wire.holes = {"b"}
    ends.settle()
    assert ends.read("b") == b"hello"
    assert ends.speaks_on("b") is first
    ends.wait_until_suspect("b", wire.lanes["b"])
    ends.settle()
    ends.close_dropped()
    ends.settle()
    assert ends.speaks_on("a") is ends.speaks_on("b") is first
    assert ends.links["a"].outgoing is not None


def test_a_carrier_that_is_no_good_in_its_first_seconds_is_dropped_and_an_old_one_is_left() -> None:
    for age, dropped in ((YOUNG - 1, True), (YOUNG + 1, False)):
        ends = Ends()
        first, wire = ends.wires[0], ends.attach("a")
        assert wire is not None
        ends.prefer("a", wire)
        ends.settle()
        assert ends.speaks_on("a") is wire
        ends.now += age
        wire.lanes["a"].hint(ends.now)
        wire.holes = {"a", "b"}
        ends.wait_until_suspect("a", wire.lanes["a"])
        assert ends.speaks_on("a") is first
        assert wire.lanes["a"].was_dropped is dropped, age
        ends.settle()
        assert wire.lanes["b"].was_dropped is dropped, age


def test_who_flees_from_a_carrier_asks_the_other_one_at_once() -> None:
    """The cause may have affected both carriers: that is known a round trip and half a second later."""
    ends = Ends()
    wire = ends.attach("a")
    assert wire is not None
    ends.settle()
    for each in ends.wires:
        each.holes = {"a", "b"}
    ends.send("a", b"hello")
    first, second = (each.lanes["a"] for each in ends.wires)
    ends.wait_until_suspect("a", first)
    while ends.speaks_on("a") is not wire:  # a suspect is left once nothing was received for as long
        ends.now = ends.links["a"].deadline(first)
        ends.links["a"].handle_timer(first, ends.now)
    left = ends.now
    ends.wait_until_suspect("a", second)
    assert ends.now - left <= second.life.trip + HINT_SLACK


def test_a_carrier_that_is_one_too_many_takes_the_place_of_the_one_that_was_silent_for_longest() -> None:
    ends = Ends()
    first, second, third = ends.wires[0], ends.attach("a"), ends.attach("b")
    assert second is not None
    assert third is not None
    ends.settle()
    ends.now += 1.0
    for wire in (first, third):  # then the second is the carrier that was silent for longest
        for lane in wire.lanes.values():
            lane.send_ping(ends.now)
    ends.settle()
    ends.promote("b", third)
    ends.settle()
    ours, theirs = ends.lane(dialler=True), ends.lane(dialler=False)
    ours.send_proof(PROOF)
    ends.links["a"].attach(ours, **KEYS, now=ends.now)
    theirs.receive([b"".join(ours.take_outbox())], ends.now)
    assert theirs.attach is not None
    assert ends.links["b"].judge_attach(theirs.attach, **KEYS) is None
    ends.links["b"].take_attach(theirs, **KEYS, now=ends.now)
    ours.receive([b"".join(theirs.take_outbox())], ends.now)
    assert ours.attached is not None
    ends.links["a"].hear_attached(ours, ours.attached, **KEYS, now=ends.now)
    for name, link in ends.links.items():
        assert len(link.lanes) == MAX_LANES
        assert second.lanes[name] not in link.lanes
        assert second.lanes[name].is_over
        assert not second.lanes[name].was_dropped
        assert ends.speaks_on(name) is third


def test_what_comes_on_a_carrier_is_acknowledged_there_too_where_the_other_one_may_be_a_hole() -> None:
    """Law 10: otherwise a working carrier would be suspected, and closed if it is young."""
    ends = Ends()
    first, wire = ends.wires[0], ends.attach("a")
    assert wire is not None
    ends.settle()
    ends.promote("a", wire)
    ends.settle()
    first.holes = {"b"}
    ends.promote("b", first)  # `a` does not learn of that
    ends.send("a", b"hello")
    ends.settle()
    assert ends.read("b") == b"hello"
    ends.now += ACK_DELAY
    for lane in ends.links["b"].lanes:
        ends.links["b"].handle_timer(lane, ends.now)
    ends.settle()
    outgoing = ends.links["a"].outgoing
    assert outgoing is not None
    assert outgoing.acknowledged == outgoing.end


def test_a_peer_that_changes_over_without_end_is_left_unread_for_a_while() -> None:
    ends = Ends()
    wire = ends.attach("a")
    assert wire is not None
    ends.settle()
    lanes = [each.lanes["b"] for each in ends.wires]
    for number in range(80):
        assert not any(lane.pause(ends.now) for lane in lanes) or number > 2
        ends.promote("a", ends.wires[(number + 1) % 2])
        ends.settle()
    assert max(lane.pause(ends.now) for lane in lanes) > 0.01


def test_a_peer_that_says_again_where_it_speaks_has_not_changed_over() -> None:
    """A peer sends AT where an ACK has overtaken what it was to send again; that is free, and ends no trial."""
    ends = Ends()
    first, wire = ends.wires[0], ends.attach("a")
    assert wire is not None
    ends.settle()
    ends.prefer("a", wire)
    for _ in range(20):
        first.lanes["b"].say(At(position=0, turn=0))
        ends.deliver(first, "b")
    assert not first.lanes["a"].pause(ends.now)
    ends.deliver(wire, "a")
    ends.deliver(wire, "b")
    assert ends.speaks_on("a") is wire
    ends.deliver(wire, "a")  # AT: Bob tries his own direction
    for _ in range(20):
        wire.lanes["a"].say(At(position=0, turn=1))
        ends.deliver(wire, "a")
    assert ends.speaks_on("b") is first, "his own direction is not tried yet"
    ends.deliver(wire, "b")
    ends.deliver(wire, "a")
    assert ends.speaks_on("b") is wire
    assert not wire.lanes["b"].pause(ends.now)


def test_who_follows_in_the_middle_of_a_trial_of_its_own_goes_on_with_that() -> None:
    ends = Ends()
    second, third = ends.attach("a"), ends.attach("b")
    assert second is not None
    assert third is not None
    ends.settle()
    ends.prefer("a", second)
    ends.promote("b", third)
    ends.deliver(third, "b")
    assert ends.speaks_on("a") is third
    ends.settle()
    assert ends.speaks_on("a") is ends.speaks_on("b") is second


def test_who_flees_in_the_middle_of_a_trial_that_the_peer_has_begun_ends_that() -> None:
    """Law 5: otherwise each side would go, after the trial, to the carrier that the other one has left."""
    ends = Ends()
    second, third = ends.attach("a"), ends.attach("b")
    assert second is not None
    assert third is not None
    ends.settle()
    ends.prefer("a", second)
    ends.deliver(second, "a")
    ends.deliver(second, "b")
    ends.deliver(second, "a")  # AT: Bob tries his own direction
    ends.wires[0].lanes["b"].life.life = Life.SUSPECT
    assert ends.links["b"].choose(ends.now)
    assert ends.speaks_on("b") is third
    ends.settle()
    assert ends.speaks_on("a") is ends.speaks_on("b") is third


def test_where_both_change_over_at_once_in_the_middle_of_a_trial_the_initiator_is_followed() -> None:
    ends = Ends()
    first, second, third = ends.wires[0], ends.attach("a"), ends.attach("b")
    assert second is not None
    assert third is not None
    ends.settle()
    ends.prefer("a", second)
    ends.deliver(second, "a")
    ends.deliver(second, "b")
    ends.deliver(second, "a")  # AT: Bob tries his own direction
    first.lanes["b"].life.life = Life.SUSPECT
    assert ends.links["b"].choose(ends.now)
    first.lanes["b"].life.life = Life.WELL
    ends.promote("a", first)
    ends.settle()
    assert ends.speaks_on("a") is ends.speaks_on("b") is first


def test_who_tries_a_carrier_follows_there_at_once_where_the_peer_has_fled_to_it() -> None:
    ends = Ends()
    wire = ends.attach("a")
    assert wire is not None
    ends.settle()
    ends.prefer("a", wire)
    ends.promote("b", wire)
    ends.deliver(wire, "b")
    assert ends.speaks_on("a") is ends.speaks_on("b") is wire


@pytest.mark.parametrize("why", ["the peer has fled", "ours is no good"])
def test_who_follows_has_no_time_for_a_trial_where_the_old_carrier_is_no_good(why: str) -> None:
    ends = Ends()
    wire = ends.attach("b")
    assert wire is not None
    ends.settle()
    if why == "the peer has fled":
        ends.promote("b", wire)
    else:
        ends.prefer("b", wire)
        ends.deliver(wire, "b")
        ends.deliver(wire, "a")
        ends.wires[0].lanes["a"].life.life = Life.SUSPECT
    assert ends.speaks_on("b") is wire
    ends.deliver(wire, "b")
    assert ends.speaks_on("a") is wire
    assert [link.lanes.turn for link in ends.links.values()] == [1, 1]


@pytest.mark.parametrize("flees", [True, False])
def test_from_a_peer_that_flees_after_a_long_silence_something_is_learnt_of_the_nats(flees: bool) -> None:
    ends = Ends()
    wire, uplink = ends.attach("a"), Uplink()
    assert wire is not None
    ends.settle()
    uplink.note_borne(asked=False)
    ends.wires[0].lanes["b"].life.uplink = uplink
    ends.now += 2e6
    if flees:
        ends.promote("a", wire)
    else:
        ends.prefer("a", wire)
    ends.settle()
    assert ends.speaks_on("b") is wire
    assert uplink.bears is not flees


def test_a_carrier_that_is_gone_may_be_dropped_by_the_peer() -> None:
    ends = Ends()
    ends.wires[0].lanes["b"].say(Drop(lane=3))
    ends.settle()
    assert not ends.wires[0].lanes["a"].is_over


def test_a_carrier_is_spare_where_nobody_has_spoken_on_it_for_a_while_and_the_other_one_is_well() -> None:
    ends = Ends()
    first, wire = ends.wires[0].lanes["a"], ends.attach("a")
    assert wire is not None
    second, link = wire.lanes["a"], ends.links["a"]
    ends.settle()
    assert not link.is_spare(second, ends.now + SPARE_FOR - 0.1)
    now = ends.now + SPARE_FOR
    assert link.is_spare(second, now)
    assert not link.is_spare(first, now), "we speak on it"
    first.life.life = Life.SUSPECT
    assert not link.is_spare(second, now)
    second.life.life = Life.SUSPECT
    link.lose(first, now)
    assert link.lanes.active is None
    assert not link.is_spare(second, now)


def test_after_a_hint_each_carrier_is_asked() -> None:
    ends = Ends()
    assert ends.attach("a") is not None
    ends.settle()
    ends.links["a"].hint(ends.now)
    assert [lane.life.asking for lane in ends.links["a"].lanes] == [True, True]


def test_a_trial_that_the_peer_has_begun_ends_where_it_goes_elsewhere() -> None:
    ends = Ends()
    first, wire = ends.wires[0], ends.attach("a")
    assert wire is not None
    ends.prefer("a", wire)
    ends.deliver(wire, "a")
    ends.deliver(wire, "b")
    ends.deliver(wire, "a")  # AT: Bob tries his own direction
    ends.promote("a", first)
    ends.deliver(first, "a")
    ends.settle()
    assert ends.speaks_on("a") is ends.speaks_on("b") is first


def test_who_changes_over_hears_on_that_carrier_that_it_carries() -> None:
    """Although the peer does not send there yet and nothing new arrives; on the old carrier ACKs may be lost."""
    ends = Ends()
    first, wire = ends.wires[0], ends.attach("a")
    assert wire is not None
    ends.settle()
    ends.send("a", b"hello")
    ends.prefer("a", wire)
    ends.deliver(wire, "a")
    ends.flush("b")  # PONG, and an ACK of what has arrived
    ends.deliver(first, "a")
    first.holes = {"b"}
    ends.now += ACK_DELAY
    ends.links["b"].handle_timer(first.lanes["b"], ends.now)
    ends.deliver(first, "b")
    ends.deliver(wire, "b")
    assert ends.speaks_on("a") is wire
    outgoing = ends.links["a"].outgoing
    assert outgoing is not None
    assert outgoing.acknowledged < outgoing.end
    ends.deliver(wire, "a")
    ends.deliver(wire, "b")
    assert ends.speaks_on("b") is first
    assert outgoing.acknowledged == outgoing.end


@pytest.mark.parametrize("lost", [False, True])
def test_a_carrier_that_is_well_again_is_spoken_on_at_once_where_the_other_one_is_no_good(lost: bool) -> None:
    """At once, not at the next timer, which may be long in coming."""
    ends = Ends()
    first, wire = ends.wires[0], ends.attach("a")
    assert wire is not None
    ends.settle()
    link = ends.links["a"]
    first.holes = {"a", "b"}
    ends.send("a", b"hello")
    for each in (first, wire):
        each.lanes["a"].hint(ends.now)
    ends.now += first.lanes["a"].life.trip + HINT_SLACK
    for each in (wire, first):
        link.handle_timer(each.lanes["a"], ends.now)
    assert not first.lanes["a"].is_well
    assert not wire.lanes["a"].is_well
    if lost:
        ends.cut(first)
    ends.settle()  # the answer was only late
    assert ends.speaks_on("a") is wire
    assert ends.read("b") == b"hello"


def test_an_acknowledgement_is_not_lost_with_what_is_said_on_another_carrier() -> None:
    ends = Ends()
    first, wire = ends.wires[0], ends.attach("a")
    assert wire is not None
    ends.settle()
    wire.holes = {"b"}
    ends.send("a", b"hello")
    ends.deliver(first, "a")
    wire.lanes["b"].send_ping(ends.now)
    ends.deliver(wire, "b")
    ends.now += ACK_DELAY
    ends.links["b"].handle_timer(first.lanes["b"], ends.now)
    ends.settle()
    outgoing = ends.links["a"].outgoing
    assert outgoing is not None
    assert outgoing.acknowledged == outgoing.end


def test_who_changes_over_says_there_how_far_it_is() -> None:
    """Its ACKs on the carrier that it has left may be lost, and the peer may send on the new one already."""
    ends = Ends()
    first, wire = ends.wires[0], ends.attach("a")
    assert wire is not None
    ends.settle()
    wire.holes = {"b"}
    ends.promote("b", wire)
    ends.flush("b")
    wire.bytes["b"].clear()
    ends.send("a", b"hello")
    ends.settle()
    ends.now += ACK_DELAY
    ends.links["b"].handle_timer(wire.lanes["b"], ends.now)
    ends.settle()
    ends.promote("b", first)
    ends.settle()
    assert ends.speaks_on("a") is ends.speaks_on("b") is first
    outgoing = ends.links["a"].outgoing
    assert outgoing is not None
    assert outgoing.acknowledged == outgoing.end


def test_who_follows_and_learns_at_once_that_all_has_come_waits_for_nothing() -> None:
    ends = Ends()
    first, wire = ends.wires[0], ends.attach("a")
    assert wire is not None
    ends.settle()
    ends.send("a", b"hello")
    first.holes = {"b"}
    ends.settle()
    ends.promote("b", wire)
    ends.settle()
    assert ends.speaks_on("a") is wire
    assert wire.lanes["a"].life.unanswered(ends.now + 1) == 0


@pytest.mark.parametrize("waits", [True, False])
def test_who_changes_over_waits_there_for_what_is_not_acknowledged(waits: bool) -> None:
    """Otherwise nobody would notice that the new carrier has failed since its trial.  It waits for nothing else."""
    ends = Ends(SAYS_AGAIN)
    first, wire = ends.wires[0], ends.attach("a")
    assert wire is not None
    ends.settle()
    first.holes = {"b"}
    if waits:
        ends.send("a", b"hello")
    ends.prefer("a", wire)
    ends.deliver(wire, "a")
    ends.deliver(wire, "b")
    assert ends.speaks_on("a") is wire
    assert wire.lanes["a"].life.unanswered(ends.now + 1) == waits


def test_what_was_said_on_the_carrier_that_is_left_is_waited_for_on_the_new_one_alone() -> None:
    ends = Ends(SAYS_AGAIN)
    first, wire = ends.wires[0], ends.attach("a")
    assert wire is not None
    ends.settle()
    ends.send("a", b"hello")
    ends.deliver(first, "a")
    ends.send("a", b"again")
    ends.prefer("a", wire)
    ends.deliver(wire, "a")
    ends.deliver(wire, "b")
    assert ends.speaks_on("a") is wire
    later = ends.now + 1
    assert (first.lanes["a"].life.unanswered(later), wire.lanes["a"].life.unanswered(later)) == (0, 1)
    ends.now += ACK_DELAY
    ends.links["b"].handle_timer(first.lanes["b"], ends.now)
    ends.deliver(first, "b")  # an ACK of a part
    assert first.lanes["a"].life.unanswered(later) == 0


def test_a_carrier_on_trial_is_taken_at_once_where_the_old_one_is_lost() -> None:
    ends = Ends()
    wire = ends.attach("a")
    assert wire is not None
    ends.prefer("a", wire)
    ends.send("a", b"hello")
    ends.cut(ends.wires[0])
    ends.settle()
    assert ends.speaks_on("a") is ends.speaks_on("b") is wire
    assert [link.lanes.turn for link in ends.links.values()] == [1, 1], "the end of the trial changes nothing"
    assert ends.read("b") == b"hello"


def test_a_carrier_that_is_lost_on_trial_is_not_said_to_be_no_good() -> None:
    ends = Ends()
    wire = ends.attach("a")
    assert wire is not None
    ends.settle()
    ends.prefer("a", wire)
    ends.cut(wire)
    assert not wire.lanes["a"].was_dropped
    assert not ends.links["a"].has_outbox(ends.wires[0].lanes["a"])


def test_a_signal_goes_on_every_lane_and_counts_where_one_is_well() -> None:
    ends = Ends()
    first, wire = ends.wires[0], ends.attach("a")
    assert wire is not None
    ends.settle()
    link = ends.links["a"]
    assert link.say_news(b"sealed")
    ends.settle()
    assert ends.links["b"].take_news() == [b"sealed", b"sealed"]
    for each in (first, wire):
        each.lanes["a"].life.life = Life.SUSPECT
    assert not link.say_news(b"perhaps")
    ends.settle()
    assert ends.links["b"].take_news() == [b"perhaps", b"perhaps"]


def test_signals_do_not_pile_up_behind_a_carrier_that_takes_nothing() -> None:
    link = Ends().links["a"]
    for number in range(MAX_NEWS_WAITING):
        assert link.say_news(b"sealed"), number
    assert not link.say_news(b"sealed")


@pytest.mark.parametrize("hears", [True, False])
def test_who_does_not_take_signals_on_a_link_is_said_none(hears: bool) -> None:
    ends = Ends(replace(TERMS, hears_news=hears))
    assert ends.links["a"].say_news(b"sealed") is hears
    assert ends.links["a"].has_outbox(ends.wires[0].lanes["a"]) is hears


def test_a_suspect_that_is_late_is_not_left_until_it_falls_silent() -> None:
    ends = Ends()
    wire = ends.attach("a")
    ends.settle()
    lane = ends.wires[0].lanes["a"]
    ends.wires[0].holes = {"a"}
    ends.send("a", b"hello")
    while lane.life.life is Life.WELL or lane.life.is_late:
        assert ends.speaks_on("a") is ends.wires[0]
        ends.now = min(ends.now + 0.5, ends.links["a"].deadline(lane))
        if lane.life.life is Life.WELL:
            ends.send("b", b"x")
            ends.deliver(ends.wires[0], "b")
        ends.links["a"].handle_timer(lane, ends.now)
    assert ends.speaks_on("a") is wire


def test_a_suspect_has_three_times_as_long_as_another_carrier_needed_to_come() -> None:
    """A bad network made that handshake slow, and may have delayed the suspect as well."""
    ends = Ends()
    first, lane, began = ends.wires[0], ends.wires[0].lanes["a"], ends.now
    first.holes = {"a"}
    ends.send("a", b"hello")
    ends.wait_until_suspect("a", lane)
    assert not lane.life.is_late
    wire = ends.attach("a", took=3.0)
    assert wire is not None
    ends.settle()
    while ends.speaks_on("a") is first:
        for each in (lane, wire.lanes["a"]):
            if ends.links["a"].deadline(each) <= ends.now:
                ends.links["a"].handle_timer(each, ends.now)
        ends.settle()
        ends.now += 0.1
    assert ends.now - began == pytest.approx(PAUSES / 2 * 3.0, abs=0.25)
    assert ends.speaks_on("a") is ends.speaks_on("b") is wire
    assert wire.lanes["a"].life.pause == 1.5, "that is asked at once, and its link may pause as well"
    assert ends.read("b") == b"hello"


def test_another_carrier_brings_word_that_a_suspect_carries() -> None:
    """ACKs that the peer sends on the suspect are lost there with everything else."""
    ends = Ends()
    first, lane = ends.wires[0], ends.wires[0].lanes["a"]
    link = ends.links["a"]
    first.holes = {"b"}
    ends.send("a", b"hello")
    ends.settle()
    ends.wait_until_suspect("a", lane)
    assert not link.has_spare
    wire = ends.attach("a", took=3.0)
    assert wire is not None
    ends.settle()
    assert link.has_spare
    ends.send("a", b" again")
    ends.settle()
    assert lane.life.life is Life.SUSPECT
    ends.now = link.deadline(wire.lanes["a"])
    assert ends.now <= wire.lanes["a"].life.answered_at + ASK_INTERVAL
    link.handle_timer(wire.lanes["a"], ends.now)
    ends.settle()
    assert lane.life.life is Life.WELL
    assert ends.speaks_on("a") is first
    assert ends.read("b") == b"hello again"
    assert wire.lanes["a"].life.asking is False
    assert link.deadline(wire.lanes["a"]) > ends.now + ASK_INTERVAL, "and it is not asked any more"


@pytest.mark.parametrize("who", ["offers", "takes"])
def test_how_far_a_side_is_may_be_known_better_than_its_handshake_says(who: str) -> None:
    """An ACK on the existing carrier overtakes the ATTACH, or the ATTACHED."""
    ends = Ends()
    a, b = ends.links["a"], ends.links["b"]
    ours, theirs = ends.lane(dialler=True), ends.lane(dialler=False)
    ours.send_proof(PROOF)
    if who == "offers":
        ends.send("b", b"12345")
        a.attach(ours, **KEYS, now=ends.now)  # nothing of it has arrived yet
        ends.settle()
        ends.now += ACK_DELAY
        a.handle_timer(ends.wires[0].lanes["a"], ends.now)
        ends.settle()
        assert b.outgoing is not None
        assert b.outgoing.acknowledged
    else:
        a.attach(ours, **KEYS, now=ends.now)
    theirs.receive([b"".join(ours.take_outbox())], ends.now)
    assert theirs.attach is not None
    assert b.judge_attach(theirs.attach, **KEYS) is None
    if who == "takes":
        ends.send("a", b"12345")
    b.take_attach(theirs, **KEYS, now=ends.now)
    ours.receive([b"".join(theirs.take_outbox())], ends.now)
    if who == "takes":
        ends.settle()
        ends.now += ACK_DELAY
        b.handle_timer(ends.wires[0].lanes["b"], ends.now)
        ends.settle()
        assert a.outgoing is not None
        assert a.outgoing.acknowledged
    assert ours.attached is not None
    a.hear_attached(ours, ours.attached, **KEYS, now=ends.now)
    assert len(a.lanes) == len(b.lanes) == 2


@pytest.mark.parametrize("name", ["a", "b"])
def test_with_a_carrier_that_joins_each_side_learns_how_far_the_other_one_is(name: str) -> None:
    """So nothing is sent again that has arrived, even if its ACK has not."""
    ends = Ends()
    for each in "ab":
        ends.send(each, b"hello")
        ends.deliver(ends.wires[0], each)
    streams = [link.outgoing for link in ends.links.values()]
    assert all(stream is not None and stream.acknowledged < stream.end for stream in streams)
    ends.attach(name)
    assert all(stream is not None and stream.acknowledged == stream.end for stream in streams)


@pytest.mark.parametrize("name", ["a", "b"])
def test_names_of_lanes_are_odd_from_the_initiator_and_even_from_the_responder(name: str) -> None:
    ends = Ends()
    for number in range(4):
        wire = ends.attach(name)
        assert wire is not None
        assert wire.lanes[name].number % 2 == (name == "a"), number
        ends.settle()
        ends.cut(wire)


def test_a_peer_that_keeps_no_links_leaves_nothing_counted() -> None:
    """Data sent before the peer's ACCEPT is kept, and counted in the replay memory until an ACCEPT without terms."""
    memory = ReplayMemory()
    lane = LaneProtocol(dialler=True, initiator=True, now=0.0, idle_interval=60)
    link = LinkProtocol(lane, initiator=True)
    lane.send_proof(PROOF)
    channel = link.send_commit(session_id=SESSION, link_id=bytes(16), epoch=1, now=0.0, terms=TERMS)
    assert link.outgoing is not None
    link.outgoing.share(memory)
    link.note_data_sent(lane, channel, memoryview(bytes(1000)), 0.0)
    assert memory.held >= 1000
    link.receive(lane, [encode(Accept(channel=0, credit=1 << 20))], 0.0)
    assert memory.held == 0
    link.break_all(RemoteProtocolError("over"))
    assert memory.held == 0


class Schedules(RuleBasedStateMachine):
    """In any order of events, each side takes in the other's stream once and in order, and both agree in the end."""

    @initialize(terms=st.sampled_from([TERMS, SAYS_AGAIN]))
    def begin(self, terms: Terms) -> None:
        self.ends = Ends(terms)
        self.sent = {"a": bytearray(), "b": bytearray()}
        self.got = {"a": bytearray(), "b": bytearray()}

    @precondition(lambda self: len(self.ends.wires) > 0)
    @rule(name=st.sampled_from("ab"), size=st.integers(1, 3000))
    def write(self, name: str, size: int) -> None:
        if self.ends.links[name].lanes.active is None or self.ends.main(name).sendable < size:
            return
        start = len(self.sent[name])
        data = bytes((start + index) % 251 for index in range(size))
        self.ends.send(name, data)
        self.sent[name] += data

    @precondition(lambda self: len(self.ends.wires) > 0)
    @rule(name=st.sampled_from("ab"), pick=st.integers(0, 5), size=st.integers(1, 5000))
    def deliver(self, name: str, pick: int, size: int) -> None:
        self.ends.deliver(self.ends.wires[pick % len(self.ends.wires)], name, size)
        self.read()

    def read(self) -> None:
        for name in ("a", "b"):
            self.got["b" if name == "a" else "a"] += self.ends.read(name)

    @rule(name=st.sampled_from("ab"))
    def attach(self, name: str) -> None:
        self.ends.attach(name)

    @precondition(lambda self: len(self.ends.wires) > 0)
    @rule(name=st.sampled_from("ab"), pick=st.integers(0, 5))
    def promote(self, name: str, pick: int) -> None:
        self.ends.promote(name, self.ends.wires[pick % len(self.ends.wires)])

    @precondition(lambda self: len(self.ends.wires) > 0)
    @rule(name=st.sampled_from("ab"), pick=st.integers(0, 5))
    def prefer(self, name: str, pick: int) -> None:
        self.ends.prefer(name, self.ends.wires[pick % len(self.ends.wires)])

    @precondition(lambda self: len(self.ends.wires) > 0)
    @rule(pick=st.integers(0, 5))
    def cut(self, pick: int) -> None:
        self.ends.cut(self.ends.wires[pick % len(self.ends.wires)])

    @precondition(lambda self: len(self.ends.wires) > 0)
    @rule(name=st.sampled_from("ab"), pick=st.integers(0, 5))
    def hole(self, name: str, pick: int) -> None:
        self.ends.wires[pick % len(self.ends.wires)].holes.add(name)

    @rule(seconds=st.floats(0.0, 3.0))
    def pass_time(self, seconds: float) -> None:
        self.ends.now += seconds
        for link in self.ends.links.values():
            for lane in link.lanes:
                link.handle_timer(lane, self.ends.now)
                if lane.life.life is Life.DEAD:
                    link.lose(lane, self.ends.now)
                else:
                    assert link.deadline(lane) > self.ends.now

    @rule()
    def close_dropped(self) -> None:
        self.ends.close_dropped()

    @invariant()
    def what_is_taken_in_is_what_was_said(self) -> None:
        if not hasattr(self, "ends"):
            return
        for name, other in (("a", "b"), ("b", "a")):
            assert self.sent[name].startswith(self.got[name])
            said, taken = self.ends.links[name].outgoing, self.ends.links[other].incoming
            assert said is not None
            assert taken is not None
            assert said.acknowledged <= taken.received <= said.end
            for lane in self.ends.links[other].lanes:
                assert lane.received <= said.end
            assert len(self.ends.links[name].lanes) <= MAX_LANES

    def teardown(self) -> None:
        if not hasattr(self, "ends"):
            return
        ends = self.ends
        ends.settle()
        ends.close_dropped()
        for wire in list(ends.wires):  # carriers that one side has given up
            if any(wire.lanes[name] not in ends.links[name].lanes for name in ("a", "b")):
                ends.cut(wire)
        spoken_on = {ends.speaks_on(name) for name in ("a", "b")}
        split = len(spoken_on) > 1 and any(wire is not None and wire.holes for wire in spoken_on)
        if split or not any(ends.is_good(wire) for wire in ends.wires):
            for wire in list(ends.wires):
                ends.cut(wire)
            ends.attach("a")
        self.let_it_arrive()
        assert ends.speaks_on("a") is ends.speaks_on("b")
        assert self.got == self.sent
        ends.now += ACK_DELAY
        for name, link in ends.links.items():
            for lane in link.lanes:
                link.handle_timer(lane, ends.now)
            ends.settle()
            outgoing = link.outgoing
            assert outgoing is not None, name
        for link in ends.links.values():
            assert link.outgoing is not None
            assert (link.outgoing.held, link.outgoing.acknowledged) == (0, link.outgoing.end)

    def let_it_arrive(self) -> None:
        """Laws 3 and 5: from now on one carrier is good, and nothing happens but the passing of time.

        Delivery itself takes no time here.  The bound is longer where false alarms, an earlier pause or data from the
        peer have made a carrier's judge patient; a trial that is running ends within the same bound.  The case in which
        a side sends into a hole and has nothing to send is left out: nobody notices that before the next PING.
        """
        ends = self.ends
        judges = [lane.life for link in ends.links.values() for lane in link.lanes]
        trip = max(judge.trip for judge in judges)
        pause = max(max(judge.pause, judge.unanswered(ends.now) + trip) for judge in judges)
        patience = max(LINGER, min(HEARD_PAUSES * PAUSES * pause, HEARD_MAX))
        until = ends.now + (SUSPICION_TRIPS + 2) * trip + SLACK_MAX + patience
        while True:
            for _ in range(10):  # more than one window, which reads open again
                ends.settle()
                self.read()
            due = min(link.deadline(lane) for link in ends.links.values() for lane in link.lanes)
            if due > until:
                return
            self.pass_time(max(due - ends.now, 0.0))
            ends.close_dropped()


Schedules.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestSchedules = pytest.mark.slow("Hypothesis: 100 schedules of 50 steps")(Schedules.TestCase)
