"""The sealed, signed envelope: golden bytes, and every way in which a signal can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.identities import ALICE, BOB, MALLORY
from warpgate_trio.address import PeerAddress
from warpgate_trio.errors import (
    SignalError,
    SignalForged,
    SignalMalformed,
    SignalMisdirected,
    SignalUnsupported,
)
from warpgate_trio.identity import Identity, seal
from warpgate_trio.servers import rendezvous_frames
from warpgate_trio.signal import (
    CORE_MESSAGES,
    MAX_SIGNAL,
    Cancel,
    ClockReply,
    Envelope,
    Failed,
    Message,
    RefusalReason,
    Refused,
    decode_payload,
    open_message,
    seal_message,
    wire_name,
)

CONTEXT = b"warpgate-trio signal v1"


def address_of(identity: Identity) -> PeerAddress:
    return PeerAddress.issue(
        identity,
        seq=1,
        issued_at=1_700_000_000,
        expires_at=1_700_086_400,
        host_salt=b"s" * 8,
        host_id=b"h" * 16,
        signals=("ws://a.example",),
    )


ALICE_ADDRESS, BOB_ADDRESS, MALLORY_ADDRESS = map(address_of, (ALICE, BOB, MALLORY))

# The golden message's body up to the address, and the part after it.
GOLDEN_HEAD = bytes.fromhex(
    "9c01aa636f72652e436c6f636bc42003a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8c42029"
    "acbae141bccaf0b22e1a94d34d0bc7361e526d0bfe12c89794bc9322966dd7c4106d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6dc4"
    "1073737373737373737373737373737373c0c4107272727272727272727272727272727202cf0000018bcfe5687b"
)
GOLDEN_TAIL = bytes.fromhex("c41281a774696d655f6d73cf0000018bcfe56800")
GOLDEN_SIGNATURE = bytes.fromhex(
    "afc8ead454f13222e0ab046373399cc02f95a3c1e92ab4e00b04414957b4e809ada593a255c9d12ac9278526a87b8185e729"
    "f4061e3bb6566cd559da304abd0a"
)
# The same message, sealed to Bob.
GOLDEN_BLOB = bytes.fromhex(
    "01172549c7bc4830a0fa47f054d3b9662bae1b1a7005e69ba09e3afa5545bca11418d166b1c8ac6ef18b8c93fe38ec966c3a"
    "86c17ec2a5eccba7a1e5265b05ebdd3787b2d574350cb78161e4c1970ab2003988d4249d6696f21e5aa723d560b42b889790"
    "d9e6fdd5d07dd79388782d67df576b3212050696ca9c58ba3ccbd608e432eb04b692f50ca4ffa168027bb72178edac5a4c30"
    "ec42e69df802412c673986766e6cd4e82a74278cfd8567f56f5bf69f6411c3f4428de2189a33bbe6e4dff9f53563ce1ea350"
    "218ea18a14ee1d6c88c13445c288261a5fbbbf8c174888bd3ec2eda9ad03db8edc5f04719838c3ce5dbb536af05eae7628f2"
    "dd7fd9f643cbb0b8149979dd5cf70dabc035a1b3f7fe5503b6209886801d1f52c778b0ed24790a3d337cfe9a3b5471102376"
    "3dce75bfd3eb68f066ddfd48481827d371e9568826670e223874091467d14d6d3f65ddd9c72558b2b92c6e03f05719ee94b5"
    "47099aa1dfcb8c5fd42831dcd3763b070bca063fcdab77122003e9571ab3fcd4c98326b1e3936a08fd64c355e56b0de03eb4"
    "ab011f0b71a0f171a796b6c8f4d908e8bdf4b1c8f38d2888c4c8013de63ab1c6455300d10e63717efa34f18ea1f10e49ce1f"
    "de8c8bf71f65995fd6e22c42cba44b106f53e49e64af"
)
GOLDEN_BODY = GOLDEN_HEAD + b"\xc4" + bytes([len(ALICE_ADDRESS.to_bytes())]) + ALICE_ADDRESS.to_bytes() + GOLDEN_TAIL


@final
class Blob(Message, frozen=True):
    data: Annotated[bytes, msgspec.Meta(max_length=MAX_SIGNAL)]


def sealed(payload: Message | None = None, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "wire_name": "core.Clock",
        "payload": payload or ClockReply(time_ms=1_700_000_000_000),
        "message_id": b"m" * 16,
        "session": b"s" * 16,
        "in_reply_to": b"r" * 16,
        "generation": 2,
        "time_ms": 1_700_000_000_123,
    }
    return seal_message(ALICE, BOB_ADDRESS, ALICE_ADDRESS, **(fields | changes))


def sealed_body(body: bytes, *, signer: Identity = ALICE, context: bytes = CONTEXT) -> bytes:
    """A message to Bob whose signature is valid, with any body."""
    return b"\x01" + seal(BOB.sealing_key, signer.sign(context, body) + body, info=CONTEXT)


def changed(**changes: object) -> bytes:
    """The golden body with some fields changed."""
    names = "version type sender receiver message_id session attempt in_reply_to generation time_ms address payload"
    fields = dict(zip(names.split(), msgspec.msgpack.decode(GOLDEN_BODY), strict=True))
    return msgspec.msgpack.encode([*(fields | changes).values()])


def check_golden(envelope: Envelope) -> None:
    header = envelope.header
    assert header.type == "core.Clock"
    assert (header.sender, header.receiver) == (ALICE.public_key, BOB.public_key)
    assert (header.message_id, header.session) == (b"m" * 16, b"s" * 16)
    assert (header.attempt, header.in_reply_to) == (None, b"r" * 16)
    assert (header.generation, header.time_ms) == (2, 1_700_000_000_123)
    assert envelope.sender_address == ALICE_ADDRESS
    assert decode_payload(envelope, ClockReply) == ClockReply(time_ms=1_700_000_000_000)


def test_golden_blob_opens() -> None:
    check_golden(open_message(BOB, GOLDEN_BLOB))


def test_sealing_gives_the_golden_plaintext() -> None:
    blob = sealed()
    assert blob[0] == 1
    assert BOB.open_sealed(blob[1:], info=CONTEXT) == GOLDEN_SIGNATURE + GOLDEN_BODY
    check_golden(open_message(BOB, blob))


def test_golden_payloads() -> None:
    golden = {
        "81a774696d655f6d7301": ClockReply(time_ms=1),
        "80": Cancel(),
        "82a6726561736f6ea462757379ab72657472795f6166746572cb3ff8000000000000": Refused(RefusalReason.BUSY, 1.5),
    }
    for text, message in golden.items():
        assert msgspec.msgpack.encode(message).hex() == text
        assert msgspec.msgpack.decode(bytes.fromhex(text), type=type(message)) == message
    assert msgspec.msgpack.encode(Failed()).hex() == "80"
    assert sorted(CORE_MESSAGES) == [
        "core.AddressUpdate",
        "core.Cancel",
        "core.Clock",
        "core.Failed",
        "core.Here",
        "core.Refused",
    ]


def test_a_refusal_of_the_future_reads_as_other() -> None:
    data = msgspec.msgpack.encode({"reason": "moon_phase", "retry_after": None, "colour": [1, 2]})
    assert msgspec.msgpack.decode(data, type=Refused) == Refused(RefusalReason.OTHER)


def test_size_limit_is_the_servers_too() -> None:
    assert MAX_SIGNAL == rendezvous_frames.MAX_PAYLOAD == 16_384


def test_largest_message() -> None:
    empty = len(sealed(Blob(bytes(300)), wire_name="t.Blob")) - 300  # from 256 on, lengths take two bytes
    room = MAX_SIGNAL - empty
    blob = sealed(Blob(bytes(room)), wire_name="t.Blob")
    assert len(blob) == MAX_SIGNAL
    assert decode_payload(open_message(BOB, blob), Blob) == Blob(bytes(room))
    with pytest.raises(ValueError, match="the message would have 16385 bytes, over the limit of 16384"):
        sealed(Blob(bytes(room + 1)), wire_name="t.Blob")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"message_id": b"short"}, "message_id|length"),
        ({"session": bytes(17)}, "length"),
        ({"attempt": b""}, "length"),
        ({"generation": -1}, "generation|>= 0"),
        ({"generation": 2**32}, "<= 4294967295"),
        ({"time_ms": -1}, ">= 0"),
        ({"time_ms": 2**53}, "<="),
        ({"wire_name": "clock"}, "<owner>.<ClassName>"),
        ({"wire_name": "core.Clöck"}, "<owner>.<ClassName>"),
        ({"wire_name": "core." + "x" * 60}, "<owner>.<ClassName>"),
    ],
)
def test_sealing_refuses_what_a_reader_would_refuse(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sealed(**change)


def test_sealing_refuses_a_foreign_address() -> None:
    with pytest.raises(ValueError, match="own_address belongs to another key"):
        seal_message(
            ALICE,
            BOB_ADDRESS,
            MALLORY_ADDRESS,
            wire_name="core.Cancel",
            payload=Cancel(),
            message_id=bytes(16),
            session=bytes(16),
            time_ms=0,
        )


def test_wire_name() -> None:
    assert wire_name("tcp_punch", Blob) == "tcp_punch.Blob"
    with pytest.raises(ValueError, match=r"not 'a b\.Blob'"):
        wire_name("a b", Blob)


# --- opening messages ---


@pytest.mark.parametrize("size", [1, 30, 112, MAX_SIGNAL + 1])
def test_wrong_size(size: int) -> None:
    with pytest.raises(SignalMalformed, match=f"a signal of {size} bytes; signals have 113 to 16384"):
        open_message(BOB, b"\x01" * size)


def test_empty() -> None:
    with pytest.raises(SignalMalformed, match="a signal of 0 bytes"):
        open_message(BOB, b"")


@pytest.mark.parametrize("size", [1, 200])
def test_a_version_of_the_future(size: int) -> None:
    with pytest.raises(SignalUnsupported, match="version 2; this release knows 1"):
        open_message(BOB, b"\x02" * size)


def test_a_version_of_the_future_inside() -> None:
    with pytest.raises(SignalUnsupported, match="version 2"):
        open_message(BOB, sealed_body(changed(version=2)))


def test_truncated() -> None:
    for length in range(113, len(GOLDEN_BLOB)):
        with pytest.raises(SignalMalformed, match="not sealed to us, or damaged"):
            open_message(BOB, GOLDEN_BLOB[:length])


def test_a_flipped_bit() -> None:
    for position in range(1, len(GOLDEN_BLOB), 7):
        damaged = bytearray(GOLDEN_BLOB)
        damaged[position] ^= 0x10
        with pytest.raises(SignalMalformed, match="not sealed to us, or damaged"):
            open_message(BOB, bytes(damaged))


def test_foreign() -> None:
    """A broker has delivered the message to the wrong mailbox."""
    with pytest.raises(SignalMalformed, match="not sealed to us"):
        open_message(MALLORY, GOLDEN_BLOB)


def test_resealed() -> None:
    """Bob seals Alice's message again for Mallory, who must not take it for a message to herself."""
    plaintext = BOB.open_sealed(GOLDEN_BLOB[1:], info=CONTEXT)
    with pytest.raises(SignalMisdirected):
        open_message(MALLORY, b"\x01" + seal(MALLORY.sealing_key, plaintext, info=CONTEXT))


