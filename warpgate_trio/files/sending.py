"""Sending one transfer over a Pipe; a worker thread reads and hashes ahead of the data that is being sent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeAlias, final

import trio

from ..errors import RemoteProtocolError, TransferFailed, TransferRefused, printable
from ..heap import keep_freed_memory
from ..link import Pipe
from ..nurseries import leaves
from .digests import BLOCK
from .progress import OnProgress, Progress
from .protocol import Sender, first_bytes
from .sources import Ended, Outgoing, ReadBlock, Reading, look_at
from .wire import MAX_TEXT, Accept, Done, Reason, Refuse, Stop

__all__ = ["send_files", "send_outgoing"]

_Batch: TypeAlias = Sequence[ReadBlock | Ended | None]

AHEAD: Final = 2
"""Batches that are read ahead: one is ready while the next one is read."""
_SMALL: Final = 64 * 1024
"""Bytes up to which a block is joined with its neighbours into one write."""


async def send_files(pipe: Pipe, paths: Iterable[str | Path], *, on_progress: OnProgress | None = None) -> Outgoing:
    """Send files and folders over a Pipe, and return when they have their names at the receiver.

    Data of the same files that the receiver already has is not sent again.  The caller closes the Pipe.

    Args:
      paths: the last component of each is its name at the receiver.  Links inside of folders are left out.
      on_progress: called with the progress at each stage and after each batch of data.

    Returns:
      What was sent, including what was left out of it (`Outgoing.skipped`).

    Raises:
      TransferRefused: the receiver refuses the offer; the text says why.
      TransferFailed: a file has changed, or the receiver cannot continue.  It keeps the data that has arrived.
      RemoteProtocolError: the peer does not speak this protocol.
      trio.BrokenResourceError: the Pipe broke; the same call over another Pipe resumes the transfer.
      ValueError: the paths cannot be offered.
      OSError: one of the paths cannot be read.
    """
    outgoing = await trio.to_thread.run_sync(look_at, list(paths))
    await send_outgoing(pipe, outgoing, on_progress=on_progress)
    return outgoing


async def send_outgoing(pipe: Pipe, outgoing: Outgoing, *, on_progress: OnProgress | None = None) -> None:
    """Send what `look_at` returned; arguments and errors as for `send_files`.

    If the same object is sent again after a break, the receiver recognises it as the same offer.
    """
    keep_freed_memory()
    sending = _Sending(pipe, outgoing, on_progress or (lambda _: None))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sending.listen)
            await sending.send()
    except BaseExceptionGroup as group:
        errors = [each for each in leaves(group) if not isinstance(each, trio.Cancelled)]
        said = [each for each in errors if isinstance(each, TransferRefused | TransferFailed | RemoteProtocolError)]
        if not errors:
            raise
        if said:  # the peer's last message explains why the Pipe broke
            raise said[0] from None
        if len(errors) == 1 or all(
            isinstance(each, trio.BrokenResourceError | trio.ClosedResourceError) for each in errors
        ):
            raise errors[0] from None
        raise


@final
class _Sending:
    def __init__(self, pipe: Pipe, outgoing: Outgoing, on_progress: OnProgress) -> None:
        self._pipe = pipe
        self._outgoing = outgoing
        self._tell = on_progress
        self._sender = Sender(outgoing.offer, outgoing.entries)
        self._accepted = trio.Event()
        self._accept = Accept()
        self._done = trio.Event()
        self._progress = Progress(stage="offered", size=outgoing.size, files=outgoing.files)
        self._small = bytearray()
        self._withdrawn: tuple[int, TransferFailed] | None = None

    async def listen(self) -> None:
        """Handle the receiver's messages until DONE."""
        while not self._done.is_set():
            data = await self._pipe.receive_some()
            for message in self._sender.receive(data):
                match message:
                    case Accept():
                        self._accept = message
                        self._accepted.set()
                    case Refuse(reason, text):
                        raise TransferRefused(reason, _said(reason, text), by_peer=True)
                    case Stop(reason, text):
                        raise TransferFailed(reason, _said(reason, text), by_peer=True)
                    case Done():
                        self._done.set()

    async def send(self) -> None:
        self._tell(self._progress)
        offer = bytearray()
        for piece in self._sender.offer():
            offer += piece
            if len(offer) >= BLOCK:
                await self._pipe.send_all(bytes(offer))
                offer.clear()
        await self._pipe.send_all(bytes(offer))
        await self._accepted.wait()
        there = first_bytes(self._outgoing.entries, self._accept)
        self._show(stage="moving", there=there, done=there)
        inlet, outlet = trio.open_memory_channel[_Batch](AHEAD - 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, inlet)
            async with outlet:
                async for batch in outlet:
                    await self._send_batch(batch)
        if self._withdrawn is not None:
            index, changed = self._withdrawn
            self._small += self._sender.withdraw(Reason(changed.reason), str(changed), index)
            await self._flush()
            raise changed
        self._small += self._sender.finish()
        await self._flush()
        self._show(stage="checking")
        await self._done.wait()
        await self._pipe.send_eof()
        self._show(stage="done")

    async def _read(self, inlet: trio.MemorySendChannel[_Batch]) -> None:
        reading = Reading(self._outgoing, self._accept)
        try:
            async with inlet:
                while (batch := await trio.to_thread.run_sync(reading.read)) is not None:
                    await inlet.send(batch)
        except TransferFailed as changed:
            self._withdrawn = (reading.index, changed)
        finally:
            reading.close()

    async def _send_batch(self, batch: Sequence[ReadBlock | Ended | None]) -> None:
        moved = 0
        for each in batch:
            if isinstance(each, ReadBlock):
                self._small += self._sender.block(each.index, each.number, each.digest, each.size)
                for piece in each.pieces:
                    # The messages before a block are sent with its first piece: a separate write would cost more.
                    if self._small:
                        self._small += piece
                        if each.size > _SMALL:
                            await self._flush()
                    else:
                        await self._pipe.send_all(piece)
                moved += each.size
                if len(self._small) >= _SMALL:
                    await self._flush()
            elif isinstance(each, Ended):
                self._small += self._sender.end_file(each.index, each.digest)
        await self._flush()
        name = self._outgoing.entries[batch[-1].index].path if batch[-1] is not None else self._progress.name
        self._show(stage="moving" if moved else "checking", done=self._progress.done + moved, name=name)

    async def _flush(self) -> None:
        if self._small:
            await self._pipe.send_all(bytes(self._small))
            self._small.clear()

    def _show(self, **changes: object) -> None:
        now = replace(self._progress, **changes)  # type: ignore[arg-type]
        # A held part with other content is sent again, and has been counted before.
        self._progress = replace(now, done=min(now.done, now.size))
        self._tell(self._progress)


def _said(reason: int, text: str) -> str:
    """The peer's reason as text for the user."""
    try:
        name = Reason(reason).name.lower().replace("_", " ")
    except ValueError:
        name = f"reason {reason}"
    return printable(f"{name}: {text}" if text else name, MAX_TEXT)
