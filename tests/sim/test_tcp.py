"""TCP's state machine by itself, segment by segment."""

from __future__ import annotations

import errno
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from warpgate_trio.sim import Icmp
from warpgate_trio.sim.packet import ACK, RST, SYN, TCP, Packet
from warpgate_trio.sim.tcp import TcpEndpoint
from warpgate_trio.sim.tcp_receiver import Receiver
from warpgate_trio.sim.tcp_sender import unwrap
from warpgate_trio.sim.tcp_states import Options, State

A, B = ("10.0.0.1", 1000), ("10.0.0.2", 2000)


def endpoint(local: tuple[str, int] = A, remote: tuple[str, int] = B, iss: int = 100) -> TcpEndpoint:
    return TcpEndpoint(local, remote, iss=iss, mss=1000, options=Options())


def flush(end: TcpEndpoint, now: float = 0.0) -> list[Packet]:
    end.flush_ack(now)
    out, end.out = end.out, []
    return out


def opened(iss_a: int = 100, iss_b: int = 500) -> tuple[TcpEndpoint, TcpEndpoint]:
    a, b = endpoint(iss=iss_a), endpoint(B, A, iss=iss_b)
    a.connect(0)
    (syn,) = flush(a)
    b.accept(syn, 0)
    exchange(a, b)
    assert a.state is b.state is State.ESTABLISHED
    return a, b


def exchange(a: TcpEndpoint, b: TcpEndpoint, now: float = 0.0) -> None:
    """Carry segments until both are silent."""
    while True:
        going, coming = flush(a, now), flush(b, now)
        if not going and not coming:
            return
        for packet in going:
            b.receive(packet, now)
        for packet in coming:
            a.receive(packet, now)


def test_who_waits_for_room_is_woken_when_half_of_what_may_be_unsent_was_sent() -> None:
    """As Linux's `tcp_stream_memory_free`; a write that does not wait may use the whole limit."""
    a, b = opened()
    b.receiver.capacity = 100_000
    a.options = replace(a.options, unsent_limit=4000)
    assert a.write(bytes(100_000), 0.0) == 14_000  # ten segments leave at once (RFC 6928)
    assert not a.has_room
    segments = flush(a)
    assert len(segments) == 10
    for segment in segments[:1]:
        b.receive(segment, 0.0)
        for answer in flush(b):
            a.receive(answer, 0.0)
    assert a.sender.unsent == 2000
    assert a.has_room
    assert not a.is_writable
    b.receive(segments[1], 0.0)
    for answer in flush(b):
        a.receive(answer, 0.0)
    assert a.sender.unsent == 0
    assert a.is_writable


# The state machine


def test_three_way_handshake_on_the_wire() -> None:
    a, b = endpoint(), endpoint(B, A, iss=500)
    a.connect(0)
    (syn,) = flush(a)
    assert (syn.flags, syn.seq) == (SYN, 100)
    b.accept(syn, 0)
    (synack,) = flush(b)
    assert (synack.flags, synack.seq, synack.ack) == (SYN | ACK, 500, 101)
    a.receive(synack, 0)
    (ack,) = flush(a)
    assert (ack.flags, ack.seq, ack.ack) == (ACK, 101, 501)
    b.receive(ack, 0)
    assert a.state is b.state is State.ESTABLISHED


def test_simultaneous_open_on_the_wire() -> None:
    """As measured: S/S, SA/SA, A/A."""
    a, b = endpoint(), endpoint(B, A, iss=500)
    a.connect(0)
    b.connect(0)
    flags = []
    while True:
        going, coming = flush(a), flush(b)
        if not going and not coming:
            break
        flags.append(("".join(p.flag_letters for p in going), "".join(p.flag_letters for p in coming)))
        for packet in going:
            b.receive(packet, 0)
        for packet in coming:
            a.receive(packet, 0)
    assert flags == [("S", "S"), ("SA", "SA"), ("A", "A")]
    assert a.state is b.state is State.ESTABLISHED
    a.write(b"hello", 0)
    exchange(a, b)
    assert b.read(10) == b"hello"


