"""Pairing: two nodes find each other by a code that one user tells the other, such as ``7-guitar-orbit``.

One node offers the code at its servers (`open_offer`), the other accepts it (`accept_code`).  By a
password-authenticated key exchange (`pake`, `handshake`) each learns the other's verified peer id and address, and
nobody else learns either.  See docs/pairing.md.
"""

from __future__ import annotations

from .accepting import ACCEPT_TIMEOUT as ACCEPT_TIMEOUT
from .accepting import accept_code as accept_code
from .code import Code as Code
from .code import parse_code as parse_code
from .handshake import Paired as Paired
from .handshake import Us as Us
from .mailbox import MailboxServer as MailboxServer
from .offering import CODE_LIFETIME as CODE_LIFETIME
from .offering import CodeOffer as CodeOffer
from .offering import open_offer as open_offer
from .paired_peers import PairedPeers as PairedPeers
from .servers import mailbox_servers as mailbox_servers

__all__ = [
    "ACCEPT_TIMEOUT",
    "CODE_LIFETIME",
    "Code",
    "CodeOffer",
    "MailboxServer",
    "Paired",
    "PairedPeers",
    "Us",
    "accept_code",
    "mailbox_servers",
    "open_offer",
    "parse_code",
]
