"""The envelope of a signal: signed by the sender, sealed to the receiver; no I/O, no clock.

    blob      = version u8 (1) | HPKE(to the receiver's X25519 key, info ``warpgate-trio signal v1``) of plaintext
    plaintext = signature 64 | body; the signature is by the sender's Ed25519 key over the body,
                context ``warpgate-trio signal v1``
    body      = msgpack array [version, type, sender, receiver, message id, session, attempt, in reply to, generation,
                time, the sender's PeerAddress, payload, the receiver's instance or nothing]

A server that carries a blob learns its length.  The signature covers:

* the *receiver*, so a receiver cannot seal the body again for somebody else in the sender's name;
* type, session and time, so no part of an old message can be put into a new one;
* the carried address, which the same key has signed as well, so the address is the sender's own.

The signature does not show that a message is fresh: `warpgate_trio.signal.Inbox` judges time, replays and rates.

The payload stays undecoded until the owner of its type asks for it (`decode_payload`): a message for a plugin that is
not loaded costs no parsing.  Readers ignore fields that they do not know, at the end of the body and in payloads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, TypeVar, final

import msgspec

from ..address import PeerAddress, Recipient
from ..address.record import INSTANCE_LENGTH
from ..errors import (
    AddressError,
    AddressForged,
    AddressUnsupported,
    SealError,
    SignalForged,
    SignalMalformed,
    SignalMisdirected,
    SignalUnsupported,
)
from ..identity import Identity, seal, verify

__all__ = [
    "MAX_SIGNAL",
    "Envelope",
    "Header",
    "Message",
    "check_blob",
    "decode_payload",
    "open_message",
    "seal_message",
    "wire_name",
]

MAX_SIGNAL: Final = 16_384
"""Bytes in a whole blob: several times what a full address and a plugin's message take; every broker carries it."""
VERSION: Final = 1
MAX_TIME_MS: Final = 2**53 - 1
"""Greatest time in a stamp or a `Clock` reply, in milliseconds: every language can hold integers up to here exactly."""

_CONTEXT = b"warpgate-trio signal v1"
_SIGNATURE = 64
_SEAL_OVERHEAD = 32 + 16  # HPKE: encapsulated X25519 key, AES-GCM tag
_SHORTEST = 1 + _SEAL_OVERHEAD + _SIGNATURE
_WIRE_NAME = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_MAX_WIRE_NAME = 64


class Message(msgspec.Struct, frozen=True):
    """Base of every payload.  Subclass it with ``frozen=True``; fields are typed and bounded (`msgspec.Meta`).

    On the wire it is a msgpack map, or an array with ``array_like=True``.  A reader ignores fields that it does not
    know, so a later release may add fields that have defaults.
    """

    NAME: ClassVar[str | None] = None
    """The last part of the name on the wire, if it differs from the class name."""


_AnyMessage = TypeVar("_AnyMessage", bound=Message)

_Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Id = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
_Instance = Annotated[bytes, msgspec.Meta(min_length=INSTANCE_LENGTH, max_length=INSTANCE_LENGTH)]


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the signature covers except address and payload.

    Attributes:
      type: the message's name on the wire, ``<owner>.<ClassName>``.
      sender, receiver: Ed25519 keys, 32 bytes.
      message_id: 16 random bytes, never used twice.
      session: 16 bytes, the walk that the message belongs to.
      attempt: 16 bytes, the plugin's attempt in that walk, or None.
      in_reply_to: the `message_id` of the request, or None.
      generation: the round of the session.
      time_ms: when it was sent, in Unix milliseconds on the receiver's clock, as far as the sender knows that clock.
      instance: which of the processes that have the receiver's key is meant (`PeerAddress.instance`); None: any.
    """

    type: str
    sender: bytes
    receiver: bytes
    message_id: bytes
    session: bytes
    attempt: bytes | None = None
    in_reply_to: bytes | None = None
    generation: int = 0
    time_ms: int
    instance: bytes | None = None


@final
@dataclass(frozen=True, slots=True)
class Envelope:
    """An opened message: authentic and addressed to us; not yet known to be fresh."""

    header: Header
    sender_address: PeerAddress
    payload: bytes


class _Body(msgspec.Struct, frozen=True, array_like=True):
    version: int
    type: Annotated[str, msgspec.Meta(max_length=_MAX_WIRE_NAME)]
    sender: _Key
    receiver: _Key
    message_id: _Id
    session: _Id
    attempt: _Id | None
    in_reply_to: _Id | None
    generation: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
    time_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_MS)]
    address: bytes
    payload: bytes
    instance: _Instance | None = None


_decode_body = msgspec.msgpack.Decoder(_Body).decode


def wire_name(owner: str, message: type[Message]) -> str:
    """The name of a message type on the wire: ``<owner>.<NAME or the class's>``, at most 64 characters (ValueError)."""
    name = f"{owner}.{message.NAME or message.__name__}"
    _check_wire_name(name)
    return name


def seal_message(
    identity: Identity,
    receiver: Recipient,
    own_address: PeerAddress,
    *,
    wire_name: str,
    payload: Message,
    message_id: bytes,
    session: bytes,
    time_ms: int,
    attempt: bytes | None = None,
    in_reply_to: bytes | None = None,
    generation: int = 0,
    instance: bytes | None = None,
) -> bytes:
    """Sign a message and seal it to its receiver; the fields are those of `Header`.

    Raises:
      ValueError: a field has a wrong length or range, the address is not `identity`'s, or the blob would be over 16,384
        bytes.
      SealError: the receiver's sealing key is not a usable X25519 key.
    """
    header = Header(
        type=wire_name,
        sender=identity.public_key,
        receiver=receiver.public_key,
        message_id=message_id,
        session=session,
        attempt=attempt,
        in_reply_to=in_reply_to,
        generation=generation,
        time_ms=time_ms,
        instance=instance,
    )
    if own_address.public_key != identity.public_key:
        raise ValueError("own_address belongs to another key than identity")
    body = _encode_body(header, own_address, msgspec.msgpack.encode(payload))
    plaintext = identity.sign(_CONTEXT, body) + body
    size = 1 + _SEAL_OVERHEAD + len(plaintext)
    if size > MAX_SIGNAL:
        raise ValueError(f"the message would have {size} bytes, over the limit of {MAX_SIGNAL}")
    return bytes([VERSION]) + seal(receiver.sealing_key, plaintext, info=_CONTEXT)


