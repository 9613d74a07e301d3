"""The signal transports by URL scheme; each opens a `SignalChannel`."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, TypeAlias

import trio

from ..config import ServerUrl
from ..errors import ConfigError
from ..identity import Identity
from ..servers.rendezvous_frames import Registrant
from .channel import Dial, SignalChannel
from .circuits import Circuits

__all__ = ["check_supported", "loads_asyncio", "open_channel", "supports"]


Opener: TypeAlias = Callable[
    [ServerUrl, Identity, ssl.SSLContext | None, Registrant | None, Dial, bool, bool, Circuits | None],
    AbstractAsyncContextManager[SignalChannel],
]


def _websocket(
    url: ServerUrl,
    identity: Identity,
    ssl_context: ssl.SSLContext | None,
    registrant: Registrant | None,
    dial: Dial,
    at_once: bool,
    _findable: bool,
    circuits: Circuits | None,
) -> AbstractAsyncContextManager[SignalChannel]:
    from .websocket_channel import open_websocket_channel

    return open_websocket_channel(
        url,
        identity,
        ssl_context=ssl_context,
        registrant=registrant,
        dial=dial,
        at_once=at_once,
        circuits=circuits,
    )


def _mqtt(
    url: ServerUrl,
    identity: Identity,
    ssl_context: ssl.SSLContext | None,
    registrant: Registrant | None,
    dial: Dial,
    _at_once: bool,
    findable: bool,
    _circuits: Circuits | None,
) -> AbstractAsyncContextManager[SignalChannel]:
    from .mqtt.channel import open_mqtt_channel

    return open_mqtt_channel(
        url, identity, ssl_context=ssl_context, registrant=registrant, dial=dial, findable=findable
    )


# URL scheme -> opener.  Openers import their transport when first used: a node without MQTT servers never loads MQTT.
_OPENERS: Final[dict[str, Opener]] = {"ws": _websocket, "wss": _websocket, "mqtt": _mqtt, "mqtts": _mqtt}


def check_supported(url: ServerUrl) -> None:
    """Check that a channel can be opened to a server of this kind.  Imports neither aiomqtt nor trio-asyncio.

    Raises:
      ConfigError: there is no transport for the URL's scheme, it cannot be used on this Python or in this thread, or
        something else in the URL is wrong.
    """
    if url.scheme not in _OPENERS:
        raise ConfigError(
            f"{url.redacted}: no signal transport for {url.scheme!r}; there is {', '.join(sorted(_OPENERS))}"
        )
    if not loads_asyncio(url):
        from . import websocket_channel as websocket_channel  # 50 ms that would otherwise delay the node's first walk
    else:
        from .mqtt.channel import check_mqtt_url
        from .mqtt.connection import check_available, check_no_asyncio

        check_available()
        check_no_asyncio()
        check_mqtt_url(url)


def supports(url: ServerUrl) -> bool:
    """Whether `check_supported` accepts the URL."""
    try:
        check_supported(url)
    except ConfigError:
        return False
    return True


def loads_asyncio(url: ServerUrl) -> bool:
    """Whether opening a channel to it changes asyncio for the whole process (`signal.mqtt.connection` says how).

    A user who configures such a server accepts that; a peer's hint alone is no reason for it.
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
    findable: bool = False,
    circuits: Circuits | None = None,
) -> AbstractAsyncContextManager[SignalChannel]:
    """Connect to a signal server and register our key, for the time of the ``async with``.

    No timeout is built in: bound the opening with a cancel scope of your own, and move its deadline once the channel is
    open.

    Args:
      ssl_context: for the TLS schemes; the platform's trust by default.
      registrant: what the node registers as, and what it knows of its servers; a fresh one by default.
      dial: opens the connection; a `JudgedDial` also judges where it leads.
      at_once: do not wait for the server's answer to our registration, if the protocol allows that.  What is sent goes
        out right behind the registration, and `SignalChannel.wait_registered` raises on a refusal.
      findable: a key record will be published; a broker then gets a will that clears it when the connection ends.
      circuits: those that may be made while the connection is being opened, if the protocol has circuits.  The caller
        ends them if the connection does not come up.

    Raises (all but the first when it is entered):
      ConfigError: as `check_supported`.
      OSError: the server cannot be reached.
      SignalUnavailable: it was reached, and refused us, broke off, or is no signal server.
      SignalUnsupported: it speaks a version of its protocol that this release does not know.
    """
    check_supported(url)
    return _OPENERS[url.scheme](url, identity, ssl_context, registrant, dial, at_once, findable, circuits)
