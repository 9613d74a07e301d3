"""warpgate_trio: a Trio stream between any two programs on the internet, whatever NATs lie between them.

This module has the public names and nothing else.  They are imported when first used, so that
``import warpgate_trio.sim`` does not load TLS.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .address import PeerAddress as PeerAddress
    from .combos import RouteType as RouteType
    from .config import Budgets as Budgets
    from .config import IdentityConfig as IdentityConfig
    from .config import InterfacesConfig as InterfacesConfig
    from .config import ListenConfig as ListenConfig
    from .config import NetworkConfig as NetworkConfig
    from .config import NodeConfig as NodeConfig
    from .config import PathsConfig as PathsConfig
    from .config import PortMapConfig as PortMapConfig
    from .config import Servers as Servers
    from .config import load_config as load_config
    from .contacts import Contact as Contact
    from .contacts import Contacts as Contacts
    from .errors import AddressError as AddressError
    from .errors import CodeMalformed as CodeMalformed
    from .errors import CodeRefused as CodeRefused
    from .errors import ConfigError as ConfigError
    from .errors import ConnectError as ConnectError
    from .errors import ContactError as ContactError
    from .errors import PairingError as PairingError
    from .errors import PairingUnavailable as PairingUnavailable
    from .errors import PeerNotFound as PeerNotFound
    from .errors import PeerRefused as PeerRefused
    from .errors import WarpgateError as WarpgateError
    from .identity import Identity as Identity
    from .link import PathCause as PathCause
    from .link import PathChange as PathChange
    from .link import PathInfo as PathInfo
    from .link import PathState as PathState
    from .link import Pipe as Pipe
    from .messages import MessageChannel as MessageChannel
    from .netcheck import NetcheckReport as NetcheckReport
    from .node import Node as Node
    from .node import open_node as open_node
    from .node.admission import Authorize as Authorize
    from .node.admission import anyone as anyone
    from .node.listener import PipeListener as PipeListener
    from .node.peers import PeerStatus as PeerStatus
    from .node.serving import serve_pipes as serve_pipes
    from .pairing import CodeOffer as CodeOffer
    from .pairing import Paired as Paired
    from .pairing import PairedPeers as PairedPeers
    from .plugin import IP4 as IP4
    from .plugin import IP6 as IP6
    from .report import ConnectReport as ConnectReport
    from .report import Verdict as Verdict

    NIC_BIND = RouteType.NIC_BIND
    EXT_BIND = RouteType.EXT_BIND
    LOOPBACK_BIND = RouteType.LOOPBACK_BIND

__all__ = [
    "EXT_BIND",
    "IP4",
    "IP6",
    "LOOPBACK_BIND",
    "NIC_BIND",
    "AddressError",
    "Authorize",
    "Budgets",
    "CodeMalformed",
    "CodeOffer",
    "CodeRefused",
    "ConfigError",
    "ConnectError",
    "ConnectReport",
    "Contact",
    "ContactError",
    "Contacts",
    "Identity",
    "IdentityConfig",
    "InterfacesConfig",
    "ListenConfig",
    "MessageChannel",
    "NetcheckReport",
    "NetworkConfig",
    "Node",
    "NodeConfig",
    "Paired",
    "PairedPeers",
    "PairingError",
    "PairingUnavailable",
    "PathCause",
    "PathChange",
    "PathInfo",
    "PathState",
    "PathsConfig",
    "PeerAddress",
    "PeerNotFound",
    "PeerRefused",
    "PeerStatus",
    "Pipe",
    "PipeListener",
    "PortMapConfig",
    "RouteType",
    "Servers",
    "Verdict",
    "WarpgateError",
    "anyone",
    "load_config",
    "open_node",
    "serve_pipes",
]

_HOME: Final[dict[str, str]] = {
    "AddressError": "errors",
    "Authorize": "node.admission",
    "Budgets": "config",
    "CodeMalformed": "errors",
    "CodeOffer": "pairing",
    "CodeRefused": "errors",
    "ConfigError": "errors",
    "ConnectError": "errors",
    "ConnectReport": "report",
    "Contact": "contacts",
    "ContactError": "errors",
    "Contacts": "contacts",
    "IP4": "plugin",
    "IP6": "plugin",
    "Identity": "identity",
    "IdentityConfig": "config",
    "InterfacesConfig": "config",
    "ListenConfig": "config",
    "MessageChannel": "messages",
    "NetcheckReport": "netcheck",
    "NetworkConfig": "config",
    "Node": "node",
    "NodeConfig": "config",
    "PathsConfig": "config",
    "PortMapConfig": "config",
    "Paired": "pairing",
    "PairedPeers": "pairing",
    "PairingError": "errors",
    "PairingUnavailable": "errors",
    "PathCause": "link",
    "PathChange": "link",
    "PathInfo": "link",
    "PathState": "link",
    "PeerAddress": "address",
    "PeerNotFound": "errors",
    "PeerRefused": "errors",
    "PeerStatus": "node.peers",
    "Pipe": "link",
    "PipeListener": "node.listener",
    "RouteType": "combos",
    "Servers": "config",
    "Verdict": "report",
    "WarpgateError": "errors",
    "anyone": "node.admission",
    "load_config": "config",
    "open_node": "node",
    "serve_pipes": "node.serving",
}
_ROUTE_TYPES: Final = ("NIC_BIND", "EXT_BIND", "LOOPBACK_BIND")


def __getattr__(name: str) -> object:  # PEP 562
    value: object
    if name in _ROUTE_TYPES:
        value = import_module(".combos", __name__).RouteType[name]
    elif name in _HOME:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
