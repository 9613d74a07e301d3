"""Receiving one transfer over a Pipe; a worker thread checks and writes the data while more of it is received."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias, final

import trio

from ..errors import TransferError, TransferFailed, TransferRefused, printable
from ..heap import keep_freed_memory
from ..link import Pipe
from ..nurseries import leaves
from .progress import OnProgress, Progress
from .protocol import Offered, Receiver, Refusal, first_bytes
from .staging import Staging
from .wire import MAX_ENTRIES, MAX_TEXT, Block, FileEnd, Finish, Reason, Withdraw

__all__ = ["Inbox", "Received", "receive_files"]

logger: logging.Logger = logging.getLogger(__name__)

MAX_READ: Final = 4 * 1024 * 1024
"""Bytes that are read from the Pipe at once, and that a thread checks and writes in one call."""
AHEAD: Final = 1
"""Batches that wait for the thread.  When it falls further behind, flow control stops the sender."""
SYNCS: Final = 16
"""Threads that call fsync at a time.  The disk combines requests that it has together: 2,000 files take 0.4 s instead
of 9 (ext4, one disk)."""
SYNC_SIZE: Final = 64
"""Files and folders that one call of a thread syncs."""
_Batch: TypeAlias = Sequence[Block | FileEnd]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """The result of a transfer.

    Attributes:
      paths: where the top-level files and folders are; a name that was taken has got a number.
      files: number of files, without folders.
      size: bytes of all files.
      there: bytes that were there before this Pipe.
    """

    paths: tuple[Path, ...]
    files: int
    size: int
    there: int


async def receive_files(
    pipe: Pipe,
    *,
    into: str | Path = ".",
    max_files: int = MAX_ENTRIES,
    max_size: int | None = None,
    hidden: bool = False,
    on_progress: OnProgress | None = None,
) -> Received:
    """Receive into a folder what the peer sends with `send_files`.

    Nothing in the folder is overwritten: where ``name.ext`` is taken, the new file is ``name (1).ext``.  Each top-level
    name appears complete, after all files have arrived with the right checksums.  Until then they are in a hidden
    folder, ``.warpgate-trio``, in the same place.  The caller closes the Pipe.

    Args:
      into: the folder, which is made where it is missing.
      max_files: the most files and folders that are accepted.
      max_size: the most bytes that are accepted; None: as many as there is room for.
      hidden: whether top-level names that begin with a dot are accepted; programs may read such files as configuration.
      on_progress: called with the progress at each stage and after each batch of data.

    Raises:
      TransferRefused: the offer was refused; the peer has been sent the reason.
      TransferFailed: a file has changed at the sender, the disk is full, or data was damaged on the way.
      RemoteProtocolError: the peer does not speak this protocol.
      trio.BrokenResourceError: the Pipe broke.  The data so far is kept for the next Pipe from the same peer.
    """
    inbox = Inbox(into, max_files=max_files, max_size=max_size, hidden=hidden)
    return await inbox.receive(pipe, on_progress=on_progress)


@final
class Inbox:
    """A folder that receives transfers over one Pipe after the other; arguments as for `receive_files`.

    When a sender returns after a break, data that this object has written before is not read again for its checksum.
    """

    def __init__(
        self,
        into: str | Path = ".",
        *,
        max_files: int = MAX_ENTRIES,
        max_size: int | None = None,
        hidden: bool = False,
    ) -> None:
        self.into: Final = Path(into)
        self.max_files: Final = max_files
        self.max_size: Final = max_size
        self.hidden: Final = hidden
        self._written: dict[tuple[str, bytes], int] = {}

    async def receive(self, pipe: Pipe, *, on_progress: OnProgress | None = None) -> Received:
        """Receive one transfer; raises as `receive_files`."""
        keep_freed_memory()
        receiving = _Receiving(self, pipe, on_progress or (lambda _: None))
        offered = await receiving.wait_offer()
        key = (pipe.peer_id, offered.offer.key)
        staging: Staging | None = None
        try:
            staging = await trio.to_thread.run_sync(
                partial(
                    Staging.open,
                    self.into,
                    pipe.peer_id,
                    offered,
                    hidden=self.hidden,
                    max_size=self.max_size,
                    trusted=self._written.pop(key, 0),
                )
            )
            while await trio.to_thread.run_sync(staging.check):
                receiving.show_checking(offered)
            await trio.to_thread.run_sync(staging.begin)
            received = await receiving.receive(staging, offered)
        except TransferRefused as refusal:
            await receiving.refuse(refusal)
            raise
        finally:
            if staging is not None:
                self._written[key] = staging.written
                staging.close()
        return received


@final
class _Receiving:
    def __init__(self, inbox: Inbox, pipe: Pipe, on_progress: OnProgress) -> None:
        self._pipe = pipe
        self._tell = on_progress
        self._receiver = Receiver(max_entries=inbox.max_files)
        self._progress = Progress(stage="offered", size=0)

    async def wait_offer(self) -> Offered:
        """Wait for the complete offer."""
        while True:
            for message in self._receiver.receive(await self._pipe.receive_some()):
                if isinstance(message, Offered):
                    return message
                assert isinstance(message, Refusal)
                refusal = TransferRefused(message.reason, message.text, by_peer=False)
                await self.refuse(refusal)
                raise refusal

    def show_checking(self, offered: Offered) -> None:
        """Report that data of an earlier Pipe is being read again."""
        files = sum(not each.is_folder for each in offered.entries)
        self._show(stage="checking", size=offered.offer.size, files=files)

    async def refuse(self, refusal: TransferRefused) -> None:
        """Send a refusal, and read to the end of the stream: the sender may still be sending its offer."""
        with suppress(trio.BrokenResourceError):
            await self._pipe.send_all(self._receiver.refuse(Reason(refusal.reason), str(refusal)))
            await self._pipe.send_eof()
            async for _ in self._pipe:
                pass

    async def receive(self, staging: Staging, offered: Offered) -> Received:
        """Do everything that follows the offer."""
        accept = staging.accept()
        there = first_bytes(offered.entries, accept)
        files = sum(not each.is_folder for each in offered.entries)
        self._show(stage="moving", size=offered.offer.size, files=files, there=there, done=there)
        await self._pipe.send_all(self._receiver.accept(accept.complete, accept.held))
        try:
            await self._take_all(staging)
            self._show(stage="checking")
            await self._sync(staging)
            paths = await trio.to_thread.run_sync(staging.publish)
        except TransferFailed as failure:
            if not failure.by_peer:
                await self._stop(failure)
            raise
        await self._finish(staging)
        self._show(stage="done")
        return Received(paths=tuple(paths), files=files, size=offered.offer.size, there=there)

    async def _sync(self, staging: Staging) -> None:
        """Write everything to the disk (fsync) before any file gets its name."""
        limiter = trio.CapacityLimiter(SYNCS)
        try:
            async with trio.open_nursery() as nursery:
                for first in range(0, len(staging.entries), SYNC_SIZE):
                    work = partial(staging.sync, first, first + SYNC_SIZE)
                    nursery.start_soon(partial(trio.to_thread.run_sync, work, limiter=limiter))
        except* TransferFailed as group:  # of several, raise the first
            failure = next(leaves(group))
        else:
            return
        raise failure

    async def _finish(self, staging: Staging) -> None:
        """Send DONE.  A sender that does not receive it comes back and is sent it again; the offer is kept for that."""
        with suppress(trio.BrokenResourceError):
            await self._pipe.send_all(self._receiver.done())
            async for _ in self._pipe:
                pass
            await trio.to_thread.run_sync(staging.forget)

    async def _stop(self, failure: TransferFailed) -> None:
        with suppress(trio.BrokenResourceError):
            await self._pipe.send_all(self._receiver.stop(Reason(failure.reason), str(failure)))
            await self._pipe.send_eof()
            async for _ in self._pipe:
                pass

    async def _take_all(self, staging: Staging) -> None:
        """Receive until the sender has finished and everything is written."""
        inlet, outlet = trio.open_memory_channel[_Batch](AHEAD)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_all, staging, outlet)
                async with inlet:
                    withdrawn = await self._read_all(staging, inlet)
        except BaseExceptionGroup as group:
            errors = [each for each in leaves(group) if not isinstance(each, trio.Cancelled)]
            said = [each for each in errors if isinstance(each, TransferError)]
            if said or len(errors) == 1:
                raise (said or errors)[0] from None
            raise
        if withdrawn is not None:
            if withdrawn.index is not None:
                await trio.to_thread.run_sync(staging.discard, withdrawn.index)
            text = printable(withdrawn.text, MAX_TEXT)
            raise TransferFailed(withdrawn.reason, f"the sender cannot continue: {text}", by_peer=True)

    async def _read_all(self, staging: Staging, inlet: trio.MemorySendChannel[_Batch]) -> Withdraw | None:
        while True:
            batch: list[Block | FileEnd] = []
            last: Finish | Withdraw | None = None
            for message in self._receiver.receive(await self._pipe.receive_some(MAX_READ)):
                if isinstance(message, Block | FileEnd):
                    batch.append(message)
                else:
                    assert isinstance(message, Finish | Withdraw)
                    last = message
            if batch:
                await inlet.send(batch)
                moved = sum(each.size for each in batch if isinstance(each, Block))
                name = staging.entries[batch[-1].index].path
                self._show(stage="moving", done=self._progress.done + moved, name=name)
            if last is not None:
                return last if isinstance(last, Withdraw) else None

    async def _write_all(self, staging: Staging, outlet: trio.MemoryReceiveChannel[_Batch]) -> None:
        async with outlet:
            async for batch in outlet:
                await trio.to_thread.run_sync(staging.write, batch)

    def _show(self, **changes: object) -> None:
        now = replace(self._progress, **changes)  # type: ignore[arg-type]
        # A held part with other content is sent again, and has been counted before.
        self._progress = replace(now, done=min(now.done, now.size))
        self._tell(self._progress)
