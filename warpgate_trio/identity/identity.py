"""A node's identity: one Ed25519 key, and everything that follows from it.

The node key is the only secret that a node keeps.  One 32-byte seed is a whole identity; the rest is computed from it,
and so is always consistent:

* the *peer id*, the public key in base32, by which others know the node;
* the X25519 *sealing key* (HKDF of the seed), to which others encrypt signal messages with HPKE (RFC 9180);
* the self-signed *certificate* of the node's TLS and QUIC carriers, the same bytes on every start.

Every signature is over ``context + NUL + data``, where the context names the purpose and a version.  A context holds no
NUL, so two purposes can never produce the same signed bytes (the separation of RFC 8032 section 8.5).
"""

from __future__ import annotations

import base64
import datetime
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Final, NoReturn, final

import platformdirs
from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .. import host
from ..errors import IdentityError, PeerIdError, SealError
from .private_file import PrivateFileProblem, create_private_file, read_private_file

__all__ = [
    "KEY_LENGTH",
    "PEER_ID_LENGTH",
    "SEAL_OVERHEAD",
    "SESSION_ID_LENGTH",
    "SIGNATURE_LENGTH",
    "Identity",
    "check_proof",
    "default_key_file",
    "is_usable_key",
    "key_from_peer_id",
    "peer_id_from_key",
    "prove",
    "seal",
    "verify",
]

KEY_LENGTH: Final = 32  # of seeds and of Ed25519 and X25519 public keys (RFC 8032, RFC 7748)
SIGNATURE_LENGTH: Final = 64  # of an Ed25519 signature (RFC 8032)
SESSION_ID_LENGTH: Final = 16
PEER_ID_LENGTH: Final = 52  # 256 bits in groups of 5, without padding
SEAL_OVERHEAD: Final = 48  # the encapsulated X25519 key (32) before, the AES-GCM tag (16) after the ciphertext
KNOWN_IDS: Final = 256
"""Peer ids that are cached: every Pipe has one, mostly of the same few peers, and computing it takes 10 µs."""

_SEALING_INFO: Final = b"warpgate-trio x25519 v1"
_PROOF_CONTEXT: Final = b"warpgate-trio proof v1"
_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_128_GCM)

_NOT_BEFORE: Final = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_NOT_AFTER: Final = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)  # RFC 5280 4.1.2.5: no end
_BASE32 = re.compile(r"[a-z2-7]*", re.ASCII)


