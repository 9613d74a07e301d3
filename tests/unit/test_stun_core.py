"""The STUN server without I/O: what it answers, from which address, and how often."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio.servers.stun_core import MAX_ANSWER, MAX_REQUEST, Answer, StunCore, StunLimits
from warpgate_trio.stun.codec import (
    BINDING,
    CHANGE_REQUEST,
    ERROR_CODE,
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    PADDING,
    RESPONSE_ORIGIN,
    RESPONSE_PORT,
    UNKNOWN_ATTRIBUTES,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    AttributeValue,
    ChangeRequest,
    Message,
    MessageClass,
    decode,
    encode,
    opaque,
    transport_address,
)

TID = bytes(range(12))
CLIENT = ("198.51.100.7", 40000)
PLACES = {(a, p): (f"192.0.2.{1 + a}", 3478 + p) for a in (0, 1) for p in (0, 1)}
PLACES6 = {(a, p): (f"2001:db8:1111:2222:3333:4444:5555:666{a}", 3478 + p) for a in (0, 1) for p in (0, 1)}
CLASSIC_ID = bytes(range(16, 32))
RESPONSE_ADDRESS = transport_address(0x0002, "RESPONSE-ADDRESS")
SOURCE_ADDRESS = transport_address(0x0004, "SOURCE-ADDRESS")
CHANGED_ADDRESS = transport_address(0x0005, "CHANGED-ADDRESS")


def request(*attributes: AttributeValue) -> bytes:
    return encode(BINDING, MessageClass.REQUEST, TID, attributes)


def classic(*attributes: AttributeValue) -> bytes:
    """A request of RFC 3489, with a transaction id of 16 bytes and no cookie."""
    data = request(*attributes)
    return data[:4] + CLASSIC_ID + data[20:]


def ask(core: StunCore, *attributes: AttributeValue, place: tuple[int, int] = (0, 0)) -> tuple[Message, Answer]:
    answer = core.receive(request(*attributes), CLIENT, 0.0, place=place)
    assert answer is not None
    return decode(answer.data), answer


def test_one_address_tells_the_mapping_and_no_more() -> None:
    message, answer = ask(StunCore())
    assert message.message_class is MessageClass.SUCCESS
    assert message.transaction_id == TID
    assert message.get(XOR_MAPPED_ADDRESS) == CLIENT
    assert len(message.attributes) == 1
    assert (answer.to, answer.place) == (CLIENT, (0, 0))


def test_golden_bytes() -> None:
    answer = StunCore().receive(request(), ("192.0.2.1", 32853), 0.0)
    assert answer is not None
    assert answer.data.hex() == "0101000c2112a442" + TID.hex() + "002000080001a147e112a643"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("change", [ChangeRequest(ip=ip, port=port) for ip in (False, True) for port in (False, True)])
def test_two_addresses_answer_from_where_they_are_asked_to(place: tuple[int, int], change: ChangeRequest) -> None:
    message, answer = ask(StunCore(PLACES), CHANGE_REQUEST(change), place=place)
    origin = message.get(RESPONSE_ORIGIN)
    assert origin == PLACES[answer.place]
    assert (origin[0] != PLACES[place][0], origin[1] != PLACES[place][1]) == (change.ip, change.port)
    other = message.get(OTHER_ADDRESS)
    assert other is not None
    assert other[0] != PLACES[place][0]
    assert other[1] != PLACES[place][1]
    assert message.get(MAPPED_ADDRESS) == message.get(XOR_MAPPED_ADDRESS) == CLIENT
    assert answer.to == CLIENT


def test_another_port_of_the_same_host_may_be_answered() -> None:
    message, answer = ask(StunCore(PLACES), RESPONSE_PORT(5))
    assert answer.to == (CLIENT[0], 5)
    assert message.get(XOR_MAPPED_ADDRESS) == CLIENT


@pytest.mark.parametrize(
    ("places", "attribute"),
    [
        ({}, CHANGE_REQUEST(ChangeRequest(port=True))),
        ({}, RESPONSE_PORT(5)),
        ({}, PADDING(bytes(1000))),
        (PLACES, PADDING(bytes(1000))),
        (PLACES, opaque(0x7777, "NEW")(b"")),
    ],
)
def test_what_is_not_understood_is_named(places: dict[Any, Any], attribute: AttributeValue) -> None:
    message, _ = ask(StunCore(places), attribute)
    error = message.get(ERROR_CODE)
    assert error is not None
    assert error.code == 420
    assert message.get(UNKNOWN_ATTRIBUTES) == (attribute.attribute.type,)


def test_only_some_of_what_is_not_understood_is_named() -> None:
    message, answer = ask(StunCore(), *(opaque(0x7000 + n, "NEW")(b"") for n in range(40)))
    unknown = message.get(UNKNOWN_ATTRIBUTES)
    assert unknown is not None
    assert len(unknown) == 8
    assert len(answer.data) <= MAX_ANSWER


def test_over_tcp_there_is_one_place() -> None:
    core = StunCore(PLACES)
    data = core.receive_message(request(), CLIENT, place=(1, 0))
    assert data is not None
    message = decode(data)
    assert message.get(RESPONSE_ORIGIN) == PLACES[1, 0]
    assert message.get(OTHER_ADDRESS) == PLACES[0, 1]
    data = core.receive_message(request(CHANGE_REQUEST(ChangeRequest(ip=True))), CLIENT)
    assert data is not None
    assert decode(data).get(UNKNOWN_ATTRIBUTES) == (CHANGE_REQUEST.type,)
    assert core.receive_message(b"GET / HTTP/1.1\r\n\r\n" + bytes(20), CLIENT) is None


def test_credentials_are_not_asked_for_and_do_no_harm() -> None:
    data = encode(
        BINDING, MessageClass.REQUEST, TID, [USERNAME("me")], integrity=b"k", integrity_sha256=b"k", fingerprint=True
    )
    answer = StunCore().receive(data, CLIENT, 0.0)
    assert answer is not None
    assert decode(answer.data).get(XOR_MAPPED_ADDRESS) == CLIENT


@pytest.mark.parametrize(
    "attribute",
    [RESPONSE_PORT(0), opaque(0x0003, "CHANGE-REQUEST")(b"abc"), opaque(0x0027, "RESPONSE-PORT")(b"abc")],
)
def test_a_bad_request(attribute: AttributeValue) -> None:
    message, answer = ask(StunCore(PLACES), attribute)
    error = message.get(ERROR_CODE)
    assert error is not None
    assert error.code == 400
    assert answer.to == CLIENT


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        bytes(20),
        classic()[:-1],
        classic() + b"1234",
        b"\1\1" + classic()[2:],
        b"\0\2" + classic()[2:],
        request()[:-1] + b"x" * 2000,
        encode(BINDING, MessageClass.INDICATION, TID),
        encode(BINDING, MessageClass.SUCCESS, TID, [XOR_MAPPED_ADDRESS(CLIENT)]),
        encode(BINDING, MessageClass.ERROR, TID),
        encode(0x003, MessageClass.REQUEST, TID),
        request(PADDING(bytes(MAX_REQUEST))),
    ],
)
def test_what_is_no_request_gets_no_answer(data: bytes) -> None:
    """An error response would allow an attacker to make two servers answer each other for ever."""
    core = StunCore(PLACES)
    assert core.receive(data, CLIENT, 0.0) is None
    assert core.statistics().ignored == 1


# -- clients of RFC 3489 -----------------------------------------------------------------------------------------------


def ask_classic(core: StunCore, *attributes: AttributeValue, place: tuple[int, int] = (0, 0)) -> tuple[Message, Answer]:
    answer = core.receive(classic(*attributes), CLIENT, 0.0, place=place)
    assert answer is not None
    assert answer.data[4:20] == CLASSIC_ID
    return decode(answer.data[:4] + request()[4:8] + answer.data[8:]), answer


def test_golden_bytes_of_rfc3489() -> None:
    answer = StunCore(PLACES).receive(classic(), ("192.0.2.9", 32853), 0.0)
    assert answer is not None
    assert (
        answer.data.hex()
        == (
            f"01010024{CLASSIC_ID.hex()}"
            "000100080001" + "8055c0000209"  # MAPPED-ADDRESS
            "000400080001" + "0d96c0000201"  # SOURCE-ADDRESS
            "000500080001" + "0d97c0000202"  # CHANGED-ADDRESS
        )
    )


def test_with_one_address_rfc3489_is_told_the_mapping_alone() -> None:
    message, answer = ask_classic(StunCore())
    assert message.message_class is MessageClass.SUCCESS
    assert message.attributes == (
        (0x0001, bytes.fromhex("0001") + (40000).to_bytes(2, "big") + bytes([198, 51, 100, 7])),
    )
    assert (answer.to, answer.place) == (CLIENT, (0, 0))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("change", [ChangeRequest(ip=ip, port=port) for ip in (False, True) for port in (False, True)])
def test_rfc3489_is_answered_from_where_it_asks_for(place: tuple[int, int], change: ChangeRequest) -> None:
    message, answer = ask_classic(StunCore(PLACES), CHANGE_REQUEST(change), place=place)
    assert answer.place == (place[0] ^ change.ip, place[1] ^ change.port)
    assert message.get(MAPPED_ADDRESS) == CLIENT
    assert message.get(SOURCE_ADDRESS) == PLACES[answer.place]
    assert message.get(CHANGED_ADDRESS) == PLACES[1 - place[0], 1 - place[1]]
    assert {type_ for type_, _ in message.attributes} == {1, 4, 5}
    assert answer.to == CLIENT


@pytest.mark.parametrize(
    ("places", "attribute"),
    [
        ({}, CHANGE_REQUEST(ChangeRequest(port=True))),
        (PLACES, RESPONSE_ADDRESS(("203.0.113.1", 53))),  # would have the answer sent to a third party
        (PLACES, RESPONSE_PORT(53)),
    ],
)
def test_what_rfc3489_asks_for_in_vain(places: dict[Any, Any], attribute: AttributeValue) -> None:
    message, answer = ask_classic(StunCore(places), attribute)
    error = message.get(ERROR_CODE)
    assert error is not None
    assert error.code == 420
    assert message.get(UNKNOWN_ATTRIBUTES) == 2 * (attribute.attribute.type,)
    assert all(len(value) % 4 == 0 for _, value in message.attributes)
    assert answer.to == CLIENT


def test_rfc3489_pays_the_same_rate_and_gains_less() -> None:
    core = StunCore(PLACES, StunLimits(rate=1, burst=3))
    answers = [core.receive(each, CLIENT, 0.0) for each in 5 * [classic(), request()]]
    lengths = [len(each.data) for each in answers if each is not None]
    assert lengths == [56, 68, 56]


def test_over_tcp_rfc3489_has_nothing_to_say() -> None:
    assert StunCore(PLACES).receive_message(classic(), CLIENT) is None


attributes = st.lists(
    st.builds(CHANGE_REQUEST, st.builds(ChangeRequest, ip=st.booleans(), port=st.booleans()))
    | st.builds(RESPONSE_PORT, st.integers(0, 65535))
    | st.builds(lambda type_, value: opaque(type_, "x")(value), st.integers(0, 0xFFFF), st.binary(max_size=40)),
    max_size=20,
)


@settings(max_examples=50)
@given(
    st.binary(max_size=100)
    | attributes.map(lambda each: request(*each))
    | attributes.map(lambda each: classic(*each))
    | st.binary(max_size=100).map(lambda tail: b"\0\1" + len(tail).to_bytes(2, "big") + request()[4:] + tail),
    st.sampled_from(sorted(PLACES)),
    st.sampled_from([{}, PLACES6]),
)
def test_whatever_comes_the_answer_is_small_and_goes_back(
    data: bytes, place: tuple[int, int], places: dict[Any, Any]
) -> None:
    client = ("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", 40000)
    answer = StunCore(places).receive(data, client, 0.0, place=place if places else (0, 0))
    if answer is not None:
        assert len(answer.data) <= MAX_ANSWER
        assert answer.to[0] == client[0]
        assert answer.data[4:20] == data[4:20]
        decode(answer.data[:4] + request()[4:8] + answer.data[8:])


# -- rates -------------------------------------------------------------------------------------------------------------


def answered(core: StunCore, source: str, count: int, now: float) -> int:
    return sum(core.receive(request(), (source, 1000 + n), now) is not None for n in range(count))


def test_a_source_has_its_rate_whatever_its_port() -> None:
    core = StunCore(limits=StunLimits(rate=2, burst=5))
    assert answered(core, "192.0.2.1", 20, 0.0) == 5
    assert answered(core, "192.0.2.2", 20, 0.0) == 5
    assert answered(core, "192.0.2.1", 20, 1.0) == 2
    assert answered(core, "192.0.2.1", 20, 100.0) == 5
    assert core.statistics().limited == 63
    assert core.statistics().answered == 17


def test_a_subscriber_with_ipv6_is_one_source() -> None:
    core = StunCore(limits=StunLimits(rate=1, burst=5))
    assert sum(answered(core, f"2001:db8::{n:x}", 1, 0.0) for n in range(20)) == 5
    assert answered(core, "2001:db8:0:1::1", 1, 0.0) == 1


def test_errors_count_too() -> None:
    core = StunCore(limits=StunLimits(rate=1, burst=3))
    bad = request(PADDING(b"x"))
    assert sum(core.receive(bad, CLIENT, 0.0) is not None for _ in range(10)) == 3


def test_what_is_no_request_uses_up_nothing() -> None:
    core = StunCore(limits=StunLimits(rate=1, burst=1))
    for _ in range(10):
        core.receive(b"hello", CLIENT, 0.0)
    assert answered(core, CLIENT[0], 1, 0.0) == 1


def test_all_sources_together_have_a_rate() -> None:
    core = StunCore(limits=StunLimits(total_rate=10, total_burst=20))
    assert sum(answered(core, f"10.0.{n // 250}.{n % 250}", 1, 0.0) for n in range(1000)) == 20
    assert sum(answered(core, f"10.1.{n // 250}.{n % 250}", 1, 1.0) for n in range(1000)) == 10


@pytest.mark.parametrize("flood", [[f"2001:db8:1:{n:x}::1" for n in range(500)], [f"192.0.2.{n}" for n in range(256)]])
def test_one_network_does_not_use_up_the_rate_of_all(flood: list[str]) -> None:
    core = StunCore(limits=StunLimits(burst=2, total_burst=200))
    assert sum(answered(core, host, 2, 0.0) for host in flood) < 200
    assert answered(core, "203.0.113.1", 1, 0.0) == 1


def test_forged_datagrams_do_not_use_up_the_rate_of_a_tcp_client() -> None:
    core = StunCore(limits=StunLimits(rate=0.001, burst=5))
    assert answered(core, "192.0.2.1", 20, 0.0) == 5
    assert [core.admit(("192.0.2.1", 1000), 0.0) for _ in range(6)] == [True] * 5 + [False]


def test_sources_are_forgotten_the_longest_silent_first() -> None:
    core = StunCore(limits=StunLimits(rate=0.001, burst=1, sources=6))  # three addresses and their /24s
    for n in (1, 2, 3, 1):
        answered(core, f"10.0.{n}.1", 1, 0.0)
    answered(core, "10.0.4.1", 1, 0.0)
    assert answered(core, "10.0.1.1", 1, 0.0) == 0
    assert answered(core, "10.0.2.1", 1, 0.0) == 1


def test_a_clock_that_goes_back_gives_nothing() -> None:
    core = StunCore(limits=StunLimits(rate=1, burst=1))
    assert answered(core, "10.0.0.1", 1, 100.0) == 1
    assert answered(core, "10.0.0.1", 1, 0.0) == 0