def test_readdressed() -> None:
    """Bob also replaces the receiver by Mallory's key, which breaks the signature."""
    body = changed(receiver=MALLORY.public_key)
    blob = b"\x01" + seal(MALLORY.sealing_key, GOLDEN_SIGNATURE + body, info=CONTEXT)
    with pytest.raises(SignalForged, match="has not signed"):
        open_message(MALLORY, blob)


@pytest.mark.parametrize(
    "change",
    [
        {"type": "core.Cancel"},
        {"message_id": b"n" * 16},
        {"session": b"t" * 16},
        {"attempt": b"a" * 16},
        {"in_reply_to": None},
        {"generation": 3},
        {"time_ms": 1_700_000_000_124},
        {"payload": b"\x80"},
        {"address": MALLORY_ADDRESS.to_bytes()},
    ],
)
def test_the_signature_covers_every_field(change: dict[str, object]) -> None:
    body = changed(**change)
    with pytest.raises(SignalForged, match="has not signed"):
        open_message(BOB, b"\x01" + seal(BOB.sealing_key, GOLDEN_SIGNATURE + body, info=CONTEXT))


def test_a_signature_for_another_purpose() -> None:
    with pytest.raises(SignalForged, match="has not signed"):
        open_message(BOB, sealed_body(GOLDEN_BODY, context=b"warpgate-trio proof v1"))


