"""Finds the peer that a user means by an address, a peer id, or a contact's name."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from ..address import PeerAddress
from ..errors import ContactsFileError, ContactUnknown
from ..identity import key_from_peer_id
from .contact import MAX_NAME, Contact, check_name, read_peer

if TYPE_CHECKING:
    from .contacts import Contacts

__all__ = ["Callee", "find_callee"]

_ADDRESS: Final = re.compile(r"\s*wg[0-9]", re.ASCII | re.IGNORECASE)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Callee:
    """A peer that is to be called.

    Attributes:
      peer_id: its peer id.
      address: the address that was given, or that of the contact; None: it has to be looked up.
      contact: the peer's contact, if there is one.
    """

    peer_id: str
    address: PeerAddress | None = None
    contact: Contact | None = None

    @property
    def public_key(self) -> bytes:
        """The key, 32 bytes."""
        return key_from_peer_id(self.peer_id)


def find_callee(text: str, contacts: Contacts | None) -> Callee:
    """The peer that is meant by an address (``wg1…``), a peer id, or a contact's name.

    Raises:
      AddressError: it is an address that cannot be used.
      PeerIdError: it is longer than a name, and not a peer id.
      ContactNameError: it is neither of these, and cannot be a name.
      ContactUnknown: no contact has this name.
      ContactsFileError: it is a name, and the contacts cannot be read any more.
    """
    if len(text) > MAX_NAME or _ADDRESS.match(text):
        peer = read_peer(text)
        address, peer_id = (peer, peer.peer_id) if isinstance(peer, PeerAddress) else (None, peer)
        known = _known(peer_id, contacts)
        return Callee(peer_id=peer_id, address=address or (known and known.address), contact=known)
    check_name(text)
    if contacts is None:
        raise ContactUnknown(f"there is no contact {text!r}: this node was opened without a contacts file")
    contacts.refresh()
    contact = contacts.find(text)
    return Callee(peer_id=contact.peer_id, address=contact.address, contact=contact)


def _known(peer_id: str, contacts: Contacts | None) -> Contact | None:
    if contacts is None:
        return None
    with suppress(ContactsFileError):  # an address or a peer id works without the file
        contacts.refresh()
    return contacts.of(peer_id)
