"""One signal server of a node's hub: its URL, its channel while there is one, and its state."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass
from typing import Final, TypeAlias, final

import trio

from ..config import ServerUrl
from ..ports.server_dial import ServerDial
from ..sockaddr import IpAddress
from .channel import SignalChannel
from .circuits import Circuits, Incoming
from .peers_servers import JudgedDial, MayConnect
from .transport import loads_asyncio

__all__ = [
    "PEERS_SERVER_IDLE",
    "Place",
    "ServerState",
    "ServerStatus",
    "Slot",
    "place_of",
]

PEERS_SERVER_IDLE = 60.0
"""Seconds without traffic after which a channel to a peer's server is closed."""

Place: TypeAlias = tuple[str, str, int, str]


def place_of(url: ServerUrl) -> Place:
    """Two URLs with the same place are the same server: hints lack the login and query that our configuration has."""
    return (url.scheme, url.host_name, url.port, url.path or "/")


class ServerState(enum.Enum):
    """The state of the connection to a server."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    WAITING = "waiting"
    """Not connected; the next attempt follows after the back-off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """One server, as the hub sees it.

    Attributes:
      url: without a password.
      rtt: round-trip time to the server in seconds; None when not connected.
      last_error: one sentence on why the last connection attempt failed or the last connection ended; None while it is
        connected, and before the first failure.
      visiting: the server of a peer, not one of the configuration.
    """

    url: str
    state: ServerState
    rtt: float | None
    last_error: str | None
    visiting: bool = False


@final
class Slot:
    """One server and, when connected, its channel.  The hub's modules read and set its attributes."""

    def __init__(self, url: ServerUrl, dial: ServerDial | JudgedDial) -> None:
        self.url: Final = url
        self.key: str = url.redacted
        self.place: Final = place_of(url)
        self.origin: Final = self.place[:3]
        self.is_broker: Final = loads_asyncio(url)
        self.of_peer: Final = isinstance(dial, JudgedDial)
        self.dial: Final = dial
        self.waiting: deque[Incoming] = deque()
        self.state: ServerState = ServerState.CONNECTING
        self.channel: SignalChannel | None = None
        self.opening: Circuits | None = None
        """Circuits that may be made while the connection is being opened."""
        self.last_error: str | None = None
        self.first_try: float | None = None
        """When the first connection attempt began (`trio.current_time`)."""
        self.unresolved: bool = False
        """`last_error` is that its name cannot be resolved."""
        self.lost: bool = False
        """It could not be reached, and a warning was logged."""
        self.broke: bool = False
        """Its connection broke, and no new one has come up since."""
        self.scope: trio.CancelScope | None = None
        self.last_used: float = trio.current_time() if self.of_peer else 0.0
        self.sending: int = 0
        self.ended: bool = False

    @property
    def connected(self) -> bool:
        """Whether the server has registered us.  Signals are sent by `channel` even before that."""
        return self.channel is not None and self.state is ServerState.CONNECTED

    def begin(self) -> Circuits:
        """A connection attempt begins; return the circuits of the new connection."""
        self.state = ServerState.CONNECTING
        self.first_try = trio.current_time() if self.first_try is None else self.first_try
        circuits = Circuits(self.key)
        # Not at a server that could not be reached: a proxy may have rejected a request that the call made too long.
        may_call_ahead = not (self.of_peer or self.is_broker or self.lost)
        self.opening = circuits if may_call_ahead else None
        return circuits

    def is_new(self, seconds: float) -> bool:
        """Whether the first connection attempt began less than `seconds` ago, and none has failed."""
        began = trio.current_time() if self.first_try is None else self.first_try
        return self.last_error is None and trio.current_time() - began < seconds

    def touch(self) -> None:
        """There was traffic: a channel to a peer's server stays open for another `PEERS_SERVER_IDLE`."""
        if self.of_peer:
            self.last_used = trio.current_time()
            if self.connected and self.scope is not None:
                self.scope.deadline = self.last_used + PEERS_SERVER_IDLE

    @property
    def by_proxy(self) -> bool:
        """Whether it is one of our own servers that is reached by a proxy, which then resolves its name."""
        return isinstance(self.dial, ServerDial) and self.dial.by_proxy

    @property
    def address(self) -> IpAddress | None:
        """The IP address that the connection to a peer's server leads to; None: not connected yet, or our own."""
        return self.dial.address if isinstance(self.dial, JudgedDial) else None

    def leads_where(self, may_connect: MayConnect) -> bool:
        """Whether it leads to an address that may be connected to; True for a connection that is still being opened."""
        return self.address is None or may_connect(self.address)

    def status(self) -> ServerStatus:
        """The present status, for `SignalHub.status`."""
        rtt = self.channel.rtt if self.channel is not None and self.connected else None
        return ServerStatus(url=self.key, state=self.state, rtt=rtt, last_error=self.last_error, visiting=self.of_peer)
