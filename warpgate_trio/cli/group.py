"""The group of commands, and the only place where exceptions become exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

import click
from click.shell_completion import add_completion_class

from .completion import ColonBash
from .exits import ExitCode, explain
from .options import Settings, common_options

__all__ = ["call", "cli"]

_COMMANDS: Final = {
    "demo": ("demo", "demo"),
    "serve": ("serve", "serve"),
    "listen": ("listen", "listen"),
    "connect": ("connect", "connect"),
    "forward": ("forward", "forward"),
    "send": ("send", "send"),
    "receive": ("receive", "receive"),
    "ping": ("ping", "ping"),
    "netcheck": ("netcheck", "netcheck"),
    "simulate": ("simulate", "simulate"),
    "contacts": ("contacts", "contacts"),
    "id": ("show", "id_command"),
    "config": ("show", "config_command"),
}
"""Name -> (module, object); imported when used."""
add_completion_class(ColonBash)


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        command = getattr(import_module(f".{module}", __package__), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            import difflib

            nearest = difflib.get_close_matches(args[0], _COMMANDS, n=1, cutoff=0.0)[0]
            ctx.fail(f"no such command {args[0]!r}; the nearest is {nearest!r}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="warpgate-trio", prog_name="warpgate-trio", message="%(prog)s %(version)s")
@common_options
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Encrypted, authenticated streams between two peers, through NATs, without an account anywhere.

    Try `warpgate-trio demo` first.  Then `listen` on one machine and `connect` on another; `serve`, on a machine that
    both can reach, is how they find each other.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def call(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and print errors to stderr; returns the exit code."""
    settings = Settings()
    try:
        code: Any = cli.main(args=argv, prog_name="warpgate-trio", standalone_mode=False, obj=settings)
    except SystemExit:
        raise
    except BaseException as error:
        _let_go_of_output()
        return _tell(settings, error)
    return ExitCode.OK if code is None else int(code)


def _let_go_of_output() -> None:
    """Drop buffered output that stdout does not accept: at its exit, Python would fail with an exit code of its own."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)


def _tell(settings: Settings, error: BaseException) -> int:
    code, sentence = explain(error)
    if settings.debug and not isinstance(error, click.ClickException):
        import traceback

        settings.say("".join(traceback.format_exception(error)).rstrip(), always=True)
    if sentence:
        settings.say(f"error: {sentence}" if code is not ExitCode.INTERRUPTED else sentence, always=True)
    return code
