"""QUIC without I/O: round trips, lengths, the end, losses, and forged datagrams."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.identities import ALICE, BOB
from warpgate_trio.carrier import quic_protocol
from warpgate_trio.carrier.quic_connection import DATAGRAM, Connection
from warpgate_trio.carrier.quic_protocol import IDLE_TIMEOUT, QuicProtocol, _configuration
from warpgate_trio.carrier.quic_starts import MAX_STARTS, destination_id, is_first

LATENCY: Final = 0.02
RTT: Final = 2 * LATENCY

Fault = Callable[[bytes], list[bytes]]
"""The datagrams that arrive in place of one."""


@final
@dataclass
class World:
    """Two ends and the wire between them, with a clock of its own."""

    dialler: QuicProtocol = field(default_factory=lambda: QuicProtocol.dialing(now=0.0))
    server: QuicProtocol = field(default_factory=lambda: QuicProtocol.serving(BOB))
    fault: Fault = field(default=lambda datagram: [datagram])
    jitter: Callable[[], float] = field(default=lambda: 0.0)
    now: float = 0.0
    sent: list[tuple[float, bool, bytes]] = field(default_factory=list)
    """(time, whether the dialler sent it, datagram)."""
    flying: list[tuple[float, int, QuicProtocol, bytes]] = field(default_factory=list)
    got: dict[bool, bytes] = field(default_factory=lambda: {True: b"", False: b""})
    """What the dialler (True) and the server (False) have read."""
    deaf: QuicProtocol | None = None
    """An end that no longer exists."""

    def step(self, until: float = math.inf) -> bool:
        """Send, and advance to the next event before `until`; False if there is none."""
        for end in (self.dialler, self.server):
            if end is self.deaf:
                continue
            for datagram in end.transmit(self.now):
                self.sent.append((self.now, end is self.dialler, datagram))
                for each in self.fault(datagram):
                    other = self.server if end is self.dialler else self.dialler
                    at = self.now + LATENCY + self.jitter()
                    self.flying.append((at, len(self.sent), other, each))
        timers = [end.deadline for end in (self.dialler, self.server) if end is not self.deaf]
        times = [timer for timer in timers if timer < math.inf] + [each[0] for each in self.flying]
        if min(times, default=math.inf) > until:
            self.now = until
            return False
        if not times:
            return False
        self.now = max(self.now, min(times))
        landed = sorted((*each[:2], each) for each in self.flying if each[0] <= self.now)
        for end in (self.dialler, self.server):
            if end is self.deaf:
                continue
            batch = [each[3] for _, _, each in landed if each[2] is end]
            if batch:
                end.receive(batch, self.now)
            if end.deadline <= self.now:
                end.handle_timer(self.now)
            self.got[end is self.dialler] += b"".join(end.take())
        self.flying = [each for each in self.flying if each[0] > self.now]
        return True

    def run(self, seconds: float) -> None:
        """Let `seconds` pass."""
        until = self.now + seconds
        while self.step(until):
            pass

    def until(self, condition: Callable[[], bool], limit: float = 60.0) -> World:
        """Let time pass until the condition holds."""
        while not condition():
            assert self.step(), f"nothing happens any more: {self.dialler.failure!r} {self.server.failure!r} {self.now}"
            assert self.now < limit, "it took too long"
        return self


def connected(**changes: object) -> World:
    world = World(**changes)  # type: ignore[arg-type]
    return world.until(lambda: world.dialler.ready and world.server.ready).until(lambda: not world.flying)


# --- time and lengths ---


def test_the_handshake_takes_one_round_trip_and_the_diallers_words_come_half_a_one_later() -> None:
    world = World()
    world.until(lambda: world.dialler.ready)
    assert world.now == RTT
    assert not world.server.ready
    world.dialler.send(b"proof")
    world.dialler.send(b" and commit")
    world.until(lambda: world.server.ready)
    assert world.got[False] == b"proof and commit"
    assert world.now == pytest.approx(1.5 * RTT)
    world.server.send(b"accept")
    world.until(lambda: world.got[True] == b"accept")
    assert world.now == pytest.approx(2 * RTT)


def test_every_run_has_the_same_lengths_and_every_datagram_fits() -> None:
    def lengths() -> list[tuple[float, bool, int]]:
        world = connected()
        world.dialler.send(bytes(5000))
        world.server.send(bytes(300))
        world.until(lambda: len(world.got[False]) == 5000 and len(world.got[True]) == 300)
        world.dialler.send_end()
        world.server.send_end()
        world.until(lambda: world.dialler.delivered and world.server.delivered)
        assert all(datagram[0] & 0x40 for _, _, datagram in world.sent)  # RFC 9443: no datagram looks like STUN
        return [(at, dialler, len(datagram)) for at, dialler, datagram in world.sent]

    first = lengths()
    assert max(length for _, _, length in first) == DATAGRAM
    for _ in range(5):
        assert lengths() == first


def test_a_known_round_trip_makes_the_first_retransmission_early() -> None:
    for initial_rtt, expected in ((None, 0.666), (0.05, 0.1)):
        protocol = QuicProtocol.dialing(now=5.0, initial_rtt=initial_rtt)
        protocol.transmit(5.0)
        assert protocol.deadline == pytest.approx(5.0 + expected)


# --- who it is ---


def test_the_dialler_learns_the_servers_key() -> None:
    world = connected()
    assert world.dialler.peer_certificate_key == BOB.public_key
    assert world.server.peer_certificate_key is None


def test_somebody_elses_certificate_is_of_no_use() -> None:
    server = QuicProtocol.serving(BOB)
    server._configuration.load_cert_chain(BOB.certificate_pem(), ALICE.private_key_pem())
    world = World(server=server)
    with pytest.raises(AssertionError, match=r"nothing happens|too long"):
        world.until(lambda: world.dialler.ready, limit=5)
    assert world.dialler.failure is not None


def test_there_is_no_ticket_to_come_back_with() -> None:
    world = World()
    tickets: list[object] = []
    world.dialler._connection = connection = Connection(world.dialler._configuration)
    connection._quic._session_ticket_handler = tickets.append
    world.dialler._connection.connect(0.0)
    world.until(lambda: world.server.ready).until(lambda: not world.flying)
    assert tickets == []


def test_another_protocol_is_refused() -> None:
    dialler = QuicProtocol(_configuration(dialler=True, initial_rtt=0.05))
    dialler._configuration.alpn_protocols = ["h3"]
    dialler._connection = Connection(dialler._configuration)
    dialler._connection.connect(0.0)
    world = World(dialler=dialler)
    world.until(lambda: world.dialler.failure is not None)
    assert not world.server.ready
    assert world.server.failure is None  # the failed dialler may have been anybody


# --- the stream ---


def test_the_end_is_delivered_when_it_is_acknowledged() -> None:
    world = connected()
    assert not world.dialler.delivered
    world.dialler.send(b"last words")
    world.dialler.send_end()
    world.dialler.send_end()
    assert not world.dialler.delivered
    lost: list[bytes] = []
    world.fault = lambda datagram: [] if not lost and not lost.append(datagram) else [datagram]  # type: ignore[func-returns-value]
    world.step()
    assert len(lost) == 1
    began = world.now
    world.until(lambda: world.server.ended)
    assert world.got[False] == b"last words"
    assert world.now > began + RTT  # it was retransmitted
    assert not world.dialler.delivered
    world.until(lambda: world.dialler.delivered)
    world.server.send(b"the other half is open")
    world.server.send_end()
    world.until(lambda: world.dialler.ended and world.server.delivered)
    assert world.got[True] == b"the other half is open"


def test_a_close_is_noticed_at_once() -> None:
    for end in ("dialler", "server"):
        world = connected()
        closing = getattr(world, end)
        other = world.server if end == "dialler" else world.dialler
        other.send(b"x")
        datagrams = closing.close(world.now)
        assert len(datagrams) == 1
        other.receive(datagrams, world.now + LATENCY)
        assert other.failure == "the connection was lost: QUIC error 0x0"
        assert closing.close(world.now) == []


def test_a_close_after_both_ends_is_no_failure_of_either() -> None:
    world = connected()
    world.dialler.send_end()
    world.server.send_end()
    world.until(lambda: world.dialler.ended and world.server.ended and world.dialler.delivered)
    world.server.receive(world.dialler.close(world.now), world.now + LATENCY)
    assert world.server.ended
    assert world.server.failure is not None


def test_a_close_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        test_a_close_is_noticed_at_once()
    assert not caplog.records


@pytest.mark.parametrize("seed", range(10))
def test_a_bad_wire(seed: int) -> None:
    """A tenth of the datagrams is lost, a tenth is doubled, and all are reordered."""
    rng = random.Random(seed)

    def fault(datagram: bytes) -> list[bytes]:
        return [datagram] * rng.choices([0, 1, 2], [1, 8, 1])[0]

    world = World(fault=fault, jitter=lambda: rng.random() * LATENCY)
    sent = {True: b"", False: b""}
    for _ in range(20):
        for end in (world.dialler, world.server):
            if end.ready:
                data = rng.randbytes(rng.randrange(1, 9000))
                end.send(data)
                sent[end is world.server] += data
        world.run(rng.random() * 3 * RTT)
    world.until(lambda: world.dialler.ready and world.server.ready)
    world.dialler.send_end()
    world.server.send_end()
    world.until(lambda: all(end.ended and end.delivered for end in (world.dialler, world.server)))
    assert world.got == sent


@pytest.mark.slow("two hundred connections")
def test_a_lost_end_is_sent_again() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        world = connected()
        world.fault = lambda datagram, rng=rng: [] if rng.random() < 0.2 else [datagram]  # type: ignore[misc]
        world.dialler.send(bytes(3000))
        world.run(RTT / 2)
        for end in (world.dialler, world.server):
            end.send_end()
        world.until(lambda: all(end.ended and end.delivered for end in (world.dialler, world.server)))  # noqa: B023
        assert world.got == {True: b"", False: bytes(3000)}


# --- silence ---


@pytest.mark.parametrize("stage", ["first flight", "answer", "finished", "confirmed", "bulk"])
def test_a_peer_that_fell_silent_is_asked_ever_more_rarely(stage: str) -> None:
    world = World()
    if stage == "answer":
        world.deaf = None
        world.until(lambda: len([1 for _, dialler, _ in world.sent if not dialler]) > 0)
        silent, left = world.dialler, world.server
    elif stage == "first flight":
        silent, left = world.server, world.dialler
    elif stage == "finished":
        world.until(lambda: world.dialler.ready)
        silent, left = world.server, world.dialler
        left.send(b"proof")
    else:
        connected_world = connected()
        world = connected_world
        silent, left = world.server, world.dialler
        left.send(bytes(10) if stage == "confirmed" else bytes(1 << 20))
    world.deaf = silent
    before, began = len(world.sent), world.now

    def over() -> bool:
        return left.failure is not None or (stage == "answer" and not left._flights._starts)

    world.until(over, limit=began + 2 * IDLE_TIMEOUT)
    assert stage == "answer" or left.failure == "the connection was lost: Idle timeout"
    assert IDLE_TIMEOUT * 0.9 <= world.now - began <= IDLE_TIMEOUT * 1.5
    assert len(world.sent) - before < 60


@pytest.mark.parametrize("idle", [0.0, 10.0, 48.0])
def test_what_is_lost_after_a_silence_in_which_nothing_was_owed_is_sent_again_as_soon_as_ever(idle: float) -> None:
    world = connected()
    world.run(1.0)
    world.dialler.send(b"hello")
    world.run(idle + 1.0)
    assert world.got[False] == b"hello"
    lost: list[float] = []

    def lose_three(datagram: bytes) -> list[bytes]:
        if len(lost) == 3:
            return [datagram]
        lost.append(world.now)
        return []

    world.fault = lose_three
    began = world.now
    world.dialler.send(b" again")
    world.until(lambda: world.got[False] == b"hello again", limit=began + 60)
    assert world.now - began < 1.0


# --- hostile datagrams ---


def hostile(rng: random.Random, seen: list[bytes]) -> bytes:
    """Noise, or a modified copy of a datagram that was on the wire."""
    kind = rng.randrange(5)
    if kind == 0 or not seen:
        return rng.randbytes(rng.choice([0, 1, 7, 20, 300, DATAGRAM, 2048]))
    datagram = bytearray(rng.choice(seen))
    if kind == 1:
        return bytes(datagram[: rng.randrange(len(datagram))])
    if kind == 2:
        return bytes(datagram) + rng.randbytes(rng.randrange(100))
    if kind == 3:
        return bytes([rng.randrange(256)]) + bytes(datagram[1:])
    datagram[rng.randrange(len(datagram))] ^= 1 << rng.randrange(8)
    return bytes(datagram)


@pytest.mark.slow("many forged datagrams at every moment of ten connections")
@pytest.mark.parametrize("seed", range(10))
def test_forged_datagrams_change_nothing(seed: int) -> None:
    rng = random.Random(seed)
    world = World()

    def noise() -> list[bytes]:
        return [hostile(rng, [datagram for _, _, datagram in world.sent[-20:]]) for _ in range(20)]

    world.step()
    for _ in range(8):
        for end in (world.dialler, world.server):
            end.receive(noise(), world.now)
        world.run(RTT / 4)
    world.until(lambda: world.dialler.ready and world.server.ready)
    for _ in range(10):
        world.dialler.send(b"x" * 3000)
        world.server.send(b"y" * 3000)
        for end in (world.dialler, world.server):
            end.receive(noise(), world.now)
        world.run(RTT / 2)
    world.until(lambda: world.got == {True: b"y" * 30_000, False: b"x" * 30_000})
    assert world.dialler.failure is world.server.failure is None


@given(datagram=st.binary(max_size=1300))
@example(datagram=b"\xc0\0\0\0\1\x08" + bytes(1300))
@example(datagram=b"\xc0\0\0\0\1\xff" + bytes(1300))
@example(datagram=b"\xc0\0\0\0\0" + bytes(1300))
@settings(max_examples=50)
def test_nothing_that_comes_first_ends_a_listener(datagram: bytes) -> None:
    server = QuicProtocol.serving(BOB)
    server.receive([datagram] * 2, 0.0)
    server.transmit(0.0)
    assert server.failure is None
    assert len(server._flights._starts) <= 1


def test_first_flights_of_others_do_not_hide_the_diallers() -> None:
    world = World()
    for _ in range(MAX_STARTS - 1):
        forged = QuicProtocol.dialing(now=0.0)
        world.server.receive(forged.transmit(0.0), 0.0)
    world.until(lambda: world.dialler.ready and world.server.ready)
    assert not world.server._flights._starts
    world.dialler.send(b"hello")
    world.until(lambda: world.got[False] == b"hello")


def test_starts_are_bounded() -> None:
    server = QuicProtocol.serving(BOB)
    for _ in range(MAX_STARTS + 5):
        server.receive(QuicProtocol.dialing(now=0.0).transmit(0.0), 0.0)
    assert len(server._flights._starts) == MAX_STARTS
    assert len(server.transmit(0.0)) <= 3 * 2 * MAX_STARTS  # RFC 9000 §8.1: at most three times the bytes received
    assert server.deadline < math.inf
    assert server.close(1.0)


def test_a_start_that_comes_to_nothing_makes_room_for_another() -> None:
    server = QuicProtocol.serving(BOB)
    for _ in range(MAX_STARTS):
        server.receive(QuicProtocol.dialing(now=0.0).transmit(0.0), 0.0)
    now = 0.0
    while server._flights._starts:
        timer = server.deadline
        assert timer < math.inf
        now = max(now, timer)
        server.handle_timer(now)
        server.transmit(now)
    assert now <= IDLE_TIMEOUT * 1.5
    world = World(server=server, dialler=QuicProtocol.dialing(now=now), now=now)
    world.until(lambda: world.server.ready, limit=now + 1)


def test_what_a_first_datagram_is() -> None:
    first = QuicProtocol.dialing(now=0.0).transmit(0.0)[0]
    assert is_first(first)
    assert destination_id(first) == first[6:14]
    assert not is_first(first[:-1])
    assert not is_first(b"\x40" + first[1:])
    assert not is_first(first[:4] + b"\2" + first[5:])
    assert destination_id(b"\x40" + bytes(range(1, 20))) == bytes(range(1, 9))
    assert destination_id(b"\x40" + bytes(7)) is None
    assert destination_id(first[:5] + b"\x07" + first[6:]) is None
    assert destination_id(first[:5] + b"\x15" + first[6:]) is None
    assert destination_id(first[:10]) is None
    assert destination_id(b"") is None


# --- a peer that uses QUIC otherwise ---

MISUSES: dict[str, Callable[[Connection], object]] = {
    "another stream": lambda peer: peer.send(0, b"x", end=False),
    "a second stream": lambda peer: peer.send(6, b"x", end=False),
    "a reset": lambda peer: peer._quic.reset_stream(2, 0),
    "no interest": lambda peer: peer._quic.stop_stream(3, 0),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_a_peer_that_uses_quic_otherwise(misuse: str) -> None:
    world = connected()
    world.dialler.send(b"x")
    world.server.send(b"x")
    world.until(lambda: world.got == {True: b"x", False: b"x"})
    assert world.dialler._connection is not None
    MISUSES[misuse](world.dialler._connection)
    world.until(lambda: world.server.failure is not None)
    assert world.server.failure == "unexpected use of QUIC by the peer: only one stream each way is allowed"
    world.until(lambda: world.dialler.failure is not None)
    assert world.dialler.failure == "the connection was lost: only one stream each way is allowed"


def test_datagram_frames_are_not_taken() -> None:
    world = connected()
    assert world.dialler._connection is not None
    try:
        world.dialler._connection._quic.send_datagram_frame(b"x")
    except Exception:
        return  # the peer has announced that it takes none
    world.until(lambda: world.server.failure is not None)


def test_a_reason_is_made_fit_to_be_shown() -> None:
    world = connected()
    assert world.dialler._connection is not None
    world.dialler._connection.close(7, reason_phrase="\x1b[31m" + "red" * 100)
    world.until(lambda: world.server.failure is not None)
    assert world.server.failure is not None
    assert world.server.failure.startswith("the connection was lost: [31mredred")
    assert len(world.server.failure) == len("the connection was lost: ") + quic_protocol.MAX_REASON
