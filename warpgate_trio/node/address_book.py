"""The addresses that a node knows of its peers: each peer's own latest record, and the one the application was given.

Theory of operation.  A record is *first-hand* when it came in a fresh, accepted signal of the peer: an answer to our
question, or a message of a peer that is admitted.  Of first-hand records the one received last counts as the newest,
whatever its sequence number.  Sequence numbers follow the peer's clock.  A clock that was ahead and was corrected
leaves records behind whose numbers are higher than those of the records issued next.

The address that the application passed is tried as well.  It may be newer than the first-hand record (the peer has
moved, and told somebody else) or older (it was copied a week ago).  Nothing in the records tells which.

A record that names no interface does not locate a peer, and is not stored.

Several processes may use one key.  A process that does not listen cannot be called.  Its record serves the exchanges
under way with it.  It is not called while a record is known that may lead to a process that listens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, final

from ..limits import BoundedMap

if TYPE_CHECKING:
    from ..address import PeerAddress, Recipient

__all__ = ["MAX_KNOWN", "AddressBook"]

MAX_KNOWN: Final = 1024
"""Peers whose addresses are remembered, the most recent ones; up to three records each, of about 300 bytes."""


@final
class AddressBook:
    """Three tables of `MAX_KNOWN` peers each: first-hand records, those of listening processes, and passed addresses.

    Attributes:
      on_heard: called with each first-hand record.
    """

    def __init__(self) -> None:
        self._heard: BoundedMap[bytes, PeerAddress] = BoundedMap(MAX_KNOWN)
        self._listening: BoundedMap[bytes, PeerAddress] = BoundedMap(MAX_KNOWN)
        self._passed: BoundedMap[bytes, PeerAddress] = BoundedMap(MAX_KNOWN)
        self.on_heard: Callable[[PeerAddress], object] = lambda _: None

    def hear(self, address: PeerAddress) -> None:
        """Store a first-hand record."""
        if address.interfaces:
            self._heard.put(address.public_key, address)
            if address.listens:
                self._listening.put(address.public_key, address)
            self.on_heard(address)

    def note_passed(self, address: PeerAddress) -> None:
        """Store an address that the application passed."""
        self._passed.put(address.public_key, address)

    def heard(self, peer_key: bytes) -> PeerAddress | None:
        """The latest first-hand record of a peer."""
        return self._heard.get(peer_key)

    def called(self, peer_key: bytes) -> PeerAddress | None:
        """The latest first-hand record of a process of the peer that listens."""
        return self._listening.get(peer_key)

    def records(self, peer_key: bytes) -> list[PeerAddress]:
        """The known records to call a peer by, at most two, the first-hand one first."""
        heard, passed = self._heard.get(peer_key), self._passed.get(peer_key)
        listening = [each for each in (self._listening.get(peer_key), passed) if each is not None and each.listens]
        return list(dict.fromkeys(listening or [each for each in (heard, passed) if each is not None]))

    def hints(self, address: Recipient) -> list[str]:
        """URLs of the servers at which a peer may be: those of `address`, then those of all other known records."""
        records: list[Recipient] = [address, *self.records(address.public_key)]
        return list(dict.fromkeys(url for record in records for url in record.signals))
