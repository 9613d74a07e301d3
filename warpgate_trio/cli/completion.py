"""What shells complete beside what click knows: names of contacts (docs/command_line.md says how to switch it on)."""

from __future__ import annotations

from typing import ClassVar, final

import click
from click.shell_completion import BashComplete, CompletionItem

__all__ = ["ColonBash", "complete_contacts", "complete_contacts_with_port"]


def complete_contacts(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The contacts whose names go on like this, in capitals or not; the shell is told their peer ids, too."""
    from ..contacts import Contacts
    from ..errors import WarpgateError

    try:
        contacts = Contacts.load()
    except WarpgateError:
        return []  # what is wrong is said by the command
    begun = incomplete.lower()
    return [CompletionItem(each.name, help=each.peer_id) for each in contacts if each.name.lower().startswith(begun)]


def complete_contacts_with_port(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """As `complete_contacts`, for ``PEER:PORT``, with the colon; what follows it nobody knows here.

    Bash takes the colon for a word of its own.  There is no help beside a name, as zsh has that begin at a colon.
    """
    words = ctx.params.get(parameter.name or "") or ()
    if ":" in incomplete or ":" in words:
        return []
    return [CompletionItem(f"{each.value}:") for each in complete_contacts(ctx, parameter, incomplete)]


@final
class ColonBash(BashComplete):
    """Bash, which puts no space behind a completion that ends with a colon: a port goes on there."""

    name: ClassVar[str] = "bash"
    source_template: ClassVar[str] = (
        BashComplete.source_template
        + """
%(complete_func)s_colon() {
    %(complete_func)s "$@"
    [[ ${COMPREPLY[0]} == *: ]] && compopt -o nospace
    return 0
}

complete -o nosort -F %(complete_func)s_colon %(prog_name)s;
"""
    )
