"""Which opened messages are accepted: freshness, replays, rates, and wrong clocks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio.signal import (
    Accepted,
    Header,
    Inbox,
    InboxLimits,
    Moment,
    OutsideWindow,
    Overloaded,
    PeerClocks,
    RateLimited,
    Replayed,
    TooOld,
    Unasked,
)
from warpgate_trio.signal.replays import ANSWER_TIME, CATCH_UP, WINDOW

T = 1_700_000_000.0
"""The current time, long after the start of the process at 0."""
ALICE, BOB, US = b"a" * 32, b"b" * 32, b"u" * 32
UNLIMITED = InboxLimits(sender_rate=1e9, sender_burst=10**9, stranger_rate=1e9, stranger_burst=10**9)

_ids = itertools.count()


def message(
    at: float = T,
    *,
    sender: bytes = ALICE,
    message_id: bytes | None = None,
    wire_name: str = "core.Cancel",
    in_reply_to: bytes | None = None,
) -> Header:
    return Header(
        type=wire_name,
        sender=sender,
        receiver=US,
        message_id=message_id or next(_ids).to_bytes(16, "big"),
        session=bytes(16),
        in_reply_to=in_reply_to,
        time_ms=round(at * 1000),
    )


def at(wall: float, monotonic: float | None = None) -> Moment:
    """A moment on a host whose wall clock nobody sets, unless `monotonic` is given."""
    return Moment(wall, wall if monotonic is None else monotonic)


def running(limits: InboxLimits = UNLIMITED) -> Inbox:
    return Inbox(at(0.0), limits)


# --- time ---


@pytest.mark.parametrize("difference", [-300, -299.999, 0, 300])
def test_inside_the_window(difference: float) -> None:
    assert running().check(message(T + difference), at(T)) == Accepted()


@pytest.mark.parametrize("difference", [-300.001, 300.001, -1e9, 1e9])
def test_outside_the_window(difference: float) -> None:
    assert running().check(message(T + difference), at(T)) == OutsideWindow(needs_clock_reply=True)


def test_nothing_from_before_the_start() -> None:
    inbox = Inbox(at(T), UNLIMITED)
    assert inbox.check(message(T - 2.0), at(T + 1)) == TooOld(needs_clock_reply=True)
    assert inbox.check(message(T - 1.999), at(T + 1)) == Accepted()


@pytest.mark.parametrize("clock", [-1e9, -3600.0, -10.0, 0.0, 3600.0])
def test_an_answer_to_our_own_message_is_fresh_whatever_its_stamp(clock: float) -> None:
    """This node has just started, and the peer's clock is wrong; a stranger gains nothing by claiming to answer."""
    asked, never_asked = b"A" * 16, b"N" * 16
    inbox = Inbox(at(T), UNLIMITED)
    inbox.clocks.note_sent(asked, ALICE, at(T + 1))
    answer = message(T + clock, in_reply_to=asked)
    assert inbox.check(answer, at(T + 1)) == Accepted()
    assert inbox.check(answer, at(T + 1)) == Replayed()
    assert inbox.check(message(T + clock, in_reply_to=never_asked), at(T + 1)) == Unasked()
    assert inbox.check(message(T + clock, in_reply_to=asked, sender=BOB), at(T + 1)) == Unasked()
    assert inbox.check(message(T + clock, in_reply_to=asked), at(T + 1 + ANSWER_TIME)) == Accepted()
    assert inbox.check(message(T + clock, in_reply_to=asked), at(T + 1.1 + ANSWER_TIME)) == Unasked()
    assert inbox.check(answer, at(T + 1e6)) == Unasked()


def test_one_clock_reply_per_sender_and_ten_seconds() -> None:
    inbox = running()
    late = T - 1000

    def needs(sender: bytes, now: float) -> bool:
        verdict = inbox.check(message(late, sender=sender), at(now))
        assert isinstance(verdict, OutsideWindow)
        return verdict.needs_clock_reply

    assert needs(ALICE, T)
    assert not needs(ALICE, T + 9.9)
    assert needs(BOB, T + 9.9)
    assert needs(ALICE, T + 10)


def test_clock_replies_in_all_are_limited() -> None:
    inbox = running()
    strangers = [n.to_bytes(32, "big") for n in range(100)]
    verdicts = [inbox.check(message(T - 1000, sender=stranger), at(T)) for stranger in strangers]
    assert verdicts.count(OutsideWindow(needs_clock_reply=True)) == 20
    # Senders that got no clock reply are not marked as if they had.
    assert inbox.check(message(T - 1000, sender=strangers[-1]), at(T + 1)) == OutsideWindow(needs_clock_reply=True)


