"""How long paths over UDP may be silent, as learned from other paths; in virtual time, without I/O."""

from __future__ import annotations

from typing import Final, final

import pytest

from warpgate_trio.carrier import quic, quic_protocol
from warpgate_trio.link.life import DEATH, HINT_SLACK, RESPONDER_WAITS, SLACK, SLACK_MAX, Life, LifeJudge
from warpgate_trio.link.quiet import (
    GROWTH,
    MAX_UPLINKS,
    QUIET_ROUNDS,
    TOO_LONG_FOR,
    TRIAL_FOR,
    TRIAL_WAITS,
    TRUST,
    Uplink,
    Uplinks,
)

IDLE: Final = quic.IDLE_INTERVAL
TRIP: Final = 0.05
SUSPICION: Final = 3 * TRIP + SLACK
LONG: Final = GROWTH * IDLE
FOUND_OUT: Final = 300.0
PEER: Final = "8.8.8.8"


def judge_of(uplink: Uplink | None, *, responder: bool = False, now: float = 0.0) -> LifeJudge:
    """A judge of a path with acknowledgements and a known round-trip time."""
    judge = LifeJudge(now - TRIP, interval=IDLE)
    judge.begin_acknowledged(now - TRIP, responder=responder)
    judge.uplink = uplink
    answer(judge, judge.ask(now - TRIP), now)
    return judge


def answer(judge: LifeJudge, token: int, now: float) -> None:
    judge.heard(now)
    judge.receive(token, now)


def idle(judge: LifeJudge, rounds: int) -> float:
    """Let so many PINGs be answered at once; returns the time of the last answer."""
    at = 0.0
    for _ in range(rounds):
        at = judge.deadline
        assert judge.judge(at)
        answer(judge, judge.ask(at), at + TRIP)
    return at + TRIP


def verdict(judge: LifeJudge, now: float) -> Life:
    """The verdict at a time; PINGs that are due are sent, and get no answer."""
    while judge.deadline <= now:
        at = judge.deadline
        if judge.judge(at):
            judge.ask(at)
    return judge.life


@final
class Path:
    """Both ends of an idle path, whose NAT loses its mapping after `bears` seconds of silence: then nothing arrives."""

    def __init__(self, ours: Uplink, theirs: Uplink, *, bears: float = 1e9) -> None:
        self.ends = [judge_of(ours), judge_of(theirs, responder=True)]
        self.asked = [0, 0]
        self.bears = bears
        self.now = self.said_at = 0.0

    def run(self, until: float) -> None:
        while (now := min(each.deadline for each in self.ends)) <= until:
            for number, each in enumerate(self.ends):
                if each.deadline > now:
                    continue
                if each.judge(now):
                    token = each.ask(now)
                    self.asked[number] += 1
                    if now - self.said_at <= self.bears:
                        self.ends[1 - number].heard(now + TRIP / 2)
                        answer(each, token, now + TRIP)
                        self.said_at = now + TRIP
                if each.life is Life.DEAD:
                    return
        self.now = until


# --- two ends ---


def test_two_ends_that_are_idle_find_out_and_ask_half_as_often() -> None:
    ours, theirs = Uplink(), Uplink()
    path = Path(ours, theirs)
    path.run(FOUND_OUT)
    assert (ours.bears, theirs.bears) == (True, True)
    before = sum(path.asked)
    path.run(FOUND_OUT + 3000.0)
    assert sum(path.asked) - before <= 3000.0 / LONG + 5, "and a listener's now and then, that hears only questions"


def test_a_path_that_begins_where_that_is_known_asks_so_at_once() -> None:
    ours, theirs = Uplink(), Uplink()
    Path(ours, theirs).run(FOUND_OUT)
    path = Path(ours, theirs)
    path.run(2 * LONG - 1.0)
    assert path.asked == [1, 0]


