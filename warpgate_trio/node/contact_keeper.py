"""Contacts whose addresses are kept fresh: what a peer that has a name said itself of where it is.

It is written a little later, so that several words of a peer's in a row cost one change of the file, and when the node
is left.  What cannot be written is logged, and is told again by the peer.
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
"""Seconds from what a contact says of where it is to the contacts file: for as long a node that starts says it anew
with each thing that it learns of its NATs."""
STALE_AFTER: Final = 86_400
"""Seconds after which an address is written that says the same as the one before: a seventh of an address's life."""


@final
class ContactKeeper:
    """See the module's page."""

    def __init__(self, contacts: Contacts) -> None:
        self._contacts = contacts
        self._news: dict[str, PeerAddress] = {}  # by peer id
        self._seen: dict[str, int] = {}  # the same
        self._woken = trio.Event()

    def hear(self, address: PeerAddress) -> None:
        """A peer said where it is, or was reached there."""
        contact = self._contacts.of(address.peer_id)
        if contact is None or not address.listens or not _is_news(address, contact.address):
            return
        self._news[address.peer_id] = address
        self._woken.set()

    def note_seen(self, peer_id: str, issued_ms: int) -> None:
        """A key record of a peer was seen that is newer than all before."""
        if self._contacts.of(peer_id) is not None:
            self._seen[peer_id] = issued_ms
            self._woken.set()

    async def run(self) -> None:
        """Write what was heard, until cancelled; then what is left."""
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
                logger.warning("where a contact is now cannot be written down: %s", error)
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