@final
class Identity:
    """A node key and what it can do.  Made by `from_seed`, `generate`, `load` or `load_or_create`.

    Attributes:
      peer_id: the name of this identity, 52 characters of lower-case base32.
      public_key: the Ed25519 public key, 32 bytes.
      sealing_key: the X25519 public key that others `seal` to, 32 bytes.

    It is immutable, cannot be pickled, and its repr shows the peer id only.
    """

    __slots__ = ("_sealing", "_signing", "peer_id", "public_key", "sealing_key")

    peer_id: Final[str]
    public_key: Final[bytes]
    sealing_key: Final[bytes]
    _signing: Final[Ed25519PrivateKey]
    _sealing: Final[X25519PrivateKey]

    def __init__(self, *, _seed: bytes) -> None:
        if len(_seed) != KEY_LENGTH:
            raise ValueError(f"a seed has {KEY_LENGTH} bytes, not {len(_seed)}")
        derived = HKDF(algorithm=hashes.SHA256(), length=KEY_LENGTH, salt=None, info=_SEALING_INFO).derive(_seed)
        self._signing = Ed25519PrivateKey.from_private_bytes(_seed)
        self._sealing = X25519PrivateKey.from_private_bytes(derived)
        self.public_key = self._signing.public_key().public_bytes_raw()
        self.sealing_key = self._sealing.public_key().public_bytes_raw()
        self.peer_id = peer_id_from_key(self.public_key)

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The identity whose Ed25519 private key (RFC 8032) is these 32 bytes.  ValueError for another length."""
        return cls(_seed=seed)

    @classmethod
    def generate(cls) -> Identity:
        """A fresh identity, from the current host's entropy."""
        return cls(_seed=host.current().entropy(KEY_LENGTH))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Identity:
        """The identity in a key file (PEM, PKCS #8, not encrypted).

        Raises `IdentityError` if the file is missing or unreadable, or does not hold an Ed25519 private key.  On POSIX
        also if it belongs to another user than us or root, or its mode gives others access (`read_private_file`).
        """
        file = Path(path)
        identity = cls._load_if_present(file)
        if identity is None:
            raise IdentityError(f"there is no key file {file}")
        return identity

    @classmethod
    def load_or_create(cls, path: str | os.PathLike[str]) -> Identity:
        """The identity in a key file, which is first created (mode 0600, its directory 0700) if there is none.

        The file is created atomically.  If several processes start at once, one creates it, and all of them return the
        same identity.  Raises `IdentityError` as `load` does, and if the file cannot be created.
        """
        file = Path(path)
        identity = cls._load_if_present(file)
        if identity is not None:
            return identity
        created = cls.generate()
        try:
            made = create_private_file("key file", file, created.private_key_pem())
        except PrivateFileProblem as error:
            raise IdentityError(f"{error}; name another file, or use an ephemeral identity") from error
        if made:
            return created
        return cls.load(file)  # another process was faster: its key is this node's identity

    @classmethod
    def _load_if_present(cls, file: Path) -> Identity | None:
        try:
            pem = read_private_file("key file", file)
        except PrivateFileProblem as error:
            raise IdentityError(str(error)) from error
        if pem is None:
            return None
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except TypeError as error:  # how the library says "encrypted"
            raise IdentityError(f"the key in {file} is encrypted; a node key is stored without a password") from error
        except (ValueError, UnsupportedAlgorithm, InternalError) as error:  # the last: a key that OpenSSL cannot set up
            raise IdentityError(f"{file} does not hold a private key in PEM form") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise IdentityError(f"the key in {file} is not an Ed25519 key")
        return cls(_seed=key.private_bytes_raw())

    def sign(self, context: bytes, data: bytes) -> bytes:
        """The Ed25519 signature (64 bytes) over ``context + NUL + data``.  ValueError for a context with a NUL."""
        return self._signing.sign(_signed_bytes(context, data))

    def open_sealed(self, blob: bytes, *, info: bytes) -> bytes:
        """The plaintext of a blob that was `seal`\\ ed to our sealing key with the same `info`.

        HPKE (RFC 9180) in base mode: it does not authenticate the sender.  Raises `SealError` for a blob that was not
        sealed to us, was altered, or has another `info`.
        """
        try:
            return _SUITE.decrypt(blob, self._sealing, info)
        except (InvalidTag, ValueError) as error:
            raise SealError(f"a blob of {len(blob)} bytes is not sealed to our key, or was altered") from error

    def certificate_pem(self) -> bytes:
        """The self-signed X.509 certificate of this identity in PEM.

        It depends only on the key (serial and dates are fixed; Ed25519 signatures are deterministic), so its bytes are
        the same at every start.  Peers pin its *key*; names and dates in it mean nothing.
        """
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "warpgate-trio")])
        builder = x509.CertificateBuilder(
            issuer_name=name,
            subject_name=name,
            public_key=self._signing.public_key(),
            serial_number=1,
            not_valid_before=_NOT_BEFORE,
            not_valid_after=_NOT_AFTER,
        )
        return builder.sign(self._signing, algorithm=None).public_bytes(serialization.Encoding.PEM)

    def private_key_pem(self) -> bytes:
        """The private key in PEM (PKCS #8, not encrypted), a secret: the content of a key file, and input for TLS."""
        return self._signing.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def __repr__(self) -> str:
        return f"<Identity {self.peer_id}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an Identity holds a private key and is not pickled or copied; keep its key file instead")


_P: Final = 2**255 - 19
_ORDER_8_Y: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
# The y coordinates of the eight points of edwards25519 (RFC 8032 section 5.1) whose order divides 8.
_SMALL_ORDER_Y: Final = frozenset({1, _P - 1, 0, _ORDER_8_Y, _P - _ORDER_8_Y})


def is_usable_key(public_key: bytes) -> bool:
    """Whether a key can be an Ed25519 key of a node: 32 bytes, canonical, and not a point of small order.

    For a key of small order there are signatures that are valid for (nearly) every message, so anybody could use such
    an identity.  RFC 8032 leaves it to the protocol to refuse these keys.
    """
    if len(public_key) != KEY_LENGTH:
        return False
    y = int.from_bytes(public_key, "little") & (2**255 - 1)  # without the sign of x
    return y < _P and y not in _SMALL_ORDER_Y


def verify(public_key: bytes, signature: bytes, context: bytes, data: bytes) -> bool:
    """Whether `signature` is `Identity.sign`'s over the same context and data, by the owner of `public_key`.

    Every argument but the context may be untrusted: invalid keys and signatures of any length give False, never an
    exception.  So does a key of small order (`is_usable_key`).  ValueError for a context with a NUL, which is a mistake
    of the caller.
    """
    signed = _signed_bytes(context, data)
    if not is_usable_key(public_key):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, signed)
    except (InvalidSignature, ValueError):  # ValueError: the key has another length
        return False
    return True


