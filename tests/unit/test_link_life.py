"""When a path is well, suspected or dead, depending on what happens on it; in virtual time, without I/O."""

from __future__ import annotations

from math import inf
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio.link.life import (
    DEATH,
    DEATH_MAX,
    FORGIVEN,
    HEARD_MAX,
    HEARD_PAUSES,
    HINT_INTERVAL,
    HINT_SLACK,
    LINGER,
    MISSES,
    OUTDONE,
    PAUSE_LASTS,
    PAUSES,
    RESPONDER_WAITS,
    SLACK,
    SLACK_MAX,
    TALK,
    UNKNOWN_TRIP,
    Life,
    LifeJudge,
)
from warpgate_trio.link.stream import ACK_DELAY

IDLE = 25.0
TRIP = 0.2
SUSPICION = 3 * TRIP + SLACK


def judge_of(*, trip: float = TRIP, notice_within: float = inf, responder: bool = False) -> LifeJudge:
    """A judge at time 0, of a path with acknowledgements and a known round-trip time."""
    judge = LifeJudge(-trip, interval=IDLE)
    judge.notice_within = notice_within
    judge.begin_acknowledged(-trip, responder=responder)
    answer(judge, judge.ask(-trip), 0.0)
    return judge


def answer(judge: LifeJudge, token: int, now: float) -> None:
    judge.heard(now)
    judge.receive(token, now)


def verdict(judge: LifeJudge, now: float) -> Life:
    """The verdict at a time; PINGs that are due are sent, and get no answer."""
    while judge.deadline <= now:
        at = judge.deadline
        if judge.judge(at):
            judge.ask(at)
    return judge.life


# --- a side that only listens ---


def talk(judge: LifeJudge, arrivals: int, until: float) -> None:
    for number in range(arrivals):
        judge.heard(until - 0.01 * (arrivals - 1 - number))


def test_a_peer_that_was_talking_and_stops_is_asked_soon_and_once() -> None:
    judge = judge_of()
    talk(judge, TALK, 10.0)
    assert judge.timer_began
    assert judge.deadline == pytest.approx(10.0 + SUSPICION)
    assert judge.judge(10.0 + SUSPICION)
    answer(judge, judge.ask(10.0 + SUSPICION), 10.0 + SUSPICION + TRIP)
    assert judge.deadline == pytest.approx(10.0 + SUSPICION + TRIP + IDLE), "it is a pause"


def test_a_listener_notices_soon_that_the_path_of_a_talk_is_dead() -> None:
    """By then it must have called its servers, through which the peer looks for another path."""
    judge = judge_of()
    talk(judge, TALK, 10.0)
    by = 10.0 + SUSPICION + TRIP + HINT_SLACK
    assert verdict(judge, by - 0.01) is Life.WELL
    assert verdict(judge, by) is Life.SUSPECT
    assert not judge.is_late


def test_who_says_a_word_now_and_then_is_not_asked_behind_each() -> None:
    judge = judge_of()
    talk(judge, TALK - 2, 10.0)  # the answer to the first PING counted as an arrival, too
    assert judge.deadline == pytest.approx(10.0 + IDLE)


def test_a_peer_of_an_older_release_is_not_asked_behind_a_talk() -> None:
    judge = LifeJudge(0.0, interval=IDLE)
    talk(judge, 2 * TALK, 10.0)
    assert judge.deadline == pytest.approx(10.0 + IDLE)


# --- busy ---


def test_three_trips_and_a_half_second_without_progress_are_suspect() -> None:
    judge = judge_of()
    judge.sent(10.0)
    assert judge.deadline == pytest.approx(10.0 + SUSPICION)
    assert verdict(judge, 10.0 + SUSPICION - 0.01) is Life.WELL
    assert verdict(judge, 10.0 + SUSPICION + 0.01) is Life.SUSPECT
    assert judge.asking, "a suspected path is asked at once"


def test_what_is_said_later_does_not_put_the_suspicion_off() -> None:
    judge = judge_of()
    for tenth in range(100):
        judge.sent(10.0 + tenth / 10)
    assert verdict(judge, 10.0 + SUSPICION + 0.01) is Life.SUSPECT


