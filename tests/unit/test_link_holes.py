"""A better carrier that turns out to lose everything: how each side reacts; without I/O."""

from __future__ import annotations

from typing import Final

from tests.unit.test_link_lanes import Ends, Wire
from warpgate_trio.link.frame_codec import encode, padding
from warpgate_trio.link.frames import Pong
from warpgate_trio.link.lane import TRIAL
from warpgate_trio.link.life import HINT_SLACK, SLACK, Life
from warpgate_trio.link.moving import YOUNG

TRIP: Final = 0.2


def attached(ends: Ends) -> Wire:
    """Attach one more carrier, whose round trip takes `TRIP`."""
    wire = ends.attach("a")
    assert wire is not None
    ends.flush("a")
    ends.flush("b")
    ends.now += TRIP
    ends.settle()
    return wire


def talk(ends: Ends, seconds: float) -> None:
    """Bob sends a byte each tenth of a second, and due timers fire."""
    until = ends.now + seconds
    while ends.now < until:
        ends.send("b", b"x")
        ends.settle()
        for link in ends.links.values():
            for lane in link.lanes:
                if link.deadline(lane) <= ends.now:
                    link.handle_timer(lane, ends.now)
        ends.settle()
        ends.close_dropped()
        ends.now += 0.1


def test_a_carrier_that_carries_one_way_alone_fails_the_trial_of_the_other_way() -> None:
    """ACKs of what Bob sends elsewhere still arrive on it, but prove nothing about his own direction."""
    ends = Ends()
    first, wire = ends.wires[0], attached(ends)
    ends.prefer("a", wire)
    ends.deliver(wire, "a")
    ends.deliver(wire, "b")
    assert ends.speaks_on("a") is wire
    wire.holes = {"b"}
    talk(ends, 3 * TRIP + SLACK + 0.3)
    assert ends.speaks_on("a") is ends.speaks_on("b") is first
    assert len(ends.wires) == 1, "both have closed it"


def test_a_carrier_that_is_new_is_left_once_it_is_suspected_though_it_is_heard() -> None:
    ends = Ends()
    first, wire = ends.wires[0], attached(ends)
    ends.prefer("a", wire)
    ends.settle()
    assert ends.speaks_on("a") is ends.speaks_on("b") is wire
    for lane in wire.lanes.values():
        assert lane.life.new_until == ends.now + YOUNG
    assert first.lanes["a"].life.new_until < 0
    wire.holes = {"b"}
    began = ends.now
    while ends.speaks_on("b") is wire:
        talk(ends, 0.1)
        wire.lanes["b"].life.heard(ends.now)
    assert ends.now - began <= 3 * TRIP + SLACK + 0.3
    assert ends.speaks_on("a") is ends.speaks_on("b") is first


def test_the_answer_by_which_the_peer_measures_a_carrier_does_not_wait_behind_a_trial() -> None:
    ends = Ends()
    wire = ends.attach("a")
    assert wire is not None
    lane = wire.lanes["a"]
    assert lane.pong is not None
    answer = encode(Pong(token=lane.pong))
    lane.begin_trial(ends.now)
    outbox = lane.take_outbox()
    assert outbox.index(answer) < outbox.index(padding(TRIAL))
    assert lane.pong is None


def test_a_suspect_is_not_waited_for_where_the_peer_speaks_elsewhere() -> None:
    """Both have changed over at the same time, and the initiator's AT is lost: the responder cannot follow it."""
    ends = Ends()
    second, third = attached(ends), attached(ends)
    second.lanes["a"].life.note_pause(10.0, ends.now)  # it has paused before, so it may be only late
    second.holes = {"a", "b"}
    for name, wire in (("a", second), ("b", third)):
        link, lane = ends.links[name], wire.lanes[name]
        link.lanes.promote(lane)
        link._begin(lane, ends.now)
        lane.doubt(ends.now)
    ends.settle()
    assert ends.links["a"].lanes.turn == ends.links["b"].lanes.turn
    assert (ends.speaks_on("a"), ends.speaks_on("b")) == (second, third)
    talk(ends, TRIP + HINT_SLACK + 0.2)
    assert second.lanes["a"].life.life is Life.SUSPECT
    assert ends.speaks_on("a") is ends.speaks_on("b") is third
