"""Pipe, which the application holds: one channel of a Link, as a `trio.abc.HalfCloseableStream`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, final

import trio

from ..conflict import Conflict
from ..identity import peer_id_from_key
from ..messages import DEFAULT_MAX_SIZE, MessageChannel
from .channel import joined
from .states import DirectionState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence
    from types import TracebackType

    from ..carrier import Carrier
    from ..errors import PeerRefused
    from ..report import ConnectReport
    from .channel import Channel
    from .frames import Refuse
    from .path import PathChange, PathInfo
    from .path_log import PathLog

__all__ = ["ChannelLink", "Pipe"]


class ChannelLink(Protocol):
    """What a Pipe needs from its Link; see `warpgate_trio.link.link.Link`."""

    @property
    def peer_key(self) -> bytes: ...
    @property
    def carrier(self) -> Carrier: ...
    @property
    def path(self) -> PathInfo | None: ...
    @property
    def rtt(self) -> float | None: ...
    @property
    def path_log(self) -> PathLog: ...

    @property
    def chunk_size(self) -> int: ...

    def live_path(self) -> PathInfo: ...
    def path_changes(self, channel: Channel, /) -> AsyncIterator[PathChange]: ...
    async def wait_path_change(self, known: PathInfo, channel: Channel, /) -> PathInfo: ...
    async def migrate(self, phases: Sequence[str] | None, timeout: float | None, channel: Channel, /) -> PathInfo: ...
    def refused(self, refusal: Refuse, /) -> PeerRefused: ...
    def finish(self, channel: Channel, /) -> None: ...
    def note_read(self, channel: Channel, size: int, /) -> None: ...
    def close_channel(self, channel: Channel, /, *, abort: bool = False) -> None: ...
    async def send_data(self, channel: Channel, data: memoryview, /) -> None: ...
    def open_pipe_nowait(self, label: str, /) -> Pipe: ...
    async def wait_accepted(self) -> None: ...
    async def ping(self, channel: Channel, /) -> float: ...


@final
# long: all that an application may do with a stream and its path, each with its contract
class Pipe(trio.abc.HalfCloseableStream):
    """An encrypted, authenticated, flow-controlled byte stream to one peer.

    Made by `Node.auto_connect`, `Node.connect`, the node's listener and `open_pipe`, never by its constructor.

    Beyond the contract of `trio.abc.HalfCloseableStream` it promises:

    * A cancelled `receive_some` loses nothing.
    * A cancelled `send_all` has sent some prefix of its data, and the stream stays intact.
    * ``b""`` means only that the peer called `send_eof` or `aclose`.
    * At most 8 MiB wait here for a reader that does not read.

    A Ctrl-C takes effect between calls and at their checkpoints, never in the middle of a record.

    ``async with pipe:`` closes the Pipe when the body ends normally.  When the body is left by an exception or was
    cancelled it aborts the Pipe, so that the peer does not take the interruption for the end of the stream.

    Attributes:
      peer_id: the proven identity of the peer.
      label: the label that the peer or you gave to `open_pipe`; ``""`` for the Pipe that a walk made.
      report: how the walk went, up to the moment when this Pipe was made; None at the responder.
    """

    def __init__(self, link: ChannelLink, channel: Channel) -> None:
        self._link = link
        self._channel = channel
        self._sending: Final = Conflict("another task is using this pipe for send")
        self._receiving: Final = Conflict("another task is using this pipe for receive")
        self._changed: Final = trio.lowlevel.ParkingLot()
        channel.observer = self
        self.peer_id: Final = peer_id_from_key(link.peer_key)
        self.label: Final = channel.label
        self.report: ConnectReport | None = None

    def __repr__(self) -> str:
        path = self._link.path
        via = "" if path is None else f" by {path.plugin} to {path.remote[0]}:{path.remote[1]}"
        state = " closed" if self._channel.closed_here else ""
        return f"<Pipe to {self.peer_id[:8]}…{via}{state}>"

    @property
    def path(self) -> PathInfo:
        """How this Pipe travels now."""
        return self._link.live_path()

    @property
    def path_log(self) -> tuple[PathChange, ...]:
        """The last 64 changes of the path since the Pipe's Link was made, the oldest first."""
        return tuple(self._link.path_log.changes)

    @property
    def search_report(self) -> ConnectReport | None:
        """The report of the last search by this side for another path; None before one has ended.

        Its `winner` is the path that the Pipe has changed over to, ``began_ms + winner.ended_ms`` after the call.  If
        nothing was found, its combos say why.  A search that was cancelled, as the path is well again, has no report.
        """
        return self._link.path_log.search

    @property
    def rtt(self) -> float | None:
        """Smoothed round-trip time to the peer in seconds; None before it was measured."""
        return self._link.rtt

    def is_on(self, links: Collection[ChannelLink]) -> bool:
        """Whether the Pipe is a channel of one of these Links (called by the node)."""
        return any(link is self._link for link in links)

    def wake(self) -> None:
        """Wake tasks that wait for the channel, which has changed (called by the Link)."""
        self._changed.unpark_all()

    # -- sending -----------------------------------------------------------------------------------------------------

    def _check_send(self) -> None:
        channel = self._channel
        if channel.closed_here:
            raise trio.ClosedResourceError("this pipe was closed")
        if channel.outgoing is DirectionState.FINISHED:
            raise trio.ClosedResourceError("send_eof was called on this pipe")
        if channel.outgoing is DirectionState.ABANDONED:
            raise self._broken() from channel.failure

    def _broken(self) -> trio.BrokenResourceError:
        refusal = self._channel.refusal
        return trio.BrokenResourceError(
            f"pipe broken: {self._channel.failure if refusal is None else self._link.refused(refusal)}"
        )

    async def _wait_sendable(self) -> int:
        """Wait for credit, and return it."""
        self._check_send()
        while not (credit := self._channel.sendable):
            await self._changed.park()
            self._check_send()
        return credit

    @trio.lowlevel.enable_ki_protection
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`.  Blocks while the peer's application does not read, and while there is no path.

        A cancelled call has sent a prefix, possibly all, of `data`; later calls continue after it.

        Raises:
          trio.BusyResourceError: another task is sending.
          trio.BrokenResourceError: the peer closed its end, or the Link is over.
          trio.ClosedResourceError: you closed the Pipe, or called `send_eof`, before or during the call.
        """
        with self._sending:
            self._check_send()
            view = memoryview(data).cast("B") if len(data) else memoryview(b"")
            if not view:
                await trio.lowlevel.checkpoint()
                self._check_send()
            channel, link = self._channel, self._link
            while view:
                if not (credit := channel.sendable):
                    credit = await self._wait_sendable()
                size = min(credit, len(view), link.chunk_size)
                try:
                    await link.send_data(channel, view[:size])
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self._check_send()  # raises the Pipe's own error, if there is one
                    raise
                view = view[size:]

    @trio.lowlevel.enable_ki_protection
    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the peer has given credit; errors as in `send_all`."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            await self._wait_sendable()

    @trio.lowlevel.enable_ki_protection
    async def send_eof(self) -> None:
        """Half-close: this side sends no more, but still receives.  Idempotent; errors as in `send_all`."""
        with self._sending:
            if self._channel.closed_here or self._channel.outgoing is not DirectionState.FINISHED:
                self._check_send()
                while self._channel.outgoing is DirectionState.IDLE:
                    await self._changed.park()
                    self._check_send()
                self._link.finish(self._channel)
            await trio.lowlevel.checkpoint()

    # -- receiving ---------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for data and return between 1 and `max_bytes` of it; ``b""`` at the peer's end of stream.

        Raises:
          trio.BusyResourceError: another task is receiving.
          trio.BrokenResourceError: the stream ended without the peer having ended it.
          trio.ClosedResourceError: you closed the Pipe before or during the call.
        """
        with self._receiving:
            return joined(await self._receive(max_bytes))

    @trio.lowlevel.enable_ki_protection
    async def receive_pieces(self, max_bytes: int | None = None) -> list[bytes | memoryview]:
        """Like `receive_some`, but returns the pieces in which the data came.

        No piece is empty; the list is empty at the peer's end of stream.  This saves a copy where bulk is passed on by
        `socket.sendmsg` or `os.writev`.
        """
        with self._receiving:
            return await self._receive(max_bytes)

    async def _receive(self, max_bytes: int | None) -> list[bytes | memoryview]:
        if max_bytes is not None:
            if not isinstance(max_bytes, int):
                raise TypeError(f"max_bytes must be an int or None, not {max_bytes!r}")
            if max_bytes < 1:
                raise ValueError("max_bytes must be at least 1")
        channel = self._channel
        if channel.closed_here:
            raise trio.ClosedResourceError("this pipe was closed")
        # No checkpoint between the take and the return, so that no data is lost by a cancellation.
        if channel.buffered or channel.incoming is not DirectionState.FLOWING:
            await trio.lowlevel.checkpoint()
        while not channel.buffered:
            if channel.closed_here:
                raise trio.ClosedResourceError("this pipe was closed")
            if channel.incoming is DirectionState.FINISHED:
                return []
            if channel.incoming is DirectionState.ABANDONED:
                raise self._broken() from channel.failure
            await self._changed.park()
        size = channel.buffered if max_bytes is None else min(channel.buffered, max_bytes)
        pieces = channel.take_pieces(max_bytes)
        self._link.note_read(channel, size)
        return pieces

    # -- messages ----------------------------------------------------------------------------------------------------

    def messages(self, *, max_size: int = DEFAULT_MAX_SIZE) -> MessageChannel:
        """The Pipe as a `trio.abc.Channel` of messages; the peer calls it too (docs/applications.md).

        The Pipe carries nothing else from then on, and is closed with the channel.

        Args:
          max_size: bytes of the largest message in either direction.  The peer's `max_size` has to allow what you send.

        Raises:
          ValueError: `max_size` is not from 1 to 4,294,967,295.
        """
        channel = self._channel
        return MessageChannel(self, max_size=max_size, count_sent=lambda: channel.sent)

    # -- the rest ----------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def open_pipe(self, label: str = "") -> Pipe:
        """Open a further, independent Pipe to the same peer on the same Link: one round trip, no walk.

        It comes out of the peer's ``node.listener``, with `label` (at most 255 bytes of UTF-8).

        Raises:
          PeerRefused: the peer does not listen or has no room.
          trio.BrokenResourceError: the Link is over.
          trio.ClosedResourceError: this Pipe was closed.
          ValueError: the label is too long.
        """
        if self._channel.closed_here:
            raise trio.ClosedResourceError("this pipe was closed")
        await self._link.wait_accepted()
        pipe = self._link.open_pipe_nowait(label)
        try:
            await pipe.wait_accepted()
        except BaseException:
            pipe.abort()
            raise
        return pipe

    @trio.lowlevel.enable_ki_protection
    def open_pipe_nowait(self, label: str = "") -> Pipe:
        """Like `open_pipe`, without waiting for the peer.

        Up to 32 KiB can be sent at once, right behind the request, so that an answer to them takes one round trip.

        Until the peer has taken the Pipe (`wait_accepted`), closing it withdraws the request and what was sent with it.
        If the peer refuses, the Pipe is broken.  A peer of an older release takes no early data: `send_all` waits until
        it has taken the Pipe.

        Raises:
          PeerRefused: this Link has no room for a further Pipe.
          trio.WouldBlock: the peer has not taken this Pipe yet.
          trio.BrokenResourceError: the Link is over.
          trio.ClosedResourceError: this Pipe was closed.
          ValueError: the label is too long.
        """
        if self._channel.closed_here:
            raise trio.ClosedResourceError("this pipe was closed")
        if not self._channel.accepted and self._channel.incoming is not DirectionState.ABANDONED:
            raise trio.WouldBlock
        return self._link.open_pipe_nowait(label)

    @trio.lowlevel.enable_ki_protection
    async def wait_accepted(self) -> None:
        """Wait until the peer has taken a Pipe of `open_pipe_nowait`; other Pipes were taken before you got them.

        Raises:
          PeerRefused: the peer does not listen or has no room.
          trio.BrokenResourceError: the Link is over.
          trio.ClosedResourceError: you closed this Pipe before or during the call.
        """
        channel = self._channel
        if channel.accepted:
            await trio.lowlevel.checkpoint()
        while not channel.accepted or channel.closed_here:
            if channel.closed_here:
                raise trio.ClosedResourceError("this pipe was closed")
            if channel.refusal is not None:
                raise self._link.refused(channel.refusal)
            if channel.incoming is DirectionState.ABANDONED:
                raise self._broken() from channel.failure
            await self._changed.park()

    @trio.lowlevel.enable_ki_protection
    async def ping(self) -> float:
        """Measure the round-trip time to the peer's node now, in seconds.

        When it returns, all that was sent on this Pipe before the call has arrived at the peer's node, though its
        application may not have read it yet.  Waits for as long as the caller's scope allows.

        Raises:
          trio.BrokenResourceError: the Link is over, or the peer ended it.  The cause is
            `warpgate_trio.errors.PeerAborted` if the peer aborted this Pipe before it had all that was sent.
          trio.ClosedResourceError: you closed the Pipe.
        """
        return await self._link.ping(self._channel)

    @trio.lowlevel.enable_ki_protection
    async def wait_path_change(self, known: PathInfo | None = None) -> PathInfo:
        """Wait until `path` differs from `known` in more than its round-trip time, and return it; a checkpoint always.

        Args:
          known: the path that the caller knows; None: the path at the time of the call.

        Raises:
          trio.BrokenResourceError: the Link is over.
          trio.ClosedResourceError: you closed the Pipe before or during the call.
        """
        known = self.path if known is None else known  # before the checkpoint, during which the path may change
        await trio.lowlevel.checkpoint()
        return await self._link.wait_path_change(known, self._channel)

    async def migrate(self, phases: Sequence[str] | None = None, *, timeout: float | None = None) -> PathInfo:
        """Look for a better path now, and change over to it.  Returns the new path.

        A better path is of a better class: loopback, then LAN, public, punched, and relayed (docs/live_links.md).
        The stream does not pause meanwhile.  The Pipe does not change over to a path that does not carry bulk.

        Args:
          phases: phases to search by, out of those that the call allowed; any path that they find is taken.  None: all
            but relay, and only a better path is taken.
          timeout: seconds, including the wait for another search that is running; ``budgets.total`` when None.

        Raises:
          ConnectError: no better path was found in time; ``error.report`` tells about every combo.
          ValueError: there is no such phase.
          AttemptFailed: the Pipe ends with its path, or nothing is known about where the peer is.
          trio.BrokenResourceError: the Pipe is broken.
          trio.ClosedResourceError: you closed the Pipe, or the node was closed.
        """
        await trio.lowlevel.checkpoint()
        return await self._link.migrate(phases, timeout, self._channel)

    def path_changes(self) -> AsyncIterator[PathChange]:
        """Iterate over the changes of the path from now on: ``async for change in pipe.path_changes():``.

        The iterator waits for each change, and ends once the Pipe is closed here, or broken.  A task that falls behind
        by more than the 64 changes of `path_log` misses some.  A cancelled wait misses none.
        """
        return self._link.path_changes(self._channel)

    @trio.lowlevel.enable_ki_protection
    def close_nowait(self) -> None:
        """Like `aclose`, but synchronous: local calls fail from now on, and the peer is told in the background."""
        self._link.close_channel(self._channel)
        self._changed.unpark_all()

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """Close both directions.  The peer still receives what was sent, and then reads EOF; its sends break.

        Does not wait for the peer.  The node's own tasks deliver the rest, if need be over another path, for at most
        the Link's resume timeout, or ``budgets.goodbye`` where the Link ends with its path or the node is closed.  In a
        scope that is cancelled already, as in `trio.aclose_forcefully`, it aborts the Pipe instead.
        """
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            self.abort()
            raise
        self.close_nowait()
        await trio.lowlevel.cancel_shielded_checkpoint()

    @trio.lowlevel.enable_ki_protection
    def abort(self) -> None:
        """Give the Pipe up: the stream that was sent is incomplete.  Does nothing if the Pipe was closed before.

        The peer still receives what was sent before, as far as the path carries it.  Then its `receive_some` raises
        `trio.BrokenResourceError`, whose cause is `warpgate_trio.errors.PeerAborted`.  After `send_eof` the peer reads
        the end of the stream, and only its sends break.  Local calls raise `trio.ClosedResourceError`.  Like `aclose`,
        it does not wait for the peer.
        """
        self._link.close_channel(self._channel, abort=True)
        self._changed.unpark_all()

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is None:
            await self.aclose()
        else:
            self.abort()
            await trio.lowlevel.cancel_shielded_checkpoint()  # a Cancelled raised here would replace the exception

    @property
    def carrier(self) -> Carrier:
        """The carrier that the Pipe's Link uses now, for tests and diagnosis."""
        return self._link.carrier
