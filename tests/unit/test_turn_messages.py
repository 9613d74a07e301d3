"""TURN's messages, ChannelData, and streams of both; the password algorithms of the long-term mechanism."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio.errors import StunMalformed
from warpgate_trio.stun.codec import Attribute, ErrorCode, MessageClass, decode, encode, opaque
from warpgate_trio.stun.credentials import (
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    PasswordAlgorithm,
    SecurityFeature,
    nonce_cookie,
    security_features,
    user_hash,
)
from warpgate_trio.turn.framing import (
    CHANNELS,
    TurnStreamReader,
    decode_channel_data,
    encode_channel_data,
    is_channel_data,
)
from warpgate_trio.turn.messages import (
    ADDITIONAL_ADDRESS_FAMILY,
    ADDRESS_ERROR_CODE,
    CHANNEL_NUMBER,
    DATA,
    DONT_FRAGMENT,
    EVEN_PORT,
    ICMP,
    LIFETIME,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    RESERVATION_TOKEN,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
    Method,
)

TID = bytes(range(12))


@pytest.mark.parametrize(
    ("attribute", "value", "data"),
    [
        (CHANNEL_NUMBER, 0x4001, "000c 0004 4001 0000"),
        (LIFETIME, 600, "000d 0004 00000258"),
        (DATA, b"abc", "0013 0003 61626300"),
        (REQUESTED_ADDRESS_FAMILY, 4, "0017 0004 01000000"),
        (REQUESTED_ADDRESS_FAMILY, 6, "0017 0004 02000000"),
        (EVEN_PORT, True, "0018 0001 80000000"),
        (EVEN_PORT, False, "0018 0001 00000000"),
        (REQUESTED_TRANSPORT, 17, "0019 0004 11000000"),
        (DONT_FRAGMENT, b"", "001a 0000"),
        (RESERVATION_TOKEN, b"12345678", "0022 0008 3132333435363738"),
        (ADDITIONAL_ADDRESS_FAMILY, 6, "8000 0004 02000000"),
        (ADDRESS_ERROR_CODE, (6, ErrorCode(440, "no")), "8001 0006 02000428 6e6f 0000"),
        (ICMP, (3, 4), "8004 0008 00000604 00000000"),
        (PASSWORD_ALGORITHM, PasswordAlgorithm.SHA256, "001d 0004 00020000"),
        (PASSWORD_ALGORITHMS, (PasswordAlgorithm.MD5, PasswordAlgorithm.SHA256), "8002 0008 00010000 00020000"),
        (XOR_PEER_ADDRESS, ("192.0.2.1", 32853), "0012 0008 0001 a147 e112a643"),
        (XOR_RELAYED_ADDRESS, ("192.0.2.1", 32853), "0016 0008 0001 a147 e112a643"),
    ],
)
def test_an_attribute_has_the_bytes_of_the_rfc(attribute: Attribute[Any], value: object, data: str) -> None:
    message = encode(Method.ALLOCATE, MessageClass.REQUEST, TID, [attribute(value)])
    assert message[20:] == bytes.fromhex(data)
    assert decode(message).get(attribute) == value


@pytest.mark.parametrize(
    ("method", "kind", "first"),
    [
        (Method.ALLOCATE, MessageClass.REQUEST, 0x0003),
        (Method.REFRESH, MessageClass.SUCCESS, 0x0104),
        (Method.SEND, MessageClass.INDICATION, 0x0016),
        (Method.DATA, MessageClass.INDICATION, 0x0017),
        (Method.CREATE_PERMISSION, MessageClass.ERROR, 0x0118),
        (Method.CHANNEL_BIND, MessageClass.REQUEST, 0x0009),
    ],
)
def test_a_method_has_the_bits_of_the_rfc(method: int, kind: MessageClass, first: int) -> None:
    message = encode(method, kind, TID)
    assert int.from_bytes(message[:2], "big") == first
    assert (decode(message).method, decode(message).message_class) == (method, kind)


@pytest.mark.parametrize(
    "attribute",
    [
        CHANNEL_NUMBER,
        LIFETIME,
        XOR_PEER_ADDRESS,
        REQUESTED_ADDRESS_FAMILY,
        EVEN_PORT,
        REQUESTED_TRANSPORT,
        RESERVATION_TOKEN,
        PASSWORD_ALGORITHM,
    ],
    ids=repr,
)
@pytest.mark.parametrize("data", [b"", b"\xff\xff", b"\xff" * 5, b"\xff" * 9])
def test_a_value_of_another_format_is_malformed(attribute: Attribute[Any], data: bytes) -> None:
    message = decode(encode(Method.ALLOCATE, MessageClass.REQUEST, TID, [opaque(attribute.type, "any")(data)]))
    with pytest.raises(StunMalformed):
        message.get(attribute)
    with pytest.raises(StunMalformed):
        message.get_all(attribute)


@pytest.mark.parametrize("attribute", [ADDITIONAL_ADDRESS_FAMILY, ADDRESS_ERROR_CODE, ICMP, PASSWORD_ALGORITHMS])
def test_one_that_may_be_ignored_is_as_if_it_were_not_there(attribute: Attribute[Any]) -> None:
    message = decode(
        encode(Method.ALLOCATE, MessageClass.REQUEST, TID, [opaque(attribute.type, "any")(b"\xff\xff\xff\xff\1")])
    )
    assert message.get(attribute) is None
    assert message.get_all(attribute) == []


def test_a_request_names_several_peers() -> None:
    peers = [("192.0.2.1", 1), ("2001:db8::1", 2), ("192.0.2.3", 0)]
    message = decode(
        encode(Method.CREATE_PERMISSION, MessageClass.REQUEST, TID, [XOR_PEER_ADDRESS(each) for each in peers])
    )
    assert message.get_all(XOR_PEER_ADDRESS) == peers
    assert message.get(XOR_PEER_ADDRESS) == peers[0]


def test_a_nonce_says_what_its_server_can_do() -> None:
    both = SecurityFeature.PASSWORD_ALGORITHMS | SecurityFeature.USERHASH
    assert nonce_cookie(both) == "obMatJos2wAAA"
    assert security_features(nonce_cookie(both) + "anything") == both
    assert security_features("obMatJos2AAAC//499k954d6OL34oL9FSTvy64sA") == 2  # as RFC 8489 says in appendix B
    for other in ("", "abc", "obMatJos2", "obMatJos2AA", "obMatJos2A=AA", "obMatJos2ä000"):
        assert security_features(other) == 0


def test_a_user_hash_is_that_of_the_rfc() -> None:
    # RFC 8489 appendix B.1.
    found = user_hash("\u30de\u30c8\u30ea\u30c3\u30af\u30b9", "example.org")
    assert found.hex() == "4a3cf38fef6992bda952c6780417da0f24819415569e60b205c46e41407f1704"


# --- ChannelData ------------------------------------------------------------------------------------------------------


@given(st.sampled_from(CHANNELS), st.binary(max_size=2000), st.booleans())
def test_channel_data_comes_back(channel: int, data: bytes, padded: bool) -> None:
    message = encode_channel_data(channel, data, padded=padded)
    assert is_channel_data(message)
    assert decode_channel_data(message) == (channel, data)
    assert len(message) == 4 + len(data) + (-len(data) % 4 if padded else 0)


@given(st.binary(max_size=40))
def test_anything_is_channel_data_or_malformed(data: bytes) -> None:
    try:
        channel, payload = decode_channel_data(data)
    except StunMalformed:
        return
    assert channel in CHANNELS
    assert encode_channel_data(channel, payload) == data[: 4 + len(payload)]


def test_channel_data_that_is_cut_is_malformed() -> None:
    with pytest.raises(StunMalformed):
        decode_channel_data(encode_channel_data(0x4000, b"abcd")[:-1])
    with pytest.raises(OverflowError):
        encode_channel_data(0x4000, bytes(65536))


messages = st.one_of(
    st.builds(lambda c, d: encode_channel_data(c, d, padded=True), st.sampled_from(CHANNELS), st.binary(max_size=60)),
    st.builds(lambda d: encode(Method.SEND, MessageClass.INDICATION, TID, [DATA(d)]), st.binary(max_size=60)),
)


@settings(max_examples=25)
@given(st.lists(messages, max_size=8), st.integers(1, 70))
def test_a_stream_is_cut_into_its_messages_wherever_it_is_torn(sent: list[bytes], size: int) -> None:
    stream = b"".join(sent)
    reader = TurnStreamReader(most=100)
    found = [each for at in range(0, len(stream), size) for each in reader.feed(stream[at : at + size])]
    assert found == sent


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        bytes([0, 1, 0, 0]) + bytes(16),  # without the cookie
        bytes([0, 1, 0, 3]) + b"\x21\x12\xa4\x42" + TID,  # its length is not a multiple of four
        b"\x50\x00\x00\x00",  # a reserved channel number
        b"\x40\x00\x00\x64",  # announces 100 bytes, 104 with the header
        bytes([0, 1, 0, 100]) + b"\x21\x12\xa4\x42" + TID,
    ],
)
def test_a_stream_of_anything_else_is_over(data: bytes) -> None:
    with pytest.raises(StunMalformed):
        TurnStreamReader(most=100).feed(data)


def test_messages_in_front_of_garbage_do_not_save_the_stream() -> None:
    with pytest.raises(StunMalformed):
        TurnStreamReader(most=100).feed(encode_channel_data(0x4000, b"abcd", padded=True) + b"\xff\xff\xff\xff")