def test_a_path_that_does_not_bear_it_is_lost_once_and_no_other_one_tries() -> None:
    ours, theirs = Uplink(), Uplink()
    path = Path(ours, theirs, bears=30.0)
    path.run(FOUND_OUT)
    assert Life.DEAD in [each.life for each in path.ends]
    assert (ours.bears, theirs.bears) == (False, False)
    further = Path(ours, theirs, bears=30.0)
    further.run(TOO_LONG_FOR / 2)
    assert [each.life for each in further.ends] == [Life.WELL, Life.WELL]


@pytest.mark.parametrize("which", [0, 1])
def test_no_end_tries_the_nat_of_the_other_one(which: int) -> None:
    """The other end asks before the least patient NATs forget a mapping, until it tries longer silences itself."""
    uplinks = [Uplink(), Uplink()]
    uplinks[which].note_borne(asked=False)
    uplinks[1 - which].note_lost(0.0)
    path = Path(uplinks[0], uplinks[1], bears=29.0)
    path.run(TOO_LONG_FOR / 2)
    assert [each.life for each in path.ends] == [Life.WELL, Life.WELL]
    assert uplinks[which].bears


def test_a_silence_never_outlasts_the_connection() -> None:
    longest = IDLE * RESPONDER_WAITS * GROWTH * TRIAL_WAITS
    assert longest + SUSPICION + DEATH < quic_protocol.IDLE_TIMEOUT


# --- one end: when it tries ---


def test_a_path_tries_a_longer_silence_once_it_has_been_idle_for_a_few_questions() -> None:
    judge = judge_of(Uplink())
    now = idle(judge, QUIET_ROUNDS - 1)
    assert judge.deadline == pytest.approx(now + IDLE)
    now = judge.deadline + TRIP
    idle(judge, 1)
    assert judge.deadline == pytest.approx(now + TRIAL_WAITS * LONG)


def test_a_word_in_between_is_a_pause_and_no_idleness() -> None:
    judge = judge_of(Uplink())
    for _ in range(2 * QUIET_ROUNDS):
        now = judge.deadline + TRIP
        idle(judge, 1)
        assert judge.deadline == pytest.approx(now + IDLE)
        judge.heard(now + 1.0)


def test_who_has_something_to_say_tries_no_more() -> None:
    judge = judge_of(Uplink())
    now = idle(judge, QUIET_ROUNDS)
    judge.sent(now + 1.0)
    judge.heard(now + 1.1)
    judge.acknowledged(now + 1.1, all_of_it=True)
    assert judge.deadline == pytest.approx(now + 1.1 + IDLE)
    answer(judge, judge.ask(now + 2.0), now + 2.1)
    assert judge.deadline == pytest.approx(now + 2.1 + IDLE), "nor at the next answer, whoever has asked for it"


def test_after_a_hint_a_path_has_to_be_idle_anew() -> None:
    uplink = Uplink()
    judge = judge_of(uplink)
    now = idle(judge, QUIET_ROUNDS)
    uplink.forget()
    assert judge.hint(now + 1.0)
    answer(judge, judge.ask(now + 1.0), now + 1.0 + TRIP)
    assert judge.deadline == pytest.approx(now + 1.0 + TRIP + IDLE)


def test_one_path_tries_and_another_one_only_when_that_has_had_its_time() -> None:
    uplink = Uplink()
    first, second = judge_of(uplink), judge_of(uplink)
    began = idle(first, QUIET_ROUNDS)
    assert idle(second, QUIET_ROUNDS) == pytest.approx(began)
    assert second.deadline == pytest.approx(began + IDLE)
    while second.deadline < began + TRIAL_FOR:
        now = idle(second, 1)
        first.heard(now)  # the peer's end asks, too
    now = idle(second, 1)
    assert second.deadline == pytest.approx(now + TRIAL_WAITS * LONG)
    assert uplink.growth(first) == 1.0


