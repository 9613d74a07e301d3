"""The responder's side of an attempt, which a peer's first signal requested."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, final

import trio

from ..address import PeerAddress
from ..combos import JudgedPath
from ..errors import PluginError
from ..link import Link
from ..plugin import Plugin
from ..signal import Circuit, ClockReply, Message
from .attempt import Adopted, Attempt, AttemptHome, Factory, check_delivery

__all__ = ["AnsweringAttempt"]


@final
class AnsweringAttempt(Attempt):
    """One run of a plugin for a peer.

    Args:
      plugin: the plugin that the request is for.
      path: the requested path, once judged; None for a plugin that makes no path.
      via: the channel that the request arrived on.
      request_id: the request's message id.
      circuit: the circuit that the peer calls by; None where it sent a signal.
      has_room: whether a COMMIT of the peer would be accepted.

    Attributes:
      met: whether the plugin's path led to the peer.
    """

    inbound = True

    def __init__(
        self,
        home: AttemptHome,
        *,
        peer: PeerAddress,
        session_id: bytes,
        attempt_id: bytes,
        plugin: type[Plugin],
        path: JudgedPath | None,
        via: str,
        request_id: bytes,
        circuit: Circuit | None = None,
        has_room: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(
            home,
            peer=peer,
            session_id=session_id,
            attempt_id=attempt_id,
            plugin=plugin.name,
            phase=plugin.phase,
            path=path,
        )
        self._via: Final = via
        self._request_id: Final = request_id
        self._circuit: Final = circuit
        self._has_room: Final = has_room
        self.met: bool = False

    async def answer(
        self, factory: Factory, request: Message, decide: Callable[[Link, Adopted], Awaitable[bool]]
    ) -> None:
        """Run the plugin for the request.  An auxiliary plugin makes no path, and the attempt ends with its run.

        Otherwise `decide` receives the COMMIT on the resulting Link.  Where it returns True, it has accepted and
        adopted the Link, together with the tasks that the plugin gave for it.
        """
        accepted = False
        link: Link | None = None
        try:
            async with self._running():
                made = await factory(self).run(request)
                if self._judged is None:
                    return
                link = await self._prove(made)
                self.met = True
                link.path = self._path_info(link.carrier)
                accepted = await decide(link, self._adopted)
        finally:
            if link is not None and not accepted:
                link.close_nowait()

    async def send_signal(self, message: Message) -> None:
        """See `Plugin.send_signal`; the message is sent on the channel that the request arrived on."""
        self._last_sent = message
        check_delivery(
            await self._home.signals.send(
                self.peer,
                message,
                owner=self._plugin,
                session=self.session_id,
                attempt=self.attempt_id,
                in_reply_to=self._request_id,
                via=self._via,
            )
        )

    async def circuit(self) -> Circuit:
        """See `Plugin.circuit`; the creator of the attempt closes a circuit that was not answered."""
        await trio.lowlevel.checkpoint()
        return self._called_by()

    def has_room(self) -> bool:
        """See `Plugin.has_room`."""
        return self._has_room()

    def _called_by(self) -> Circuit:
        if self._circuit is None:
            raise PluginError(f"{self._plugin}: the peer has not called")
        return self._circuit

    async def call(self, circuit: Circuit, message: Message) -> Message:
        """See `Plugin.call`.

        Raises:
          PluginError: always; the peer is the caller.
        """
        raise PluginError("only the side that calls can call by a circuit")

    async def answer_call(self, message: Message) -> None:
        """See `Plugin.answer_call`."""
        await self._home.signals.answer(
            self._called_by(),
            self.peer,
            message,
            owner=self._plugin,
            session=self.session_id,
            attempt=self.attempt_id,
            in_reply_to=self._request_id,
        )

    async def race(self, plugins: Sequence[str], *, stagger: float) -> Link:
        """See `Plugin.race`.

        Raises:
          PluginError: always; only the side that calls can race plugins.
        """
        raise PluginError("only the side that calls can race plugins")

    def hold_phase(self) -> None:
        """Do nothing: only the caller has phases."""

    def expect_accept(self) -> None:
        """Do nothing: this side accepts."""

    def _note_answer(self, message: Message) -> None:
        """Do nothing: only the caller makes a verdict."""

    def _note_clock(self, reply: ClockReply) -> None:
        """Do nothing: a peer's request has only one attempt."""