def check_blob(blob: bytes) -> None:
    """Check length and version of a blob without opening it.

    It takes under a microsecond, less than a fiftieth of what opening the seal takes.

    Raises:
      SignalMalformed: over 16,384 bytes, or too short.
      SignalUnsupported: of a version that this release does not know.
    """
    if not _SHORTEST <= len(blob) <= MAX_SIGNAL:
        if blob and blob[0] != VERSION and len(blob) <= MAX_SIGNAL:
            raise _unsupported(blob[0])
        raise SignalMalformed(f"a signal of {len(blob)} bytes; signals have {_SHORTEST} to {MAX_SIGNAL}")
    if blob[0] != VERSION:
        raise _unsupported(blob[0])


def open_message(identity: Identity, blob: bytes) -> Envelope:
    """Open a received blob, and check everything about it except time and repetition.

    Raises, in the order of the checks:
      SignalMalformed: over 16,384 bytes, or too short.
      SignalUnsupported: of a version that this release does not know.
      SignalMalformed: not sealed to us, damaged, or not of the format.
      SignalForged: not signed by its sender.
      SignalMisdirected: signed for another receiver than us.
      SignalForged, SignalUnsupported, SignalMalformed: the sender's address in it is forged, of an unknown version or
        malformed; SignalForged also when that address is valid, but not the sender's.
    """
    check_blob(blob)
    try:
        plaintext = identity.open_sealed(blob[1:], info=_CONTEXT)
    except SealError as exc:
        raise SignalMalformed("a signal that is not sealed to us, or damaged") from exc
    signature, encoded = plaintext[:_SIGNATURE], plaintext[_SIGNATURE:]
    try:
        body = _decode_body(encoded)
    # ValueError: msgspec's own errors, and invalid UTF-8.  RecursionError: unknown fields that are nested too deep to
    # be skipped.
    except (ValueError, RecursionError) as exc:
        raise SignalMalformed(f"a signal with a malformed body: {exc}") from exc
    if body.version != VERSION:
        raise _unsupported(body.version)
    if not verify(body.sender, signature, _CONTEXT, encoded):
        raise SignalForged("a signal that its sender has not signed")
    if body.receiver != identity.public_key:
        raise SignalMisdirected("a signal that was signed for another receiver")
    try:
        _check_wire_name(body.type)
    except ValueError as exc:
        raise SignalMalformed(str(exc)) from exc
    header = Header(
        type=body.type,
        sender=body.sender,
        receiver=body.receiver,
        message_id=body.message_id,
        session=body.session,
        attempt=body.attempt,
        in_reply_to=body.in_reply_to,
        generation=body.generation,
        time_ms=body.time_ms,
        instance=body.instance,
    )
    return Envelope(header, _open_address(body), body.payload)


def decode_payload(envelope: Envelope, message: type[_AnyMessage]) -> _AnyMessage:
    """Decode the payload as `message`, the type that the envelope names; `SignalMalformed` if it does not fit."""
    try:
        return msgspec.msgpack.decode(envelope.payload, type=message)
    except (ValueError, RecursionError) as exc:
        raise SignalMalformed(f"a payload that is not a valid {message.__name__}: {exc}") from exc


def _encode_body(header: Header, address: PeerAddress, payload: bytes) -> bytes:
    body = _Body(
        version=VERSION,
        type=header.type,
        sender=header.sender,
        receiver=header.receiver,
        message_id=header.message_id,
        session=header.session,
        attempt=header.attempt,
        in_reply_to=header.in_reply_to,
        generation=header.generation,
        time_ms=header.time_ms,
        address=address.to_bytes(),
        payload=payload,
        instance=header.instance,
    )
    _check_wire_name(header.type)
    fields = msgspec.structs.astuple(body)
    encoded = msgspec.msgpack.encode(fields if header.instance is not None else fields[:-1])
    _decode_body(encoded)  # msgspec checks bounds only when it decodes; its ValueError names the field
    return encoded


def _open_address(body: _Body) -> PeerAddress:
    try:
        address = PeerAddress.from_bytes(body.address)
    except AddressForged as exc:
        raise SignalForged(f"a signal with a forged address: {exc}") from exc
    except AddressUnsupported as exc:
        raise SignalUnsupported(f"a signal whose sender's address has an unsupported version: {exc}") from exc
    except AddressError as exc:
        raise SignalMalformed(f"a signal whose sender's address is malformed: {exc}") from exc
    if address.public_key != body.sender:
        raise SignalForged("a signal with the address of somebody else than its sender")
    return address


def _check_wire_name(name: str) -> None:
    if len(name) > _MAX_WIRE_NAME or not _WIRE_NAME.fullmatch(name):
        raise ValueError(
            f"a message type is '<owner>.<ClassName>', ASCII, at most {_MAX_WIRE_NAME} characters; not {name[:80]!r}"
        )


def _unsupported(version: int) -> SignalUnsupported:
    return SignalUnsupported(f"a signal of version {version}; this release knows {VERSION}")
