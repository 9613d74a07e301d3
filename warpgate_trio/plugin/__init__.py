"""Plugins: one traversal technique each, yours included; docs/writing_a_plugin.md is the guide."""

from __future__ import annotations

from .base import IP4 as IP4
from .base import IP6 as IP6
from .base import PHASES as PHASES
from .base import TCP as TCP
from .base import UDP as UDP
from .base import Aim as Aim
from .base import Clock as Clock
from .base import Likelihood as Likelihood
from .base import LoadedPlugins as LoadedPlugins
from .base import Message as Message
from .base import NodeView as NodeView
from .base import PathRequest as PathRequest
from .base import Phase as Phase
from .base import Plugin as Plugin
from .base import PluginStatus as PluginStatus
from .base import RouteType as RouteType
from .base import load_plugins as load_plugins
from .base import plugin_registry as plugin_registry
from .base import register as register

__all__ = [
    "IP4",
    "IP6",
    "PHASES",
    "TCP",
    "UDP",
    "Aim",
    "Clock",
    "Likelihood",
    "LoadedPlugins",
    "Message",
    "NodeView",
    "PathRequest",
    "Phase",
    "Plugin",
    "PluginStatus",
    "RouteType",
    "load_plugins",
    "plugin_registry",
    "register",
]
