"""The called side: who is let in, and how their Pipes reach the application.

Three ways lead here: a TCP connection to the node's listening port, a Link that a plugin made for a peer's request,
and an OPEN on a Link that stands.  All end in one bounded queue, which `PipeListener` shows as a `trio.abc.Listener`.

Agreement (DESIGN §4.2): the initiator commits one carrier of a session at a time, so all that is to be seen to here
is that a session gives *one* Pipe.  `_Accepted` remembers that for longer than a walk can last; it is kept apart from
what is undecided, which any stranger can make us remember, and forget.
"""

from __future__ import annotations

import errno
import inspect
import logging
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar, final

import trio

from ..carrier import TlsCarrier
from ..errors import CarrierError, ProtocolError, WrongPeer, panics_as_errors
from ..identity import peer_id_from_key
from ..limits import BoundedMap, Gate
from ..link import Link, PathInfo, Pipe, RefuseReason
from ..link.frames import LINK_VERSION
from ..nurseries import open_background_nursery
from ..ports.accepting import accept_connections
from ..sockaddr import parse_ip, unmapped

if TYPE_CHECKING:
    from ..carrier import TlsContexts
    from ..config import Budgets

__all__ = ["Authorize", "Inbound", "PipeListener", "anyone", "check_authorize", "open_listening_sockets"]

logger: logging.Logger = logging.getLogger(__name__)

Authorize = Callable[[str], Awaitable[bool]]
"""``await authorize(peer_id)``: whether that peer may have Pipes.

The id is proven; the call is bounded by ``budgets.authorize``; what it raises counts as no."""


async def anyone(peer_id: str) -> bool:
    """The `Authorize` rule that lets everybody in, in words: ``open_node(authorize=anyone)``."""
    await trio.lowlevel.checkpoint()
    return True


def check_authorize(authorize: Authorize | None) -> None:
    """Raise `TypeError` for a rule that is no async function: each peer would be refused for it, one by one.

    A partial, a method, and an object whose ``__call__`` is async are as good; a sync function that returns a coroutine
    cannot be told from one that returns a bool.
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


MAX_WAITING_PIPES: Final = 64
"""Pipes that wait for ``listener.accept()``; the next peer hears BUSY, as a full backlog does it to TCP."""
MAX_HANDSHAKES: Final = 256
"""Inbound connections before their COMMIT, in all: what strangers can make this node hold."""
MAX_HANDSHAKES_PER_ADDRESS: Final = 64
"""Of those, from one IPv4 address or IPv6 /64: many nodes may share a NAT.  When all are taken, the oldest one of who
holds most gives way (`limits.Gate`): four /64s of one home do not keep everybody else out."""
MAX_SESSIONS: Final = 4096
"""Remembered sessions, undecided ones and accepted ones each; one costs about 300 bytes."""
REFUSED: Final = "refused_"
"""Prefix of the counters of refusals."""
SESSION_MEMORY: Final = 120.0
"""Seconds for which a session is remembered: several times ``budgets.total``."""


@final
class PipeListener(trio.abc.Listener[Pipe]):
    """The Pipes that peers open to this node; for `trio.serve_listeners` or a loop over `accept`."""

    def __init__(self) -> None:
        self._arrivals, self._waiting = trio.open_memory_channel[Pipe](MAX_WAITING_PIPES)
        self._closed: RefuseReason | None = None

    async def accept(self) -> Pipe:
        """The next Pipe.  Cancelling loses none.

        Raises:
          trio.ClosedResourceError: the listener or its node was closed.  Nothing else, whatever peers do.
        """
        while True:
            try:
                pipe = await self._waiting.receive()
            except (trio.EndOfChannel, trio.ClosedResourceError):
                raise trio.ClosedResourceError("this listener was closed") from None
            return pipe

    def room(self) -> RefuseReason | None:
        """None when a Pipe can be put in, else what to tell the peer."""
        if self._closed is not None:
            return self._closed
        stats = self._arrivals.statistics()
        free = stats.current_buffer_used < MAX_WAITING_PIPES or stats.tasks_waiting_receive > 0
        return None if free else RefuseReason.BUSY

    @property
    def waiting(self) -> int:
        """Pipes that nobody has taken yet."""
        return self._arrivals.statistics().current_buffer_used

    def put(self, pipe: Pipe) -> None:
        """Hand over an accepted Pipe; `room` was asked in the same step."""
        self._arrivals.send_nowait(pipe)

    def close_nowait(self, reason: RefuseReason = RefuseReason.NOT_ACCEPTING) -> None:
        """Stop accepting; Pipes that nobody took are aborted, and peers hear `reason` from now on."""
        if self._closed is not None:
            return
        self._closed = reason
        while True:
            try:
                self._waiting.receive_nowait().abort()
            except (trio.WouldBlock, trio.EndOfChannel):
                break
        self._arrivals.close()

    async def aclose(self) -> None:
        """Stop accepting; peers hear NOT_ACCEPTING from now on.  Pipes that nobody took are aborted.

        The node stays open.
        """
        self.close_nowait()
        await trio.lowlevel.checkpoint()


_SessionKey = tuple[bytes, bytes]
"""Peer's key, session id."""


