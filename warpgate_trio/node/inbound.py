"""The responder's side: connections to the listening port, and which of a session's Links becomes its Pipe.

A peer opens a Pipe in one of three ways: a TCP connection to the node's listening port, a Link that a plugin made for
the peer's request, and an OPEN on an existing Link.  All Pipes go into one bounded queue (`node.listener`).

The initiator commits one carrier of a session at a time, so this module only ensures that a session gives *one* Pipe.
`_Accepted` remembers that for longer than a walk can last.  It is kept apart from the undecided sessions
(`node.admission`), which strangers can make the node remember and so forget others.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Final, final

import trio

from ..address.scope import AddressScope, scope_of
from ..carrier import TlsCarrier, TlsContexts
from ..config import Budgets
from ..errors import CarrierError, ProtocolError, WrongPeer, panics_as_errors
from ..identity import peer_id_from_key
from ..limits import BoundedMap, Gate
from ..link import Link, PathInfo, RefuseReason
from ..link.frames import LINK_VERSION, Attach
from ..nurseries import open_background_nursery
from ..ports.accepting import accept_connections
from ..sockaddr import parse_ip, unmapped
from ..walk.attempt import Adopted
from .admission import MAX_REMEMBERED_SESSIONS, SESSION_MEMORY, Admission, SessionKey
from .links import Links

__all__ = ["Inbound"]

logger: logging.Logger = logging.getLogger(__name__)

MAX_HANDSHAKES: Final = 256
"""Inbound connections before their COMMIT, in all: this bounds what strangers can make the node hold."""
MAX_HANDSHAKES_PER_ADDRESS: Final = 64
"""Of those, from one IPv4 address or IPv6 /64; many nodes may share a NAT.  When all places are taken, the holder of
most places loses its oldest one (`limits.Gate`): four /64s of one home do not keep everybody else out."""


@final
class _Accepted:
    """A session that has had its Pipe.  The reference to its Link is weak: a Link holds 30 KiB of TLS state."""

    __slots__ = ("epoch", "link", "since")

    def __init__(self, now: float, epoch: int, link: Link) -> None:
        self.since = now
        self.epoch = epoch
        self.link = weakref.ref(link)


@final
class Inbound:
    """Serves connections and decides about commits.  It owns no nursery: its `serve_*` run in the node's.

    Args:
      admission: decides which peers are admitted.
      links: drives accepted Links.
      take_link: offers a proven Link to the attempt of ours that it belongs to; False where there is none.
      on_accepted: called with the peer's key and the id of a session that has its Pipe.

    Attributes:
      failed: connections whose handshake failed, or whose COMMIT or ATTACH was refused.
    """

    def __init__(
        self,
        *,
        contexts: TlsContexts,
        budgets: Budgets,
        admission: Admission,
        links: Links,
        take_link: Callable[[Link], bool],
        on_accepted: Callable[[bytes, bytes], None],
    ) -> None:
        self._contexts = contexts
        self._budgets = budgets
        self._admission = admission
        self._links = links
        self._take_link = take_link
        self._on_accepted = on_accepted
        self._accepted: BoundedMap[SessionKey, _Accepted] = BoundedMap(MAX_REMEMBERED_SESSIONS)
        self._gate = Gate(total=MAX_HANDSHAKES, per_address=MAX_HANDSHAKES_PER_ADDRESS, oldest_first=True)
        self.failed: int = 0

    # -- connections -------------------------------------------------------------------------------------------------

    async def serve_socket(self, sock: trio.socket.SocketType) -> None:
        """Accept connections until the socket is closed.  A failure of one connection affects no other."""
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
                    link = await Link.receive_proof(carrier)
                    if self._take_link(link):
                        kept = True
                        return
                    link.set_role(initiator=False)
                    link.path = _direct_path(carrier)
                    await link.receive_choice()
                if link is not None and not handshake.cancelled_caught:  # the steps that follow have their own bounds
                    kept = await self.decide(link, [])
        except (CarrierError, WrongPeer, ProtocolError, OSError, trio.BrokenResourceError) as error:
            logger.debug("an inbound connection ended: %s", error)
        except Exception:
            logger.exception("an inbound connection failed")
        finally:
            if not kept:
                self.failed += 1
                connection.close()
                if link is not None:
                    link.close_nowait()

    # -- decisions ---------------------------------------------------------------------------------------------------

    async def decide(self, link: Link, tasks: Adopted) -> bool:
        """Receive the COMMIT or ATTACH on a proven Link, and accept or refuse it.

        Returns:
          True where it was accepted: the Pipe of a COMMIT is in the listener's queue, and the node drives the Link.

        Raises:
          trio.BrokenResourceError, ProtocolError: the initiator chose another carrier, or went away.
        """
        commit = await link.receive_choice()
        if isinstance(commit, Attach):
            return await self._attach(link, commit, tasks)
        if commit.version != LINK_VERSION:
            return await self._refuse(link, RefuseReason.UNSUPPORTED)
        if not self._admission.listening:
            return await self._refuse(link, RefuseReason.NOT_ACCEPTING)
        if self._had_its_pipe(link, commit.epoch):
            return await self._refuse(link, RefuseReason.SESSION_SPENT)
        who = link.peer_key, link.session_id
        while True:  # ask again where `Node.revoke` was called before the answer came
            if not await link.while_waiting(lambda: self._admission.authorize(*who)):
                return await self._refuse(link, RefuseReason.UNAUTHORIZED)
            if self._admission.has_let_in(*who):
                break
        if self._had_its_pipe(link, commit.epoch):  # two commits of one session can wait for one decision
            return await self._refuse(link, RefuseReason.SESSION_SPENT)
        ended = self._links.replace(link.peer_key, commit.terms)
        reason = self._admission.room(ended)
        if reason is not None:
            return await self._refuse(link, reason)
        # No checkpoint from here on: the ACCEPT, the Pipe and the driver come together or not at all.
        pipe = link.accept(self._links.terms())
        now = trio.current_time()
        self._accepted.put((link.peer_key, link.session_id), _Accepted(now, commit.epoch, link))
        self._accepted.forget_while(lambda each: now - each.since >= SESSION_MEMORY)
        self._links.adopt(link, tasks)
        self._admission.hand_over(pipe)
        self._on_accepted(link.peer_key, link.session_id)
        return True

    async def _attach(self, link: Link, attach: Attach, tasks: Adopted) -> bool:
        """Attach a further carrier to an existing Link, or refuse it."""
        standing = self._links.find(link.peer_key, attach.link_id)
        reason = RefuseReason.UNKNOWN_LINK if standing is None else link.accept_attach(standing, tasks)
        if reason is not None:
            return await self._refuse(link, reason)
        self._on_accepted(link.peer_key, link.session_id)
        return True

    def _had_its_pipe(self, link: Link, epoch: int) -> bool:
        """Whether the session has had its Pipe.  A COMMIT with a higher epoch means that the initiator never received
        the ACCEPT: the accepted Link is ended.
        """
        accepted = self._accepted.get((link.peer_key, link.session_id))
        if accepted is None:
            return False
        first = accepted.link()
        if first is not None and epoch > accepted.epoch:
            first.end_nowait()
        return True

    async def _refuse(self, link: Link, reason: RefuseReason) -> bool:
        self._admission.count_refusal(reason.name)
        logger.info("refused %s…: %s", peer_id_from_key(link.peer_key)[:8], reason.name.lower())
        with trio.move_on_after(self._budgets.goodbye):
            await link.refuse(reason)
        return False

    @property
    def handshakes(self) -> int:
        """The number of inbound connections before their COMMIT."""
        return self._gate.held

    def is_spent(self, peer_key: bytes, session_id: bytes) -> bool:
        """Whether the session has had its Pipe."""
        return (peer_key, session_id) in self._accepted


def _direct_path(carrier: TlsCarrier) -> PathInfo:
    """The path of a connection to our port: a `direct_connect` of the peer, with the route type by its address."""
    remote = parse_ip(carrier.remote[0])
    scope = scope_of(remote)
    route = {AddressScope.LOOPBACK: "LOOPBACK_BIND", AddressScope.PUBLIC: "EXT_BIND"}.get(scope, "NIC_BIND")
    return PathInfo(
        phase="direct",
        plugin="direct_connect",
        af=unmapped(remote).version,
        route_type=route,
        carrier=carrier.name,
        local=carrier.local,
        remote=carrier.remote,
    )
