"""Messages over a Trio stream, as a `trio.abc.Channel`.

Sending.  A small message is sent in one call of the stream, so that it is one frame of a Pipe and one TLS record.  A
stream cannot withdraw what it has sent.  So a send that is cancelled within a message breaks the sending half: the peer
would take whatever follows for the rest of that message.  If the stream cannot tell how much was sent, a cancelled send
counts as cut off within a message.

Receiving.  A `MessageReader` cuts the data of the stream into messages.  There is no checkpoint between reading and
cutting, so a cancelled receive has taken nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, final

import trio

from ..conflict import Conflict
from ..errors import RemoteProtocolError
from .framing import DEFAULT_MAX_SIZE, HEADER_SIZE, MessageReader, encode_header

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["MessageChannel"]

JOINED: Final = 64 * 1024
"""Bytes of a message that are copied behind its length, to be sent in one call: a further call of the stream costs more
than that copy."""

READ: Final = 256 * 1024
"""Bytes that are taken from the stream at once.  A Pipe gives its peer credit for them, so what waits here to be cut is
held in addition to what the Pipe holds."""


@final
class MessageChannel(trio.abc.Channel[bytes]):
    """Messages over a byte stream: the peer receives each message as a whole, in the order in which they were sent.

    `Pipe.messages` makes one; over other streams the constructor makes it, on both sides.  One task may send while
    another one receives.  ``async for message in channel:`` ends when the peer has closed its end, or called
    `send_eof`, between two messages.

    ``async with channel:`` closes the stream as ``async with stream:`` would: a Pipe is aborted if an exception leaves
    the body.

    Args:
      stream: carries nothing else from now on, and is closed with the channel.
      max_size: bytes of the largest message in either direction.  The peer's `max_size` has to allow what is sent.
      count_sent: returns how many bytes the stream has accepted in all, if it can tell; called before and after each
        send.

    Attributes:
      stream: the stream.
      max_size: bytes of the largest message.

    Raises:
      ValueError: `max_size` is not from 1 to 4,294,967,295.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        max_size: int = DEFAULT_MAX_SIZE,
        count_sent: Callable[[], int] | None = None,
    ) -> None:
        self.stream: Final = stream
        self.max_size: Final = max_size
        self._reader: Final = MessageReader(max_size)
        self._count_sent: Final = count_sent
        self._sending: Final = Conflict("another task is sending a message")
        self._receiving: Final = Conflict("another task is receiving a message")
        self._closed = False
        self._cut_off = ""  # why nothing can be sent any more
        self._failure: RemoteProtocolError | None = None  # what the peer did wrong

    def __repr__(self) -> str:
        return f"<MessageChannel over {self.stream!r}>"

    @trio.lowlevel.enable_ki_protection
    async def send(self, value: bytes | bytearray | memoryview) -> None:
        """Send a message.  Blocks while the peer's application does not read.

        A cancelled call has sent all of the message, nothing, or a part; a part breaks the channel's sending half.

        Raises:
          ValueError: the message has more than `max_size` bytes; nothing was sent.
          trio.BusyResourceError: another task is sending.
          trio.BrokenResourceError: a send was cut off before, the peer has closed its end, or the stream is broken.
          trio.ClosedResourceError: you closed the channel, or called `send_eof`.
        """
        view = memoryview(value).cast("B")
        size = len(view)
        if size > self.max_size:
            raise ValueError(f"a message of {size} bytes; max_size is {self.max_size}")
        with self._sending:
            self._check_send()
            await trio.lowlevel.checkpoint_if_cancelled()  # here nothing was sent yet
            before = self._sent()
            try:
                await self.stream.send_all(encode_header(size) + view[:JOINED])
                if size > JOINED:
                    await self.stream.send_all(view[JOINED:])
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise
            except BaseException:
                went = self._sent() - before
                if self._count_sent is None or 0 < went < HEADER_SIZE + size:
                    self._cut_off = "an earlier send was cancelled within a message"
                raise

    def _sent(self) -> int:
        return 0 if self._count_sent is None else self._count_sent()

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this channel was closed")
        if self._failure is not None:
            raise trio.BrokenResourceError(f"channel broken: {self._failure}") from self._failure

    def _check_send(self) -> None:
        self._check()
        if self._cut_off:
            raise trio.BrokenResourceError(f"channel broken: {self._cut_off}")

    @trio.lowlevel.enable_ki_protection
    async def send_eof(self) -> None:
        """Half-close: this side sends no more messages, but still receives.  Errors as in `send`.

        Raises:
          NotImplementedError: the stream has no half-close.
        """
        if not isinstance(self.stream, trio.abc.HalfCloseableStream):
            raise NotImplementedError(f"{type(self.stream).__name__} has no send_eof")
        with self._sending:
            self._check_send()
            await self.stream.send_eof()

    @trio.lowlevel.enable_ki_protection
    async def receive(self) -> bytes:
        """Wait for the next message.  A cancelled call loses nothing.

        Raises:
          trio.EndOfChannel: the peer has sent all that it will.
          trio.BusyResourceError: another task is receiving.
          trio.BrokenResourceError: the stream broke, or ended within a message; or the peer's next message has more
            than `max_size` bytes, which breaks the channel.
          trio.ClosedResourceError: you closed the channel.
        """
        with self._receiving:
            self._check()
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                message = self._reader.next_message()
                if message is not None:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                while message is None:
                    if not (data := await self.stream.receive_some(READ)):
                        self._reader.check_end()
                        raise trio.EndOfChannel
                    self._reader.feed(bytes(data))
                    message = self._reader.next_message()
            except RemoteProtocolError as error:
                self._failure = error
                raise trio.BrokenResourceError(f"channel broken: {error}") from error
            return message

    async def aclose(self) -> None:
        """Close the stream.  What was sent still arrives; then the peer's `receive` raises `trio.EndOfChannel`.

        In a scope that is cancelled already, as in `trio.aclose_forcefully`, it is as abrupt as the stream's own
        `aclose`: a Pipe is aborted, so that the peer does not take that for the end.
        """
        self._closed = True
        await self.stream.aclose()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        await self.stream.__aexit__(exc_type, exc_value, traceback)
