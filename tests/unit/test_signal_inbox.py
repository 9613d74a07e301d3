"""Which opened messages count: time, novelty, rates, and wrong clocks."""

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
    OutsideWindow,
    Overloaded,
    PeerClocks,
    RateLimited,
    Replayed,
    TokenBucket,
    TooOld,
)

T = 1_700_000_000.0
"""Now, long after the start of the process at 0."""
ALICE, BOB, US = b"a" * 32, b"b" * 32, b"u" * 32
UNLIMITED = InboxLimits(rate=1e9, burst=10**9, sender_rate=1e9, sender_burst=10**9)

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


def running(limits: InboxLimits = UNLIMITED) -> Inbox:
    return Inbox(0.0, limits)


# --- time ---


@pytest.mark.parametrize("difference", [-300, -299.999, 0, 300])
def test_inside_the_window(difference: float) -> None:
    assert running().check(message(T + difference), T) == Accepted()


@pytest.mark.parametrize("difference", [-300.001, 300.001, -1e9, 1e9])
def test_outside_the_window(difference: float) -> None:
    assert running().check(message(T + difference), T) == OutsideWindow(needs_clock_reply=True)


def test_nothing_from_before_the_start() -> None:
    inbox = Inbox(T, UNLIMITED)
    assert inbox.check(message(T - 2.0), T + 1) == TooOld(needs_clock_reply=True)
    assert inbox.check(message(T - 1.999), T + 1) == Accepted()


def test_an_answer_to_our_own_message_is_fresh_whatever_its_stamp() -> None:
    """We have just started, ahead of the peer's clock; a stranger gains nothing by claiming to answer."""
    asked, never_asked = b"A" * 16, b"N" * 16
    inbox = Inbox(T, UNLIMITED)
    inbox.clocks.note_sent(asked, ALICE, T + 1)
    assert inbox.check(message(T - 10.0, in_reply_to=asked), T + 1) == Accepted()
    assert isinstance(inbox.check(message(T - 10.0, in_reply_to=never_asked), T + 1), TooOld)
    assert isinstance(inbox.check(message(T - 10.0, in_reply_to=asked, sender=BOB), T + 1), TooOld)
    assert isinstance(inbox.check(message(T - 10.0, in_reply_to=asked), T + 100), TooOld)


def test_one_clock_reply_per_sender_and_ten_seconds() -> None:
    inbox = running()
    late = T - 1000

    def needs(sender: bytes, now: float) -> bool:
        verdict = inbox.check(message(late, sender=sender), now)
        assert isinstance(verdict, OutsideWindow)
        return verdict.needs_clock_reply

    assert needs(ALICE, T)
    assert not needs(ALICE, T + 9.9)
    assert needs(BOB, T + 9.9)
    assert needs(ALICE, T + 10)


def test_clock_replies_in_all_are_limited() -> None:
    inbox = running()
    strangers = [n.to_bytes(32, "big") for n in range(100)]
    verdicts = [inbox.check(message(T - 1000, sender=stranger), T) for stranger in strangers]
    assert verdicts.count(OutsideWindow(needs_clock_reply=True)) == 20
    # Those who got none are not marked as if they had.
    assert inbox.check(message(T - 1000, sender=strangers[-1]), T + 1) == OutsideWindow(needs_clock_reply=True)


def test_a_clock_reply_is_never_answered_with_one() -> None:
    assert running().check(message(T - 1000, wire_name="core.Clock"), T) == OutsideWindow(needs_clock_reply=False)


# --- replays ---


def test_replayed() -> None:
    inbox = running()
    first = message()
    assert inbox.check(first, T) == Accepted()
    assert inbox.check(first, T) == Replayed()
    assert inbox.check(first, T + 300) == Replayed()
    assert inbox.check(first, T + 300.1) == OutsideWindow(needs_clock_reply=True)


def test_an_id_is_kept_for_the_whole_window() -> None:
    """A stamp 300 s ahead stays acceptable for 600 s."""
    inbox = running()
    ahead = message(T + 300)
    assert inbox.check(ahead, T) == Accepted()
    for later in (0.0, 299.0, 599.0, 600.0):
        assert inbox.check(ahead, T + later) == Replayed()
    assert isinstance(inbox.check(ahead, T + 600.1), OutsideWindow)


