"""Shell completion of contact names, in addition to click's (docs/command_line.md tells how to switch it on)."""

from __future__ import annotations

from typing import ClassVar, final

import click
from click.shell_completion import BashComplete, CompletionItem

__all__ = ["ColonBash", "complete_contacts", "complete_contacts_with_port"]


def complete_contacts(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The contacts whose names begin with the text, ignoring case, with their peer ids as help."""
    from ..contacts import Contacts
    from ..errors import WarpgateError

    try:
        contacts = Contacts.load()
    except WarpgateError:
        return []  # the command reports the error
    begun = incomplete.lower()
    return [CompletionItem(each.name, help=each.peer_id) for each in contacts if each.name.lower().startswith(begun)]


def complete_contacts_with_port(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """As `complete_contacts`, for ``PEER:PORT``, with the colon; the port is not completed.

    Bash treats the colon as a separate word.  Names have no help, since in zsh's format it begins at a colon.
    """
    words = ctx.params.get(parameter.name or "") or ()
    if ":" in incomplete or ":" in words:
        return []
    return [CompletionItem(f"{each.value}:") for each in complete_contacts(ctx, parameter, incomplete)]


@final
class ColonBash(BashComplete):
    """Bash completion that adds no space after a completion with a colon at its end, where a port follows."""

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
