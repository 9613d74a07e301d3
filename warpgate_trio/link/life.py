"""Whether a path carries what this side sends, and its round-trip time: the judge of one carrier, without I/O.

Suspicion.  What counts is *progress*: the peer acknowledges something new, or answers a PING.  Arriving data is no
progress, since a path can be dead in one direction alone.  *Unanswered* is unacknowledged data or a PING without its
PONG.  While something is unanswered and there is no progress for three round trips plus some slack, the path is
SUSPECT.  Suspicion costs no more than a PING and, where there is another path, a change to it.  A suspected path that
makes progress is WELL again; the alarm was false, so the slack grows.  Only a path that has shown no sign of life for
another `DEATH` seconds is DEAD.

Late paths.  A sign of life is plaintext that arrives; while it does, the path is *heard*.  It is no progress, but it
soon ends if our direction is dead: without our acknowledgements TCP and QUIC let the peer send no more than a window.
So a suspected path that is still heard is not left for another one for `LINGER` seconds.  On a bad link the peer's
answer is only late, and the data queued before it would have to be sent again.  The time is bounded because a path that
carries small packets but no large ones is heard for longer.

Pauses.  A path that has recovered from pauses may be in another one.  TCP retransmits after one retransmission timeout,
two, four and so on, so where several packets in a row are lost it stalls for many seconds, and so does any other path
over the same bad link.  So the judge remembers the longest time that something was unanswered before the path made
progress (`pause`); on a link without losses that is a round trip.  A suspected path is not left for another one

* before it was silent for `PAUSES` times its longest pause;
* while it is heard, for `HEARD_PAUSES` times that.

It is not dead before twice its longest pause.  But once another path could be made meanwhile, the link is evidently not
stalled: a path that stays silent is then left after `OUTDONE` seconds, however long it has paused before.

Idle paths.  A path on which nobody sends is *asked* now and then: a PING is sent, and the path is judged by the answer.
Over UDP that is less often once its NATs are known to bear it (`warpgate_trio.link.quiet`).  A peer that was talking
and stops is asked once, soon.  A side that only receives has nothing unanswered, and what broke the path may also have
broken its connections to servers, through which the peer looks for another path.

Round trips.  The slack is added to the least of the last samples: during a bulk transfer a PING waits behind the data
sent before it, which is no property of the path.

Hints.  An event may have killed a path: the host has moved to another network, or has slept.  After such a hint the
path is asked at once, and has a round trip and half a second to make progress.

A peer of an older release acknowledges nothing, so it can only be asked, and its answers wait behind bulk.  It is DEAD
when `MISSES` PINGs in a row, an interval each, brought no sign of life.
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
"""Round trips without progress before a path is suspected, with `SLACK` on top.  On links of 100 Mbit/s to 0.8 Mbit/s a
living transfer hardly ever pauses for as long (docs/live_links.md)."""
SLACK: Final = 1.5
"""Seconds: one for the peer's retransmission timeout (RFC 6298 §2.4), and half a second for delays of its host."""
SLACK_MAX: Final = 6.0
"""Seconds to which false alarms may raise the slack; each one doubles it."""
FORGIVEN: Final = 60.0
"""Seconds without a false alarm after which the slack is `SLACK` again."""
DEATH: Final = 15.0
"""Seconds without a sign of life after which a suspected path is dead."""
LINGER: Final = 6.0
"""Seconds for which a suspected path that is still heard is not left for another one: as long as `SLACK_MAX`."""
OUTDONE: Final = 12.0
"""Seconds of silence that a suspected path is still granted once another path was made.  On the worst link, which
pauses for longer now and then, this bound makes no transfer in twelve change over; with 10 s two do, and with 6 s every
other one (docs/live_links.md)."""
PAUSES: Final = 6
"""How many times its longest pause a suspected path must be silent before it is left for another one.  Without losses
that is six round trips: no more than `SUSPICION_TRIPS` and `SLACK`, as long as a round trip takes half a second or
less."""
HEARD_PAUSES: Final = 3
"""Factor by which the `PAUSES` bound is longer for a suspected path that is heard: at least our acknowledgements
arrive."""
HEARD_MAX: Final = 60.0
"""Seconds to which pauses may raise `LINGER`: TCP may cap its retransmission timeout at a minute (RFC 6298 §2.5)."""
PAUSE_LASTS: Final = 300.0
"""Seconds after which the remembered longest pause is halved, unless there was another one as long."""
DEATH_MAX: Final = 30.0
"""Seconds to which remembered pauses may raise `DEATH`."""
HINT_SLACK: Final = 0.5
"""Seconds beyond a round trip that a path has to make progress after a hint: half of TCP's initial retransmission
timeout (RFC 6298 §2.1), as a host that has just moved or woken up is busy."""
HINT_INTERVAL: Final = 0.5
"""Seconds within which further hints count as the same one: one move changes several addresses, one after the other."""
TALK: Final = 16
"""Arrivals since the last PING from which on the peer counts as talking: one that sends now and then is not asked after
each message."""
REST: Final = 4
"""How many times less often a standby path is asked, over TCP: every 240 s, so that a relay does not take it for
idle."""
MISSES: Final = 3
"""PINGs in a row without a sign of life, an interval each, after which a peer that acknowledges nothing is gone."""
SAMPLES: Final = 16
"""Round-trip samples of which the least counts."""
SAMPLE_AGE: Final = 60.0
"""Seconds after which a sample no longer counts, if there is a newer one."""
UNKNOWN_TRIP: Final = 1.0
"""Seconds that a round trip is taken to last before one was measured (RFC 6298 §2.1)."""
RESPONDER_WAITS: Final = 1.1
"""How many times longer the responder waits before it asks, so that one side asks for both; over UDP that stays below
the 30 s after which the least patient NATs forget a mapping."""


