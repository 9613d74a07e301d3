"""Finds the address to call a peer by, which the application names by an address, a peer id or a contact's name.

A known address that is valid now is used at once.  An address that has expired, or is from the future, serves to ask
the peer for its present address, at the peer's servers and at ours.  Where no address is known, the peer's key is
looked up (`key_finder`), which tells as much as an old address does.
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
"""Seconds for asking the NTP servers once: four samples of a server at the other end of a bad satellite link."""


_Ask = Callable[[PeerAddress], Awaitable[PeerAddress]]


@final
class Finder:
    """See the module's docstring.

    Args:
      by_key: finds peers of which only the key is known.
      ask: asks a peer for its present address, by a known address of it.
      contacts: the known names; None where there are none.
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
        """The peer that the application means.

        Raises:
          AddressError, PeerIdError, ContactError, ContactsFileError: see `find_callee`.
          ValueError: it is this node.
        """
        if isinstance(peer, PeerAddress):
            callee = Callee(peer_id=peer.peer_id, address=peer)
        else:
            callee = find_callee(peer, self._contacts)
        if callee.peer_id == self._identity.peer_id:
            raise ValueError("that is this node's own address")
        return callee

    async def find(self, callee: Callee, deadline: float) -> PeerAddress:
        """The address to call: the best known one that is valid now, else the one that the peer answers with.

        The walk also tries the other known addresses of the peer (`Planning.plan`).

        Raises:
          AddressExpired, AddressNotYetValid: the address is not valid now, and the peer gives no other one.
          PeerNotFound: no address is known, and none was found.
          PeerRefused: only the key is known, and the peer refuses to tell its address.
        """
        if callee.address is not None:
            self._book.note_passed(callee.address)
        usable = self._planning.usable_addresses(callee.public_key)
        if not usable and callee.address is not None and self._config.servers.ntp:
            # Our own clock may be the one that is wrong, as on a host without a clock battery that has just started.
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
                raise PeerNotFound(callee.peer_id, "the lookup timed out") from None
        try:
            callee.address.check_fresh(self._clock.now())
        except (AddressExpired, AddressNotYetValid) as wrong:
            try:
                # The peer answers with its address and its time.
                with trio.fail_after(patience):
                    return await self._ask(callee.address)
            except (PeerRefused, SignalError, AttemptFailed, ConfigError, trio.TooSlowError):
                raise wrong from None
        return callee.address
