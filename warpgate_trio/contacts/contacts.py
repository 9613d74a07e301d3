"""`Contacts`: a user's contacts file in memory, and the `Authorize` rule that lets contacts in.

Theory of operation.  The file is authoritative, and several processes use it: a node that runs for months, and commands
beside it.  The object holds what was read last.  A change takes a lock, reads the file anew, and replaces it whole, so
it loses nothing that another process has written in between.  A file that cannot be parsed raises an error, and is
never overwritten.

All methods but `authorize` are synchronous: the file is small, and only changes by a user and an occasional update of
an address wait for the disk.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar, final

import platformdirs
import trio

from .. import host
from ..address import PeerAddress
from ..errors import ContactExists, ContactKeyChanged, ContactsFileError, ContactUnknown, printable
from ..identity import (
    PrivateFileProblem,
    read_private_file,
    replace_private_file,
    turn_to_change,
)
from .contact import Contact, How, check_name, read_peer
from .file import MAX_CONTACTS, MAX_FILE, read_contacts, write_contacts

__all__ = ["MAX_CONTACTS", "Contacts", "default_contacts_file"]

_Made = TypeVar("_Made")
_Stamp = tuple[int, int, int] | None
"""Inode, size and modification time of a file, to notice a change; None: there is no file."""


def default_contacts_file() -> Path:
    """The file of this user's contacts: ``contacts.toml`` in the user's data directory.

    Raises:
      ContactsFileError: the user has no home directory.
    """
    try:
        return platformdirs.user_data_path("warpgate-trio", appauthor=False) / "contacts.toml"
    except RuntimeError as error:  # HOME is not set, and the system does not know the user
        raise ContactsFileError("there is no home directory to keep contacts in; set HOME") from error


@final
class Contacts:
    """The contacts of one user; made by `load`.  Iterating yields each `Contact`, in the order of the file.

    Attributes:
      path: the file.
    """

    def __init__(self, path: Path, contacts: dict[str, Contact], stamp: _Stamp) -> None:
        # Not public: see `load`.
        self.path: Final = path
        self._contacts = contacts
        self._stamp = stamp

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> Contacts:
        """Read the contacts in a file.  If there is no file there are no contacts; the first change creates it.

        Args:
          path: the file; None: the user's own (`default_contacts_file`).

        Raises:
          ContactsFileError: the file cannot be read, others can read or write it, or its content is invalid.
        """
        file = Path(path) if path is not None else default_contacts_file()
        stamp = _stamp_of(file)
        return cls(file, _read(file), stamp)

    def __repr__(self) -> str:
        return f"<Contacts {len(self)} in {self.path}>"

    def __iter__(self) -> Iterator[Contact]:
        return iter(tuple(self._contacts.values()))

    def __len__(self) -> int:
        return len(self._contacts)

    # -- look-ups ------------------------------------------------------------------------------------------------------

    def get(self, name: str) -> Contact | None:
        """The contact with a name, ignoring case; None: there is none."""
        return self._contacts.get(name.lower())

    def find(self, name: str) -> Contact:
        """The contact with a name, ignoring case.

        Raises:
          ContactUnknown: there is none; the message has the most similar name.
        """
        contact = self.get(name)
        if contact is not None:
            return contact
        near = difflib.get_close_matches(name.lower(), self._contacts, n=1)
        rest = f"; the nearest is {self._contacts[near[0]].name!r}" if near else ""
        raise ContactUnknown(f"there is no contact {printable(name, 60)!r}{rest}")

    def of(self, peer_id: str) -> Contact | None:
        """The contact with a peer id; None: there is none."""
        return next((each for each in self._contacts.values() if each.peer_id == peer_id), None)

    async def authorize(self, peer_id: str) -> bool:
        """The rule that lets contacts in: ``open_node(config, authorize=contacts.authorize)``.

        Changes by other processes take effect at once.

        Raises:
          ContactsFileError: the file cannot be read any more; a node logs that, and refuses the peer.
        """
        await trio.lowlevel.checkpoint()
        self.refresh()
        return self.of(peer_id) is not None

    def refresh(self) -> None:
        """Read the file again if it has changed.

        Raises:
          ContactsFileError: as `load`; the contacts that were read before remain.
        """
        stamp = _stamp_of(self.path)
        if stamp != self._stamp:
            self._contacts = _read(self.path)
            self._stamp = stamp

    def check_free(self, name: str, peer_id: str) -> None:
        """Raise what `add` would raise, as far as is known without reading the file: to check before a call.

        Raises:
          ContactNameError, ContactKeyChanged, ContactExists: see `add`.
        """
        check_name(name)
        _check_free(self._contacts, name, peer_id)

    # -- changes -------------------------------------------------------------------------------------------------------

    def add(self, name: str, peer: PeerAddress | str, *, how: How = How.CALL) -> Contact:
        """Add a contact.  If the peer has this name already, only its address is updated.

        Args:
          peer: its address, as an object or as text (``wg1…``), or its peer id.
          how: how the key was verified.

        Raises:
          ContactNameError: `name` cannot be a name.
          ContactKeyChanged: a peer with another key has the name.
          ContactExists: the peer has another name, or there are `MAX_CONTACTS` contacts.
          AddressError, PeerIdError: `peer` is neither an address nor a peer id.
          ContactsFileError: the file cannot be read or written.
        """
        check_name(name)
        found = read_peer(peer) if isinstance(peer, str) else peer
        address, peer_id = (found, found.peer_id) if isinstance(found, PeerAddress) else (None, found)

        def edit(contacts: dict[str, Contact]) -> Contact:
            _check_free(contacts, name, peer_id)
            known = contacts.get(name.lower())
            if known is not None:
                contact = dataclasses.replace(known, address=address or known.address)
            else:
                now = datetime.fromtimestamp(int(host.current().wall_time()), UTC)
                contact = Contact(name=name, peer_id=peer_id, address=address, added=now, how=how)
            contacts[name.lower()] = contact
            return contact

        return self._change(edit)

    def remove(self, name: str) -> Contact:
        """Remove a contact, and return it.

        Raises:
          ContactUnknown: there is none with this name.
          ContactsFileError: the file cannot be read or written.
        """

        def edit(contacts: dict[str, Contact]) -> Contact:
            contact = self.find(name)
            del contacts[name.lower()]
            return contact

        return self._change(edit)

    def rename(self, old: str, new: str) -> Contact:
        """Give a contact another name; the rest of it stays as it is.

        Raises:
          ContactNameError: `new` cannot be a name.
          ContactUnknown: no contact has the old name.
          ContactExists: another contact has the new name.
          ContactsFileError: the file cannot be read or written.
        """
        check_name(new)

        def edit(contacts: dict[str, Contact]) -> Contact:
            contact = self.find(old)
            taken = contacts.get(new.lower())
            if taken is not None and taken is not contact:
                raise ContactExists(f"there is a contact {taken.name!r} already, {taken.peer_id}")
            renamed = dataclasses.replace(contact, name=new)
            order = [renamed if each is contact else each for each in contacts.values()]
            contacts.clear()
            contacts.update((each.name.lower(), each) for each in order)
            return renamed

        return self._change(edit)

    def learn(self, peer_id: str, *, address: PeerAddress | None = None, seen: int = 0) -> Contact | None:
        """Update a contact's address, and the time of its newest key record; returns None if the peer is no contact.

        Args:
          address: the peer's address, as the peer itself has sent it; None: it stays as it is.
          seen: when the newest key record that was seen of it was issued, in Unix milliseconds; a lower value than the
            present one changes nothing.

        Raises:
          ContactsFileError: the file cannot be read or written.
        """

        def edit(contacts: dict[str, Contact]) -> Contact | None:
            contact = next((each for each in contacts.values() if each.peer_id == peer_id), None)
            if contact is not None:
                contact = dataclasses.replace(contact, address=address or contact.address, seen=max(seen, contact.seen))
                contacts[contact.name.lower()] = contact
            return contact

        return self._change(edit)

    def _change(self, edit: Callable[[dict[str, Contact]], _Made]) -> _Made:
        """Apply `edit` to the present content of the file.  If `edit` raises, the file stays as it is."""
        try:
            with turn_to_change("contacts file", self.path):
                self._contacts = _read(self.path)
                contacts = dict(self._contacts)
                made = edit(contacts)
                if contacts != self._contacts:
                    replace_private_file("contacts file", self.path, write_contacts(contacts.values()))
                    self._contacts = contacts
                self._stamp = _stamp_of(self.path)
                return made
        except PrivateFileProblem as error:
            raise ContactsFileError(str(error)) from error


def _check_free(contacts: Mapping[str, Contact], name: str, peer_id: str) -> None:
    known = contacts.get(name.lower())
    if known is not None and known.peer_id != peer_id:
        raise ContactKeyChanged(known.name, known=known.peer_id, offered=peer_id)
    if known is not None:
        return
    other = next((each for each in contacts.values() if each.peer_id == peer_id), None)
    if other is not None:
        raise ContactExists(
            f"that peer is your contact {other.name!r} already; rename that contact to {name!r} instead"
        )
    if len(contacts) >= MAX_CONTACTS:
        raise ContactExists(f"there are {MAX_CONTACTS} contacts already, the maximum")


def _stamp_of(file: Path) -> _Stamp:
    try:
        status = os.stat(file)
    except (OSError, ValueError):  # `_read` raises, and says what is wrong
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _read(file: Path) -> dict[str, Contact]:
    try:
        content = read_private_file("contacts file", file, max_size=MAX_FILE)
    except PrivateFileProblem as error:
        raise ContactsFileError(str(error)) from error
    if content is None:
        return {}
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ContactsFileError(f"{file}, line {line}: not UTF-8") from error
    return read_contacts(text, where=str(file))
