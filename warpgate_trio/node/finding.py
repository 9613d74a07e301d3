"""Where to call a peer that the application names: by an address, a peer id, or the name of a contact.

An address that the peer has told, and that is good at this time, is taken at once.  One that has expired, or is from
the future, is good for asking the peer where it is now, at its servers and at ours.  Where there is none, the peer is
looked up by its key (`key_finder`), which says as much as an old address does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, final

import trio

from ..address import PeerAddress
from ..clock.corrected import CorrectedClock
from ..config import NodeConfig
from ..contacts import Callee, Contacts, find_callee
from ..errors import (
    AddressExpired,
    AddressNotYetValid,
    AttemptFailed,
    ConfigError,
    PeerNotFound,
    PeerRefused,
    SignalError,
)
from ..identity import Identity
from .address_book import AddressBook
from .key_finder import KeyFinder
from .planning import Planning

__all__ = ["NTP_TIMEOUT", "Finder"]

NTP_TIMEOUT: Final = 5.0
"""Seconds for asking the time servers once: four samples of a server at the other end of a bad satellite link."""


_Ask = Callable[[PeerAddress], Awaitable[PeerAddress]]


@final
class Finder:
    """See the module's page.

    Args:
      by_key: finds who is known by key alone.
      ask: asks a peer by an address of it.
      contacts: whose names are known; None: nobody's.
    """

    def __init__(
        self,
        identity: Identity,
        config: NodeConfig,
        *,
        book: AddressBook,
        planning: Planning,
        clock: CorrectedClock,
        by_key: KeyFinder,
        ask: _Ask,
        contacts: Contacts | None,
    ) -> None:
        self._identity = identity
        self._config = config
        self._book = book
        self._planning = planning
        self._clock = clock
        self._by_key = by_key
        self._ask = ask
        self._contacts = contacts

    def read(self, peer: PeerAddress | str) -> Callee:
        """Who is meant.

        Raises:
          AddressError, PeerIdError, ContactError, ContactsFileError: see `find_callee`.
          ValueError: this node.
        """
        if isinstance(peer, PeerAddress):
            callee = Callee(peer_id=peer.peer_id, address=peer)
        else:
            callee = find_callee(peer, self._contacts)
        if callee.peer_id == self._identity.peer_id:
            raise ValueError("that is this node's own address")
        return callee

    async def find(self, callee: Callee, deadline: float) -> PeerAddress:
        """The address to walk to: checked, what the peer said last, refreshed if none is good at this time.

        The walk takes what else is known of the peer along (`Planning.plan`).

        Raises:
          AddressExpired, AddressNotYetValid: it is not good at this time, and the peer does not tell another one.
          PeerNotFound: there is none, and nobody knows one.
        """
        if callee.address is not None:
            self._book.note_passed(callee.address)
        usable = self._planning.usable_addresses(callee.public_key)
        if not usable and callee.address is not None and self._config.servers.ntp:
            # Our own clock may be what is wrong, and a moment ago nobody knew: a machine without a battery has just
            # started.
            with trio.move_on_at(min(deadline, trio.current_time() + NTP_TIMEOUT)):
                await self._clock.wait_asked()
            usable = self._planning.usable_addresses(callee.public_key)
        if usable:
            return usable[0]
        patience = max(min(self._config.budgets.signal, deadline - trio.current_time()), 0.0)
        if callee.address is None:
            try:
                with trio.fail_at(deadline):
                    return await self._by_key.find(callee.public_key, patience=patience)
            except trio.TooSlowError:
                raise PeerNotFound(callee.peer_id, "the time for that is up") from None
        try:
            callee.address.check_fresh(self._clock.now())
        except (AddressExpired, AddressNotYetValid) as wrong:
            try:
                # The peer tells where it is, and what time it is there.
                with trio.fail_after(patience):
                    return await self._ask(callee.address)
            except (PeerRefused, SignalError, AttemptFailed, ConfigError, trio.TooSlowError):
                raise wrong from None
        return callee.address