def test_a_good_address_of_somebody_else() -> None:
    with pytest.raises(SignalForged, match="somebody else"):
        open_message(BOB, sealed_body(changed(address=MALLORY_ADDRESS.to_bytes())))


def test_a_forged_address() -> None:
    record = bytearray(ALICE_ADDRESS.to_bytes())
    record[-1] ^= 1
    with pytest.raises(SignalForged, match="forged address"):
        open_message(BOB, sealed_body(changed(address=bytes(record))))


def test_an_address_of_the_future() -> None:
    with pytest.raises(SignalUnsupported, match="address has an unsupported version"):
        open_message(BOB, sealed_body(changed(address=b"\x07" + ALICE_ADDRESS.to_bytes()[1:])))


def test_no_address() -> None:
    with pytest.raises(SignalMalformed, match="address is malformed"):
        open_message(BOB, sealed_body(changed(address=b"")))


@pytest.mark.parametrize(
    "change",
    [
        {"type": "core.Clöck"},
        {"type": "clock"},
        {"type": "core." + "x" * 60},
        {"type": 5},
        {"sender": ALICE.public_key[1:]},
        {"receiver": b""},
        {"message_id": None},
        {"session": bytes(17)},
        {"attempt": bytes(15)},
        {"in_reply_to": "text"},
        {"generation": -1},
        {"generation": 2**32},
        {"time_ms": 1.5},
        {"payload": None},
    ],
)
def test_signed_nonsense(change: dict[str, object]) -> None:
    with pytest.raises(SignalMalformed):
        open_message(BOB, sealed_body(changed(**change)))


