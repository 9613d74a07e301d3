"""The configuration of a node and the command line, and the sources that it is read from."""

from __future__ import annotations

from .config import (
    Budgets,
    IdentityConfig,
    InterfacesConfig,
    ListenConfig,
    NetworkConfig,
    NodeConfig,
    PathsConfig,
    PortMapConfig,
    Servers,
    default_config_file,
    load_config,
)
from .proxies import Proxies
from .server_url import ServerUrl, TurnServer

__all__ = [
    "Budgets",
    "IdentityConfig",
    "InterfacesConfig",
    "ListenConfig",
    "NetworkConfig",
    "NodeConfig",
    "PathsConfig",
    "PortMapConfig",
    "Proxies",
    "ServerUrl",
    "Servers",
    "TurnServer",
    "default_config_file",
    "load_config",
]
