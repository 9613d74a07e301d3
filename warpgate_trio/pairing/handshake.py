"""The pairing handshake, by which two nodes that know the same code learn each other's identity.  No I/O.

    claimer -> offerer  HELLO    version u8 = 1, kind u8 = 1, key exchange 33
    offerer -> claimer  REPLY    version u8 = 1, kind u8 = 2, key exchange 33
    claimer -> offerer  PROOF    version u8 = 1, kind u8 = 3, proof 32, sealed 17..
    offerer -> claimer  PROOF    version u8 = 1, kind u8 = 4, proof 32, sealed 17..

HKDF-SHA256 derives each side's keys from the exchanged key and the hash of HELLO and REPLY.  A *proof* is an
HMAC-SHA256 by such a key; it proves that the sender knows the code.  *Sealed*, with ChaCha20-Poly1305, are a signature
and the sender's address.  The signature is by the key that the address names, over the address and a binding value,
which is also derived from the exchange.  So a party in between reads nothing, and the address belongs to the side that
knows the code.

The claimer proves first, and the offerer sends its proof only after a correct one: so the offerer sees each wrong
guess, and counts it.  The proof precedes the sealed part because ChaCha20-Poly1305 is not key-committing: a ciphertext
can be made to open under several keys.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..address import PeerAddress
from ..errors import AddressError, CodeRefused, RemoteProtocolError
from ..identity import SIGNATURE_LENGTH, Identity, verify
from ..servers.mailbox_frames import Outcome
from .code import Code
from .pake import ELEMENT_LENGTH, Exchange

__all__ = ["Claimer", "Offerer", "Paired", "Us"]

VERSION: Final = 1
_CONTEXT: Final = b"warpgate-trio pairing v1"
_PROOF_LENGTH: Final = 32  # of HMAC-SHA256
_NONCE: Final = bytes(12)  # each key seals one message


class _Kind(enum.IntEnum):
    HELLO = 1
    REPLY = 2
    CLAIMERS_PROOF = 3
    OFFERERS_PROOF = 4


@final
@dataclass(frozen=True, slots=True)
class Paired:
    """The other side of a pairing; it has proven that it knows the code and owns this key.

    Attributes:
      peer_id: its peer id.
      address: its address, signed a moment ago; its text is ``str(paired.address)``.
    """

    peer_id: str
    address: PeerAddress


@final
class Us(NamedTuple):
    """This side: its key, a function that returns its present address, and a source of entropy."""

    identity: Identity
    address: Callable[[], PeerAddress]
    entropy: Callable[[int], bytes]


@final
class _Keys:
    """The keys that both sides derive from an exchange."""

    def __init__(self, key: bytes, hello: bytes, reply: bytes) -> None:
        self._key: Final = key
        self._transcript: Final = hashlib.sha256(hello + reply).digest()
        self._binding: Final = self._derive(b"binding", 32)

    def prove(self, kind: _Kind, us: Us) -> bytes:
        """The PROOF message of this side."""
        record = us.address().to_bytes()
        signature = us.identity.sign(_CONTEXT, bytes([kind]) + self._binding + record)
        proof = self._proof(kind)
        sealed = ChaCha20Poly1305(self._derive(bytes([kind]) + b"seal", 32)).encrypt(_NONCE, signature + record, proof)
        return bytes([VERSION, kind]) + proof + sealed

    def check(self, kind: _Kind, data: bytes) -> Paired | None:
        """Verify the PROOF message of the other side.  Returns who it is, or None if the message is not valid."""
        proof, sealed = data[2 : 2 + _PROOF_LENGTH], data[2 + _PROOF_LENGTH :]
        if data[:2] != bytes([VERSION, kind]) or not hmac.compare_digest(proof, self._proof(kind)):
            return None
        try:
            opened = ChaCha20Poly1305(self._derive(bytes([kind]) + b"seal", 32)).decrypt(_NONCE, sealed, proof)
            signature, record = opened[:SIGNATURE_LENGTH], opened[SIGNATURE_LENGTH:]
            address = PeerAddress.from_bytes(record)
        except (InvalidTag, ValueError, AddressError):
            return None
        if not verify(address.public_key, signature, _CONTEXT, bytes([kind]) + self._binding + record):
            return None
        return Paired(address.peer_id, address)

    def _proof(self, kind: _Kind) -> bytes:
        return hmac.digest(self._derive(bytes([kind]) + b"proof", 32), self._transcript, hashlib.sha256)

    def _derive(self, purpose: bytes, length: int) -> bytes:
        kdf = HKDF(hashes.SHA256(), length, salt=self._transcript, info=_CONTEXT + b"\0" + purpose)
        return kdf.derive(self._key)


@final
class Claimer:
    """The side that accepts a code.  `receive` takes the other side's messages, one at a time.

    Attributes:
      hello: the first message to send.
    """

    def __init__(self, code: Code, us: Us) -> None:
        self._us: Final = us
        self._exchange: Final = Exchange(code.password, offers=False, entropy=us.entropy)
        self._keys: _Keys | None = None
        self.hello: Final = bytes([VERSION, _Kind.HELLO]) + self._exchange.message

    def receive(self, data: bytes) -> bytes | Paired:
        """Take a message.  Returns the message to answer with, or at the end who the other side is.

        Raises:
          CodeRefused: the other side has failed to prove that it knows the code.
          RemoteProtocolError: the message is not the one that is due.
        """
        if self._keys is None:
            reply = _element(data, _Kind.REPLY)
            self._keys = _Keys(self._exchange.finish(reply), self.hello, data)
            return self._keys.prove(_Kind.CLAIMERS_PROOF, self._us)
        paired = self._keys.check(_Kind.OFFERERS_PROOF, data)
        if paired is None:
            raise CodeRefused(Outcome.WRONG, "the other side does not know the code")
        return paired


@final
class Offerer:
    """One try at the code that this side offers.  `receive` takes the claimer's messages, one at a time."""

    def __init__(self, code: Code, us: Us) -> None:
        self._code: Final = code
        self._us: Final = us
        self._keys: _Keys | None = None

    def receive(self, data: bytes) -> bytes | Paired:
        """Take a message.  Returns the message to answer with, or at the end who the claimer is; answer then with
        `prove`.

        Raises:
          CodeRefused: the try has failed: `Outcome.WRONG`, to be counted, or `Outcome.OWN_KEY`.
          RemoteProtocolError: the first message is no HELLO.
        """
        if self._keys is None:
            theirs = _element(data, _Kind.HELLO)
            exchange = Exchange(self._code.password, offers=True, entropy=self._us.entropy)
            reply = bytes([VERSION, _Kind.REPLY]) + exchange.message
            self._keys = _Keys(exchange.finish(theirs), data, reply)
            return reply
        paired = self._keys.check(_Kind.CLAIMERS_PROOF, data)
        if paired is None:
            raise CodeRefused(Outcome.WRONG, "somebody tried a wrong code")
        if paired.address.public_key == self._us.identity.public_key:
            raise CodeRefused(Outcome.OWN_KEY, "somebody with our own key tried the code")
        return paired

    def prove(self) -> bytes:
        """The last message, for a claimer that has proven that it knows the code."""
        assert self._keys is not None, "after `receive` has told who it is"
        return self._keys.prove(_Kind.OFFERERS_PROOF, self._us)


def _element(data: bytes, kind: _Kind) -> bytes:
    if len(data) != 2 + ELEMENT_LENGTH or data[:2] != bytes([VERSION, kind]):
        raise RemoteProtocolError(f"expected a pairing message {kind.name} of version {VERSION}")
    return data[2:]
