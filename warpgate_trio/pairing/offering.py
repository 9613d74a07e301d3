"""Offering a code at servers: `open_offer`.

Each server has a task that connects, offers, and reconnects when the connection breaks, for as long as the code is
good.  The frames of all connections go to one `OfferCore`.  A single rendezvous server gives its smallest free
nameplate.  With several servers, and with brokers, which give none, a nameplate is drawn, and all have to accept it.
Whenever one of them refuses, another one is drawn, with more digits.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, final

import trio

from .. import host as machine
from ..errors import CodeRefused, PairingUnavailable, WarpgateError, panics_as_errors, printable
from ..nurseries import open_background_nursery, reason_of
from ..servers.mailbox_frames import Offer, Offered, Outcome, Settle
from .code import MAX_NAMEPLATE, Code, draw_words
from .handshake import Paired, Us
from .mailbox import FromServer, MailboxChannel, MailboxServer
from .offer_core import OfferCore

__all__ = ["CODE_LIFETIME", "CodeOffer", "open_offer"]

logger: logging.Logger = logging.getLogger(__name__)

CODE_LIFETIME: Final = 300.0
"""Seconds for which a code is good by default, and at most; no rendezvous server keeps one for longer."""
CONNECT_TIMEOUT: Final = 10.0
"""Seconds for connecting to a server and offering there: eight round trips of a bad satellite link."""
STRAGGLERS: Final = 1.0
"""Seconds for the other servers once one has taken the offer: one that is down must not delay the code."""
GOODBYE: Final = 0.5
"""Seconds for telling a server that an offer is over; otherwise it keeps the offer until the code expires."""
PAUSE_FIRST: Final = 0.2
"""Seconds of the first back-off; it doubles, less up to half at random."""
PAUSE_LIMIT: Final = 5.0
"""Seconds of the longest back-off: an offer lasts 300 in all."""
_DIGITS: Final = (2, 3, 4, 5)
_BROKERS_DIGITS: Final = (4, 5, 5)  # many nodes may share a broker, and no server gives out numbers there


@final
class _Place:
    """The state of the offer at one server."""

    def __init__(self, server: MailboxServer) -> None:
        self.server: Final = server
        self.offered = False
        self.was_offered = False
        self.over: Outcome | None = None
        self.problem: str | None = None
        self.scope = trio.CancelScope()

    @property
    def decided(self) -> bool:
        return self.offered or self.over is not None or self.problem is not None


@final
class CodeOffer:
    """A code that is offered; made by `Node.offer_code`.

    Attributes:
      code: its text, for the other user, such as ``7-guitar-orbit``.
    """

    def __init__(
        self,
        servers: Sequence[MailboxServer],
        us: Us,
        nameplate: int,
        words: tuple[str, ...],
        ends: float,
        on_paired: Callable[[Paired], object],
    ) -> None:
        self._us: Final = us
        self._nameplate = nameplate
        self._words: Final = words
        self._ends: Final = ends
        self._on_paired: Final = on_paired
        self._places: Final = [_Place(server) for server in servers]
        self._core: OfferCore | None = None
        self._changed = trio.Event()
        self._over: Final = trio.Event()
        self._fault: Exception | None = None

    def __repr__(self) -> str:
        return f"<CodeOffer {self._nameplate}-…>"

    @property
    def code(self) -> str:
        assert self._core is not None, "nobody sees it before one server has taken it"
        return str(self._core.code)

    @property
    def servers(self) -> tuple[str, ...]:
        """The URLs of the servers at which it is offered now."""
        return tuple(each.server.name for each in self._places if each.offered)

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each server at which it is not offered now."""
        return tuple(each.problem for each in self._places if each.problem is not None)

    @property
    def wrong_tries(self) -> int:
        """How many tries were wrong; the third ends the offer."""
        return 0 if self._core is None else self._core.wrong

    @property
    def seconds_left(self) -> float:
        """Seconds for which the code remains good; 0.0 once the offer is over."""
        return 0.0 if self._over.is_set() else max(0.0, self._ends - trio.current_time())

    async def wait_paired(self) -> Paired:
        """Wait until a peer has paired by the code, and return which.  Cancelled: the offer goes on.

        Raises:
          CodeRefused: the offer is over without a pairing: it has expired, it was tried too often, three tries were
            wrong, no server keeps it, or its block was left.
          Exception: whatever `on_paired` has raised.
        """
        await self._over.wait()
        if self._fault is not None:
            raise self._fault
        assert self._core is not None
        assert self._core.outcome is not None
        if self._core.paired is not None:
            return self._core.paired
        raise CodeRefused(self._core.outcome, f"nobody was paired: {self._core.why}")

    # -- the offer's own -----------------------------------------------------------------------------------------------

    @property
    def _is_taken(self) -> bool:
        return any(each.over is Outcome.TAKEN for each in self._places)

    async def _wait_taken(self) -> bool:
        """Return once all servers have answered, or `STRAGGLERS` after one has taken the offer.  Returns whether one
        has."""
        while not all(each.decided for each in self._places) and not any(each.offered for each in self._places):
            await self._changed.wait()
        with trio.move_on_after(STRAGGLERS):
            while not all(each.decided for each in self._places):
                await self._changed.wait()
        return any(each.offered for each in self._places)

    async def _expire(self) -> None:
        await trio.sleep_until(self._ends)
        self._finish(Outcome.EXPIRED)

    def _finish(self, outcome: Outcome, *, except_for: _Place | None = None) -> None:
        """End the offer, unless it is over already, and cancel the tasks of all servers but `except_for`; each task
        tells its server."""
        if self._core is not None:
            self._core.end(outcome)
        self._over.set()
        for place in self._places:
            if place is not except_for:
                place.scope.cancel()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _keep(self, place: _Place) -> None:
        """Keep the offer at one server, until it is over there."""
        pause = PAUSE_FIRST
        with place.scope:
            while place.over is None:
                await self._hold(place)
                await trio.sleep(pause * (1 - machine.current().random.random() / 2) if place.over is None else 0)
                pause = min(2 * pause, PAUSE_LIMIT)
        if all(each.over is not None for each in self._places) and not self._over.is_set():
            self._finish(place.over or Outcome.LEFT)

    async def _hold(self, place: _Place) -> None:
        """One connection to a server, from its opening to its end."""
        try:
            with panics_as_errors(), trio.move_on_after(CONNECT_TIMEOUT) as opening:
                async with place.server.open() as channel:
                    await channel.send(Offer(self._nameplate, max(1, round(self._ends - trio.current_time()))))
                    if self._take_answer(place, await channel.receive()):
                        opening.deadline = float("inf")
                        await self._serve(place, channel)
            if opening.cancelled_caught:
                place.problem = f"{place.server.name}: no answer within {CONNECT_TIMEOUT:.0f} s"
        except (OSError, WarpgateError) as error:
            said = printable(reason_of(error))
            place.problem = said if said.startswith(place.server.name) else f"{place.server.name}: {said}"
            logger.info("pairing: %s", place.problem)
        except Exception as error:  # caused by a server, whatever its class: it ends this connection and nothing else
            place.problem = f"{place.server.name}: unexpected {type(error).__name__}"
            logger.exception("pairing by %s failed", place.server.name)
        finally:
            place.offered = False
            if self._core is not None:
                self._core.forget(place.server.name)
            self._notify()

    def _take_answer(self, place: _Place, answer: FromServer) -> bool:
        """Take the server's answer to the offer; return whether it has accepted."""
        if isinstance(answer, Settle):
            place.over = _outcome(answer.outcome)
            if place.over is Outcome.TAKEN and place.was_offered:
                place.over = Outcome.EXPIRED  # while we were disconnected, for example because the host slept
            place.problem = f"{place.server.name}: {place.over.words}"
            return False
        if not isinstance(answer, Offered) or not 1 <= answer.nameplate <= MAX_NAMEPLATE:
            raise PairingUnavailable(f"{place.server.name}: the server gave an invalid number for the code")
        if self._nameplate not in (0, answer.nameplate):
            raise PairingUnavailable(
                f"{place.server.name}: the server gave another number than the one that it was asked for"
            )
        self._nameplate = answer.nameplate
        if self._core is None:
            self._core = OfferCore(Code(self._nameplate, self._words), self._us)
        place.offered, place.was_offered, place.problem = True, True, None
        self._notify()
        return True

    async def _serve(self, place: _Place, channel: MailboxChannel) -> None:
        """Serve the offer on a connection until one of them ends.

        If the offer ends by a try on this connection, the other servers' tasks are ended only after this server was
        sent the outcome.  What the other servers send meanwhile changes nothing, and does not interrupt sending the
        proof that the peer waits for.
        """
        core = self._core
        assert core is not None
        ended_here = False
        try:
            while core.outcome is None:
                frame = await channel.receive()
                if isinstance(frame, Settle) and frame.number == 0:
                    place.over = _outcome(frame.outcome)
                    place.problem = f"{place.server.name}: {place.over.words}"
                    return
                ended_elsewhere = core.outcome is not None
                said = core.receive(place.server.name, frame, trio.current_time())
                ended_here = core.outcome is not None and not ended_elsewhere
                if ended_here and core.paired is not None and not self._tell(core.paired):
                    return
                for each in said:
                    await channel.send(each)
        finally:
            if core.outcome is not None:
                place.over = core.outcome
                if ended_here:
                    self._finish(core.outcome, except_for=place)
            with suppress(PairingUnavailable), trio.CancelScope(deadline=trio.current_time() + GOODBYE, shield=True):
                await channel.send(Settle(0, core.outcome or Outcome.LEFT))

    def _tell(self, paired: Paired) -> bool:
        """Call `on_paired`, before the peer learns that it is paired; returns False if that raises."""
        try:
            self._on_paired(paired)
        except Exception as error:
            self._fault = error
            return False
        return True


