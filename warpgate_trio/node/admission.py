"""Admission of peers: the answer of the application's `authorize`, and whether there is room for another Pipe.

`authorize` is asked once per session, however many carriers and signals the session has.  Strangers cause these calls,
so their number and the memory that each of them takes are bounded; answers may be forgotten.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Final, final

import trio

from ..config import Budgets
from ..errors import panics_as_errors
from ..identity import peer_id_from_key
from ..limits import BoundedMap
from ..link import Link, Pipe, RefuseReason
from .listener import PipeListener

__all__ = ["Admission", "Authorize", "SessionKey", "anyone", "check_authorize"]

logger: logging.Logger = logging.getLogger(__name__)

SessionKey = tuple[bytes, bytes]
"""The peer's key and the session id."""
Authorize = Callable[[str], Awaitable[bool]]
"""``await authorize(peer_id)``: whether this peer may open Pipes.

The peer id is proven.  The call may last ``budgets.authorize`` seconds.  A timeout or an exception counts as no."""


async def anyone(peer_id: str) -> bool:
    """The `Authorize` rule that admits every peer: ``open_node(authorize=anyone)``."""
    await trio.lowlevel.checkpoint()
    return True


def check_authorize(authorize: Authorize | None) -> None:
    """Raise `TypeError` for a rule that is not an async function, by which every call would be refused.

    A partial or a method of an async function is accepted, and so is an object whose ``__call__`` is async.  A sync
    function that returns a coroutine is not, since it cannot be told from one that returns a bool.
    """
    rule: object = authorize
    while isinstance(rule, partial):
        rule = rule.func
    if callable(rule):
        rule = inspect.unwrap(rule)
        if inspect.iscoroutinefunction(rule) or inspect.iscoroutinefunction(type(rule).__call__):
            return
    if authorize is not None:
        raise TypeError(f"authorize must be an async function, as `async def rule(peer_id)`, not {authorize!r}")


MAX_REMEMBERED_SESSIONS: Final = 4096
"""Sessions whose answer is remembered; each takes about 300 bytes."""
SESSION_MEMORY: Final = 120.0
"""Seconds for which a session is remembered: several times ``budgets.total``."""
REFUSED: Final = "refused_"
"""Prefix of the counters of refusals."""


@final
class _Question:
    """The answer of `authorize` about a session's peer, or the call that is under way."""

    __slots__ = ("asking", "authorized", "since")

    def __init__(self, now: float) -> None:
        self.since = now
        self.authorized: bool | None = None
        self.asking: trio.Event | None = None


@final
class Admission:
    """Decides which peers are admitted.

    Args:
      authorize: None for a node that does not listen.
      listener: the queue for their Pipes.

    Attributes:
      listening: whether the node can be called at all.
      counters: ``accepted``, and refusals by ``refused_REASON``.
    """

    def __init__(self, authorize: Authorize | None, budgets: Budgets, listener: PipeListener) -> None:
        self._authorize = authorize
        self._budgets = budgets
        self._listener = listener
        self._questions: BoundedMap[SessionKey, _Question] = BoundedMap(MAX_REMEMBERED_SESSIONS)
        self.listening: Final = authorize is not None
        self.counters: Final[Counter[str]] = Counter()
        if authorize is None:
            listener.close_nowait()

    async def authorize(self, peer_key: bytes, session_id: bytes) -> bool:
        """The application's answer about a peer, asked once per session."""
        key = (peer_key, session_id)
        question = self._questions.get(key)
        if question is None:
            now = trio.current_time()
            question = _Question(now)
            self._questions.put(key, question)
            self._questions.forget_while(lambda each: now - each.since >= SESSION_MEMORY)
        while question.authorized is None:
            if question.asking is not None:  # for another carrier of the session, or for a request by signal
                await question.asking.wait()
                continue
            question.asking = trio.Event()
            try:
                question.authorized = await self._ask(peer_id_from_key(peer_key))
            finally:
                question.asking.set()
                question.asking = None
        return question.authorized

    def has_let_in(self, peer_key: bytes, session_id: bytes) -> bool:
        """Whether the answer was yes and was not forgotten since."""
        question = self._questions.get((peer_key, session_id))
        return question is not None and question.authorized is True

    def forget(self, peer_key: bytes) -> None:
        """Forget all answers about a peer, and ignore the one that is being waited for."""
        for key in [key for key in self._questions if key[0] == peer_key]:
            self._questions.pop(key)

    async def readmit(self, link: Link) -> bool:
        """Ask again whether a peer that was away for long may go on with its Link."""
        self._questions.pop((link.peer_key, link.session_id))
        return await self.admit(link)

    async def _ask(self, peer_id: str) -> bool:
        if self._authorize is None:
            return False
        try:
            with panics_as_errors(), trio.fail_after(self._budgets.authorize):
                return bool(await self._authorize(peer_id))
        except trio.TooSlowError:
            logger.warning("authorize took more than %g s; %s… is refused", self._budgets.authorize, peer_id[:8])
        except Exception:
            logger.exception("authorize failed; %s… is refused", peer_id[:8])
        return False

    async def admit(self, link: Link) -> bool:
        """Whether a peer that *we* called may open Pipes to this node (`Link.drive`)."""
        if self._authorize is None:
            return True  # so that the peer learns that this node does not listen
        admitted = await self.authorize(link.peer_key, link.session_id)
        if not admitted:
            self.count_refusal(RefuseReason.UNAUTHORIZED.name)
        return admitted

    def take_opened(self, pipe: Pipe) -> RefuseReason | None:
        """Take a further Pipe that the peer opened on one of our Links (`Link.drive`), or return why it is refused."""
        reason = self.room()
        if reason is None:
            self.hand_over(pipe)
        else:
            self.count_refusal(reason.name)
        return reason

    def count_refusal(self, reason: str) -> None:
        """Count a refusal."""
        self.counters[f"{REFUSED}{reason.lower()}"] += 1

    def room(self, ended: Collection[Link] = ()) -> RefuseReason | None:
        """See `PipeListener.room`."""
        return self._listener.room(ended)

    def would_accept(self, peer_key: bytes, session_id: bytes) -> bool:
        """Whether a COMMIT of this session would be accepted now."""
        return self.listening and self.has_let_in(peer_key, session_id) and self.room() is None

    def hand_over(self, pipe: Pipe) -> None:
        """Hand a peer's Pipe to the application.  The caller has checked `room` without a checkpoint in between."""
        self._listener.put(pipe)
        self.counters["accepted"] += 1
