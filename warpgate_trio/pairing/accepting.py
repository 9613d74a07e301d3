"""Accepting a code: `accept_code`.

The code is claimed at all servers at once, since nobody says at which it is offered.  But only at one of them is it
then proven, the first that answers: a slip costs one try of three, not one for each server.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, final

import trio

from ..errors import CodeRefused, PairingError, PairingUnavailable, RemoteProtocolError, WarpgateError, panics_as_errors
from ..nurseries import open_bare_nursery, reason_of
from ..servers.mailbox_frames import Claim, Outcome, Post, Settle
from .code import Code
from .handshake import Claimer, Paired, Us
from .mailbox import MailboxServer

__all__ = ["ACCEPT_TIMEOUT", "accept_code"]

logger: logging.Logger = logging.getLogger(__name__)

ACCEPT_TIMEOUT: Final = 30.0
"""Seconds for all of it, where that is not said: a server that does not answer, and a peer behind a bad link."""

# Of what several servers say, the first of these tells most.
_TELLING: Final = (
    Outcome.WRONG,
    Outcome.OWN_KEY,
    Outcome.USED,
    Outcome.PAIRED,
    Outcome.SPENT,
    Outcome.WAIT,
    Outcome.BUSY,
    Outcome.AWAY,
    Outcome.EXPIRED,
    Outcome.SLOW,
    Outcome.LEFT,
    Outcome.UNKNOWN,
)


async def accept_code(
    servers: Sequence[MailboxServer], code: Code, us: Us, *, timeout: float = ACCEPT_TIMEOUT
) -> Paired:
    """Pair with whoever offers this code at one of the servers.  See `Node.accept_code`."""
    if not servers:
        raise PairingUnavailable("no server is configured that nodes could pair by")
    accepting = _Accepting(code, us)
    with trio.move_on_after(timeout) as patience:
        async with open_bare_nursery() as nursery:
            for server in servers:
                nursery.start_soon(accepting.try_at, server, nursery.cancel_scope)
    if accepting.paired is not None:
        return accepting.paired
    if patience.cancelled_caught:
        accepting.refusals.append(CodeRefused(Outcome.SLOW, f"nobody has answered within {timeout:g} s"))
    raise accepting.error()


@final
class _Accepting:
    def __init__(self, code: Code, us: Us) -> None:
        self._code = code
        self._us = us
        self._proving = trio.Lock()
        self.paired: Paired | None = None
        self.refusals: list[CodeRefused] = []
        self.problems: list[str] = []

    def error(self) -> PairingError:
        """What to raise where nobody was paired."""
        if not self.refusals:
            return PairingUnavailable("; ".join(self.problems))
        order = {outcome: place for place, outcome in enumerate(_TELLING)}
        return min(self.refusals, key=lambda each: order.get(Outcome(each.outcome), len(order)))

    async def try_at(self, server: MailboxServer, everywhere: trio.CancelScope) -> None:
        """One server, until it has come to an end there; `everywhere` is cancelled by an end that is final."""
        try:
            with panics_as_errors():
                await self._pair(server, everywhere)
        except CodeRefused as refused:
            self.refusals.append(refused)
        except (OSError, WarpgateError) as error:
            said = reason_of(error)
            self.problems.append(said if said.startswith(server.name) else f"{server.name}: {said}")
        except Exception as error:  # a server's or a peer's doing, whatever its class
            self.problems.append(f"{server.name}: unexpected {type(error).__name__}")
            logger.exception("pairing by %s failed", server.name)

    async def _pair(self, server: MailboxServer, everywhere: trio.CancelScope) -> None:
        claimer = Claimer(self._code, self._us)
        async with server.open() as channel:
            await channel.send(Claim(self._code.nameplate, claimer.hello))
            reply = _payload(await channel.receive())
            async with self._proving:
                proof = claimer.receive(reply)
                assert isinstance(proof, bytes), "a reply is answered by a proof"
                await channel.send(Post(0, proof))
                try:
                    paired = claimer.receive(_payload(await channel.receive()))
                except CodeRefused as refused:
                    if refused.outcome in (Outcome.WRONG, Outcome.OWN_KEY):
                        self.refusals.append(refused)
                        everywhere.cancel()  # before anybody else may prove
                        return
                    raise
                assert isinstance(paired, Paired), "a proof is the last message"
                self.paired = paired
                everywhere.cancel()


def _payload(frame: object) -> bytes:
    """What the other side has posted; CodeRefused where the server says why it has not."""
    if isinstance(frame, Post):
        return frame.payload
    if isinstance(frame, Settle):
        outcome = Outcome(frame.outcome) if frame.outcome in Outcome.__members__.values() else Outcome.LEFT
        wait = f"; try again in {frame.wait} s" if outcome is Outcome.WAIT else ""
        raise CodeRefused(outcome, f"{outcome.words}{wait}", retry_after=float(frame.wait))
    raise RemoteProtocolError("the server sent something else than the other side's word")
