"""The packets by which two peers look for a way: STUN Binding messages under a key of the session.  No I/O.

They are STUN (RFC 8489), so that they pass where STUN passes and one owner of a socket can tell them from QUIC by the
first byte (RFC 9443), and carry a MESSAGE-INTEGRITY-SHA256 cut to 16 bytes.  The keys come from a secret that the two
sides told each other under the seal of a signal.  Each direction has a key of its own: a packet that a NAT, or somebody
else, sends back to where it came from is not authentic there.

A request has 40 bytes and a response 52 (IPv4) or 64: with the headers of UDP and IP nothing is amplified by more than
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
"""Bytes of what is looked at at all: a probe of a later release may have a few attributes more."""


class ProbeKind(Enum):
    """Which of the two it is."""

    REQUEST = "request"
    RESPONSE = "response"


@final
@dataclass(frozen=True, slots=True)
class Probe:
    """An authentic packet of the peer's; `mapped` is where the peer saw us, in a response."""

    kind: ProbeKind
    transaction: bytes
    mapped: TransportAddress | None


@final
class ProbeCodec:
    """Makes our probes and reads the peer's.

    Args:
      secret: `SECRET_LENGTH` bytes that the two sides share.
      initiator: which of the two we are.
    """

    def __init__(self, secret: bytes, *, initiator: bool) -> None:
        if len(secret) != SECRET_LENGTH:
            raise ValueError(f"a probe secret has {SECRET_LENGTH} bytes, not {len(secret)}")
        keys = [
            hmac.digest(secret, b"warpgate-trio probe v1 " + side, "sha256") for side in (b"initiator", b"responder")
        ]
        self._ours, self._theirs = keys if initiator else reversed(keys)

    def request(self, transaction: bytes) -> bytes:
        """A probe."""
        return encode(BINDING, MessageClass.REQUEST, transaction, integrity_sha256=self._ours, sha256_length=MAC_LENGTH)

    def response(self, transaction: bytes, mapped: TransportAddress) -> bytes:
        """The answer to a probe that came from `mapped`."""
        return encode(
            BINDING,
            MessageClass.SUCCESS,
            transaction,
            [XOR_MAPPED_ADDRESS((mapped[0].partition("%")[0], mapped[1]))],
            integrity_sha256=self._ours,
            sha256_length=MAC_LENGTH,
        )

    def read(self, data: bytes) -> Probe | None:
        """The peer's probe or answer in a datagram; None for whatever else it may be."""
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
