"""Keeps the addresses of contacts up to date: stores first-hand records of peers that have a name.

They are written after a delay, so that several records of a peer in a row cost one change of the file, and when the
node is closed.  A failure to write is logged; the peer's next record makes up for it.
"""

from __future__ import annotations

import logging
from typing import Final, final

import trio

from ..address import PeerAddress
from ..contacts import Contacts
from ..errors import ContactsFileError

__all__ = ["ContactKeeper"]

logger: logging.Logger = logging.getLogger(__name__)

WRITE_DELAY: Final = 5.0
"""Seconds from the receipt of a contact's address until it is written.  For about that long, a node that has just
started issues new addresses as it learns the properties of its NATs."""
STALE_AFTER: Final = 86_400
"""Seconds after which an address is written though it differs only in its age: a seventh of an address's lifetime."""


@final
class ContactKeeper:
    """See the module's docstring."""

    def __init__(self, contacts: Contacts) -> None:
        self._contacts = contacts
        self._news: dict[str, PeerAddress] = {}  # by peer id
        self._seen: dict[str, int] = {}  # by peer id, in milliseconds
        self._woken = trio.Event()

    def hear(self, address: PeerAddress) -> None:
        """Take a peer's first-hand address, or one at which it was reached."""
        contact = self._contacts.of(address.peer_id)
        if contact is None or not address.listens or not _is_news(address, contact.address):
            return
        self._news[address.peer_id] = address
        self._woken.set()

    def note_seen(self, peer_id: str, issued_ms: int) -> None:
        """Take the time of issue of a peer's key record that is newer than all before."""
        if self._contacts.of(peer_id) is not None:
            self._seen[peer_id] = issued_ms
            self._woken.set()

    async def run(self) -> None:
        """Write what was received, until cancelled; then write the rest."""
        try:
            while True:
                await self._woken.wait()
                await trio.sleep(WRITE_DELAY)
                self._write()
        finally:
            self._write()

    def _write(self) -> None:
        self._woken = trio.Event()
        news, self._news = self._news, {}
        seen, self._seen = self._seen, {}
        for peer_id in {**news, **seen}:
            try:
                self._contacts.learn(peer_id, address=news.get(peer_id), seen=seen.get(peer_id, 0))
            except ContactsFileError as error:
                logger.warning("a contact's address could not be stored: %s", error)
                return


def _is_news(address: PeerAddress, known: PeerAddress | None) -> bool:
    if known is None:
        return True
    if address.issued_at - known.issued_at >= STALE_AFTER:
        return True
    return (address.signals, address.interfaces, address.capabilities) != (
        known.signals,
        known.interfaces,
        known.capabilities,
    )