def test_progress_puts_it_off_and_arrivals_do_not() -> None:
    judge = judge_of()
    judge.sent(10.0)
    judge.acknowledged(11.0, all_of_it=False)
    assert verdict(judge, 11.0 + SUSPICION - 0.01) is Life.WELL
    for tenth in range(60):
        judge.heard(11.0 + tenth / 10)  # a path that is dead only in this side's direction
    assert verdict(judge, 11.0 + SUSPICION + 0.01) is Life.SUSPECT


def test_nothing_is_waited_for_once_all_is_acknowledged() -> None:
    judge = judge_of()
    judge.sent(10.0)
    judge.acknowledged(10.2, all_of_it=True)
    judge.heard(10.2)
    assert judge.deadline == pytest.approx(10.2 + IDLE)


def test_a_question_that_is_out_goes_on_being_waited_for() -> None:
    judge = judge_of()
    judge.sent(10.0)
    judge.ask(10.0)
    judge.acknowledged(10.2, all_of_it=True)
    assert verdict(judge, 10.2 + SUSPICION + 0.01) is Life.SUSPECT


def test_fifteen_seconds_more_without_any_sign_are_death() -> None:
    judge = judge_of()
    judge.sent(10.0)
    suspected_at = 10.0 + SUSPICION
    assert verdict(judge, suspected_at + DEATH - 0.01) is Life.SUSPECT
    assert verdict(judge, suspected_at + DEATH + 0.01) is Life.DEAD
    assert judge.deadline == inf
    assert not judge.judge(1000.0)


def test_a_sign_of_life_puts_death_off_and_not_the_suspicion() -> None:
    judge = judge_of()
    judge.sent(10.0)
    assert verdict(judge, 15.0) is Life.SUSPECT
    judge.heard(15.0)
    assert verdict(judge, 15.0 + DEATH - 0.01) is Life.SUSPECT
    assert verdict(judge, 15.0 + DEATH + 0.01) is Life.DEAD


# --- false alarms ---


def test_a_suspect_that_is_late_is_not_left_until_it_falls_silent() -> None:
    judge = judge_of()
    judge.sent(10.0)
    heard = 10.0 + SUSPICION - 0.5
    judge.heard(heard)
    assert verdict(judge, 10.0 + SUSPICION) is Life.SUSPECT
    assert judge.is_late
    assert verdict(judge, heard + SUSPICION - 0.01) is Life.SUSPECT
    assert judge.is_late
    assert verdict(judge, heard + SUSPICION + 0.01) is Life.SUSPECT
    assert not judge.is_late


def test_a_suspect_that_is_late_for_ever_is_left_in_the_end() -> None:
    """For example, a path that carries small packets such as ACKs, but no large ones."""
    judge = judge_of()
    judge.sent(10.0)
    for tenth in range(100):
        now = 10.0 + tenth / 10
        life = verdict(judge, now)
        assert judge.is_late is (life is Life.SUSPECT and now < 10.0 + SUSPICION + LINGER)
        judge.heard(now)
    assert verdict(judge, 20.0) is Life.SUSPECT


def test_a_suspect_that_is_silent_is_left_at_once() -> None:
    judge = judge_of()
    judge.sent(10.0)
    assert verdict(judge, 10.0 + SUSPICION + 0.01) is Life.SUSPECT
    assert not judge.is_late


@pytest.mark.parametrize("by", ["progress", "death"])
def test_whether_it_is_late_is_of_no_matter_where_it_is_no_suspect(by: str) -> None:
    judge = judge_of()
    judge.sent(10.0)
    judge.heard(11.0)
    verdict(judge, 10.0 + SUSPICION)
    assert judge.is_late
    if by == "progress":
        judge.acknowledged(10.0 + SUSPICION, all_of_it=True)
    else:
        assert verdict(judge, 11.0 + SUSPICION + DEATH) is Life.DEAD
    assert not judge.is_late


def test_a_path_that_has_just_taken_the_place_of_one_that_was_well_is_left_though_it_was_heard() -> None:
    for since in (10.0, 20.0):
        judge = judge_of()
        judge.new_until = 20.0
        judge.sent(since)
        judge.heard(since + SUSPICION - 0.5)
        sooner = TRIP + ACK_DELAY if since < 20.0 else 0.0
        assert verdict(judge, since + SUSPICION - sooner - 0.01) is Life.WELL
        assert verdict(judge, since + SUSPICION - sooner + 0.01) is Life.SUSPECT
        assert judge.is_late is (since == 20.0)


# --- what another path reveals ---

ANSWERED: Final = TRIP + ACK_DELAY
"""Seconds within which data is acknowledged, at the latest."""


