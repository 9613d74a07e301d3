"""WebSocket connections, which carry signals, and reverse proxies in front of a server."""

from __future__ import annotations

from .connection import MAX_AHEAD as MAX_AHEAD
from .connection import Accepted as Accepted
from .connection import ConnectionLimits as ConnectionLimits
from .connection import WebSocket as WebSocket
from .connection import WebSocketClosed as WebSocketClosed
from .connection import WebSocketError as WebSocketError
from .connection import open_websocket as open_websocket
from .connection import serve_websocket as serve_websocket

__all__ = [
    "MAX_AHEAD",
    "Accepted",
    "ConnectionLimits",
    "WebSocket",
    "WebSocketClosed",
    "WebSocketError",
    "open_websocket",
    "serve_websocket",
]
