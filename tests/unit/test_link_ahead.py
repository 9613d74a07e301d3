"""A change to a better carrier while the old one still delivers what was sent on it; without I/O."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.unit.test_link_lanes import KEYS, PROOF, TERMS, Ends, Wire
from warpgate_trio.errors import RemoteProtocolError
from warpgate_trio.link import ahead
from warpgate_trio.link.ahead import AHEAD_FRAMES, AHEAD_UNITS, Ahead
from warpgate_trio.link.channel import LOOSE_PIECES, PIECE_MEAN
from warpgate_trio.link.frame_codec import encode, padding
from warpgate_trio.link.frames import At, Data, Fin, Item, Open, Terms
from warpgate_trio.link.lane import HEAD_START, TRIAL, TRIAL_COUNTS
from warpgate_trio.link.life import Life
from warpgate_trio.link.states import DirectionState, LinkState
from warpgate_trio.link.stream import ACK_DELAY


def changed(bobs: Terms = TERMS, *, said: bytes = b"hello") -> tuple[Ends, Wire, Wire]:
    """`a` has changed over to a better carrier, and what it has `said` on the old one is still in flight there."""
    ends = Ends(bobs)
    first, wire = ends.wires[0], ends.attach("a")
    assert wire is not None
    ends.settle()
    if said:
        ends.send("a", said)
    ends.flush("a")
    ends.prefer("a", wire)
    ends.deliver(wire, "a")
    ends.deliver(wire, "b")
    assert ends.speaks_on("a") is wire
    return ends, first, wire


def has_tail(ends: Ends) -> bool:
    """Whether data that `a` sent on the carrier it has left is still in flight there."""
    return ends.links["a"]._tail is not None


def test_nothing_is_said_twice() -> None:
    ends, first, wire = changed()
    assert has_tail(ends)
    ends.send("a", b" again")
    ends.flush("a")
    assert b"hello" not in wire.bytes["a"]
    ends.deliver(wire, "a")
    assert ends.read("b") == b""
    ends.deliver(first, "a")
    assert ends.read("b") == b"hello again"
    ends.settle()
    assert not has_tail(ends), "the peer acknowledges at once: who has said as much as it may waits for that"
    outgoing = ends.links["a"].outgoing
    assert outgoing is not None
    assert outgoing.acknowledged == outgoing.end


def test_what_has_come_is_no_tail() -> None:
    ends, _, wire = changed(said=b"")
    assert not has_tail(ends)
    ends.send("a", b"hello")
    ends.deliver(wire, "a")
    assert ends.read("b") == b"hello"


def test_the_tail_may_come_first() -> None:
    ends, first, wire = changed()
    ends.deliver(first, "a")
    assert ends.read("b") == b"hello"
    ends.send("a", b" again")
    ends.deliver(wire, "a")
    assert ends.read("b") == b" again"


def test_a_tail_whose_carrier_is_lost_is_said_again() -> None:
    ends, first, wire = changed()
    ends.send("a", b" again")
    ends.deliver(wire, "a")
    ends.cut(first)
    assert not has_tail(ends)
    ends.settle()
    assert ends.read("b") == b"hello again"
    assert ends.speaks_on("a") is ends.speaks_on("b") is wire


def test_a_tail_whose_carrier_is_suspected_is_said_again() -> None:
    """Law 8: three round trips and 1.5 seconds after the change."""
    ends, first, wire = changed()
    first.holes = {"a"}
    ends.send("a", b" again")
    ends.settle()
    assert ends.read("b") == b""
    lane = first.lanes["a"]
    assert lane.life.unanswered(ends.now + 1) == 1
    ends.wait_until_suspect("a", lane)
    ends.settle()
    assert ends.read("b") == b"hello again"
    assert ends.speaks_on("a") is ends.speaks_on("b") is wire


def test_the_carrier_that_goes_on_is_not_blamed_for_a_tail_that_does_not_come() -> None:
    """Data behind the tail is not acknowledged before it, and a new carrier is suspected sooner than an old one."""
    ends, first, wire = changed()
    first.holes = {"a", "b"}
    ends.send("a", b" again")
    ends.settle()
    assert ends.read("b") == b""
    link, new, old = ends.links["a"], wire.lanes["a"], first.lanes["a"]
    assert new.life.deadline < old.life.deadline
    ends.now = new.life.deadline
    link.handle_timer(new, ends.now)
    assert new.is_well
    assert not has_tail(ends)
    assert ends.speaks_on("a") is wire
    ends.settle()
    assert ends.read("b") == b"hello again"
    ends.now = max(ends.now, old.life.deadline)
    link.handle_timer(old, ends.now)
    assert new.is_well
    assert not old.is_well, "it was asked, too"
    assert ends.speaks_on("a") is wire


def test_a_carrier_that_is_heard_has_its_time_for_what_is_said_again_there() -> None:
    """The tail's carrier is a hole; on this one, an answer may be delayed by what full buffers have lost."""
    ends, first, wire = changed()
    first.holes = {"a", "b"}
    ends.send("a", b" again")
    ends.settle()
    link, new, old = ends.links["a"], wire.lanes["a"], first.lanes["a"]
    old.life.trip = new.life.trip + 0.2
    ends.now = new.life.deadline - 0.2
    ends.links["b"].say_news(b"the peer is there")
    ends.settle()
    ends.now = new.life.deadline
    link.handle_timer(new, ends.now)
    assert not has_tail(ends)
    wire.holes = {"a", "b"}
    while old.is_well:
        lane = min(new, old, key=link.deadline)
        ends.now = link.deadline(lane)
        link.handle_timer(lane, ends.now)
    assert new.is_well, "it is asked as any other path that carries something"
    assert ends.speaks_on("a") is wire
    asked_at = ends.now
    ends.wait_until_suspect("a", new)
    assert ends.now - asked_at < 3.0