@asynccontextmanager
async def open_offer(
    servers: Sequence[MailboxServer],
    us: Us,
    *,
    lifetime: float = CODE_LIFETIME,
    on_paired: Callable[[Paired], object] = lambda _: None,
) -> AsyncGenerator[CodeOffer]:
    """Offer a code at all of these servers, for the time of the body; entered once one of them has taken it.

    `Node.offer_code` has the arguments and errors.
    """
    if not 1.0 <= lifetime <= CODE_LIFETIME:
        raise ValueError(f"a code is good for 1 to {CODE_LIFETIME:.0f} seconds, not {lifetime:g}")
    if not servers:
        raise PairingUnavailable("no signal server is configured, and pairing needs one")
    words, ends = draw_words(machine.current()), trio.current_time() + lifetime
    draws = _draw_nameplates(servers)
    for number, nameplate in enumerate(draws, 1):
        offer = CodeOffer(servers, us, nameplate, words, ends, on_paired)
        async with open_background_nursery() as nursery:
            for place in offer._places:
                nursery.start_soon(offer._keep, place)
            is_offered = await offer._wait_taken()
            if offer._is_taken and number < len(draws):
                continue  # with another number, at all servers
            if not is_offered:
                raise PairingUnavailable("; ".join(offer.problems))
            nursery.start_soon(offer._expire)
            try:
                yield offer
            finally:
                offer._finish(Outcome.LEFT)
            return


def _draw_nameplates(servers: Sequence[MailboxServer]) -> list[int]:
    """The nameplates to ask for, one after the other; a single 0 if the server gives one."""
    if len(servers) == 1 and servers[0].allocates:
        return [0]
    digits = _DIGITS if all(each.allocates for each in servers) else _BROKERS_DIGITS
    return [machine.current().random.randrange(10 ** (count - 1), 10**count) for count in digits]


def _outcome(code: int) -> Outcome:
    return Outcome(code) if code in Outcome.__members__.values() else Outcome.LEFT