@pytest.mark.parametrize("by", ["something said since", "an ACK that came before"])
def test_what_came_since_an_ack_was_due_is_progress_whatever_path_tells_it(by: str) -> None:
    judge = judge_of()
    judge.sent(10.0, 0)
    if by == "something said since":
        judge.sent(10.0 + ANSWERED, 300)
    else:
        judge.acknowledged_elsewhere(300, 10.0 + ANSWERED, all_of_it=False)
    assert verdict(judge, 10.0 + SUSPICION) is Life.SUSPECT
    judge.acknowledged_elsewhere(300, 12.5, all_of_it=False)
    assert judge.life is Life.SUSPECT
    judge.acknowledged_elsewhere(301, 12.5, all_of_it=False)
    assert verdict(judge, 12.5) is Life.WELL
    assert verdict(judge, 12.5 + 3 * TRIP + 2 * SLACK) is Life.SUSPECT, "and what comes later is judged anew"
    judge.acknowledged_elsewhere(400, 16.2, all_of_it=False)
    assert judge.life is Life.SUSPECT


def test_what_may_have_come_long_ago_is_no_progress() -> None:
    """Its ACK was lost here, which says nothing about the path now, nor about the pauses that it may make."""
    judge = judge_of()
    judge.sent(10.0, 0)
    judge.sent(10.0 + ANSWERED - 0.01, 300)
    judge.acknowledged_elsewhere(400, 10.0 + SUSPICION - 0.01, all_of_it=False)
    assert verdict(judge, 10.0 + SUSPICION) is Life.SUSPECT
    assert judge.pause == TRIP


@pytest.mark.parametrize("asked", [False, True])
def test_where_all_of_it_came_long_ago_nothing_is_waited_for_but_an_answer(asked: bool) -> None:
    judge = judge_of()
    judge.sent(10.0, 0)
    if asked:
        judge.ask(10.0)
    judge.acknowledged_elsewhere(400, 11.0, all_of_it=True)
    assert verdict(judge, 10.0 + SUSPICION) is (Life.SUSPECT if asked else Life.WELL)
    assert judge.pause == TRIP


def test_a_hint_has_it_left_at_once_though_it_was_heard() -> None:
    """Most likely the host has moved, and what arrives was sent before."""
    judge = judge_of()
    assert judge.hint(10.0)
    judge.ask(10.0)
    judge.heard(10.1)
    assert verdict(judge, 10.0 + TRIP + HINT_SLACK) is Life.SUSPECT
    assert not judge.is_late


# --- pauses ---


def pause(judge: LifeJudge, began: float, ended: float) -> None:
    """Data is sent at `began`, and acknowledged at `ended`."""
    judge.sent(began)
    verdict(judge, ended)
    answer(judge, judge._asked, ended) if judge.asking else judge.heard(ended)
    judge.acknowledged(ended, all_of_it=True)


def left_after(judge: LifeJudge, at: float, *, heard: bool = False) -> float:
    """Seconds after `at` when a path is left on which nothing is answered; `heard`: other data still arrives."""
    judge.sent(at)
    for tenth in range(1, 1000):
        now = at + tenth / 10
        if verdict(judge, now) is not Life.WELL and not judge.is_late:
            return tenth / 10
        if heard:
            judge.heard(now)
    raise AssertionError("it never is")


def test_a_path_that_has_come_back_from_a_pause_is_left_after_six_times_as_long() -> None:
    judge = judge_of()
    pause(judge, 10.0, 12.0)
    assert judge.life is Life.WELL
    assert judge.pause == 2.0
    assert left_after(judge, 12.0) == pytest.approx(PAUSES * 2.0, abs=0.11)


def test_round_trips_are_no_pauses_that_matter() -> None:
    judge = judge_of()
    pause(judge, 10.0, 10.0 + TRIP)
    assert left_after(judge, 10.0 + TRIP) == pytest.approx(SUSPICION, abs=0.11)


def test_a_path_that_has_come_back_from_a_pause_and_is_heard_is_left_later() -> None:
    judge = judge_of()
    pause(judge, 10.0, 12.0)
    assert left_after(judge, 12.0, heard=True) == pytest.approx(SUSPICION + HEARD_PAUSES * PAUSES * 2.0, abs=0.11)


