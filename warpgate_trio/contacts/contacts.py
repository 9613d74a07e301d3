"""`Contacts`: a user's contacts, as the file has them, and the rule that lets them in.

Theory of operation.  The file is what counts, and several processes have it: a node that runs for months, and commands
beside it.  So what is held here is what was read last.  A change takes its turn among all processes, reads the file
anew, and replaces it whole; nothing that another one has written in between is lost.  A file that cannot be understood
is an error for who asks, and is never written over.

All of it is synchronous: the file is small, and what waits for the disk is a change that a person has asked for, or an
address that is kept fresh once in a while.
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
"""What changes with a file: its inode, size and time; None: there is none."""


def default_contacts_file() -> Path:
    """Where the contacts of this user are kept: ``contacts.toml`` in the user's data directory.

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
        """Those in a file; none where there is no file, which the first change makes.

        Args:
          path: the user's own (`default_contacts_file`) when None.

        Raises:
          ContactsFileError: it cannot be read, others can read or write it, or it is not what it should be.
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

    # -- who is that ---------------------------------------------------------------------------------------------------

    def get(self, name: str) -> Contact | None:
        """The contact of a name, in capitals or not; None: there is none."""
        return self._contacts.get(name.lower())

    def find(self, name: str) -> Contact:
        """The same.

        Raises:
          ContactUnknown: there is none; the message has the nearest name.
        """
        contact = self.get(name)
        if contact is not None:
            return contact
        near = difflib.get_close_matches(name.lower(), self._contacts, n=1)
        rest = f"; the nearest is {self._contacts[near[0]].name!r}" if near else ""
        raise ContactUnknown(f"there is no contact {printable(name, 60)!r}{rest}")

    def of(self, peer_id: str) -> Contact | None:
        """The contact of a peer; None: it has no name here."""
        return next((each for each in self._contacts.values() if each.peer_id == peer_id), None)

    async def authorize(self, peer_id: str) -> bool:
        """The rule that lets contacts in: ``open_node(config, authorize=contacts.authorize)``.

        A contact that another process has added or removed counts from then on.

        Raises:
          ContactsFileError: the file cannot be read any more; a node takes that for no, and logs it.
        """
        await trio.lowlevel.checkpoint()
        self.refresh()
        return self.of(peer_id) is not None

    def refresh(self) -> None:
        """Read the file again if it has changed.

        Raises:
          ContactsFileError: as `load`; what was read before stands.
        """
        stamp = _stamp_of(self.path)
        if stamp != self._stamp:
            self._contacts = _read(self.path)
            self._stamp = stamp

    def check_free(self, name: str, peer_id: str) -> None:
        """Raise what `add` would, as far as can be told beforehand: for who calls the peer first.

        Raises:
          ContactNameError, ContactKeyChanged, ContactExists: see `add`.
        """
        check_name(name)
        _check_free(self._contacts, name, peer_id)

    # -- changes -------------------------------------------------------------------------------------------------------

    def add(self, name: str, peer: PeerAddress | str, *, how: How = How.CALL) -> Contact:
        """Give a peer a name.  One that has it already gets its address renewed.

        Args:
          peer: its address, as an object or as text (``wg1…``), or its peer id.
          how: how it was made sure that the key is the peer's.

        Raises:
          ContactNameError: that is no name.
          ContactKeyChanged: the name is that of a peer with another key.
          ContactExists: the peer has another name, or there are `MAX_CONTACTS`.
          AddressError, PeerIdError: that is no peer.
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
        """Forget a contact; returns it.

        Raises:
          ContactUnknown: there is none.
          ContactsFileError: the file cannot be read or written.
        """

        def edit(contacts: dict[str, Contact]) -> Contact:
            contact = self.find(name)
            del contacts[name.lower()]
            return contact

        return self._change(edit)

    def rename(self, old: str, new: str) -> Contact:
        """Give a contact another name; all else of it stays.

        Raises:
          ContactNameError: that is no name.
          ContactUnknown: there is none of the old name.
          ContactExists: there is another one of the new name.
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
        """Note where a contact is now, and what was seen of it; None: that peer has no name here.

        Args:
          address: of that peer, which it has said itself; None: no other than before.
          seen: when the newest key record of it that was seen was issued, Unix milliseconds; lower ones change nothing.

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
        """Change the file by what it has now.  What `edit` raises leaves it as it is."""
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
        raise ContactExists(f"that peer is your contact {other.name!r}; rename it to have it called {name!r}")
    if len(contacts) >= MAX_CONTACTS:
        raise ContactExists(f"there are {MAX_CONTACTS} contacts, as many as there can be")


def _stamp_of(file: Path) -> _Stamp:
    try:
        status = os.stat(file)
    except (OSError, ValueError):  # `_read` says what is wrong
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
