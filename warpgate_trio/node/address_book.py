"""What a node knows of where its peers are: for each, what it said itself last, and what the application was given.

Theory of operation.  A record is *first-hand* when it came in a signal of the peer's that is fresh and was accepted: an
answer to something we asked, or what a peer told us that is let in.  Of those the one that came last is the newest,
whatever its sequence number says: the number follows the peer's clock, and a clock that was ahead and was put right
leaves behind records with higher numbers than all that the peer will issue for as long as it was ahead.

What the application passes is tried beside it.  It may be newer than what we heard last (the peer has moved, and told
somebody else), or older (it was copied a week ago), and nothing in it tells which.

A record that names no interface says nothing of where a peer is, and is not learned.

Several processes may have one key.  One that does not listen can be called by nobody, so what it says of itself is good
for what is under way with it, and never called where a record is known that may lead to one that listens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, final

from ..limits import BoundedMap

if TYPE_CHECKING:
    from ..address import PeerAddress, Recipient

__all__ = ["MAX_KNOWN", "AddressBook"]

MAX_KNOWN: Final = 1024
"""Peers whose addresses are remembered, those heard of last; a record is about 300 bytes, and there are three each."""


@final
class AddressBook:
    """The tables: what was heard, what of it can be called, and what was passed; of a thousand peers each.

    Attributes:
      on_heard: is told of each record that is first-hand.
    """

    def __init__(self) -> None:
        self._heard: BoundedMap[bytes, PeerAddress] = BoundedMap(MAX_KNOWN)
        self._listening: BoundedMap[bytes, PeerAddress] = BoundedMap(MAX_KNOWN)
        self._passed: BoundedMap[bytes, PeerAddress] = BoundedMap(MAX_KNOWN)
        self.on_heard: Callable[[PeerAddress], object] = lambda _: None

    def hear(self, address: PeerAddress) -> None:
        """A peer said where it is, just now."""
        if address.interfaces:
            self._heard.put(address.public_key, address)
            if address.listens:
                self._listening.put(address.public_key, address)
            self.on_heard(address)

    def note_passed(self, address: PeerAddress) -> None:
        """The application was given this address."""
        self._passed.put(address.public_key, address)

    def heard(self, peer_key: bytes) -> PeerAddress | None:
        """What the peer said last."""
        return self._heard.get(peer_key)

    def called(self, peer_key: bytes) -> PeerAddress | None:
        """What a process of the peer that can be called said last."""
        return self._listening.get(peer_key)

    def records(self, peer_key: bytes) -> list[PeerAddress]:
        """Where to call a peer, as far as is known, what it said itself first; one or two records, or none."""
        heard, passed = self._heard.get(peer_key), self._passed.get(peer_key)
        listening = [each for each in (self._listening.get(peer_key), passed) if each is not None and each.listens]
        return list(dict.fromkeys(listening or [each for each in (heard, passed) if each is not None]))

    def hints(self, address: Recipient) -> list[str]:
        """URLs of the servers at which a peer may be: those of one record, then of all others that are known."""
        records: list[Recipient] = [address, *self.records(address.public_key)]
        return list(dict.fromkeys(url for record in records for url in record.signals))
