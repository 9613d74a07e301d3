"""``warpgate-trio id`` and ``warpgate-trio config``: who this node is, and what it is configured with."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click

from .exits import ExitCode
from .options import NodeOptions, Settings, common_options, json_option, node_options, pass_settings

__all__ = ["config_command", "id_command"]


@click.command("id", short_help="Print this node's peer id, which others --allow.")
@node_options
@json_option
@common_options
@pass_settings
def id_command(settings: Settings, *, node_options: NodeOptions) -> int:
    """Print this node's peer id; its key is made on first use."""
    from ..identity import Identity, default_key_file

    settings.start_logging()
    identity = node_options.load().identity
    if identity.ephemeral:
        file = None
        peer_id = Identity.generate().peer_id
        settings.say("this identity is ephemeral: the next run has another one")
    else:
        file = identity.key_file or default_key_file()
        peer_id = Identity.load_or_create(file).peer_id
    if settings.json:
        from .events import Identified, encode

        shown = None if file is None else str(file).encode(errors="backslashreplace").decode()  # a name in Latin-1, say
        settings.put(encode(Identified(peer=peer_id, key_file=shown)))
    else:
        settings.put(f"{peer_id}\n".encode())
    return ExitCode.OK


@click.command("config", short_help="Show the configuration in effect.")
@click.option("--show", is_flag=True, help="Print it as TOML, secrets masked (what happens without this option, too).")
@node_options
@common_options
@pass_settings
def config_command(settings: Settings, *, show: bool, node_options: NodeOptions) -> int:
    """Print the configuration in effect as TOML, passwords masked, and where it comes from."""
    settings.start_logging()
    loaded = node_options.load()
    comments = "".join(f"# {line}\n" for line in _sources(node_options))
    text = f"{comments}\n{loaded.to_toml(redact=True)}"
    settings.put(text.encode(errors="replace"))  # names of files may be in any encoding, and TOML is in UTF-8
    return ExitCode.OK


def _sources(options: NodeOptions) -> list[str]:
    """The sources of values, the one with the highest precedence first."""
    from ..config import default_config_file
    from ..config.environment import settings_in
    from ..identity import default_key_file

    overrides = sorted(options.overrides())
    variables = sorted(settings_in(os.environ))
    named = options.config_file or os.environ.get("WARPGATE_CONFIG")
    via = "--config" if options.config_file is not None else "WARPGATE_CONFIG"
    return [
        "the configuration in effect, from these sources, the strongest first:",
        f"  command line: {', '.join(overrides) or 'nothing'}",
        f"  environment: {', '.join(variables) or 'nothing'}",
        f"  file: {Path(named).absolute()} ({via})" if named else "  file: none (--config or WARPGATE_CONFIG name one)",
        f"  user's file: {_in_home(default_config_file)}",
        "  defaults: the rest",
        f"a key file that is not named is {_in_home(default_key_file)}",
    ]


def _in_home(find: Callable[[], Path]) -> str:
    from ..errors import ConfigError

    try:
        file = find()
    except ConfigError:
        return "nowhere: there is no home directory"
    return str(file) if os.path.isfile(file) else f"{file} (not there)"
