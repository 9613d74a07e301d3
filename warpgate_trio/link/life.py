"""Whether a path carries what we say, and how long a round trip on it takes: the judge of one carrier, without I/O.

What counts is *progress*: the peer acknowledges something new, or answers a PING.  That data arrives is none, since a
path can be dead in one direction alone.  While something is unanswered and nothing progresses for three round trips and
some slack, the path is SUSPECT; that costs no more than a question and, where there is another path, its use.  What is
suspected and progresses again is well, and the slack grows, as the alarm was a false one.  Only a path that has shown
no sign at all for another `DEATH` seconds is DEAD.

A sign of life is plaintext that arrives.  It is no progress, but it is no hole in our direction either, for long: TCP
and QUIC let the peer say no more than a window while our acknowledgements of it are lost.  So what is suspected and
still heard is not left for another path for `LINGER` seconds: on a bad link the peer's answer is only late, and what it
is behind would have to be said again.  A path that carries what is small and nothing that is large is heard for longer;
that is why it ends.

A path that has come back from pauses may be in one more.  TCP says again what was lost after one retransmission
timeout, two, four and so on, so where several packets in a row are lost it stands still for many seconds, whichever of
two paths over one bad link that is.  So the judge remembers the longest time that something was unanswered before it
progressed (`pause`): on a link that loses nothing that is a round trip.  What is suspected is not left for another path
before it was silent for `PAUSES` times as long, nor while it is heard for `HEARD_PAUSES` times that, and is dead no
sooner than after twice as long.  But where another path was made meanwhile, the link does not stand still: what stays
silent is left for it after `OUTDONE` seconds, however long it has paused before.

A path that is silent because nobody says anything is asked now and then (a PING), and is judged by the answer; over UDP
less often once its NATs are known to bear it (`warpgate_trio.link.quiet`).  Where the peer was talking and stops, it is
asked once, soon: who only listens has nothing unanswered, and what took the path may have taken the connections to
servers, by which the peer looks for another one.

The round trip that the slack is added to is the least of the last samples: under a bulk transfer a PING waits behind
what was said before it, which is no property of the path.

What happens around a path may have killed it: the machine has moved to another network, or slept.  After such a hint it
is asked at once, and has a round trip and half a second to progress.

A peer that acknowledges nothing, because its release is older, can only be asked, and its answers wait behind bulk: it
is DEAD when `MISSES` questions in a row brought no sign, an interval each.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from math import inf
from typing import Final, final

from .quiet import GROWTH, MARGIN, QUIET_ROUNDS, TRIAL_WAITS, Uplink
from .stream import ACK_DELAY

__all__ = ["DEATH", "MISSES", "PAUSES", "SLACK", "Life", "LifeJudge"]

SUSPICION_TRIPS: Final = 3
"""Round trips without progress before a path is suspected, and `SLACK` on top.  On links of 100 Mbit/s to 0.8 Mbit/s a
living transfer hardly ever pauses for as long (docs/live_links.md)."""
SLACK: Final = 1.5
"""Seconds: a second for the peer's retransmission timer (RFC 6298 §2.4) and a half for its machine."""
SLACK_MAX: Final = 6.0
"""Seconds that false alarms may let it grow to, each by doubling it."""
FORGIVEN: Final = 60.0
"""Seconds without a false alarm after which it is `SLACK` again."""
DEATH: Final = 15.0
"""Seconds without a sign of life that a suspected path has left."""
LINGER: Final = 6.0
"""Seconds for which a suspected path that is heard is not left for another one: as long as `SLACK_MAX`."""
OUTDONE: Final = 12.0
"""Seconds for which a suspected path that is silent waits for the end of a pause where another one was made since.  On
the worst link, which pauses for longer now and then, no transfer in twelve changes over for that; with 10 s two do, and
with 6 s every other one (docs/live_links.md)."""
PAUSES: Final = 6
"""How many times its longest pause a path has to be silent for to be left for another one.  Where nothing is lost, that
is six round trips: up to half a second each, no more than `SUSPICION_TRIPS` and `SLACK`."""
HEARD_PAUSES: Final = 3
"""How many times as long it is not left while it is heard: then our acknowledgements arrive, at least."""
HEARD_MAX: Final = 60.0
"""Seconds that this may make of `LINGER`: some may bound TCP's retransmission timeout by a minute (RFC 6298 §2.5)."""
PAUSE_LASTS: Final = 300.0
"""Seconds in which the longest pause is forgotten by half, unless there is one as long."""
DEATH_MAX: Final = 30.0
"""Seconds that remembered pauses may make of `DEATH`."""
HINT_SLACK: Final = 0.5
"""Seconds that a path has to progress after a hint, beside a round trip: half of what TCP waits before it retransmits
what it has no round trip of (RFC 6298 §2.1), and a machine that has just moved or woken up is busy."""
HINT_INTERVAL: Final = 0.5
"""Seconds in which a further hint is the same one: one move changes several addresses, one after the other."""
TALK: Final = 16
"""Arrivals since the last question that make a talk: who says a word now and then is not asked behind each."""
REST: Final = 4
"""How much less often a path that stands by is asked, over TCP: in 240 s, so that a relay does not take it for idle."""
MISSES: Final = 3
"""Intervals without a sign of life after which a peer that acknowledges nothing is gone."""
SAMPLES: Final = 16
"""Round trips of which the least counts."""
SAMPLE_AGE: Final = 60.0
"""Seconds after which a sample is no longer one of them, while there is a newer one."""
UNKNOWN_TRIP: Final = 1.0
"""Seconds that a round trip counts as before it was measured (RFC 6298 §2.1)."""
RESPONDER_WAITS: Final = 1.1
"""How much longer the responder waits before it asks, so that one side asks for both; over UDP under the 30 s after
which the least patient NATs forget a mapping."""


