"""A node's signal servers as servers for pairing."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence

from ..config import ServerUrl
from ..ports.server_dial import Dial
from .brokers import BrokerMailboxes
from .mailbox import MailboxServer
from .rendezvous import RendezvousMailboxes

__all__ = ["mailbox_servers"]


def mailbox_servers(
    urls: Sequence[ServerUrl], *, dial_to: Callable[[ServerUrl], Dial], trust: Callable[[], ssl.SSLContext]
) -> list[MailboxServer]:
    """A `MailboxServer` for each of a node's signal servers.

    Args:
      dial_to: returns the function that opens connections to a server.
      trust: returns the TLS context.
    """
    return [
        (RendezvousMailboxes if url.scheme in ("ws", "wss") else BrokerMailboxes)(url, dial=dial_to(url), trust=trust)
        for url in dict.fromkeys(urls)
    ]
