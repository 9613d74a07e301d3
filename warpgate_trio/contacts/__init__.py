"""Names for peers: each contact has a key, a last known address, and how the key was verified (docs/contacts.md)."""

from __future__ import annotations

from .callee import Callee, find_callee
from .contact import MAX_NAME, Contact, How, check_name
from .contacts import MAX_CONTACTS, Contacts, default_contacts_file

__all__ = [
    "MAX_CONTACTS",
    "MAX_NAME",
    "Callee",
    "Contact",
    "Contacts",
    "How",
    "check_name",
    "default_contacts_file",
    "find_callee",
]
