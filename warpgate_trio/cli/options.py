"""Common parts of commands: options, output to the user, and the configuration that the options make."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import printable
from .exits import output_error
from .parameters import PHASES, read_phases

if TYPE_CHECKING:
    from ..config import NodeConfig

__all__ = [
    "NodeOptions",
    "Settings",
    "common_options",
    "json_option",
    "node_options",
    "pass_settings",
    "path_events_option",
    "path_options",
    "walk_options",
]

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(slots=True)
class Settings:
    """The output settings of this run.  Messages go to stderr; stdout is for Pipe bytes or JSON lines."""

    quiet: bool = False
    verbose: int = 0
    debug: bool = False
    json: bool = False
    path_events: bool = False

    @property
    def live(self) -> bool:
        """Whether output is a terminal that can be redrawn."""
        return not self.quiet and _is_terminal()

    def say(self, text: str = "", *, always: bool = False) -> None:
        """Tell the user, unless --quiet."""
        if always or not self.quiet:
            with suppress(OSError):  # stderr has no reader; the command continues
                click.echo(text, err=True)

    def put(self, data: bytes) -> None:
        """Write to stdout, outside of Trio.  Raises as `output_error` says."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(1, view) :]
        except OSError as error:
            raise output_error(error) from error

    def warn(self, text: str) -> None:
        """Print a warning, even with --quiet."""
        self.say(f"warning: {text}", always=True)

    def start_logging(self, *, told_otherwise: Collection[str] = ()) -> None:
        """Show the package's log: warnings, with -v also information, with -vv everything; tracebacks with --debug.

        Args:
          told_otherwise: names of loggers whose warnings are left out without -v.
        """
        level = logging.DEBUG if self.verbose > 1 or self.debug else logging.INFO if self.verbose else logging.WARNING
        handler = _LogToStderr(self)
        if level == logging.WARNING:
            handler.addFilter(lambda record: record.levelno > level or record.name not in told_otherwise)
        package = logging.getLogger("warpgate_trio")
        for logger in (package, logging.getLogger("warpgate_strategies")):
            logger.setLevel(logging.ERROR if self.quiet else level)
            logger.propagate = False
            logger.handlers[:] = [handler]


class _LogToStderr(logging.Handler):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._tracebacks = settings.debug

    def emit(self, record: logging.LogRecord) -> None:
        name = record.name.removeprefix("warpgate_trio.")
        text = printable(f"{record.levelname.lower()}: {name}: {record.getMessage()}")
        if record.exc_info and self._tracebacks:
            lines = logging.Formatter().formatException(record.exc_info).split("\n")
            text = "\n".join([text, *map(printable, lines)])  # other libraries show what servers said to them
        self._settings.say(text, always=True)


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def pass_settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """Hand the function this run's `Settings` as its first argument."""
    return click.make_pass_decorator(Settings, ensure=True)(function)


def _set(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _parameter: click.Parameter, value: Any) -> None:
        if value:  # added to options before the command: -v connect -v is -vv
            settings = ctx.ensure_object(Settings)
            setattr(settings, name, value + getattr(settings, name) if name == "verbose" else value)

    return callback


def common_options(function: _F) -> _F:
    """-q, -v and --debug, before the command or after it."""
    options = (
        click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.", callback=_set("quiet")),
        click.option(
            "-v", "--verbose", count=True, help="Log what happens to stderr; twice for all.", callback=_set("verbose")
        ),
        click.option("--debug", is_flag=True, help="Like -vv, with tracebacks.", callback=_set("debug")),
    )
    for option in reversed(options):
        function = _unexposed(option, function)
    return function


def json_option(function: _F) -> _F:
    """--json."""
    option = click.option(
        "--json", is_flag=True, help="One JSON object per line on stdout, for programs.", callback=_set("json")
    )
    return _unexposed(option, function)


def path_events_option(function: _F) -> _F:
    """--path-events."""
    option = click.option(
        "--path-events",
        is_flag=True,
        help="One JSON object per line for each change of the path: on stderr, with --json on stdout.",
        callback=_set("path_events"),
    )
    return _unexposed(option, function)


def _unexposed(option: Callable[[_F], _F], function: _F) -> _F:
    decorated = option(function)
    parameters: list[click.Parameter] = getattr(decorated, "__click_params__")  # noqa: B009  # click's own attribute
    parameters[-1].expose_value = False
    return decorated


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """The options of the command line that concern the node."""

    config_file: Path | None
    key_file: Path | None
    ephemeral: bool
    port: int | None = None
    dead_after: float | None = None
    resume_timeout: float | None = None
    relay_first: bool | None = None

    def overrides(self) -> dict[str, object]:
        """The values for `load_config`, by dotted key."""
        named: dict[str, object] = {
            "listen.port": self.port,
            "paths.dead_after": self.dead_after,
            "paths.resume_timeout": self.resume_timeout,
            "paths.relay_first": self.relay_first,
        }
        if self.key_file is not None:
            named |= {"identity.key_file": self.key_file, "identity.ephemeral": False}
        if self.ephemeral:
            named["identity.ephemeral"] = True
        return {key: value for key, value in named.items() if value is not None}

    def load(self) -> NodeConfig:
        """Load the configuration from all sources.  Raises `ConfigError`."""
        from ..config import load_config

        return load_config(file=self.config_file, overrides=self.overrides())


def node_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--config, --key-file and --ephemeral, which reach the function as one argument, `node_options`.

    With them go --port, --dead-after, --resume-timeout and --relay-first of the commands that have these.
    """

    @click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="F", help="Configuration file.")
    @click.option("--key-file", type=click.Path(path_type=Path), metavar="F", help="Where the node's key is kept.")
    @click.option("--ephemeral", is_flag=True, help="A fresh identity for this run only; no key file.")
    @functools.wraps(function)
    def wrapper(*args: Any, config_file: Path | None, key_file: Path | None, ephemeral: bool, **kwargs: Any) -> Any:
        if ephemeral and key_file is not None:
            raise click.UsageError("--ephemeral and --key-file exclude each other")
        options = NodeOptions(
            config_file=config_file,
            key_file=key_file,
            ephemeral=ephemeral,
            port=kwargs.pop("port", None),
            dead_after=kwargs.pop("dead_after", None),
            resume_timeout=kwargs.pop("resume_timeout", None),
            relay_first=kwargs.pop("relay_first", None),
        )
        return function(*args, node_options=options, **kwargs)

    return wrapper


def path_options(function: _F) -> _F:
    """--dead-after and --resume-timeout, for a command with `node_options`."""
    seconds = click.FloatRange(min=0)
    dead_after = click.option(
        "--dead-after",
        type=seconds,
        metavar="S",
        help="Notice within S seconds that a path has died; 0: 27 s, later 52 s, over UDP, 62 s over TCP.",
    )
    resume_timeout = click.option(
        "--resume-timeout",
        type=seconds,
        metavar="S",
        help="Look for another path for S seconds when one has died; 0: end with it.",
    )
    return dead_after(resume_timeout(function))


def walk_options(function: _F) -> _F:
    """--phases, --timeout and --relay-first, for a command that calls a peer and has `node_options`."""
    phases = click.option(
        "--phases", callback=read_phases, metavar="P,P,…", help=f"Take only these phases of {','.join(PHASES)}."
    )
    timeout = click.option(
        "--timeout", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Give up after S seconds."
    )
    relay_first = click.option(
        "--relay-first/--no-relay-first",
        default=None,
        help="Begin by a relay where there is one, and change over to a better path once that is found (the default).",
    )
    return phases(timeout(relay_first(function)))
