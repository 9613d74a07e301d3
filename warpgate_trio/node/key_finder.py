"""Finds the address of a peer of which only the key is known.

Theory of operation.  Each of our signal servers is asked for the record of the key (`address.key_record`).  A record is
accepted if it is of that key, signed by it, valid now, and not older than one that was seen before.  The newest one is
used.  It names the servers at which the peer receives signals.  By these the peer itself is asked for its address
(`get_addr`), which it tells the peers that it admits.  The answer is an address like any other.

So a server that lies can keep a peer from being found, and can cause a question to a place where the peer was once.  It
cannot lead to another peer: only the owner of the key can read and answer the question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, final

import trio

from ..address import KeyRecord, PeerAddress
from ..clock.corrected import CorrectedClock
from ..contacts import Contacts
from ..errors import AttemptFailed, KeyRecordError, PeerNotFound, SignalError
from ..host import Host
from ..identity import peer_id_from_key
from ..limits import BoundedMap
from ..report import Lookup, LookupOutcome
from ..signal import ClockReply, Failed, Refused, SignalHub
from ..signal.key_records import Answer
from ..signal.message import Message
from ..signal.sender import SignalSender
from ..walk.attempt import check_delivery, refusal
from .address_book import AddressBook
from .planning import Factories

__all__ = ["KeyFinder"]

LOOKUP_PATIENCE: Final = 3.0
"""Seconds to connect to the servers, and as many again for their answers: several slow round trips each."""
MAX_SEEN: Final = 1024
"""Keys whose newest record is remembered, as many as peers whose addresses are."""
GET_ADDR: Final = "get_addr"
NO_ANSWER: Final = "no answer; the peer is not connected, or does not admit this node"

_WORDS: Final = {
    LookupOutcome.RECORD: "it has a record",
    LookupOutcome.NOBODY: "it knows no such peer",
    LookupOutcome.TOO_MANY: "it accepts no further lookups from this node for now",
    LookupOutcome.UNSUPPORTED: "it does not store key records",
    LookupOutcome.FORBIDDEN: "its access rules (ACL) do not let this node read key records",
    LookupOutcome.SILENT: "it does not answer",
    LookupOutcome.OTHER_KEY: "it returned the record of another key",
    LookupOutcome.FORGED: "it returned a record that the peer has not signed",
    LookupOutcome.MALFORMED: "it returned bytes that are not a record",
    LookupOutcome.UNKNOWN_VERSION: "the peer's record is of a later release",
    LookupOutcome.EXPIRED: "its record has expired",
    LookupOutcome.NOT_YET_VALID: "its record is dated in the future: a clock is wrong",
    LookupOutcome.ROLLED_BACK: "its record is older than one that was seen before",
}


@final
class KeyFinder:
    """See the module's docstring.

    Args:
      factories: the plugins, of which `get_addr` is needed.
      contacts: remember the newest record seen of each contact, beyond the node's lifetime.
      note_seen: called with a peer's id and the time of issue of a record of it that is newer than all before.
    """

    def __init__(
        self,
        host: Host,
        hub: SignalHub,
        sender: SignalSender,
        clock: CorrectedClock,
        book: AddressBook,
        factories: Factories,
        *,
        contacts: Contacts | None,
        note_seen: Callable[[str, int], object],
    ) -> None:
        self._host = host
        self._hub = hub
        self._sender = sender
        self._clock = clock
        self._book = book
        self._factories = factories
        self._contacts = contacts
        self._note_seen = note_seen
        self._seen: BoundedMap[bytes, int] = BoundedMap(MAX_SEEN)

    async def find(self, peer_key: bytes, *, patience: float) -> PeerAddress:
        """Ask the servers for a peer, and the peer for its address.

        Args:
          patience: seconds for the peer's answer.

        Raises:
          PeerNotFound: no server has a record that can be used, or the peer does not answer.
          PeerRefused: the peer refused to tell.
        """
        peer_id = peer_id_from_key(peer_key)
        if GET_ADDR not in self._factories:
            raise PeerNotFound(peer_id, "the plugin get_addr, which asks peers for their address, is not enabled")
        with trio.move_on_after(LOOKUP_PATIENCE):
            await self._hub.wait_tried()
        answers = await self._hub.look_up(peer_key, patience=LOOKUP_PATIENCE)
        record, lookups = self.judge(peer_key, answers)
        if record is None:
            raise PeerNotFound(peer_id, _why(lookups), lookups)
        try:
            with trio.fail_after(patience):
                return await self._ask(record)
        except (AttemptFailed, SignalError, trio.TooSlowError) as error:
            reason = NO_ANSWER if isinstance(error, trio.TooSlowError) else str(error)
            known = next(each.server for each in lookups if each.outcome is LookupOutcome.RECORD)
            why = f"{known} has a record of it, but asking the peer for its address failed: {reason}"
            raise PeerNotFound(peer_id, why, lookups) from error

    def judge(self, peer_key: bytes, answers: Sequence[Answer]) -> tuple[KeyRecord | None, list[Lookup]]:
        """The newest usable record, which is remembered, and the result of each server's answer."""
        now = self._clock.now()
        contact = self._contacts.of(peer_id_from_key(peer_key)) if self._contacts is not None else None
        seen = max(self._seen.get(peer_key) or 0, 0 if contact is None else contact.seen)
        best: KeyRecord | None = None
        lookups: list[Lookup] = []
        for answer in answers:
            outcome = answer.outcome
            if outcome is LookupOutcome.RECORD:
                try:
                    record = KeyRecord.from_bytes(answer.record, of=peer_key)
                    record.check_fresh(now, seen=seen)
                except KeyRecordError as error:
                    outcome = error.flaw
                else:
                    best = record if best is None or record.issued_ms > best.issued_ms else best
            lookups.append(Lookup(answer.server, outcome))
        if best is not None:
            # A time of issue in the future is not remembered: the following records would look old beside it.
            issued = min(best.issued_ms, int(now * 1000))
            self._seen.put(peer_key, max(seen, issued))
            if issued > seen:
                self._note_seen(best.peer_id, issued)
        return best, lookups

    async def _ask(self, record: KeyRecord) -> PeerAddress:
        question = _Question(self._sender, self._host, record, self._factories)
        await question.ask()
        fresh = self._book.heard(record.public_key)
        if fresh is None:
            raise AttemptFailed("the peer answered without a usable address")
        return fresh


