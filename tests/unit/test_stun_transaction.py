"""A STUN request without I/O: its retransmissions, and which responses are accepted."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpgate_trio.errors import StunError, StunMalformed, StunRefused, StunTimeout
from warpgate_trio.stun.codec import (
    BINDING,
    ERROR_CODE,
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    RESPONSE_ORIGIN,
    SOFTWARE,
    XOR_MAPPED_ADDRESS,
    AttributeValue,
    ErrorCode,
    MessageClass,
    decode,
    encode,
    opaque,
    transport_address,
)
from warpgate_trio.stun.transaction import StunAnswer, StunTransaction, binding_request, plausible, read_binding_answer

TID = bytes(range(12))
SERVER = ("192.0.2.1", 3478)
MAPPED = ("198.51.100.7", 40000)


def made(**options: Any) -> StunTransaction:
    return StunTransaction(binding_request(TID), SERVER, **options)


def due(transaction: StunTransaction, now: float) -> bytes | None:
    """The request, if it is due at `now`."""
    transaction.handle_timer(now)
    return transaction.transmit(now)


def started(now: float = 0.0, **options: Any) -> StunTransaction:
    transaction = made(**options)
    transaction.start(now)
    assert due(transaction, now) == transaction.request
    return transaction


def answer(*attributes: AttributeValue, tid: bytes = TID, kind: MessageClass = MessageClass.SUCCESS) -> bytes:
    return encode(BINDING, kind, tid, attributes)


def read(*attributes: AttributeValue, server: tuple[str, int] = SERVER) -> StunAnswer:
    transaction = StunTransaction(binding_request(TID), server)
    transaction.start(0.0)
    due(transaction, 0.0)
    assert transaction.receive(answer(*attributes), server, 0.1)
    return read_binding_answer(transaction)


def sending_times(transaction: StunTransaction) -> tuple[list[float], float]:
    """The times of its transmissions, and the time at which it gives up."""
    transaction.start(0.0)
    times: list[float] = []
    now = 0.0
    if transaction.transmit(now) is not None:
        times.append(now)
    while (deadline := transaction.deadline) < math.inf:
        now = deadline
        if due(transaction, now) is not None:
            times.append(now)
    return times, now


def test_requests_are_repeated_as_the_rfc_says() -> None:
    """The example of RFC 8489 §6.2.1."""
    transaction = made()
    assert transaction.deadline == math.inf
    times, given_up = sending_times(transaction)
    assert times == [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert given_up == 39.5
    assert transaction.done
    with pytest.raises(StunTimeout, match=r"192\.0\.2\.1:3478 to 7 request"):
        transaction.response()


@settings(max_examples=50)
@given(st.floats(0.01, 10), st.integers(1, 9), st.floats(0.1, 20))
def test_every_wait_is_the_callers(rto: float, tries: int, last_wait: float) -> None:
    times, given_up = sending_times(made(rto=rto, tries=tries, last_wait=last_wait))
    assert len(times) == tries
    assert given_up == pytest.approx(rto * (2 ** (tries - 1) - 1 + last_wait))


@pytest.mark.parametrize("options", [{"rto": 0}, {"tries": 0}, {"last_wait": 0}])
def test_waits_that_are_none(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="above zero"):
        made(**options)


def test_a_pause_of_the_process_makes_no_burst() -> None:
    transaction = started()
    assert due(transaction, 0.4) is None
    assert due(transaction, 100.0) is not None
    assert due(transaction, 100.0) is None
    assert transaction.deadline == 101.0


def test_an_answer() -> None:
    transaction = started()
    with pytest.raises(RuntimeError):
        transaction.response()
    other = ("192.0.2.2", 3479)
    data = answer(XOR_MAPPED_ADDRESS(MAPPED), OTHER_ADDRESS(other), RESPONSE_ORIGIN(SERVER), SOFTWARE("x"))
    assert transaction.receive(data, SERVER, 0.125)
    assert transaction.done
    assert transaction.deadline == math.inf
    assert due(transaction, 10.0) is None
    assert read_binding_answer(transaction) == StunAnswer(
        mapped=MAPPED,
        server=SERVER,
        source=SERVER,
        rtt=0.125,
        other_address=other,
        response_origin=SERVER,
        software="x",
    )
    # A duplicate belongs to this transaction, so nobody else may take it, but it changes nothing.
    assert transaction.receive(answer(XOR_MAPPED_ADDRESS(("203.0.113.1", 1))), SERVER, 9.0)
    assert read_binding_answer(transaction).mapped == MAPPED


def test_after_a_repetition_the_round_trip_is_a_guess() -> None:
    transaction = started()
    due(transaction, 0.5)
    transaction.receive(answer(XOR_MAPPED_ADDRESS(MAPPED)), SERVER, 0.75)
    found = read_binding_answer(transaction)
    assert (found.rtt, found.retransmitted) == (0.25, True)


@pytest.mark.parametrize(
    ("data", "source"),
    [
        (answer(XOR_MAPPED_ADDRESS(MAPPED)), ("192.0.2.1", 3479)),
        (answer(XOR_MAPPED_ADDRESS(MAPPED)), ("192.0.2.9", 3478)),
        (answer(XOR_MAPPED_ADDRESS(MAPPED), tid=bytes(12)), SERVER),
        (answer(XOR_MAPPED_ADDRESS(MAPPED), kind=MessageClass.REQUEST), SERVER),
        (answer(XOR_MAPPED_ADDRESS(MAPPED), kind=MessageClass.INDICATION), SERVER),
        (encode(0x003, MessageClass.SUCCESS, TID, [XOR_MAPPED_ADDRESS(MAPPED)]), SERVER),
        (answer(XOR_MAPPED_ADDRESS(MAPPED))[:-1], SERVER),
        (b"", SERVER),
        (b"\0" * 2000, SERVER),
    ],
)
def test_what_is_not_ours_ends_nothing(data: bytes, source: tuple[str, int]) -> None:
    transaction = started()
    assert not transaction.receive(data, source, 0.1)
    assert not transaction.done
    assert transaction.receive(answer(XOR_MAPPED_ADDRESS(MAPPED)), SERVER, 0.2)


def test_nothing_is_believed_before_the_request_has_left() -> None:
    transaction = made()
    assert not transaction.receive(answer(XOR_MAPPED_ADDRESS(MAPPED)), SERVER, 0.0)


def test_an_answer_from_where_it_was_asked_for() -> None:
    there = ("192.0.2.2", 3479)
    transaction = started(source=there)
    assert not transaction.receive(answer(XOR_MAPPED_ADDRESS(MAPPED)), SERVER, 0.1)
    assert transaction.receive(answer(XOR_MAPPED_ADDRESS(MAPPED)), there, 0.1)
    assert read_binding_answer(transaction).source == there


def test_what_fails_the_callers_check_has_not_come() -> None:
    transaction = started(check=lambda message: message.verify_sha256(b"key"))
    assert not transaction.receive(answer(XOR_MAPPED_ADDRESS(MAPPED)), SERVER, 0.1)
    signed = encode(BINDING, MessageClass.SUCCESS, TID, [XOR_MAPPED_ADDRESS(MAPPED)], integrity_sha256=b"key")
    assert transaction.receive(signed, SERVER, 0.1)
    assert read_binding_answer(transaction).mapped == MAPPED


def test_a_refusal() -> None:
    transaction = started()
    data = answer(ERROR_CODE(ErrorCode(300, "ask\nthem")), kind=MessageClass.ERROR)
    assert transaction.receive(data, SERVER, 0.1)
    with pytest.raises(StunRefused, match=r"300 ask\?them") as caught:
        transaction.response()
    assert caught.value.code == 300


def test_a_refusal_without_a_code() -> None:
    transaction = started()
    assert transaction.receive(answer(kind=MessageClass.ERROR), SERVER, 0.1)
    with pytest.raises(StunMalformed, match="without an error code"):
        transaction.response()


def test_an_error_from_outside_ends_it_once() -> None:
    transaction = started()
    transaction.fail(StunError("broken"))
    transaction.fail(StunError("again"))
    with pytest.raises(StunError, match="broken"):
        transaction.response()


@pytest.mark.parametrize(
    ("mapped", "reason"),
    [
        (("198.51.100.7", 0), "port 0"),
        (("0.0.0.0", 1), "no host"),
        (("0.1.2.3", 1), "no host"),
        (("224.0.0.1", 1), "no host"),
        (("255.255.255.255", 1), "no host"),
        (("240.0.0.1", 1), "no host"),
        (("127.0.0.1", 1), "loopback"),
        (("2001:db8::1", 1), "IPv6"),
    ],
)
def test_an_address_that_cannot_be(mapped: tuple[str, int], reason: str) -> None:
    with pytest.raises(StunMalformed, match=reason):
        read(XOR_MAPPED_ADDRESS(mapped))


@pytest.mark.parametrize(
    "mapped", ["::", "::1", "ff02::1", "64:ff9b::7f00:1", "100::1", "::ffff:192.0.2.1", "192.0.2.1"]
)
def test_an_ipv6_address_that_cannot_be(mapped: str) -> None:
    with pytest.raises(StunMalformed):
        read(XOR_MAPPED_ADDRESS((mapped, 1)), server=("2001:db8::1", 3478))


@pytest.mark.parametrize(
    ("mapped", "server"),
    [("10.0.0.1", "192.0.2.1"), ("100.64.0.1", "192.0.2.1"), ("127.0.0.2", "127.0.0.1"), ("fe80::1", "fd00::1")],
)
def test_an_address_that_may_be(mapped: str, server: str) -> None:
    assert plausible((mapped, 1), (server, 1)) is None


def test_an_old_server_that_knows_mapped_address_alone() -> None:
    source_address = transport_address(0x0004, "SOURCE-ADDRESS")
    assert read(MAPPED_ADDRESS(MAPPED), source_address(SERVER)).mapped == MAPPED


@pytest.mark.parametrize("type_", [0x8000, 0x8020, 0x8022, 0x8023, 0x8027, 0x802B, 0x802C, 0xFFFF])
@pytest.mark.parametrize("value", [b"", b"abc", bytes(8), b"\0\x09abcdef", "Gerät".encode("latin-1"), b"x" * 800])
@pytest.mark.parametrize("first", [False, True])
def test_what_may_be_ignored_spoils_no_answer(type_: int, value: bytes, first: bool) -> None:
    attributes = [XOR_MAPPED_ADDRESS(MAPPED), opaque(type_, "ODD")(value)]
    found = read(*(reversed(attributes) if first else attributes))
    assert found.mapped == MAPPED
    assert found.other_address is None
    assert found.response_origin is None


def test_an_answer_that_says_nothing_of_use() -> None:
    with pytest.raises(StunMalformed, match="no mapped address"):
        read(SOFTWARE("hello"))
    with pytest.raises(StunMalformed, match=r"needs attributes .* 0x7777"):
        read(XOR_MAPPED_ADDRESS(MAPPED), opaque(0x7777, "NEW")(b""))
    with pytest.raises(StunMalformed):
        read(opaque(0x0020, "XOR-MAPPED-ADDRESS")(b"abc"))


@pytest.mark.parametrize(
    "other",
    [
        "8.8.8.8",
        "127.0.0.1",
        "10.0.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "198.18.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "2600::1",
    ],
)
def test_another_address_that_cannot_be_or_must_not_be_asked_is_none(other: str) -> None:
    answers = [XOR_MAPPED_ADDRESS(MAPPED), OTHER_ADDRESS((other, 3479))]
    assert read(*answers, server=("8.8.8.8", 3478)).other_address is None


@pytest.mark.parametrize("other", ["fd00::1", "200::1", "64:ff9b::a00:1", "2002:a00:1::1", "fe80::1"])
def test_another_ipv6_address_that_must_not_be_asked_is_none(other: str) -> None:
    answers = [XOR_MAPPED_ADDRESS(("2001:db8::5", 1)), OTHER_ADDRESS((other, 3479))]
    assert read(*answers, server=("2001:db8::1", 3478)).other_address is None


def test_another_address_in_a_private_network() -> None:
    answers = [XOR_MAPPED_ADDRESS(MAPPED), OTHER_ADDRESS(("10.0.0.2", 3479))]
    assert read(*answers, server=("10.0.0.1", 3478)).other_address == ("10.0.0.2", 3479)


@given(st.binary(max_size=60), st.sampled_from([b"\1\1", b"\1\x11"]))
def test_hostile_answers_raise_stun_errors_alone(body: bytes, kind: bytes) -> None:
    transaction = started()
    data = kind + len(body).to_bytes(2, "big") + b"\x21\x12\xa4\x42" + TID + body
    if transaction.receive(data, SERVER, 0.1):
        with suppress(StunError):
            read_binding_answer(transaction)


def test_requests_of_rfc5780() -> None:
    from warpgate_trio.stun.codec import CHANGE_REQUEST, RESPONSE_PORT, ChangeRequest

    message = decode(binding_request(TID, change=ChangeRequest(port=True), response_port=5))
    assert message.get(CHANGE_REQUEST) == ChangeRequest(port=True)
    assert message.get(RESPONSE_PORT) == 5
