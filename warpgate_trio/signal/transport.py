"""What a signal transport is: the small interface that stands between `SignalHub` and a server's own protocol.

A channel is one connection of one node to one signal server, registered under the node's key.  Everything above it
(which server, racing, de-duplication, reconnecting) is the hub's; everything below (frames, topics, pings) is the
transport's.
"""

from __future__ import annotations

import enum
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol, TypeAlias

import trio

from ..config import ServerUrl
from ..errors import ConfigError
from ..identity import Identity
from ..servers.rendezvous_frames import Registrant

__all__ = ["Delivery", "Dial", "SignalChannel", "check_supported", "loads_asyncio", "open_channel", "supports"]


class Delivery(enum.IntEnum):
    """What a server did with a payload; the higher, the better."""

    NOBODY_HOME = 0
    """The server knows that the receiver is not there."""
    FULL = 1
    """The receiver is there, but takes nothing at the moment: try again."""
    QUEUED = 2
    """The server took it, and tells no more than that."""
    DELIVERED = 3
    """It was handed to at least one connection of the receiver."""


class SignalChannel(Protocol):
    """One open, registered connection to a signal server."""

    @property
    def url(self) -> str:
        """The server, without a password."""
        ...

    @property
    def rtt(self) -> float | None:
        """Smoothed round-trip time between us and the server in seconds; None: not measured yet."""
        ...

    @property
    def answered(self) -> bool:
        """Whether the server has been heard of since the channel was opened, or has shown then that it passes messages
        on: one that registers us and does no more is of no use."""
        ...

    async def wait_registered(self) -> None:
        """Return once the server has said that it takes us: from then on we get what others send.

        Raises:
          SignalUnavailable: it refused us, or the channel is gone.
        """
        ...

    async def send(self, receiver_key: bytes, payload: bytes, *, instance: bytes | None = None) -> Delivery:
        """Send 1 to 16,384 bytes to whoever is registered under the 32-byte key; where the server can tell processes
        of one key apart, to the one that has this instance.

        Any number of tasks may send.  Cancelled: the payload may or may not go out; the channel stays usable.

        Raises:
          SignalUnavailable: the channel is gone.
          ValueError: a length is wrong.
        """
        ...

    async def receive(self) -> bytes:
        """The next payload for us.  Cancelled: nothing is lost.  One task receives, and quickly: the channel's buffer
        is small.

        Raises:
          SignalUnavailable: the channel is gone.
        """
        ...

    def check(self) -> None:
        """There is reason to doubt the connection: ask the server now, and take it for gone unless it answers soon."""
        ...


Dial: TypeAlias = Callable[[str, int], Awaitable[trio.abc.Stream]]
"""Opens a connection to a host and port; the name is resolved in there."""
Opener: TypeAlias = Callable[
    [ServerUrl, Identity, ssl.SSLContext | None, Registrant | None, Dial, bool],
    AbstractAsyncContextManager[SignalChannel],
]


def _websocket(
    url: ServerUrl,
    identity: Identity,
    ssl_context: ssl.SSLContext | None,
    registrant: Registrant | None,
    dial: Dial,
    at_once: bool,
) -> AbstractAsyncContextManager[SignalChannel]:
    from .websocket_channel import open_websocket_channel

    return open_websocket_channel(
        url, identity, ssl_context=ssl_context, registrant=registrant, dial=dial, at_once=at_once
    )


def _mqtt(
    url: ServerUrl,
    identity: Identity,
    ssl_context: ssl.SSLContext | None,
    _registrant: Registrant | None,
    dial: Dial,
    _at_once: bool,
) -> AbstractAsyncContextManager[SignalChannel]:
    from .mqtt.channel import open_mqtt_channel

    return open_mqtt_channel(url, identity, ssl_context=ssl_context, dial=dial)


# URL scheme -> opener.  Openers import their transport when first used: a node without MQTT servers never loads MQTT.
_OPENERS: Final[dict[str, Opener]] = {"ws": _websocket, "wss": _websocket, "mqtt": _mqtt, "mqtts": _mqtt}


def check_supported(url: ServerUrl) -> None:
    """Whether a channel can be opened to a server like this one.  Loads nothing that `loads_asyncio` warns of.

    Raises:
      ConfigError: no transport for the URL's scheme, or not on this Python or in this thread, or something else in the
        URL is wrong.
    """
    if url.scheme not in _OPENERS:
        raise ConfigError(
            f"{url.redacted}: no signal transport for {url.scheme!r}; there is {', '.join(sorted(_OPENERS))}"
        )
    if not loads_asyncio(url):
        from . import websocket_channel as websocket_channel  # 50 ms that would fall into the node's first walk
    else:
        from .mqtt.channel import check_mqtt_url
        from .mqtt.connection import check_available, check_no_asyncio

        check_available()
        check_no_asyncio()
        check_mqtt_url(url)


def supports(url: ServerUrl) -> bool:
    """Whether `check_supported` has nothing against it."""
    try:
        check_supported(url)
    except ConfigError:
        return False
    return True


def loads_asyncio(url: ServerUrl) -> bool:
    """Whether opening a channel to it changes asyncio for the whole process (`signal.mqtt.connection` says how).

    Whoever configured such a server wants that; a peer's hint is no reason for it.
    """
    return url.scheme in ("mqtt", "mqtts")


def open_channel(
    url: ServerUrl,
    identity: Identity,
    *,
    ssl_context: ssl.SSLContext | None = None,
    registrant: Registrant | None = None,
    dial: Dial = trio.open_tcp_stream,
    at_once: bool = False,
) -> AbstractAsyncContextManager[SignalChannel]:
    """Connect to a signal server and register our key, for the time of the ``async with``.

    No timeout is built in: bound the opening with a scope of your own, whose deadline you move once you are in.

    Args:
      ssl_context: trust for the TLS schemes; the platform's by default.
      registrant: what the node registers as, and what it knows of its rendezvous servers; a fresh one by default.
      dial: opens the connection; for who judges where it leads.
      at_once: where the protocol has it, do not wait for the server's answer to our registration: what is sent goes out
        right behind it, and `SignalChannel.wait_registered` tells of a refusal.

    Raises (all but the first when it is entered):
      ConfigError: as `check_supported`.
      OSError: the server cannot be reached.
      SignalUnavailable: it was reached, and refused us, broke off, or is no signal server.
      SignalUnsupported: it speaks a version of its protocol that this release does not know.
    """
    check_supported(url)
    return _OPENERS[url.scheme](url, identity, ssl_context, registrant, dial, at_once)
