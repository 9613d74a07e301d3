"""Whom a command is to call or to let in: an address, a peer id, or the name of a contact."""

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
    """Who is meant, and the user's contacts, where they can be used.

    Raises:
      AddressError, PeerIdError, ContactError: nobody.
      ContactsFileError: a name, and the contacts cannot be read.
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
            Contacts.load()  # says why they cannot be used
        raise


def usable_contacts(settings: Settings) -> Contacts | None:
    """The user's contacts; None, and the user is told, where the file cannot be used."""
    from ..contacts import Contacts, default_contacts_file
    from ..errors import ContactsFileError

    try:
        path = default_contacts_file()
    except ContactsFileError:
        return None  # no home, so that there are none
    try:
        return Contacts.load(path)
    except ContactsFileError as error:
        settings.warn(f"no contacts: {error}")
        return None


async def present_address(node: Node, callee: Callee) -> PeerAddress | None:
    """Where a peer is that was called a moment ago."""
    from ..errors import WarpgateError

    with suppress(WarpgateError):
        return await node.find_address(callee.address or callee.peer_id)
    return None


@final
class SavedAs:
    """What `--save NAME` does with the peer that is called.

    Raises:
      ContactError: it cannot have that name, which is told before it is called.
      ContactsFileError: the contacts cannot be used.
    """

    def __init__(self, name: str, callee: Callee, contacts: Contacts | None, *, how: How | None = None) -> None:
        from ..contacts import Contacts, How

        self._name = name
        self._callee = callee
        self._contacts = Contacts.load() if contacts is None else contacts
        self._how = How.CALL if how is None else how
        self._contacts.check_free(name, callee.peer_id)

    def save(self, settings: Settings, address: PeerAddress | None = None) -> None:
        """The peer was called and has proved its key.  What goes wrong here ends no Pipe.

        Args:
          address: where it is now, if that is known better than by what was typed.
        """
        from ..errors import ConfigError, ContactError

        try:
            peer = address or self._callee.address or self._callee.peer_id
            contact = self._contacts.add(self._name, peer, how=self._how)
        except (ConfigError, ContactError) as error:
            settings.warn(f"the peer is not saved: {error}")
        else:
            settings.say(f"saved as {contact.name}: {contact.peer_id}")
