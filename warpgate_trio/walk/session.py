"""One session with a peer, as all of its attempts share it: at most one Pipe comes of it.

A call of `auto_connect` has one, and another one where the first was spent; an auxiliary plugin's question has one.
"""

from __future__ import annotations

import dataclasses
from typing import Final, final

import trio

from ..address import PeerAddress
from ..combos import RouteType
from ..errors import PeerRefused
from ..link import Link, Pipe, RefuseReason
from ..report import SignalReport
from ..signal import Delivery, RefusalReason
from ..signal.sender import Mailbox
from .phase_clock import PhaseClock
from .recorder import Recorder

__all__ = ["Evidence", "Reach", "Session"]


@final
@dataclasses.dataclass(slots=True)
class Evidence:
    """What was learned of the peer and of the way to it, for the verdict.

    Attributes:
      signalled: something was sent to it by signal.
      best_delivery: the best that a signal server did with that.
      answered: it answered by signal, other than about the time.
      clock_corrected: it told its time, and signals went by that from then on.
      turned_down: why it would not do what one attempt asked of it.
      token_missing: a server would have relayed to it for who has the server's token.
      wrong_peer: a path led to another node.
      broke_off: a path was found and proven, and broke before the peer accepted.
      relay_forbids: a relay's server let nothing pass to where the peer is.
    """

    signalled: bool = False
    best_delivery: Delivery | None = None
    answered: bool = False
    clock_corrected: bool = False
    turned_down: RefusalReason | None = None
    token_missing: bool = False
    wrong_peer: bool = False
    broke_off: bool = False
    relay_forbids: bool = False

    def note_delivery(self, delivery: Delivery) -> None:
        """A signal server has said what it did."""
        self.best_delivery = delivery if self.best_delivery is None else max(self.best_delivery, delivery)

    @property
    def offline(self) -> bool:
        """Whether every signal server that was asked says that the peer is not there."""
        return self.best_delivery is not None and self.best_delivery <= Delivery.NOBODY_HOME

    def as_report(self) -> SignalReport:
        """What of it is about signals, in plain words."""
        return SignalReport(
            sent=self.signalled,
            delivery=None if self.best_delivery is None else self.best_delivery.name.lower(),
            answered=self.answered,
            clock_corrected=self.clock_corrected,
        )


@final
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What a call allows, and with it every search for a further carrier of its Link.

    Attributes:
      plugins, phases: those to try, in order.
      afs, route_types: only these; None: all.
      peer: its address, as it was known last; None where nothing was.
      signalled: it has heard from us by signal, and so knows where we are.
      relay_first: a relay's path is taken while a better one is still sought, which goes on then.
    """

    plugins: tuple[str, ...]
    phases: tuple[str | None, ...]
    afs: tuple[int, ...] | None = None
    route_types: tuple[RouteType, ...] | None = None
    peer: PeerAddress | None = None
    signalled: bool = False
    relay_first: bool = False


@final
class Session:
    """One session, on the initiator's side.

    Args:
      early_data: what goes to the peer's application with the commit.
      reach: what the call allows.
      dead_after: within how many seconds the death of the Pipe's path is to be noticed; None: the node's own.
      preferred: the carrier that is sought for `link` is better than what that speaks on.

    Raises:
      ValueError: `dead_after` is less than 0.

    Attributes:
      peer: its address, the newest that is known.
      clock: that of the running phase.
      evidence: what was learned, for the verdict.
      attempts: those under way.
      commit_lock: commits are made one at a time, so that the peer accepts at most one.
      epoch: the number of the last commit.
      link: the Link that the session seeks a further carrier for; None: it seeks a Pipe.
      attached: it has one.
      pipe: the result.
      refusal: the peer's no, which ends the walk.
      spent: the peer's application has had its Pipe of this session, and we never saw it.
      over_at: when the session was decided.
      beside: the cancel scope of what runs beside the phases.
    """

    def __init__(
        self,
        peer: PeerAddress,
        session_id: bytes,
        recorder: Recorder,
        *,
        early_data: bytes = b"",
        dead_after: float | None = None,
        reach: Reach | None = None,
        link: Link | None = None,
        preferred: bool = False,
    ) -> None:
        if dead_after is not None and not dead_after >= 0:  # nan is not either
            raise ValueError(f"dead_after is {dead_after}; it is a number of seconds, or 0")
        self.peer = peer
        self.id: Final = session_id
        self.recorder: Final = recorder
        self.early_data: Final = early_data
        self.dead_after: Final = dead_after
        self.reach: Final = reach
        self.clock: Final = PhaseClock()
        self.evidence: Final = Evidence()
        self.attempts: Final[set[Mailbox]] = set()
        self.commit_lock: Final = trio.Lock()
        self.epoch = 0
        self.link: Link | None = link
        self.preferred: Final = preferred
        self.attached: bool = False
        self.pipe: Pipe | None = None
        self.refusal: PeerRefused | None = None
        self.spent: bool = False
        self.over_at: float | None = None
        self.beside: trio.CancelScope | None = None

    @property
    def decided(self) -> bool:
        """Whether nothing more can come of it."""
        return self.pipe is not None or self.attached or self.refusal is not None or self.spent

    def win(self, pipe: Pipe) -> None:
        """Record the result and end the walk.  No checkpoint before or after."""
        self.pipe = pipe
        self.end("another combo has won")

    def win_carrier(self) -> None:
        """The Link has its further carrier.  No checkpoint before or after."""
        self.attached = True
        self.end("another combo has won")

    def learn_refusal(self, refusal: PeerRefused) -> None:
        """The peer was reached and said no: other paths lead to the same answer."""
        if refusal.reason == RefuseReason.SESSION_SPENT:
            self.spent = True
        else:
            self.refusal = self.refusal or refusal
        self.end("the peer refused")

    def end(self, reason: str) -> None:
        """End what runs, in the phase and beside it."""
        if self.over_at is None:
            self.over_at = trio.current_time()
        self.clock.end(reason)
        if self.beside is not None:
            self.beside.cancel(reason=reason)
