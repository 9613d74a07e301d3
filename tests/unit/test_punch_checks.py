"""The state of connectivity checks: what is sent when, to whom and how much, and what an attacker can do with it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio.punch.checks import (
    MAX_ANSWERS,
    MAX_HEARD,
    MAX_PACKETS,
    MAX_PROBES,
    MAX_TRANSACTIONS,
    OPENER_HOPS,
    OPENER_PERIOD,
    OPENER_TIMES,
    PROBE_PERIOD,
    Outgoing,
    Pair,
    PathChecks,
    Stage,
)
from warpgate_trio.punch.probe import SECRET_LENGTH, ProbeCodec, ProbeKind
from warpgate_trio.sockaddr import TransportAddress

SECRET = bytes(range(SECRET_LENGTH))
US: TransportAddress = ("198.51.100.1", 1000)
THERE: TransportAddress = ("203.0.113.9", 4000)
ELSEWHERE: TransportAddress = ("203.0.113.9", 4001)
STRANGER: TransportAddress = ("192.0.2.66", 666)
PAIR: Pair = (0, THERE)


def numbers() -> Callable[[int], bytes]:
    counter = itertools.count(1)
    return lambda n: next(counter).to_bytes(n, "big")


def due(checks: PathChecks, now: float) -> list[Outgoing]:
    """The packets that are due at `now`."""
    checks.handle_timer(now)
    return checks.transmit(now)


def answered(checks: PathChecks, socket: int, data: bytes, source: TransportAddress, now: float) -> list[Outgoing]:
    """The packets that are sent in response to a datagram."""
    checks.receive(socket, data, source, now)
    return checks.transmit(now)


@final
@dataclass
class Side:
    """One side's checks, and the callbacks that they have made."""

    initiator: bool = True
    burst: int = MAX_PACKETS
    pause: float = 0.0
    max_packets: int = MAX_PACKETS
    max_probes: int = MAX_PROBES
    allow: Callable[[str], bool] = lambda _: True
    secret: bytes = SECRET
    heard: list[Pair] = field(default_factory=list)
    confirmed: list[tuple[Pair, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.codec = ProbeCodec(self.secret, initiator=self.initiator)
        self.checks = PathChecks(
            self.codec,
            entropy=numbers(),
            burst=self.burst,
            pause=self.pause,
            max_packets=self.max_packets,
            max_probes=self.max_probes,
            allow=self.allow,
            on_heard=self.heard.append,
            on_confirmed=lambda pair, rtt: self.confirmed.append((pair, rtt)),
        )

    def run(self, until: float, *, start: float = 0.0, most: int = 100_000) -> list[tuple[float, Outgoing]]:
        """All packets up to a time, each with its time; fails where time would stand still."""
        sent: list[tuple[float, Outgoing]] = []
        now = start
        for _ in range(most):
            if now > until:
                return sent
            sent += [(now, packet) for packet in due(self.checks, now)]
            if self.checks.deadline <= now:
                assert self.pause == 0  # a burst was full, and more packets are really due
            now = max(now, self.checks.deadline)
        raise AssertionError("the checks never come to rest")


def peer_request(number: int = 1, *, initiator: bool = False, secret: bytes = SECRET) -> bytes:
    return ProbeCodec(secret, initiator=initiator).request(number.to_bytes(12, "little"))


def answer_to(packet: Outgoing, mapped: TransportAddress = US, *, initiator: bool = False) -> bytes:
    return ProbeCodec(SECRET, initiator=initiator).response(packet.data[8:20], mapped)


def kinds(packets: Iterable[Outgoing]) -> list[str]:
    return ["opener" if packet.hops == OPENER_HOPS else "probe" for packet in packets]


class TestOpening:
    def test_openers_die_on_the_way_and_come_at_their_times(self) -> None:
        side = Side()
        side.checks.add([PAIR], 0.0)
        sent = side.run(OPENER_TIMES[-1] + 2.5 * OPENER_PERIOD)
        expected = [*OPENER_TIMES, *(OPENER_TIMES[-1] + k * OPENER_PERIOD for k in (1, 2))]
        assert [at for at, _ in sent] == pytest.approx(expected)
        assert {(packet.hops, packet.remote, packet.socket) for _, packet in sent} == {(OPENER_HOPS, THERE, 0)}
        assert len({packet.data for _, packet in sent}) == len(sent)  # each with a transaction id of its own

    def test_a_silent_pair_is_opened_for_once(self) -> None:
        side = Side()
        side.checks.add([PAIR], 0.0, silent=True)
        assert len(side.run(10.0)) == 1
        assert side.checks.deadline == math.inf

    def test_without_openers_nothing_goes_out_before_probing(self) -> None:
        side = Side()
        side.checks.add([PAIR], 0.0, opening=False)
        assert side.run(10.0) == []
        assert side.checks.unopened == 0
        side.checks.probe(10.0)
        assert kinds(due(side.checks, 10.0)) == ["probe"]

    def test_a_pair_that_is_announced_twice_is_one(self) -> None:
        side = Side()
        side.checks.add([PAIR, PAIR], 0.0)
        side.checks.add([PAIR], 0.0, silent=True)
        assert side.checks.unopened == 1
        assert kinds(due(side.checks, 0.0)) == ["opener"]
        assert side.checks.unopened == 0
        assert len(side.run(1.0, start=0.001)) > 1  # the repeated, silent `add` does not make it silent

    def test_unopened_counts_down_and_not_on_a_budget_that_is_spent(self) -> None:
        side = Side(burst=2, pause=1.0, max_packets=3)
        side.checks.add([(0, (THERE[0], port)) for port in range(1, 6)], 0.0, silent=True)
        assert side.checks.unopened == 5
        assert len(due(side.checks, 0.0)) == 2
        assert side.checks.unopened == 3
        assert len(due(side.checks, 1.0)) == 1
        assert side.checks.unopened == 0  # so that nobody waits for the rest
        assert side.checks.packets == 3

    def test_what_was_refused_is_opened_too_as_far_as_anybody_waits(self) -> None:
        side = Side(allow=lambda _: False)
        side.checks.add([PAIR], 0.0)
        assert due(side.checks, 0.0) == []
        assert (side.checks.unopened, side.checks.packets) == (0, 0)


class TestProbing:
    def test_probes_have_full_ttl_and_a_pace_and_an_end(self) -> None:
        side = Side()
        side.checks.add([PAIR], 0.0)
        side.checks.probe(0.0)
        sent = side.run(60.0)
        assert [at for at, _ in sent] == pytest.approx([k * PROBE_PERIOD for k in range(MAX_PROBES)])
        assert {packet.hops for _, packet in sent} == {None}
        assert side.checks.deadline == math.inf

    def test_a_silent_pair_is_never_probed(self) -> None:
        side = Side()
        side.checks.add([PAIR], 0.0, silent=True)
        side.checks.probe(0.0)
        assert kinds(packet for _, packet in side.run(60.0)) == ["opener"]

    def test_it_begins_once(self) -> None:
        side = Side(max_probes=3)
        side.checks.add([PAIR], 0.0)
        side.checks.probe(0.0)
        assert len(side.run(10.0)) == 3
        side.checks.probe(20.0)
        assert side.run(30.0, start=20.0) == []

    def test_a_pair_that_is_announced_late_is_probed(self) -> None:
        side = Side()
        side.checks.probe(0.0)
        side.checks.add([PAIR], 1.0)
        assert side.checks.unopened == 1
        assert kinds(due(side.checks, 1.0)) == ["probe"]
        assert side.checks.unopened == 0
        side.checks.add([(1, THERE)], 1.0, opening=False)
        assert kinds(due(side.checks, 1.0)) == ["probe"]

    def test_openers_that_waited_become_probes(self) -> None:
        side = Side()
        side.checks.add([PAIR], 0.0)
        side.checks.probe(0.0)
        assert kinds(due(side.checks, 0.0)) == ["probe"]
        assert side.checks.unopened == 0

    def test_who_has_answered_is_not_asked_any_more(self) -> None:
        side = Side()
        side.checks.add([PAIR], 0.0)
        side.checks.probe(0.0)
        (packet,) = due(side.checks, 0.0)
        assert answered(side.checks, 0, answer_to(packet), THERE, 0.03) == []
        assert side.confirmed == [(PAIR, 0.03)]
        assert side.checks.mapped == {0: US}
        assert side.run(60.0, start=0.04) == []


class TestAnswers:
    """An answer counts if it is the first to a transaction of ours, from the right address, under the peer's key."""

    def probing(self) -> tuple[Side, Outgoing]:
        side = Side()
        side.checks.add([PAIR, (1, THERE), (0, ELSEWHERE)], 0.0)
        side.checks.probe(0.0)
        return side, due(side.checks, 0.0)[0]

    def unmoved(self, side: Side) -> None:
        assert (side.confirmed, side.heard, side.checks.mapped) == ([], [], {})

    def test_once(self) -> None:
        side, packet = self.probing()
        for _ in range(3):
            assert answered(side.checks, 0, answer_to(packet), THERE, 0.02) == []
        assert side.confirmed == [(PAIR, 0.02)]

    def test_a_second_answer_of_a_pair_tells_where_we_are_seen_and_confirms_nothing(self) -> None:
        side, first = self.probing()
        second = next(packet for _, packet in side.run(0.2, start=0.01) if (packet.socket, packet.remote) == PAIR)
        answered(side.checks, 0, answer_to(first), THERE, 0.2)
        answered(side.checks, 0, answer_to(second, ("198.51.100.1", 1001)), THERE, 0.2)
        assert len(side.confirmed) == 1
        assert side.checks.mapped == {0: ("198.51.100.1", 1001)}

    @pytest.mark.parametrize("where", [(0, STRANGER), (0, ELSEWHERE), (1, THERE)])
    def test_not_from_elsewhere(self, where: Pair) -> None:
        side, packet = self.probing()
        assert answered(side.checks, where[0], answer_to(packet), where[1], 0.02) == []
        self.unmoved(side)
        answered(side.checks, 0, answer_to(packet), THERE, 0.03)  # the forged answer has not used up the transaction
        assert side.confirmed == [(PAIR, 0.03)]

    def test_not_to_a_transaction_of_nobodys(self) -> None:
        side, _ = self.probing()
        forged = ProbeCodec(SECRET, initiator=False).response(bytes(12), US)
        assert answered(side.checks, 0, forged, THERE, 0.02) == []
        self.unmoved(side)

    def test_not_under_another_key(self) -> None:
        side, packet = self.probing()
        forged = ProbeCodec(bytes(SECRET_LENGTH), initiator=False).response(packet.data[8:20], US)
        assert answered(side.checks, 0, forged, THERE, 0.02) == []
        assert answered(side.checks, 0, peer_request(secret=bytes(SECRET_LENGTH)), THERE, 0.02) == []
        self.unmoved(side)

    def test_not_what_is_sent_back_to_us(self) -> None:
        """Our own packets do not count as the peer's, if a hairpinning NAT or an attacker sends them back."""
        side, packet = self.probing()
        assert answered(side.checks, 0, packet.data, THERE, 0.02) == []
        (answer,) = answered(side.checks, 0, peer_request(), THERE, 0.02)
        before = list(side.heard)
        assert answered(side.checks, 0, answer.data, THERE, 0.02) == []
        assert (side.confirmed, side.heard) == ([], before)

    def test_the_oldest_are_forgotten(self) -> None:
        side = Side(max_packets=2 * MAX_TRANSACTIONS, max_probes=2 * MAX_TRANSACTIONS)
        side.checks.probe(0.0)
        side.checks.add([PAIR], 0.0)
        sent = [packet for _, packet in side.run((MAX_TRANSACTIONS + 5) * PROBE_PERIOD)]
        assert len(sent) > MAX_TRANSACTIONS
        now = len(sent) * PROBE_PERIOD
        answered(side.checks, 0, answer_to(sent[0]), THERE, now)
        assert side.confirmed == []
        answered(side.checks, 0, answer_to(sent[-1]), THERE, now)
        assert [pair for pair, _ in side.confirmed] == [PAIR]


class TestRequests:
    def test_an_answer_goes_back_at_once_says_from_where_and_is_hardly_larger(self) -> None:
        side = Side()
        request = peer_request()
        (answer,) = answered(side.checks, 3, request, STRANGER, 0.0)
        assert (answer.socket, answer.remote, answer.hops) == (3, STRANGER, None)
        read = ProbeCodec(SECRET, initiator=False).read(answer.data)
        assert read is not None
        assert (read.kind, read.mapped) == (ProbeKind.RESPONSE, STRANGER)
        assert len(answer.data) <= 1.6 * len(request)

    def test_an_unknown_source_is_a_candidate(self) -> None:
        """It becomes a peer-reflexive candidate, RFC 8445 §7.3.1.3."""
        side = Side()
        answered(side.checks, 0, peer_request(), ELSEWHERE, 0.0)
        assert side.heard == [(0, ELSEWHERE)]
        packets = due(side.checks, 0.0)
        assert kinds(packets) == ["probe"]
        answered(side.checks, 0, answer_to(packets[0]), ELSEWHERE, 0.05)
        assert side.confirmed == [((0, ELSEWHERE), 0.05)]

    @pytest.mark.parametrize("silent", [True, False])
    def test_who_was_heard_is_probed_before_the_peer_said_so(self, silent: bool) -> None:
        side = Side()
        side.checks.add([PAIR], 0.0, silent=silent)
        due(side.checks, 0.0)
        answered(side.checks, 0, peer_request(), THERE, 0.005)
        assert side.checks.stage is Stage.OPENING
        assert kinds(due(side.checks, 0.005)) == ["probe"]
        assert len(side.run(60.0, start=0.006)) == MAX_PROBES - 1

    def test_it_is_said_once(self) -> None:
        side = Side()
        for number in range(5):
            assert len(answered(side.checks, 0, peer_request(number), THERE, 0.0)) == 1
        assert side.heard == [PAIR]

    def test_after_an_answer_there_is_nothing_to_ask(self) -> None:
        side = Side()
        side.checks.add([PAIR], 0.0)
        side.checks.probe(0.0)
        (packet,) = due(side.checks, 0.0)
        answered(side.checks, 0, answer_to(packet), THERE, 0.01)
        answered(side.checks, 0, peer_request(), THERE, 0.02)
        assert side.heard == [PAIR]
        assert side.run(60.0, start=0.02) == []

    def test_a_replay_from_elsewhere_is_nothing(self) -> None:
        side = Side()
        request = peer_request()
        assert answered(side.checks, 0, request, THERE, 0.0)
        assert answered(side.checks, 0, request, STRANGER, 0.1) == []
        assert answered(side.checks, 1, request, THERE, 0.1) == []
        assert side.heard == [PAIR]
        assert answered(
            side.checks, 0, request, THERE, 0.1
        )  # the network doubles packets: the answer may have been lost

    @pytest.mark.parametrize("port", [THERE[1], THERE[1] + 1])
    def test_a_replay_that_is_faster_than_the_original_does_not_take_its_place(self, port: int) -> None:
        """A request from an announced address counts even if a replay came first; the port may differ."""
        side = Side()
        side.checks.add([PAIR], 0.0)
        request = peer_request()
        assert answered(side.checks, 0, request, STRANGER, 0.0)
        assert answered(side.checks, 0, request, (THERE[0], port), 0.01)
        assert side.heard == [(0, STRANGER), (0, (THERE[0], port))]
        assert answered(side.checks, 0, request, ("192.0.2.67", 1), 0.02) == []

    def test_strangers_leave_room_for_who_was_announced(self) -> None:
        side = Side()
        side.checks.add([PAIR], 0.0)
        for number in range(MAX_HEARD + 10):
            answered(side.checks, 0, peer_request(number), (STRANGER[0], 1 + number), 0.0)
        assert len(side.heard) == MAX_HEARD
        assert answered(side.checks, 0, peer_request(1000), THERE, 0.1)
        assert side.heard[-1] == PAIR

    @pytest.mark.parametrize("data", [b"", b"\0" * 20, b"\x40 quic", peer_request()[:-1], peer_request() + b"\0" * 4])
    def test_what_is_no_probe_changes_nothing(self, data: bytes) -> None:
        side = Side()
        assert answered(side.checks, 0, data, THERE, 0.0) == []
        assert side.heard == []
        assert side.checks.deadline == math.inf

    def test_sources_and_answers_are_bounded(self) -> None:
        side = Side()
        answers = 0
        for number in range(MAX_HEARD + 10):
            answers += len(answered(side.checks, 0, peer_request(number), (THERE[0], 1 + number), 0.0))
        assert answers == len(side.heard) == MAX_HEARD
        for number in range(MAX_ANSWERS):
            answers += len(answered(side.checks, 0, peer_request(1000 + number), side.heard[0][1], 0.0))
        assert answers == MAX_ANSWERS
        assert len(side.heard) == MAX_HEARD


class TestPace:
    def test_bursts_with_pauses(self) -> None:
        side = Side(burst=10, pause=0.1)
        side.checks.add([(0, (THERE[0], port)) for port in range(1, 36)], 0.0, silent=True)
        sent = side.run(10.0)
        times = sorted({at for at, _ in sent})
        assert times == pytest.approx([0.0, 0.1, 0.2, 0.3])
        assert [sum(at == each for at, _ in sent) for each in times] == [10, 10, 10, 5]
        assert [packet.remote[1] for _, packet in sent] == list(range(1, 36))

    def test_nothing_in_a_pause(self) -> None:
        side = Side(burst=1, pause=1.0)
        side.checks.add([PAIR, (1, THERE)], 0.0, silent=True)
        assert len(due(side.checks, 0.0)) == 1
        assert side.checks.deadline == 1.0
        assert due(side.checks, 0.99) == []

    def test_a_triggered_check_does_not_wait_for_the_pause_and_lets_nothing_else_through(self) -> None:
        """A peer that sends from many ports must not make this side send faster than planned."""
        side = Side(burst=10, pause=1.0)
        side.checks.add([(0, (THERE[0], port)) for port in range(1, 101)], 0.0, silent=True)
        assert len(due(side.checks, 0.0)) == 10
        for number in range(3):
            source = (THERE[0], 2000 + number)
            answered(side.checks, 0, peer_request(number), source, 0.1)
            assert side.checks.deadline <= 0.1
            packets = due(side.checks, 0.1)
            assert [(each.remote, each.hops) for each in packets] == [(source, None)]
            assert side.checks.deadline > 0.1
        assert len(due(side.checks, 1.0)) == 10

    def test_the_budget_is_for_all_pairs_together(self) -> None:
        side = Side(max_packets=7)
        side.checks.add([(0, (THERE[0], port)) for port in range(1, 5)], 0.0)
        side.checks.probe(0.0)
        answered(side.checks, 0, peer_request(), STRANGER, 0.0)
        assert len(side.run(60.0)) == side.checks.packets == 7
        assert side.checks.deadline == math.inf

    def test_who_was_heard_is_counted_until_it_has_answered(self) -> None:
        """The source of a packet can be forged; only an answer to our own transaction proves the address."""
        asked: list[str] = []
        left = 4

        def allow(ip: str) -> bool:
            asked.append(ip)
            return len(asked) <= left

        side = Side(allow=allow)
        assert len(answered(side.checks, 0, peer_request(1), STRANGER, 0.0)) == 1
        assert kinds(packet for _, packet in side.run(60.0)) == ["probe"] * (left - 1)
        assert answered(side.checks, 0, peer_request(2), STRANGER, 60.0) == []
        assert set(asked) == {STRANGER[0]}

    def test_who_has_answered_is_not_counted_any_more(self) -> None:
        asked: list[str] = []

        def allow(ip: str) -> bool:
            asked.append(ip)
            return True

        side = Side(allow=allow)
        side.checks.add([PAIR], 0.0)
        side.checks.probe(0.0)
        (packet,) = due(side.checks, 0.0)
        answered(side.checks, 0, answer_to(packet), THERE, 0.0)
        asked.clear()
        assert len(answered(side.checks, 0, peer_request(1), THERE, 0.0)) == 1
        assert side.run(60.0) == []
        assert asked == []


class TestEnd:
    def test_nothing_unasked_any_more(self) -> None:
        side = Side()
        side.checks.add([PAIR], 0.0)
        side.checks.end()
        assert side.checks.stage is Stage.ENDED
        side.checks.add([(1, THERE)], 0.0)
        side.checks.probe(0.0)
        assert side.checks.stage is Stage.ENDED
        assert side.checks.deadline == math.inf
        assert side.checks.unopened == 0
        assert side.run(60.0) == []

    def test_it_keeps_nothing_but_what_tells_replays(self) -> None:
        side = Side()
        side.checks.add([(0, (THERE[0], port)) for port in range(1, 1000)], 0.0)
        due(side.checks, 0.0)
        request = peer_request()
        answered(side.checks, 0, request, THERE, 0.0)
        side.checks.end()
        assert (len(side.checks._sent), len(side.checks._pairs), len(side.checks._queue)) == (0, 0, 0)
        assert answered(side.checks, 0, request, STRANGER, 0.1) == []
        assert len(answered(side.checks, 0, request, THERE, 0.1)) == 1

    def test_probes_are_answered_and_found_no_more(self) -> None:
        side = Side()
        side.checks.add([PAIR], 0.0)
        side.checks.probe(0.0)
        (packet,) = due(side.checks, 0.0)
        side.checks.end()
        assert len(answered(side.checks, 0, peer_request(1), THERE, 1.0)) == 1
        assert len(answered(side.checks, 0, peer_request(2), STRANGER, 1.0)) == 1
        answered(side.checks, 0, answer_to(packet), THERE, 1.0)
        assert (side.heard, side.confirmed) == ([], [])
        assert side.run(60.0, start=1.0) == []


# -- two sides ---------------------------------------------------------------------------------------------------------


def test_two_sides_meet_whoever_is_first() -> None:
    alice, bob = Side(initiator=True), Side(initiator=False)
    at_alice, at_bob = ("198.51.100.1", 1), ("203.0.113.1", 2)
    for side, there in ((alice, at_bob), (bob, at_alice)):
        side.checks.add([(0, there)], 0.0)
        side.checks.probe(0.0)
    flying = [(bob, at_alice, each.data) for each in due(alice.checks, 0.0)]
    for _ in range(20):
        arrived, flying = flying, []
        for side, source, data in arrived:
            answers = answered(side.checks, 0, data, source, 0.01) + due(side.checks, 0.01)
            other, from_here = (alice, at_bob) if side is bob else (bob, at_alice)
            flying += [(other, from_here, each.data) for each in answers]
    assert [pair for pair, _ in alice.confirmed] == [(0, at_bob)] == alice.heard
    assert [pair for pair, _ in bob.confirmed] == [(0, at_alice)] == bob.heard
    assert alice.checks.mapped == {0: at_alice}
    assert bob.checks.mapped == {0: at_bob}


# -- what holds whatever comes -----------------------------------------------------------------------------------------

ADDRESSES = st.tuples(st.sampled_from([THERE[0], STRANGER[0]]), st.integers(1, 4))
STEPS = st.one_of(
    st.tuples(st.just("add"), st.lists(ADDRESSES, max_size=8), st.booleans(), st.booleans()),
    st.tuples(st.just("probe")),
    st.tuples(st.just("wait"), st.floats(0, 2)),
    st.tuples(st.just("request"), st.integers(0, 20), ADDRESSES),
    st.tuples(st.just("answer"), st.integers(0, 50), ADDRESSES),
    st.tuples(st.just("junk"), st.binary(max_size=60), ADDRESSES),
    st.tuples(st.just("end")),
)


@settings(max_examples=40)
@given(
    steps=st.lists(STEPS, max_size=25),
    burst=st.integers(1, 5),
    pause=st.sampled_from([0.0, 0.01, 0.3]),
    max_packets=st.integers(1, 40),
    allowance=st.integers(0, 40),
)
def test_whatever_happens_the_budget_holds_and_time_goes_on(
    steps: list[tuple[object, ...]], burst: int, pause: float, max_packets: int, allowance: int
) -> None:
    allowed: list[str] = []

    def allow(ip: str) -> bool:
        allowed.append(ip)
        return len(allowed) <= allowance

    side = Side(burst=burst, pause=pause, max_packets=max_packets, max_probes=4, allow=allow)
    checks = side.checks
    now, sent, answers = 0.0, [], 0
    for name, *arguments in [*steps, ("wait", 30.0)]:
        stage = checks.stage
        if name == "add":
            addresses, silent, opening = arguments
            checks.add([(0, each) for each in addresses], now, silent=silent, opening=opening)  # type: ignore[attr-defined, arg-type]
        elif name == "probe":
            checks.probe(now)
        elif name == "end":
            checks.end()
        elif name == "wait":
            until = now + arguments[0]  # type: ignore[operator]
            for _ in range(1000):
                batch = due(checks, now)
                assert len(batch) <= burst
                assert not (batch and checks.stage is Stage.ENDED)
                sent += batch
                assert checks.deadline > now or len(batch) == burst  # or more is really due
                if checks.deadline > until:
                    break
                now = max(now, checks.deadline)
            else:
                raise AssertionError("a busy loop")
            now = until
        else:
            number, source = arguments
            if name == "request":
                data = peer_request(number)  # type: ignore[arg-type]
            elif name == "junk" or not sent:
                data = number if isinstance(number, bytes) else b""
            else:
                data = answer_to(sent[number % len(sent)])  # type: ignore[operator]
            replies = answered(checks, 0, data, source, now)  # type: ignore[arg-type]
            assert len(replies) <= (name == "request")
            answers += len(replies)
        assert not (stage is Stage.ENDED and checks.stage is not Stage.ENDED)
        assert checks.unopened >= 0
    assert len(sent) == checks.packets <= max_packets
    assert answers <= MAX_ANSWERS
    assert len(side.heard) == len(set(side.heard)) <= MAX_HEARD
    assert len(side.confirmed) == len({pair for pair, _ in side.confirmed})
    assert all(rtt >= 0 for _, rtt in side.confirmed)
    unasked_to_strangers = [each for each in sent if (each.socket, each.remote) not in side.heard]
    assert len(unasked_to_strangers) <= allowance