def test_refused_messages_are_not_remembered() -> None:
    inbox = running()
    early = message(T + 301)
    assert isinstance(inbox.check(early, T), OutsideWindow)
    assert inbox.check(early, T + 2) == Accepted()


def test_nothing_forgotten_comes_back_when_the_clock_goes_back() -> None:
    inbox = running()
    first = message()
    assert inbox.check(first, T) == Accepted()
    assert inbox.check(message(T + 400), T + 400) == Accepted()  # forgets the first
    assert isinstance(inbox.check(first, T + 100), TooOld)


def test_a_corrected_clock_moves_the_start() -> None:
    """Our clock was an hour ahead when the process started; what was stamped after the start is accepted."""
    inbox = Inbox(T + 3600, UNLIMITED)
    assert isinstance(inbox.check(message(T + 1), T + 1), TooOld)
    inbox.clock_stepped(-3600.0)
    assert inbox.check(message(T + 1), T + 1) == Accepted()
    assert isinstance(inbox.check(message(T - 10), T + 1), TooOld)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 9), st.floats(-400, 400), st.floats(0, 200)), max_size=60))
def test_nothing_is_accepted_twice(steps: list[tuple[int, float, float]]) -> None:
    """Ten messages with arbitrary stamps, repeated at arbitrary times."""
    inbox = running()
    stamps: dict[int, float] = {}
    accepted: set[int] = set()
    now = T
    for number, difference, pause in steps:
        now += pause
        stamp = stamps.setdefault(number, now + difference)
        if inbox.check(message(stamp, message_id=bytes([number]) * 16), now) == Accepted():
            assert number not in accepted
            assert abs(stamp - now) < 300.001
            accepted.add(number)


# --- bounds ---


def test_in_all_before_decrypting() -> None:
    inbox = Inbox(T, InboxLimits(rate=10.0, burst=5))
    assert [inbox.admit(T) for _ in range(6)] == [True] * 5 + [False]
    assert not inbox.admit(T + 0.05)
    assert inbox.admit(T + 0.15)


def test_per_sender() -> None:
    inbox = running(InboxLimits(sender_rate=2.0, sender_burst=3))
    assert [inbox.check(message(), T) for _ in range(4)] == [Accepted()] * 3 + [RateLimited()]
    assert inbox.check(message(sender=BOB), T) == Accepted()
    assert inbox.check(message(), T + 0.5) == Accepted()
    assert inbox.check(message(), T + 0.5) == RateLimited()


def test_replays_cost_the_sender_nothing() -> None:
    """Every message comes in once per server."""
    inbox = running(InboxLimits(sender_rate=1.0, sender_burst=2))
    first = message()
    inbox.check(first, T)
    assert [inbox.check(first, T) for _ in range(9)] == [Replayed()] * 9
    assert inbox.check(message(), T) == Accepted()


def test_the_table_of_senders_forgets_the_longest_silent() -> None:
    inbox = running(InboxLimits(sender_rate=1e-9, sender_burst=1))
    strangers = [n.to_bytes(32, "big") for n in range(4096)]
    for stranger in strangers:
        assert inbox.check(message(sender=stranger), T) == Accepted()
    assert inbox.check(message(sender=strangers[0]), T) == RateLimited()  # known, and now the most recent
    assert inbox.check(message(sender=ALICE), T) == Accepted()  # pushes out the second
    assert inbox.check(message(sender=strangers[0]), T) == RateLimited()
    assert inbox.check(message(sender=strangers[1]), T) == Accepted()


def test_a_full_table_of_ids_refuses_and_forgets_nothing() -> None:
    inbox = running(InboxLimits(ids=3))
    first = message()
    assert inbox.check(first, T) == Accepted()
    assert [inbox.check(message(), T) for _ in range(3)] == [Accepted(), Accepted(), Overloaded()]
    assert inbox.check(first, T) == Replayed()
    assert inbox.check(message(T + 301), T + 301) == Accepted()


