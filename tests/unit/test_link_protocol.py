"""Two `LinkProtocol`s and the bytes between them: handshake, channels, credit, ends and timers; without I/O."""

from __future__ import annotations

from typing import final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from tests.one_lane import OneLane
from warpgate_trio.errors import LocalProtocolError, PeerAborted, RemoteProtocolError
from warpgate_trio.link import channels as channels_module
from warpgate_trio.link.budget import CONTROL_BURST, CONTROL_RATE, HANDSHAKE_FRAMES, OPEN_COST
from warpgate_trio.link.channel import LOOSE_PIECES, Channel
from warpgate_trio.link.channels import (
    EARLY_DATA_LIMIT,
    MAX_CHANNELS,
    WINDOW_FLOOR,
    WINDOW_MAX,
    WINDOW_MIN,
    WINDOWS_TOTAL,
)
from warpgate_trio.link.frame_codec import HEADER, MAX_CONTROL, MAX_DATA, data_header, encode, padding
from warpgate_trio.link.frame_reader import FrameReader
from warpgate_trio.link.frames import (
    Accept,
    Ack,
    Commit,
    Credit,
    Fin,
    Frame,
    GoAway,
    Open,
    Ping,
    Pong,
    Proof,
    Refuse,
    RefuseReason,
    Reset,
    ResetCode,
    Terms,
)
from warpgate_trio.link.lane import MAX_OUTBOX
from warpgate_trio.link.life import Life
from warpgate_trio.link.states import DirectionState, LinkState
from warpgate_trio.link.stream import ACK_DELAY

SESSION, LINK_ID = b"s" * 16, b"l" * 16
PROOF = Proof(client_key=b"k" * 32, session_id=SESSION, attempt_id=b"t" * 16, signature=b"g" * 64)
COMMIT = Commit(session_id=SESSION, link_id=LINK_ID, epoch=1, credit=WINDOW_MIN)
IDLE = 10.0
TERMS = Terms(resume_timeout=120, secret=b"h" * 16, instance=b"i" * 8)


@final
class Side:
    """A protocol, the actions of its shell, and the bytes that it has put on the wire."""

    def __init__(self, protocol: OneLane) -> None:
        self.protocol = protocol
        self.wire = bytearray()

    @property
    def main(self) -> Channel:
        channel: Channel = self.protocol.channels[0]
        return channel

    def flush(self) -> None:
        if self.protocol.has_outbox:
            self.wire += self.protocol.transmit(0.0)

    def send(self, channel: Channel, data: bytes) -> None:
        self.flush()
        for start in range(0, len(data), MAX_DATA):
            part = data[start : start + MAX_DATA]
            self.protocol.note_data_sent(channel, memoryview(part), 0.0)
            self.wire += data_header(channel.id, len(part)) + part

    def read(self, channel: Channel, now: float, max_bytes: int | None = None) -> bytes:
        data = channel.take(max_bytes)
        self.protocol.note_read(channel, len(data), now)
        return data

    def said(self) -> list[object]:
        """Take all frames off its wire."""
        self.flush()
        raw = bytes(self.wire)
        self.wire.clear()
        return list(FrameReader().feed([raw]))


@final
class Pair:
    """`a` is the initiator, `b` the responder; `carry` moves the bytes between them."""

    def __init__(
        self, *, a_dials: bool = True, open_link: bool = True, terms: tuple[Terms | None, Terms | None] = (None, None)
    ) -> None:
        self.now = 1000.0
        self.a = Side(OneLane(dialler=a_dials, initiator=True, now=self.now, idle_interval=IDLE))
        self.b = Side(OneLane(dialler=not a_dials, initiator=False, now=self.now, idle_interval=IDLE))
        if open_link:
            (self.a if a_dials else self.b).protocol.send_proof(PROOF)
            self.carry()
            self.a.protocol.send_commit(session_id=SESSION, link_id=LINK_ID, epoch=1, now=self.now, terms=terms[0])
            self.carry()
            self.b.protocol.send_accept(now=self.now, terms=terms[1])
            self.carry()

    def deliver(self, sender: Side, size: int | None = None) -> None:
        sender.flush()
        receiver = self.b if sender is self.a else self.a
        raw = bytes(sender.wire[:size])
        del sender.wire[:size]
        if raw:
            receiver.protocol.receive([raw], self.now)

    def carry(self) -> None:
        while True:
            for side in (self.a, self.b):
                side.flush()
            if not self.a.wire and not self.b.wire:
                return
            self.deliver(self.a)
            self.deliver(self.b)

    def open(self, opener: Side, label: str = "") -> tuple[Channel, Channel]:
        """Open and accept a further channel; returns the opener's end and the other end."""
        ours = opener.protocol.open_channel(label, now=self.now)
        self.carry()
        other = self.b if opener is self.a else self.a
        (opened,) = other.protocol.take_opened()
        other.protocol.accept_channel(opened.channel)
        self.carry()
        return ours, opened.channel


def feed(side: Side, *frames: Frame | bytes, now: float = 1000.0) -> None:
    """Feed frames as a peer might send them that follows no rules."""
    side.protocol.receive([frame if isinstance(frame, bytes) else encode(frame) for frame in frames], now)
    while side.protocol.has_unread:
        side.protocol.receive([], now)


def data(channel: int, payload: bytes) -> bytes:
    return data_header(channel, len(payload)) + payload


# --- proof, commit, accept, refuse ---


@pytest.mark.parametrize("a_dials", [True, False])
def test_handshake(a_dials: bool) -> None:
    pair = Pair(a_dials=a_dials, open_link=False)
    a, b = pair.a.protocol, pair.b.protocol
    dialler, listener = (a, b) if a_dials else (b, a)
    dialler.send_proof(PROOF)
    pair.carry()
    assert listener.proof == PROOF
    assert (a.state, b.state) == (LinkState.PROVEN, LinkState.PROVEN)
    channel = a.send_commit(session_id=SESSION, link_id=LINK_ID, epoch=1, now=pair.now)
    assert channel.sendable == EARLY_DATA_LIMIT
    assert not channel.accepted
    pair.carry()
    assert b.commit == COMMIT
    assert (a.state, b.state) == (LinkState.COMMITTED, LinkState.COMMITTED)
    assert b.send_accept(now=pair.now).sendable == WINDOW_MIN
    pair.carry()
    assert (a.state, b.state) == (LinkState.OPEN, LinkState.OPEN)
    assert channel.accepted
    assert channel.sendable == WINDOW_MIN


def test_an_accept_without_credit_gives_none() -> None:
    pair = Pair()
    ours = pair.a.protocol.open_channel("", now=pair.now)
    feed(pair.a, Accept(channel=ours.id, credit=0))
    assert ours.accepted
    assert ours.sendable == 0


def test_our_own_missteps_are_ours() -> None:
    pair = Pair(open_link=False)
    with pytest.raises(LocalProtocolError, match="COMMIT by the dialler/initiator while the link is fresh"):
        pair.a.protocol.send_commit(session_id=SESSION, link_id=LINK_ID, epoch=1, now=pair.now)
    with pytest.raises(LocalProtocolError, match="PROOF by the listener/responder"):
        pair.b.protocol.send_proof(PROOF)
    with pytest.raises(LocalProtocolError, match="OPEN while the link is fresh"):
        pair.a.protocol.open_channel("", now=pair.now)
    with pytest.raises(LocalProtocolError, match="ACCEPT by"):
        pair.b.protocol.send_accept(now=pair.now)
    for answer in ("accept", "refuse"):
        with pytest.raises(LocalProtocolError, match=f"{answer.upper()}, but the COMMIT is answered already"):
            if answer == "accept":
                Pair().b.protocol.send_accept(now=pair.now)
            else:
                Pair().b.protocol.send_refuse(RefuseReason.BUSY)


