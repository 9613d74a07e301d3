"""Carriers: encrypted, ordered byte streams to *someone*; the Link above finds out to whom.

A carrier separates *encrypting* from *sending*.  `Carrier.feed` is synchronous: it turns plaintext into ciphertext,
which the carrier owns from then on.  `Carrier.flush` sends the pending ciphertext.  It may be cancelled at any byte:
what it did not send stays pending, and is sent first next time.  So a cancelled ``send_all`` is harmless: it never
tears a TLS record or a QUIC packet.

One writer at a time may be in `Carrier.flush` and one reader in `Carrier.receive`; the Link ensures that.
"""

from __future__ import annotations

from ._carrier import Carrier as Carrier
from .tls import TlsCarrier as TlsCarrier
from .tls import TlsContexts as TlsContexts

__all__ = ["Carrier", "TlsCarrier", "TlsContexts"]
