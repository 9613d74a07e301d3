"""What a hostile peer, or a stranger, can do to a Link that outlives its carriers; without I/O."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from tests.unit.test_link_lanes import KEYS, PROOF, Ends
from tests.unit.test_link_lanes import TERMS as LASTING
from tests.unit.test_link_protocol import Pair, feed
from warpgate_trio.errors import RemoteProtocolError
from warpgate_trio.link.frame_codec import encode
from warpgate_trio.link.frames import Ack, Attach, GoAway, RefuseReason, Terms
from warpgate_trio.link.life import Life
from warpgate_trio.link.protocol import LinkProtocol


def state_of(link: LinkProtocol) -> object:
    """Everything that an ATTACH could have changed."""
    outgoing, incoming = link.outgoing, link.incoming
    assert outgoing is not None
    assert incoming is not None
    lanes = [(lane.number, lane.said, lane.received, lane.ack_due, lane.state) for lane in link.lanes]
    return link.lanes.turn, link.lanes.active, lanes, outgoing.acknowledged, outgoing.held, incoming.received


def offer(ends: Ends, name: str, *, number: int | None = None, received: int | None = None) -> Attach:
    """The ATTACH by which an end would offer one more carrier; its MAC is valid whatever it claims."""
    link = ends.links[name]
    where = link._where(**KEYS)
    if received is not None:
        where["received"] = received
    return link._proof.attach(lane=link.lanes.name() if number is None else number, **where)


def test_attaches_that_prove_nothing_change_nothing_by_the_thousand() -> None:
    ends = Ends()
    ends.send("b", b"not acknowledged")
    b, chance = ends.links["b"], random.Random(0)
    before = state_of(b)
    good = offer(ends, "a")
    for _ in range(1000):
        field, value = chance.choice(
            [
                ("mac", chance.randbytes(16)),
                ("lane", chance.randrange(2**32)),
                ("received", chance.randrange(2**64)),
                ("turn", chance.randrange(2**32)),
            ]
        )
        bad = replace(good, **{field: value})
        if bad != good:
            assert b.judge_attach(bad, **KEYS) is RefuseReason.UNKNOWN_LINK
    for key, other in (("session_id", bytes(16)), ("server_key", bytes(32))):  # replayed, or passed on
        assert b.judge_attach(good, **(KEYS | {key: other})) is RefuseReason.UNKNOWN_LINK
    assert state_of(b) == before
    assert b.judge_attach(good, **KEYS) is None


def test_an_attach_of_who_has_more_than_was_said_is_refused() -> None:
    """It proves that it belongs to the Link, but claims the impossible."""
    ends = Ends()
    ends.send("b", b"12345")
    b = ends.links["b"]
    assert b.outgoing is not None
    before = state_of(b)
    assert b.judge_attach(offer(ends, "a", received=b.outgoing.end + 1), **KEYS) is RefuseReason.UNKNOWN_LINK
    assert b.judge_attach(offer(ends, "a", received=b.outgoing.end), **KEYS) is None
    assert state_of(b) == before


@pytest.mark.parametrize("number", [0, 1, 2, 4])
def test_a_lane_that_has_that_name_or_may_not_have_it_is_refused(number: int) -> None:
    ends = Ends()
    assert ends.links["b"].judge_attach(offer(ends, "a", number=number), **KEYS) is RefuseReason.UNKNOWN_LINK


@pytest.mark.parametrize("how", ["received", "lane", "mac"])
def test_an_answer_that_cannot_be_is_an_error(how: str) -> None:
    ends = Ends()
    a, b = ends.links["a"], ends.links["b"]
    ours, theirs = ends.lane(dialler=True), ends.lane(dialler=False)
    ours.send_proof(PROOF)
    a.attach(ours, **KEYS, now=ends.now)
    theirs.receive([b"".join(ours.take_outbox())], ends.now)
    assert theirs.attach is not None
    where = b._where(**KEYS)
    if how == "received":
        assert a.outgoing is not None
        where["received"] = a.outgoing.end + 1
    answer = b._proof.attached(lane=theirs.attach.lane + 2 * (how == "lane"), **where)
    if how == "mac":
        answer = replace(answer, mac=bytes(16))
    before = len(a.lanes)
    with pytest.raises(RemoteProtocolError):
        a.hear_attached(ours, answer, **KEYS, now=ends.now)
    assert len(a.lanes) == before


def test_a_peer_that_says_the_same_thousands_of_times_is_counted_and_moves_nothing() -> None:
    """ACKs of old positions, again and again; an ACK of a position that was never sent is an error."""
    pair = Pair(terms=(LASTING, LASTING))
    pair.a.send(pair.a.main, b"12345")
    pair.carry()
    feed(pair.a, Ack(position=5))
    for number in range(1000):
        feed(pair.a, Ack(position=number % 6))
    assert pair.a.protocol.outgoing.acknowledged == 5
    with pytest.raises(RemoteProtocolError, match="acknowledges 6 units, but only 5 were sent"):
        feed(pair.a, Ack(position=6))


def test_a_clock_that_jumps_by_a_night_loses_nothing() -> None:
    """The host slept, or the process was stopped: a path that still works stays, and the stream leaves a dead one."""
    ends = Ends()
    ends.send("a", b"before ")
    ends.now += 8 * 3600.0
    for link in ends.links.values():
        (lane,) = link.lanes
        link.handle_timer(lane, ends.now)
        assert link.deadline(lane) > ends.now
    ends.settle()
    assert ends.read("b") == b"before "
    assert all(lane.life.life is Life.WELL for link in ends.links.values() for lane in link.lanes)
    ends.wires[0].holes = {"a", "b"}
    ends.send("a", b"after")
    ends.now += 8 * 3600.0
    for name, link in ends.links.items():
        (lane,) = link.lanes
        for _ in range(3):
            link.handle_timer(lane, ends.now)
            ends.now += 20.0
        if name == "a":
            assert lane.life.life is not Life.WELL
    ends.cut(ends.wires[0])
    ends.attach("a")
    ends.settle()
    assert ends.read("b") == b"after"


@pytest.mark.parametrize(
    "terms",
    [
        (LASTING, None),
        (None, LASTING),
        (None, None),
        (LASTING, replace(LASTING, resume_timeout=0)),
        (replace(LASTING, resume_timeout=0), LASTING),
    ],
)
def test_a_link_that_does_not_outlive_its_carrier_says_goodbye_as_ever(
    terms: tuple[Terms | None, Terms | None],
) -> None:
    """GOAWAY is the last frame on either side; nobody waits for it or acknowledges it."""
    pair = Pair(terms=terms)
    for side in (pair.a, pair.b):
        assert not side.protocol.movable
    pair.a.protocol.close_channel(pair.a.main)
    pair.a.protocol.send_go_away()
    pair.a.flush()
    assert bytes(pair.a.wire).endswith(encode(GoAway()))
    pair.deliver(pair.a)
    pair.b.flush()
    assert not pair.b.wire
