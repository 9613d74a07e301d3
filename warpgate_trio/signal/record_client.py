"""The key records of one connection to a rendezvous server: ours, which it keeps, and look-ups of others."""

from __future__ import annotations

from typing import Final, final

import trio

from ..errors import SignalUnavailable
from ..report import LookupOutcome
from ..servers.key_record_frames import FindStatus, Found, Lookup, Publish, Published, PublishStatus
from ..servers.rendezvous_frames import Capability
from .circuits import Outbox

__all__ = ["RecordClient"]

_OUTCOMES: Final = {FindStatus.RECORD: LookupOutcome.RECORD, FindStatus.TOO_MANY: LookupOutcome.TOO_MANY}


@final
class RecordClient:
    """The key records of one connection to a rendezvous server.

    Attributes:
      kept: whether the server keeps our record; None: it has not answered yet, or no record was published.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._speaks: bool | None = None
        self._ended = False
        self._published = trio.Event()
        self._next_id = 0
        self._asked: dict[int, _Question] = {}
        self.kept: bool | None = None

    def registered(self, capabilities: int) -> None:
        """The server has registered us, and has announced its capabilities."""
        self._speaks = bool(capabilities & Capability.KEY_RECORDS)

    def publish(self, record: bytes) -> None:
        """Have the server keep our record in place of an earlier one; no effect at a server that keeps none."""
        if self._speaks and not self._ended:
            self._outbox.put_nowait(Publish(record).encode())
        else:
            self._published.set()

    async def wait_published(self) -> None:
        """Return once it is known whether the server keeps our record, or will never be; the caller bounds the time."""
        await self._published.wait()

    async def look_up(self, key: bytes) -> tuple[LookupOutcome, bytes]:
        """Ask the server for the record of a key.  Returns the outcome, and for RECORD the record, not verified yet.

        Raises:
          SignalUnavailable: the connection has ended.
        """
        if not self._speaks:
            await trio.lowlevel.checkpoint()
            return LookupOutcome.UNSUPPORTED, b""
        number = self._next_id
        self._next_id = (number + 1) % 2**32
        question = self._asked[number] = _Question()
        try:
            await self._outbox.put(Lookup(number, key).encode())
            await question.done.wait()
        except trio.ClosedResourceError:
            pass
        finally:
            del self._asked[number]
        if question.found is None:
            raise SignalUnavailable("the connection to the server has ended")
        return _outcome(question.found.status), question.found.record

    def hear(self, frame: Found | Published) -> None:
        """The server has answered."""
        if isinstance(frame, Published):
            self.kept = frame.status == PublishStatus.KEPT
            self._published.set()
            return
        question = self._asked.get(frame.id)  # None: the look-up was cancelled
        if question is not None:
            question.found = frame
            question.done.set()

    def end(self) -> None:
        """The connection has ended."""
        self._ended = True
        self._published.set()
        for question in self._asked.values():
            question.done.set()


@final
class _Question:
    __slots__ = ("done", "found")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.found: Found | None = None


def _outcome(status: int) -> LookupOutcome:
    return next((outcome for known, outcome in _OUTCOMES.items() if known == status), LookupOutcome.NOBODY)