def test_where_both_carriers_are_holes_both_are_suspected() -> None:
    ends, first, wire = changed()
    first.holes = wire.holes = {"a", "b"}
    ends.send("a", b" again")
    ends.settle()
    link, lanes = ends.links["a"], [wire.lanes["a"], first.lanes["a"]]
    for _ in range(4):
        for lane in lanes:
            if lane.life.life is Life.WELL:
                ends.now = max(ends.now, lane.life.deadline)
                link.handle_timer(lane, ends.now)
    assert not any(lane.is_well for lane in lanes)


def test_a_tail_that_comes_bit_by_bit_is_waited_for() -> None:
    """An acknowledgement of a part is progress of the old carrier, whichever carrier it arrives on."""
    ends, first, _ = changed(said=b"0123456789")
    lane, read = first.lanes["a"], b""
    size = len(first.bytes["a"]) - 5
    for _ in range(4):
        ends.deliver(first, "a", size)
        size = 1
        ends.now += 1.0
        ends.links["b"].handle_timer(ends.wires[1].lanes["b"], ends.now)
        ends.links["b"].handle_timer(first.lanes["b"], ends.now)
        ends.deliver(ends.wires[1], "b")
        ends.links["a"].handle_timer(lane, ends.now)
        assert has_tail(ends)
        assert lane.is_well
        read += ends.read("b")
    ends.settle()
    assert read + ends.read("b") == b"0123456789"


def test_a_carrier_is_left_once_the_peer_speaks_elsewhere_and_all_that_it_has_said_before_has_come() -> None:
    ends, first, wire = changed()
    link, lane = ends.links["b"], first.lanes["b"]
    assert not link.has_left(lane), "the peer has not said yet that it goes on elsewhere"
    ends.deliver(wire, "a")
    assert not link.has_left(lane), "the tail is to come"
    assert not ends.links["a"].has_left(first.lanes["a"]), "the peer has not changed over yet"
    ends.deliver(first, "a")
    assert link.has_left(lane)
    assert not link.has_left(wire.lanes["b"])
    ends.settle()
    assert ends.links["a"].has_left(first.lanes["a"])


def test_what_is_ahead_is_forgotten_with_its_carrier() -> None:
    ends, first, wire = changed()
    ends.send("a", b" again")
    ends.deliver(wire, "a")
    ends.cut(wire)
    assert not has_tail(ends)
    assert not ends.links["b"]._ahead
    ends.settle()
    assert ends.read("b") == b"hello again"
    assert ends.speaks_on("a") is ends.speaks_on("b") is first


def test_who_changes_over_once_more_before_the_tail_has_come_says_it_again() -> None:
    """A stream is thus spread over two carriers at most."""
    ends, first, wire = changed()
    ends.send("a", b" again")
    third = ends.attach("a")
    assert third is not None
    ends.flush("a")
    ends.prefer("a", third)
    ends.deliver(third, "a")
    ends.deliver(third, "b")
    assert ends.speaks_on("a") is third
    assert not has_tail(ends)
    ends.deliver(third, "a")
    assert ends.read("b") == b"hello again"
    ends.deliver(wire, "a")
    ends.deliver(first, "a")
    assert ends.read("b") == b""


def test_a_peer_that_keeps_nothing_hears_it_again() -> None:
    ends, _, wire = changed(replace(TERMS, keeps_ahead=False))
    assert not has_tail(ends)
    ends.deliver(wire, "a")
    assert ends.read("b") == b"hello"


def test_the_end_of_a_stream_waits_for_the_tail() -> None:
    ends, first, wire = changed()
    ends.links["a"].finish(ends.main("a"))
    ends.deliver(wire, "a")
    assert ends.main("b").incoming is DirectionState.FLOWING
    ends.deliver(first, "a")
    assert ends.read("b") == b"hello"
    assert ends.main("b").incoming is DirectionState.FINISHED