def test_invalid_utf8_and_deep_nesting() -> None:
    """msgspec raises none of its own errors for these."""
    with pytest.raises(SignalMalformed):
        open_message(BOB, sealed_body(GOLDEN_BODY.replace(b"core.Clock", b"core.\xff\xff\xff\xff\xff")))
    nested = b"\x9d" + GOLDEN_BODY[1:] + b"\x91" * 15_000 + b"\xc0"
    with pytest.raises(SignalMalformed):
        open_message(BOB, sealed_body(nested))


def test_fields_of_the_future_are_ignored() -> None:
    body = b"\x9e" + GOLDEN_BODY[1:] + msgspec.msgpack.encode(None) + msgspec.msgpack.encode({"new": [1, 2]})
    check_golden(open_message(BOB, sealed_body(body)))


def test_which_process_is_meant_comes_behind_what_older_releases_read() -> None:
    instance = bytes(range(8))
    blob = sealed(instance=instance)
    assert BOB.open_sealed(blob[1:], info=CONTEXT)[64:] == b"\x9d" + GOLDEN_BODY[1:] + b"\xc4\x08" + instance
    assert open_message(BOB, blob).header.instance == instance
    assert open_message(BOB, GOLDEN_BLOB).header.instance is None
    for wrong in (bytes(7), bytes(9), "instance", 1):
        body = b"\x9d" + GOLDEN_BODY[1:] + msgspec.msgpack.encode(wrong)
        with pytest.raises(SignalMalformed):
            open_message(BOB, sealed_body(body))


def test_the_payload_is_decoded_on_request_only() -> None:
    envelope = open_message(BOB, sealed_body(changed(payload=b"\xc1 no msgpack")))
    with pytest.raises(SignalMalformed, match="a payload that is not a valid ClockReply"):
        decode_payload(envelope, ClockReply)


def test_a_payload_that_is_nested_too_deep() -> None:
    payload = b"\x82\xa7time_ms\x01\xa1x" + b"\x91" * 15_000 + b"\xc0"
    with pytest.raises(SignalMalformed):
        decode_payload(open_message(BOB, sealed_body(changed(payload=payload))), ClockReply)


def _fails_cleanly(data: bytes, wrap: Callable[[bytes], bytes]) -> None:
    try:
        open_message(BOB, wrap(data))
    except SignalError:
        pass
    else:
        pytest.fail("nobody signed this")


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=300))
def test_hostile_blobs(data: bytes) -> None:
    _fails_cleanly(data, lambda data: data)
    _fails_cleanly(data, lambda data: b"\x01" + data)


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=300))
def test_hostile_plaintexts(data: bytes) -> None:
    _fails_cleanly(data, lambda data: b"\x01" + seal(BOB.sealing_key, data, info=CONTEXT))


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=300), st.integers(0, len(GOLDEN_BODY)), st.integers(0, 20))
def test_hostile_signed_bodies(data: bytes, position: int, cut: int) -> None:
    body = GOLDEN_BODY[:position] + data + GOLDEN_BODY[position + cut :]
    with suppress(SignalError):
        open_message(BOB, sealed_body(body))


@settings(deadline=None, max_examples=50)
@given(
    st.binary(min_size=16, max_size=16),
    st.none() | st.binary(min_size=16, max_size=16),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**53 - 1),
    st.binary(max_size=1000),
)
def test_round_trip(message_id: bytes, attempt: bytes | None, generation: int, time_ms: int, data: bytes) -> None:
    blob = sealed(
        Blob(data), wire_name="t.Blob", message_id=message_id, attempt=attempt, generation=generation, time_ms=time_ms
    )
    envelope = open_message(BOB, blob)
    assert envelope.header.message_id == message_id
    assert envelope.header.attempt == attempt
    assert envelope.header.generation == generation
    assert envelope.header.time_ms == time_ms
    assert decode_payload(envelope, Blob) == Blob(data)
