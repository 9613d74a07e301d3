"""The peers that commands name: by an address, a peer id, or the name of a contact."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from ..address import PeerAddress
    from ..contacts import Callee, Contacts, How
    from ..node import Node
    from .options import Settings

__all__ = ["SavedAs", "find_peer", "present_address", "usable_contacts"]


def find_peer(settings: Settings, text: str) -> tuple[Callee, Contacts | None]:
    """The peer that a text names, and the user's contacts; None if their file cannot be used.

    Raises:
      AddressError, PeerIdError, ContactError: the text names no peer.
      ContactsFileError: the text is a name, and the file of contacts cannot be read.
    """
    from ..contacts import Contacts, find_callee
    from ..errors import ContactNameError, ContactUnknown
    from .exits import code_hint

    contacts = usable_contacts(settings)
    try:
        return find_callee(text, contacts), contacts
    except ContactNameError as error:
        if (hint := code_hint(text)) is None:
            raise
        raise ContactNameError(hint) from error
    except ContactUnknown:
        if contacts is None:
            Contacts.load()  # raises the reason for which they cannot be used
        raise


def usable_contacts(settings: Settings) -> Contacts | None:
    """The user's contacts; None, with a warning to the user, if the file cannot be used."""
    from ..contacts import Contacts, default_contacts_file
    from ..errors import ContactsFileError

    try:
        path = default_contacts_file()
    except ContactsFileError:
        return None  # without a home directory there are no contacts
    try:
        return Contacts.load(path)
    except ContactsFileError as error:
        settings.warn(f"no contacts: {error}")
        return None


async def present_address(node: Node, callee: Callee) -> PeerAddress | None:
    """The present address of a peer that was called a moment ago."""
    from ..errors import WarpgateError

    with suppress(WarpgateError):
        return await node.find_address(callee.address or callee.peer_id)
    return None


@final
class SavedAs:
    """`--save NAME`: saves the called peer as a contact.

    Raises:
      ContactError: the peer cannot have that name; checked before the call.
      ContactsFileError: the file of contacts cannot be used.
    """

    def __init__(self, name: str, callee: Callee, contacts: Contacts | None, *, how: How | None = None) -> None:
        from ..contacts import Contacts, How

        self._name = name
        self._callee = callee
        self._contacts = Contacts.load() if contacts is None else contacts
        self._how = How.CALL if how is None else how
        self._contacts.check_free(name, callee.peer_id)

    def save(self, settings: Settings, address: PeerAddress | None = None) -> None:
        """Save the peer, after it has proved its key in a call.  Errors are shown and do not end the Pipe.

        Args:
          address: its present address, if it is newer than the one that was typed.
        """
        from ..errors import ConfigError, ContactError

        try:
            peer = address or self._callee.address or self._callee.peer_id
            contact = self._contacts.add(self._name, peer, how=self._how)
        except (ConfigError, ContactError) as error:
            settings.warn(f"the peer is not saved: {error}")
        else:
            settings.say(f"saved as {contact.name}: {contact.peer_id}")
