"""The STUN codec: the RFCs' test vectors, properties, hostile bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio.errors import StunError, StunMalformed
from warpgate_trio.stun.codec import (
    ALTERNATE_SERVER,
    BINDING,
    CHANGE_REQUEST,
    ERROR_CODE,
    FINGERPRINT,
    HEADER_LENGTH,
    MAPPED_ADDRESS,
    MAX_ATTRIBUTES,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    NONCE,
    OTHER_ADDRESS,
    PADDING,
    REALM,
    RESPONSE_ORIGIN,
    RESPONSE_PORT,
    SOFTWARE,
    UNKNOWN_ATTRIBUTES,
    USERHASH,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    Attribute,
    ChangeRequest,
    ErrorCode,
    MessageClass,
    StreamReader,
    decode,
    encode,
    long_term_key,
    looks_like_stun,
    opaque,
)

TID = bytes(range(12))
KNOWN: tuple[Attribute[Any], ...] = (
    MAPPED_ADDRESS,
    CHANGE_REQUEST,
    USERNAME,
    MESSAGE_INTEGRITY,
    ERROR_CODE,
    UNKNOWN_ATTRIBUTES,
    REALM,
    NONCE,
    MESSAGE_INTEGRITY_SHA256,
    USERHASH,
    XOR_MAPPED_ADDRESS,
    PADDING,
    RESPONSE_PORT,
    SOFTWARE,
    ALTERNATE_SERVER,
    FINGERPRINT,
    RESPONSE_ORIGIN,
    OTHER_ADDRESS,
)

# -- the RFCs' vectors -------------------------------------------------------------------------------------------------

PASSWORD = b"VOkJxbRl1RmTxUk/WvJxBt"
MATRIX = "\u30de\u30c8\u30ea\u30c3\u30af\u30b9"
VECTORS_TID = bytes.fromhex("b7e7a701bc34d686fa87dfae")

REQUEST = bytes.fromhex(  # RFC 5769 §2.1
    "00010058 2112a442 b7e7a701 bc34d686 fa87dfae 80220010 5354554e 20746573 7420636c 69656e74 00240004 6e0001ff"
    "80290008 932ff9b1 51263b36 00060009 6576746a 3a683676 59202020 00080014 9aeaa70c bfd8cb56 781ef2b5 b2d3f249"
    "c1b571a2 80280004 e57a3bcf"
)
RESPONSE_4 = bytes.fromhex(  # §2.2
    "0101003c 2112a442 b7e7a701 bc34d686 fa87dfae 8022000b 74657374 20766563 746f7220 00200008 0001a147 e112a643"
    "00080014 2b91f599 fd9e90c3 8c7489f9 2af9ba53 f06be7d7 80280004 c07d4c96"
)
RESPONSE_6 = bytes.fromhex(  # §2.3
    "01010048 2112a442 b7e7a701 bc34d686 fa87dfae 8022000b 74657374 20766563 746f7220 00200014 0002a147 0113a9fa"
    "a5d3f179 bc25f4b5 bed2b9d9 00080014 a382954e 4be67bf1 1784c97c 8292c275 bfe3ed41 80280004 c8fb0b4c"
)
LONG_TERM = bytes.fromhex(  # §2.4
    "00010060 2112a442 78ad3433 c6ad72c0 29da412e 00060012 e3839ee3 8388e383 aae38383 e382afe3 82b90000 0015001c"
    "662f2f34 39396b39 35346436 4f4c3334 6f4c3946 53547679 36347341 0014000b 6578616d 706c652e 6f726700 00080014"
    "f6702465 6dd64a3e 02b8e071 2e85c9a2 8ca89666"
)
SHA256 = bytes.fromhex(  # RFC 8489 appendix B.1, as in errata 6268
    "00010090 2112a442 78ad3433 c6ad72c0 29da412e 001e0020 4a3cf38f ef6992bd a952c678 0417da0f 24819415 569e60b2"
    "05c46e41 407f1704 00150029 6f624d61 744a6f73 32414141 43662f2f 3439396b 39353464 364f4c33 346f4c39 46535476"
    "79363473 41000000 0014000b 6578616d 706c652e 6f726700 001d0004 00020000 001c0020 b5c7bf00 5b6c52a2 1c51c5e8"
    "92f81924 136296cb 927c4314 9309278c c6518e65"
)
PASSWORD_ALGORITHM = opaque(0x001D, "PASSWORD-ALGORITHM")  # defined here, since TURN defines its own


def test_rfc5769_request() -> None:
    message = decode(REQUEST)
    assert (message.method, message.message_class) == (BINDING, MessageClass.REQUEST)
    assert message.transaction_id == VECTORS_TID
    assert message.get(SOFTWARE) == "STUN test client"
    assert message.get(USERNAME) == "evtj:h6vY"
    assert message.verify(PASSWORD)
    assert not message.verify(b"another")
    assert not message.verify_sha256(PASSWORD)
    assert message.unknown_required(KNOWN) == (0x0024,)  # PRIORITY, of ICE; its ICE-CONTROLLED is optional


@pytest.mark.parametrize(
    ("data", "mapped"),
    [(RESPONSE_4, ("192.0.2.1", 32853)), (RESPONSE_6, ("2001:db8:1234:5678:11:2233:4455:6677", 32853))],
)
def test_rfc5769_responses(data: bytes, mapped: tuple[str, int]) -> None:
    message = decode(data)
    assert (message.method, message.message_class) == (BINDING, MessageClass.SUCCESS)
    assert message.get(SOFTWARE) == "test vector"
    assert message.get(XOR_MAPPED_ADDRESS) == mapped
    assert message.get(MAPPED_ADDRESS) is None
    assert message.verify(PASSWORD)
    assert message.unknown_required(KNOWN) == ()


def test_rfc5769_long_term_request_both_ways() -> None:
    message = decode(LONG_TERM)
    key = long_term_key(MATRIX, "example.org", "TheMatrIX")
    assert message.get(USERNAME) == MATRIX
    assert message.verify(key)
    nonce = message.get(NONCE)
    assert nonce == "f//499k954d6OL34oL9FSTvy64sA"
    attributes = [USERNAME(MATRIX), NONCE(nonce), REALM("example.org")]
    assert encode(BINDING, MessageClass.REQUEST, message.transaction_id, attributes, integrity=key) == LONG_TERM


def test_rfc8489_request_with_sha256_both_ways() -> None:
    message = decode(SHA256)
    key = long_term_key(MATRIX, "example.org", "TheMatrIX", sha256=True)
    assert message.verify_sha256(key)
    assert not message.verify_sha256(long_term_key(MATRIX, "example.org", "TheMatrIX"))
    nonce, userhash = message.get(NONCE), message.get(USERHASH)
    assert nonce is not None
    assert userhash is not None
    attributes = [USERHASH(userhash), NONCE(nonce), REALM("example.org"), PASSWORD_ALGORITHM(b"\0\2\0\0")]
    assert encode(BINDING, MessageClass.REQUEST, message.transaction_id, attributes, integrity_sha256=key) == SHA256


def test_golden_bytes_of_rfc5780() -> None:
    attributes = [
        CHANGE_REQUEST(ChangeRequest(ip=True, port=True)),
        RESPONSE_PORT(0x1234),
        RESPONSE_ORIGIN(("192.0.2.1", 3478)),
        OTHER_ADDRESS(("192.0.2.2", 3479)),
        PADDING(b"\xaa" * 5),
        ALTERNATE_SERVER(("2001:db8::1", 1)),
        UNKNOWN_ATTRIBUTES((0x26, 0x27)),
        ERROR_CODE(ErrorCode(420, "no")),
    ]
    assert encode(BINDING, MessageClass.ERROR, TID, attributes, fingerprint=True) == bytes.fromhex(
        "01110068 2112a442 00010203 04050607 08090a0b 00030004 00000006 00270004 12340000"
        "802b0008 00010d96 c0000201 802c0008 00010d97 c0000202 00260005 aaaaaaaa aa000000"
        "80230014 00020001 20010db8 00000000 00000000 00000001 000a0004 00260027 00090006 00000414 6e6f0000"
        "80280004 82f1ed17"
    )


# -- properties --------------------------------------------------------------------------------------------------------

addresses = st.tuples(st.ip_addresses().map(str), st.integers(0, 65535))
VALUES: dict[Attribute[Any], st.SearchStrategy[Any]] = {
    MAPPED_ADDRESS: addresses,
    XOR_MAPPED_ADDRESS: addresses,
    OTHER_ADDRESS: addresses,
    CHANGE_REQUEST: st.builds(ChangeRequest, ip=st.booleans(), port=st.booleans()),
    USERNAME: st.text(max_size=100),
    SOFTWARE: st.text(max_size=100),
    ERROR_CODE: st.builds(ErrorCode, st.integers(300, 699), st.just("why")),
    UNKNOWN_ATTRIBUTES: st.lists(st.integers(0, 65535), max_size=9).map(tuple),
    PADDING: st.binary(max_size=99),
    RESPONSE_PORT: st.integers(0, 65535),
}
filled = st.lists(st.sampled_from(list(VALUES)), max_size=8, unique_by=id).flatmap(
    lambda kinds: st.tuples(*(st.tuples(st.just(kind), VALUES[kind]) for kind in kinds))
)
keys = st.none() | st.binary(max_size=70)


@pytest.mark.slow("Hypothesis reads its table of Unicode first")
@settings(max_examples=40)
@given(
    method=st.integers(0, 0xFF),
    message_class=st.sampled_from(MessageClass),
    tid=st.binary(min_size=12, max_size=12),
    values=filled,
    key=keys,
    key256=keys,
    sha256_length=st.sampled_from([16, 20, 24, 28, 32]),
    fingerprint=st.booleans(),
)
def test_what_is_encoded_is_decoded(
    method: int,
    message_class: MessageClass,
    tid: bytes,
    values: tuple[tuple[Attribute[Any], Any], ...],
    key: bytes | None,
    key256: bytes | None,
    sha256_length: int,
    fingerprint: bool,
) -> None:
    data = encode(
        method,
        message_class,
        tid,
        [kind(value) for kind, value in values],
        integrity=key,
        integrity_sha256=key256,
        sha256_length=sha256_length,
        fingerprint=fingerprint,
    )
    assert looks_like_stun(data)
    message = decode(data)
    assert (message.method, message.message_class, message.transaction_id) == (method, message_class, tid)
    assert all(message.get(kind) == value for kind, value in values)
    assert message.verify(key or b"") is (key is not None)
    assert message.verify_sha256(key256 or b"", at_least=sha256_length) is (key256 is not None)
    assert message.verify_sha256(key256 or b"") is (key256 is not None and sha256_length == 32)
    assert StreamReader().feed(data + data[:30]) == [data, *([data] if len(data) <= 30 and data[:30] == data else [])]


@given(
    st.binary(max_size=200)
    | st.binary(max_size=200).map(lambda tail: b"\1\1" + len(tail).to_bytes(2, "big") + REQUEST[4:20] + tail)
    | st.tuples(st.sampled_from([REQUEST, RESPONSE_4, SHA256]), st.integers(0, 2000), st.integers(0, 255)).map(
        lambda t: bytes(b ^ (t[2] if at == t[1] % len(t[0]) else 0) for at, b in enumerate(t[0]))
    )
)
def test_hostile_bytes_raise_stun_errors_alone(data: bytes) -> None:
    try:
        message = decode(data)
    except StunError:
        return
    for attribute in KNOWN:
        try:
            message.get(attribute)
        except StunMalformed:
            continue
    message.verify(b"")
    message.verify_sha256(b"")
    message.unknown_required(KNOWN)


@pytest.mark.parametrize("data", [REQUEST, RESPONSE_4, RESPONSE_6, SHA256], ids=["request", "v4", "v6", "sha256"])
def test_no_bit_can_change(data: bytes) -> None:
    """Neither in the bytes that a MAC covers, nor in the MAC itself."""
    key = long_term_key(MATRIX, "example.org", "TheMatrIX", sha256=True) if data is SHA256 else PASSWORD
    for at in range(len(data) - (0 if data is SHA256 else 8)):
        changed = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        try:
            message = decode(changed)
        except StunMalformed:
            continue
        assert not message.verify(key)
        assert not message.verify_sha256(key)


# -- bounds and errors -------------------------------------------------------------------------------------------------


def attribute(type_: int, value: bytes) -> bytes:
    return type_.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value + bytes(-len(value) % 4)


def message_of(*attributes: bytes, kind: bytes = b"\1\1") -> bytes:
    body = b"".join(attributes)
    return kind + len(body).to_bytes(2, "big") + b"\x21\x12\xa4\x42" + TID + body


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no STUN header"),
        (REQUEST[:19], "no STUN header"),
        (b"\x40" + REQUEST[1:], "no STUN header"),
        (REQUEST[:4] + bytes(4) + REQUEST[8:], "no STUN header"),
        (REQUEST[:-4], "length field does not match"),
        (REQUEST + b"\0", "length field does not match"),
        (b"\0\1\0\1" + REQUEST[4:20] + b"\0", "length field does not match"),
        (message_of(b"\0\6\0\5abcd"), "longer than its message"),
        (message_of(*[attribute(0x8000, b"")] * (MAX_ATTRIBUTES + 1)), "more than 64 attributes"),
        (message_of(attribute(0x8028, b"abcd")), "FINGERPRINT is wrong"),
        (REQUEST[:3] + b"\x5c" + REQUEST[4:] + attribute(0x8000, b""), "FINGERPRINT is wrong"),
        (message_of(attribute(0x8028, b"abc")), "FINGERPRINT is wrong"),
    ],
)
def test_no_message(data: bytes, said: str) -> None:
    with pytest.raises(StunMalformed, match=said):
        decode(data)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (MAPPED_ADDRESS, b""),
        (MAPPED_ADDRESS, b"\0\1\0\1abc"),
        (MAPPED_ADDRESS, b"\0\2\0\1abcd"),
        (MAPPED_ADDRESS, b"\0\3\0\1abcd"),
        (XOR_MAPPED_ADDRESS, b"\0"),
        (XOR_MAPPED_ADDRESS, b"\0\1" + bytes(18)),
        (CHANGE_REQUEST, b"\0\0\0"),
        (USERNAME, b"x" * 509),
        (USERNAME, b"\xff"),
        (ERROR_CODE, b"\0\0\4"),
        (ERROR_CODE, b"\0\0\2\0"),
        (ERROR_CODE, b"\0\0\7\0"),
        (ERROR_CODE, b"\0\0\4\x64"),
        (UNKNOWN_ATTRIBUTES, b"abc"),
        (RESPONSE_PORT, b"abc"),
        (MESSAGE_INTEGRITY, b"abc"),
        (MESSAGE_INTEGRITY_SHA256, bytes(18)),
        (USERHASH, b""),
    ],
)
def test_no_value_of_its_format(kind: Attribute[Any], value: bytes) -> None:
    message = decode(message_of(attribute(kind.type, value)))
    with pytest.raises(StunMalformed):
        message.get(kind)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (SOFTWARE, b"x" * 764),
        (SOFTWARE, "Gerät".encode("latin-1")),
        (SOFTWARE, b"srv\0\xff\xff"),
        (OTHER_ADDRESS, b""),
        (OTHER_ADDRESS, bytes(8)),
        (RESPONSE_ORIGIN, b"\0\1\0\1"),
        (RESPONSE_ORIGIN, b"\0\3\0\1abcd"),
        (ALTERNATE_SERVER, b"\0\2\0\1abcd"),
    ],
)
def test_what_may_be_ignored_is_ignored_where_it_is_malformed(kind: Attribute[Any], value: bytes) -> None:
    message = decode(message_of(attribute(kind.type, value)))
    assert message.get(kind) is None
    assert message.unknown_required(()) == ()


def test_only_the_first_of_a_type_counts() -> None:
    data = encode(BINDING, MessageClass.SUCCESS, TID, [SOFTWARE("first"), SOFTWARE("second")])
    assert decode(data).get(SOFTWARE) == "first"


def test_what_stands_behind_a_mac_is_not_there() -> None:
    """Anybody on the path could have added it."""
    for length in (20, 32):
        mac = attribute(0x0008 if length == 20 else 0x001C, bytes(length))
        message = decode(message_of(attribute(0x8022, b"in front"), mac, attribute(0x0020, bytes(8)), mac))
        assert message.get(XOR_MAPPED_ADDRESS) is None
        assert message.get(SOFTWARE) == "in front"
        assert len(message.attributes) == 2
    both = message_of(attribute(0x0008, bytes(20)), attribute(0x001C, bytes(32)), attribute(0x0008, bytes(20)))
    assert [type_ for type_, _ in decode(both).attributes] == [0x0008, 0x001C]


def test_a_truncated_mac_is_for_who_asks_for_it() -> None:
    data = encode(0xCC, MessageClass.INDICATION, TID, integrity_sha256=b"key", sha256_length=16)
    message = decode(data)
    assert message.method == 0xCC
    assert not message.verify_sha256(b"key")
    assert message.verify_sha256(b"key", at_least=16)
    short = message_of(attribute(0x001C, b""))
    assert not decode(short).verify_sha256(b"key", at_least=0)


def test_an_errors_reason_cannot_forge_log_lines() -> None:
    error = decode(message_of(attribute(0x0009, b"\0\0\4\0a\r\nb\xff"))).get(ERROR_CODE)
    assert error == ErrorCode(400, "a??b\N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize(
    "make",
    [
        lambda: encode(BINDING, MessageClass.REQUEST, b"short"),
        lambda: encode(0x100, MessageClass.REQUEST, TID),
        lambda: encode(BINDING, MessageClass.REQUEST, TID, integrity_sha256=b"", sha256_length=18),
        lambda: encode(BINDING, MessageClass.REQUEST, TID, [SOFTWARE("x" * 764)]),
        lambda: encode(BINDING, MessageClass.REQUEST, TID, [ERROR_CODE(ErrorCode(299))]),
        lambda: encode(BINDING, MessageClass.REQUEST, TID, [PADDING(bytes(40000)), PADDING(bytes(40000))]),
    ],
)
def test_what_does_not_fit_is_not_encoded(make: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        make()


# -- streams -----------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.lists(st.sampled_from([REQUEST, RESPONSE_4, message_of()]), max_size=5), st.integers(1, 50))
def test_a_stream_is_cut_into_its_messages(messages: list[bytes], size: int) -> None:
    stream = b"".join(messages)
    reader = StreamReader()
    found = [each for at in range(0, len(stream), size) for each in reader.feed(stream[at : at + size])]
    assert found == messages


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n..", b"\0\1\0\1" + REQUEST[4:20], b"\0\1\7\0" + REQUEST[4:20]]
)
def test_a_stream_of_something_else(data: bytes) -> None:
    reader = StreamReader(most=1000)
    assert reader.feed(REQUEST + data[:10]) == [REQUEST]
    with pytest.raises(StunMalformed):
        reader.feed(data[10:])


def test_a_header_alone_is_a_message() -> None:
    assert len(message_of()) == HEADER_LENGTH
    assert StreamReader(most=HEADER_LENGTH).feed(message_of()) == [message_of()]
