"""The side that is called, for `listen` and `receive`: which peers it lets in, and when peers can reach it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

import click

from .completion import complete_contacts
from .pairing import save_paired_option

if TYPE_CHECKING:
    from ..config import NodeConfig
    from ..node import Node
    from ..node.admission import Authorize
    from .options import Settings

__all__ = ["AllowOptions", "Guests", "allow_options", "wait_reachable"]

SIGNAL_PATIENCE: Final = 3.0
"""Seconds to wait for a signal server before the address is printed anyway."""
NAT_PATIENCE: Final = 1.0
"""Further seconds to wait for the measurement of the NATs; without it in the address, peers have to ask for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowOptions:
    """The peers that the command line lets in, besides one that is paired by --code."""

    peers: tuple[str, ...]
    contacts: bool
    anybody: bool

    def guests(self, settings: Settings) -> Guests:
        """The rule that these options make.

        Raises:
          click.UsageError: a text of --allow names no peer.
          ContactsFileError: contacts are allowed, and their file cannot be used.
        """
        from ..contacts import Contacts
        from ..node.admission import anyone
        from ..pairing import PairedPeers

        guests = Guests(settings, anyone if self.anybody else PairedPeers(_peers_named(settings, self.peers)))
        if self.contacts:
            guests.add(Contacts.load().authorize)
        return guests


def allow_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --allow, --allow-contacts and --allow-any, passed as one argument, `allowing`; and --save.

    The command also needs --code, which lets a peer in too, and without which --save has no meaning.
    """

    @click.option(
        "--allow",
        multiple=True,
        metavar="PEER",
        shell_complete=complete_contacts,
        help="Let this peer in, a contact or peer id; may be given several times.",
    )
    @click.option("--allow-contacts", is_flag=True, help="Let your contacts in.")
    @click.option("--allow-any", is_flag=True, help="Let every caller in.")
    @save_paired_option
    @functools.wraps(function)
    def wrapper(
        *args: Any,
        code: bool | str | None,
        save: str | None,
        allow: tuple[str, ...],
        allow_contacts: bool,
        allow_any: bool,
        **kwargs: Any,
    ) -> Any:
        by_code = code is not None and code is not False
        if allow_any and (allow or allow_contacts or by_code):
            raise click.UsageError("--allow-any and --allow, --allow-contacts or --code exclude each other")
        if save is not None and not by_code:
            raise click.UsageError("--save needs --code")
        if not (allow or allow_contacts or allow_any or by_code):
            raise click.UsageError(
                "name the peers to let in: --code, --allow PEER_ID, which `warpgate-trio id` prints over there, "
                "or --allow-any"
            )
        allowing = AllowOptions(peers=allow, contacts=allow_contacts, anybody=allow_any)
        return function(*args, allowing=allowing, code=code, save=save, **kwargs)

    return wrapper


@final
class Guests:
    """The rule of a called node: a peer is let in by any of `rules`, in their order; the user is told of others."""

    def __init__(self, settings: Settings, *rules: Authorize) -> None:
        self._settings = settings
        self._rules = list(rules)

    def add(self, rule: Authorize) -> None:
        """Add a rule, which is asked after the others."""
        self._rules.append(rule)

    async def authorize(self, peer_id: str) -> bool:
        """Whether a peer is let in."""
        for rule in self._rules:
            if await rule(peer_id):
                return True
        self._settings.say(f"refused {peer_id}; --allow {peer_id} would let it in")
        return False


def _peers_named(settings: Settings, texts: Iterable[str]) -> frozenset[str]:
    """The peer ids that the texts of --allow name: contacts, peer ids and addresses.

    Raises:
      click.UsageError: a text names no peer.
    """
    from ..errors import AddressError, ContactError, PeerIdError
    from .peers import find_peer

    allowed: set[str] = set()
    for text in texts:
        try:
            allowed.add(find_peer(settings, text)[0].peer_id)
        except (AddressError, ContactError, PeerIdError) as error:
            raise click.UsageError(f"--allow {text}: {error}") from error
    return frozenset(allowed)


async def wait_reachable(settings: Settings, node: Node, config: NodeConfig) -> list[str]:
    """Wait, with a limit, until peers can reach a node by its address and the address has what they need to know.

    Returns the URLs of the connected signal servers.
    """
    import trio

    from ..signal import ServerState

    if config.servers.signal:
        with trio.move_on_after(SIGNAL_PATIENCE) as patience:
            await node.wait_signals()
        if patience.cancelled_caught:
            reasons = "; ".join(f"{server.url}: {server.last_error or 'no answer'}" for server in node.signal_servers)
            settings.warn(f"no signal server answers yet, only direct paths work until one does ({reasons})")
    with trio.move_on_after(NAT_PATIENCE):
        await node.wait_published()
    return [server.url for server in node.signal_servers if server.state is ServerState.CONNECTED]