def test_a_crossed_open_survives_the_loss_of_one_syn_ack() -> None:
    a, b = endpoint(), endpoint(B, A, iss=500)
    a.connect(0)
    b.connect(0)
    (syn_a,), (syn_b,) = flush(a), flush(b)
    a.receive(syn_b, 0)
    b.receive(syn_a, 0)
    (synack_a,), _lost = flush(a), flush(b)
    b.receive(synack_a, 0)
    assert b.state is State.ESTABLISHED
    exchange(a, b)
    assert a.state is State.ESTABLISHED


def test_refused_only_by_a_reset_that_acknowledges_the_syn() -> None:
    a = endpoint()
    a.connect(0)
    a.receive(Packet(TCP, B, A, flags=RST, seq=1), 0)
    a.receive(Packet(TCP, B, A, flags=RST | ACK, ack=77), 0)
    assert a.state is State.SYN_SENT
    a.receive(Packet(TCP, B, A, flags=RST | ACK, ack=101), 0)
    assert a.take_error() == errno.ECONNREFUSED
    assert a.take_error() == 0


def test_a_wrong_acknowledgement_of_a_syn_is_reset() -> None:
    a = endpoint()
    a.connect(0)
    flush(a)
    a.receive(Packet(TCP, B, A, flags=SYN | ACK, ack=999), 0)
    (reset,) = flush(a)
    assert (reset.flags, reset.seq) == (RST, 999)
    assert a.state is State.SYN_SENT


def test_resets_count_only_at_the_expected_number() -> None:
    """RFC 5961, section 3.2."""
    a, _ = opened()
    expected = a.receiver.next & 0xFFFFFFFF
    a.receive(Packet(TCP, B, A, flags=RST, seq=expected + 1), 0)
    (challenge,) = flush(a)
    assert challenge.flags == ACK
    a.receive(Packet(TCP, B, A, flags=RST, seq=expected - 5), 0)
    assert flush(a) == []
    assert a.state is State.ESTABLISHED
    a.receive(Packet(TCP, B, A, flags=RST, seq=expected), 0)
    assert a.take_error() == errno.ECONNRESET
    assert a.at_eof


def test_a_syn_in_an_open_connection_is_challenged() -> None:
    a, _ = opened()
    a.receive(Packet(TCP, B, A, flags=SYN, seq=a.receiver.next), 0)
    (challenge,) = flush(a)
    assert challenge.flags == ACK
    assert a.state is State.ESTABLISHED


def test_two_ends_that_are_out_of_step_do_not_answer_each_other_for_ever() -> None:
    """tcp_invalid_ratelimit, which applies to segments without data."""
    a, _ = opened()
    for now, answers in ((0, 1), (0.1, 0), (0.49, 0), (0.5, 1), (0.6, 0)):
        a.receive(Packet(TCP, B, A, flags=ACK, seq=a.receiver.next - 9), now)
        assert len(flush(a)) == answers
    a.receive(Packet(TCP, B, A, flags=ACK, seq=a.receiver.next - 9, payload=b"old"), 0.7)
    assert len(flush(a)) == 1


def test_reset_after_the_peer_has_finished_is_a_broken_pipe() -> None:
    a, b = opened()
    b.shutdown_write(0)
    exchange(a, b)
    assert a.state is State.CLOSE_WAIT
    a.receive(Packet(TCP, B, A, flags=RST, seq=a.receiver.next), 0)
    assert a.take_error() == errno.EPIPE


def test_both_close_at_once() -> None:
    a, b = opened()
    a.shutdown_write(0)
    b.shutdown_write(0)
    exchange(a, b)
    assert a.state is b.state is State.TIME_WAIT
    for end in (a, b):
        end.tick(end.deadline)
        assert end.state is State.CLOSED


