"""A contact, and the rules for its name."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, final

from ..address import PeerAddress
from ..errors import ContactNameError, PeerIdError, printable
from ..identity import PEER_ID_LENGTH, key_from_peer_id

__all__ = ["MAX_NAME", "Contact", "How", "check_name", "read_peer"]

MAX_NAME: Final = 40
"""Characters of a name: fewer than the 52 of a peer id, so that no name is taken for a peer id."""

_NAME: Final = re.compile(r"[A-Za-z](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
_LIKE_AN_ADDRESS: Final = re.compile(r"wg[0-9]", re.ASCII | re.IGNORECASE)
_SHOWN: Final = 60  # characters of an invalid name in a message


class How(enum.Enum):
    """How the key of a contact was verified."""

    CALL = "call"
    """By a call: the peer proved its key, and the user took it for the intended one."""
    PAIRING = "pairing"
    """By a pairing code that both sides had."""
    HAND = "hand"
    """Not at all: it was entered by hand, and the peer was not asked."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """A peer that has a name here.

    Attributes:
      name: as it was given; no two names differ in case alone.
      peer_id: the peer's peer id.
      address: its last known address, which is of this key; None: not known.
      added: when the contact was added, to the second.
      how: how the key was verified.
      seen: when the newest key record that was seen of the peer was issued, in Unix milliseconds; 0: none was seen.
      more: further keys that a later release has written to the file, kept as they are.
    """

    name: str
    peer_id: str
    address: PeerAddress | None = None
    added: datetime
    how: How
    seen: int = 0
    more: Mapping[str, object] = field(default_factory=dict)


def check_name(text: str) -> str:
    """Return `text` if it can be a contact's name.

    A name has at most `MAX_NAME` ASCII letters, digits, dots, hyphens and underscores.  It begins with a letter and
    ends with a letter or digit, so it is never a command-line option, a pairing code or a port number.  It does not
    begin as an address does (``wg1``).

    Raises:
      ContactNameError: it cannot be a name.
    """
    shown = repr(printable(text, _SHOWN))
    if len(text) > MAX_NAME:
        raise ContactNameError(f"{shown} is no name for a contact: it has {len(text)} characters, more than {MAX_NAME}")
    if not _NAME.fullmatch(text):
        raise ContactNameError(
            f"{shown} is no name for a contact: a name has only the letters a to z, digits, '.', '-' and '_', begins "
            "with a letter, and ends with a letter or digit"
        )
    if _LIKE_AN_ADDRESS.match(text):
        raise ContactNameError(f"{shown} is no name for a contact: it begins with wg1, as an address does")
    return text


def read_peer(text: str) -> PeerAddress | str:
    """Parse an address or a peer id.  The two cannot be confused: no peer id contains a ``1``.

    Raises:
      AddressError: it is an address that cannot be used.
      PeerIdError: it is neither.
    """
    if len(text) != PEER_ID_LENGTH and _LIKE_AN_ADDRESS.match(text.lstrip()):
        return PeerAddress.from_text(text)
    try:
        key_from_peer_id(text)
    except PeerIdError as error:
        raise PeerIdError(f"{printable(text, 20)!r} is neither an address (wg1…) nor a peer id: {error}") from error
    return text