def test_a_listener_settles_its_role_after_the_proof_and_judges_then_what_came_with_it() -> None:
    listener = Side(OneLane(dialler=False, initiator=None, now=0.0, idle_interval=IDLE))
    feed(listener, PROOF, COMMIT, data(0, b"early"), Ping(token=1))
    assert listener.protocol.proof == PROOF
    assert listener.protocol.commit is None
    assert not listener.protocol.has_outbox
    listener.protocol.set_role(initiator=False, now=1.0)
    assert listener.protocol.commit == COMMIT
    assert listener.main.take(None) == b"early"
    assert listener.said() == [Pong(token=1)]
    listener.protocol.set_role(initiator=False, now=2.0)  # setting the same role again changes nothing
    with pytest.raises(LocalProtocolError, match="the session's roles are settled already"):
        listener.protocol.set_role(initiator=True, now=2.0)


def test_what_came_with_the_proof_may_turn_out_to_be_wrong() -> None:
    listener = Side(OneLane(dialler=False, initiator=None, now=0.0, idle_interval=IDLE))
    feed(listener, PROOF, COMMIT)
    with pytest.raises(RemoteProtocolError, match="COMMIT by the dialler/responder while the link is proven"):
        listener.protocol.set_role(initiator=True, now=1.0)


@pytest.mark.parametrize("committed", [False, True])
def test_refuse_ends_the_link(committed: bool) -> None:
    pair = Pair(open_link=False)
    pair.a.protocol.send_proof(PROOF)
    if committed:
        pair.a.protocol.send_commit(session_id=SESSION, link_id=LINK_ID, epoch=1, now=pair.now)
    pair.carry()
    pair.b.protocol.send_refuse(RefuseReason.BUSY, "later")
    pair.carry()
    assert (pair.a.protocol.state, pair.b.protocol.state) == (LinkState.ENDED, LinkState.ENDED)
    assert pair.a.protocol.refusal == Refuse(channel=0, reason=RefuseReason.BUSY, text="later")


@pytest.mark.parametrize("frame", [COMMIT, Accept(channel=0, credit=1), Ping(token=1), GoAway()])
def test_nothing_comes_before_the_proof(frame: Frame) -> None:
    pair = Pair(open_link=False)
    with pytest.raises(RemoteProtocolError, match="by the dialler/initiator while the link is fresh"):
        feed(pair.b, frame)


def test_a_second_proof_or_commit_is_an_error() -> None:
    pair = Pair(open_link=False)
    feed(pair.b, PROOF)
    with pytest.raises(RemoteProtocolError, match="PROOF by"):
        feed(pair.b, PROOF)
    feed(pair.b, COMMIT)
    with pytest.raises(RemoteProtocolError, match="COMMIT by"):
        feed(pair.b, COMMIT)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_an_accept_of_a_channel_that_nobody_opened(number: int) -> None:
    pair = Pair(open_link=False)
    pair.a.protocol.send_proof(PROOF)
    pair.a.protocol.send_commit(session_id=SESSION, link_id=LINK_ID, epoch=1, now=pair.now)
    with pytest.raises(RemoteProtocolError, match=f"a frame for channel {number}, which was never opened"):
        feed(pair.a, Accept(channel=number, credit=1))


# --- early data ---


def committed_pair() -> tuple[Pair, Channel]:
    pair = Pair(open_link=False)
    pair.a.protocol.send_proof(PROOF)
    channel = pair.a.protocol.send_commit(session_id=SESSION, link_id=LINK_ID, epoch=1, now=pair.now)
    return pair, channel


def test_early_data_rides_behind_the_commit() -> None:
    pair, channel = committed_pair()
    pair.a.send(channel, b"x" * EARLY_DATA_LIMIT)
    assert channel.sendable == 0
    with pytest.raises(LocalProtocolError, match="more data than credit"):
        pair.a.protocol.note_data_sent(channel, memoryview(b"?"), pair.now)
    pair.carry()
    accepted = pair.b.protocol.send_accept(now=pair.now)
    assert accepted.take(None) == b"x" * EARLY_DATA_LIMIT
    pair.carry()
    assert channel.sendable == WINDOW_MIN


def test_more_early_data_than_may_ride_ends_the_link() -> None:
    pair = Pair(open_link=False)
    feed(pair.b, PROOF, COMMIT, data(0, b"x" * EARLY_DATA_LIMIT))
    with pytest.raises(RemoteProtocolError, match="more than 65536 bytes of early data"):
        feed(pair.b, data(0, b"x"))


def test_early_data_belongs_to_the_main_channel_and_to_the_initiator() -> None:
    pair = Pair(open_link=False)
    feed(pair.b, PROOF, COMMIT)
    with pytest.raises(RemoteProtocolError, match="channel 1, which was never opened"):
        feed(pair.b, data(1, b"x"))
    pair, _ = committed_pair()
    with pytest.raises(RemoteProtocolError, match="DATA by the listener/responder while the link is committed"):
        feed(pair.a, data(0, b"x"))


# --- data and credit ---


def test_data_arrives_in_pieces_of_any_size() -> None:
    pair = Pair()
    pair.a.send(pair.a.main, b"hello ")
    pair.a.send(pair.a.main, b"world")
    pair.carry()
    assert [pair.b.read(pair.b.main, pair.now, size) for size in (1, 7, None)] == [b"h", b"ello wo", b"rld"]
    assert pair.b.main.consumed == pair.b.main.received == 11


