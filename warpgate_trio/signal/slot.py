"""One signal server of a node's hub: where it is, its channel while there is one, and what is known of it."""

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
"""Seconds after which a channel to a peer's server is closed that has no traffic."""

Place: TypeAlias = tuple[str, str, int, str]


def place_of(url: ServerUrl) -> Place:
    """What makes two URLs the same server: a hint has neither the login nor the query that our configuration has."""
    return (url.scheme, url.host_name, url.port, url.path or "/")


class ServerState(enum.Enum):
    CONNECTING = "connecting"
    CONNECTED = "connected"
    WAITING = "waiting"
    """Not connected; the next attempt comes after the back-off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """One server, as the hub sees it.

    Attributes:
      url: without a password.
      rtt: seconds to the server and back; None when not connected.
      last_error: one sentence on why it was last not connected.
      visiting: the server of a peer, not one of the configuration.
    """

    url: str
    state: ServerState
    rtt: float | None
    last_error: str | None
    visiting: bool = False


@final
class Slot:
    """One server and, when connected, its channel.  Its attributes are the hub's."""

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
        """When it was connected to for the first time."""
        self.unresolved: bool = False
        """`last_error` is that its name cannot be resolved."""
        self.lost: bool = False
        """It could not be reached, which people were told."""
        self.broke: bool = False
        """Its connection broke, and there has been no other one since."""
        self.scope: trio.CancelScope | None = None
        self.last_used: float = trio.current_time() if self.of_peer else 0.0
        self.sending: int = 0
        self.ended: bool = False

    @property
    def connected(self) -> bool:
        """The server has registered us.  What there is to send goes by `channel` before that."""
        return self.channel is not None and self.state is ServerState.CONNECTED

    def begin(self) -> Circuits:
        """It is being connected to; the circuits of the connection."""
        self.state = ServerState.CONNECTING
        self.first_try = trio.current_time() if self.first_try is None else self.first_try
        circuits = Circuits(self.key)
        # Not at one that could not be reached: a proxy may have found the request too long that a call went with.
        may_call_ahead = not (self.of_peer or self.is_broker or self.lost)
        self.opening = circuits if may_call_ahead else None
        return circuits

    def is_new(self, seconds: float) -> bool:
        """Whether it was begun with so lately, and has not failed to connect."""
        began = trio.current_time() if self.first_try is None else self.first_try
        return self.last_error is None and trio.current_time() - began < seconds

    def touch(self) -> None:
        """There was traffic: a channel to a peer's server lasts a minute more."""
        if self.of_peer:
            self.last_used = trio.current_time()
            if self.connected and self.scope is not None:
                self.scope.deadline = self.last_used + PEERS_SERVER_IDLE

    @property
    def by_proxy(self) -> bool:
        """Whether it is one of our own that a proxy leads to: its name is the proxy's affair."""
        return isinstance(self.dial, ServerDial) and self.dial.by_proxy

    @property
    def address(self) -> IpAddress | None:
        """Where the connection to a peer's server leads; None: nowhere yet, or it is our own."""
        return self.dial.address if isinstance(self.dial, JudgedDial) else None

    def leads_where(self, may_connect: MayConnect) -> bool:
        """Whether it leads to an address that may be connected to; one that leads nowhere yet was judged on its way."""
        return self.address is None or may_connect(self.address)

    def status(self) -> ServerStatus:
        rtt = self.channel.rtt if self.channel is not None and self.connected else None
        return ServerStatus(url=self.key, state=self.state, rtt=rtt, last_error=self.last_error, visiting=self.of_peer)