@final
class _Question:
    """What `authorize` said about a session's peer, or is being asked."""

    __slots__ = ("asking", "authorized", "since")

    def __init__(self, now: float) -> None:
        self.since = now
        self.authorized: bool | None = None
        self.asking: trio.Event | None = None


@final
class _Accepted:
    """A session that has had its Pipe.  Its Link, once over, is not kept for that: it holds 30 KiB of TLS."""

    __slots__ = ("epoch", "link", "since")

    def __init__(self, now: float, epoch: int, link: Link) -> None:
        self.since = now
        self.epoch = epoch
        self.link = weakref.ref(link)


@final
class Inbound:
    """Serves connections and decides about commits.  Owns no nursery: its `serve_*` run in the node's.

    Args:
      authorize: None for a node that does not listen.
      take_link: offers a proven Link to the attempt of ours that it answers; False when there is none.
      adopt: drives an accepted Link in the node.
      on_accepted: told the peer's key and the session that has its Pipe.
    """

    def __init__(
        self,
        *,
        contexts: TlsContexts,
        budgets: Budgets,
        authorize: Authorize | None,
        take_link: Callable[[Link], bool],
        adopt: Callable[[Link, list[Callable[[], Awaitable[object]]]], None],
        on_accepted: Callable[[bytes, bytes], None],
    ) -> None:
        self._contexts = contexts
        self._budgets = budgets
        self._authorize = authorize
        self._take_link = take_link
        self._adopt = adopt
        self._on_accepted = on_accepted
        self._questions: BoundedMap[_SessionKey, _Question] = BoundedMap(MAX_SESSIONS)
        self._accepted: BoundedMap[_SessionKey, _Accepted] = BoundedMap(MAX_SESSIONS)
        self._gate = Gate(total=MAX_HANDSHAKES, per_address=MAX_HANDSHAKES_PER_ADDRESS, oldest_first=True)
        self.counters: Final[Counter[str]] = Counter()
        """``accepted``, ``handshakes_failed``, and refusals by ``refused_REASON``."""
        self.listener: Final = PipeListener()
        if authorize is None:
            self.listener.close_nowait()

    # -- connections -------------------------------------------------------------------------------------------------

    async def serve_socket(self, sock: trio.socket.SocketType) -> None:
        """Accept connections until the socket is closed; what goes wrong with one of them stays with it."""
        async with open_background_nursery() as nursery:
            await accept_connections(
                sock, lambda connection, source: nursery.start_soon(self._admit, connection, source[0])
            )

    async def _admit(self, connection: trio.socket.SocketType, host: str) -> None:
        with self._gate.admit(host) as place:
            if place is not None:
                await self._serve_connection(connection)
            else:
                connection.close()

    async def _serve_connection(self, connection: trio.socket.SocketType) -> None:
        link: Link | None = None
        kept = False
        try:
            with panics_as_errors():
                with trio.move_on_after(self._budgets.handshake) as handshake:
                    carrier = await TlsCarrier.serve(connection, self._contexts)
                    link = await Link.hear_proof(carrier)
                    if self._take_link(link):
                        kept = True
                        return
                    link.become(initiator=False)
                    link.path = _direct_path(carrier)
                    await link.hear_commit()
                if link is not None and not handshake.cancelled_caught:  # what is left has bounds of its own
                    kept = await self.decide(link, [])
        except (CarrierError, WrongPeer, ProtocolError, OSError, trio.BrokenResourceError) as error:
            logger.debug("an inbound connection ended: %s", error)
        except Exception:
            logger.exception("an inbound connection failed")
        finally:
            if not kept:
                self.counters["handshakes_failed"] += 1
                connection.close()
                if link is not None:
                    link.close_nowait()

    # -- decisions ---------------------------------------------------------------------------------------------------

    async def decide(self, link: Link, tasks: list[Callable[[], Awaitable[object]]]) -> bool:
        """Hear the COMMIT on a proven Link, and accept or refuse it.

        True: the Pipe is in the listener's queue and the node drives the Link.

        Raises:
          trio.BrokenResourceError, ProtocolError: the initiator chose another carrier, or went away.
        """
        commit = await link.hear_commit()
        if commit.version != LINK_VERSION:
            return await self._refuse(link, RefuseReason.UNSUPPORTED)
        if self._authorize is None:
            return await self._refuse(link, RefuseReason.NOT_ACCEPTING)
        if self._had_its_pipe(link, commit.epoch):
            return await self._refuse(link, RefuseReason.SESSION_SPENT)
        if not await link.while_waiting(lambda: self.authorize(link.peer_key, link.session_id)):
            return await self._refuse(link, RefuseReason.UNAUTHORIZED)
        if self._had_its_pipe(link, commit.epoch):  # two commits of one session can wait for one decision
            return await self._refuse(link, RefuseReason.SESSION_SPENT)
        reason = self.listener.room()
        if reason is not None:
            return await self._refuse(link, reason)
        # No checkpoint from here on: the ACCEPT, the Pipe and the driver come together or not at all.
        pipe = link.accept()
        now = trio.current_time()
        _remember(self._accepted, (link.peer_key, link.session_id), _Accepted(now, commit.epoch, link), now)
        self._adopt(link, tasks)
        self.listener.put(pipe)
        self.counters["accepted"] += 1
        self._on_accepted(link.peer_key, link.session_id)
        return True

    def _had_its_pipe(self, link: Link, epoch: int) -> bool:
        """Whether the session has; a newer commit means that the initiator never saw that one."""
        accepted = self._accepted.get((link.peer_key, link.session_id))
        if accepted is None:
            return False
        first = accepted.link()
        if first is not None and epoch > accepted.epoch:
            first.end_nowait()
        return True

    async def _refuse(self, link: Link, reason: RefuseReason) -> bool:
        self.count_refusal(reason.name)
        logger.info("refused %s…: %s", peer_id_from_key(link.peer_key)[:8], reason.name.lower())
        with trio.move_on_after(self._budgets.goodbye):
            await link.refuse(reason)
        return False

    async def authorize(self, peer_key: bytes, session_id: bytes) -> bool:
        """The application's answer about a peer, asked once per session."""
        key = (peer_key, session_id)
        question = self._questions.get(key)
        if question is None:
            now = trio.current_time()
            question = _Question(now)
            _remember(self._questions, key, question, now)
        while question.authorized is None:
            if question.asking is not None:  # on another carrier of the session, or for a request by signal
                await question.asking.wait()
                continue
            question.asking = trio.Event()
            try:
                question.authorized = await self._ask(peer_id_from_key(peer_key))
            finally:
                question.asking.set()
                question.asking = None
        return question.authorized

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
            return True  # to hear that this node does not listen
        admitted = await self.authorize(link.peer_key, link.session_id)
        if not admitted:
            self.count_refusal(RefuseReason.UNAUTHORIZED.name)
        return admitted

    def take_opened(self, pipe: Pipe) -> RefuseReason | None:
        """The peer opened a further Pipe on a Link of ours (`Link.drive`)."""
        reason = self.listener.room()
        if reason is None:
            self.listener.put(pipe)
            self.counters["accepted"] += 1
        else:
            self.count_refusal(reason.name)
        return reason

    def count_refusal(self, reason: str) -> None:
        """Somebody was told no."""
        self.counters[f"{REFUSED}{reason.lower()}"] += 1

    @property
    def handshakes(self) -> int:
        """Connections before their commit."""
        return self._gate.held

    def is_spent(self, peer_key: bytes, session_id: bytes) -> bool:
        """Whether the session has had its Pipe."""
        return (peer_key, session_id) in self._accepted