def test_data_for_a_closed_program_is_reset() -> None:
    a, b = opened()
    a.close(0)
    exchange(a, b)
    assert a.state.value == "FIN-WAIT-2"
    b.write(b"anybody?", 0)
    exchange(a, b)
    assert a.state is State.CLOSED
    assert b.take_error() == errno.EPIPE


def test_a_closed_program_waits_a_minute_for_its_peer() -> None:
    a, b = opened()
    a.close(5)
    exchange(a, b, 5)
    assert a.deadline == 65
    a.tick(65)
    assert a.state is State.CLOSED


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Icmp.PORT_UNREACHABLE, errno.ECONNREFUSED),
        (Icmp.HOST_UNREACHABLE, errno.EHOSTUNREACH),
        (Icmp.ADMIN_PROHIBITED, errno.EHOSTUNREACH),
        (Icmp.TIME_EXCEEDED, errno.EHOSTUNREACH),
        (Icmp.NET_UNREACHABLE, errno.ENETUNREACH),
    ],
)
def test_icmp_ends_what_is_opening_and_nothing_else(error: Icmp, code: int) -> None:
    a = endpoint()
    a.connect(0)
    a.icmp(error, 0, 0)
    assert a.take_error() == code
    a, _ = opened()
    a.icmp(error, 0, 0)
    assert a.state is State.ESTABLISHED
    assert a.error == 0


def test_sequence_numbers_wrap() -> None:
    a, b = opened(2**32 - 3, 2**32 - 1)
    for _ in range(5):
        a.write(bytes(range(200)), 0)
        b.write(b"x", 0)
        exchange(a, b)
        assert b.read(1000) == bytes(range(200))
        assert a.read(10) == b"x"


@given(st.integers(0, 2**40), st.integers(-(2**31) + 1, 2**31 - 1))
def test_unwrap_inverts_masking(near: int, distance: int) -> None:
    assert unwrap((near + distance) & 0xFFFFFFFF, near) == near + distance


@pytest.mark.slow("hundreds of streams")
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), max_size=40), st.booleans())
def test_a_receiver_puts_anything_in_order(pieces: list[tuple[int, int]], fin: bool) -> None:
    data = bytes(range(1, 43))
    receiver = Receiver(999, 1 << 16)
    for start, size in [*pieces, (0, 42)]:
        piece = data[start : start + size]
        receiver.take(1000 + start, piece, fin=fin and start + size >= len(data))
        assert data.startswith(bytes(receiver.buffer))
    assert bytes(receiver.buffer) == data
    assert not receiver.has_gap
    if fin:
        receiver.take(1042, b"", fin=True)
        assert receiver.finished


hostile = st.builds(
    Packet,
    proto=st.just(TCP),
    src=st.just(B),
    dst=st.just(A),
    payload=st.binary(max_size=20),
    flags=st.integers(0, 31),
    seq=st.one_of(st.integers(480, 560), st.integers(0, 2**32 - 1)),
    ack=st.one_of(st.integers(90, 160), st.integers(0, 2**32 - 1)),
    window=st.sampled_from([0, 1, 100, 65535]),
)
actions = st.sampled_from(["write", "read", "shutdown", "close", "abort", "tick", "flush"])


@given(st.sampled_from(["connecting", "listening", "open"]), st.lists(st.one_of(hostile, actions), max_size=30))
@settings(max_examples=300)
@pytest.mark.slow("hundreds of examples")
def test_no_segment_can_hurt_an_endpoint(start: str, events: list[Packet | str]) -> None:
    if start == "open":
        a, _ = opened()
    else:
        a = endpoint()
        if start == "connecting":
            a.connect(0)
        else:
            a.accept(Packet(TCP, B, A, flags=SYN, seq=499, window=1000), 0)
    now = 0.0
    read = b""
    for event in events:
        if isinstance(event, Packet):
            a.receive(event, now)
        elif event == "write" and a.may_send and not a.orphan:
            a.write(b"some data", now)
        elif event == "read":
            read += a.read(7)
        elif event == "shutdown":
            a.shutdown_write(now)
        elif event == "close":
            a.close(now)
        elif event == "abort":
            a.abort()
        elif event == "tick" and a.deadline < 1e9:
            now = a.deadline
            a.tick(now)
        for packet in flush(a, now):
            assert 0 <= packet.seq < 2**32
            assert 0 <= packet.ack < 2**32
            assert len(packet.payload) <= 1000
        assert len(a.receiver.buffer) <= a.options.receive_buffer
        assert a.sender.una <= a.sender.next <= max(a.sender.end, a.sender.base)
        assert a.deadline > now
        if a.state is State.CLOSED:
            assert a.deadline == float("inf")


