"""The responder's side of plugins: a peer's first signal becomes an attempt, if it is allowed (docs/threat_model.md).

The checks, in the order of what it costs a stranger to pass them: rates and numbers, the application's `authorize`, the
path that the request names.

Every signal of ours carries our present address.  So a peer that `authorize` does not admit receives no answer: no
refusal, and no message about its clock.  A request that waits for `authorize` does not occupy a place for attempts.
Peers that were not admitted before have waiting places of their own, so that a slow `authorize` does not shut out peers
that it has admitted.

A path is judged by the same rules as our own combos (`combos.dialling.judge_request`, `combos.meeting.judge_request`,
`combos.relaying.judge_request`).  The peer learns that an attempt failed, but not why.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from ..combos import Aim, JudgedPath, Pair, Route, dialling, meeting, relaying
from ..errors import panics_as_errors
from ..limits import BoundedMap, TokenBuckets
from ..plugin import PathRequest, Plugin
from ..plugin.registry import technique_of
from ..punch.allowance import TARGET_DIALS_REFILL
from ..signal import Failed, RefusalReason, Refused
from ..walk.answering import AnsweringAttempt
from ..walk.attempt import EXPECTED, AttemptHome, Factory

if TYPE_CHECKING:
    from ..signal import Circuit, Envelope, Header, Message
    from ..signal.router import Request
    from ..signal.sender import AttemptKey
    from .admission import Admission
    from .inbound import Inbound
    from .peer_work import PeerWork
    from .planning import Factories

__all__ = ["Responder"]

logger: logging.Logger = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 64
"""Concurrent attempts on behalf of peers, in all."""
MAX_ATTEMPTS_PER_PEER: Final = 16
"""Concurrent attempts on behalf of one peer: a walk sends one request for each of its addresses, and two dual-stack
interfaces make four."""
MAX_QUESTIONS: Final = 64
"""Signals that wait for `authorize` at once, of peers not admitted before; as many more of peers that were."""
MAX_QUESTIONS_PER_PEER: Final = 16
"""Of those, from one peer: as many as it may have attempts."""
DIALS_PER_MINUTE: Final = 60
"""Attempts that one peer may request in a minute; after a quiet minute, all of them at once."""
MAX_EARLY: Final = 4
"""Further messages of a peer for one attempt that wait until it is admitted: no built-in plugin sends more than one."""
MAX_PEERS: Final = 1024
"""Peers whose rate is remembered, and as many that were admitted."""


@final
class Responder:
    """Runs attempts for peers.  It owns no nursery: `start` runs tasks in the node's.

    Args:
      work: keeps the scopes by which peers can end what they requested.
      ours: returns this side of the pair, for judging paths.
      is_linked: whether a peer (by its key) has a Link with us that may have further carriers.  Such a peer may request
        paths to us even where this node does not listen.
    """

    def __init__(
        self,
        home: AttemptHome,
        *,
        admission: Admission,
        inbound: Inbound,
        work: PeerWork,
        factories: Factories,
        ours: Callable[[], Route],
        is_linked: Callable[[bytes], bool],
        start: Callable[[Callable[[], Awaitable[object]]], None],
    ) -> None:
        self._home = home
        self._admission = admission
        self._inbound = inbound
        self._work = work
        self._factories = factories
        self._ours = ours
        self._is_linked = is_linked
        self._start = start
        self._listening = admission.listening
        self._running: Counter[bytes] = Counter()
        self._dials: TokenBuckets[bytes] = TokenBuckets(DIALS_PER_MINUTE / 60, DIALS_PER_MINUTE, MAX_PEERS)
        self._let_in: BoundedMap[bytes, bool] = BoundedMap(MAX_PEERS)
        self._early: dict[AttemptKey, list[Message]] = {}  # messages for an attempt that does not exist yet
        self._waiting: dict[bool, Counter[bytes]] = {False: Counter(), True: Counter()}  # by whether they were admitted

    def take(self, request: Request) -> None:
        """Take a peer's first message for an attempt: refuse it, or start a task.  Does not block."""
        header = request.envelope.header
        entry = self._factories.get(header.type.partition(".")[0])
        early = self._early.get(_key(header))
        if early is not None:
            if len(early) < MAX_EARLY:
                early.append(request.message)
        elif not self._listening and not self._is_linked(header.sender):
            self._admission.count_refusal(RefusalReason.NOT_ACCEPTING.value)
        elif entry is None:
            self._refuse(request, RefusalReason.UNSUPPORTED)
        elif header.attempt is None or self._inbound.is_spent(header.sender, header.session):
            logger.debug("a %s is dropped: it names no attempt, or its session is over", header.type)
        elif not self._dials.take(header.sender, trio.current_time()):
            self._admission.count_refusal(RefusalReason.BUSY.value)
            if self.has_let_in(header.sender):
                self.tell(request.envelope, request.via, _BUSY)
        else:
            plugin, factory = entry
            self._early[_key(header)] = []
            if not self._when_authorized(header, partial(self._serve, request, plugin, factory), request.circuit):
                del self._early[_key(header)]

    def tell(self, envelope: Envelope, via: str, message: Message) -> None:
        """Answer a signal if `authorize` admits its sender: the answer carries our address.  Does not block."""

        async def answer() -> None:
            self._home.signals.reply_soon(envelope, via, message)

        self._when_authorized(envelope.header, answer)

    def has_let_in(self, peer: bytes) -> bool:
        """Whether the last answer of `authorize` about a peer (by its key) was yes; known of 1,024 peers."""
        return peer in self._let_in

    def forget(self, peer: bytes) -> None:
        """Forget the answer of `authorize` about a peer (by its key)."""
        self._let_in.pop(peer)

    def _refuse(self, request: Request, reason: RefusalReason) -> None:
        self._admission.count_refusal(reason.value)
        self.tell(request.envelope, request.via, Refused(reason=reason))

    def _when_authorized(
        self, header: Header, then: Callable[[], Awaitable[None]], circuit: Circuit | None = None
    ) -> bool:
        """Start a task that asks `authorize` about the sender and then runs `then`, if there is a place to wait in.

        The task closes the circuit of a call that was not answered.  Returns whether the task was started.
        """
        waiting = self._waiting[self.has_let_in(header.sender)]
        shut = not self._listening and not self._is_linked(header.sender)
        if shut or waiting.total() >= MAX_QUESTIONS or waiting[header.sender] >= MAX_QUESTIONS_PER_PEER:
            logger.debug(
                "a %s is dropped: the node does not listen, or too many signals wait for authorize", header.type
            )
            return False
        waiting[header.sender] += 1
        scope = self._work.begin(header)  # before the task runs: the peer's Cancel may be the next signal
        if circuit is not None:
            circuit.claimed = True
        self._start(lambda: self._contained(header, scope, partial(self._question, header, waiting, then), circuit))
        return True

    async def _contained(
        self, header: Header, scope: trio.CancelScope, work: Callable[[], Awaitable[None]], circuit: Circuit | None
    ) -> None:
        """Run what a signal starts, in a task of the node, and contain its exceptions: a peer must not end the node."""
        try:
            with self._work.running(header, scope), panics_as_errors():
                await work()
        except Exception:
            logger.exception("a %s failed unexpectedly", header.type)
        finally:
            self._early.pop(_key(header), None)
            if circuit is not None and not circuit.answered:
                circuit.close()

    async def _question(self, header: Header, waiting: Counter[bytes], then: Callable[[], Awaitable[None]]) -> None:
        try:
            authorized = await self._is_authorized(header.sender, header.session)
        finally:
            _count_down(waiting, header.sender)
        self._note(header.sender, authorized)
        if authorized:
            await then()
        else:
            self._admission.count_refusal(RefusalReason.NOT_AUTHORIZED.value)

    async def _is_authorized(self, peer: bytes, session: bytes) -> bool:
        """The answer of `authorize`; it is asked again where `Node.revoke` was called before the answer came."""
        while not self._is_linked(peer):
            if not await self._admission.authorize(peer, session):
                return False
            if self._admission.has_let_in(peer, session):
                return True
        return True

    def _note(self, peer: bytes, authorized: bool) -> None:
        if authorized:
            self._let_in.put(peer, True)
        else:
            self._let_in.pop(peer)

    async def _serve(self, request: Request, plugin: type[Plugin], factory: Factory) -> None:
        """Run the attempt of an admitted peer, if there is a place for it."""
        sender = request.envelope.header.sender
        if self._running.total() >= MAX_ATTEMPTS or self._running[sender] >= MAX_ATTEMPTS_PER_PEER:
            self._admission.count_refusal(RefusalReason.BUSY.value)
            self._home.signals.reply_soon(request.envelope, request.via, _BUSY)
            return
        self._running[sender] += 1
        try:
            self._home.learn_address(request.envelope.sender_address)
            await self._attempt(request, plugin, factory)
        finally:
            _count_down(self._running, sender)

    async def _attempt(self, request: Request, plugin: type[Plugin], factory: Factory) -> None:
        header = request.envelope.header
        peer = request.envelope.sender_address
        try:
            ours = self._ours()
            path = self._judge(request, plugin, ours)
            dialled = _counted(path, ours)
            if dialled is not None and not self._home.view.nat.dials_for_peers.take(dialled, trio.current_time()):
                self._admission.count_refusal(RefusalReason.BUSY.value)
                busy = Refused(reason=RefusalReason.BUSY, retry_after=1 / TARGET_DIALS_REFILL)
                self._home.signals.reply_soon(request.envelope, request.via, busy)
                return
            attempt = AnsweringAttempt(
                self._home,
                peer=peer,
                session_id=header.session,
                attempt_id=header.attempt or b"",
                plugin=plugin,
                path=path,
                via=request.via,
                request_id=header.message_id,
                circuit=request.circuit,
                has_room=partial(self._has_room, header),
            )
            for message in self._early.pop(_key(header), ()):
                attempt.deliver(message)
            relays = self._home.view.relays
            if plugin.phase == "spray" and relays.servers:
                # A relay may be next.  Prepare it now: a spray can use up all ports that a carrier gives a subscriber.
                self._start(relays.prime)
            try:
                with panics_as_errors(), trio.fail_after(min(plugin.timeout, self._home.view.budgets.handshake)):
                    await attempt.answer(factory, request.message, self._inbound.decide)
            finally:
                if dialled is not None and attempt.met:  # it was the peer's own address: no third party was dialled
                    self._home.view.nat.dials_for_peers.give_back(dialled)
        except Exception as error:
            expected = isinstance(error, EXPECTED)
            log = logger.debug if expected else logger.warning
            log("%s for %s… failed: %s", plugin.name, peer.peer_id[:8], error, exc_info=not expected)
            if not self._inbound.is_spent(header.sender, header.session):
                self._home.signals.reply_soon(request.envelope, request.via, Failed())

    def _has_room(self, header: Header) -> bool:
        """Whether a COMMIT would be accepted, and its Link would outlive its path."""
        return self._home.terms() is not None and self._admission.would_accept(header.sender, header.session)

    def _judge(self, request: Request, plugin: type[Plugin], ours: Route) -> JudgedPath | None:
        """The judged path of a request; None for an auxiliary plugin, which makes no path.

        Raises:
          OSError: the path is not allowed, or not possible.
        """
        message, peer, view = request.message, request.envelope.sender_address, self._home.view
        if not isinstance(message, PathRequest):
            if plugin.phase is None:
                return None
            raise OSError(f"{plugin.name}'s first message names no path")
        pair = Pair(
            ours=ours,
            peers=Route(interfaces=peer.interfaces),
            same_host=peer.is_same_host(view.host),
            our_nat=view.address.nat_profiles,
            peer_nat=peer.nat_profiles,
            our_capabilities=view.address.capabilities,
            peer_capabilities=peer.capabilities,
        )
        if plugin.aim is Aim.RELAY:
            return relaying.judge_request(
                pair, technique_of(plugin), message, server=None if request.circuit is None else request.via
            )
        if plugin.aim is Aim.MEET:
            return meeting.judge_request(pair, technique_of(plugin), message)
        profiles = [profile for _, profile in view.nat.profiles]
        our_nats = {ip for profile in profiles for ip in (*profile.udp.external, *profile.tcp.external)}
        return dialling.judge_request(pair, technique_of(plugin), message, our_nats=our_nats)


_BUSY: Final = Refused(reason=RefusalReason.BUSY, retry_after=60.0 / DIALS_PER_MINUTE)


def _key(header: Header) -> AttemptKey:
    return header.sender, header.session, header.attempt or b""


def _count_down(counter: Counter[bytes], key: bytes) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _counted(path: JudgedPath | None, ours: Route) -> str | None:
    """The address that a peer has us connect to; None where it is this host's own, or where nothing is dialled."""
    if path is None or path.target is None or path.target.ip in ours.own:
        return None
    return str(path.target.ip)