class Life(Enum):
    """What a judge says of a path."""

    WELL = "well"
    SUSPECT = "suspect"
    DEAD = "dead"


@final
# long: the verdict of one path is made of all that has happened on it
class LifeJudge:
    """What is known of one path.  Whoever owns it tells it what happens, and asks (`ask`) when `due` says so.

    Args:
      interval: seconds of silence before the path is asked for a sign of life.

    Attributes:
      notice_within: seconds in which the path's death is to be noticed, where that is sooner than by the interval: then
        it is asked more often, once a second at most.
      acknowledging: the peer acknowledges what it takes in.
      uplink: what is known of the NATs on the path, whose `interval` may grow by that; None where it stays as it is.
      rests: it stands by for another one, and is asked less often (`REST`).
      said_unasked: since the peer was last heard we have said what it need not answer: a signal of a search, perhaps.
      rtt: smoothed round trip in seconds, for people and for windows; None before it was measured.
      trip: the round trip that the path is judged by, in seconds.
      answered, answered_at: the highest token whose PONG has come, and when the last one came.
      life: the verdict.
      heard_at: when the peer was last heard.
      suspect_at: since when it is SUSPECT; infinity while it is not.
      is_late: it is SUSPECT, and may be late rather than dead: it is not left for another one yet.
      pause: the longest time that something was unanswered before it progressed, in seconds.
      new_until: until then it is left for another one once it is suspected, late or not: that one was well.
      timer_began: `deadline` may be sooner than it was when whoever waits for it has set this to False.
      false_alarms: how often it was SUSPECT and progressed again.
    """

    def __init__(self, now: float, *, interval: float) -> None:
        self.notice_within: float = inf
        self.acknowledging: bool = False
        self.uplink: Uplink | None = None
        self.rests: bool = False
        self.said_unasked: bool = False
        self.rtt: float | None = None
        self.answered: int = 0
        self.answered_at: float = -inf
        self.trip: float = UNKNOWN_TRIP
        self.life: Life = Life.WELL
        self.suspect_at: float = inf
        self.is_late: bool = False
        self.pause: float = 0.0
        self.new_until: float = -inf
        self.false_alarms: int = 0
        self.timer_began: bool = True
        self._interval = interval
        self._borne_by_all = interval * RESPONDER_WAITS + MARGIN  # no silence up to that tells anything
        self._long = interval * GROWTH - MARGIN
        self._quiet_rounds = 0
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES)
        self._slack = SLACK
        self._alarmed_at = -inf
        self._paused_at = -inf
        self._hinted_at = -inf
        self._answer_by = inf  # what a hint leaves it, until something progresses
        self._by_hint = False  # it is SUSPECT because of that alone
        self._moved = False  # this machine has, or has slept, and nothing has progressed since
        self._is_outdone = False  # another path was made since it is SUSPECT
        self.heard_at: float = now
        self._waits_from: float | None = None  # since when something is unanswered and nothing has progressed
        self._unacknowledged = False
        self._fresh_from = inf  # what the peer has of our stream beyond this has come since it was last heard of
        self._asked = 0
        self._questions: deque[tuple[int, float]] = deque(maxlen=SAMPLES)  # without an answer, and when they left
        self._misses = 0
        self._arrivals = 0  # since the last question

    # -- what happens ------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Silence counts from here on."""
        self.heard_at = now

    def succeed(self, other: LifeJudge) -> None:
        """The path was found because another one is suspected: their links may be one."""
        self._slack, self._alarmed_at = other._slack, other._alarmed_at
        self.pause, self._paused_at = other.pause, other._paused_at

    def begin_acknowledged(self, now: float, *, responder: bool) -> None:
        """The peer acknowledges what it takes in, from now on; it took its time to accept, which says nothing."""
        self.acknowledging = True
        if self._waits_from is not None:
            self._waits_from = now
        if responder:
            self._interval *= RESPONDER_WAITS

    def heard(self, now: float) -> None:
        """Something came from the peer: a sign of life, and no progress."""
        if now - self.heard_at >= self._long:
            self._judge_silence(now)
        self.said_unasked = False
        self.heard_at = now
        self._misses = 0
        self._arrivals += 1
        if self._arrivals == TALK:
            self.timer_began = True

    def sent(self, now: float, position: int = 0) -> None:
        """Something that the peer is to acknowledge leaves now: of our stream, from there on."""
        self._unacknowledged = True
        if self._waits_from is None:
            self._fresh_from = inf
            self._waits_from = now
            self.timer_began = True
            if self.uplink is not None:
                self.uplink.end_trial(self)
                self._quiet_rounds = 0
        elif self._fresh_from == inf:
            self._note_stale(now, position)

    def acknowledged(self, now: float, *, all_of_it: bool) -> None:
        """The peer has acknowledged something new."""
        self._unacknowledged = not all_of_it
        self._progress(now)

    def acknowledged_elsewhere(self, position: int, now: float, *, all_of_it: bool) -> None:
        """The peer has acknowledged on another path what was said on this one alone.

        It may have come long ago, and the ACK be lost here: that is no progress.
        """
        if position > self._fresh_from:
            self.acknowledged(now, all_of_it=all_of_it)
        elif all_of_it:
            self.excuse()
        else:
            self._note_stale(now, position)

    def _note_stale(self, now: float, position: int) -> None:
        """So much had been said, or had come, when an ACK of all that came before the silence was to be here."""
        if self._waits_from is not None and now >= self._waits_from + self.trip + ACK_DELAY:
            self._fresh_from = position

    def _judge_silence(self, now: float) -> None:
        """What it says of the NATs that a path is heard after a long one."""
        if self.uplink is None or self._quiet_time(now) < self._long:
            return
        if self.said_unasked:
            self.uplink.note_unclear(self, now)
        elif self.life is Life.WELL:  # else the answer is late: a search may have opened them anew
            self.uplink.note_borne(asked=self._waits_from is not None)

    def note_flight(self, now: float) -> None:
        """The peer has fled to another path: where this one was silent, that is why."""
        if self.life is Life.WELL:
            self._note_lost(now)

    def _note_lost(self, now: float) -> None:
        if self.uplink is not None and self._quiet_time(now) > self._borne_by_all:
            self.uplink.note_lost(now)

    def excuse(self) -> None:
        """What was sent here and is not acknowledged was sent again elsewhere."""
        self._unacknowledged = False
        if not self.asking:
            self._waits_from = None

    def ask(self, now: float) -> int:
        """The token of a PING that leaves now."""
        self._asked += 1
        self._questions.append((self._asked, now))
        self._arrivals = 0
        self.timer_began = True
        if self._waits_from is None:
            self._waits_from = now
        return self._asked

    def hint(self, now: float) -> bool:
        """Something has happened that may have killed the path: one that does not answer at once is not only late.

        Returns whether it is to be asked, with `ask`.
        """
        self._moved, self.pause = True, 0.0
        return self.doubt(now)

    def doubt(self, now: float) -> bool:
        """What took another path may have taken this one.  Returns whether it is to be asked, with `ask`."""
        if self.life is Life.DEAD or now - self._hinted_at < HINT_INTERVAL:
            return False
        self._hinted_at = now
        self._quiet_rounds = 0
        self._expect_an_answer(now)
        return True

    def _expect_an_answer(self, now: float) -> None:
        self._answer_by = min(self._answer_by, now + self.trip + HINT_SLACK)
        self.timer_began = True

    def receive(self, token: int, now: float) -> None:
        """A PONG has come."""
        if token > self._asked:
            return
        self.answered = max(self.answered, token)
        self.answered_at = now
        self.timer_began = True
        asked_at = dict(self._questions).get(token)
        while self._questions and self._questions[0][0] <= token:
            self._questions.popleft()
        if asked_at is not None:
            sample = max(now - asked_at, 1e-6)
            self.rtt = sample if self.rtt is None else 0.875 * self.rtt + 0.125 * sample  # RFC 6298 §2
            self._samples.append((now, sample))
            self.trip = min(each for at, each in self._samples if now - at <= SAMPLE_AGE)
            last = token == self._asked
            if last and self.uplink is not None and self._quiet_rounds >= QUIET_ROUNDS and self._may_grow:
                self.uplink.begin_trial(self, now)
        self._progress(now)

    def _progress(self, now: float) -> None:
        if self._waits_from is not None:
            self.note_pause(now - self._waits_from, now)
        self._fresh_from = inf
        self._waits_from = now if self._unacknowledged or self.asking else None
        self._answer_by = inf
        self._moved = False
        if self.life is Life.SUSPECT:
            self.life = Life.WELL
            self.is_late = False
            self.suspect_at = inf
            self._is_outdone = False
            self.false_alarms += 1
            if not self._by_hint:
                self._slack = min(2 * self._slack, SLACK_MAX)
                self._alarmed_at = now
        elif now - self._alarmed_at >= FORGIVEN:
            self._slack = SLACK

    def note_pause(self, seconds: float, now: float) -> None:
        """The link has taken so long for something that it did carry."""
        if seconds >= self.pause or now - self._paused_at >= PAUSE_LASTS:
            self.pause = max(seconds, self.pause / 2)
            self._paused_at = now
        self._judge_late(now)

    def outdone(self, now: float) -> None:
        """Another path was made, and carries."""
        self._is_outdone = self.life is Life.SUSPECT
        self._judge_late(now)

    def _judge_late(self, now: float) -> None:
        if self.life is Life.SUSPECT:
            self.is_late = now < self._left_at
            self.timer_began = True

    # -- what follows from it ----------------------------------------------------------------------------------------

    @property
    def asking(self) -> bool:
        """Whether a PING waits for its PONG."""
        return bool(self._questions)

    def is_overdue(self, now: float) -> bool:
        """Whether it is to be suspected by now, as far as was not judged yet."""
        return now >= self._suspicion_at

    def silence(self, now: float) -> float:
        """Seconds since the peer was last heard."""
        return now - self.heard_at

    def unanswered(self, now: float) -> float:
        """Seconds for which something has been unanswered and nothing has progressed; 0 while nothing is."""
        return 0.0 if self._waits_from is None else now - self._waits_from

    def _quiet_time(self, now: float) -> float:
        """Seconds for which neither side has said anything, or had not when something was said that is unanswered."""
        return (now if self._waits_from is None else self._waits_from) - self.heard_at

    @property
    def _may_grow(self) -> bool:
        return self.acknowledging and self._sooner >= self._interval * GROWTH * TRIAL_WAITS

    @property
    def _sooner(self) -> float:
        return max(self.notice_within - self._patience, 1.0)

    @property
    def _patience(self) -> float:
        return SUSPICION_TRIPS * self.trip + self._slack

    @property
    def _was_talking(self) -> bool:
        return self.acknowledging and self._arrivals >= TALK

    @property
    def _question_at(self) -> float:
        if self._was_talking:
            return self.heard_at + self._patience
        interval = self._interval
        if self.uplink is not None and self.acknowledging:
            interval *= self.uplink.growth(self)
        elif self.rests:
            interval *= REST
        return self.heard_at + (1 + self._misses) * min(interval, self._sooner)

    @property
    def _patience_until(self) -> float:
        if self._waits_from is None:
            return inf
        # What a new path did not carry any more was said this long before the last ACK came, of what was said before.
        late = self.trip + ACK_DELAY if self._waits_from < self.new_until else 0.0
        return self._waits_from + self._patience - late

    @property
    def _suspicion_at(self) -> float:
        return min(self._patience_until, self._answer_by) if self.life is Life.WELL else inf

    @property
    def _left_at(self) -> float:
        if self._moved or self.suspect_at < self.new_until:
            return self.suspect_at
        pauses = PAUSES * self.pause
        # A path on which nobody said anything is silent only since something is unanswered.
        since = self.heard_at if self._by_hint else max(self.heard_at, self._waits_from or -inf)
        silent_at = max(self.heard_at + self._patience, since + pauses)
        if self._is_outdone:
            silent_at = min(silent_at, max(self.heard_at, self.suspect_at) + OUTDONE)
        heard_for = max(LINGER, min(HEARD_PAUSES * pauses, HEARD_MAX))
        return min(max(silent_at, self.suspect_at), self.suspect_at + heard_for)

    @property
    def _death_at(self) -> float:
        if not self.acknowledging:
            return self.heard_at + (1 + MISSES) * self._interval
        return max(self.suspect_at, self.heard_at) + max(DEATH, min(2 * self.pause, DEATH_MAX))

    @property
    def deadline(self) -> float:
        """When `judge` wants to be called; infinity once the path is dead."""
        if self.life is Life.DEAD:
            return inf
        left_at = self._left_at if self.is_late else inf
        return min(self._question_at, self._suspicion_at, left_at, self._death_at)

    def judge(self, now: float) -> bool:
        """Time has come: form the verdict anew.  Returns whether the path is to be asked, with `ask`."""
        if self.life is Life.DEAD:
            return False
        if now >= self._death_at:
            self.life = Life.DEAD
            self.is_late = False
            return False
        ask = False
        if now >= self._suspicion_at:
            self.life = Life.SUSPECT
            self.suspect_at = now
            self._by_hint = now < self._patience_until
            ask = not self.asking
            if not self._by_hint:
                self._note_lost(now)
        self.is_late = self.life is Life.SUSPECT and now < self._left_at
        if now >= self._question_at:
            if self._was_talking:
                self._expect_an_answer(now)
            self._quiet_rounds = self._quiet_rounds + 1 if self._arrivals == 1 else 0
            self._misses += 1
            ask = True  # an unanswered question must not stop the next one
        return ask