def test_however_long_a_pause_was_a_path_that_is_heard_is_left_in_the_end() -> None:
    judge = judge_of()
    pause(judge, 10.0, 25.0)
    assert left_after(judge, 25.0, heard=True) == pytest.approx(judge.suspect_at - 25.0 + HEARD_MAX, abs=0.11)


@pytest.mark.parametrize(("long", "death"), [(7.0, DEATH), (12.0, 24.0), (16.0, DEATH_MAX)])
def test_a_path_is_dead_no_sooner_than_after_twice_its_longest_pause(long: float, death: float) -> None:
    judge = judge_of()
    pause(judge, 10.0, 10.0 + long)
    judge.sent(30.0)
    verdict(judge, 40.0)
    suspected = judge.suspect_at
    assert verdict(judge, suspected + death - 0.01) is Life.SUSPECT
    assert verdict(judge, suspected + death + 0.01) is Life.DEAD


def test_pauses_are_forgotten_by_half() -> None:
    judge, now = judge_of(), 10.0
    pause(judge, now, now + 8.0)
    for expected in (4.0, 2.0, 1.0):
        now += 9.0 + PAUSE_LASTS
        pause(judge, now, now + TRIP)
        assert judge.pause == expected


def test_after_a_hint_no_pause_counts_that_was_before() -> None:
    judge = judge_of()
    pause(judge, 10.0, 12.0)
    assert judge.hint(12.0)
    judge.ask(12.0)
    assert verdict(judge, 12.0 + TRIP + HINT_SLACK) is Life.SUSPECT
    assert not judge.is_late
    answer(judge, judge._asked, 13.0)
    assert left_after(judge, 14.0) < PAUSES * 2.0


def test_what_took_another_path_has_one_asked_at_once_that_may_be_late() -> None:
    judge = judge_of()
    pause(judge, 10.0, 12.0)
    assert judge.doubt(12.0)
    judge.ask(12.0)
    assert verdict(judge, 12.0 + TRIP + HINT_SLACK) is Life.SUSPECT
    assert judge.is_late


def test_a_path_that_is_found_over_the_same_link_pauses_as_the_one_before_it() -> None:
    judge, later = judge_of(), judge_of()
    pause(judge, 10.0, 12.0)
    later.succeed(judge)
    assert left_after(later, 12.0) == pytest.approx(PAUSES * 2.0, abs=0.11)


def suspected_after_a_pause() -> LifeJudge:
    """A path that has come back from a pause of six seconds, and is silent and suspected again."""
    judge = judge_of()
    pause(judge, 10.0, 16.0)
    judge.sent(16.0)
    while verdict(judge, judge.deadline) is Life.WELL:
        pass
    return judge


def test_a_path_that_stays_silent_is_left_for_one_that_was_made_since_however_long_it_has_paused() -> None:
    judge = suspected_after_a_pause()
    suspected = judge.suspect_at
    judge.outdone(suspected + 0.2)
    assert judge.is_late
    verdict(judge, suspected + OUTDONE - 0.01)
    assert judge.is_late
    assert judge.deadline == pytest.approx(suspected + OUTDONE)
    verdict(judge, suspected + OUTDONE)
    assert not judge.is_late


def test_a_path_that_is_heard_is_not_left_sooner_for_one_that_was_made_since() -> None:
    judge = suspected_after_a_pause()
    suspected = judge.suspect_at
    judge.outdone(suspected + 0.2)
    judge.heard(suspected + 5.0)
    verdict(judge, suspected + 5.0 + OUTDONE - 0.01)
    assert judge.is_late
    verdict(judge, suspected + 5.0 + OUTDONE)
    assert not judge.is_late


def test_that_another_path_was_made_is_forgotten_when_it_progresses() -> None:
    judge = suspected_after_a_pause()
    now = judge.suspect_at + 0.2
    judge.outdone(now)
    judge.acknowledged(now, all_of_it=True)
    assert left_after(judge, now) > OUTDONE + SUSPICION


def test_a_suspect_is_given_as_much_time_as_another_path_needs_to_be_found() -> None:
    judge = judge_of()
    judge.sent(10.0)
    verdict(judge, 13.0)
    assert not judge.is_late
    judge.note_pause(1.0, 13.0)
    assert judge.is_late
    assert judge.deadline == pytest.approx(10.0 + PAUSES * 1.0)


# --- the slack ---


