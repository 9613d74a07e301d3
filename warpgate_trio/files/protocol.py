"""The protocol of one transfer, without I/O: which message may come next, and which claims of the peer are valid.

Each side keeps its own view of the state; `_NEXT` lists every transition.  A message of the peer that the state does
not allow is a `RemoteProtocolError`, one of this side a `LocalProtocolError`.

    OFFERING --OFFER--> LISTING --last ENTRIES--> OFFERED --ACCEPT--> SENDING --FINISH--> FINISHED --DONE--> OVER
                                                     \\--REFUSE--> OVER  \\--WITHDRAW, STOP--> OVER

The sender sends the files in the order of the offer, and the blocks of each file in order.  It begins with the first
block that the receiver lacks, or with block 0 if the receiver's part has other content.  The receiver therefore knows
which block comes next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, final

import msgspec

from ..errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from .digests import block_count, block_size
from .wire import (
    MAX_BYTES,
    MAX_ENTRIES,
    MAX_MESSAGE,
    MAX_NAMES,
    MAX_TEXT,
    VERSION,
    Accept,
    Block,
    Done,
    Entries,
    Entry,
    FileEnd,
    FileReader,
    Finish,
    Held,
    Kind,
    Message,
    Offer,
    Reason,
    Refuse,
    Stop,
    Withdraw,
    block_header,
    encode,
)

__all__ = ["Offered", "Receiver", "Sender", "State", "completed", "first_bytes"]

_BATCH: Final = MAX_MESSAGE - 4096
"""Bytes of entries in one message; the rest of the message is a margin."""


class State(Enum):
    """The state of a transfer."""

    OFFERING = "offering"
    LISTING = "listing"
    OFFERED = "offered"
    SENDING = "sending"
    FINISHED = "finished"
    OVER = "over"


_NEXT: Final[Mapping[tuple[State, type[Message]], State]] = {
    (State.OFFERING, Offer): State.LISTING,
    (State.LISTING, Entries): State.LISTING,  # `OFFERED` after the last one
    (State.OFFERED, Accept): State.SENDING,
    (State.OFFERED, Refuse): State.OVER,
    (State.LISTING, Refuse): State.OVER,  # the OFFER message alone showed that the offer is not acceptable
    (State.SENDING, Block): State.SENDING,
    (State.SENDING, FileEnd): State.SENDING,
    (State.SENDING, Finish): State.FINISHED,
    (State.SENDING, Withdraw): State.OVER,
    (State.SENDING, Stop): State.OVER,
    (State.FINISHED, Stop): State.OVER,
    (State.FINISHED, Done): State.OVER,
}


def _after(state: State, kind: type, error: type[ProtocolError]) -> State:
    try:
        return _NEXT[state, kind]
    except KeyError:
        raise error(f"{kind.__name__} in a transfer that is {state.value}") from None


_SENDERS: Final = frozenset({Kind.OFFER, Kind.ENTRIES, Kind.BLOCK, Kind.FILE_END, Kind.FINISH, Kind.WITHDRAW})
_RECEIVERS: Final = frozenset({Kind.ACCEPT, Kind.REFUSE, Kind.STOP, Kind.DONE})


@final
@dataclass(frozen=True, slots=True)
class Offered:
    """A complete offer as it was received; its names have not been checked."""

    offer: Offer
    entries: tuple[Entry, ...]


def completed(bits: bytes, index: int) -> bool:
    """Whether the bit of an entry is set in `Accept.complete`."""
    return index >> 3 < len(bits) and bool(bits[index >> 3] & (1 << (index & 7)))


def first_bytes(entries: Sequence[Entry], accept: Accept) -> int:
    """The number of bytes that the receiver claims to have."""
    whole = sum(each.size for index, each in enumerate(entries) if completed(accept.complete, index))
    return whole + sum(
        min(entries[held.index].size, held.blocks * block_size(entries[held.index].size, 0)) for held in accept.held
    )


@final
class _Order:
    """Which block or end of a file comes next; both sides compute the same."""

    def __init__(self, entries: Sequence[Entry], accept: Accept) -> None:
        self._entries = entries
        self._complete = accept.complete
        self._held = {each.index: each.blocks for each in accept.held}
        self.index = -1
        self.blocks = 0
        """Number of blocks of the file `index` that were sent or held."""
        self.next_file()

    def next_file(self) -> None:
        index = self.index + 1
        while index < len(self._entries) and (self._entries[index].is_folder or completed(self._complete, index)):
            index += 1
        self.index = index
        self.blocks = self._held.get(index, 0)

    @property
    def done(self) -> bool:
        return self.index >= len(self._entries)

    def take_block(self, index: int, number: int, size: int) -> str | None:
        """What is wrong with a block; None if it is the next one."""
        if index != self.index:
            return f"a block of file {index} where one of file {self.index} comes"
        if number == 0:
            self.blocks = 0  # the held part has other content
            self._held.pop(index, None)
        whole = self._entries[index].size
        if number != self.blocks or number >= block_count(whole):
            return f"block {number} of file {index} where it has {self.blocks} of {block_count(whole)}"
        if size != block_size(whole, number):
            return f"block {number} of file {index} has {size} bytes"
        self.blocks += 1
        return None

    def take_end(self, index: int) -> str | None:
        if index != self.index or self.blocks != block_count(self._entries[index].size):
            return f"the end of file {index} where file {self.index} has {self.blocks} blocks"
        self.next_file()
        return None


@final
class Sender:
    """The sending side of a transfer.

    Attributes:
      state: the state of the transfer as this side knows it.
    """

    def __init__(self, offer: Offer, entries: Sequence[Entry]) -> None:
        self._offer = offer
        self._entries = entries
        self._reader = FileReader(_RECEIVERS)
        self._order: _Order | None = None
        self.state: State = State.OFFERING

    def offer(self) -> Iterator[bytes]:
        """The messages to send first: OFFER and ENTRIES."""
        self.state = _after(self.state, Offer, LocalProtocolError)
        yield encode(self._offer)
        batch: list[Entry] = []
        size = 0
        for entry in self._entries:
            cost = 4 * len(entry.path) + 48  # at most: UTF-8, and the numbers
            if batch and (size + cost > _BATCH or len(batch) == 4096):
                yield encode(Entries(tuple(batch)))
                batch, size = [], 0
            batch.append(entry)
            size += cost
        yield encode(Entries(tuple(batch)))
        if self.state is State.LISTING:
            self.state = State.OFFERED

    def receive(self, data: bytes) -> Iterator[Accept | Refuse | Stop | Done]:
        """The messages that `data` of the receiver completes; ``b""`` is the end of its stream.

        Raises:
          RemoteProtocolError: a message is malformed, not allowed now, or claims something impossible.
        """
        for message in self._reader.feed(data):
            assert isinstance(message, Accept | Refuse | Stop | Done)
            self.state = _after(self.state, type(message), RemoteProtocolError)
            if isinstance(message, Accept):
                self._check(message)
                self._order = _Order(self._entries, message)
            yield message
        if not data:
            self._reader.check_end()
            if self.state is not State.OVER:
                raise RemoteProtocolError(f"the receiver ended a transfer that is {self.state.value}")

    def _check(self, accept: Accept) -> None:
        """Check that the claims of an ACCEPT fit the offer."""
        if len(accept.complete) > -(-len(self._entries) // 8):
            raise RemoteProtocolError("ACCEPT has more files than there are")
        seen: set[int] = set()
        for held in accept.held:
            if held.index >= len(self._entries) or self._entries[held.index].is_folder:
                raise RemoteProtocolError(f"ACCEPT has a part of {held.index}, which is no file")
            if held.index in seen or completed(accept.complete, held.index):
                raise RemoteProtocolError(f"ACCEPT has file {held.index} twice")
            if held.blocks > block_count(self._entries[held.index].size):
                raise RemoteProtocolError(f"ACCEPT has {held.blocks} blocks of file {held.index}, which has fewer")
            seen.add(held.index)

    def block(self, index: int, number: int, digest: bytes, size: int) -> bytes:
        """The header to send before the bytes of a block."""
        self._say(Block, None if self._order is None else self._order.take_block(index, number, size))
        return block_header(index, number, digest, size)

    def end_file(self, index: int, digest: bytes) -> bytes:
        """The message that ends a file."""
        self._say(FileEnd, None if self._order is None else self._order.take_end(index))
        return encode(FileEnd(index, digest))

    def finish(self) -> bytes:
        """The message that all files were sent."""
        self._say(Finish, None if self._order is None or self._order.done else "files are missing")
        return encode(Finish())

    def withdraw(self, reason: Reason, text: str, index: int | None = None) -> bytes:
        """The message that the sender cannot continue; `index` is the file that has changed."""
        self._say(Withdraw, None)
        return encode(Withdraw(reason, _cut(text), index))

    def _say(self, kind: type[Message], problem: str | None) -> None:
        self.state = _after(self.state, kind, LocalProtocolError)
        if problem is not None:
            raise LocalProtocolError(problem)


@final
class Receiver:
    """The receiving side of a transfer.

    Args:
      max_entries: the most files and folders that it accepts in one offer.

    Attributes:
      state: the state of the transfer as this side knows it.
    """

    def __init__(self, *, max_entries: int = MAX_ENTRIES) -> None:
        self._reader = FileReader(_SENDERS)
        self._max_entries: Final = min(max_entries, MAX_ENTRIES)
        self._offer: Offer | None = None
        self._entries: list[Entry] = []
        self._names = 0
        self._order: _Order | None = None
        self.state: State = State.OFFERING

    def receive(self, data: bytes) -> Iterator[Offered | Refusal | Block | FileEnd | Finish | Withdraw]:
        """What `data` of the sender completes; ``b""`` is the end of its stream.

        A `Refusal` is for the caller to pass to `refuse`.

        Raises:
          RemoteProtocolError: a message is malformed or not allowed now.
        """
        for message in self._reader.feed(data):
            self.state = _after(self.state, type(message), RemoteProtocolError)
            found = self._take(message)
            if found is not None:
                yield found
        if not data:
            self._reader.check_end()
            if self.state is not State.OVER:
                raise RemoteProtocolError(f"the sender ended a transfer that is {self.state.value}")

    def _take(self, message: Message) -> Offered | Refusal | Block | FileEnd | Finish | Withdraw | None:
        problem: str | None = None
        if isinstance(message, Offer):
            self._offer = message
            return self._judge_size(message)
        if isinstance(message, Entries):
            return self._list(message)
        assert isinstance(message, Block | FileEnd | Finish | Withdraw)
        if self._order is not None:
            if isinstance(message, Block):
                problem = self._order.take_block(message.index, message.number, message.size)
            elif isinstance(message, FileEnd):
                problem = self._order.take_end(message.index)
            elif isinstance(message, Finish) and not self._order.done:
                problem = "the sender says that it has finished, and files are missing"
            elif isinstance(message, Withdraw) and message.index is not None and message.index != self._order.index:
                problem = "the sender withdraws another file than the one that it sends"
        if problem is not None:
            raise RemoteProtocolError(problem)
        return message

    def _judge_size(self, offer: Offer) -> Refusal | None:
        if offer.version != VERSION:
            return Refusal(
                Reason.UNSUPPORTED, f"protocol version {offer.version} is not supported; this side speaks {VERSION}"
            )
        if offer.entries > self._max_entries:
            return Refusal(
                Reason.TOO_MANY, f"the offer has {offer.entries:,} files; at most {self._max_entries:,} are accepted"
            )
        if offer.size > MAX_BYTES:
            return Refusal(Reason.TOO_LARGE, f"the offer has {offer.size:,} bytes; at most {MAX_BYTES:,} are accepted")
        return None

    def _list(self, message: Entries) -> Offered | None:
        assert self._offer is not None
        self._entries += message.entries
        self._names += sum(len(each.path) for each in message.entries)
        if len(self._entries) > self._offer.entries or self._names > MAX_NAMES:
            raise RemoteProtocolError("the sender lists more than it has offered")
        if len(self._entries) < self._offer.entries:
            return None
        if sum(each.size for each in self._entries) != self._offer.size:
            raise RemoteProtocolError("the files of the offer have another size than the offer")
        if any(each.is_folder and each.size for each in self._entries):
            raise RemoteProtocolError("a folder of the offer has a size")
        self.state = State.OFFERED
        return Offered(self._offer, tuple(self._entries))

    def accept(self, complete: bytes, held: Iterable[Held]) -> bytes:
        """The message that lets the sender begin."""
        accept = Accept(complete, tuple(held))
        self._say(accept)
        self._order = _Order(self._entries, accept)
        return encode(accept)

    def refuse(self, reason: Reason, text: str) -> bytes:
        """The message that the offer is refused."""
        return self._say(Refuse(reason, _cut(text)))

    def stop(self, reason: Reason, text: str) -> bytes:
        """The message that the receiver cannot continue."""
        return self._say(Stop(reason, _cut(text)))

    def done(self) -> bytes:
        """The message that all files have their names."""
        return self._say(Done())

    def _say(self, message: Accept | Refuse | Stop | Done) -> bytes:
        self.state = _after(self.state, type(message), LocalProtocolError)
        return encode(message)


@final
class Refusal(msgspec.Struct, frozen=True):
    """Why an offer cannot be accepted, as its first message shows; for `Receiver.refuse`."""

    reason: Reason
    text: str


def _cut(text: str) -> str:
    return text.encode(errors="replace")[:MAX_TEXT].decode(errors="ignore")
