"""Parameter types of several commands: sizes, route types, phases, and names of plugins."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, final

import click
from click.shell_completion import CompletionItem

from .exits import UsageProblem

if TYPE_CHECKING:
    from ..combos import RouteType
    from ..plugin import Phase, Plugin

    _Bytes = click.ParamType[int]
else:
    _Bytes = click.ParamType  # no generic class in older releases

__all__ = [
    "PHASES",
    "ROUTES",
    "PluginOption",
    "Size",
    "check_plugin",
    "read_phases",
    "read_route",
]

ROUTES: Final = ("NIC_BIND", "EXT_BIND", "LOOPBACK_BIND")
"""The names of `RouteType`, without importing it; a test compares them.  `--route` accepts ``nic`` for the first."""
PHASES: Final[tuple[Phase, ...]] = ("direct", "punch", "spray", "relay")
"""`warpgate_trio.plugin.PHASES`, without importing it; a test compares them."""
_SHORT: Final = {name.removesuffix("_BIND").lower(): name for name in ROUTES}

UNITS: Final[dict[str, int]] = {
    "": 1,
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmg", 1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmg", 1)},
}
"""Bytes by unit, in lower case: kB, MB and GB of the SI, KiB, MiB and GiB of IEC 80000-13."""


@final
class Size(_Bytes):
    """A number of bytes, at least 1: ``1000000``, ``10MB`` (10^7), ``16KiB``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"([0-9]{1,15}) ?([a-z]*)", str(value).strip().lower())
        unit = None if match is None else UNITS.get(match[2])
        if match is None or unit is None:
            self.fail(f"{value!r} is no size; 1000000, 10MB or 16MiB are (kB, MB, GB; KiB, MiB, GiB)", param, ctx)
        size = int(match[1]) * unit
        if size < 1:
            self.fail(f"{value!r}: at least one byte", param, ctx)
        return size


def read_route(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> RouteType | None:
    """The callback of `--route`: ``nic`` or ``NIC_BIND``."""
    if value is None:
        return None
    name = _SHORT.get(value.lower(), value.upper())
    if name not in ROUTES:
        raise click.BadParameter(f"{value!r} is no route; there are {', '.join(_SHORT)} (or {', '.join(ROUTES)})")
    from ..combos import RouteType

    return RouteType[name]


def _makes_path(plugin: type[Plugin]) -> bool:
    """False for an auxiliary plugin, which makes no path of its own (docs/writing_a_plugin.md)."""
    from ..plugin import PathRequest

    messages = plugin.proto_messages
    return plugin.phase is not None or not messages or any(issubclass(each, PathRequest) for each in messages)


def path_plugins() -> list[str]:
    """The installed plugins that make a path, which `--plugin` can name."""
    from ..plugin import load_plugins

    return sorted(name for name, plugin in load_plugins().plugins.items() if _makes_path(plugin))


def check_plugin(name: str | None) -> None:
    """Check the name of a plugin given to `--plugin`.

    Raises:
      UsageProblem: there is no such plugin, or it makes no path.
    """
    if name is None:
        return
    from ..plugin import load_plugins

    there = load_plugins().plugins
    if name in there and _makes_path(there[name]):
        return
    why = f"plugin {name!r} makes no path" if name in there else f"there is no plugin {name!r}"
    raise UsageProblem(f"--plugin: {why}; there are {', '.join(path_plugins())}")


@final
class PluginOption(click.Option):
    """``--plugin``, whose help and completion list what is installed."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        return record and (record[0], f"{record[1]}  There are {', '.join(path_plugins())}.")

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in path_plugins() if name.startswith(incomplete)]


def read_phases(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[Phase, ...] | None:
    """The phases that ``--phases`` names, in the order of a walk."""
    if value is None:
        return None
    names = [name.strip() for name in value.split(",") if name.strip()]
    for name in names:
        if name not in PHASES:
            raise click.BadParameter(f"{name!r} is no phase; there are {', '.join(PHASES)}")
    if not names:
        raise click.BadParameter(f"name at least one of {', '.join(PHASES)}")
    return tuple(phase for phase in PHASES if phase in names)