def test_a_suspect_that_progresses_is_well_and_the_slack_doubles_up_to_its_limit() -> None:
    judge, now, slack = judge_of(), 10.0, SLACK
    for alarms in range(1, 5):
        judge.sent(now)
        assert judge.deadline == pytest.approx(now + 3 * TRIP + slack)
        now += 3 * TRIP + slack
        assert verdict(judge, now + 0.01) is Life.SUSPECT
        now += TRIP
        judge.acknowledged(now, all_of_it=True)
        assert judge.life is Life.WELL
        assert judge.false_alarms == alarms
        judge.receive(judge._asked, now)
        judge.heard(now)
        slack = min(2 * slack, SLACK_MAX)


def test_false_alarms_are_forgiven_after_a_minute() -> None:
    judge = judge_of()
    judge.sent(10.0)
    verdict(judge, 13.0)
    judge.receive(judge._asked, 13.0)
    judge.acknowledged(13.0, all_of_it=True)
    judge.sent(13.0 + FORGIVEN)
    judge.acknowledged(13.0 + FORGIVEN, all_of_it=True)
    judge.sent(80.0)
    assert verdict(judge, 80.0 + SUSPICION + 0.1) is Life.SUSPECT


def test_an_answer_to_an_older_question_is_progress() -> None:
    judge = judge_of()
    first = judge.ask(10.0)
    assert verdict(judge, 13.0) is Life.SUSPECT
    judge.ask(13.0)
    judge.receive(first, 13.1)
    assert judge.life is Life.WELL
    assert judge.asking


def test_an_answer_to_no_question_is_nothing() -> None:
    judge = judge_of()
    judge.sent(10.0)
    judge.receive(99, 10.1)
    assert judge.answered == 1
    assert verdict(judge, 10.0 + SUSPICION + 0.01) is Life.SUSPECT


# --- the round trip ---


def test_each_question_tells_a_round_trip_whatever_was_asked_behind_it() -> None:
    judge = LifeJudge(0.0, interval=IDLE)
    first, second = judge.ask(0.0), judge.ask(0.1)
    answer(judge, first, 0.2)
    assert judge.trip == pytest.approx(0.2)
    assert judge.asking
    answer(judge, second, 0.5)
    assert judge.trip == pytest.approx(0.2)
    assert judge.rtt == pytest.approx(0.875 * 0.2 + 0.125 * 0.4)
    assert not judge.asking
    answer(judge, second, 0.6)
    assert len(judge._samples) == 2, "an answer counts once"


def test_the_least_of_the_last_samples_counts_and_a_queue_does_not() -> None:
    judge = judge_of()
    for second in range(1, 10):
        answer(judge, judge.ask(second * 10.0), second * 10.0 + 5.0)  # each answer waits behind a bulk transfer
    assert judge.rtt is not None
    assert judge.rtt > 3.0
    assert judge.trip == 5.0  # the first sample is over a minute old
    for number in range(4):
        answer(judge, judge.ask(100.0 + number), 100.0 + number + TRIP)
    assert judge.trip == pytest.approx(TRIP)


def test_the_last_sample_is_never_too_old() -> None:
    judge = judge_of()
    judge.sent(1000.0)
    assert judge.trip == TRIP


def test_an_unknown_round_trip_is_a_second() -> None:
    judge = LifeJudge(0.0, interval=IDLE)
    judge.begin_acknowledged(0.0, responder=False)
    judge.sent(0.0)
    assert judge.deadline == 3 * UNKNOWN_TRIP + SLACK


# --- idle ---


@pytest.mark.parametrize("responder", [False, True])
def test_silence_is_asked_about_and_the_responder_waits_a_tenth_longer(responder: bool) -> None:
    judge = judge_of(responder=responder)
    interval = IDLE * (RESPONDER_WAITS if responder else 1)
    assert judge.deadline == interval
    assert judge.judge(interval)
    judge.ask(interval)
    assert verdict(judge, interval + SUSPICION - 0.01) is Life.WELL
    assert verdict(judge, interval + SUSPICION + 0.01) is Life.SUSPECT


@pytest.mark.parametrize(("trip", "within"), [(0.05, 6.0), (0.2, 6.0), (1.0, 6.0), (0.05, 60.0)])
def test_death_is_noticed_within_the_time_that_was_asked_for(trip: float, within: float) -> None:
    judge = judge_of(trip=trip, notice_within=within)
    at = min(within, IDLE + 3 * trip + SLACK)
    assert verdict(judge, at + 0.01) is Life.SUSPECT


