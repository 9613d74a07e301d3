"""The Trio shell of a Link: it owns the carrier and its one reader, and turns channels into Pipes.

Life.  The handshake (`prove` or `receive_proof`, `commit` or `receive_commit` and `accept`) runs inline, in the task of
the attempt that wants the Link: whatever ends that task closes the carrier.  From ACCEPT on `drive` runs in a nursery
of the node.  It shields itself and ends when the last Pipe was closed here, when the peer or the path is gone, or
within the goodbye time after the node said `end_nowait` (docs/architecture.md).
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from ..errors import PeerRefused, ProtocolError, RemoteProtocolError, WrongPeer, panics_as_errors
from ..identity import check_proof, peer_id_from_key, prove
from .channels import EARLY_DATA_LIMIT
from .frames import LINK_VERSION, MAX_LABEL, Commit, Proof, Refuse, RefuseReason, Terms, data_header
from .life import Life
from .path import PathInfo, PathState
from .pipe import Pipe
from .protocol import LinkProtocol
from .states import LinkState
from .writer import LinkWriter

if TYPE_CHECKING:
    from ..carrier import Carrier
    from ..identity import Identity
    from .channel import Channel

__all__ = ["Link"]

logger: logging.Logger = logging.getLogger(__name__)

OpenHandler = Callable[[Pipe], RefuseReason | None]
"""Takes a Pipe that the peer opened; a reason instead of None refuses it."""
Admit = Callable[["Link"], Awaitable[bool]]
"""Decides, at its first OPEN, whether a peer that was called here may open Pipes; no means UNAUTHORIZED."""


def refuse_all(_pipe: Pipe) -> RefuseReason:
    """The `OpenHandler` of a node that does not listen."""
    return RefuseReason.NOT_ACCEPTING


@final
# long: a session has one owner from PROOF to GOAWAY: handshake, driver and Pipes share its carrier, reader and end
class Link:
    """One side of the session between two peers on one carrier.  Attributes are for reading.

    Attributes:
      peer_key: the peer's Ed25519 key, proven.
      session_id: 16 bytes that name the call that this Link belongs to.
      attempt_id: 16 bytes that name the attempt the dialler made it for, from `receive_proof` on.
      link_id: 16 bytes, from COMMIT on.
      path: how the Link came about; set by the attempt that made it.
    """

    def __init__(self, carrier: Carrier, *, peer_key: bytes, session_id: bytes, initiator: bool | None) -> None:
        self.carrier: Final = carrier
        self.protocol: Final = LinkProtocol(
            dialler=carrier.dialler,
            initiator=initiator,
            now=trio.current_time(),
            idle_interval=carrier.idle_interval,
            padded=carrier.name != "quic",  # which pads its own first datagrams
        )
        self.peer_key = peer_key
        self.session_id = session_id
        self.attempt_id: bytes = b""
        self.link_id: bytes = b""
        self.path: PathInfo | None = None
        self._writer: Final = LinkWriter(carrier, self.protocol, self._set_alarm)
        self._answers: Final = trio.lowlevel.ParkingLot()
        self._path_lot: Final = trio.lowlevel.ParkingLot()
        self._life = Life.WELL  # as those know who wait in it
        self._alarm = trio.CancelScope(deadline=-math.inf)  # of `_watch`
        self._pipes: set[Channel] = set()
        self._scope: Final = trio.CancelScope()
        self._ending = False
        self._goodbye: float | None = None  # None: not driven yet
        self._on_open: OpenHandler = refuse_all
        self._admitted: bool | None = None
        self._first_open = trio.Event()

    def __repr__(self) -> str:
        return f"<Link to {peer_id_from_key(self.peer_key)[:8]}… {self.protocol.state.value}>"

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
    ) -> Link:
        """The dialler's start: say who we are.  Closes the carrier on any failure, like all of the handshake."""
        link = cls(carrier, peer_key=peer_key, session_id=session_id, initiator=initiator)
        with link._closing_on_error():
            signature = prove(identity, server_key=carrier.server_key, session_id=session_id)
            link.protocol.send_proof(
                Proof(
                    client_key=identity.public_key,
                    session_id=session_id,
                    attempt_id=attempt_id,
                    signature=signature,
                )
            )
            await link._writer.flush()
        return link

    @classmethod
    async def receive_proof(cls, carrier: Carrier) -> Link:
        """The listener's start: learn who dialled.  The session's roles are for the caller to settle (`set_role`).

        Raises:
          WrongPeer: the proof does not hold.
          RemoteProtocolError, trio.BrokenResourceError: no proof came.
        """
        link = cls(carrier, peer_key=bytes(32), session_id=bytes(16), initiator=None)
        with link._closing_on_error():
            while (proof := link.protocol.proof) is None:
                await link._pump()
            if proof.version != LINK_VERSION:
                raise RemoteProtocolError(f"the peer speaks version {proof.version} of the link protocol")
            if not check_proof(
                client_key=proof.client_key,
                server_key=carrier.server_key,
                session_id=proof.session_id,
                signature=proof.signature,
            ):
                raise WrongPeer("the dialler's proof does not hold")
            link.peer_key, link.session_id, link.attempt_id = proof.client_key, proof.session_id, proof.attempt_id
        return link

    def set_role(self, *, initiator: bool) -> None:
        """Settle, after `receive_proof`, which side of the session we are; raises `RemoteProtocolError` like a read."""
        with self._closing_on_error():
            self.protocol.set_role(initiator=initiator, now=trio.current_time())

    async def commit(
        self, *, epoch: int, link_id: bytes, early_data: bytes = b"", patience: float, terms: Terms | None = None
    ) -> Pipe:
        """The initiator's choice of this Link; returns its Pipe when the peer accepted.

        Args:
          epoch: counts the session's commits from 1.
          early_data: at most 64 KiB that the peer's application gets with the Pipe.
          patience: seconds without any sign of life from the peer after which it counts as gone; it is asked for one
            all along, so a peer that takes its time to authorize is not given up.
          terms: what we offer for a Link whose ends acknowledge what they take in; None: nothing.

        Raises:
          PeerRefused: the peer said no.
          trio.BrokenResourceError: the peer is gone, or silent for `patience`.
          RemoteProtocolError: it answered nonsense.
        """
        if len(early_data) > EARLY_DATA_LIMIT:
            raise ValueError(
                f"early_data is {len(early_data)} bytes; at most {EARLY_DATA_LIMIT} may ride with a COMMIT"
            )
        with self._closing_on_error():
            protocol = self.protocol
            channel = protocol.send_commit(
                session_id=self.session_id, link_id=link_id, epoch=epoch, now=trio.current_time(), terms=terms
            )
            self.link_id = link_id
            self.carrier.feed(protocol.transmit(trio.current_time()))
            if early_data:
                protocol.note_data_sent(channel, memoryview(early_data), trio.current_time())
                self.carrier.feed(data_header(0, len(early_data)), early_data)
            while protocol.state is LinkState.COMMITTED:
                # Not after the read: from the ACCEPT on there is no checkpoint.  And not for long: a path that does not
                # carry all of it may be slow, and bring the answer, or be silent.
                with trio.move_on_after(patience / 3):
                    await self._writer.flush()
                with trio.move_on_after(patience / 3) as scope:
                    await self._pump()
                if scope.cancelled_caught:
                    if protocol.life.silence(trio.current_time()) >= patience:
                        raise trio.BrokenResourceError(f"the peer fell silent for {patience:g} s after the commit")
                    protocol.send_ping(trio.current_time())
            if protocol.refusal is not None:
                raise self.refused(protocol.refusal)
            if not channel.accepted:
                raise trio.BrokenResourceError("the peer ended the link before it accepted")
            return self._pipe(channel)  # also when its whole life, data and end, came in one read

    async def receive_commit(self) -> Commit:
        """The responder waits to be chosen.

        Raises:
          trio.BrokenResourceError: the peer is gone, or chose another carrier: how the losers of a race end.
          RemoteProtocolError: the COMMIT is for another session than the PROOF was.
        """
        with self._closing_on_error():
            while (commit := self.protocol.commit) is None:
                await self._writer.flush()  # first: a PING may have come with the PROOF
                await self._pump()
                if self.protocol.state is LinkState.ENDED:
                    raise trio.BrokenResourceError("the peer went away without a commit")
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
                        await self._writer.flush()  # first: a PING may have come with the COMMIT
                        await self._pump()
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
        """Take the COMMIT.  Synchronous: ACCEPT is on its way once `drive` runs, and no checkpoint lies between."""
        channel = self.protocol.send_accept(now=trio.current_time(), terms=terms)
        self._admitted = True  # `authorize` was asked before the ACCEPT
        self.carrier.feed(self.protocol.transmit(trio.current_time()))
        return self._pipe(channel)

    async def refuse(self, reason: RefuseReason, text: str = "") -> None:
        """Say no, and close; the caller bounds it."""
        try:
            self.protocol.send_refuse(reason, text)
            await self._writer.flush()
            self.carrier.feed_end()
            await self.carrier.flush()
            while await self.carrier.receive():  # let the peer read it before the socket goes: a reset would eat it
                pass
        except (trio.BrokenResourceError, ProtocolError):
            pass  # it does not want to hear it
        finally:
            self.carrier.close_nowait()

    def close_nowait(self) -> None:
        """Drop the Link without a goodbye: the end of one that lost its race."""
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

    # -- the driver, in the node's nursery ---------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def drive(self, *, on_open: OpenHandler, admit: Admit | None = None, goodbye: float) -> None:
        """Run the Link until it ends.  Never raises, and is not cancelled from outside: see `end_nowait`.

        Args:
          on_open: gets the Pipes that the peer opens.
          admit: asked before the first of them where the peer was called by us, so that nobody has decided about it
            yet; None lets it.
          goodbye: seconds for the last words once the Link ends here.
        """
        self._on_open, self._goodbye = on_open, goodbye
        self._admitted = self._admitted or (None if admit is not None else True)
        self._scope.shield = True
        with self._scope:
            if self._ending:  # everything was closed before the driver had its first turn
                self._bound_goodbye()
            self.protocol.send_ping(trio.current_time())  # the round trip, for credit and for `Pipe.path`
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._guard, partial(self._writer.run, lambda: self._ending))
                nursery.start_soon(self._guard, self._watch)
                if admit is not None and not self._admitted:
                    nursery.start_soon(self._guard, partial(self._decide_admission, admit))
                await self._guard(self._read_loop)
                nursery.cancel_scope.cancel()
        self._fail(trio.BrokenResourceError("the link ended"))

    @trio.lowlevel.enable_ki_protection  # a record that Ctrl-C cuts off would be one that somebody has forged
    async def _guard(self, loop: Callable[[], Awaitable[None]]) -> None:
        try:
            with panics_as_errors():
                await loop()
        except (trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError) as error:
            logger.debug("%r: %s", self, error)
            self._fail(error)
            self._scope.cancel()
        except Exception as error:
            logger.exception("%r: the driver failed", self)
            self._fail(error)
            self._scope.cancel()

    async def _read_loop(self) -> None:
        self._answer_opens()  # the peer may have opened a Pipe right behind its ACCEPT
        while self.protocol.state is not LinkState.ENDED:
            await self._pump()
        self._bound_goodbye()
        while await self.carrier.receive():  # until the peer has closed too: closing first could eat our last words
            pass

    async def _watch(self) -> None:
        """Ask for signs of life.  A task of its own, since a peer that does not read holds the write loop up."""
        while True:
            with trio.CancelScope(deadline=self.protocol.deadline) as self._alarm:
                await trio.sleep_forever()
            self.protocol.handle_timer(trio.current_time())
            life = self.protocol.life
            self._tell_life()
            if life.life is Life.DEAD:
                silence = life.silence(trio.current_time())
                raise trio.BrokenResourceError(f"the path is dead: the peer was not heard for {silence:.0f} s")
            if self.protocol.has_outbox:
                self._writer.poke()

    def _tell_life(self) -> None:
        if self._life is not self.protocol.life.life:
            self._life = self.protocol.life.life
            self._path_lot.unpark_all()

    def set_dead_after(self, seconds: float) -> None:
        """Before `drive`: within how many seconds the path's death is to be noticed; 0: it is asked as ever."""
        self.protocol.life.notice_within = seconds or math.inf

    def hint(self) -> None:
        """Something has happened that may have killed the path: it is asked at once, see `LifeJudge.hint`."""
        self.protocol.hint(trio.current_time())
        self._writer.poke()
        self._set_alarm()

    def _set_alarm(self) -> None:
        """A timer may have begun.  One that ended needs nothing: the watch finds that nothing is due, and sleeps on."""
        deadline = self.protocol.deadline
        if deadline < self._alarm.deadline:
            self._alarm.deadline = deadline

    async def _pump(self) -> None:
        """Take one turn: read once, unless something was left, and let the protocol see it.  A checkpoint always."""
        protocol = self.protocol
        if pause := protocol.pause(trio.current_time()):
            await trio.sleep(pause)  # pacing: its own system holds the peer up meanwhile
        pieces: list[bytes] = []
        if protocol.has_unread:
            await trio.lowlevel.checkpoint()
        else:
            pieces = await self.carrier.receive()
            if not pieces:
                raise trio.BrokenResourceError("the peer closed the connection")
        protocol.receive(pieces, trio.current_time())
        for channel in protocol.take_touched():
            if channel.observer is not None:
                channel.observer.wake()
        self._answers.unpark_all()
        self._tell_life()
        if self._goodbye is not None:
            self._answer_opens()
        if protocol.has_outbox:
            self._writer.poke()
        self._set_alarm()

    async def _decide_admission(self, admit: Admit) -> None:
        await self._first_open.wait()
        self._admitted = await admit(self)
        self._answer_opens()
        self._writer.poke()

    def _answer_opens(self) -> None:
        if self._admitted is None:  # they wait in the protocol, where their number is bounded
            if self.protocol.has_opened:
                self._first_open.set()
            return
        for opened in self.protocol.take_opened():
            self._answer_open(opened.channel)

    def _answer_open(self, channel: Channel) -> None:
        if self._ending:
            reason: RefuseReason | None = RefuseReason.NOT_ACCEPTING
        elif not self._admitted:
            reason = RefuseReason.UNAUTHORIZED
        else:
            reason = self._on_open(self._pipe(channel))
        if reason is None:
            self.protocol.accept_channel(channel)
        else:
            self._pipes.discard(channel)
            channel.closed_here = True
            self.protocol.refuse_channel(channel, reason)

    def end_nowait(self, *, abort: bool = False) -> None:
        """Close or abort every Pipe of the Link, and let the driver say goodbye, within its goodbye time from now."""
        for channel in list(self._pipes):
            self.close_channel(channel, abort=abort)
        self._end()

    def _end(self) -> None:
        self._ending = True
        self._writer.poke()
        self._bound_goodbye()

    def _bound_goodbye(self) -> None:
        if self._goodbye is not None:
            self._scope.deadline = min(self._scope.deadline, trio.current_time() + self._goodbye)

    def _fail(self, failure: Exception) -> None:
        """The Link is over: break what is open, wake everybody, close the socket.  Idempotent."""
        self.protocol.break_all(failure)
        self.carrier.close_nowait()
        self._answers.unpark_all()
        self._path_lot.unpark_all()
        for channel in self.protocol.take_touched():
            if channel.observer is not None:
                channel.observer.wake()

    # -- for the Pipes -----------------------------------------------------------------------------------------------

    def _pipe(self, channel: Channel) -> Pipe:
        self._pipes.add(channel)
        return Pipe(self, channel)

    async def send_data(self, channel: Channel, data: memoryview) -> None:
        """See `LinkWriter.send_data`.  Waits first, without the writer's lock, for a peer that acknowledges nothing."""
        while self.protocol.is_full and channel.sendable:
            await self._answers.park()
        try:
            await self._writer.send_data(channel, data)
        except trio.BrokenResourceError as error:
            self._fail(error)
            raise

    def finish(self, channel: Channel) -> None:
        """Half-close a channel."""
        self.protocol.finish(channel)
        self._writer.poke()

    def note_read(self, channel: Channel, size: int) -> None:
        """The application read; credit follows."""
        self.protocol.note_read(channel, size, trio.current_time())
        if self.protocol.has_outbox:
            self._writer.poke()

    def close_channel(self, channel: Channel, *, abort: bool = False) -> None:
        """Close or abort a channel here; the last one ends the Link."""
        self.protocol.close_channel(channel, abort=abort)
        if channel.observer is not None:
            channel.observer.wake()
        self._answers.unpark_all()
        self._path_lot.unpark_all()
        self._pipes.discard(channel)
        self._writer.poke()
        if not self._pipes:
            self._end()

    async def open_pipe(self, label: str) -> Pipe:
        """See `Pipe.open_pipe`."""
        if len(label.encode()) > MAX_LABEL:
            raise ValueError(f"a label is at most {MAX_LABEL} bytes of UTF-8")
        if self.protocol.state is not LinkState.OPEN:
            raise trio.BrokenResourceError(f"pipe broken: {self.protocol.failure}") from self.protocol.failure
        try:
            channel = self.protocol.open_channel(label, now=trio.current_time())
        except ProtocolError as error:
            raise PeerRefused(RefuseReason.BUSY, str(error)) from error
        pipe = self._pipe(channel)
        self._writer.poke()
        try:
            await pipe.wait_ready()
        except BaseException:
            pipe.abort()
            raise
        return pipe

    async def ping(self, channel: Channel) -> float:
        """See `Pipe.ping`."""
        protocol = self.protocol
        if protocol.state is LinkState.OPEN and not channel.closed_here:
            began = trio.current_time()
            token = protocol.ask(began)
            self._writer.poke()
            while protocol.life.answered < token and protocol.state is LinkState.OPEN and not channel.closed_here:
                await self._answers.park()
            if protocol.life.answered >= token:
                return trio.current_time() - began
        if channel.closed_here:
            raise trio.ClosedResourceError("this pipe was closed")
        failure = channel.failure or protocol.failure
        raise trio.BrokenResourceError(f"pipe broken: {failure}") from failure

    async def wait_path_change(self, known: PathInfo, channel: Channel) -> PathInfo:
        """See `Pipe.wait_path_change`."""
        while (path := self.live_path()).same_as(known):
            if channel.closed_here:
                raise trio.ClosedResourceError("this pipe was closed")
            if self.protocol.failure is not None:
                raise trio.BrokenResourceError(f"pipe broken: {self.protocol.failure}") from self.protocol.failure
            await self._path_lot.park()
        return path

    @property
    def rtt(self) -> float | None:
        """Smoothed round trip in seconds, None before it was measured."""
        return self.protocol.life.rtt

    def live_path(self) -> PathInfo:
        """`path` with the round trip and the state of now."""
        assert self.path is not None, "the attempt sets the path before anybody gets a Pipe"
        state = PathState.LIVE if self.protocol.life.life is Life.WELL else PathState.SUSPECT
        return dataclasses.replace(self.path, rtt=self.rtt, state=state)