def test_a_lost_segment_is_sent_again_without_a_timeout() -> None:
    """RFC 8985: three later segments that arrived reveal the loss, and are not retransmitted."""
    a, b = opened()
    data = bytes(range(250)) * 40
    a.write(data, 0)
    segments = flush(a)
    assert len(segments) == 10
    for number, segment in enumerate(segments):
        if number != 2:
            b.receive(segment, 0)
    while answers := flush(b):
        for answer in answers:
            a.receive(answer, 0)
        again = flush(a)
        assert [packet.seq for packet in again if packet.payload] in ([], [segments[2].seq])
        for packet in again:
            b.receive(packet, 0)
    assert b.read(100_000) == data
    assert a.sender.una == a.sender.end


def timed(rtt: float = 0.1) -> tuple[TcpEndpoint, TcpEndpoint, float]:
    """Both ends of an open connection with a measured round-trip time, and the time."""
    a, b = opened()
    now = 0.0
    for _ in range(10):
        a.write(b"?", now)
        carry(flush(a, now), b, now + rtt / 2)
        carry(flush(b, now + rtt / 2), a, now + rtt)
        b.read(10)
        now += rtt
    return a, b, now


def carry(packets: list[Packet], end: TcpEndpoint, now: float) -> None:
    for packet in packets:
        end.receive(packet, now)


def test_one_that_arrived_later_tells_after_a_round_trip_and_a_quarter() -> None:
    """RFC 8985, section 6.2: the two are 10 ms apart, which might be reordering, so TCP waits."""
    a, b, now = timed()
    a.write(b"lost", now)
    flush(a, now)
    a.write(b"here", now + 0.01)
    carry(flush(a, now + 0.01), b, now + 0.06)
    (answer,) = flush(b, now + 0.06)
    assert [(after - first, first - answer.ack) for first, after in answer.blocks] == [(4, 4)]
    a.receive(answer, now + 0.11)
    assert flush(a, now + 0.11) == []
    assert a.deadline == pytest.approx(now + 0.125)
    a.tick(a.deadline)
    (again,) = flush(a, now + 0.125)
    assert again.payload == b"lost"


def test_a_probe_comes_before_the_timeout_and_does_not_double_it() -> None:
    """RFC 8985, section 7: the acknowledgement of a lone segment may be delayed, so its probe is due at the timeout."""
    a, _, now = timed()
    a.write(b"lost", now)
    flush(a, now)
    waits = []
    for _ in range(4):
        waits.append(a.deadline - now)
        now = a.deadline
        a.tick(now)
        (again,) = flush(a, now)
        assert again.payload == b"lost"
    assert waits == pytest.approx([0.3, 0.3, 0.6, 1.2], rel=0.02)


def test_the_answer_to_a_second_syn_makes_a_long_round_trip() -> None:
    """As on Linux, which keeps the first SYN's time stamp: a lost SYN-ACK makes the first recoveries slow."""
    a, b = endpoint(), endpoint(B, A, iss=500)
    a.connect(0)
    b.accept(flush(a)[0], 0)
    flush(b)  # its SYN-ACK is lost
    a.tick(a.deadline)
    carry(flush(a, 1.0), b, 1.0)
    exchange(a, b, 1.05)
    a.write(b"x", 2)
    assert a.deadline - 2 == pytest.approx(2 * 1.05 + 0.2)