@final
class _Question:
    """The question of `get_addr` to a peer of which only the key record is known; a `Mailbox`."""

    def __init__(self, sender: SignalSender, host: Host, record: KeyRecord, factories: Factories) -> None:
        self._sender = sender
        self._record = record
        self._message: Message = factories[GET_ADDR][0].proto_messages[0]()
        self._session, self._attempt = host.entropy(16), host.entropy(16)
        self._arrivals, self._inbox = trio.open_memory_channel[Message](4)

    def deliver(self, message: Message) -> None:
        """See `Mailbox`; a message is dropped where the queue is full."""
        try:
            self._arrivals.send_nowait(message)
        except trio.WouldBlock:
            return

    async def ask(self) -> None:
        """Ask, and return once the peer has answered.  Its address came with the answer and was stored.

        Raises:
          PeerRefused, AttemptFailed: the peer refused, or failed to answer.
          SignalUnavailable, AttemptFailed: the peer cannot be asked.
        """
        key = (self._record.public_key, self._session, self._attempt)
        self._sender.attach(key, self)
        try:
            await self._send()
            again = True
            async for message in self._inbox:
                if isinstance(message, ClockReply):  # the peer's time is known now: repeat the question, once
                    if again:
                        again = False
                        await self._send()
                elif isinstance(message, Refused):
                    raise refusal(message)
                elif isinstance(message, Failed):
                    raise AttemptFailed("the peer's side of the attempt failed")
                else:
                    return
        finally:
            self._sender.detach(key)

    async def _send(self) -> None:
        check_delivery(
            await self._sender.send(
                self._record,
                self._message,
                owner=GET_ADDR,
                session=self._session,
                attempt=self._attempt,
                to_peers_servers=True,
            )
        )


def _why(lookups: Sequence[Lookup]) -> str:
    if not lookups:
        return "no signal server is configured, so no record can be looked up"
    said = "; ".join(f"{each.server}: {_WORDS[each.outcome]}" for each in lookups)
    return f"none of your servers has a usable record of it ({said})"
