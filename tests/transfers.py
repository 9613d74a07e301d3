"""Two ends of an in-memory stream that stand in for Pipes and break where a test wants it; and folders to send."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, cast, final

import pytest
import trio

from tests.identities import ALICE, BOB
from warpgate_trio import Pipe
from warpgate_trio.files import Inbox, Outgoing, Received, digests, look_at, send_outgoing
from warpgate_trio.identity import peer_id_from_key
from warpgate_trio.nurseries import leaves

SMALL_BLOCK = 1024


@final
class Wire:
    """The state that both ends share: how many bytes the sender's direction still carries."""

    def __init__(self, carries: int | None) -> None:
        self.left = carries
        self.carried = 0
        self.broken = False
        self.ends: list[End] = []

    def cut(self) -> None:
        self.broken = True
        for each in self.ends:
            each.outlet.close()


@final
class End:
    """One end, with the part of a Pipe that a transfer needs."""

    def __init__(
        self, wire: Wire, peer_id: str, outlet: trio.MemorySendChannel[bytes], inlet: trio.MemoryReceiveChannel[bytes]
    ) -> None:
        self.peer_id = peer_id
        self.label = ""
        self.outlet = outlet
        self._inlet = inlet
        self._wire = wire
        self._bounded = not wire.ends
        wire.ends.append(self)

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if self._wire.broken:
            raise trio.BrokenResourceError("cut")
        left = self._wire.left
        passed = data if left is None or not self._bounded else data[:left]
        try:
            for start in range(0, len(passed), 16384):
                await self.outlet.send(passed[start : start + 16384])
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise trio.BrokenResourceError("the other end is gone") from None
        if self._bounded:
            self._wire.carried += len(passed)
            if left is not None:
                self._wire.left = left - len(passed)
                if len(passed) < len(data) or not self._wire.left:
                    self._wire.cut()
                    raise trio.BrokenResourceError("cut")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return await self._inlet.receive()
        except trio.EndOfChannel:
            if self._wire.broken:
                raise trio.BrokenResourceError("cut") from None
            return b""

    async def send_eof(self) -> None:
        await self.outlet.aclose()

    def close(self) -> None:
        self.outlet.close()
        self._inlet.close()

    async def __aenter__(self) -> End:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._wire.cut()
        self.close()

    def __aiter__(self) -> End:
        return self

    async def __anext__(self) -> bytes:
        data = await self.receive_some()
        if not data:
            raise StopAsyncIteration
        return data


def wired(carries: int | None = None, *, sender: str | None = None) -> tuple[Pipe, Pipe, Wire]:
    """The sender's end, the receiver's and the wire; the sender's direction breaks after `carries` bytes.

    `sender` is the peer id that the receiver sees.
    """
    wire = Wire(carries)
    there_in, there_out = trio.open_memory_channel[bytes](8)
    back_in, back_out = trio.open_memory_channel[bytes](8)
    ours = End(wire, peer_id_from_key(BOB.public_key), there_in, back_out)
    theirs = End(wire, sender or peer_id_from_key(ALICE.public_key), back_in, there_out)
    return cast("Pipe", ours), cast("Pipe", theirs), wire


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Sets blocks of 1 KiB, so that a small file has many."""
    monkeypatch.setattr(digests, "BLOCK", SMALL_BLOCK)
    return SMALL_BLOCK


async def transfer(
    outgoing: Outgoing, inbox: Inbox, carries: int | None = None, **options: Any
) -> tuple[Received | None, list[BaseException], Wire]:
    """Runs a transfer over one Pipe; returns the result, the exceptions of both sides, and the wire."""
    ours, theirs, wire = wired(carries, **options)
    received: list[Received] = []
    errors: list[BaseException] = []

    async def side(end: Pipe, work: Callable[[], Any]) -> None:
        try:
            result = await work()
            if isinstance(result, Received):
                received.append(result)
        except Exception as error:
            errors.extend(leaves(error))
        finally:
            cast("End", end).close()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side, ours, partial(send_outgoing, ours, outgoing))
            nursery.start_soon(side, theirs, partial(inbox.receive, theirs))
    return (received[0] if received else None), errors, wire


def make_tree(root: Path, files: dict[str, int], seed: int = 0) -> Path:
    """Make a folder with files of these sizes; a name that ends with ``/`` is a folder."""
    random = Random(seed)
    root.mkdir(parents=True, exist_ok=True)
    for name, size in files.items():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(random.randbytes(size))
    return root


def content(root: Path) -> dict[str, bytes | None]:
    """Everything below a folder, by relative path; None for a folder."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))
    }


def looked(*paths: Path) -> Outgoing:
    return look_at(paths)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)