def seal(sealing_key: bytes, plaintext: bytes, *, info: bytes) -> bytes:
    """Encrypt to an X25519 public key; only its owner can decrypt (`Identity.open_sealed` with the same `info`).

    HPKE (RFC 9180): X25519, HKDF-SHA256, AES-128-GCM, base mode, single shot.  The result is `SEAL_OVERHEAD` bytes
    longer than the plaintext.  Raises `SealError` for a key of another length and for a low-order point (RFC 7748
    section 6.1), with which anybody could open the blob.
    """
    try:
        return _SUITE.encrypt(plaintext, X25519PublicKey.from_public_bytes(sealing_key), info)
    except ValueError as error:
        raise SealError("the peer's sealing key is not a usable X25519 public key") from error


@lru_cache(maxsize=KNOWN_IDS)
def peer_id_from_key(key: bytes) -> str:
    """The peer id of a 32-byte Ed25519 public key: lower-case base32 (RFC 4648) without padding, 52 characters.

    Raises `PeerIdError` for another length.
    """
    if len(key) != KEY_LENGTH:
        raise PeerIdError(f"a public key has {KEY_LENGTH} bytes, not {len(key)}")
    return base64.b32encode(key).decode("ascii").rstrip("=").lower()


def key_from_peer_id(text: str) -> bytes:
    """The Ed25519 public key that a peer id stands for; the inverse of `peer_id_from_key`.

    Only the canonical form is accepted, so that equal keys have equal ids.  Raises `PeerIdError`, which says what is
    wrong.
    """
    if len(text) != PEER_ID_LENGTH:
        raise PeerIdError(f"a peer id has {PEER_ID_LENGTH} characters, not {len(text)}")
    if not _BASE32.fullmatch(text):
        if text.isascii() and _BASE32.fullmatch(text.lower()):
            raise PeerIdError("a peer id is written in lower case")
        raise PeerIdError("a peer id consists of the letters a to z and the digits 2 to 7")
    key = base64.b32decode(text.upper() + "====")
    if peer_id_from_key(key) != text:  # 52 characters hold 260 bits: the last 4 have to be zero
        raise PeerIdError("the last character of the peer id is wrong; was it copied whole?")
    if not is_usable_key(key):
        raise PeerIdError("this peer id stands for a weak key (small order or not canonical), which anybody could use")
    return key


def default_key_file() -> Path:
    """The file of this user's node key, unless the configuration names another one.

    Raises `IdentityError` for a user without a home directory, as in a container with an arbitrary uid.
    """
    try:
        return platformdirs.user_config_path("warpgate-trio", appauthor=False) / "node.key"
    except RuntimeError as error:  # HOME is not set, and the system does not know the user
        raise IdentityError(
            "there is no home directory to keep the node's key in; set HOME, name a file with identity.key_file "
            "(--key-file, WARPGATE_IDENTITY_KEY_FILE), or use identity.ephemeral"
        ) from error


def prove(identity: Identity, *, server_key: bytes, session_id: bytes) -> bytes:
    """The client's proof of its identity inside a carrier: a 64-byte signature.

    It signs the Ed25519 key of the carrier's server end, which the client has pinned, and the 16-byte session id.
    Only that server can read it, so it needs neither a challenge nor a time.  ValueError if a length is wrong.
    """
    if len(server_key) != KEY_LENGTH or len(session_id) != SESSION_ID_LENGTH:
        raise ValueError(f"a proof is over a {KEY_LENGTH}-byte key and a {SESSION_ID_LENGTH}-byte session id")
    return identity.sign(_PROOF_CONTEXT, server_key + session_id)


def check_proof(*, client_key: bytes, server_key: bytes, session_id: bytes, signature: bytes) -> bool:
    """Whether `signature` is `prove`'s, by the owner of `client_key`, for this server and session.  Never raises."""
    if len(server_key) != KEY_LENGTH or len(session_id) != SESSION_ID_LENGTH:
        return False
    return verify(client_key, signature, _PROOF_CONTEXT, server_key + session_id)


def _signed_bytes(context: bytes, data: bytes) -> bytes:
    if b"\0" in context:
        raise ValueError("a signature context holds no NUL byte: NUL ends it")
    return context + b"\0" + data