@pytest.mark.parametrize("within", [6.0, 30.0, 50.0])
def test_a_path_whose_death_is_to_be_noticed_sooner_does_not_try(within: float) -> None:
    uplink = Uplink()
    judge = judge_of(uplink)
    judge.notice_within = within
    idle(judge, 2 * QUIET_ROUNDS)
    assert uplink.growth(judge) == 1.0
    uplink.note_borne(asked=False)
    assert judge.deadline - judge.heard_at == pytest.approx(min(within - SUSPICION, LONG))


def test_a_peer_of_an_older_release_is_asked_as_ever() -> None:
    uplink = Uplink()
    uplink.note_borne(asked=False)
    judge = LifeJudge(0.0, interval=IDLE)
    judge.uplink = uplink
    assert judge.deadline == IDLE


def test_where_there_is_no_nat_to_ask_for_the_interval_stays_as_it_is() -> None:
    judge = judge_of(None)
    now = idle(judge, 3 * QUIET_ROUNDS)
    assert judge.deadline == pytest.approx(now + IDLE)


# --- one end: what it learns ---


def trying() -> tuple[Uplink, LifeJudge, float]:
    """A path that is trying a longer silence, and the time since when."""
    uplink = Uplink()
    judge = judge_of(uplink)
    return uplink, judge, idle(judge, QUIET_ROUNDS)


def test_who_is_heard_unasked_after_a_long_silence_is_behind_a_nat_that_bears_it() -> None:
    uplink, judge, now = trying()
    judge.heard(now + LONG - 5.0)
    assert not uplink.bears
    judge.heard(now + 2 * LONG - 5.0)
    assert uplink.bears


def test_an_answer_proves_nothing_by_itself() -> None:
    """The question itself has renewed the NAT's mapping."""
    uplink, judge, _ = trying()
    idle(judge, 3)
    assert not uplink.bears


@pytest.mark.parametrize("answered", [False, True])
def test_a_question_without_an_answer_in_time_is_a_failure(answered: bool) -> None:
    uplink, judge, _ = trying()
    asked_at = judge.deadline
    assert judge.judge(asked_at)
    token = judge.ask(asked_at)
    assert verdict(judge, asked_at + SUSPICION + 0.01) is Life.SUSPECT
    if answered:
        answer(judge, token + 1, asked_at + SUSPICION + 1.0)  # through a mapping that a search has opened
    assert not uplink.bears
    failed_at = asked_at + SUSPICION
    for later, tries in ((TOO_LONG_FOR - 1.0, False), (TOO_LONG_FOR + 1.0, True)):
        other = object()
        uplink.begin_trial(other, failed_at + later)
        assert (uplink.growth(other) > 1.0) is tries


def test_an_answer_that_is_late_makes_up_for_no_failure() -> None:
    uplink = Uplink()
    for _ in range(TRUST):
        uplink.note_borne(asked=False)
    judge = judge_of(uplink)
    for _ in range(TRUST):
        assert uplink.bears
        at = judge.deadline
        assert judge.judge(at)
        token = judge.ask(at)
        judge.judge(at + SLACK_MAX)
        assert judge.life is Life.SUSPECT
        answer(judge, token, at + SLACK_MAX + TRIP)
    assert not uplink.bears


def test_what_is_said_after_a_long_silence_and_not_acknowledged_is_one() -> None:
    uplink = Uplink()
    uplink.note_borne(asked=False)
    judge = judge_of(uplink)
    judge.sent(IDLE + 5.0)
    assert verdict(judge, IDLE + 5.0 + SUSPICION + 0.01) is Life.SUSPECT
    assert not uplink.bears


@pytest.mark.parametrize("silence", [1.0, IDLE, IDLE * RESPONDER_WAITS])
def test_a_path_that_dies_after_a_silence_that_all_bear_says_nothing(silence: float) -> None:
    uplink = Uplink()
    uplink.note_borne(asked=False)
    judge = judge_of(uplink)
    judge.sent(silence)
    assert verdict(judge, silence + SUSPICION + 0.01) is Life.SUSPECT
    judge.note_flight(silence + SUSPICION + 0.01)
    assert uplink.bears


