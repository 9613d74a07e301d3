"""The topic of a node's key record at MQTT brokers, and what is published there.  No I/O.

A broker lets many clients read, and one wildcard subscription reads every topic below a level.  So neither the topic
nor what is retained there shows whose it is.  Both are derived from the public key by a one-way function: a client that
knows the peer id finds the topic and decrypts the record.  For anybody else the topic is a pseudonym that appears and
disappears.

    topic      [<path of the URL>/]warpgate-trio/1/key/<tag, 32 hexadecimal digits>
    published  version u8 = 1 | nonce, 12 | ChaCha20-Poly1305 of the key record, the version authenticated with it

*Tag* and cipher key are HKDF-SHA256 of the Ed25519 public key, info ``warpgate-trio key topic v1`` + NUL + ``tag`` or
``seal``.  The cipher only hides the record: anybody who knows the peer id can publish there, too.  The record's own
signature shows that it is the owner's (`address.key_record`).
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
    """The topic of a key's record.

    Args:
      prefix: the prefix of all topics (`channel.check_mqtt_url`).
      public_key: the Ed25519 key, 32 bytes.

    Attributes:
      name: the topic.
      public_key: as it was given.
    """

    def __init__(self, prefix: str, public_key: bytes) -> None:
        self.public_key: Final = public_key
        self.name: Final = f"{prefix}warpgate-trio/1/key/{_derive(public_key, b'tag', _TAG_LENGTH).hex()}"
        self._cipher = ChaCha20Poly1305(_derive(public_key, b"seal", 32))

    def seal(self, record: bytes, nonce: bytes) -> bytes:
        """The payload to publish for a record; `nonce`: 12 random bytes, used once."""
        return _VERSION + nonce + self._cipher.encrypt(nonce, record, _VERSION)

    def open(self, published: bytes) -> bytes | None:
        """The record in a published payload, not verified yet; None: there is none."""
        if not _HEAD_LENGTH < len(published) <= _MAX_SEALED or published[:1] != _VERSION:
            return None
        try:
            return self._cipher.decrypt(published[1:_HEAD_LENGTH], published[_HEAD_LENGTH:], _VERSION)
        except InvalidTag:
            return None


def _derive(public_key: bytes, purpose: bytes, length: int) -> bytes:
    return HKDF(hashes.SHA256(), length, salt=None, info=_CONTEXT + b"\0" + purpose).derive(public_key)
