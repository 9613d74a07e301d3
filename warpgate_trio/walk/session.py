"""One call of `auto_connect`, as all of its attempts share it: at most one Pipe comes of it (DESIGN §4.2)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, final

import trio

from ..link import Pipe, RefuseReason

if TYPE_CHECKING:
    from ..address import PeerAddress
    from ..errors import PeerRefused
    from ..signal import Delivery, RefusalReason
    from .attempt import Attempt
    from .recorder import Recorder

__all__ = ["HOLD", "Session"]

HOLD: Final = 1.0
"""Seconds that a phase waits for a handshake that is under way when its budget ends: a round trip, and a loss in it.
Without, at 5 % loss, two paths in 600 were cut short that had just answered."""


@final
class Session:
    """One call of `auto_connect`, on the initiator's side: at most one Pipe comes of it.

    Attributes:
      peer: its address, the newest that is known.
      refreshed: the peer was asked for that.
      turned_down: why the peer would not do what one attempt asked of it.
      commit_lock: commits are made one at a time (DESIGN §4.2).
      pipe: the result.
      refusal: the peer's no, which ends the walk.
      phases: those that have begun.
      scope: the running phase's cancel scope.
      beside: that of what runs beside the phases.
      over_at: when the session was decided.
      phase_deadline: when the running phase is over.
      attempts: those under way.
      broke_off, wrong_peer, clock_corrected, signalled, answered, best_delivery: what was learned, for
      the verdict.
    """

    def __init__(self, peer: PeerAddress, session_id: bytes, recorder: Recorder, *, early_data: bytes = b"") -> None:
        self.peer = peer
        self.refreshed: bool = False
        self.turned_down: RefusalReason | None = None
        self.id = session_id
        self.recorder: Final = recorder
        self.early_data: Final = early_data
        self.commit_lock: Final = trio.Lock()
        self.epoch = 0
        self.pipe: Pipe | None = None
        self.refusal: PeerRefused | None = None
        self.spent: bool = False
        self.phases: Final[set[str | None]] = set()
        self.scope: trio.CancelScope | None = None
        self.beside: trio.CancelScope | None = None
        self.over_at: float | None = None
        self.phase_deadline: float = math.inf
        self._budget_ends: float = math.inf
        self._held_until: float = -math.inf
        self._suspended = False
        self.broke_off = False
        self.wrong_peer = False
        self.clock_corrected = False
        self.attempts: set[Attempt] = set()
        self.signalled = False
        self.answered = False
        self.best_delivery: Delivery | None = None

    def win(self, pipe: Pipe) -> None:
        """Record the result and end the walk.  No checkpoint before or after."""
        self.pipe = pipe
        self.end_walk("another combo has won")

    def learn_refusal(self, refusal: PeerRefused) -> None:
        """The peer was reached and said no: other paths lead to the same answer."""
        if refusal.reason == RefuseReason.SESSION_SPENT:
            self.spent = True
        else:
            self.refusal = self.refusal or refusal
        self.end_walk("the peer refused")

    def begin_phase(self, scope: trio.CancelScope, budget: float) -> None:
        """A phase has begun; it ends in `budget` seconds at the latest, but for what holds or suspends that."""
        self.scope = scope
        self._budget_ends = trio.current_time() + budget
        self._held_until = -math.inf
        self._set_deadline()

    def shorten_phase(self, budget: float) -> None:
        """The budget is to end in so many seconds, if that is earlier than it would, and no commit is under way."""
        if not self._suspended:
            self._budget_ends = min(self._budget_ends, trio.current_time() + budget)
            self._set_deadline()

    def hold_phase(self) -> None:
        """The phase is not to end within `HOLD` seconds, if that is no more than `HOLD` seconds after its budget."""
        self._held_until = trio.current_time() + HOLD
        self._set_deadline()

    def _set_deadline(self) -> None:
        if self.scope is not None and not self._suspended:
            self.phase_deadline = max(self._budget_ends, min(self._held_until, self._budget_ends + HOLD))
            self.scope.deadline = self.phase_deadline

    @contextmanager
    def budget_suspended(self) -> Iterator[None]:
        """While a commit is under way the phase's budget does not run: it is for finding paths, and one was found.

        The commit has a bound of its own (the peer's silence), and the walk's deadline stands.
        """
        if self.scope is None:
            yield
            return
        began = trio.current_time()
        self.scope.deadline, self._suspended = math.inf, True
        try:
            yield
        finally:
            self._suspended = False
            self._budget_ends += trio.current_time() - began
            self._set_deadline()

    def end_walk(self, reason: str = "no phase is left") -> None:
        """End what runs, in the phase and beside it."""
        if self.over_at is None:
            self.over_at = trio.current_time()
        for scope in (self.scope, self.beside):
            if scope is not None:
                scope.cancel(reason=reason)
