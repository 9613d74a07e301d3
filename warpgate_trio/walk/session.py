"""One session with a peer, which all of its attempts share, and which gives at most one Pipe.

A call of `auto_connect` has one session, and a further one where the previous was spent.  A question of an auxiliary
plugin has its own session.
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
    """What a session learned of the peer and of the ways to it, for the verdict.

    Attributes:
      signalled: a signal to the peer was sent, or at least begun.
      best_delivery: the best result that a signal server reported for such a signal.
      answered: the peer answered by signal, with something other than its time.
      clock_corrected: the peer told its time, and later signals were stamped by it.
      turned_down: why the peer refused the request of one attempt.
      token_missing: a server would have relayed if this node had the server's token.
      wrong_peer: a path led to another node.
      broke_off: a path was found and proven, and broke before the peer accepted.
      relay_forbids: a TURN server forbids sending to the peer's address.
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
        """Note a signal server's delivery report."""
        self.best_delivery = delivery if self.best_delivery is None else max(self.best_delivery, delivery)

    @property
    def offline(self) -> bool:
        """Whether every signal server that was asked says that the peer is not connected."""
        return self.best_delivery is not None and self.best_delivery <= Delivery.NOBODY_HOME

    def as_report(self) -> SignalReport:
        """The part about signals, for the report."""
        return SignalReport(
            sent=self.signalled,
            delivery=None if self.best_delivery is None else self.best_delivery.name.lower(),
            answered=self.answered,
            clock_corrected=self.clock_corrected,
        )


@final
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What a call allows to try; it holds for all later searches for a further carrier of its Link, too.

    Attributes:
      plugins, phases: try these, in order.
      afs, route_types: try only these; None tries all.
      peer: the peer's last known address; None where none was known.
      signalled: a signal was sent to the peer, which tells it our address.
      relay_first: begin on a relay, and search for a better path from then on.
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
      early_data: bytes for the peer's application, sent with the COMMIT.
      dead_after: seconds within which a dead path of the Pipe is to be detected; None takes the configuration's.
      reach: what the call allows.
      link: the Link that needs a further carrier; None where the session is to give a Pipe.
      preferred: the carrier sought for `link` is better than the present one, and the Link is to send on it.

    Raises:
      ValueError: `dead_after` is less than 0.

    Attributes:
      peer: the peer's newest known address.
      clock: the clock of the running phase.
      evidence: what was learned, for the verdict.
      attempts: the attempts under way.
      commit_lock: serializes commits, so that the peer accepts at most one.
      epoch: the number of the last COMMIT.
      attached: `link` has its further carrier.
      pipe: the result.
      refusal: the peer's refusal, which ends the walk.
      spent: the peer's application has had the Pipe of this session, but its ACCEPT never arrived here.
      over_at: when the session ended.
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
        """Whether the session has its result, or can have none."""
        return self.pipe is not None or self.attached or self.refusal is not None or self.spent

    def win(self, pipe: Pipe) -> None:
        """Record the result and end the walk.  No checkpoint before or after."""
        self.pipe = pipe
        self.end("another combo has won")

    def win_carrier(self) -> None:
        """Record that the Link has its further carrier, and end the walk.  No checkpoint before or after."""
        self.attached = True
        self.end("another combo has won")

    def learn_refusal(self, refusal: PeerRefused) -> None:
        """End the walk with the peer's refusal, since other paths would lead to the same answer."""
        if refusal.reason == RefuseReason.SESSION_SPENT:
            self.spent = True
        else:
            self.refusal = self.refusal or refusal
        self.end("the peer refused")

    def end(self, reason: str) -> None:
        """Cancel the running phase and what runs beside it."""
        if self.over_at is None:
            self.over_at = trio.current_time()
        self.clock.end(reason)
        if self.beside is not None:
            self.beside.cancel(reason=reason)