def test_a_clock_reply_that_found_nobody_may_be_followed_by_another_one_at_once() -> None:
    inbox = running()
    assert inbox.check(message(T - 1000), at(T)) == OutsideWindow(needs_clock_reply=True)
    assert inbox.check(message(T - 1000), at(T + 1)) == OutsideWindow(needs_clock_reply=False)
    inbox.clocks.note_unheard(message(T).sender)
    assert inbox.check(message(T - 1000), at(T + 1)) == OutsideWindow(needs_clock_reply=True)
    assert inbox.check(message(T - 1000), at(T + 2)) == OutsideWindow(needs_clock_reply=False)


def test_a_clock_reply_is_never_answered_with_one() -> None:
    assert running().check(message(T - 1000, wire_name="core.Clock"), at(T)) == OutsideWindow(needs_clock_reply=False)


# --- replays ---


def test_replayed() -> None:
    inbox = running()
    first = message()
    assert inbox.check(first, at(T)) == Accepted()
    assert inbox.check(first, at(T)) == Replayed()
    assert inbox.check(first, at(T + 300)) == Replayed()
    assert inbox.check(first, at(T + 300.1)) == OutsideWindow(needs_clock_reply=True)


def test_an_id_is_kept_for_the_whole_window() -> None:
    """A message stamped 300 s ahead stays acceptable for 600 s."""
    inbox = running()
    ahead = message(T + 300)
    assert inbox.check(ahead, at(T)) == Accepted()
    for later in (0.0, 299.0, 599.0, 600.0):
        assert inbox.check(ahead, at(T + later)) == Replayed()
    assert isinstance(inbox.check(ahead, at(T + 600.1)), OutsideWindow)


def test_refused_messages_are_not_remembered() -> None:
    inbox = running()
    early = message(T + 301)
    assert isinstance(inbox.check(early, at(T)), OutsideWindow)
    assert inbox.check(early, at(T + 2)) == Accepted()


def test_nothing_forgotten_comes_back_when_the_clock_goes_back() -> None:
    inbox = running()
    first = message()
    assert inbox.check(first, at(T)) == Accepted()
    assert inbox.check(message(T + 400), at(T + 400)) == Accepted()  # evicts the first one
    assert isinstance(inbox.check(first, at(T + 100, T + 401)), OutsideWindow)


def test_a_step_of_a_tenth_of_a_second_replays_nothing() -> None:
    """NTP sets the clock back by 0.1 s when a message has just left the window."""
    inbox = running()
    first = message()
    assert inbox.check(first, at(T)) == Accepted()
    for later in (300.05, 300.06, 300.1, 300.2, 300.25):
        assert inbox.check(message(T + later), at(T + later)) == Accepted()  # expired ids are forgotten one by one
        assert inbox.check(first, at(T + later - 0.1, T + later)) != Accepted()
        assert inbox.check(first, at(T + later - 0.1, T + later + 0.01)) != Accepted()


def test_a_clock_that_is_put_back_by_an_hour_shuts_nobody_out() -> None:
    """A sender outside the window is told a time; messages stamped by it are accepted."""
    inbox = running()
    old = message()
    assert inbox.check(old, at(T)) == Accepted()
    assert inbox.check(message(T + 1000), at(T + 1000)) == Accepted()
    for later in (1001.0, 1100.0, 2000.0, 4000.0, 8000.0):
        now = at(T + later - 3600, T + later)
        stamp = now.wall if later > 8000 else inbox.time(now)
        if abs(now.wall - inbox.time(now)) > WINDOW:
            assert inbox.check(message(now.wall), now) == OutsideWindow(needs_clock_reply=True)
        assert inbox.check(message(stamp), now) == Accepted()
        assert inbox.check(old, now) != Accepted()
    # The inbox's time goes at half speed until the clock has caught up, after two hours.
    late = at(T + 9000 - 3600, T + 9000)
    assert inbox.time(late) == late.wall
    assert inbox.check(message(late.wall), late) == Accepted()


def test_a_clock_that_is_put_back_before_anything_was_forgotten_is_gone_by_at_once() -> None:
    inbox = running()
    assert inbox.check(message(), at(T)) == Accepted()
    now = at(T - 3600, T + 1)
    assert inbox.time(now) == now.wall
    assert inbox.check(message(now.wall), now) == Accepted()


