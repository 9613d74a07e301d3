"""The servers of a node that it can pair by."""

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
    """One for each of a node's signal servers.

    Args:
      dial_to: what opens connections to a server.
      trust: whom TLS trusts.
    """
    return [
        (RendezvousMailboxes if url.scheme in ("ws", "wss") else BrokerMailboxes)(url, dial=dial_to(url), trust=trust)
        for url in dict.fromkeys(urls)
    ]
