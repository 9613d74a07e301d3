"""Who writes on a Link's carrier, one at a time.

A sender encrypts and flushes DATA in its own task, under the write lock, so that a bulk transfer costs no task switch.
Everything else (credit, FIN, RESET, PING, what a cancelled sender left behind) is sent by `run`, in a task of the
Link's driver, when it is poked.  The reader never writes, so two peers that only send cannot deadlock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, final

import trio

from .frames import data_header

if TYPE_CHECKING:
    from ..carrier import Carrier
    from .channel import Channel
    from .protocol import LinkProtocol

__all__ = ["LinkWriter"]


@final
class LinkWriter:
    """The writing side of one Link.

    Args:
      on_said: called when something was put on the carrier, before it is sent: a timer may have begun.
    """

    def __init__(self, carrier: Carrier, protocol: LinkProtocol, on_said: Callable[[], None]) -> None:
        self._carrier = carrier
        self._protocol = protocol
        self._on_said = on_said
        self._lock: Final = trio.Lock()
        self._poked = trio.Event()

    def poke(self) -> None:
        """There is something to send for `run`."""
        self._poked.set()

    def feed_outbox(self) -> None:
        """Encrypt what the protocol has to say."""
        if self._protocol.has_outbox:
            self._carrier.feed(self._protocol.transmit(trio.current_time()))

    async def flush(self) -> None:
        """Send what the protocol has to say, inline: handshake only, where nobody else writes."""
        self.feed_outbox()
        if self._carrier.owed:
            await self._carrier.flush()

    async def send_data(self, channel: Channel, data: memoryview) -> None:
        """Put one DATA frame on the carrier; a checkpoint always.  The caller has checked the credit.

        Raises:
          trio.ClosedResourceError: the channel ended while we waited for the lock; the Link is well.
          trio.BrokenResourceError: the path is gone.
        """
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            if len(data) > channel.sendable:
                raise trio.ClosedResourceError("this channel ended")
            self.feed_outbox()
            self._protocol.note_data_sent(channel, data, trio.current_time())
            self._carrier.feed(data_header(channel.id, len(data)), data)
            self._on_said()
            await self._carrier.flush()
        except (trio.Cancelled, KeyboardInterrupt):
            self.poke()  # the rest of the record goes out without us
            raise
        finally:
            self._lock.release()

    async def run(self, is_ending: Callable[[], bool]) -> None:
        """Send what is poked for, until the Link is ending: then the last words and the carrier's end."""
        self.poke()
        while True:
            await self._poked.wait()
            self._poked = trio.Event()
            async with self._lock:
                ending = is_ending()  # asked once: it may become true while we wait for the socket
                if ending:
                    self._protocol.send_go_away()
                self.feed_outbox()
                if ending:
                    self._carrier.feed_end()
                self._on_said()
                if self._carrier.owed:
                    await self._carrier.flush()
            if ending:
                return
