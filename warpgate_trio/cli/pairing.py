"""Pairing by a code, for the commands that have ``--code``: its options, and the two steps.

The waiting side prints a code (`CodePairing`), and the user of the other side types it (`paired_node`).  Both show the
other's peer id, and with ``--save`` keep it as a contact.
"""

from __future__ import annotations

import io
import logging
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar, final

import click

if TYPE_CHECKING:
    from ..config import NodeConfig
    from ..contacts import Callee, Contacts
    from ..identity import Identity
    from ..node import Node
    from ..node.admission import Authorize
    from ..pairing import CodeOffer, Paired
    from .options import Settings
    from .stdio import StandardOutput

__all__ = [
    "CodePairing",
    "accept_code_option",
    "offer_code_option",
    "paired_node",
    "save_called_option",
    "save_paired_option",
]

logger: logging.Logger = logging.getLogger(__name__)

PUBLISHED_PATIENCE: Final = 4.0
"""Seconds to wait for a signal server and the measurement of the NATs before the called side sends its address."""
_F = TypeVar("_F", bound=Callable[..., Any])


def offer_code_option(function: _F) -> _F:
    """Add --code of the waiting side, passed as `code`, a bool."""
    return click.option("--code", is_flag=True, help="Print a pairing code, and let in the peer that enters it.")(
        function
    )


def accept_code_option(function: _F) -> _F:
    """Add --code of the typing side, passed as `code`, a text."""
    return click.option("--code", metavar="CODE", help="Pair with the peer that printed this code (7-guitar-orbit).")(
        function
    )


def save_called_option(function: _F) -> _F:
    """Add --save of the calling side, passed as `save`."""
    return click.option("--save", metavar="NAME", help="Keep the peer as the contact NAME, once it is connected.")(
        function
    )


def save_paired_option(function: _F) -> _F:
    """Add --save of the called side, which knows a peer by a code only, passed as `save`."""
    return click.option("--save", metavar="NAME", help="Keep the peer that is paired by --code as the contact NAME.")(
        function
    )


@final
class CodePairing:
    """The waiting side of a pairing: prints a code, and lets in the peer that has typed it.

    Args:
      save: name of the contact to save the peer as; None: it is not saved.
      command: the command to run on the other machine.

    Attributes:
      friends: the rule that lets the peer in.

    Raises:
      ContactError: no contact can have that name.
      ContactsFileError: the file of contacts cannot be used.
    """

    def __init__(self, settings: Settings, save: str | None = None, *, command: str = "connect") -> None:
        from ..pairing import PairedPeers

        self._settings = settings
        self._command = command
        self._save = save
        self._contacts = None if save is None else _contacts_for(save)
        self.friends: PairedPeers = PairedPeers()

    async def wait(self, node: Node, output: StandardOutput) -> Paired:
        """Print the code, and wait until a peer has typed it.

        Raises:
          PairingError: there is no server for the code, or no peer typed it in time.
        """
        from .events import CodePaired, encode

        with _no_server_is_told(node):
            async with node.offer_code(on_paired=self.friends.add) as offer:
                await self._show(offer, output)
                paired = await offer.wait_paired()
        self._settings.say(f"paired with {paired.peer_id}")
        if self._settings.json:
            await output.write(encode(CodePaired(peer=paired.peer_id, address=str(paired.address))))
        if self._save is not None:
            _keep(self._settings, self._save, paired, self._contacts)
        return paired

    async def _show(self, offer: CodeOffer, output: StandardOutput) -> None:
        from .events import CodeOffered, encode

        for problem in offer.problems:
            self._settings.warn(f"the code is not offered everywhere: {problem}")
        if self._settings.json:
            event = CodeOffered(code=offer.code, seconds=round(offer.seconds_left, 3), servers=list(offer.servers))
            await output.write(encode(event))
            return
        minutes = round(offer.seconds_left / 60)
        self._settings.say(f"on the other machine, within {minutes} minutes: warpgate-trio {self._command} --code")
        self._settings.say(offer.code, always=True)
        if self._settings.live:
            self._settings.say(qr_lines(offer.code))


def qr_lines(text: str) -> str:
    """A QR code for a terminal."""
    import segno

    drawn = io.StringIO()
    segno.make_qr(text, error="l").terminal(drawn, compact=True, border=2)
    return drawn.getvalue().rstrip("\n")


@asynccontextmanager
async def paired_node(
    settings: Settings, config: NodeConfig, code: str, *, save: str | None = None, authorize: Authorize | None = None
) -> AsyncGenerator[tuple[Node, Callee]]:
    """The typing side of a pairing: opens a node, pairs it by a code, and yields the node and the peer.

    The node has the identity of the configuration.  If the peer has the user's default key it has a new identity, so
    that two terminals of one user need no second key.

    Args:
      save: name of the contact to save the peer as; None: it is not saved.
      authorize: the node's rule for callers, if the peer is to call it.

    Raises:
      PairingError: the code is malformed, wrong, or may not be tried, or there is no server for it.
      ContactError: the peer cannot have that name.
      ConfigError: as `open_node`; or the file of contacts cannot be used.
    """
    import trio

    from ..contacts import find_callee
    from ..errors import CodeRefused
    from ..node import open_node
    from ..pairing import parse_code
    from ..servers.mailbox_frames import Outcome
    from .peers import usable_contacts

    parse_code(code)  # raises for a malformed code before anything is opened
    contacts = usable_contacts(settings) if save is None else _contacts_for(save)
    identities = _identities(config)
    for number, identity in enumerate(identities, 1):
        async with open_node(config, identity=identity, authorize=authorize, contacts=contacts) as node:
            if authorize is not None:
                with trio.move_on_after(PUBLISHED_PATIENCE):
                    await node.wait_published()  # so that the address has everything that the peer needs to call us
            try:
                with _no_server_is_told(node):
                    paired = await node.accept_code(code)
            except CodeRefused as refused:
                if refused.outcome == Outcome.OWN_KEY and number < len(identities):
                    logger.info("the peer uses this user's default key, so this call uses a temporary identity")
                    continue
                raise
            settings.say(f"paired with {paired.peer_id}, as {node.peer_id}")
            if save is not None:
                _keep(settings, save, paired, contacts)
            yield node, find_callee(str(paired.address), contacts)
            return


@contextmanager
def _no_server_is_told(node: Node) -> Generator[None]:
    """Around pairing: if no server is configured, the error tells how to configure one."""
    from ..errors import PairingUnavailable

    try:
        yield
    except PairingUnavailable as error:
        if node.signal_servers:
            raise
        raise PairingUnavailable(
            f"{error}: name the file that `warpgate-trio serve` printed, by --config or WARPGATE_CONFIG"
        ) from error


def _contacts_for(name: str) -> Contacts:
    """The user's contacts, after a check that a contact can be added under `name`; its key is not known yet."""
    from ..contacts import Contacts, check_name

    check_name(name)
    return Contacts.load()


def _keep(settings: Settings, name: str, paired: Paired, contacts: Contacts | None) -> None:
    from ..contacts import How, find_callee
    from .peers import SavedAs

    SavedAs(name, find_callee(str(paired.address), contacts), contacts, how=How.PAIRING).save(settings)


def _identities(config: NodeConfig) -> list[Identity]:
    from ..identity import Identity, default_key_file

    wanted = config.identity
    if wanted.ephemeral:
        return [Identity.generate()]
    if wanted.key_file is not None:
        return [Identity.load_or_create(wanted.key_file)]
    return [Identity.load_or_create(default_key_file()), Identity.generate()]
