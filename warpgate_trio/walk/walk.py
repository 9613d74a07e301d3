"""The phase walk: direct → punch → spray → relay, each phase one nursery, the first Pipe wins.

`walk` plans the pair's combos, then for each phase opens one nursery and starts every combo of the phase as a child
task. The task that gets its COMMIT accepted records the Pipe and cancels the phase in one step
(`walk.session.Session`); later phases never start.  A punch that was merely out of time is tried again beside the
sprays.  When no phase had a Pipe to give, the hopeless combos get one last round, and then the verdict is made from
what was learned on the way.

Two kinds of direct combos outlast their phase, in a nursery of the walk (`_Beside`).  How long dialling takes goes by
the distance to the peer, which nobody knows yet; the phases go by the distance to our own signal server.  So a likely
combo holds the direct phase for its budget, and goes on beside the next ones.  A combo towards a private address of
another network mostly meets silence: it holds nothing, and goes on beside whatever there is.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from ..address.nat_profile import Filtering
from ..combos import Combo, Likelihood
from ..errors import ConnectError, SignalError, panics_as_errors, printable
from ..link import Pipe
from ..names import describe_failures
from ..nurseries import open_background_nursery, open_bare_nursery
from ..punch.outlook import is_unforeseeable
from ..report import Outcome, Verdict
from ..signal import Delivery
from .attempt import EXPECTED, Attempt
from .planned_walk import PlannedWalk
from .session import Session
from .verdicts import decide_verdict, take_stock

if TYPE_CHECKING:
    from ..config import Budgets

__all__ = ["walk"]

logger: logging.Logger = logging.getLogger(__name__)

PHASE_SLACK: Final = 0.5
"""Seconds of a punch beyond its round trips, of which it takes seven, or three and a half of a signal's: a lost SYN."""
UNLIKELY_SLACK: Final = 0.1
"""The same where a punch is not likely, and sprays are worth it: one that meets no loss has its time, and any other is
tried again beside them."""
REFRESH_DELAY: Final = 0.1
"""Seconds of a walk after which the peer is asked for its present address: most walks are over by then."""


async def walk(planned: PlannedWalk, session: Session, *, timeout: float) -> Pipe:
    """Take the phases until one gives a Pipe.

    Args:
      timeout: seconds for all of it.

    Raises:
      ConnectError: there is no Pipe; its report says why.
    """
    recorder = session.recorder
    for combo in planned.combos:
        recorder.planned(combo)
    timed_out = False
    try:
        with trio.move_on_after(timeout) as whole:
            async with open_bare_nursery() as nursery:
                session.beside = nursery.cancel_scope
                beside = _Beside(nursery)
                for phase in planned.phases:
                    await _run_phase(planned, session, phase, beside)
                    if _over(session):
                        break
                else:
                    await _last_round(planned, session, beside)
                session.end_walk()
        timed_out = whole.cancelled_caught
    except BaseException:
        if session.pipe is not None:  # cancelled, or a strict plugin's error, after the win: nobody gets the Pipe
            session.pipe.abort()
        raise
    if session.pipe is not None:
        session.pipe.report = recorder.finish(Verdict.CONNECTED, trio.current_time(), session_id=session.id)
        return session.pipe
    verdict = decide_verdict(session, planned, timed_out=timed_out)
    for sentence in describe_failures(planned.unresolved().names):
        recorder.note(sentence, trio.current_time())
    known, lacks = take_stock(session, planned)
    raise ConnectError(recorder.finish(verdict, trio.current_time(), session_id=session.id, known=known, lacks=lacks))


