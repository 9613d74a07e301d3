"""Accepting a code: `accept_code`.

The code is claimed at all servers at once, since it does not say at which servers it is offered.  But the proof is sent
at one server at a time, to the first offerer that answers: so a mistyped code costs one of the three tries, not one for
each server.
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
"""Seconds for accepting a code by default: enough for a server that does not answer and a peer on a bad link."""

# If several servers refuse, the outcome that comes first here is reported, as the most informative.
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
    """Pair with the node that offers this code at one of the servers.  `Node.accept_code` has the errors."""
    if not servers:
        raise PairingUnavailable("no signal server is configured, and pairing needs one")
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
        """The error to raise if nobody was paired."""
        if not self.refusals:
            return PairingUnavailable("; ".join(self.problems))
        order = {outcome: place for place, outcome in enumerate(_TELLING)}
        return min(self.refusals, key=lambda each: order.get(Outcome(each.outcome), len(order)))

    async def try_at(self, server: MailboxServer, everywhere: trio.CancelScope) -> None:
        """Try one server.  `everywhere` is cancelled if the result ends the tries at all servers."""
        try:
            with panics_as_errors():
                await self._pair(server, everywhere)
        except CodeRefused as refused:
            self.refusals.append(refused)
        except (OSError, WarpgateError) as error:
            said = reason_of(error)
            self.problems.append(said if said.startswith(server.name) else f"{server.name}: {said}")
        except Exception as error:  # caused by a server or a peer, whatever its class
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
                        everywhere.cancel()  # before a proof is sent at another server
                        return
                    raise
                assert isinstance(paired, Paired), "a proof is the last message"
                self.paired = paired
                everywhere.cancel()


def _payload(frame: object) -> bytes:
    """The payload that the other side has posted; raises CodeRefused if the server sent an outcome instead."""
    if isinstance(frame, Post):
        return frame.payload
    if isinstance(frame, Settle):
        outcome = Outcome(frame.outcome) if frame.outcome in Outcome.__members__.values() else Outcome.LEFT
        wait = f"; try again in {frame.wait} s" if outcome is Outcome.WAIT else ""
        raise CodeRefused(outcome, f"{outcome.words}{wait}", retry_after=float(frame.wait))
    raise RemoteProtocolError("the server sent an unexpected frame instead of the other side's message")
