"""How a carrier becomes a Link, or a lane of an existing one: from PROOF to ACCEPT or ATTACHED.

The handshake runs inline, in the task of the attempt that wants the Link: whatever ends that task closes the carrier.

1. The dialler proves its identity (`prove`, `receive_proof`).
2. The initiator chooses the carrier for a new Link (`commit`), or for an existing one (`attach`).
3. The responder waits for that (`receive_choice`), and takes it (`accept`, `accept_attach`) or refuses it (`refuse`).

A carrier that becomes a lane of another Link is removed from the Link object that proved it, which is empty then.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Self

import trio

from ..errors import PeerRefused, ProtocolError, RemoteProtocolError, WrongPeer, panics_as_errors
from ..identity import check_proof, prove
from ..limits import TokenBucket
from .channels import EARLY_DATA_LIMIT
from .frame_codec import data_header
from .frames import LINK_VERSION, Attach, Commit, Proof, Refuse, RefuseReason, Terms
from .lane import LaneProtocol
from .lane_driver import LaneDriver
from .protocol import LinkProtocol
from .states import LinkState

if TYPE_CHECKING:
    from ..carrier import Carrier
    from ..identity import Identity
    from .channel import Channel
    from .pipe import Pipe

__all__ = ["Handshake", "Task"]

ATTACHES_PER_MINUTE: Final = 10
"""Carriers that a peer may attach to one Link in a minute: its searches make six in the first minute, fewer later."""

Task = Callable[[], Awaitable[object]]
"""A task that a plugin runs for a carrier."""


# long: each step of the handshake, on either side, for a new Link and for an existing one
class Handshake(ABC):
    """The part of a Link that makes it.

    Attributes:
      peer_key: the peer's Ed25519 key, proven.
      session_id: 16 bytes that identify the call that this Link belongs to.
      attempt_id: 16 bytes that identify the dialler's attempt, from `receive_proof` on.
      link_id: 16 bytes that identify the Link, from COMMIT on.
    """

    def __init__(self, carrier: Carrier, *, peer_key: bytes, session_id: bytes, initiator: bool | None) -> None:
        lane = LaneProtocol(
            dialler=carrier.dialler,
            initiator=initiator,
            now=trio.current_time(),
            idle_interval=carrier.idle_interval,
            padded=carrier.name != "quic",  # which pads its own first datagrams
        )
        lane.began = carrier.began
        self.protocol: Final = LinkProtocol(lane, initiator=initiator)
        self.peer_key = peer_key
        self.session_id = session_id
        self.attempt_id: bytes = b""
        self.link_id: bytes = b""
        self._first: Final = LaneDriver(carrier, lane, self.protocol, self._lose)
        self._admitted: bool | None = None
        self._accept_within = math.inf  # seconds, where the ACCEPT was promised
        self._attaches: Final = TokenBucket(ATTACHES_PER_MINUTE / 60, ATTACHES_PER_MINUTE)

    @property
    @abstractmethod
    def carrier(self) -> Carrier:
        """The carrier that we speak on, or spoke on last."""

    @abstractmethod
    def _lose(self, lane: LaneDriver, error: Exception) -> None:
        """Remove a carrier that is gone."""

    @abstractmethod
    def _fail(self, failure: Exception) -> None:
        """End the Link, and close its carriers."""

    @abstractmethod
    async def _pump(self, lane: LaneDriver) -> None:
        """Read a carrier once, and act on what came.  A checkpoint always."""

    @abstractmethod
    def _pipe(self, channel: Channel) -> Pipe:
        """The Pipe of a channel."""

    @abstractmethod
    def _give_to(self, link: Handshake, tasks: Sequence[Task]) -> None:
        """Give our carrier to another Link, as a lane; nothing is left here."""

    # -- the handshake, in the attempt's task ------------------------------------------------------------------------

    @classmethod
    async def prove(
        cls,
        carrier: Carrier,
        identity: Identity,
        *,
        peer_key: bytes,
        session_id: bytes,
        attempt_id: bytes,
        initiator: bool,
    ) -> Self:
        """The dialler's start: prove our identity.  Closes the carrier on any failure, like all of the handshake."""
        link = cls(carrier, peer_key=peer_key, session_id=session_id, initiator=initiator)
        with link._closing_on_error():
            signature = prove(identity, server_key=carrier.server_key, session_id=session_id)
            link._first.protocol.send_proof(
                Proof(
                    client_key=identity.public_key,
                    session_id=session_id,
                    attempt_id=attempt_id,
                    signature=signature,
                )
            )
            await link._first.flush()
        return link

    @classmethod
    async def receive_proof(cls, carrier: Carrier) -> Self:
        """The listener's start: learn who dialled.  The caller has to settle the session's roles (`set_role`).

        Raises:
          WrongPeer: the signature of the proof is wrong.
          RemoteProtocolError, trio.BrokenResourceError: no proof came.
        """
        link = cls(carrier, peer_key=bytes(32), session_id=bytes(16), initiator=None)
        with link._closing_on_error():
            while (proof := link._first.protocol.proof) is None:
                await link._pump(link._first)
            if proof.version != LINK_VERSION:
                raise RemoteProtocolError(
                    f"the peer speaks version {proof.version} of the link protocol; this node speaks {LINK_VERSION}"
                )
            if not check_proof(
                client_key=proof.client_key,
                server_key=carrier.server_key,
                session_id=proof.session_id,
                signature=proof.signature,
            ):
                raise WrongPeer("the dialler's signature is invalid")
            link.peer_key, link.session_id, link.attempt_id = proof.client_key, proof.session_id, proof.attempt_id
        return link

    def set_role(self, *, initiator: bool) -> None:
        """Settle which side of the session we are, after `receive_proof`.

        Raises:
          RemoteProtocolError: the peer may not send what came behind its PROOF.
        """
        with self._closing_on_error():
            self.protocol.set_role(initiator=initiator, now=trio.current_time())

    async def commit(
        self,
        *,
        epoch: int,
        link_id: bytes,
        early_data: bytes = b"",
        patience: float,
        terms: Terms | None = None,
        promised: bool = False,
    ) -> Pipe:
        """The initiator's choice of this carrier for a new Link; returns its Pipe when the peer has accepted.

        Args:
          epoch: counts the session's commits from 1.
          link_id: 16 bytes that identify the new Link.
          early_data: at most 64 KiB that the peer's application gets with the Pipe.
          patience: seconds without any sign of life after which the peer counts as gone.  PINGs ask it for one
            meanwhile, so a peer that takes its time to authorize is not given up.
          terms: our terms for a Link whose ends acknowledge what they receive; None: they do not acknowledge.
          promised: the peer has promised to accept.  Then the Pipe is returned at once, without a checkpoint, and
            carries `EARLY_DATA_LIMIT` bytes until the peer has accepted.  `drive` takes the answer; the Pipe breaks if
            that is a refusal, or if none has come after `patience`.

        Raises:
          PeerRefused: the peer refused.
          trio.BrokenResourceError: the peer is gone, or silent for `patience`.
          RemoteProtocolError: the peer broke the protocol.
        """
        if len(early_data) > EARLY_DATA_LIMIT:
            raise ValueError(f"early_data is {len(early_data)} bytes; at most {EARLY_DATA_LIMIT} are allowed")
        with self._closing_on_error():
            protocol = self.protocol
            channel = protocol.send_commit(
                session_id=self.session_id, link_id=link_id, epoch=epoch, now=trio.current_time(), terms=terms
            )
            self.link_id = link_id
            self._first.feed_outbox()
            if early_data:
                protocol.note_data_sent(self._first.protocol, channel, memoryview(early_data), trio.current_time())
                self.carrier.feed(data_header(0, len(early_data)), early_data)
            if promised:
                self._accept_within = patience
                return self._pipe(channel)
            while protocol.state is LinkState.COMMITTED:
                await self._exchange(patience, "commit")
            if self._first.protocol.refusal is not None:
                raise self.refused(self._first.protocol.refusal)
            if not channel.accepted:
                raise trio.BrokenResourceError("the peer ended the link before it accepted")
            return self._pipe(channel)  # even if all of its data and its end came in one read

    async def _exchange(self, patience: float, after: str) -> None:
        """Send what is pending, then read once; sends a PING if nothing comes.

        It sends first, so that there is no checkpoint after the answer has come.  Sending is bounded too: a path that
        does not accept everything may be slow and still bring the answer, or may be dead.

        Raises:
          trio.BrokenResourceError: the peer was silent for `patience` seconds.
        """
        lane = self._first
        with trio.move_on_after(patience / 3):
            await lane.flush()
        with trio.move_on_after(patience / 3) as scope:
            await self._pump(lane)
        if scope.cancelled_caught:
            if lane.protocol.life.silence(trio.current_time()) >= patience:
                raise trio.BrokenResourceError(f"the peer fell silent for {patience:g} s after the {after}")
            lane.protocol.send_ping(trio.current_time())

    async def attach(
        self, link: Handshake, *, tasks: Sequence[Task] = (), patience: float, preferred: bool = False
    ) -> None:
        """Make this proven carrier a lane of an existing Link; returns when the peer has taken it.

        Args:
          link: the existing Link.
          tasks: tasks that the carrier needs; they end with it.
          patience: as in `commit`.
          preferred: the carrier is better than the one that the Link speaks on.  The Link changes over to it once it
            has carried bulk.

        Raises:
          PeerRefused: the peer does not know the Link, or has no room for a lane.
          trio.BrokenResourceError: the peer is gone, or silent for `patience`; or the Link has ended meanwhile.
          RemoteProtocolError: the peer broke the protocol.  If that happened behind its answer, the Link is over.
        """
        with self._closing_on_error():
            lane, proof = self._first.protocol, {"session_id": self.session_id, "server_key": self.carrier.server_key}
            link.protocol.attach(lane, **proof, now=trio.current_time(), preferred=preferred)
            while lane.state is LinkState.ATTACHING:
                await self._exchange(patience, "attach")
            if lane.refusal is not None:
                raise self.refused(lane.refusal)
            if lane.attached is None:
                raise trio.BrokenResourceError("the peer closed the connection before it had attached it to the link")
            if not link.protocol.is_up:
                raise trio.BrokenResourceError("the link has ended meanwhile")
            with link._failing_by(lane):
                link.protocol.hear_attached(lane, lane.attached, **proof, now=trio.current_time())
            if preferred:
                link.protocol.prefer(lane, trio.current_time())
            self._give_to(link, tasks)

    async def receive_choice(self) -> Commit | Attach:
        """Wait for the initiator's choice: a new Link, or an existing one.  Errors as in `receive_commit`."""
        lane = self._first.protocol
        with self._closing_on_error():
            while self._first.protocol.commit is None and lane.attach is None:
                await self._first.flush()  # first: a PING may have come with the PROOF
                await self._pump(self._first)
                if self.protocol.state is LinkState.ENDED:
                    raise trio.BrokenResourceError("the peer closed the connection without choosing it")
            return lane.attach or await self.receive_commit()

    def accept_attach(self, link: Handshake, tasks: Sequence[Task] = ()) -> RefuseReason | None:
        """Make this carrier a lane of the Link that its ATTACH names.  Synchronous.

        Returns None, or the reason for which the ATTACH is to be refused.

        Raises:
          RemoteProtocolError: the peer may not send what came behind the ATTACH; the Link is over.
        """
        lane, proof = self._first.protocol, {"session_id": self.session_id, "server_key": self.carrier.server_key}
        assert lane.attach is not None
        if link.peer_key != self.peer_key:
            return RefuseReason.UNKNOWN_LINK
        reason, now = link.protocol.judge_attach(lane.attach, **proof), trio.current_time()
        if reason is not None:
            return reason
        if not link._attaches.take(now):  # counted only now, so only the Link's peer uses them up
            return RefuseReason.BUSY
        with link._failing_by(lane):
            link.protocol.take_attach(lane, **proof, now=now)
        self._give_to(link, tasks)
        return None

    @contextmanager
    def _failing_by(self, lane: LaneProtocol) -> Iterator[None]:
        """Fail the Link if processing what came behind ATTACH or ATTACHED raises, as on any other lane.

        The new lane has no driver yet that would do so.
        """
        try:
            yield
        except Exception as error:
            if lane in self.protocol.lanes:
                self._fail(error)
            raise

    async def receive_commit(self) -> Commit:
        """Wait for the initiator's COMMIT.

        Raises:
          trio.BrokenResourceError: the peer is gone, or chose another carrier, as all carriers but one in a race see.
          RemoteProtocolError: the COMMIT is for another session than the PROOF was.
        """
        with self._closing_on_error():
            while (commit := self._first.protocol.commit) is None:
                await self._first.flush()  # first: a PING may have come with the PROOF
                await self._pump(self._first)
                if self.protocol.state is LinkState.ENDED:
                    raise trio.BrokenResourceError("the peer closed the connection without choosing it")
            if commit.version == LINK_VERSION and commit.session_id != self.session_id:
                raise RemoteProtocolError("the COMMIT names another session than the PROOF")
            self.link_id = commit.link_id
            return commit

    async def while_waiting(self, decide: Callable[[], Awaitable[bool]]) -> bool:
        """Run `decide` while answering the initiator's PINGs.

        Raises `trio.BrokenResourceError` if the initiator goes away, and what `decide` raises.
        """
        outcome: list[bool] = []
        failure: list[Exception] = []

        async def listen(scope: trio.CancelScope) -> None:
            try:
                with panics_as_errors():
                    while self.protocol.state is not LinkState.ENDED:
                        await self._first.flush()  # first: a PING may have come with the COMMIT
                        await self._pump(self._first)
                failure.append(trio.BrokenResourceError("the peer went away"))
            except Exception as error:
                failure.append(error)
            scope.cancel()

        async def run(scope: trio.CancelScope) -> None:
            try:
                with panics_as_errors():
                    outcome.append(await decide())
            except Exception as error:
                failure.append(error)
            scope.cancel()

        with self._closing_on_error():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen, nursery.cancel_scope)
                nursery.start_soon(run, nursery.cancel_scope)
            if failure:
                raise failure[0]
            return outcome[0]

    def accept(self, terms: Terms | None = None) -> Pipe:
        """Accept the COMMIT.  Synchronous, without a checkpoint; `drive` sends the ACCEPT."""
        channel = self.protocol.send_accept(now=trio.current_time(), terms=terms)
        self._admitted = True  # `authorize` was asked before the ACCEPT
        self._first.feed_outbox()
        return self._pipe(channel)

    async def refuse(self, reason: RefuseReason, text: str = "") -> None:
        """Refuse the Link and close the carrier.  Waits for the peer to close too, so the caller has to bound it."""
        try:
            self.protocol.send_refuse(reason, text)
            await self._first.flush()
            self.carrier.feed_end()
            await self.carrier.flush()
            while await self.carrier.receive():  # let the peer read it before the socket closes: a RST could discard it
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError):
            pass  # the peer is gone, or the Link was closed meanwhile
        finally:
            self.carrier.close_nowait()

    def close_nowait(self) -> None:
        """Close the Link without a GOAWAY, as for a carrier that lost its race."""
        self._fail(trio.ClosedResourceError("this link was closed"))

    def refused(self, refusal: Refuse) -> PeerRefused:
        """The exception for a REFUSE frame."""
        try:
            name = RefuseReason(refusal.reason).name.lower().replace("_", " ")
        except ValueError:
            name = f"reason {refusal.reason}"
        text = "".join(filter(str.isprintable, refusal.text))  # it is shown to people, perhaps on a terminal
        return PeerRefused(refusal.reason, f"the peer refused: {name}" + (f" ({text})" if text else ""))

    @contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._fail(error if isinstance(error, Exception) else trio.ClosedResourceError("the attempt was cancelled"))
            raise
