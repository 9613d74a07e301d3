"""Plugins: one traversal technique each.  The guide for writing one is docs/writing_a_plugin.md."""

from __future__ import annotations

from ..clock.wall import Clock
from ..combos import Aim, Likelihood, RouteType
from ..signal import Message
from .base import IP4, IP6, PHASES, TCP, UDP, PathRequest, Phase, Plugin
from .context import AttemptContext, NodeView
from .registry import LoadedPlugins, PluginStatus, load_plugins, plugin_registry, register

__all__ = [
    "IP4",
    "IP6",
    "PHASES",
    "TCP",
    "UDP",
    "Aim",
    "AttemptContext",
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