def test_credit_follows_what_the_application_read() -> None:
    pair = Pair()
    pair.a.send(pair.a.main, b"x" * WINDOW_MIN)
    pair.carry()
    assert pair.a.main.sendable == 0
    pair.b.read(pair.b.main, pair.now, WINDOW_MIN // 2 - 1)
    assert not pair.b.protocol.has_outbox  # there is no CREDIT for every few bytes
    pair.b.read(pair.b.main, pair.now, 1)
    pair.carry()
    assert pair.a.main.sendable == WINDOW_MIN // 2


def test_the_window_grows_while_half_of_it_is_used_up_within_two_round_trips() -> None:
    pair = Pair()
    pair.b.protocol.life.rtt = 0.1
    windows = []
    for _ in range(6):
        pair.a.send(pair.a.main, bytes(pair.a.main.sendable))
        pair.carry()
        pair.now += 0.19
        pair.b.read(pair.b.main, pair.now)
        pair.carry()
        windows.append(pair.b.main.window // WINDOW_MIN)
    assert windows == [2, 4, 8, 8, 8, 8]
    assert pair.a.main.sendable == WINDOW_MAX


@pytest.mark.parametrize(("rtt", "passed"), [(None, 0.0), (0.1, 0.21)])
def test_the_window_stays_where_the_path_is_the_limit_or_not_measured(rtt: float | None, passed: float) -> None:
    pair = Pair()
    pair.b.protocol.life.rtt = rtt
    pair.a.send(pair.a.main, bytes(WINDOW_MIN))
    pair.carry()
    pair.b.read(pair.b.main, pair.now + passed)
    pair.carry()
    assert pair.b.main.window == WINDOW_MIN


def fill_and_read(pair: Pair, ours: Channel, theirs: Channel) -> None:
    pair.a.send(ours, bytes(ours.sendable))
    pair.carry()
    pair.b.read(theirs, pair.now)
    pair.carry()


def test_all_windows_together_stay_within_their_budget_and_leave_room_for_every_channel() -> None:
    pair = Pair()
    pair.b.protocol.life.rtt = 1.0
    channels = [pair.open(pair.a) for _ in range(20)]
    for _ in range(5):
        for ours, theirs in channels:
            fill_and_read(pair, ours, theirs)
    granted = sum(channel.receive_limit - channel.consumed for channel in pair.b.protocol.channels.values())
    assert WINDOWS_TOTAL // 4 < granted <= WINDOWS_TOTAL
    assert {theirs.window // WINDOW_MIN for _, theirs in channels} > {1}
    while len(pair.a.protocol.channels) < MAX_CHANNELS:
        ours, theirs = pair.open(pair.a)
        assert ours.sendable == theirs.window >= WINDOW_FLOOR
    assert sum(channel.window for channel in pair.b.protocol.channels.values()) <= WINDOWS_TOTAL


def test_a_peer_that_overruns_its_credit_has_its_channel_reset() -> None:
    pair = Pair()
    feed(pair.b, data(0, b"y" * 1000))
    main = pair.b.main
    for _ in range(WINDOW_MIN // 65536):
        feed(pair.b, data(0, b"x" * 65536))
    assert pair.b.said() == [Reset(channel=0, code=ResetCode.OVERRUN)]
    assert pair.b.protocol.channels == {}
    assert pair.b.protocol.take_touched()[-1] is main
    assert isinstance(main.failure, RemoteProtocolError)
    assert main.incoming is main.outgoing is DirectionState.ABANDONED
    assert main.take(1000) == b"y" * 1000  # what arrived within the credit is delivered
    feed(pair.b, data(0, b"z"))  # sent before the peer received the RESET
    assert not pair.b.protocol.has_outbox


def test_a_sender_told_of_its_overrun_is_broken() -> None:
    pair = Pair()
    main = pair.a.main
    feed(pair.a, Reset(channel=0, code=ResetCode.OVERRUN))
    assert str(main.failure) == "the peer reset the channel (code 1)"
    assert main.done


def test_credit_never_shrinks_and_may_come_after_the_end() -> None:
    pair = Pair()
    main = pair.a.main
    feed(pair.a, Credit(channel=0, limit=5))
    assert main.sendable == WINDOW_MIN
    pair.a.protocol.finish(main)
    feed(pair.a, Credit(channel=0, limit=2**63))
    assert main.sendable == 0


def test_a_peer_that_sends_single_bytes_does_not_fill_the_memory_with_them() -> None:
    pair = Pair()
    raw = data(0, b"x") + encode(Ping(token=1))  # the PING ends each run of data
    for _ in range(20):
        feed(pair.b, raw * 100)
        assert len(pair.b.main.buffer) <= LOOSE_PIECES
    assert pair.b.main.take(None) == b"x" * 2000
    pair = Pair()
    for _ in range(LOOSE_PIECES + 6):  # bulk data is kept as it arrived
        pair.b.protocol.receive([data_header(0, 8192), b"x" * 8192], pair.now)
    assert len(pair.b.main.buffer) == LOOSE_PIECES + 6


def test_what_ended_channels_hold_unread_counts_against_the_budget() -> None:
    pair = Pair()
    held = []
    while True:
        ours = pair.a.protocol.open_channel("", now=pair.now)
        pair.carry()
        opened = pair.b.protocol.take_opened()
        if not opened:
            break
        theirs = opened[0].channel
        pair.b.protocol.accept_channel(theirs)
        pair.carry()
        pair.a.send(ours, bytes(ours.sendable))
        pair.a.protocol.close_channel(ours)
        pair.carry()
        assert theirs.done
        held.append(theirs)
    assert sum(channel.buffered for channel in held) <= WINDOWS_TOTAL
    assert ours.refusal == Refuse(channel=ours.id, reason=RefuseReason.BUSY)
    pair.b.read(held[0], pair.now)
    pair.b.protocol.close_channel(held[1])
    for channel in held[2:]:
        pair.b.read(channel, pair.now, 1000)
        pair.b.protocol.close_channel(channel)
    assert pair.b.protocol.channels._windows == WINDOW_MIN  # only the main channel's
    pair.open(pair.a)


# --- half-close, close, reset ---


def test_half_close_and_the_other_half() -> None:
    pair = Pair()
    ours, theirs = pair.a.main, pair.b.main
    pair.a.send(ours, b"question")
    pair.a.protocol.finish(ours)
    pair.a.protocol.finish(ours)  # idempotent
    pair.carry()
    assert theirs.incoming is DirectionState.FINISHED
    assert pair.b.read(theirs, pair.now) == b"question"
    pair.b.send(theirs, b"answer")
    pair.b.protocol.finish(theirs)
    pair.carry()
    assert pair.a.protocol.channels == pair.b.protocol.channels == {}
    assert pair.a.read(ours, pair.now) == b"answer"
    assert ours.failure is theirs.failure is None


@pytest.mark.parametrize("offset", [0, 4, 6, 2**64 - 1])
def test_a_fin_must_agree_with_what_was_received(offset: int) -> None:
    pair = Pair()
    with pytest.raises(RemoteProtocolError, match=f"FIN at offset {offset}, but 5 bytes came"):
        feed(pair.b, data(0, b"hello"), Fin(channel=0, final_offset=offset))


def test_nothing_comes_after_a_fin() -> None:
    pair = Pair()
    feed(pair.b, Fin(channel=0, final_offset=0))
    with pytest.raises(RemoteProtocolError, match="DATA on a channel whose direction is finished"):
        feed(pair.b, data(0, b"x"))
    with pytest.raises(RemoteProtocolError, match="FIN on a channel whose direction is finished"):
        feed(pair.b, Fin(channel=0, final_offset=0))


def test_close_is_fin_and_reset_and_drops_what_nobody_will_read() -> None:
    pair = Pair()
    ours, theirs = pair.a.main, pair.b.main
    pair.b.send(theirs, b"unread")
    pair.carry()
    pair.a.send(ours, b"last words")
    pair.a.protocol.close_channel(ours)
    pair.a.protocol.close_channel(ours)  # idempotent
    assert ours.buffered == 0
    assert pair.a.said()[1:] == [Fin(channel=0, final_offset=10), Reset(channel=0, code=ResetCode.CLOSED)]
    feed(pair.b, data(0, b"last words"), Fin(channel=0, final_offset=10), Reset(channel=0, code=ResetCode.CLOSED))
    assert theirs.incoming is DirectionState.FINISHED
    assert theirs.outgoing is DirectionState.ABANDONED
    assert str(theirs.failure) == "the peer closed its end"
    assert theirs.take(None) == b"last words"


def test_an_abort_is_a_reset_without_a_fin_behind_what_was_sent() -> None:
    pair = Pair()
    ours, theirs = pair.a.main, pair.b.main
    pair.b.send(theirs, b"unread")
    pair.carry()
    pair.a.send(ours, b"not all")
    pair.a.protocol.close_channel(ours, abort=True)
    pair.a.protocol.close_channel(ours)  # it stays aborted
    assert (ours.buffered, ours.done, dict(pair.a.protocol.channels)) == (0, True, {})
    assert pair.a.said()[1:] == [Reset(channel=0, code=ResetCode.ABORTED)]
    feed(pair.b, data(0, b"not all"), Reset(channel=0, code=ResetCode.ABORTED))
    assert theirs.incoming is theirs.outgoing is DirectionState.ABANDONED
    assert isinstance(theirs.failure, PeerAborted)
    assert str(theirs.failure) == "the peer aborted it"
    assert theirs.take(None) == b"not all"


def test_an_abort_after_a_fin_takes_back_nothing() -> None:
    pair = Pair()
    ours, theirs = pair.a.main, pair.b.main
    pair.a.protocol.finish(ours)
    pair.a.protocol.close_channel(ours, abort=True)
    assert pair.a.said() == [Fin(channel=0, final_offset=0), Reset(channel=0, code=ResetCode.ABORTED)]
    feed(pair.b, Fin(channel=0, final_offset=0), Reset(channel=0, code=ResetCode.ABORTED))
    assert theirs.incoming is DirectionState.FINISHED
    assert theirs.outgoing is DirectionState.ABANDONED


def test_an_abort_that_crosses_our_fin_is_known_though_both_directions_had_ended() -> None:
    pair = Pair()
    ours = pair.a.main
    pair.b.protocol.finish(pair.b.main)
    pair.carry()
    pair.a.protocol.finish(ours)
    assert pair.a.protocol.channels == {}
    pair.b.protocol.close_channel(pair.b.main, abort=True)
    pair.deliver(pair.b)
    assert isinstance(ours.failure, PeerAborted)
    pair.a.protocol.close_channel(ours)
    assert pair.a.protocol.channels.ended == {}


def test_only_pipes_that_the_application_holds_are_remembered_after_their_end() -> None:
    pair = Pair()
    for number in range(2, 10, 2):  # each is withdrawn before the application has seen it
        feed(pair.a, Open(channel=number, credit=0, label=""), Reset(channel=number, code=ResetCode.ABORTED))
    ours, theirs = pair.open(pair.a)
    pair.a.protocol.close_channel(ours)
    pair.b.protocol.close_channel(theirs)
    pair.carry()
    assert pair.a.protocol.channels.ended == pair.b.protocol.channels.ended == {}


def test_an_abort_after_the_peers_fin_breaks_what_we_had_not_ended() -> None:
    pair = Pair()
    pair.b.protocol.finish(pair.b.main)
    pair.carry()
    pair.a.protocol.close_channel(pair.a.main, abort=True)
    theirs = pair.b.main
    pair.carry()
    assert theirs.incoming is DirectionState.ABANDONED
    assert theirs.outgoing is DirectionState.FINISHED
    assert pair.a.protocol.channels == pair.b.protocol.channels == {}


@pytest.mark.parametrize("ended", ["closed", "both directions"])
def test_there_is_nothing_to_abort_after_the_end(ended: str) -> None:
    pair = Pair()
    ours = pair.a.main
    if ended == "closed":
        pair.a.protocol.close_channel(ours)
    else:
        pair.a.protocol.finish(ours)
        pair.b.protocol.finish(pair.b.main)
        pair.carry()
    pair.a.said()
    pair.a.protocol.close_channel(ours, abort=True)
    assert pair.a.said() == []


def test_a_close_after_the_peers_fin_is_no_reset() -> None:
    pair = Pair()
    feed(pair.a, Fin(channel=0, final_offset=0))
    pair.a.protocol.close_channel(pair.a.main)
    assert pair.a.said() == [Fin(channel=0, final_offset=0)]
    assert pair.a.protocol.channels == {}


def test_closes_that_cross_are_forgotten_on_both_sides() -> None:
    pair = Pair()
    ours, theirs = pair.open(pair.a)
    pair.a.send(ours, b"x")
    pair.b.send(theirs, b"y")
    pair.a.protocol.close_channel(ours)
    pair.b.protocol.close_channel(theirs)
    pair.carry()
    assert set(pair.a.protocol.channels) == set(pair.b.protocol.channels) == {0}
    assert pair.a.protocol.channels._windows == pair.b.protocol.channels._windows == WINDOW_MIN


def test_a_reset_breaks_both_directions_that_still_flow() -> None:
    pair = Pair()
    ours, theirs = pair.a.main, pair.b.main
    pair.b.send(theirs, b"before")
    pair.carry()
    feed(pair.a, Reset(channel=0, code=ResetCode.CLOSED))
    assert ours.outgoing is ours.incoming is DirectionState.ABANDONED
    assert ours.take(None) == b"before"


# --- further channels ---


def test_both_sides_open_channels_with_labels() -> None:
    pair = Pair()
    ours, theirs = pair.open(pair.a, "from a")
    assert (ours.id, theirs.id, theirs.label) == (1, 1, "from a")
    ours, theirs = pair.open(pair.b, "from b")
    assert (ours.id, theirs.id, theirs.label) == (2, 2, "from b")
    assert (pair.open(pair.a)[0].id, pair.open(pair.b)[0].id) == (3, 4)
    pair.a.send(theirs, b"on 2")
    pair.carry()
    assert ours.take(None) == b"on 2"


def test_nothing_flows_on_a_channel_that_was_not_accepted_yet() -> None:
    pair = Pair()
    ours = pair.a.protocol.open_channel("", now=pair.now)
    assert ours.sendable == 0
    for frame in (Credit(channel=1, limit=9), Fin(channel=1, final_offset=0)):
        with pytest.raises(RemoteProtocolError, match="on a channel whose direction is idle"):
            feed(pair.a, frame)
    with pytest.raises(RemoteProtocolError, match="DATA on a channel whose direction is idle"):
        feed(pair.a, data(1, b"x"))


def test_a_refused_channel_is_forgotten_on_both_sides() -> None:
    pair = Pair()
    ours = pair.a.protocol.open_channel("", now=pair.now)
    pair.carry()
    (opened,) = pair.b.protocol.take_opened()
    pair.b.protocol.refuse_channel(opened.channel, RefuseReason.NOT_ACCEPTING)
    pair.carry()
    assert ours.refusal == Refuse(channel=1, reason=RefuseReason.NOT_ACCEPTING)
    assert ours.done
    assert set(pair.a.protocol.channels) == set(pair.b.protocol.channels) == {0}
    assert pair.a.protocol.channels._windows == pair.b.protocol.channels._windows == WINDOW_MIN


def early(takes_early_data: bool = True) -> tuple[Pair, Channel]:
    """A pair, and a channel of `a` whose OPEN is not answered yet."""
    terms = replace(TERMS, takes_early_data=takes_early_data)
    pair = Pair(terms=(TERMS, terms))
    return pair, pair.a.protocol.open_channel("", now=pair.now)


def test_early_data_follows_the_open_and_waits_for_the_answer() -> None:
    pair, ours = early()
    assert ours.sendable == WINDOW_FLOOR
    pair.a.send(ours, b"x" * WINDOW_FLOOR)
    assert ours.sendable == 0
    pair.carry()
    (opened,) = pair.b.protocol.take_opened()
    pair.b.protocol.accept_channel(opened.channel)
    pair.carry()
    assert pair.b.read(opened.channel, pair.now) == b"x" * WINDOW_FLOOR
    assert ours.sendable == opened.channel.receive_limit - WINDOW_FLOOR
    pair.a.send(ours, b"more")
    pair.b.send(opened.channel, b"back")
    pair.carry()
    assert (opened.channel.take(None), ours.take(None)) == (b"more", b"back")


def test_all_may_have_been_said_before_the_answer() -> None:
    pair, ours = early()
    pair.a.send(ours, b"all")
    pair.a.protocol.finish(ours)
    pair.carry()
    (opened,) = pair.b.protocol.take_opened()
    pair.b.protocol.accept_channel(opened.channel)
    assert (opened.channel.incoming, opened.channel.outgoing) == (DirectionState.FINISHED, DirectionState.FLOWING)
    assert opened.channel.take(None) == b"all"
    pair.b.send(opened.channel, b"answer")
    pair.carry()
    assert ours.take(None) == b"answer"


def test_a_peer_that_takes_no_early_data_gets_none() -> None:
    _, ours = early(takes_early_data=False)
    assert (ours.sendable, ours.outgoing) == (0, DirectionState.IDLE)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("end", ["refused", "no room", "taken back"])
def test_nobody_reads_what_was_early_and_was_not_taken(
    end: str, finished: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, ours = early()
    if end == "no room":
        monkeypatch.setattr(channels_module, "MAX_CHANNELS", 1)
    pair.a.send(ours, b"lost")
    if finished:
        pair.a.protocol.finish(ours)
    pair.carry()
    opened = pair.b.protocol.take_opened()
    if end == "refused":
        pair.b.protocol.refuse_channel(opened[0].channel, RefuseReason.NOT_ACCEPTING)
    elif end == "taken back":
        pair.a.protocol.close_channel(ours)
    pair.carry()
    assert ours.done
    assert (ours.refusal is None) is (end == "taken back")
    assert set(pair.a.protocol.channels) == set(pair.b.protocol.channels) == {0}
    assert pair.a.protocol.channels._windows == pair.b.protocol.channels._windows == WINDOW_MIN
    assert not pair.b.protocol.channels.ended


def test_more_early_data_than_a_channel_has_room_for_ends_the_link() -> None:
    pair, ours = early()
    pair.carry()
    with pytest.raises(RemoteProtocolError, match="bytes of early data"):
        for _ in range(WINDOW_MIN // MAX_DATA + 1):
            feed(pair.b, data(ours.id, bytes(MAX_DATA)))


def test_an_open_that_was_taken_back_at_once_is_never_shown() -> None:
    pair = Pair()
    ours = pair.a.protocol.open_channel("", now=pair.now)
    pair.a.protocol.close_channel(ours)
    pair.carry()
    assert pair.b.protocol.take_opened() == []
    assert set(pair.b.protocol.channels) == {0}


def test_an_open_that_was_taken_back_before_the_answer_stays_closed() -> None:
    pair = Pair()
    ours = pair.a.protocol.open_channel("", now=pair.now)
    pair.carry()
    (opened,) = pair.b.protocol.take_opened()
    pair.a.protocol.close_channel(ours)
    pair.carry()
    pair.b.protocol.accept_channel(opened.channel)
    assert opened.channel.done
    assert not pair.b.protocol.has_outbox


@pytest.mark.parametrize("accept", [True, False])
def test_an_answer_that_crosses_the_close_is_ignored(accept: bool) -> None:
    pair = Pair()
    ours = pair.a.protocol.open_channel("", now=pair.now)
    pair.carry()
    (opened,) = pair.b.protocol.take_opened()
    pair.a.protocol.close_channel(ours)
    if accept:
        pair.b.protocol.accept_channel(opened.channel)
        pair.b.send(opened.channel, b"hello")
    else:
        pair.b.protocol.refuse_channel(opened.channel, RefuseReason.BUSY)
    pair.carry()
    assert set(pair.a.protocol.channels) == set(pair.b.protocol.channels) == {0}
    assert ours.done
    assert opened.channel.done


@pytest.mark.parametrize("number", [0, 1, 2, 6])
def test_an_open_must_be_the_peers_next(number: int) -> None:
    pair = Pair()
    feed(pair.a, Open(channel=6, credit=0, label=""))
    with pytest.raises(RemoteProtocolError, match=f"OPEN of channel {number}: not a valid new channel number"):
        feed(pair.a, Open(channel=number, credit=0, label=""))


def test_answers_that_nobody_asked_for() -> None:
    pair = Pair()
    _, theirs = pair.open(pair.b)
    for number in (0, 2):
        with pytest.raises(RemoteProtocolError, match=f"ACCEPT of channel {number} without a pending OPEN"):
            feed(pair.a, Accept(channel=number, credit=1))
        with pytest.raises(RemoteProtocolError, match=f"REFUSE of channel {number} without a pending OPEN"):
            feed(pair.a, Refuse(channel=number, reason=1))
    assert theirs.accepted


@pytest.mark.parametrize(
    "frame", [Credit(channel=7, limit=1), Fin(channel=8, final_offset=0), Reset(channel=7, code=0), data(8, b"x")]
)
def test_a_frame_of_a_channel_that_never_was(frame: Frame | bytes) -> None:
    for side in (Pair().a, Pair().b):
        with pytest.raises(RemoteProtocolError, match=r"a frame for channel [78], which was never opened"):
            feed(side, frame)


def test_frames_of_a_channel_that_ended_are_ignored() -> None:
    pair = Pair()
    for opener in (pair.a, pair.b):
        ours, theirs = pair.open(opener)
        pair.a.protocol.close_channel(ours if opener is pair.a else theirs)
        pair.carry()
        for side in (pair.a, pair.b):
            feed(side, data(ours.id, b"x"), Credit(channel=ours.id, limit=9), Fin(channel=ours.id, final_offset=1))
            assert not side.protocol.has_outbox


def test_a_link_has_256_channels() -> None:
    pair = Pair()
    for number in range(1, MAX_CHANNELS):
        assert pair.open(pair.a if number % 2 else pair.b)[1].accepted
    assert len(pair.a.protocol.channels) == len(pair.b.protocol.channels) == MAX_CHANNELS
    with pytest.raises(LocalProtocolError, match="this link has no room for a further pipe"):
        pair.a.protocol.open_channel("", now=pair.now)
    feed(pair.b, Open(channel=2**32 - 1, credit=0, label=""))
    assert pair.b.protocol.take_opened() == []
    assert pair.b.said() == [Refuse(channel=2**32 - 1, reason=RefuseReason.BUSY)]
    pair.b.protocol.close_channel(pair.b.main)
    pair.carry()
    pair.a.protocol.open_channel("", now=pair.now)


# --- the end of a link ---


def test_go_away_breaks_what_had_not_ended() -> None:
    pair = Pair()
    ours, theirs = pair.a.main, pair.b.main
    second, _ = pair.open(pair.a)
    pair.b.send(theirs, b"tail")
    pair.b.protocol.finish(theirs)
    pair.b.protocol.send_go_away()
    assert pair.b.protocol.state is LinkState.ENDED
    pair.carry()
    assert pair.a.protocol.state is LinkState.ENDED
    assert pair.a.protocol.channels == {}
    assert {id(channel) for channel in pair.a.protocol.take_touched()} >= {id(ours), id(second)}
    assert ours.incoming is DirectionState.FINISHED  # its own end had arrived before
    assert ours.take(None) == b"tail"
    assert ours.outgoing is second.incoming is second.outgoing is DirectionState.ABANDONED
    assert str(second.failure) == "the peer ended the link"
    feed(pair.a, Ping(token=1), data(99, b"x"))  # nobody listens any more
    assert not pair.a.protocol.has_outbox
    pair.a.protocol.send_go_away()
    pair.a.protocol.close_channel(second)
    pair.a.protocol.note_read(ours, 4, pair.now)
    assert not pair.a.protocol.has_outbox


def test_there_is_nobody_to_tell_before_the_proof() -> None:
    pair = Pair(open_link=False)
    pair.a.protocol.send_go_away()
    pair.a.protocol.send_ping(pair.now)
    assert not pair.a.protocol.has_outbox
    assert pair.a.protocol.state is LinkState.FRESH


def test_the_first_failure_is_kept() -> None:
    pair = Pair()
    main = pair.a.main
    first = RemoteProtocolError("first")
    pair.a.protocol.break_all(first)
    pair.a.protocol.break_all(RemoteProtocolError("second"))
    assert pair.a.protocol.failure is main.failure is first


# --- pings ---


def test_a_pong_measures_the_round_trip() -> None:
    pair = Pair()
    a = pair.a.protocol
    a.send_ping(pair.now)
    a.send_ping(pair.now)  # one PING at a time
    assert pair.a.said() == [Ping(token=1)]
    feed(pair.a, Pong(token=2))  # answers no PING
    assert a.life.rtt is None
    feed(pair.a, Pong(token=1), now=pair.now + 0.2)
    assert a.life.rtt == pytest.approx(0.2)
    feed(pair.a, Pong(token=1), now=pair.now + 5.0)  # the same answer twice
    a.send_ping(pair.now)
    feed(pair.a, Pong(token=2), now=pair.now + 0.6)
    assert a.life.rtt == pytest.approx(0.2 * 7 / 8 + 0.6 / 8)


def test_who_asks_is_answered_whatever_else_is_under_way() -> None:
    pair = Pair()
    a = pair.a.protocol
    a.send_ping(pair.now)
    first, second = a.ask(pair.now), a.ask(pair.now)
    assert pair.a.said() == [Ping(token=1), Ping(token=first), Ping(token=second)]
    feed(pair.a, Pong(token=99))  # answers no PING
    assert a.life.answered == 0
    feed(pair.a, Pong(token=first))
    assert a.life.answered == first
    feed(pair.a, Pong(token=second), Pong(token=1))
    assert a.life.answered == second
    a.break_all(RemoteProtocolError("over"))
    with pytest.raises(LocalProtocolError, match="PING by the dialler/initiator while the link is ended"):
        a.ask(pair.now)


def test_many_pings_get_one_pong() -> None:
    pair = Pair()
    feed(pair.a, *(Ping(token=token) for token in range(5000)))
    assert pair.a.said() == [Pong(token=4999)]


# --- the padding ---


@pytest.mark.parametrize("a_dials", [True, False])
def test_what_each_side_says_first_comes_behind_a_full_segment(a_dials: bool) -> None:
    """The stream is in order: where a full segment does not get through, neither COMMIT nor ACCEPT arrives."""
    now = 0.0
    ends = [OneLane(dialler=x is a_dials, initiator=x, now=now, idle_interval=IDLE, padded=True) for x in (True, False)]
    a, b = ends
    said: dict[bool, list[bytes]] = {True: [], False: []}

    def carry() -> None:
        for sender, receiver, side in ((a, b, True), (b, a, False)):
            if data := sender.transmit(0.0):
                said[side].append(data)
                receiver.receive([data], now)

    (a if a_dials else b).send_proof(PROOF)
    carry()
    a.send_commit(session_id=SESSION, link_id=LINK_ID, epoch=1, now=now)
    carry()
    b.send_accept(now=now)
    carry()
    assert a.state is b.state is LinkState.OPEN
    for side in (True, False):
        first, *rest = said[side]
        assert first.index(bytes(MAX_CONTROL)) < 20  # preceded by a header only
        assert len(first) > 1460
        assert all(len(each) < 200 for each in rest)


def test_the_padding_is_skipped_by_who_does_not_know_it() -> None:
    assert FrameReader().feed([padding(5000)]) == []


# --- floods ---

NOTHING = HEADER.pack(0x80, 0, 0, 0, 0)
"""A frame of an unknown type, which is skipped."""


EARLY = data(0, b"x")


@pytest.mark.parametrize(
    ("stage", "frame"),
    [
        *(("proven", frame) for frame in (encode(Ping(token=1)), encode(Pong(token=1)), data_header(0, 0), NOTHING)),
        *(("committed", frame) for frame in (encode(Ping(token=1)), data_header(0, 0), NOTHING, EARLY)),
    ],
)
def test_before_the_link_is_open_there_are_only_so_many_frames(stage: str, frame: bytes) -> None:
    pair = Pair(open_link=False)
    pair.a.protocol.send_proof(PROOF)
    used = 1
    if stage == "committed":
        pair.a.protocol.send_commit(session_id=SESSION, link_id=LINK_ID, epoch=1, now=pair.now)
        used = 2
    pair.carry()
    b = pair.b.protocol
    feed(pair.b, *([frame] * (HANDSHAKE_FRAMES - used)))
    with pytest.raises(RemoteProtocolError, match="more than 64 frames before the link is open"):
        feed(pair.b, frame)
    assert b.channels.get(0) is None or b.channels[0].buffered <= HANDSHAKE_FRAMES


def test_frames_before_the_proof_are_counted_too() -> None:
    pair = Pair(open_link=False)
    feed(pair.b, NOTHING * HANDSHAKE_FRAMES)
    with pytest.raises(RemoteProtocolError, match="before the link is open"):
        feed(pair.b, NOTHING)


def test_the_one_who_calls_is_flooded_no_more_than_the_one_who_is_called() -> None:
    pair = Pair(open_link=False)
    pair.a.protocol.send_proof(PROOF)
    pair.carry()
    with pytest.raises(RemoteProtocolError, match="before the link is open"):
        feed(pair.a, encode(Ping(token=1)) * (HANDSHAKE_FRAMES + 1))


def test_early_data_in_one_frame_and_some_pings_are_no_flood() -> None:
    pair = Pair(open_link=False)
    pair.a.protocol.send_proof(PROOF)
    channel = pair.a.protocol.send_commit(session_id=SESSION, link_id=LINK_ID, epoch=1, now=pair.now)
    pair.a.send(channel, bytes(EARLY_DATA_LIMIT))
    for _ in range(30):
        pair.a.flush()
        pair.a.wire += encode(Ping(token=1))
    pair.carry()
    pair.b.protocol.send_accept(now=pair.now)
    pair.carry()
    assert pair.a.protocol.state is LinkState.OPEN


@pytest.mark.parametrize(
    "frame",
    [
        encode(Ping(token=1)),
        encode(Pong(token=1)),
        data_header(0, 0),
        NOTHING,
        encode(Credit(channel=0, limit=5)),
        encode(Reset(channel=2, code=0)),
        data(2, b"x"),
    ],
    ids=["ping", "pong", "empty", "skipped", "credit", "reset", "data of a channel that ended"],
)
def test_who_says_nothing_too_often_is_left_unread_for_a_while(frame: bytes) -> None:
    pair = Pair()
    pair.open(pair.b)
    pair.b.protocol.close_channel(pair.b.protocol.channels[2])
    pair.carry()
    a = pair.a.protocol
    assert 2 not in a.channels
    pair.now += 10.0
    feed(pair.a, frame * CONTROL_BURST, now=pair.now)
    assert a.pause(pair.now) == 0.0
    feed(pair.a, frame * 500, now=pair.now)
    assert a.pause(pair.now) == pytest.approx(500 / CONTROL_RATE)
    assert a.pause(pair.now + 500 / CONTROL_RATE) == 0.0
    assert a.state is LinkState.OPEN
    pair.now += 10.0
    feed(pair.a, frame * CONTROL_BURST, now=pair.now)  # a quiet time restores the whole burst
    assert a.pause(pair.now) == 0.0


def test_opening_and_closing_is_counted() -> None:
    pair = Pair()
    a = pair.a.protocol
    number = 0
    while not a.pause(pair.now):
        number += 2
        feed(pair.a, Open(channel=number, credit=0, label=""), Reset(channel=number, code=0))
        a.take_opened()
        pair.a.said()
        assert number <= CONTROL_BURST
    assert number == pytest.approx(2 * CONTROL_BURST / (OPEN_COST + 1), abs=4)


def test_data_that_is_paid_for_with_credit_is_never_held_up() -> None:
    pair = Pair()
    for _ in range(20):
        feed(pair.b, data(0, b"x") * 1000)
        pair.b.read(pair.b.main, pair.now)
        pair.b.said()
    assert pair.b.protocol.pause(pair.now) == 0.0


def test_a_reader_that_takes_little_holds_little() -> None:
    """The rest of a chunk is a view, which must not keep the whole chunk alive while new credit is given."""
    pair = Pair()
    feed(pair.b, data(0, bytes(MAX_DATA)))
    while pair.b.main.buffered > 1000:
        pair.b.read(pair.b.main, pair.now, 1000)
        (piece,) = pair.b.main.buffer
        whole = piece.obj if isinstance(piece, memoryview) else piece
        assert len(whole) <= 2 * len(piece)  # type: ignore[arg-type]


def test_a_peer_that_makes_us_answer_and_reads_nothing_is_dropped() -> None:
    pair = Pair()
    opens = [Open(channel=2 * number, credit=0, label="") for number in range(1, MAX_OUTBOX + MAX_CHANNELS + 1)]
    with pytest.raises(RemoteProtocolError, match="too many control frames wait for a peer that does not read"):
        feed(pair.a, *opens)


def is_dead(protocol: OneLane) -> bool:
    return protocol.life.life is Life.DEAD


def test_three_misses() -> None:
    pair = Pair()
    a = pair.a.protocol
    start = pair.now
    assert a.deadline == start + IDLE
    a.handle_timer(start + IDLE - 0.1)
    assert not is_dead(a)
    assert not a.has_outbox
    for miss in (1, 2, 3):
        a.handle_timer(start + miss * IDLE)
        assert not is_dead(a)
        assert pair.a.said() == [Ping(token=miss)]
        assert a.life.silence(start + miss * IDLE) == miss * IDLE
    assert a.deadline == start + 4 * IDLE
    a.handle_timer(start + 4 * IDLE)
    assert is_dead(a)


def test_any_sign_of_life_counts() -> None:
    pair = Pair()
    a = pair.a.protocol
    for miss in (1, 2, 3):
        a.handle_timer(pair.now + miss * IDLE)
    feed(pair.a, encode(Credit(channel=0, limit=0))[:1], now=pair.now + 35)
    a.handle_timer(pair.now + 4 * IDLE)
    assert not is_dead(a)
    assert a.deadline == pair.now + 45


def test_a_hint_asks_once_on_a_link_that_is_open() -> None:
    pair = Pair(open_link=False)
    for _ in range(2):
        pair.a.protocol.hint(pair.now)
    assert not pair.a.protocol.has_outbox
    pair = Pair(terms=(TERMS, TERMS))
    for _ in range(2):
        pair.a.protocol.hint(pair.now)
    assert pair.a.protocol.transmit(pair.now) == encode(Ping(token=1))
    pair.a.protocol.break_all(RemoteProtocolError("over"))
    pair.a.protocol.hint(pair.now + 10)
    assert not pair.a.protocol.has_outbox


def test_silence_before_the_commit_is_not_the_peers_fault() -> None:
    pair = Pair(open_link=False)
    pair.a.protocol.send_proof(PROOF)
    pair.a.protocol.send_commit(session_id=SESSION, link_id=LINK_ID, epoch=1, now=pair.now + 60)
    assert pair.a.protocol.life.silence(pair.now + 61) == 1.0


@pytest.mark.parametrize("then", ["the peer ends the link", "our writer is held up"])
def test_an_acknowledgement_that_cannot_go_out_keeps_no_timer_due(then: str) -> None:
    pair = Pair(terms=(TERMS, TERMS))
    pair.b.send(pair.b.main, b"x")
    pair.carry()
    pair.now += 0.05
    if then == "the peer ends the link":
        feed(pair.a, GoAway(), now=pair.now)
    pair.now += ACK_DELAY
    pair.a.protocol.handle_timer(pair.now)
    assert pair.a.protocol.deadline > pair.now


def test_an_acknowledgement_goes_with_whatever_is_said() -> None:
    pair = Pair(terms=(TERMS, TERMS))
    pair.b.send(pair.b.main, b"12345")
    pair.deliver(pair.b)
    pair.a.said()
    pair.a.protocol.finish(pair.a.main)
    pair.b.send(pair.b.main, b"6")
    pair.deliver(pair.b)
    assert [type(item) for item in pair.a.said()] == [Fin, Ack]


def test_what_an_older_release_is_told_is_what_it_always_was() -> None:
    """Whichever side has no terms, no frame is sent that an older release does not know."""
    for ours, theirs in ((TERMS, None), (None, TERMS), (None, None)):
        pair = Pair(terms=(ours, theirs))
        pair.b.send(pair.b.main, b"12345")
        pair.a.send(pair.a.main, b"67890")
        pair.carry()
        pair.now += 1.0
        for side in (pair.a, pair.b):
            side.protocol.handle_timer(pair.now)
            assert side.said() == []
            assert (side.protocol.outgoing, side.protocol.incoming) == (None, None)


# --- anything, in any order, cut anywhere ---

SMALL = {
    "EARLY_DATA_LIMIT": 500,
    "MAX_CHANNELS": 12,
    "WINDOW_MIN": 1000,
    "WINDOW_MAX": 8000,
    "WINDOW_FLOOR": 100,
    "WINDOWS_TOTAL": 6000,
}
SIDES = st.sampled_from(["a", "b"])
PICK = st.integers(0, 50)


@final
class End:
    """One end of a channel as an application sees it: what it has sent and received."""

    def __init__(self, side: Side, channel: Channel) -> None:
        self.side = side
        self.channel = channel
        self.sent = bytearray()
        self.got = bytearray()
        self.closed = False
        self.cut_short = False
        """It was aborted before its own end, so that the peer must never read an end."""

    def waiting(self) -> int:
        return 0 if self.closed else self.channel.buffered


class TwoProtocols(RuleBasedStateMachine):
    """Two applications open, write, read, half-close and close at random, over a wire that cuts at random."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        for name, value in SMALL.items():
            self.patch.setattr(channels_module, name, value)
        self.ends: dict[tuple[str, int], End] = {}
        self.counter = 0

    @initialize(acknowledged=st.booleans())
    def main_channel(self, acknowledged: bool) -> None:
        self.pair = Pair(terms=(TERMS, TERMS) if acknowledged else (None, None))
        self.pair.a.protocol.life.rtt = self.pair.b.protocol.life.rtt = 0.1
        for name in ("a", "b"):
            side = self.side(name)
            self.ends[name, 0] = End(side, side.main)

    def side(self, name: str) -> Side:
        return self.pair.a if name == "a" else self.pair.b

    def name(self, side: Side) -> str:
        return "a" if side is self.pair.a else "b"

    def pick(self, name: str, pick: int) -> End | None:
        own = [end for (side, _), end in self.ends.items() if side == name and not end.closed and self.is_usable(end)]
        return own[pick % len(own)] if own else None

    @staticmethod
    def is_usable(end: End) -> bool:
        return end.channel.accepted or end.channel.outgoing is DirectionState.FLOWING  # early data

    def after_delivery(self, receiver: Side) -> None:
        for opened in receiver.protocol.take_opened():
            self.counter += 1
            if self.counter % 4 == 0:
                receiver.protocol.refuse_channel(opened.channel, RefuseReason.BUSY)
                continue
            receiver.protocol.accept_channel(opened.channel)
            self.ends[self.name(receiver), opened.channel.id] = End(receiver, opened.channel)
        receiver.protocol.take_touched()

    @rule(name=SIDES, size=st.integers(1, 400))
    def carry_some(self, name: str, size: int) -> None:
        self.pair.deliver(self.side(name), size)
        self.after_delivery(self.pair.b if name == "a" else self.pair.a)

    @rule(name=SIDES)
    def carry_all(self, name: str) -> None:
        self.pair.deliver(self.side(name))
        self.after_delivery(self.pair.b if name == "a" else self.pair.a)

    @rule(seconds=st.floats(0.0, 0.3))
    def pass_time(self, seconds: float) -> None:
        self.pair.now += seconds
        for name in ("a", "b"):
            self.side(name).protocol.handle_timer(self.pair.now)
            assert self.side(name).protocol.deadline > self.pair.now, "a timer that stays due would never let go"

    @rule(name=SIDES)
    def open_channel(self, name: str) -> None:
        side = self.side(name)
        try:
            channel = side.protocol.open_channel("label", now=self.pair.now)
        except LocalProtocolError:
            protocol = side.protocol
            assert len(protocol.channels) == SMALL["MAX_CHANNELS"] or protocol.channels._windows > 5900
        else:
            self.ends[name, channel.id] = End(side, channel)

    @rule(name=SIDES, pick=PICK, size=st.integers(1, 1500))
    def send(self, name: str, pick: int, size: int) -> None:
        end = self.pick(name, pick)
        if end is None or not end.channel.sendable:
            return
        start = len(end.sent)
        payload = bytes(i % 251 for i in range(start, start + min(size, end.channel.sendable)))
        end.side.send(end.channel, payload)
        end.sent += payload

    @rule(name=SIDES, pick=PICK, size=st.one_of(st.none(), st.integers(1, 1500)))
    def read(self, name: str, pick: int, size: int | None) -> None:
        end = self.pick(name, pick)
        if end is not None and end.channel.buffered:
            end.got += end.side.read(end.channel, self.pair.now, size)

    @rule(name=SIDES, pick=PICK)
    def finish(self, name: str, pick: int) -> None:
        end = self.pick(name, pick)
        if end is not None:
            end.side.protocol.finish(end.channel)

    @rule(name=SIDES, pick=PICK, abort=st.booleans())
    def close(self, name: str, pick: int, abort: bool) -> None:
        own = [end for (side, _), end in self.ends.items() if side == name]
        end = own[pick % len(own)]  # including one that is not answered yet
        end.cut_short |= abort and end.channel.outgoing is DirectionState.FLOWING
        end.side.protocol.close_channel(end.channel, abort=abort)
        end.closed = True

    @precondition(lambda self: self.counter < 100)
    @rule(name=SIDES)
    def ping(self, name: str) -> None:
        self.side(name).protocol.send_ping(self.pair.now)
        self.counter += 1

    @invariant()
    def nothing_is_lost_or_reordered(self) -> None:
        for (name, number), end in self.ends.items():
            other = self.ends.get(("b" if name == "a" else "a", number))
            assert other is None or other.sent.startswith(end.got)

    @invariant()
    def credit_is_kept(self) -> None:
        for (name, number), end in self.ends.items():
            channel = end.channel
            assert channel.failure is None or str(channel.failure) in ("the peer closed its end", "the peer aborted it")
            assert channel.sent == len(end.sent)
            assert channel.received <= channel.receive_limit
            other = self.ends.get(("b" if name == "a" else "a", number))
            if other is not None:
                assert channel.sent <= channel.send_limit <= other.channel.receive_limit

    @invariant()
    def what_is_acknowledged_was_taken_in_and_what_was_taken_in_was_said(self) -> None:
        for sender, receiver in ((self.pair.a, self.pair.b), (self.pair.b, self.pair.a)):
            said, taken = sender.protocol.outgoing, receiver.protocol.incoming
            assert (said is None) == (taken is None)
            if said is not None and taken is not None:
                assert said.acknowledged <= taken.received <= said.end
                assert (said.held == 0) == (said.acknowledged == said.end)

    @invariant()
    def books_are_kept(self) -> None:
        for name in ("a", "b"):
            protocol = self.side(name).protocol
            alive = sum(channel.window for channel in protocol.channels.values())
            unread = sum(
                end.waiting()
                for (side, number), end in self.ends.items()
                if side == name and number not in protocol.channels
            )
            assert protocol.channels._windows == alive + unread <= SMALL["WINDOWS_TOTAL"]
            assert len(protocol.channels) <= SMALL["MAX_CHANNELS"]
            assert not any(channel.done for channel in protocol.channels.values())

    def teardown(self) -> None:
        try:
            self.settle()
            for (name, number), end in self.ends.items():
                other = self.ends.get(("b" if name == "a" else "a", number))
                if other is None or end.closed or end.channel.incoming is not DirectionState.FINISHED:
                    continue
                assert not other.cut_short
                end.got += end.side.read(end.channel, self.pair.now)
                assert end.got == other.sent
            for end in self.ends.values():
                end.side.protocol.close_channel(end.channel)
                end.closed = True
            self.settle()
            for name in ("a", "b"):
                assert self.side(name).protocol.channels == {}
                assert self.side(name).protocol.channels._windows == 0
            self.pair.now += ACK_DELAY
            for name in ("a", "b"):
                self.side(name).protocol.handle_timer(self.pair.now)
            self.settle()
            for name in ("a", "b"):
                said = self.side(name).protocol.outgoing
                assert said is None or (said.acknowledged, said.held, said.frames) == (said.end, 0, 0)
        finally:
            self.patch.undo()

    def settle(self) -> None:
        for _ in range(4):
            for name in ("a", "b"):
                self.carry_all(name)


TwoProtocols.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTwoProtocols = pytest.mark.slow("Hypothesis: 60 runs of 40 steps")(TwoProtocols.TestCase)