@final
class _Beside:
    """What runs beside the phases: direct combos that outlast theirs, and the question where the peer is now.

    Args:
      nursery: the walk's own.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._combos: dict[Combo, _Running] = {}
        self._refreshed: trio.Event | None = None

    def start(self, planned: PlannedWalk, session: Session, combo: Combo) -> trio.Event:
        """Run a combo from now on; the event tells its end."""
        running = self._combos[combo] = _Running(trio.current_time())
        self._start(partial(_run_combo, planned, session, combo), running.ended)
        return running.ended

    def refresh(self, ask: Callable[[], Awaitable[None]]) -> None:
        """Ask where the peer is, if nobody does so now."""
        if self._refreshed is None or self._refreshed.is_set():
            self._refreshed = trio.Event()
            self._start(ask, self._refreshed)

    def _start(self, work: Callable[[], Awaitable[None]], ended: trio.Event) -> None:
        async def run() -> None:
            try:
                await work()
            finally:
                ended.set()

        self._nursery.start_soon(run)

    async def wait_refreshed(self) -> None:
        """Wait until the peer has told where it is, and what that has added is under way; or until it will not."""
        if self._refreshed is not None:
            await self._refreshed.wait()

    async def wait_ended(self, likely: float, elsewhere: float) -> None:
        """Wait for the combos, for so many seconds from the start of each."""
        for combo, running in list(self._combos.items()):
            with trio.move_on_at(running.since + (elsewhere if combo.elsewhere else likely)):
                await running.ended.wait()


@final
@dataclasses.dataclass(frozen=True, slots=True)
class _Running:
    since: float
    ended: trio.Event = dataclasses.field(default_factory=trio.Event)


def _over(session: Session) -> bool:
    return session.pipe is not None or session.refusal is not None or session.spent


async def _last_round(planned: PlannedWalk, session: Session, beside: _Beside) -> None:
    """Every hopeless combo once: a profile can be wrong, and there is nothing left to lose.

    Then what runs beside gets the time of a direct phase at least.  A likely combo gets that of a handshake, in which
    three SYNs may be lost (7 s, RFC 6298 §5.5), unless every signal server says that the peer is not there.
    """
    view = planned.home.view
    hopeless = [c for c in planned.combos if c.likelihood is Likelihood.HOPELESS]
    if hopeless:
        await _run_combos(planned, session, None, hopeless, view.budgets.direct_max, beside)
    await beside.wait_refreshed()
    direct = phase_budget("direct", view.budgets, view.signal_rtt)
    offline = session.best_delivery is not None and session.best_delivery <= Delivery.NOBODY_HOME
    likely = direct if offline and not session.answered else max(direct, view.budgets.handshake)
    await beside.wait_ended(likely, direct)
    async with session.commit_lock:  # whoever has found a path by now may have it accepted
        pass


async def _run_phase(planned: PlannedWalk, session: Session, phase: str | None, beside: _Beside) -> None:
    view = planned.home.view
    session.phases.add(phase)
    chosen = [c for c in planned.combos if c.phase == phase and c.likelihood is not Likelihood.HOPELESS]
    delay = phase_budget("punch", view.budgets, view.signal_rtt) if chosen else 0.0
    again = _plan_second_tries(planned, session, delay=delay) if phase == "spray" else []
    if not chosen and not again:
        return

    def lasts() -> float:
        if phase == "punch" and view.signal_rtt is not None and _sprays_are_better(planned, session, chosen):
            return 3.5 * view.signal_rtt + UNLIKELY_SLACK
        own = phase_budget(phase, view.budgets, view.signal_rtt) if chosen else 0.0
        return max(own, delay + phase_budget("punch", view.budgets, view.signal_rtt)) if again else own

    budget = lasts()
    follows = _something_follows(planned, phase)
    if planned.ceiling is not None:
        budget = planned.ceiling
    elif not follows:
        budget = max(budget, view.budgets.signal)  # nothing comes after it that would be worth hurrying for
    elif view.signal_rtt is None:
        async with open_background_nursery() as watching:
            watching.start_soon(_shorten_phase, planned, session, lasts)
            await _run_combos(planned, session, phase, [*chosen, *again], budget, beside, follows=True)
        return
    await _run_combos(planned, session, phase, [*chosen, *again], budget, beside, follows=follows)


def _sprays_are_better(planned: PlannedWalk, session: Session, punches: Sequence[Combo]) -> bool:
    """Whether nobody foretells one side's ports, and the other side may let in by port: most of these cannot punch."""
    sprays = [c for c in planned.combos if c.phase == "spray" and c.likelihood is not Likelihood.HOPELESS]
    if "spray" not in planned.phases or not sprays or any(c.likelihood is Likelihood.LIKELY for c in punches):
        return False
    ours, peers = (side.nat_profiles.get(None, 4).udp for side in (planned.home.view.address, session.peer))
    return any(
        is_unforeseeable(hard) and easy.filtering in (Filtering.UNKNOWN, Filtering.ADDRESS_AND_PORT_DEPENDENT)
        for hard, easy in ((ours, peers), (peers, ours))
    )


def _something_follows(planned: PlannedWalk, phase: str | None) -> bool:
    """Whether a later phase has a combo that may work, or a second try."""
    later = planned.phases[planned.phases.index(phase) + 1 :]
    if phase == "punch" and "spray" in later:
        return True
    return any(c.phase in later and c.likelihood is not Likelihood.HOPELESS for c in planned.combos)


def _plan_second_tries(planned: PlannedWalk, session: Session, *, delay: float) -> list[Combo]:
    """The punches that only ran out of time, as combos of the spray phase.

    They wait for `delay` seconds, in which what punches over UDP has met the peer or not: a NAT may number the ports of
    both transports in one row, and then nobody foretells the ports of two punches at once (seen with the kernel's).

    TCP punches in a phase of its own, of a second or two, so a late signal and a lost SYN are enough to miss it: at 5 %
    loss, 8 of 8,000 pairs did that could have met.  A new try has new ports, a new instant, and a phase that is longer.
    """
    again = [
        dataclasses.replace(combo, phase="spray", delay=combo.delay + delay)
        for combo in planned.combos
        if combo.phase == "punch" and session.recorder.outcome(combo) is Outcome.TIMED_OUT
    ]
    for combo in again:
        planned.combos.append(combo)
        session.recorder.planned(combo)
    return again


