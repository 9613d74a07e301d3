"""The contacts file: TOML, with a table ``[[contact]]`` for each contact.  Errors name the line.

    version = 1

    [[contact]]
    name = "alice"
    peer = "…"            # her peer id
    address = "wg1…"      # where she was last; may be missing
    added = 2026-11-30T08:00:00+00:00
    how = "call"          # or "pairing", "hand"
    seen = 0              # when her newest key record was issued, Unix milliseconds; may be missing

People may edit it.  An invalid entry is an error with its line, since the key of a contact that was skipped could
change unnoticed.  Keys that a later release has added are kept; comments are lost.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import tomli_w

from ..address import PeerAddress
from ..errors import AddressError, ContactNameError, ContactsFileError, PeerIdError, printable
from ..identity import key_from_peer_id
from .contact import Contact, How, check_name

__all__ = ["MAX_CONTACTS", "MAX_FILE", "read_contacts", "write_contacts"]

MAX_CONTACTS: Final = 1024
"""Contacts of one user, as many as a node remembers addresses of peers."""
MAX_FILE: Final = 4 * 1024 * 1024
"""Bytes of the file: `MAX_CONTACTS` contacts with an address each take 3.5 MB at most."""

_VERSION: Final = 1
_LATEST: Final = 2**53
"""Greatest time in milliseconds, beyond that of any clock; every reader of TOML can hold it."""
_HEADER: Final = "# Contacts of warpgate-trio, which writes this file anew: comments are lost.  docs/contacts.md\n\n"
_TABLE: Final = re.compile(r"\s*\[\[\s*contact\s*\]\]")


def read_contacts(text: str, *, where: str) -> dict[str, Contact]:
    """The contacts in a file's text, by name in lower case, in the file's order.

    Raises:
      ContactsFileError: the text is not a valid contacts file; the message has `where`, the line, and what is wrong.
    """
    try:
        text.encode()  # fails on lone surrogates, which could be read here, but not be written again
        content = tomllib.loads(text.removeprefix("\ufeff"))
        repr(content)  # fails on a hexadecimal number with too many digits to be shown, or written again
    except (ValueError, RecursionError) as error:  # ValueError: TOMLDecodeError, or a number of too many digits
        raise ContactsFileError(f"{where}: {error}") from error  # tomllib names line and column
    lines = _Lines(text, where)
    version = content.get("version")
    if version != _VERSION or isinstance(version, bool):
        raise lines.problem(None, "version", f"version is {_shown(version)}; this release reads {_VERSION}")
    tables = content.get("contact", [])
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise lines.problem(None, "contact", "expected a table [[contact]] for each contact")
    if len(tables) > MAX_CONTACTS:
        raise lines.problem(None, "contact", f"{len(tables)} contacts, more than {MAX_CONTACTS}")
    lines.count(len(tables))
    contacts: dict[str, Contact] = {}
    peers: dict[str, str] = {}
    for number, table in enumerate(tables):
        contact = _read_contact(table, number, lines)
        key = contact.name.lower()
        known = contacts.get(key)
        if known is not None:
            keys = "another key" if known.peer_id != contact.peer_id else "the same key"
            raise lines.problem(number, "name", f"{contact.name!r} is a duplicate name (case is ignored), with {keys}")
        if contact.peer_id in peers:
            other = peers[contact.peer_id]
            raise lines.problem(number, "peer", f"{contact.name!r} has the same peer id as {other!r}")
        contacts[key] = contact
        peers[contact.peer_id] = contact.name
    return contacts


def write_contacts(contacts: Iterable[Contact]) -> bytes:
    """The content of the file with these contacts."""
    tables = []
    for each in contacts:
        table: dict[str, object] = {"name": each.name, "peer": each.peer_id}
        if each.address is not None:
            table["address"] = each.address.text
        table |= {"added": each.added, "how": each.how.value}
        if each.seen:
            table["seen"] = each.seen
        tables.append(table | dict(each.more))
    content: dict[str, object] = {"version": _VERSION}
    if tables:
        content["contact"] = tables
    return (_HEADER + tomli_w.dumps(content)).encode()


def _read_contact(table: dict[str, object], number: int, lines: _Lines) -> Contact:
    more = dict(table)
    name, peer_id, address, added, how, seen = (
        more.pop(key, None) for key in ("name", "peer", "address", "added", "how", "seen")
    )
    if not isinstance(name, str):
        raise lines.problem(number, "name", "the field name is missing or not a string")
    if not isinstance(peer_id, str):
        raise lines.problem(number, "peer", f"the field peer of {_shown(name)} is missing or not a string")
    try:
        check_name(name)
        peer_key = key_from_peer_id(peer_id)
    except ContactNameError as error:
        raise lines.problem(number, "name", str(error)) from error
    except PeerIdError as error:
        raise lines.problem(number, "peer", f"the peer id of {name!r}: {error}") from error
    found = None
    if address is not None:
        try:
            found = PeerAddress.from_text(address if isinstance(address, str) else "")
        except AddressError as error:
            raise lines.problem(number, "address", f"the address of {name!r}: {error}") from error
        if found.public_key != peer_key:
            raise lines.problem(number, "address", f"the address of {name!r} belongs to another peer, {found.peer_id}")
    if not isinstance(added, datetime):
        raise lines.problem(number, "added", f"the field added of {name!r} is missing or not a date and time")
    if not isinstance(how, str) or how not in {each.value for each in How}:
        known = ", ".join(each.value for each in How)
        raise lines.problem(number, "how", f"the field how of {name!r} is {_shown(how)}; expected one of {known}")
    if seen is not None and (not isinstance(seen, int) or isinstance(seen, bool) or not 0 <= seen <= _LATEST):
        raise lines.problem(number, "seen", f"the field seen of {name!r} is {_shown(seen)}; expected Unix milliseconds")
    return Contact(
        name=name,
        peer_id=peer_id,
        address=found,
        added=added if added.tzinfo is not None else added.replace(tzinfo=UTC),
        how=How(how),
        seen=seen or 0,
        more=more,
    )


def _shown(value: object) -> str:
    return printable(repr(value), 60)


class _Lines:
    """The line numbers of the tables in the text, which tomllib gives only for its own errors."""

    def __init__(self, text: str, where: str) -> None:
        self._where = where
        self._lines = text.splitlines()
        self._starts = [number for number, line in enumerate(self._lines) if _TABLE.match(line)]

    def count(self, tables: int) -> None:
        """Take the number of parsed tables; if it differs from that of the headers found, forget their lines."""
        if len(self._starts) != tables:
            self._starts = []

    def problem(self, number: int | None, key: str, what: str) -> ContactsFileError:
        """The error about a key of a table, or of the top level if `number` is None."""
        line = self._find(number, key)
        place = "" if line is None else f", line {line + 1}"
        return ContactsFileError(f"{self._where}{place}: {what}")

    def _find(self, number: int | None, key: str) -> int | None:
        if number is None:
            begin, end = 0, self._starts[0] if self._starts else len(self._lines)
        elif number < len(self._starts):
            begin = self._starts[number]
            end = self._starts[number + 1] if number + 1 < len(self._starts) else len(self._lines)
        else:
            return None
        pattern = re.compile(rf"""\s*["']?{key}["']?\s*=""")
        found = (line for line in range(begin, end) if pattern.match(self._lines[line]))
        return next(found, begin if number is not None else None)
