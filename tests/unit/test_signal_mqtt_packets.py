"""Which bytes of a broker reach the MQTT client library."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate_trio.errors import RemoteProtocolError
from warpgate_trio.signal.mqtt.packets import PacketFilter

CONNACK = bytes.fromhex("20020000")
SUBACK = bytes.fromhex("9003000101")
PUBACK = bytes.fromhex("40020007")
UNSUBACK = bytes.fromhex("b0020003")
PINGRESP = bytes.fromhex("d000")
HELLO = bytes.fromhex("320a0003612f620009686921")  # QoS 1, topic "a/b", packet id 9, "hi!"


def publish(payload: bytes, *, topic: bytes = b"a/b", qos: int = 1) -> bytes:
    body = len(topic).to_bytes(2, "big") + topic + (b"\0\x09" if qos else b"") + payload
    length = bytearray()
    rest = len(body)
    while True:
        rest, digit = rest >> 7, rest & 127
        length.append(digit | 128 if rest else digit)
        if not rest:
            return bytes([0x30 | qos << 1]) + bytes(length) + body


def greeted(*, max_payload: int = 100) -> PacketFilter:
    packets = PacketFilter(max_payload=max_payload)
    assert packets.feed(CONNACK) == CONNACK
    return packets


def test_the_helper_against_golden_bytes() -> None:
    assert publish(b"hi!") == HELLO


@pytest.mark.parametrize(
    "packet", [SUBACK, PUBACK, UNSUBACK, PINGRESP, HELLO, publish(b"", qos=0), publish(bytes(100))]
)
def test_ordinary_packets_pass_unchanged(packet: bytes) -> None:
    assert greeted().feed(packet + packet) == packet + packet


@given(st.lists(st.integers(1, 40)))
def test_however_the_bytes_are_cut(cuts: list[int]) -> None:
    stream = CONNACK + SUBACK + HELLO + publish(bytes(5000)) + PINGRESP + publish(bytes(700), qos=0) + PUBACK
    whole = PacketFilter(max_payload=100).feed(stream)
    packets, passed, start = PacketFilter(max_payload=100), b"", 0
    for cut in [*cuts, len(stream)]:
        passed += packets.feed(stream[start : start + cut])
        start += cut
    assert passed == whole
    assert packets.cut == 2


@pytest.mark.parametrize("qos", [0, 1])
def test_a_message_that_is_too_long_arrives_empty(qos: int) -> None:
    packets = greeted()
    assert packets.feed(publish(bytes(3_000_000), qos=qos) + HELLO) == publish(b"", qos=qos) + HELLO
    assert packets.cut == 1


def test_a_long_topic_is_kept_whole() -> None:
    topic = b"t" * 500
    assert greeted().feed(publish(bytes(1000), topic=topic)) == publish(b"", topic=topic)


@pytest.mark.parametrize("length", [*range(120, 137), 16_383, 16_384, 2_097_152])
def test_the_limit_in_the_neighbourhood_of_lengths_that_take_another_byte(length: int) -> None:
    packets = PacketFilter(max_payload=length)
    packets.feed(CONNACK)
    assert packets.feed(publish(bytes(length))) == publish(bytes(length))


@pytest.mark.parametrize(
    ("code", "words"),
    [(1, "3.1.1"), (2, "identifier"), (3, "not available"), (4, "wrong"), (5, "authorized"), (9, "9")],
)
def test_a_refusal(code: int, words: str) -> None:
    packets = PacketFilter(max_payload=100)
    assert packets.refusal is None
    packets.feed(bytes([0x20, 2, 0, code]))
    assert packets.refusal is not None
    assert words in packets.refusal


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        SUBACK,  # before the CONNACK
        HELLO,
        CONNACK + CONNACK,
        b"\x20\x03\0\0\0",
        b"\x20\x01\0",
        b"\x20\0",
        b"\x20\xff\xff\xff\xff\x01",
        CONNACK + publish(b"x", qos=2),
        CONNACK + publish(b"x", qos=3),
        CONNACK + b"\xd0\x01\0",
        CONNACK + b"\x90\x11" + bytes(17),
        CONNACK + b"\x10\0",  # followed by a CONNECT, which brokers do not send
        CONNACK + b"\x30\xff\xff\xff\x7f\xff\xff",  # its topic would have 65,535 bytes
        CONNACK + b"\x30\x02\0\0",  # an empty topic
        CONNACK + b"\x30\x01\0",  # half a length field
        CONNACK + b"\x30\0",
        CONNACK + b"\x32\x04\0\1tx",  # half a packet id
        CONNACK + publish(b"x", topic=b"\xff"),
        CONNACK + publish(b"x", topic=b"a/+"),
        CONNACK + publish(b"x", topic=b"#"),
        CONNACK + publish(b"x", topic=b"a\0"),
        CONNACK + b"\x30\xff\xff\xff\xff\x7f",
    ],
)
def test_what_is_not_for_a_client_like_us(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        PacketFilter(max_payload=100).feed(data)


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_hostile_bytes(pieces: list[bytes]) -> None:
    packets = greeted()
    passed = 0
    try:
        for piece in pieces:
            passed += len(packets.feed(piece))
    except RemoteProtocolError:
        pass
    assert len(packets._buffer) <= 5 + 2 + 512 + 2 + 200
    assert passed <= sum(map(len, pieces))
