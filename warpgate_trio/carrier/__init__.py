"""Carriers: encrypted, ordered byte streams to *someone*; the Link above finds out to whom.

A carrier separates *encrypting* from *sending*: `Carrier.feed` is synchronous and turns plaintext into ciphertext
that the carrier owns from then on; `Carrier.flush` sends what is owed and may be cancelled at any byte, because what
it did not send stays owed and goes out first next time.  That is what makes a cancelled ``send_all`` harmless: TLS
records and QUIC packets are never torn by it.

One writer at a time may be in `Carrier.flush` and one reader in `Carrier.receive`; the Link sees to that.
"""

from __future__ import annotations

from ._carrier import Carrier as Carrier
from .tls import TlsCarrier as TlsCarrier
from .tls import TlsContexts as TlsContexts

__all__ = ["Carrier", "TlsCarrier", "TlsContexts"]