def test_a_corrected_clock_moves_the_start() -> None:
    """The clock was an hour ahead when the process started; messages stamped after the start are accepted."""
    inbox = Inbox(at(T + 3600, 0.0), UNLIMITED)
    assert isinstance(inbox.check(message(T + 3590), at(T + 3601, 1.0)), TooOld)
    assert inbox.check(message(T + 1), at(T + 1, 1.0)) == Accepted()
    assert isinstance(inbox.check(message(T - 10), at(T + 1, 1.0)), TooOld)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 9),
            st.floats(-400, 400),
            st.floats(0, 200),
            st.sampled_from([0.0, 0.0, 0.0, -0.1, 0.1, -290.0, -3600.0, 3600.0]),
        ),
        max_size=60,
    )
)
def test_nothing_is_accepted_twice(steps: list[tuple[int, float, float, float]]) -> None:
    """Ten messages with arbitrary stamps, repeated at arbitrary times, on a wall clock that is set at random.

    Five of them are answers, three of those to messages that this side has sent.
    """
    inbox = running()
    stamps: dict[int, float] = {}
    accepted: set[int] = set()
    wall = monotonic = T
    for asked in range(3):
        inbox.clocks.note_sent(bytes([asked]) * 16, ALICE, at(T))
    for number, difference, pause, moved in steps:
        monotonic += pause
        wall += pause + moved
        stamp = stamps.setdefault(number, wall + difference)
        answers = bytes([number]) * 16 if number < 5 else None
        again = message(stamp, message_id=bytes([number]) * 16, in_reply_to=answers)
        if inbox.check(again, at(wall, monotonic)) == Accepted():
            assert number not in accepted
            accepted.add(number)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 500), st.sampled_from([0.0, -0.1, 0.1, -3600.0, 3600.0])), max_size=30))
def test_who_stamps_by_the_time_that_we_tell_is_always_heard(steps: list[tuple[float, float]]) -> None:
    inbox = running()
    wall = monotonic = T
    for pause, moved in steps:
        monotonic += pause
        wall += pause + moved
        now = at(wall, monotonic)
        assert inbox.time(now) >= wall
        assert inbox.check(message(inbox.time(now)), now) == Accepted()


# --- bounds ---


def test_per_sender() -> None:
    inbox = running(InboxLimits(sender_rate=2.0, sender_burst=3))
    assert [inbox.check(message(), at(T)) for _ in range(4)] == [Accepted()] * 3 + [RateLimited()]
    assert inbox.check(message(sender=BOB), at(T)) == Accepted()
    assert inbox.check(message(), at(T + 0.5)) == Accepted()
    assert inbox.check(message(), at(T + 0.5)) == RateLimited()


def test_replays_cost_the_sender_nothing() -> None:
    """Every message arrives once per server."""
    inbox = running(InboxLimits(sender_rate=1.0, sender_burst=2))
    first = message()
    inbox.check(first, at(T))
    assert [inbox.check(first, at(T)) for _ in range(9)] == [Replayed()] * 9
    assert inbox.check(message(), at(T)) == Accepted()


def test_the_table_of_senders_forgets_the_longest_silent() -> None:
    inbox = running(InboxLimits(sender_rate=1e-9, sender_burst=1, stranger_rate=1e9, stranger_burst=10**9))
    strangers = [n.to_bytes(32, "big") for n in range(4096)]
    for stranger in strangers:
        assert inbox.check(message(sender=stranger), at(T)) == Accepted()
    assert inbox.check(message(sender=strangers[0]), at(T)) == RateLimited()  # known, and now the most recent
    assert inbox.check(message(sender=ALICE), at(T)) == Accepted()  # evicts the second
    assert inbox.check(message(sender=strangers[0]), at(T)) == RateLimited()
    assert inbox.check(message(sender=strangers[1]), at(T)) == Accepted()


def test_a_full_table_of_ids_refuses_and_forgets_nothing() -> None:
    inbox = running(InboxLimits(ids=4))
    first = message()
    assert inbox.check(first, at(T)) == Accepted()
    assert [inbox.check(message(), at(T)) for _ in range(3)] == [Accepted(), Accepted(), Overloaded()]
    assert inbox.check(first, at(T)) == Replayed()
    assert inbox.check(message(T + 301), at(T + 301)) == Accepted()


def test_strangers_never_fill_the_table_for_whom_we_know() -> None:
    inbox = running(InboxLimits(ids=8))
    assert [inbox.check(message(), at(T)) for _ in range(7)] == [Accepted()] * 6 + [Overloaded()]
    inbox.clocks.note_sent(b"q" * 16, BOB, at(T))
    assert inbox.check(message(sender=BOB, in_reply_to=b"q" * 16), at(T)) == Accepted()
    assert inbox.check(message(sender=BOB), at(T), known=True) == Accepted()
    assert inbox.check(message(sender=BOB), at(T), known=True) == Overloaded()