def test_a_path_that_a_hint_has_suspected_says_nothing() -> None:
    """The host has moved, or slept."""
    uplink = Uplink()
    uplink.note_borne(asked=False)
    judge = judge_of(uplink)
    assert judge.hint(LONG - 5.0)
    judge.ask(LONG - 5.0)
    assert verdict(judge, LONG - 5.0 + TRIP + HINT_SLACK + 0.01) is Life.SUSPECT
    assert uplink.bears


@pytest.mark.parametrize("silence", [IDLE, LONG])
def test_a_path_that_the_peer_has_fled_from_in_a_long_silence_is_a_failure(silence: float) -> None:
    uplink = Uplink()
    uplink.note_borne(asked=False)
    judge = judge_of(uplink, responder=True)
    judge.note_flight(silence)
    assert uplink.bears is (silence == IDLE)


def test_a_trial_that_a_signal_has_broken_off_is_none_that_is_tried_again() -> None:
    """What this side sent in a search has renewed its NAT's mapping, so an arrival after it proves nothing."""
    uplink, judge, now = trying()
    judge.said_unasked = True
    judge.heard(now + LONG + 1.0)
    assert not uplink.bears
    uplink.begin_trial(judge, now + LONG + 2.0)
    assert uplink.growth(judge) == 1.0


def test_a_signal_in_a_silence_that_is_known_to_be_borne_says_nothing() -> None:
    uplink = Uplink()
    uplink.note_borne(asked=False)
    judge = judge_of(uplink)
    judge.said_unasked = True
    judge.heard(LONG)
    assert uplink.bears
    assert not judge.said_unasked


def test_the_death_of_a_path_that_is_silent_for_longer_is_noticed_later() -> None:
    uplink = Uplink()
    uplink.note_borne(asked=False)
    judge = judge_of(uplink)
    assert verdict(judge, LONG + SUSPICION - 0.01) is Life.WELL
    assert verdict(judge, LONG + SUSPICION + 0.01) is Life.SUSPECT
    assert LONG + SUSPICION < 52.0


# --- what is known ---


def test_what_was_borne_again_and_again_is_doubted_after_two_failures_in_a_row() -> None:
    uplink = Uplink()
    for _ in range(5):
        uplink.note_borne(asked=False)
    for _ in range(3):
        for _ in range(TRUST - 1):
            uplink.note_lost(0.0)
            assert uplink.bears
        uplink.note_borne(asked=True)
    for _ in range(TRUST):
        uplink.note_lost(0.0)
    assert not uplink.bears


def test_an_uplink_is_known_by_its_address_and_forgotten_with_the_network() -> None:
    uplinks = Uplinks()
    known = uplinks.get("192.168.1.2", PEER)
    known.note_borne(asked=False)
    assert uplinks.get("192.168.1.2", "8.8.4.4") is known
    other = uplinks.get("192.168.1.3", PEER)
    assert not other.bears
    other.note_lost(0.0)
    uplinks.forget()
    assert not known.bears, "also for the paths that go on"
    other.begin_trial(known, 1.0)
    assert other.growth(known) > 1.0, "what was not borne, too"


@pytest.mark.parametrize(
    ("local", "remote"), [("192.168.1.2", "192.168.1.3"), ("fe80::1%2", "fe80::2"), ("127.0.0.1", "127.0.0.1")]
)
def test_a_path_within_the_network_says_nothing_of_those_that_leave_it(local: str, remote: str) -> None:
    uplinks = Uplinks()
    assert uplinks.get(local, remote) is not uplinks.get(local, PEER)
    assert uplinks.get(local, remote) is uplinks.get(local, remote)


def test_not_too_many_are_remembered() -> None:
    uplinks = Uplinks()
    first = uplinks.get("192.168.1.2", PEER)
    for number in range(MAX_UPLINKS):
        uplinks.get(f"2001:db8::{number:x}", PEER)
    assert uplinks.get("192.168.1.2", PEER) is not first