async def _shorten_phase(planned: PlannedWalk, session: Session, lasts: Callable[[], float]) -> None:
    """A node that was just opened learns in mid-phase how far its signals go, and a little later how its NAT gives out
    ports: from then on the phase goes by that."""
    try:
        await planned.home.wait_signals()
    except SignalError:
        return
    session.shorten_phase(lasts())
    nat = planned.home.view.nat
    if nat is not None:
        await nat.wait_looked("udp", 4)
        session.shorten_phase(lasts())


async def _run_combos(
    planned: PlannedWalk,
    session: Session,
    phase: str | None,
    combos: Sequence[Combo],
    budget: float,
    beside: _Beside,
    *,
    follows: bool = False,
) -> None:
    """One nursery, every combo a child task; ends with the last of them, with the first Pipe, or with the budget.

    Where another phase `follows`, direct combos that outlast this one run beside it, and the nursery waits for the
    likely ones.
    """
    session.recorder.phase(phase or "last round", trio.current_time())
    with trio.CancelScope() as scope:
        session.begin_phase(scope, budget)
        try:
            async with open_bare_nursery() as nursery:
                for combo in combos:
                    if not follows or not _outlasts(combo):
                        nursery.start_soon(_run_combo, planned, session, combo)
                        continue
                    ended = beside.start(planned, session, combo)
                    if not combo.elsewhere:
                        nursery.start_soon(ended.wait)
                if planned.refresh is not None and not session.refreshed:
                    beside.refresh(partial(_refresh_address, planned, session, beside))
        finally:
            session.scope = None


def _outlasts(combo: Combo) -> bool:
    return combo.phase == "direct" and (combo.elsewhere or combo.likelihood is Likelihood.LIKELY)


async def _refresh_address(planned: PlannedWalk, session: Session, beside: _Beside) -> None:
    """A walk that takes a while may be on its way to where the peer was: ask where it is, and go there too."""
    assert planned.refresh is not None
    await trio.sleep(REFRESH_DELAY)
    try:
        fresh = await planned.refresh(session.peer)
    except EXPECTED as error:
        logger.debug("the address could not be refreshed: %s", error)
        return
    session.refreshed = session.answered = True
    if fresh == session.peer:
        return
    session.peer = fresh
    session.recorder.note("the peer's address was old; it told us the present one", trio.current_time())
    tried = {combo.aim for combo in planned.combos}
    for combo in planned.replan(fresh):
        if combo.aim not in tried:
            planned.combos.append(combo)
            session.recorder.planned(combo)
            if combo.phase in session.phases and combo.likelihood is not Likelihood.HOPELESS:
                beside.start(planned, session, combo)


async def _run_combo(planned: PlannedWalk, session: Session, combo: Combo) -> None:
    if combo.delay:
        await trio.sleep(combo.delay)  # pacing, see `Combo.delay`
    recorder = session.recorder
    recorder.started(combo, trio.current_time())
    attempt = Attempt.of_combo(planned.home, session, combo, planned.home.view.host.entropy(16))
    cancelled = False
    try:
        with panics_as_errors():
            await attempt.make_pipe(planned.factories[combo.plugin])
    except trio.Cancelled:
        cancelled = True
        raise
    except Exception as error:
        expected = isinstance(error, EXPECTED)
        outcome = Outcome.TIMED_OUT if isinstance(error, trio.TooSlowError) else Outcome.FAILED
        recorder.ended(combo, outcome, trio.current_time(), error=describe(error))
        log = logger.debug if expected else logger.warning
        log("%s over %s failed: %s", combo.plugin, combo.target, error, exc_info=not expected)
        if not expected and planned.strict:
            raise
    finally:
        now = trio.current_time()
        if attempt.won:
            recorder.ended(combo, Outcome.WON, now)
        elif cancelled:
            since = session.over_at if session.over_at is not None else session.phase_deadline
            outcome = Outcome.LOST if _over(session) else Outcome.TIMED_OUT
            recorder.ended(combo, outcome, now, cleanup=max(now - since, 0.0))


def describe(error: BaseException) -> str:
    """One sentence for the report."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
        if (
            error.strerror.startswith("Error connecting to (") and error.errno is not None
        ):  # Trio's wrapping of the reason
            text = os.strerror(error.errno)
    text = printable(text or type(error).__name__)
    return text if isinstance(error, EXPECTED) else f"{type(error).__name__}: {text}"


def phase_budget(phase: str | None, budgets: Budgets, signal_rtt: float | None) -> float:
    """Seconds that a phase may take (DESIGN §8); without a measured round trip, its largest."""
    if phase == "direct":
        if signal_rtt is None:
            return budgets.direct_max
        return min(max(3 * signal_rtt, budgets.direct_min), budgets.direct_max)
    if phase == "punch":
        if signal_rtt is None:  # there is no signal server yet; a direct phase may have had nothing to wait for
            return budgets.direct_max + budgets.punch
        return max(budgets.punch, 4 * signal_rtt + PHASE_SLACK)
    if phase == "spray":
        return max(budgets.spray, 5 * (signal_rtt or 0.0) + 4 * PHASE_SLACK)
    return budgets.relay_base + 12 * (signal_rtt if signal_rtt is not None else budgets.direct_max / 3)
