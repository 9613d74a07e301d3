"""``warpgate-trio contacts``: names for peers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .completion import complete_contacts
from .exits import CommandFailed, ExitCode
from .options import NodeOptions, Settings, common_options, json_option, node_options, pass_settings

if TYPE_CHECKING:
    from ..address import PeerAddress
    from ..config import NodeConfig
    from ..contacts import Callee, Contact

__all__ = ["contacts"]


@click.group(short_help="Names for peers: add, list, rename, remove.")
def contacts() -> None:
    """Names for peers, by which all commands that take a peer know them.

    They are kept in contacts.toml in your data directory.  `--save NAME` of connect, listen, send and receive adds one,
    too.
    """


@contacts.command("list", short_help="Every contact.")
@json_option
@common_options
@pass_settings
def list_command(settings: Settings) -> int:
    """Print every contact: its name, its peer id, and how and when it was added."""
    from ..contacts import Contacts

    settings.start_logging()
    loaded = Contacts.load()
    width = max((len(each.name) for each in loaded), default=0)
    for each in loaded:
        _print(settings, each, width)
    if not len(loaded):
        settings.say(f"no contacts yet in {loaded.path}; `connect --save NAME` adds one")
    return ExitCode.OK


@contacts.command(short_help="Give a peer a name, once it has answered.")
@click.argument("name")
@click.argument("peer")
@click.option("--offline", is_flag=True, help="Save the contact without asking the peer.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Give up after S seconds.")
@node_options
@json_option
@common_options
@pass_settings
def add(
    settings: Settings, *, name: str, peer: str, offline: bool, timeout: float | None, node_options: NodeOptions
) -> int:
    """Give PEER the name NAME: its peer id, or its address wg1….

    The peer is asked over its signal server where it is, which only who has its key can answer; nothing of its `listen`
    is used up.  A name that is taken by another key stays with that one.
    """
    from ..contacts import Contacts, How, find_callee

    settings.start_logging()
    loaded = Contacts.load()
    callee = find_callee(peer, loaded)
    loaded.check_free(name, callee.peer_id)
    found: PeerAddress | str = callee.address or callee.peer_id
    if not offline:
        from .runner import run

        async def ask() -> None:
            nonlocal found
            found = await _ask(settings, node_options.load(), callee, timeout)

        run(ask)
    contact = loaded.add(name, found, how=How.HAND if offline else How.CALL)
    settings.say(f"{contact.name} is {contact.peer_id}")
    if settings.json:
        _print(settings, contact)
    return ExitCode.OK


@contacts.command(short_help="Give a contact another name.")
@click.argument("old", shell_complete=complete_contacts)
@click.argument("new")
@json_option
@common_options
@pass_settings
def rename(settings: Settings, *, old: str, new: str) -> int:
    """Give the contact OLD the name NEW."""
    from ..contacts import Contacts

    settings.start_logging()
    contact = Contacts.load().rename(old, new)
    settings.say(f"{old} is called {contact.name} now")
    if settings.json:
        _print(settings, contact)
    return ExitCode.OK


@contacts.command(short_help="Forget a contact.")
@click.argument("name", shell_complete=complete_contacts)
@json_option
@common_options
@pass_settings
def remove(settings: Settings, *, name: str) -> int:
    """Forget the contact NAME: its key, and where it was."""
    from ..contacts import Contacts

    settings.start_logging()
    contact = Contacts.load().remove(name)
    settings.say(f"{contact.name} is forgotten; it was {contact.peer_id}")
    if settings.json:
        _print(settings, contact)
    return ExitCode.OK


async def _ask(settings: Settings, config: NodeConfig, callee: Callee, timeout: float | None) -> PeerAddress:
    """Ask the peer for its present address."""
    import trio

    from ..errors import AttemptFailed, PeerNotFound, PeerRefused, SignalError
    from ..node import open_node
    from .caller import caller_identity

    peer = callee.address or callee.peer_id
    settings.say(f"asking {callee.peer_id}…")
    async with open_node(config, identity=caller_identity(config, callee)) as node:
        try:
            return await node.refresh_address(peer, timeout=timeout)
        except trio.TooSlowError:
            problem = "it did not answer in time: it is not there, or does not let you in"
        except (AttemptFailed, PeerNotFound, SignalError) as error:
            problem = str(error)
        except PeerRefused as error:
            raise CommandFailed(ExitCode.REFUSED, f"the call was refused: {error}") from error
    raise CommandFailed(ExitCode.NO_PATH, f"not added: {problem}.  --offline adds it without asking")


def _print(settings: Settings, contact: Contact, width: int = 0) -> None:
    from .events import ContactLine, encode

    added = contact.added.isoformat()
    if settings.json:
        address = None if contact.address is None else contact.address.text
        line = ContactLine(name=contact.name, peer=contact.peer_id, address=address, added=added, how=contact.how.value)
        settings.put(encode(line))
    else:
        words = f"{contact.name:<{width}}  {contact.peer_id}  {contact.how.value}  {added[:10]}"
        settings.put(f"{words}\n".encode())