def test_a_false_alarm_has_it_asked_sooner_and_death_is_still_noticed_in_time() -> None:
    judge = judge_of(trip=0.05, notice_within=6.0)
    judge.sent(10.0)
    assert verdict(judge, 12.0) is Life.SUSPECT
    judge.heard(12.0)
    judge.acknowledged(12.0, all_of_it=True)
    judge.receive(judge._asked, 12.0)
    assert (judge.life, judge.false_alarms) == (Life.WELL, 1)
    assert verdict(judge, 18.01) is Life.SUSPECT


def test_who_acknowledges_nothing_is_suspected_in_time_and_has_the_carriers_intervals_to_live() -> None:
    """Its answers wait behind bulk data, for 20 s where it was measured; four intervals of 1 s would be too few."""
    judge = LifeJudge(0.0, interval=IDLE)
    judge.notice_within = 6.0
    assert verdict(judge, 6.01) is Life.SUSPECT
    assert verdict(judge, (1 + MISSES) * IDLE - 0.01) is Life.SUSPECT
    assert verdict(judge, (1 + MISSES) * IDLE + 0.01) is Life.DEAD


def test_it_is_asked_once_a_second_at_most() -> None:
    judge = judge_of(notice_within=0.1)
    assert judge.deadline == 1.0


def test_what_was_asked_before_the_peer_accepted_is_not_held_against_it() -> None:
    judge = LifeJudge(0.0, interval=IDLE)
    judge.sent(0.0)
    judge.heard(9.0)
    judge.begin_acknowledged(9.0, responder=False)
    assert judge.deadline == 9.0 + 3 * UNKNOWN_TRIP + SLACK


# --- hints ---


@pytest.mark.parametrize("busy", [False, True])
def test_after_a_hint_a_path_has_a_round_trip_and_half_a_second_to_progress(busy: bool) -> None:
    judge = judge_of()
    if busy:
        judge.sent(9.9)
    assert judge.hint(10.0), "it is asked at once"
    judge.ask(10.0)
    assert verdict(judge, 10.0 + TRIP + HINT_SLACK - 0.01) is Life.WELL
    assert verdict(judge, 10.0 + TRIP + HINT_SLACK + 0.01) is Life.SUSPECT
    assert verdict(judge, 10.0 + TRIP + HINT_SLACK + DEATH - 0.01) is Life.SUSPECT
    assert verdict(judge, 10.0 + TRIP + HINT_SLACK + DEATH + 0.01) is Life.DEAD
    assert not judge.hint(100.0), "who is dead is not asked"


def test_a_hint_does_not_put_a_suspicion_off_that_was_near() -> None:
    judge = judge_of()
    judge.sent(10.0)
    judge.hint(10.0 + SUSPICION - 0.1)
    assert judge.deadline == pytest.approx(10.0 + SUSPICION)


@pytest.mark.parametrize("by", ["pong", "ack"])
def test_what_progresses_after_a_hint_is_judged_as_before(by: str) -> None:
    judge = judge_of()
    judge.sent(10.0)
    judge.hint(10.0)
    token = judge.ask(10.0)
    if by == "pong":
        answer(judge, token, 10.3)
    else:
        judge.heard(10.3)
        judge.acknowledged(10.3, all_of_it=True)
    assert verdict(judge, 10.3 + SUSPICION - 0.01) is Life.WELL
    assert verdict(judge, 10.3 + SUSPICION + 0.01) is Life.SUSPECT


def test_a_hint_is_not_softened_by_false_alarms_and_its_own_leave_the_slack_alone() -> None:
    judge = judge_of()
    judge.sent(10.0)
    assert verdict(judge, 13.0) is Life.SUSPECT
    judge.receive(judge._asked, 13.0)
    judge.acknowledged(13.0, all_of_it=True)
    for number in range(1, 4):  # the slack stays doubled
        now = 13.0 + 2 * number
        assert judge.hint(now)
        token = judge.ask(now)
        assert verdict(judge, now + TRIP + HINT_SLACK + 0.01) is Life.SUSPECT
        answer(judge, token, now + 1.0)
        assert (judge.life, judge.false_alarms) == (Life.WELL, 1 + number)
    judge.sent(30.0)
    assert judge.deadline == pytest.approx(30.0 + 3 * TRIP + 2 * SLACK)