def test_the_default_table_of_ids_cannot_fill() -> None:
    limits = InboxLimits()
    assert limits.rate * 600 + limits.burst < limits.ids


def test_token_bucket() -> None:
    bucket = TokenBucket(2.0, 3, T)
    assert [bucket.take(T) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(T - 100)  # a clock that goes back earns nothing
    assert not bucket.take(T - 99.6)
    assert bucket.take(T - 99.5)
    assert [bucket.take(T + 1000) for _ in range(4)] == [True, True, True, False]


# --- clocks ---


def test_a_wrong_clock_is_corrected() -> None:
    """Ours is an hour behind Bob's: his reply tells, and both directions work after that."""
    inbox = running()
    request = b"q" * 16
    inbox.clocks.note_sent(request, BOB, T)
    reply = message(T + 3600.5, sender=BOB, wire_name="core.Clock", in_reply_to=request)
    assert inbox.check(reply, T + 1) == Accepted()
    assert inbox.clocks.on_clock_reply(BOB, request, reply.time_ms, T + 1) == pytest.approx(3600.0)
    assert inbox.clocks.offset(BOB) == pytest.approx(3600.0)
    assert inbox.check(message(T + 3601, sender=BOB), T + 1) == Accepted()
    assert isinstance(inbox.check(message(T + 1, sender=BOB), T + 1), OutsideWindow)
    # Whatever Bob says about time is between him and us.
    assert inbox.clocks.offset(ALICE) == 0.0
    assert inbox.check(message(T + 1), T + 1) == Accepted()


@pytest.mark.parametrize(
    ("sender", "in_reply_to", "later"),
    [(ALICE, b"q" * 16, 1.0), (BOB, b"x" * 16, 1.0), (BOB, None, 1.0), (BOB, b"q" * 16, 60.1), (BOB, b"q" * 16, -1.0)],
)
def test_a_clock_reply_that_was_not_asked_for(sender: bytes, in_reply_to: bytes | None, later: float) -> None:
    inbox = running()
    inbox.clocks.note_sent(b"q" * 16, BOB, T)
    reply = message(T + 3600, sender=sender, wire_name="core.Clock", in_reply_to=in_reply_to)
    assert inbox.check(reply, T + later) == OutsideWindow(needs_clock_reply=False)
    assert inbox.clocks.on_clock_reply(sender, in_reply_to, reply.time_ms, T + later) is None
    assert inbox.clocks.offset(sender) == 0.0


def test_one_clock_reply_per_message() -> None:
    clocks = PeerClocks()
    clocks.note_sent(b"q" * 16, BOB, T)
    assert clocks.on_clock_reply(BOB, b"q" * 16, round(T * 1000), T) == pytest.approx(0.0)
    assert clocks.on_clock_reply(BOB, b"q" * 16, 0, T) is None


def test_only_clock_messages_may_be_out_of_time() -> None:
    inbox = running()
    inbox.clocks.note_sent(b"q" * 16, BOB, T)
    assert isinstance(inbox.check(message(T + 3600, sender=BOB, in_reply_to=b"q" * 16), T), OutsideWindow)


def test_a_step_of_our_clock_moves_the_offsets() -> None:
    clocks = PeerClocks()
    clocks.note_sent(b"p" * 16, BOB, T)
    assert clocks.on_clock_reply(BOB, b"p" * 16, round((T + 100) * 1000), T) == pytest.approx(100.0)
    clocks.note_sent(b"q" * 16, ALICE, T)
    clocks.clock_stepped(90.0)
    assert clocks.offset(BOB) == pytest.approx(10.0)
    assert clocks.expects(ALICE, b"q" * 16, T + 91)


def test_the_tables_of_clocks_are_bounded() -> None:
    clocks = PeerClocks()
    for number in range(4097):
        clocks.note_sent(number.to_bytes(16, "big"), BOB, T)
    assert not clocks.expects(BOB, bytes(16), T)
    assert clocks.expects(BOB, (1).to_bytes(16, "big"), T)