class Life(Enum):
    """The verdict of a judge on a path."""

    WELL = "well"
    SUSPECT = "suspect"
    DEAD = "dead"


@final
# long: the verdict on one path depends on all that has happened on it
class LifeJudge:
    """What is known of one path.

    The owner reports every event, calls `judge` at `deadline`, and sends a PING (`ask`) where a method says so.

    Args:
      now: a monotonic time in seconds, as in every method.
      interval: seconds of silence before the path is asked for a sign of life.

    Attributes:
      notice_within: seconds within which the path's death is to be noticed.  Where the interval would take longer, the
        path is asked more often, once a second at most.
      acknowledging: the peer acknowledges what it receives.
      uplink: what is known of the NATs on the path, by which its interval may grow; None where that stays as it is.
      rests: the path stands by for another one, and is asked less often (`REST`).
      said_unasked: something that needs no answer was sent since the peer was last heard, perhaps a signal of a search.
      rtt: smoothed round-trip time in seconds, for display and for windows; None before it was measured.
      trip: the round trip that the path is judged by, in seconds.
      answered, answered_at: the highest token whose PONG has come, and when the last PONG came.
      life: the verdict.
      heard_at: when the peer was last heard.
      suspect_at: since when the path is SUSPECT; infinity while it is not.
      is_late: the path is SUSPECT, but may be late rather than dead, so it is not left for another one yet.
      pause: the longest time in seconds that something was unanswered before the path made progress.
      new_until: until then the path is left as soon as it is suspected, late or not: it has replaced one that was well.
      timer_began: `deadline` may have become sooner.  Whoever waits for the deadline sets this to False.
      false_alarms: how often the path was SUSPECT and made progress again.
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
        self._borne_by_all = interval * RESPONDER_WAITS + MARGIN  # a silence up to this tells nothing about NATs
        self._long = interval * GROWTH - MARGIN
        self._quiet_rounds = 0
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES)
        self._slack = SLACK
        self._alarmed_at = -inf
        self._paused_at = -inf
        self._hinted_at = -inf
        self._answer_by = inf  # deadline for progress after a hint or a doubt
        self._by_hint = False  # it is SUSPECT because of that deadline alone
        self._moved = False  # this host has moved or slept, and there was no progress since
        self._is_outdone = False  # another path was made while this one was SUSPECT
        self.heard_at: float = now
        self._waits_from: float | None = None  # since when something is unanswered without progress
        self._unacknowledged = False
        self._fresh_from = inf  # only since this path fell silent can the peer have received more of our stream
        self._asked = 0
        self._questions: deque[tuple[int, float]] = deque(maxlen=SAMPLES)  # unanswered PINGs, and when they left
        self._misses = 0
        self._arrivals = 0  # since the last PING

    # -- what happens ------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Silence counts from now on."""
        self.heard_at = now

    def succeed(self, other: LifeJudge) -> None:
        """This path was found because `other` is suspected: both may use the same bad link."""
        self._slack, self._alarmed_at = other._slack, other._alarmed_at
        self.pause, self._paused_at = other.pause, other._paused_at

    def begin_acknowledged(self, now: float, *, responder: bool) -> None:
        """The peer acknowledges from now on what it receives.  The time that it took to accept does not count."""
        self.acknowledging = True
        if self._waits_from is not None:
            self._waits_from = now
        if responder:
            self._interval *= RESPONDER_WAITS

    def heard(self, now: float) -> None:
        """Something came from the peer: a sign of life, but no progress."""
        if now - self.heard_at >= self._long:
            self._judge_silence(now)
        self.said_unasked = False
        self.heard_at = now
        self._misses = 0
        self._arrivals += 1
        if self._arrivals == TALK:
            self.timer_began = True

    def sent(self, now: float, position: int = 0) -> None:
        """Data of our stream that the peer is to acknowledge is sent now, from `position` on."""
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
        """The peer has acknowledged on another path what was sent on this one alone.

        The data may have arrived long ago, and its ACK have been lost here: then this is no progress.
        """
        if position > self._fresh_from:
            self.acknowledged(now, all_of_it=all_of_it)
        elif all_of_it:
            self.excuse()
        else:
            self._note_stale(now, position)

    def _note_stale(self, now: float, position: int) -> None:
        """Set `_fresh_from` once an ACK of all that arrived before the silence should have come."""
        if self._waits_from is not None and now >= self._waits_from + self.trip + ACK_DELAY:
            self._fresh_from = position

    def _judge_silence(self, now: float) -> None:
        """Learn about the NATs from a path that is heard after a long silence."""
        if self.uplink is None or self._quiet_time(now) < self._long:
            return
        if self.said_unasked:
            self.uplink.note_unclear(self, now)
        elif self.life is Life.WELL:  # else the answer is late, and a search may have renewed the mappings
            self.uplink.note_borne(asked=self._waits_from is not None)

    def note_flight(self, now: float) -> None:
        """The peer has left this path for another one.  If it was silent for long, its NATs did not bear that."""
        if self.life is Life.WELL:
            self._note_lost(now)

    def _note_lost(self, now: float) -> None:
        if self.uplink is not None and self._quiet_time(now) > self._borne_by_all:
            self.uplink.note_lost(now)

    def excuse(self) -> None:
        """The unacknowledged data that was sent here has been sent again on another path."""
        self._unacknowledged = False
        if not self.asking:
            self._waits_from = None

    def ask(self, now: float) -> int:
        """Returns the token of a PING that is sent now."""
        self._asked += 1
        self._questions.append((self._asked, now))
        self._arrivals = 0
        self.timer_began = True
        if self._waits_from is None:
            self._waits_from = now
        return self._asked

    def hint(self, now: float) -> bool:
        """Something has happened that may have killed the path: unless it answers at once, it is left, late or not.

        Returns whether the path is to be asked, with `ask`.
        """
        self._moved, self.pause = True, 0.0
        return self.doubt(now)

    def doubt(self, now: float) -> bool:
        """What broke another path may have broken this one.  Returns whether it is to be asked, with `ask`."""
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
        """The link has needed `seconds` for something that it carried in the end."""
        if seconds >= self.pause or now - self._paused_at >= PAUSE_LASTS:
            self.pause = max(seconds, self.pause / 2)
            self._paused_at = now
        self._judge_late(now)

    def outdone(self, now: float) -> None:
        """Another path was made meanwhile."""
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
        """Whether the path is well so far, and the next `judge` will suspect it."""
        return now >= self._suspicion_at

    def silence(self, now: float) -> float:
        """Seconds since the peer was last heard."""
        return now - self.heard_at

    def unanswered(self, now: float) -> float:
        """Seconds for which something has been unanswered without progress; 0 while nothing is unanswered."""
        return 0.0 if self._waits_from is None else now - self._waits_from

    def _quiet_time(self, now: float) -> float:
        """Seconds of silence on both sides: until now, or until the time from which something is unanswered."""
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
        # On a new path, count from when the missing data was sent: a round trip and an ACK delay before the last ACK.
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
        # On an idle path, silence counts only from when something is unanswered.
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
        """Form the verdict anew, at `deadline`.  Returns whether the path is to be asked, with `ask`."""
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
            ask = True  # even while an earlier PING is unanswered
        return ask