def test_strangers_of_one_channel_take_nothing_from_others() -> None:
    """Whoever knows the node's address can send it messages under any number of keys."""
    inbox = running(InboxLimits(stranger_rate=2.0, stranger_burst=3))
    names = iter(n.to_bytes(32, "big") for n in range(100))
    flood = [inbox.check(message(sender=next(names)), at(T), via="flooded") for _ in range(5)]
    assert flood == [Accepted()] * 3 + [RateLimited()] * 2
    assert inbox.check(message(sender=next(names)), at(T), via="quiet") == Accepted()
    assert inbox.check(message(sender=next(names)), at(T), via="flooded", known=True) == Accepted()
    assert inbox.check(message(sender=next(names)), at(T + 0.5), via="flooded") == Accepted()


def test_strangers_of_one_channel_cannot_fill_their_part_of_the_table() -> None:
    """Even while the inbox's time goes at half speed, so that ids are kept twice as long."""
    limits = InboxLimits()
    assert limits.stranger_rate * 2 * WINDOW / CATCH_UP + limits.stranger_burst < limits.stranger_ids


# --- clocks ---


def test_a_wrong_clock_is_corrected() -> None:
    """It is an hour behind Bob's: after his reply, messages to him are stamped by his clock."""
    inbox = running()
    request = b"q" * 16
    inbox.clocks.note_sent(request, BOB, at(T))
    reply = message(T + 3600.5, sender=BOB, wire_name="core.Clock", in_reply_to=request)
    assert inbox.check(reply, at(T + 1)) == Accepted()
    assert inbox.clocks.on_clock_reply(BOB, request, reply.time_ms, at(T + 1)) == pytest.approx(3600.0)
    assert inbox.clocks.time_of(BOB, at(T + 2)) == pytest.approx(T + 3602)
    # A clock reply concerns that peer only, and does not make a message fresh that he stamps by his own clock.
    assert isinstance(inbox.check(message(T + 3602, sender=BOB), at(T + 2)), OutsideWindow)
    assert inbox.clocks.time_of(ALICE, at(T + 2)) == T + 2
    assert inbox.check(message(T + 2), at(T + 2)) == Accepted()


@pytest.mark.parametrize(
    ("sender", "in_reply_to", "later"),
    [(ALICE, b"q" * 16, 1.0), (BOB, b"x" * 16, 1.0), (BOB, None, 1.0), (BOB, b"q" * 16, 120.1), (BOB, b"q" * 16, -1.0)],
)
def test_a_clock_reply_that_was_not_asked_for(sender: bytes, in_reply_to: bytes | None, later: float) -> None:
    inbox = running()
    inbox.clocks.note_sent(b"q" * 16, BOB, at(T))
    reply = message(T + 3600, sender=sender, wire_name="core.Clock", in_reply_to=in_reply_to)
    assert inbox.check(reply, at(T + later)) in (Unasked(), OutsideWindow(needs_clock_reply=False))
    assert inbox.clocks.on_clock_reply(sender, in_reply_to, reply.time_ms, at(T + later)) is None
    assert inbox.clocks.time_of(sender, at(T)) == T


def test_one_clock_reply_per_message() -> None:
    clocks = PeerClocks()
    clocks.note_sent(b"q" * 16, BOB, at(T))
    assert clocks.on_clock_reply(BOB, b"q" * 16, round(T * 1000), at(T)) == pytest.approx(0.0)
    assert clocks.on_clock_reply(BOB, b"q" * 16, 0, at(T)) is None


def test_a_step_of_our_clock_leaves_what_we_know_of_others() -> None:
    clocks = PeerClocks()
    clocks.note_sent(b"p" * 16, BOB, at(T))
    assert clocks.on_clock_reply(BOB, b"p" * 16, round((T + 100) * 1000), at(T)) == pytest.approx(100.0)
    clocks.note_sent(b"q" * 16, ALICE, at(T))
    assert clocks.time_of(BOB, at(T + 91, T + 1)) == pytest.approx(T + 101)
    assert clocks.expects(ALICE, b"q" * 16, at(T + 3600, T + 1))


def test_the_tables_of_clocks_are_bounded() -> None:
    clocks = PeerClocks()
    for number in range(4097):
        clocks.note_sent(number.to_bytes(16, "big"), BOB, at(T))
    assert not clocks.expects(BOB, bytes(16), at(T))
    assert clocks.expects(BOB, (1).to_bytes(16, "big"), at(T))