def test_hints_that_come_together_are_one() -> None:
    judge = judge_of()
    assert judge.hint(10.0)
    judge.ask(10.0)
    assert not judge.hint(10.0 + HINT_INTERVAL - 0.01)
    assert judge.hint(10.0 + HINT_INTERVAL)
    judge.ask(10.0 + HINT_INTERVAL)
    assert verdict(judge, 10.0 + TRIP + HINT_SLACK + 0.01) is Life.SUSPECT, "and a later one gives no respite"


def test_a_suspected_path_is_asked_again_after_a_hint() -> None:
    judge = judge_of()
    judge.sent(10.0)
    assert verdict(judge, 14.0) is Life.SUSPECT
    assert judge.hint(14.0)
    answer(judge, judge.ask(14.0), 14.2)
    assert judge.life is Life.WELL


# --- a peer that acknowledges nothing ---


def test_a_peer_that_acknowledges_nothing_is_dead_after_three_misses() -> None:
    judge = LifeJudge(0.0, interval=IDLE)
    asked, now = [], 0.0
    while judge.life is not Life.DEAD:
        now = judge.deadline
        if judge.judge(now):
            asked.append((now, judge.ask(now)))
    assert [at for at, _ in asked if at % IDLE == 0] == [IDLE, 2 * IDLE, 3 * IDLE]
    assert now == (1 + MISSES) * IDLE


def test_any_sign_of_life_counts_for_a_peer_that_acknowledges_nothing() -> None:
    judge = LifeJudge(0.0, interval=IDLE)
    verdict(judge, 3 * IDLE + 1)
    judge.heard(3 * IDLE + 1)
    assert verdict(judge, 7 * IDLE + 0.5) is not Life.DEAD
    assert verdict(judge, 7 * IDLE + 1.5) is Life.DEAD


# --- whatever happens ---

EVENTS = st.lists(
    st.tuples(st.floats(0.0, 4.0), st.sampled_from(["sent", "some", "all", "heard", "ask", "pong"])), max_size=40
)


@given(events=EVENTS, trip=st.floats(0.001, 2.0))
def test_it_never_condemns_what_progresses_and_always_what_does_not(
    events: list[tuple[float, str]], trip: float
) -> None:
    judge, now = judge_of(trip=trip), 0.0
    progressed_at = heard_at = 0.0
    for pause, event in events:
        began = now
        now += pause
        life = verdict(judge, now)
        if now - progressed_at < 3 * judge.trip + SLACK:
            assert life is Life.WELL
        if now - max(heard_at, began) > 3 * judge.trip + SLACK_MAX + DEATH and judge._waits_from is not None:
            assert life is Life.DEAD
        if life is Life.DEAD:
            assert now - heard_at >= DEATH
            return
        if event == "sent":
            judge.sent(now)
        elif event == "ask":
            judge.ask(now)
        else:
            judge.heard(now)
            heard_at = now
            if event == "pong" and judge.asking:
                judge.receive(judge._asked, now)
                progressed_at = now
            elif event in ("some", "all"):
                judge.acknowledged(now, all_of_it=event == "all")
                progressed_at = now
        assert now < judge.deadline or judge.life is Life.DEAD or judge.deadline == now


STEPS = st.lists(st.tuples(st.floats(0.0, 2.0), st.sampled_from(["sent", "hint", "all", "pong"])), max_size=30)


@settings(max_examples=50)
@given(steps=STEPS, trip=st.floats(0.001, 2.0))
def test_a_hint_gives_what_progresses_its_time_and_what_does_not_no_more(
    steps: list[tuple[float, str]], trip: float
) -> None:
    judge, now = judge_of(trip=trip), 0.0
    progressed_at, answer_by = 0.0, inf
    for pause, step in steps:
        now += pause
        life = verdict(judge, now)
        if now < min(answer_by, progressed_at + 3 * judge.trip + SLACK):
            assert life is Life.WELL
        if now >= answer_by:
            assert life is not Life.WELL
        if life is Life.DEAD:
            return
        if step == "sent":
            judge.sent(now)
        elif step == "hint":
            if judge.hint(now):
                judge.ask(now)
                answer_by = min(answer_by, now + judge.trip + HINT_SLACK)
        elif step == "all" or judge.asking:
            judge.heard(now)
            if step == "all":
                judge.acknowledged(now, all_of_it=True)
            else:
                judge.receive(judge._asked, now)
            progressed_at, answer_by = now, inf