_Remembered = TypeVar("_Remembered", _Question, _Accepted)


def _remember(table: BoundedMap[_SessionKey, _Remembered], key: _SessionKey, what: _Remembered, now: float) -> None:
    """Remember a session, and forget what is too old."""
    table.put(key, what)
    table.forget_while(lambda each: now - each.since >= SESSION_MEMORY)


def _direct_path(carrier: TlsCarrier) -> PathInfo:
    """A connection to our port is a `direct_connect` of the peer's; its own record says by which route."""
    remote = parse_ip(carrier.remote[0])
    route = "LOOPBACK_BIND" if remote.is_loopback else "NIC_BIND" if remote.is_private else "EXT_BIND"
    return PathInfo(
        phase="direct",
        plugin="direct_connect",
        af=unmapped(remote).version,
        route_type=route,
        carrier=carrier.name,
        local=carrier.local,
        remote=carrier.remote,
    )


_BACKLOG: Final = 128


async def open_listening_sockets(port: int) -> list[trio.socket.SocketType]:
    """Sockets that listen on all IPv4 and all IPv6 addresses, on one port where both families exist.

    Port 0 takes any port that is free in both.  A machine without one of the families gets one socket.

    Raises:
      OSError: the port is taken, or there is no network at all.
    """
    for last_try in (*([False] * 9), True):
        try:
            return await _listen_on_both(port)
        except OSError:
            if port or last_try:  # with port 0 the second family may find the first one's port taken
                raise
    raise AssertionError("the last try returns or raises")


async def _listen_on_both(port: int) -> list[trio.socket.SocketType]:
    sockets: list[trio.socket.SocketType] = []
    try:
        for family, host in ((trio.socket.AF_INET, "0.0.0.0"), (trio.socket.AF_INET6, "::")):
            sock = await _listen(family, host, sockets[0].getsockname()[1] if sockets else port)
            if sock is not None:
                sockets.append(sock)
        if not sockets:
            raise OSError("this machine has neither IPv4 nor IPv6")
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


async def _listen(family: int, host: str, port: int) -> trio.socket.SocketType | None:
    """None when the machine does not have the family."""
    try:
        sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
    except OSError:
        return None
    try:
        if family == trio.socket.AF_INET6:
            sock.setsockopt(trio.socket.IPPROTO_IPV6, trio.socket.IPV6_V6ONLY, True)
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, True)
        await sock.bind((host, port))
        sock.listen(_BACKLOG)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError) and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return None
        raise
    return sock
