"""The topic of a node's key record at MQTT brokers, and what is published there.  No I/O.

A broker lets many read, and one filter with a wildcard reads every topic below a level.  So neither the topic nor what
is retained there tells whose it is: both are made of the peer id, one way, and who knows that id finds the topic and
opens what is there.  To anybody else it is a pseudonym that comes and goes.

    topic      [<path of the URL>/]warpgate-trio/1/key/<tag, 32 hexadecimal digits>
    published  version u8 = 1 | nonce, 12 | ChaCha20-Poly1305 of the key record, the version authenticated with it

*Tag* and cipher key are HKDF-SHA256 of the Ed25519 public key, info ``warpgate-trio key topic v1`` + NUL + ``tag`` or
``seal``.  The cipher hides, and vouches for nothing: whoever knows the peer id can publish there as well as its owner.
That a record is the owner's, its signature tells (`address.key_record`).
"""

from __future__ import annotations

from typing import Final, final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ...address import MAX_KEY_RECORD

__all__ = ["NONCE_LENGTH", "KeyTopic"]

_CONTEXT: Final = b"warpgate-trio key topic v1"
_VERSION: Final = b"\x01"
_TAG_LENGTH: Final = 16
NONCE_LENGTH: Final = 12  # of ChaCha20-Poly1305
_HEAD_LENGTH: Final = 1 + NONCE_LENGTH
_MAX_SEALED: Final = _HEAD_LENGTH + MAX_KEY_RECORD + 16  # what ChaCha20-Poly1305 adds


@final
class KeyTopic:
    """Where the record of a key is; `prefix`: what the broker's URL puts before all topics, or ``""``.

    Attributes:
      name: the topic.
      public_key: whose it is.
    """

    def __init__(self, prefix: str, public_key: bytes) -> None:
        self.public_key: Final = public_key
        self.name: Final = f"{prefix}warpgate-trio/1/key/{_derive(public_key, b'tag', _TAG_LENGTH).hex()}"
        self._cipher = ChaCha20Poly1305(_derive(public_key, b"seal", 32))

    def seal(self, record: bytes, nonce: bytes) -> bytes:
        """What to publish; `nonce`: 12 random bytes."""
        return _VERSION + nonce + self._cipher.encrypt(nonce, record, _VERSION)

    def open(self, published: bytes) -> bytes | None:
        """The record in what was published, not judged yet; None: there is none."""
        if not _HEAD_LENGTH < len(published) <= _MAX_SEALED or published[:1] != _VERSION:
            return None
        try:
            return self._cipher.decrypt(published[1:_HEAD_LENGTH], published[_HEAD_LENGTH:], _VERSION)
        except InvalidTag:
            return None


def _derive(public_key: bytes, purpose: bytes, length: int) -> bytes:
    return HKDF(hashes.SHA256(), length, salt=None, info=_CONTEXT + b"\0" + purpose).derive(public_key)
