"""The walk: direct → punch → spray → relay, each phase one nursery, the first Pipe wins.

`Walk.run` plans the pair's combos.  For each phase it opens a nursery and starts every combo of the phase as a child
task.  The task whose COMMIT is accepted records the Pipe and cancels the phase in one step (`Session.win`); later
phases never start.  A punch that only ran out of time is tried again beside the sprays.  Where no phase gives a Pipe,
the hopeless combos get one last round.  Then the verdict is made from what was learned on the way.

Two kinds of direct combos outlast their phase, in a nursery of the walk (`Beside`):

* A likely combo holds the direct phase for its budget, and goes on beside the next phases.  The time that dialling
  takes depends on the distance to the peer, which is not known yet.  The phases' budgets depend on the distance to our
  own signal server.
* A combo towards a private address of another network mostly gets no answer.  It does not hold the phase, and goes on
  beside the next ones.

Relay first: where the call asks for it, the combos of the relay phase begin at once, beside the other phases.  A Pipe
of theirs ends the walk like any other.  From then on the path keeper (`warpgate_trio.node.path_keeper`) searches for a
better path.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Final, final

import trio

from ..address import PeerAddress
from ..address.nat_profile import NatProfiles
from ..combos import Combo, RouteType
from ..errors import ConnectError, RelayForbidden, SignalError, panics_as_errors, printable
from ..link import EARLY_DATA_LIMIT, Link, Pipe
from ..names import describe_failures
from ..nurseries import leaves, open_background_nursery, open_bare_nursery
from ..report import ConnectReport, Known, Outcome, Verdict, WalkEvent
from ..signal import Cancel
from ..signal.core import OWNER
from .attempt import EXPECTED, Factory
from .beside import Beside
from .calling import CallingAttempt
from .home import WalkHome
from .phases import PHASE_TABLE, phase_budget
from .plan import Plan
from .recorder import Recorder
from .session import Reach, Session
from .under_way import UnderWay
from .verdicts import decide_verdict, describe_nats, find_barriers, take_stock

__all__ = ["Walk"]

logger: logging.Logger = logging.getLogger(__name__)

MAX_SESSIONS_OF_A_CALL: Final = 4
"""Sessions of one call, at most: a new one follows where an ACCEPT was lost with its carrier, which a peer must not be
able to repeat for ever."""
REFRESH_DELAY: Final = 0.1
"""Seconds after which a walk asks the peer for its present address: most walks are over by then."""


@final
# long: one call from its plan to its end, phase by phase
class Walk:
    """One call, from its plan to a Pipe or a `ConnectError`.

    Args:
      peer: the address to call; the home plans with the peer's other known addresses, too.
      plugins: the plugins to try.
      phases: the phases to run, in order; None is the phase of plugins without one (a pinned call).
      afs, route_types: try only these; None tries all.
      factories: factories of plugins' instances, in place of the home's.
      ceiling: seconds that replace the phases' budgets (the plugin's timeout, in a pinned call); None: the budgets.
      refresh: asks the peer for its present address; None where the address is to be taken as it is.
      early_data: bytes that the peer's application receives with the Pipe.
      dead_after, link, preferred: see `Session`.
      relay_first: begin with the relays, where they are allowed.
      reach: what later searches for the Pipe's Link may use; None: what this walk may try.
      only: which combos of the plan to try; None tries all.
      mentioned: which hopeless combos to report though `only` excludes them.
      on_event: called with each step.

    Raises:
      ValueError: there is too much early data, or `dead_after` is less than 0.
    """

    def __init__(
        self,
        home: WalkHome,
        peer: PeerAddress,
        *,
        plugins: Sequence[str],
        phases: Sequence[str | None],
        afs: Collection[int] | None = None,
        route_types: Collection[RouteType] | None = None,
        factories: Mapping[str, Factory] | None = None,
        ceiling: float | None = None,
        refresh: Callable[[PeerAddress], Awaitable[PeerAddress]] | None = None,
        early_data: bytes = b"",
        dead_after: float | None = None,
        link: Link | None = None,
        only: Callable[[Combo], bool] | None = None,
        mentioned: Callable[[Combo], bool] | None = None,
        preferred: bool = False,
        relay_first: bool = False,
        reach: Reach | None = None,
        on_event: Callable[[WalkEvent], None] | None = None,
    ) -> None:
        if len(early_data) > EARLY_DATA_LIMIT:
            raise ValueError(f"early_data is {len(early_data)} bytes; a commit carries at most {EARLY_DATA_LIMIT}")
        self._home: Final = home
        self._peer: Final = peer
        self._plugins: Final = plugins
        self._phases: Final = phases
        self._afs: Final = afs
        self._route_types: Final = route_types
        self._factories: Final = factories or {}
        self._ceiling: Final = ceiling
        self._refresh: Final = refresh
        self._early_data: Final = early_data
        self._dead_after: Final = dead_after
        self._link: Final = link
        self._only: Final = only
        self._mentioned: Final = mentioned
        self._preferred: Final = preferred
        self._hurried: Final = link is not None and not preferred
        self._reach: Final = reach or Reach(
            plugins=tuple(plugins),
            phases=tuple(phases),
            afs=None if afs is None else tuple(afs),
            route_types=None if route_types is None else tuple(route_types),
            relay_first=relay_first and "relay" in phases,
        )
        self._recorder: Final = Recorder(peer=peer.peer_id, now=trio.current_time(), on_event=on_event)
        self._plan = Plan((), phases, self._recorder)
        self._begin_session()

    def _begin_session(self) -> None:
        session_id = self._home.view.host.entropy(16)
        self._session = Session(
            self._peer,
            session_id,
            self._recorder,
            early_data=self._early_data,
            dead_after=self._dead_after,
            reach=self._reach,
            link=self._link,
            preferred=self._preferred,
        )
        self._begun: set[str | None] = set()
        self._relays: dict[Combo, trio.Event] = {}  # combos that began before their phase, with the event of their end
        self._relays_turn = trio.Event()  # set when the relay phase begins
        self._under_way = UnderWay()
        self._refreshed = trio.Event()

    async def run(self, *, deadline: float) -> Pipe:
        """Plan, and run the phases until one gives a Pipe, by a deadline on Trio's clock.

        Raises:
          ConnectError: no Pipe was made; its report says why.
          trio.ClosedResourceError: the node was closed.
        """
        self._plan = Plan(self._plan_with(self._peer), self._phases, self._recorder)
        for left in reversed(range(MAX_SESSIONS_OF_A_CALL)):
            try:
                with self._home.call():
                    pipe = await self._run_session(deadline)
                assert pipe is not None
                self._home.count_walk(Verdict.CONNECTED)
                return pipe
            except ConnectError as error:
                # The peer's application has had the one Pipe of this session, on a carrier that died before the ACCEPT
                # arrived here.  That Pipe is broken there by now; a new session may give a new one.
                if not self._session.spent or not left:
                    self._home.count_walk(error.verdict)
                    raise
                self._note("a path broke before the peer's ACCEPT arrived; tried again")
            finally:
                if self._session.evidence.signalled and self._session.pipe is None and not self._session.attached:
                    self._home.say_goodbye(partial(self._tell_that_it_is_over, self._session))
            self._begin_session()
        raise AssertionError("the last session returns or raises")

    async def search(self, *, deadline: float, noted: bool = True) -> None:
        """Find a further carrier for `link` and attach it; errors as in `run`.

        Where the carrier is `preferred`, the Link sends on it when this returns.  Otherwise the search is urgent: it
        does not wait for the direct phase, and no phase ends before a signal server is connected.

        Args:
          noted: whether the Link's Pipes report this search.
        """
        assert self._link is not None
        log, session = self._link.path_log, self._session
        self._plan = Plan(self._plan_with(self._peer), self._phases, self._recorder)
        try:
            with self._home.call():
                await self._run_session(deadline)
        except ConnectError as error:
            if noted:
                log.note_search(error.report, began=self._recorder.began)
            raise
        finally:
            if session.attached and noted:  # even if the search was cancelled at that moment
                log.note_search(self._finish(Verdict.CONNECTED), began=self._recorder.began)
            if session.evidence.signalled and not session.attached:
                self._home.say_goodbye(partial(self._tell_that_it_is_over, session))

    @property
    def committing(self) -> trio.Lock:
        """The lock that is held during a commit, which the peer may have accepted already."""
        return self._session.commit_lock

    async def _tell_that_it_is_over(self, session: Session) -> None:
        if not self._home.has_signals():
            return  # then no signal of the session can have reached the peer
        try:
            await self._home.signals.send(
                session.peer, Cancel(), owner=OWNER, session=session.id, attempt=None, to_peers_servers=False
            )
        except SignalError as error:
            logger.debug("the peer could not be told that the session is over: %s", error)

    async def _run_session(self, deadline: float) -> Pipe | None:
        """Run one session; returns its Pipe, or None where it attached a further carrier."""
        session = self._session
        self._plan.record()
        timed_out = False
        try:
            with trio.CancelScope(deadline=max(deadline, trio.current_time())) as whole:
                async with open_bare_nursery() as nursery:
                    session.beside = nursery.cancel_scope
                    beside = Beside(nursery)
                    if "relay" in self._phases and any(each.server is None for each in self._plan.of_phase("relay")):
                        # Prepare the TURN servers, so that an allocation takes one round trip when it is needed.
                        nursery.start_soon(self._home.view.relays.prime)
                    if self._reach.relay_first:
                        self._begin_relays(self._plan.of_phase("relay"), beside)
                    for phase in self._phases:
                        await self._run_phase(phase, beside)
                        if session.decided:
                            break
                    else:
                        await self._last_round(beside)
                    session.end("no phase is left")
            timed_out = whole.cancelled_caught
        except BaseException:
            if session.pipe is not None:  # cancelled, or failed in a strict plugin, after the win: nobody gets the Pipe
                session.pipe.abort()
            raise
        if session.pipe is not None:
            relayed = session.pipe.path.phase == "relay"
            barriers = find_barriers(session, self._phases, self._home.this_side(), self._our_nats) if relayed else ()
            session.pipe.report = self._finish(Verdict.CONNECTED, known=barriers)
            return session.pipe
        if session.attached:
            return None
        raise self._failure(timed_out=timed_out)

    def _failure(self, *, timed_out: bool) -> ConnectError:
        session, unresolved = self._session, self._home.unresolved()
        verdict = decide_verdict(
            session,
            planned=bool(self._plan),
            timed_out=timed_out,
            unresolved=unresolved,
            relays=self._has_relay(),
            better=self._preferred,
        )
        for sentence in describe_failures(unresolved.names):
            self._note(sentence)
        path = None if self._link is None else self._link.path
        known, lacks = take_stock(
            session,
            self._phases if path is None or path.phase == "relay" else (),  # else nothing lacking would make it better
            self._home.this_side(),
            self._our_nats,
            no_common_server=self._plan.lacks_a_common_server,
        )
        return ConnectError(self._finish(verdict, known=known, lacks=lacks))

    @property
    def _our_nats(self) -> NatProfiles:
        return self._home.view.address.nat_profiles

    def _finish(self, verdict: Verdict, *, known: Collection[Known] = (), lacks: Sequence[str] = ()) -> ConnectReport:
        session = self._session
        return self._recorder.finish(
            verdict,
            trio.current_time(),
            session_id=session.id,
            known=known,
            lacks=lacks,
            signals=session.evidence.as_report(),
            peer_nats=describe_nats(session.peer.nat_profiles),
        )

    def _has_relay(self) -> bool:
        """Whether the walk had a relay to fall back to.

        Rendezvous servers do not count where neither side has the token, nor those that do not relay, as known by now.
        """
        relays = [each for each in self._plan_with(self._session.peer) if each.phase == "relay" and not each.hopeless]
        can = any(each.server is None or not self._session.evidence.token_missing for each in relays)
        return "relay" in self._phases and can

    def _note(self, sentence: str) -> None:
        self._recorder.note(sentence, trio.current_time())

    def _plan_with(self, peer: PeerAddress) -> Sequence[Combo]:
        plan = self._home.plan(peer, self._plugins, self._afs, self._route_types)
        if self._only is None:
            return plan
        for combo in plan:
            if combo.hopeless and not self._only(combo) and self._mentioned is not None and self._mentioned(combo):
                self._recorder.planned(combo)
        return [combo for combo in plan if self._only(combo)]

    # -- phases --------------------------------------------------------------------------------------------------------

    def _begin_relays(self, relays: Sequence[Combo], beside: Beside) -> None:
        """Start relay combos beside the phases.  Their phase waits for them, and tries failed ones again."""
        self._under_way.begin(relays)
        for combo in relays:
            self._relays[combo] = beside.start(combo, partial(self._run_combo, combo))

    async def _hold_back(self, attempt: CallingAttempt) -> None:
        """Delay the commit of a relay that began before its phase.

        Where the peer has promised to accept, and so the Pipe may leave the relay later, likely direct combos have a
        short time to be first.  Otherwise the commit waits for the relay phase.
        """
        if attempt.promised:
            await self._under_way.yield_to_direct(self._home.view.signal_rtt, dials=attempt.called_ahead)
        else:
            await self._relays_turn.wait()

    async def _run_phase(self, phase: str | None, beside: Beside) -> None:
        view, rule = self._home.view, PHASE_TABLE[phase]
        self._begun.add(phase)
        if phase == "relay":
            self._relays_turn.set()
        chosen = self._plan.of_phase(phase)
        repeated = phase_budget(rule.repeats, view.budgets, view.signal_rtt) if rule.repeats is not None else 0.0
        delay = repeated if chosen else 0.0
        again = self._plan.add_second_tries(phase, delay=delay)
        if not chosen and not again:
            return

        def lasts() -> float:
            rtt = view.signal_rtt
            if (
                rule.short_budget is not None
                and rtt is not None
                and self._plan.sprays_are_better(chosen, view.address, self._session.peer)
            ):
                return rule.short_budget(rtt)
            own = rule.budget(view.budgets, rtt) if chosen else 0.0
            if rule.repeats is None or not again:
                return own
            return max(own, delay + phase_budget(rule.repeats, view.budgets, rtt))

        combos = [*chosen, *again]
        follows = partial(self._plan.something_follows, phase)
        if self._ceiling is not None:
            await self._run_combos(phase, combos, self._ceiling, beside, follows=follows)
            return
        cold, followed = view.signal_rtt is None, follows()
        # The last phase need not hurry.
        budget = lasts() if followed else max(lasts(), view.budgets.signal)
        async with open_background_nursery() as watching:
            if cold and (followed or self._hurried):
                watching.start_soon(self._shorten_phase, lasts)
            if not followed:
                watching.start_soon(self._make_room, follows, lasts)
            await self._run_combos(
                phase, combos, math.inf if cold and self._hurried else budget, beside, follows=follows
            )

    async def _shorten_phase(self, lasts: Callable[[], float]) -> None:
        """Shorten the phase once a newly opened node knows its signal round trip, and again once it knows how its NAT
        assigns ports."""
        try:
            await self._home.wait_signals()
        except SignalError:
            self._session.clock.shorten(lasts())
            return
        self._session.clock.shorten(lasts())
        await self._home.view.nat.wait_looked("udp", 4)
        self._session.clock.shorten(lasts())

    async def _make_room(self, follows: Callable[[], bool], lasts: Callable[[], float]) -> None:
        """Shorten the last phase to its regular length where a refreshed address adds combos to later phases."""
        began = trio.current_time()
        await self._refreshed.wait()
        if follows():
            self._session.clock.shorten(began + lasts() - trio.current_time())

    async def _last_round(self, beside: Beside) -> None:
        """Try every hopeless combo once, as a profile may be wrong, and wait for what runs beside the phases.

        Combos beside the phases get the time of a direct phase from their start.  A likely combo gets that of a
        handshake, in which three SYNs may be lost (7 s, RFC 6298 §5.5), unless every signal server says that the peer
        is not connected.
        """
        view, evidence = self._home.view, self._session.evidence
        hopeless = self._plan.hopeless()
        if hopeless:
            await self._run_combos(None, hopeless, view.budgets.direct_max, beside)
        await beside.wait_refreshed()
        direct = phase_budget("direct", view.budgets, view.signal_rtt)
        gone = evidence.offline and not evidence.answered
        await beside.wait_ended(likely=direct if gone else max(direct, view.budgets.handshake), elsewhere=direct)
        async with self._session.commit_lock:  # a commit that is under way may still be accepted
            pass

    async def _run_combos(
        self,
        phase: str | None,
        combos: Sequence[Combo],
        budget: float,
        beside: Beside,
        *,
        follows: Callable[[], bool] = lambda: False,
    ) -> None:
        """Run combos in one nursery, until the last one ends, a Pipe is made, or the budget is over.

        Combos that may outlast the phase run beside it, and the phase waits for them.  Where another phase `follows`,
        it does not wait for those towards another network, and in an urgent search for none of them.
        """
        self._recorder.phase(phase or "last round", trio.current_time())
        begun = {combo: ended for combo, ended in self._relays.items() if combo in combos and not ended.is_set()}
        self._under_way.begin(combo for combo in combos if combo not in begun)
        outlasting = [
            combo
            for combo in combos
            if PHASE_TABLE[combo.phase].goes_on and (combo.elsewhere or combo.likely or self._hurried)
        ]

        def holds(combo: Combo) -> bool:
            return combo in outlasting and not (follows() and (combo.elsewhere or self._hurried))

        with self._session.clock.phase(budget):
            async with open_bare_nursery() as nursery:
                for combo in combos:
                    if combo in begun:
                        nursery.start_soon(begun[combo].wait)
                    elif combo in outlasting:
                        beside.start(combo, partial(self._run_combo, combo))
                    else:
                        nursery.start_soon(self._run_combo, combo)
                nursery.start_soon(self._under_way.wait_none, holds)
                if self._refresh is not None and not self._refreshed.is_set():
                    beside.refresh(partial(self._refresh_address, self._refresh, beside))
        if not follows():
            await beside.end(outlasting)

    async def _refresh_address(self, ask: Callable[[PeerAddress], Awaitable[PeerAddress]], beside: Beside) -> None:
        """Ask the peer for its present address, as the known one may be old, and add combos for it."""
        session = self._session
        await trio.sleep(REFRESH_DELAY)
        try:
            fresh = await ask(session.peer)
        except EXPECTED as error:
            logger.debug("the address could not be refreshed: %s", error)
            return
        session.evidence.answered = True
        if fresh != session.peer:
            session.peer = fresh
            self._note("the peer's address was out of date; the peer sent its present one")
            self._join(self._plan.add_new(self._plan_with(fresh)), beside)
        self._refreshed.set()

    def _join(self, combos: Sequence[Combo], beside: Beside) -> None:
        """Start the added combos whose phase has begun; the others wait for their phase."""
        worth = [combo for combo in combos if not combo.hopeless]
        begun = [combo for combo in worth if combo.phase in self._begun]
        self._under_way.begin(begun)
        for combo in begun:
            beside.start(combo, partial(self._run_combo, combo))
        if self._reach.relay_first and "relay" not in self._begun:
            self._begin_relays([combo for combo in worth if combo.phase == "relay"], beside)
        self._under_way.look_again()

    async def _run_combo(self, combo: Combo) -> None:
        with self._under_way.until_ended(combo):
            await self._try_combo(combo)

    async def _try_combo(self, combo: Combo) -> None:
        if combo.delay:
            await self._under_way.wait_turn(combo)
        first = combo.phase == "relay" and self._reach.relay_first
        if combo.yields_to and not first:
            await self._under_way.yield_to(combo.yields_to)
        session = self._session
        self._recorder.started(combo, trio.current_time())
        attempt = CallingAttempt.of_combo(self._home, session, combo)
        cancelled = False
        failures: Sequence[str] = ()
        try:
            with panics_as_errors(), self._home.view.relays.noting_failures() as failures:
                await attempt.make_pipe(
                    self._factories.get(combo.plugin) or self._home.factory(combo.plugin),
                    hold_back=partial(self._hold_back, attempt) if first else None,
                )
        except Exception as error:
            expected = isinstance(error, EXPECTED)
            session.evidence.relay_forbids |= isinstance(error, RelayForbidden)
            outcome = Outcome.TIMED_OUT if isinstance(error, trio.TooSlowError) else Outcome.FAILED
            self._recorder.ended(combo, outcome, trio.current_time(), error=describe(error))
            log = logger.debug if expected else logger.warning
            log("%s over %s failed: %s", combo.plugin, combo.target, error, exc_info=not expected)
            if not expected and self._home.strict:
                raise
        except BaseException as error:
            cancelled = all(isinstance(leaf, trio.Cancelled) for leaf in leaves(error))  # a group, out of nurseries
            raise
        finally:
            now = trio.current_time()
            if attempt.won:
                self._recorder.ended(combo, Outcome.WON, now)
            elif cancelled:
                since = session.over_at if session.over_at is not None else session.clock.deadline
                outcome = Outcome.LOST if session.decided else Outcome.TIMED_OUT
                why = _why_no_relay(combo, failures) if outcome is Outcome.TIMED_OUT else None
                self._recorder.ended(combo, outcome, now, error=why, cleanup=max(now - since, 0.0))


def describe(error: BaseException) -> str:
    """Describe an error in one sentence, for the report."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
        if (
            error.strerror.startswith("Error connecting to (") and error.errno is not None
        ):  # Trio's wrapping of the reason
            text = os.strerror(error.errno)
    text = printable(text or type(error).__name__)
    return text if isinstance(error, EXPECTED) else f"{type(error).__name__}: {text}"


def _why_no_relay(combo: Combo, failures: Sequence[str]) -> str | None:
    """The failures of TURN servers, or of the proxies in front of them; None for a combo without TURN."""
    goes_by_turn = combo.phase == "relay" and combo.server is None
    return "; ".join(failures) or None if goes_by_turn else None
