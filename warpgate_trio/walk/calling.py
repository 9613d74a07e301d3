"""The initiator's side of an attempt: it belongs to a session, commits the Link of its plugin, and may win.

On ACCEPT the winner's Link moves to the node's nursery, the session records the Pipe, and the phase is cancelled, all
in one synchronous step.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final, final

import trio

from ..combos import Combo, JudgedPath
from ..errors import AttemptFailed, PeerRefused, PluginError, ProtocolError, SignalError, WrongPeer, panics_as_errors
from ..link import Link, Pipe, RefuseReason
from ..nurseries import open_background_nursery
from ..servers.relay_frames import EndReason
from ..signal import Cancel, Circuit, CircuitRefused, ClockReply, Delivery, Message, Refused
from ..signal.core import OWNER
from .attempt import EXPECTED, Adopted, Attempt, AttemptHome, Factory, check_delivery, is_final
from .session import Session

__all__ = ["CallingAttempt"]

logger: logging.Logger = logging.getLogger(__name__)


@final
class CallingAttempt(Attempt):
    """One run of a plugin on the initiator's side.

    Args:
      session: the session that the attempt belongs to.

    Attributes:
      won: whether the session's Pipe, or further carrier, is from this attempt.
      promised: the peer has promised to accept, see `Plugin.expect_accept`.
      called_ahead: the call by a circuit was made while the connection to the server was still being opened.
    """

    inbound = False

    def __init__(
        self, home: AttemptHome, session: Session, *, plugin: str, phase: str | None, path: JudgedPath | None
    ) -> None:
        super().__init__(
            home,
            peer=session.peer,
            session_id=session.id,
            attempt_id=home.view.host.entropy(16),
            plugin=plugin,
            phase=phase,
            path=path,
        )
        self._session: Final = session
        self.promised: bool = False
        self.called_ahead: bool = False
        self.won: bool = False

    @classmethod
    def of_combo(cls, home: AttemptHome, session: Session, combo: Combo) -> CallingAttempt:
        """The attempt at one combo."""
        return cls(home, session, plugin=combo.plugin, phase=combo.phase, path=combo.path)

    # -- three ways to run the plugin ----------------------------------------------------------------------------------

    async def make_pipe(
        self, factory: Factory, *, hold_back: Callable[[], Awaitable[object]] | None = None
    ) -> Pipe | None:
        """Run the plugin, commit its Link, and win the session.

        Where the session seeks a further carrier, the Link's carrier is attached instead, and the result is None.

        Args:
          hold_back: awaited before the commit.

        Raises whatever ended the attempt, not in a group.
        """
        session = self._session
        link: Link | None = None
        session.attempts.add(self)
        try:
            async with self._running():
                link = await self._prove(await factory(self).run())
                if session.link is not None:
                    await self._attach(link, session.link)
                    return None
                if hold_back is not None:
                    await hold_back()
                return await self._commit(link)
        except PeerRefused as refusal:
            session.learn_refusal(refusal)
            raise
        except WrongPeer:
            session.evidence.wrong_peer = True
            raise
        finally:
            session.attempts.discard(self)
            if link is not None and not self.won:
                link.close_nowait()
            self._end_at_the_peer()

    async def make_link(self, factory: Factory) -> tuple[Link, Adopted]:
        """Run the plugin up to a proven Link; the caller commits it, with the tasks that belong to it."""
        link: Link | None = None
        try:
            async with self._running():
                link = await self._prove(await factory(self).run())
                link.path = self._path_info(link.carrier)
            return link, self._adopted
        except BaseException:
            if link is not None:
                link.close_nowait()
            raise

    async def ask(self, factory: Factory) -> object:
        """Run an auxiliary plugin, which makes no path, and return its result; errors are not in a group."""
        async with self._running():
            return await factory(self).run()

    # -- what the plugin sees ------------------------------------------------------------------------------------------

    async def send_signal(self, message: Message) -> None:
        """See `Plugin.send_signal`."""
        evidence = self._session.evidence
        self._last_sent = message
        evidence.signalled = True  # set before sending: if that is cancelled, the peer may have received it anyway
        delivery = await self._home.signals.send(
            self.peer,
            message,
            owner=self._plugin,
            session=self.session_id,
            attempt=self.attempt_id,
            to_peers_servers=True,
        )
        evidence.note_delivery(delivery)
        check_delivery(delivery)

    async def circuit(self) -> Circuit:
        """See `Plugin.circuit`."""
        if not self.path.server:
            raise AttemptFailed("the two sides have no server in common that relays")
        return await self._home.circuit(self.path.server)

    async def call(self, circuit: Circuit, message: Message) -> Message:
        """See `Plugin.call`."""
        evidence = self._session.evidence
        evidence.signalled = True  # set before sending, as in `send_signal`
        try:
            await self._home.signals.call(
                circuit, self.peer, message, owner=self._plugin, session=self.session_id, attempt=self.attempt_id
            )
            async with open_background_nursery() as nursery:
                nursery.start_soon(circuit.wait_answered)  # ends the body where there is no answer
                answer = await self.receive_signal()
                self.called_ahead = circuit.called_ahead
                return answer
        except CircuitRefused as refused:
            if refused.reason == EndReason.NOT_ALLOWED:
                evidence.token_missing = True
            if refused.reason == EndReason.NOBODY_HOME:
                evidence.note_delivery(Delivery.NOBODY_HOME)
            elif refused.reason in (EndReason.REFUSED, EndReason.UNANSWERED):
                evidence.note_delivery(Delivery.DELIVERED)
            if refused.reason == EndReason.REFUSED:
                refused.try_again = await self._hear_the_time()
                refused.too_early = circuit.called_ahead and not refused.try_again
            raise
        raise AssertionError("unreachable")  # for mypy, to which `async with` may swallow exceptions

    async def _hear_the_time(self) -> bool:
        """Whether a peer that refuses a call tells its time, before or after the refusal: our timestamp was wrong."""
        view = self._home.view
        with trio.move_on_after(view.budgets.signal if view.signal_rtt is None else view.signal_rtt):
            while not self._told_time:
                arrival = await self._inbox.receive()
                self._told_time = isinstance(arrival, ClockReply)
                if isinstance(arrival, ClockReply):
                    self._note_clock(arrival)
                elif isinstance(arrival, Link):
                    arrival.close_nowait()
        return self._told_time

    async def answer_call(self, message: Message) -> None:
        """See `Plugin.answer_call`.

        Raises:
          PluginError: always; this side is the caller.
        """
        raise PluginError("only the side that was called can take a call")

    async def race(self, plugins: Sequence[str], *, stagger: float) -> Link:
        """See `Plugin.race`."""
        reach = self._session.reach  # None for a node's question, which makes no path
        allowed = (None, None) if reach is None else (reach.afs, reach.route_types)
        combos = [
            (combo, combo.delay + stagger * plugins.index(combo.plugin))
            for combo in self._home.plan(self.peer, plugins, *allowed)
        ]
        link, adopted = await _first_link(self._home, self._session, combos)
        self._adopted += adopted
        return link

    def hold_phase(self) -> None:
        """See `Plugin.hold_phase`."""
        self._session.clock.hold()

    def expect_accept(self) -> None:
        """See `Plugin.expect_accept`."""
        self.promised = True

    # -- the commit ----------------------------------------------------------------------------------------------------

    async def _attach(self, link: Link, standing: Link) -> None:
        """Attach the new carrier to the Link that the session seeks one for."""
        session = self._session
        async with session.commit_lock:
            await standing.wait_accepted()
            if not standing.movable:
                raise AttemptFailed("the Link has ended or cannot change its path")
            link.path = link.path or self._path_info(link.carrier)
            try:
                with session.clock.suspended():
                    await link.attach(
                        standing,
                        tasks=self._adopted,
                        patience=self.node.budgets.commit,
                        preferred=session.preferred,
                    )
                    if session.preferred and not await standing.wait_trial(link):
                        raise AttemptFailed("the new path failed its trial under load")
            except PeerRefused as refusal:
                if refusal.reason == RefuseReason.UNKNOWN_LINK:
                    standing.forget_nowait()
                raise
            self.won = True
            session.win_carrier()

    async def _commit(self, link: Link) -> Pipe:
        session = self._session
        async with session.commit_lock:
            session.epoch += 1
            try:
                with session.clock.suspended():
                    pipe = await link.commit(
                        epoch=session.epoch,
                        link_id=self.node.host.entropy(16),
                        early_data=session.early_data,
                        patience=self.node.budgets.commit,
                        terms=self._home.terms(),
                        promised=self.promised and session.reach is not None and session.reach.relay_first,
                    )
            except (trio.BrokenResourceError, ProtocolError):
                session.evidence.broke_off = True
                raise
            except PeerRefused as refusal:
                session.learn_refusal(refusal)  # before the lock is released, to a carrier that would be refused, too
                raise
            # There is no checkpoint between the ACCEPT, or the promise of it, and the release of the lock.
            link.path = link.path or self._path_info(link.carrier)
            self.won = True
            session.recorder.follow(link.path_log)
            reach = (
                None
                if session.reach is None
                else replace(session.reach, peer=session.peer, signalled=session.evidence.signalled)
            )
            self._home.adopt_link(link, self._adopted, dead_after=session.dead_after, reach=reach)
            session.win(pipe)
        return pipe

    # -- what the session learns ---------------------------------------------------------------------------------------

    def _note_answer(self, message: Message) -> None:
        self._session.evidence.answered = True
        if isinstance(message, Refused) and not is_final(message):
            self._session.evidence.turned_down = message.reason

    def _note_clock(self, reply: ClockReply) -> None:
        """Pass the peer's time on to the session's other attempts: the peer tells it only once in ten seconds."""
        session = self._session
        if session.evidence.clock_corrected:
            return
        session.evidence.clock_corrected = True
        session.recorder.note("our clock and the peer's differ; the signals were corrected", trio.current_time())
        for other in session.attempts - {self}:
            other.deliver(reply)

    def _end_at_the_peer(self) -> None:
        """Cancel this attempt at the peer, where the walk goes on without it.

        At the end of the walk this is not needed: a Pipe, or a Cancel of the whole session, ends all attempts there.
        """
        heard = self._last_sent is not None and not self._given_up
        goes_on = self._session.over_at is None and trio.current_time() >= self._session.clock.deadline
        if heard and goes_on and not self.won:
            self._home.say_goodbye(self._say_that_it_is_over)

    async def _say_that_it_is_over(self) -> None:
        try:
            await self._home.signals.send(
                self.peer,
                Cancel(),
                owner=OWNER,
                session=self.session_id,
                attempt=self.attempt_id,
                to_peers_servers=False,
            )
        except SignalError as error:
            logger.debug("the peer could not be told that %s is over: %s", self._plugin, error)


async def _first_link(
    home: AttemptHome, session: Session, combos: Sequence[tuple[Combo, float]]
) -> tuple[Link, Adopted]:
    """Race combos, each started after its delay in seconds; returns the first proven Link and closes the others.

    Raises:
      PeerRefused: none made a Link, and the peer refused one of them for good.
      AttemptFailed: none made a Link.
    """
    found: list[tuple[Link, Adopted]] = []
    errors: list[Exception] = []

    async def run(combo: Combo, delay: float) -> None:
        await trio.sleep(delay)  # pacing: where an early candidate is quick, the others need not run
        attempt = CallingAttempt.of_combo(home, session, combo)
        try:
            with panics_as_errors():
                made = await attempt.make_link(home.factory(combo.plugin))
        except Exception as error:
            if not isinstance(error, EXPECTED):
                logger.warning("%s failed", combo.plugin, exc_info=True)
            session.evidence.wrong_peer |= isinstance(error, WrongPeer)
            errors.append(error)
            return
        found.append(made)
        nursery.cancel_scope.cancel(reason="another plugin was first")

    try:
        async with trio.open_nursery() as nursery:
            for combo, delay in combos:
                nursery.start_soon(run, combo, delay)
    except BaseException:
        for link, _ in found:  # cancelled from outside, at the moment of the win
            link.close_nowait()
        raise
    for late, _ in found[1:]:
        late.close_nowait()
    if found:
        return found[0]
    for error in errors:
        if isinstance(error, PeerRefused):
            raise error
    raise AttemptFailed("no plugin made a path: " + "; ".join(str(error) for error in errors))