def test_a_goodbye_waits_for_the_tail() -> None:
    """An earlier goodbye would end the carrier that it arrives on."""
    ends, _, wire = changed()
    channel = ends.main("b")
    ends.links["a"].close_channel(ends.main("a"))
    ends.links["a"].close()
    for _ in range(3):
        ends.deliver(wire, "a")
        ends.deliver(wire, "b")
    assert ends.links["b"].failure is None
    assert not wire.lanes["b"].is_over
    ends.settle()
    assert ends.links["b"].failure is not None
    assert channel.take(None) == b"hello"
    assert ends.links["a"].is_acknowledged


def test_a_change_and_a_goodbye_may_come_in_one_piece() -> None:
    """That carrier is not put on trial any more."""
    ends, _, wire = changed(said=b"")
    ends.links["a"].close_channel(ends.main("a"))
    ends.links["a"].close()
    ends.deliver(wire, "a")
    assert wire.lanes["b"].is_over
    assert ends.links["b"].failure is not None


@pytest.mark.parametrize("what", ["bytes", "frames"])
def test_a_sender_stops_where_too_much_would_be_ahead(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "AHEAD_UNITS", 1000)
    monkeypatch.setattr(ahead, "AHEAD_FRAMES", 10)
    ends, first, wire = changed()
    pieces = [b"x" * 300] * 5 if what == "bytes" else [b"x"] * 20
    for piece in pieces:
        ends.send("a", piece)
    ends.flush("a")
    sent = wire.bytes["a"].count(b"x")
    assert sent == (1000 if what == "bytes" else 10)
    assert not ends.links["a"].has_outbox(wire.lanes["a"]), "its writer would never rest"
    ends.deliver(wire, "a")
    assert ends.read("b") == b""
    ends.settle()
    ends.deliver(first, "a")
    ends.settle()
    assert ends.read("b") == b"hello" + b"".join(pieces)


@pytest.mark.parametrize("what", ["bytes", "frames", "small data", "data of several channels"])
def test_a_peer_that_says_more_ahead_than_it_may_is_at_fault(what: str) -> None:
    cases: dict[str, list[Item]] = {
        "bytes": [Data(0, [bytes(AHEAD_UNITS)], AHEAD_UNITS), Data(0, [b"x"], 1)],
        "frames": [*[Fin(channel=0, final_offset=5)] * AHEAD_FRAMES, Open(channel=1, credit=1, label="")],
        "small data": [Data(0, [b"x"] * AHEAD_FRAMES, AHEAD_FRAMES, AHEAD_FRAMES), Data(0, [b"x"], 1)],
        "data of several channels": [Data(number % 2, [b"x"], 1) for number in range(AHEAD_FRAMES + 1)],
    }
    items, kept, position = cases[what], Ahead(100), 100
    for item in items[:-1]:
        kept.put(position, item)
    with pytest.raises(RemoteProtocolError, match="sends too much on a new path"):
        kept.put(position, items[-1])


