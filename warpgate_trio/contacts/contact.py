"""A contact, and what can be a name."""

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
"""Characters of a name: fewer than the 52 of a peer id, so that none is taken for one."""

_NAME: Final = re.compile(r"[A-Za-z](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
_LIKE_AN_ADDRESS: Final = re.compile(r"wg[0-9]", re.ASCII | re.IGNORECASE)
_SHOWN: Final = 60  # characters of what is no name


class How(enum.Enum):
    """How it was made sure whose key a contact has."""

    CALL = "call"
    """The peer was called, proved its key, and whoever called took it for the one that is meant."""
    PAIRING = "pairing"
    """By a code that both sides had."""
    HAND = "hand"
    """It was written down, and nobody was asked."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """A peer that has a name here.

    Attributes:
      name: as it was given; no two differ in capitals alone.
      peer_id: the peer's key.
      address: where it was last, as far as is known; of this key.
      added: when, to the second.
      how: how it was made sure whose key that is.
      seen: when the newest key record that was seen of it was issued, Unix milliseconds; 0: none was.
      more: what a later release has written beside that, kept as it is.
    """

    name: str
    peer_id: str
    address: PeerAddress | None = None
    added: datetime
    how: How
    seen: int = 0
    more: Mapping[str, object] = field(default_factory=dict)


def check_name(text: str) -> str:
    """`text`, where it can be a contact's name: `MAX_NAME` letters of ASCII, digits, dots, hyphens and underscores.

    It begins with a letter and ends with a letter or digit, so that it is no option, no code, no number of a port; and
    never as an address does (``wg1``).

    Raises:
      ContactNameError: it cannot.
    """
    shown = repr(printable(text, _SHOWN))
    if len(text) > MAX_NAME:
        raise ContactNameError(f"{shown} is no name: it has {len(text)} characters, more than {MAX_NAME}")
    if not _NAME.fullmatch(text):
        raise ContactNameError(
            f"{shown} is no name: letters a to z, digits, '.', '-' and '_', the first a letter, the last one or a digit"
        )
    if _LIKE_AN_ADDRESS.match(text):
        raise ContactNameError(f"{shown} is no name: it begins as an address does")
    return text


def read_peer(text: str) -> PeerAddress | str:
    """The address or the peer id that a text is.  Neither is ever taken for the other: a ``1`` is in no peer id.

    Raises:
      AddressError: an address that cannot be used.
      PeerIdError: it is neither.
    """
    if len(text) != PEER_ID_LENGTH and _LIKE_AN_ADDRESS.match(text.lstrip()):
        return PeerAddress.from_text(text)
    try:
        key_from_peer_id(text)
    except PeerIdError as error:
        raise PeerIdError(f"{printable(text, 20)!r} is neither an address (wg1…) nor a peer id: {error}") from error
    return text
