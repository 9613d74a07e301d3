"""The registry of plugins: those registered by the `register` decorator, and those that a node loads.

Plugins are found through the entry-point group ``warpgate.strategies``.  An entry point names a module, and importing
it runs the decorators.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from ..combos import Technique
from ..errors import ConfigError, PluginError
from ..signal import Message, wire_name
from ..signal.core import OWNER
from .base import PHASES, Phase, Plugin

__all__ = [
    "LoadedPlugins",
    "PluginStatus",
    "load_plugins",
    "plugin_registry",
    "register",
    "status_of",
    "technique_of",
]

logger: logging.Logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP: Final = "warpgate.strategies"

plugin_registry: Final[dict[str, type[Plugin]]] = {}
"""Every registered class, by name, in the order of registration."""

_P = TypeVar("_P", bound=type[Plugin])


def register(*, phase: Phase | None) -> Callable[[_P], _P]:
    """Class decorator that registers a plugin for a phase of the walk; with ``phase=None`` it is in no walk.

    Raises:
      PluginError: a declaration is missing or wrong, or the name is another plugin's.
    """

    def decorate(cls: _P) -> _P:
        if phase is not None and phase not in PHASES:
            raise PluginError(f"{cls.__name__}: unknown phase {phase!r}; there are {', '.join(PHASES)}")
        name = _checked_name(cls)
        other = plugin_registry.get(name)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise PluginError(f"the plugin name {name!r} is taken by {other.__module__}.{other.__qualname__}")
        cls.phase = phase
        plugin_registry[name] = cls
        return cls

    return decorate


def _checked_name(cls: type[Plugin]) -> str:
    """The plugin's name; `PluginError` where a declaration is missing or wrong."""
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not name.isidentifier() or name == OWNER:
        raise PluginError(f"{cls.__name__}: a plugin's name is an identifier, not {name!r}")
    for message in cls.proto_messages:
        if not (isinstance(message, type) and issubclass(message, Message)):
            raise PluginError(f"{name}: proto_messages holds {message!r}, which is no Message type")
    return name


def technique_of(plugin: type[Plugin]) -> Technique:
    """What the planner needs to know of a plugin."""
    return Technique(
        name=plugin.name,
        phase=plugin.phase,
        transport=plugin.transport,
        route_types=frozenset(plugin.route_types),
        aim=plugin.aim,
        outlook=plugin.outlook,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginStatus:
    """An entry of ``node.plugins``: a plugin, or an entry point that failed.

    Attributes:
      name: of the plugin, or of the entry point.
      phase: the plugin's phase.
      source: the class, or the entry point's target.
      problem: why it is not used; None where it is.
    """

    name: str
    phase: str | None = None
    source: str = ""
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedPlugins:
    """The plugins of one node.

    Attributes:
      plugins: plugin name -> class.
      messages: wire name -> (plugin, message type).
      problems: what was skipped, and why.
    """

    plugins: Mapping[str, type[Plugin]]
    messages: Mapping[str, tuple[type[Plugin], type[Message]]]
    problems: tuple[PluginStatus, ...]


def load_plugins(
    select: Iterable[str | type[Plugin]] | None = None,
    *,
    entry_points: Sequence[importlib.metadata.EntryPoint] | None = None,
) -> LoadedPlugins:
    """Import every advertised plugin and choose among them.

    A plugin that cannot be imported, or whose name or message names collide, is skipped, logged, and listed in
    `LoadedPlugins.problems`.

    Args:
      select: names of registered plugins, or plugin classes; None takes every registered plugin.
      entry_points: used in place of those of the installed packages.

    Raises:
      ConfigError: there is no plugin at all, or `select` names one that does not exist.
      PluginError: a class in `select` is not declared as it should be.
    """
    if entry_points is None:
        entry_points = tuple(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP))
    problems: list[PluginStatus] = []
    for point in sorted(entry_points, key=lambda each: each.name):
        try:
            point.load()
        except Exception as error:  # whatever somebody's module raises when it is imported
            logger.warning("plugin %s (%s) is skipped: %s", point.name, point.value, error, exc_info=True)
            problems.append(
                PluginStatus(name=point.name, source=point.value, problem=f"{type(error).__name__}: {error}")
            )
    chosen: dict[str, type[Plugin]] = {}
    for item in plugin_registry if select is None else select:
        if isinstance(item, str):
            if item not in plugin_registry:
                known = ", ".join(sorted(plugin_registry)) or "none is installed"
                raise ConfigError(f"there is no plugin {item!r} ({known})")
            chosen[item] = plugin_registry[item]
        else:
            chosen[_checked_name(item)] = item
    messages: dict[str, tuple[type[Plugin], type[Message]]] = {}
    for name, plugin in list(chosen.items()):
        own: dict[str, tuple[type[Plugin], type[Message]]] = {}
        try:
            for message in plugin.proto_messages:
                wire = wire_name(name, message)
                if wire in own:
                    raise ValueError(f"two of its messages would be {wire!r} on the wire")
                own[wire] = (plugin, message)
        except ValueError as error:
            problems.append(PluginStatus(name=name, phase=plugin.phase, source=_source(plugin), problem=str(error)))
            logger.warning("plugin %s is skipped: %s", name, error)
            del chosen[name]
            continue
        messages.update(own)
    if not chosen:
        raise ConfigError(f"no plugin could be loaded from the entry points of {ENTRY_POINT_GROUP!r}: see the log")
    return LoadedPlugins(plugins=chosen, messages=messages, problems=tuple(problems))


def _source(plugin: type[Plugin]) -> str:
    return f"{plugin.__module__}.{plugin.__qualname__}"


def status_of(loaded: LoadedPlugins) -> tuple[PluginStatus, ...]:
    """The content of ``node.plugins``: the plugins, then those that were skipped."""
    present = [PluginStatus(name=name, phase=p.phase, source=_source(p)) for name, p in loaded.plugins.items()]
    return (*present, *loaded.problems)