@pytest.mark.parametrize("size", [1, 100, 2000])
def test_what_is_ahead_costs_no_more_than_it_holds(size: int) -> None:
    """One large frame that arrives a few bytes at a time."""
    count = AHEAD_UNITS // 32 // size
    kept, position = Ahead(100), 100
    kept.put(position, Data(0, [bytes(size)], size))
    for number in range(1, count):
        kept.put(position + number * size, Data(0, [bytes([number % 251]) * size], size, 0))
    ((start, data),) = kept.items
    assert isinstance(data, Data)
    assert (start, data.size, data.frames) == (100, count * size, 1)
    assert b"".join(data.pieces) == b"".join(bytes([number % 251]) * size for number in range(count))
    assert len(data.pieces) <= max(LOOSE_PIECES, data.size // PIECE_MEAN) + 1


def test_what_does_not_adjoin_is_kept_apart() -> None:
    kept = Ahead(100)
    items: list[tuple[int, Item]] = [
        (100, Data(0, [b"ab"], 2)),
        (102, Data(1, [b"cd"], 2)),
        (104, Fin(channel=0, final_offset=2)),
        (105, Data(1, [b"e"], 1)),
        (107, Data(1, [b"f"], 1)),
    ]
    for position, item in items:
        kept.put(position, item)
    assert kept.items == items


def test_a_peer_that_goes_on_where_it_never_was_waits_in_vain() -> None:
    """What it sends there is not taken in; the other carrier is not affected."""
    ends = Ends()
    wire = ends.attach("a")
    assert wire is not None
    ends.settle()
    at = encode(At(position=2**64 - 1, turn=1, graceful=True))
    ends.links["b"].receive(wire.lanes["b"], [at + encode(Fin(channel=0, final_offset=0))], ends.now)
    assert ends.main("b").incoming is DirectionState.FLOWING
    ends.send("a", b"hello")
    ends.settle()
    assert ends.read("b") == b"hello"


def test_what_is_ahead_is_not_acknowledged() -> None:
    """If the tail is lost, the receiver discards what was ahead, so the sender must still have it."""
    ends, _, wire = changed()
    ends.send("a", b" again")
    ends.deliver(wire, "a")
    ends.now += ACK_DELAY
    for lane in ends.links["b"].lanes:
        ends.links["b"].handle_timer(lane, ends.now)
    ends.deliver(wire, "b")
    outgoing = ends.links["a"].outgoing
    assert outgoing is not None
    assert outgoing.acknowledged == 0


def test_a_trial_begins_with_the_attach_where_it_follows_at_once() -> None:
    """Both together have as many bytes as a trial alone; a later trial of that carrier has all of its bytes again."""
    ends = Ends()
    link, sizes = ends.links["a"], []
    for tried in (False, True):
        lane = ends.lane(dialler=True)
        lane.send_proof(PROOF)
        link.attach(lane, **KEYS, now=ends.now, preferred=tried)
        begun = len(b"".join(lane.take_outbox()))
        lane.state = LinkState.OPEN
        for _ in range(2):
            lane.begin_trial(ends.now)
            sizes.append((begun, len(b"".join(lane.take_outbox()))))
    (begun, first), (_, second), (more, rest), (_, again) = sizes
    assert first == second == again
    assert more - begun == first - rest == len(padding(HEAD_START))


def test_both_directions_are_tried_at_once() -> None:
    """The answer to the other side's trial is already sent by the time of the AT, so its change follows at once."""
    ends = Ends()
    wire = ends.attach("a", preferred=True)
    assert wire is not None
    ends.deliver(wire, "b")  # ATTACHED arrived earlier; this is `b`'s PING, behind the bytes of its trial
    ends.deliver(wire, "a")
    assert ends.speaks_on("a") is ends.wires[0]
    ends.deliver(wire, "b")
    assert ends.speaks_on("a") is wire
    assert ends.speaks_on("b") is ends.wires[0]
    ends.deliver(wire, "a")
    assert ends.speaks_on("b") is wire
    ends.flush("b")
    assert len(wire.bytes["b"]) < HEAD_START, "it is not tried once more"


def test_a_carrier_that_takes_the_place_of_one_that_will_be_gone_carries_half_as_much_first() -> None:
    ends = Ends()
    ends.links["a"].lanes.active.leaving = True  # type: ignore[union-attr]
    wire = ends.attach("a", preferred=True)
    assert wire is not None
    assert ends.speaks_on("a") is wire, "the answer to the trial has come with the ATTACHED"
    assert len(wire.bytes["a"]) == len(wire.bytes["b"]) == 0
    ends.flush("b")
    assert len(wire.bytes["b"]) < HEAD_START
    ends.settle()
    assert ends.speaks_on("b") is wire


def test_a_carrier_is_not_tried_before_there_is_a_reason() -> None:
    """It was attached because the active one is suspected, or it only stands by."""
    ends = Ends()
    wire = ends.attach("a")
    assert wire is not None
    ends.flush("a")
    ends.flush("b")
    assert all(len(each) < HEAD_START for each in wire.bytes.values())


def test_a_trial_of_long_ago_is_none() -> None:
    ends = Ends()
    lane = ends.lane(dialler=True)
    lane.state = LinkState.OPEN
    lane.begin_own_trial(ends.now, hurried=False)
    lane.take_outbox()
    lane.begin_trial(ends.now + TRIAL_COUNTS)
    assert not lane.take_outbox(), "it counts"
    lane.begin_trial(ends.now + TRIAL_COUNTS)
    assert len(b"".join(lane.take_outbox())) > TRIAL, "once"
    lane.begin_own_trial(ends.now, hurried=False)
    lane.take_outbox()
    lane.begin_trial(ends.now + TRIAL_COUNTS + 0.1)
    assert len(b"".join(lane.take_outbox())) > TRIAL


def test_who_hears_that_a_carrier_gives_way_goes_on_elsewhere_at_once() -> None:
    """What was in flight on it is sent again: the relay that it goes through may be gone."""
    ends, first, wire = changed()
    assert has_tail(ends)
    first.holes = {"a", "b"}
    link, lane = ends.links["b"], first.lanes["b"]
    ends.links["b"].lanes.speak_on(wire.lanes["b"], followed=True)
    link.give_way(lane)
    link.lose(lane, ends.now)
    ends.deliver(wire, "b")
    ends.close_dropped()
    ends.settle()
    assert not has_tail(ends)
    assert ends.read("b") == b"hello"
    assert not first.lanes["a"].was_dropped, "it is no bad path"
