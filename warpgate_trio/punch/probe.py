"""The packets of connectivity checks: STUN Binding messages, authenticated by a secret of the attempt.  No I/O.

They are STUN (RFC 8489), so that they pass where STUN passes and can be told from QUIC on the same socket by the first
byte (RFC 9443).  They carry a MESSAGE-INTEGRITY-SHA256 truncated to 16 bytes.  The keys are derived from a secret that
one side sent the other in a sealed signal.  Each direction has its own key, so a packet that is reflected to its sender
is not authentic there.

A request has 40 bytes and a response 52 (IPv4) or 64.  With the headers of UDP and IP nothing is amplified by more than
a third.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from enum import Enum
from typing import Final, final

from ..errors import StunMalformed
from ..sockaddr import TransportAddress
from ..stun.codec import BINDING, XOR_MAPPED_ADDRESS, MessageClass, decode, encode

__all__ = ["MAC_LENGTH", "SECRET_LENGTH", "Probe", "ProbeCodec", "ProbeKind"]

SECRET_LENGTH: Final = 16
MAC_LENGTH: Final = 16
"""Bytes, the least that RFC 8489 §14.6 allows: a forger has to guess 128 bits within seconds."""
MAX_PROBE: Final = 256
"""Bytes of the largest datagram that is decoded: a probe of a later release may have some further attributes."""


class ProbeKind(Enum):
    """The kind of a packet."""

    REQUEST = "request"
    RESPONSE = "response"


@final
@dataclass(frozen=True, slots=True)
class Probe:
    """An authentic packet of the peer; in a response, `mapped` is our address as the peer saw it."""

    kind: ProbeKind
    transaction: bytes
    mapped: TransportAddress | None


@final
class ProbeCodec:
    """Encodes our probes and decodes the peer's.

    Args:
      secret: `SECRET_LENGTH` bytes that the two sides share.
      initiator: whether this side is the initiator.
    """

    def __init__(self, secret: bytes, *, initiator: bool) -> None:
        if len(secret) != SECRET_LENGTH:
            raise ValueError(f"a probe secret has {SECRET_LENGTH} bytes, not {len(secret)}")
        keys = [
            hmac.digest(secret, b"warpgate-trio probe v1 " + side, "sha256") for side in (b"initiator", b"responder")
        ]
        self._ours, self._theirs = keys if initiator else reversed(keys)

    def request(self, transaction: bytes) -> bytes:
        """Encode a probe."""
        return encode(BINDING, MessageClass.REQUEST, transaction, integrity_sha256=self._ours, sha256_length=MAC_LENGTH)

    def response(self, transaction: bytes, mapped: TransportAddress) -> bytes:
        """Encode the answer to a probe that came from `mapped`."""
        return encode(
            BINDING,
            MessageClass.SUCCESS,
            transaction,
            [XOR_MAPPED_ADDRESS((mapped[0].partition("%")[0], mapped[1]))],
            integrity_sha256=self._ours,
            sha256_length=MAC_LENGTH,
        )

    def read(self, data: bytes) -> Probe | None:
        """Decode a probe or an answer of the peer; None for any other datagram."""
        if len(data) > MAX_PROBE:
            return None
        try:
            message = decode(data)
            if message.method != BINDING or not message.verify_sha256(self._theirs, at_least=MAC_LENGTH):
                return None
            if message.message_class is MessageClass.REQUEST:
                return Probe(ProbeKind.REQUEST, message.transaction_id, None)
            if message.message_class is MessageClass.SUCCESS:
                return Probe(ProbeKind.RESPONSE, message.transaction_id, message.get(XOR_MAPPED_ADDRESS))
        except StunMalformed:
            pass
        return None
