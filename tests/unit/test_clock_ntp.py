"""NTP packets on both sides: golden bytes, each reason to reject one, hostile bytes, eras, the server's limits."""

from __future__ import annotations

import math
import struct
from ipaddress import ip_address
from typing import Any

import ntplib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate_trio.clock.ntp import (
    KissOfDeath,
    NtpExchange,
    NtpRejected,
    NtpSample,
    WrongOrigin,
    from_ntp,
    to_ntp,
)
from warpgate_trio.errors import RemoteProtocolError
from warpgate_trio.servers.ntp_core import NtpLimits, NtpResponder

approx: Any = pytest.approx  # stands for a float in comparisons with ==

NONCE = bytes.fromhex("0123456789abcdef")
NOW = 1_800_000_000.0  # Unix
DELTA = 2_208_988_800
CLIENT = ip_address("192.0.2.7")
ERA_1 = 2**32 - DELTA  # 7 February 2036, 06:28:16


def answer(
    *,
    first: int = 0x24,  # leap 0, version 4, mode 4
    stratum: int = 2,
    precision: int = -20,
    root_delay: float = 0.0,
    dispersion: float = 0.0,
    reference: bytes = b"\xc0\0\2\1",
    origin: bytes = NONCE,
    received: float = NOW,
    sent: float = NOW,
) -> bytes:
    """A server's packet, built field by field without any code of the package."""

    def stamp(unix: float) -> bytes:
        ntp = (unix + DELTA) % 2**32 if unix else 0.0
        return struct.pack("!II", int(ntp), int((ntp % 1) * 2**32))

    return (
        struct.pack("!BBbb", first, stratum, 0, precision)
        + struct.pack("!II", int(root_delay * 65536), int(dispersion * 65536))
        + reference
        + stamp(received)
        + origin
        + stamp(received)
        + stamp(sent)
    )


def asked(sent: float = NOW) -> NtpExchange:
    exchange = NtpExchange()
    exchange.request(NONCE, sent)
    return exchange


# -- the request -------------------------------------------------------------------------------------------------------


def test_a_request_says_nothing_but_its_nonce() -> None:
    assert NtpExchange().request(NONCE, NOW).hex() == "23" + "00" * 39 + "0123456789abcdef"
    assert NtpExchange().request(bytes(8), NOW)[40:] != bytes(8), "which to a server means: never"
    with pytest.raises(ValueError, match="eight bytes"):
        NtpExchange().request(b"short", NOW)


# -- the answer --------------------------------------------------------------------------------------------------------


def test_offset_delay_and_uncertainty_are_rfc_5905s() -> None:
    sample = asked().receive(
        answer(received=NOW + 10.06, sent=NOW + 10.07, root_delay=0.5, dispersion=0.25, precision=-10, stratum=3),
        NOW + 0.17,
    )
    assert sample.offset == approx(9.98, abs=1e-6)
    assert sample.delay == approx(0.16, abs=1e-6)
    assert sample.uncertainty == approx(0.08 + 0.25 + 0.25 + 2**-10, abs=1e-5)
    assert (sample.stratum, sample.received_at) == (3, NOW + 0.17)


def test_an_answer_is_good_once() -> None:
    exchange = asked()
    exchange.receive(answer(), NOW)
    with pytest.raises(WrongOrigin):
        exchange.receive(answer(), NOW)


def test_raw_timestamps_are_compared() -> None:
    """As floats these two are equal: a double near today's time cannot hold the last of the 64 bits."""
    nonce = bytes.fromhex("ee00000000000000")
    other = bytes.fromhex("ee00000000000001")
    packets = []
    for origin in (nonce, other):
        packet = ntplib.NTPPacket()
        packet.from_data(answer(origin=origin))
        packets.append(packet.orig_timestamp)
    assert packets[0] == packets[1]
    exchange = NtpExchange()
    exchange.request(nonce, NOW)
    with pytest.raises(WrongOrigin):
        exchange.receive(answer(origin=other), NOW)
    exchange.receive(answer(origin=nonce), NOW)


def test_an_answer_to_an_earlier_request_counts_from_that_one() -> None:
    exchange = NtpExchange()
    exchange.request(NONCE, NOW)
    exchange.request(b"another.", NOW + 1)
    sample = exchange.receive(answer(received=NOW + 0.6, sent=NOW + 0.6), NOW + 1.2)
    assert sample.delay == approx(1.2, abs=1e-6)
    assert sample.offset == approx(0, abs=1e-6)


def test_what_is_remembered_is_bounded() -> None:
    exchange = asked()
    for number in range(8):
        exchange.request(bytes([number + 1] * 8), NOW)
    with pytest.raises(WrongOrigin):
        exchange.receive(answer(), NOW)
    exchange.receive(answer(origin=b"\1" * 8), NOW)


REJECTED = {
    "client's mode": (answer(first=0x23), "mode 3"),
    "broadcast": (answer(first=0x25), "mode 5"),
    "version 2": (answer(first=0x14), "version 2"),
    "version 5": (answer(first=0x2C), "version 5"),
    "leap 3": (answer(first=0xE4), "leap indicator 3"),
    "stratum 16": (answer(stratum=16), "stratum 16"),
    "stratum 255": (answer(stratum=255), "stratum 255"),
    "no transmit time": (answer(sent=0), "does not say when"),
    "no receive time": (answer(received=0), "does not say when"),
    "root dispersion": (answer(dispersion=16.0), "16 s off"),
    "root delay": (answer(root_delay=40.0), "20 s off"),
    "both": (answer(root_delay=20.0, dispersion=6.5), "16 s off|17 s off"),
    "precision": (answer(precision=3), r"2\^3 s"),
    "held before it came": (answer(received=NOW + 5, sent=NOW + 4), "a negative time"),
    "held longer than we waited": (answer(received=NOW, sent=NOW + 2), "longer than the round trip"),
}


@pytest.mark.parametrize(("packet", "why"), REJECTED.values(), ids=list(REJECTED))
def test_what_cannot_be_used_is_rejected_by_name(packet: bytes, why: str) -> None:
    with pytest.raises(NtpRejected, match=why):
        asked(NOW).receive(packet, NOW + 1)
    assert issubclass(NtpRejected, RemoteProtocolError)


@pytest.mark.parametrize("version", [3, 4])
def test_both_versions_in_use_are_read(version: int) -> None:
    assert asked().receive(answer(first=version << 3 | 4), NOW).stratum == 2


@pytest.mark.parametrize(
    ("reference", "code"),
    [(b"RATE", "RATE"), (b"DENY", "DENY"), (b"RSTR", "RSTR")],
)
def test_a_kiss_of_death_is_told_apart(reference: bytes, code: str) -> None:
    with pytest.raises(KissOfDeath, match=code) as caught:
        asked().receive(answer(first=0xE4, stratum=0, reference=reference), NOW)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        (b"INIT", "INIT"),
        (b"STEP", "STEP"),
        (bytes(4), "0x00000000"),
        (b"X\0\0\0", "X"),
        (b"\x1b[2J", "0x1b5b324a"),
    ],
)
@pytest.mark.parametrize("first", [0xE4, 0x24])
def test_a_server_that_has_no_time_yet_asks_for_nothing(reference: bytes, code: str, first: int) -> None:
    """Stratum 16 is sent as 0, with or without a code (RFC 5905, figure 11 and section 7.4): no kiss of death."""
    with pytest.raises(NtpRejected, match=rf"not synchronised \(stratum 0, code {code}\)") as caught:
        asked().receive(answer(first=first, stratum=0, reference=reference), NOW)
    assert not isinstance(caught.value, KissOfDeath)


def test_a_forged_kiss_of_death_has_no_say() -> None:
    exchange = asked()
    with pytest.raises(WrongOrigin):
        exchange.receive(answer(stratum=0, reference=b"DENY", origin=b"\xff" * 8), NOW)
    with pytest.raises(WrongOrigin):
        exchange.receive(answer(stratum=0, reference=b"DENY", origin=bytes(8)), NOW)
    assert exchange.receive(answer(), NOW).stratum == 2


@given(st.binary(max_size=200))
def test_hostile_bytes_are_never_more_than_rejected(data: bytes) -> None:
    exchange = asked()
    with pytest.raises(WrongOrigin):
        exchange.receive(data, NOW)
    assert exchange.receive(answer(), NOW).stratum == 2


@given(st.binary(min_size=24, max_size=24), st.binary(min_size=16, max_size=64), st.floats(0, 10))
def test_hostile_bytes_with_the_right_origin(head: bytes, tail: bytes, waited: float) -> None:
    """Any answer is rejected, or gives a finite sample whose uncertainty covers half the round trip."""
    try:
        sample = asked().receive(head + NONCE + tail, NOW + waited)
    except NtpRejected:
        return
    assert math.isfinite(sample.offset)
    assert sample.delay / 2 <= sample.uncertainty < 16 + 10 + 2
    assert 0 < sample.delay <= waited + 1.1


@given(
    st.floats(-1e8, 1e8),
    st.floats(0, 5),
    st.floats(0, 5),
    st.floats(0, 1),
    st.floats(1.7e9, 2.5e9),
    st.integers(-25, 0),
)
def test_the_truth_is_within_the_uncertainty(
    true: float, there: float, back: float, held: float, now: float, precision: int
) -> None:
    """However the round trip is divided between the directions, and in any era."""
    exchange = asked(now)
    arrived = now + there + held + back
    packet = answer(received=now + there + true, sent=now + there + held + true, precision=precision)
    sample = exchange.receive(packet, arrived)
    assert abs(sample.offset - true) <= sample.uncertainty


# -- eras --------------------------------------------------------------------------------------------------------------


def test_seconds_that_begin_again_in_2036() -> None:
    assert to_ntp(0) == DELTA
    assert to_ntp(ERA_1) == 0
    assert from_ntp(0, ERA_1 - 5) == ERA_1
    assert from_ntp(2**32 - 1, ERA_1 + 5) == ERA_1 - 1
    sample = asked(ERA_1 - 1).receive(answer(received=ERA_1 + 1, sent=ERA_1 + 1), ERA_1 - 1)
    assert sample.offset == approx(2, abs=1e-6)


@given(st.floats(0, 1e10), st.floats(-6e7, 6e7))
def test_a_time_survives_the_format(unix: float, off: float) -> None:
    assert from_ntp(to_ntp(unix), unix + off) == approx(unix, abs=1e-5)


# -- the server --------------------------------------------------------------------------------------------------------


def ask(responder: NtpResponder, data: bytes, *, source: str = "192.0.2.7", now: float = 0.0) -> bytes | None:
    return responder.receive(data, ip_address(source), received=NOW, sent=NOW + 0.25, now=now)


def test_the_answers_golden_bytes() -> None:
    request = NtpExchange().request(NONCE, NOW)
    answered = ask(NtpResponder(), request)
    assert answered is not None
    stamp = f"{int(NOW) + DELTA:08x}"
    assert answered.hex() == (
        "24" "0a" "00" "ec"  # leap 0, version 4, server; stratum 10; poll; 2^-20 s
        "00000000" "0000028f" "7f7f0100"  # root delay, 10 ms of root dispersion, an undisciplined clock
        + f"{stamp}00000000"  # reference timestamp
        + NONCE.hex()  # origin: copied from the request
        + f"{stamp}00000000"  # receive timestamp
        + f"{stamp}40000000"  # transmit timestamp
    )  # fmt: skip


def test_client_and_server_understand_each_other() -> None:
    exchange = NtpExchange()
    answered = ask(NtpResponder(stratum=3), exchange.request(NONCE, NOW - 7))
    assert answered is not None
    sample = exchange.receive(answered, NOW - 6.5)
    assert sample == NtpSample(
        offset=approx(6.875), delay=approx(0.25), uncertainty=approx(0.135, abs=1e-4),
        stratum=3, received_at=NOW - 6.5,
    )  # fmt: skip


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_it_answers_in_the_clients_version(version: int) -> None:
    answered = ask(NtpResponder(), bytes([version << 3 | 3]) + bytes(47))
    assert answered is not None
    assert answered[0] == version << 3 | 4


@pytest.mark.parametrize("size", [48, 68, 500])
def test_an_answer_is_never_longer_than_the_request(size: int) -> None:
    answered = ask(NtpResponder(), b"\x23" + bytes(size - 1))
    assert answered is not None
    assert len(answered) == 48 <= size


@given(st.binary(max_size=100))
def test_what_is_no_clients_request_is_not_answered(data: bytes) -> None:
    responder = NtpResponder()
    answered = ask(responder, data)
    if len(data) >= 48 and data[0] & 7 == 3 and 1 <= data[0] >> 3 & 7 <= 4:
        assert answered is not None
        assert responder.statistics().answered == 1
    else:
        assert answered is None
        assert responder.statistics().ignored == 1


def test_two_servers_do_not_answer_each_other() -> None:
    first = ask(NtpResponder(), NtpExchange().request(NONCE, NOW))
    assert first is not None
    assert ask(NtpResponder(), first) is None


def test_an_address_has_a_limit() -> None:
    responder = NtpResponder(NtpLimits(rate=2, burst=3))
    request = NtpExchange().request(NONCE, NOW)

    def answers(source: str, now: float) -> int:
        return sum(ask(responder, request, source=source, now=now) is not None for _ in range(10))

    assert answers("192.0.2.7", 100) == 3
    assert answers("192.0.2.8", 100) == 3
    assert answers("::ffff:192.0.2.7", 100) == 0, "the same address"
    assert answers("192.0.2.7", 101) == 2
    assert answers("192.0.2.7", 1000) == 3
    assert answers("192.0.2.7", 10) == 0, "a clock that goes back earns nothing"
    assert answers("2001:db8::1", 100) == 3
    assert answers("2001:db8::ffff", 100) == 0, "the same /64"
    assert answers("2001:db8:0:1::1", 100) == 3
    assert responder.statistics().limited == 90 - 17


def test_all_together_have_a_limit() -> None:
    responder = NtpResponder(NtpLimits(total_rate=1, total_burst=5))
    request = NtpExchange().request(NONCE, NOW)
    assert sum(ask(responder, request, source=f"192.0.2.{number}") is not None for number in range(20)) == 5


@pytest.mark.parametrize("flood", [[f"2001:db8:1:{n:x}::1" for n in range(500)], [f"192.0.2.{n}" for n in range(256)]])
def test_one_network_does_not_use_up_the_limit_of_all(flood: list[str]) -> None:
    responder = NtpResponder(NtpLimits(burst=10, total_burst=1000))
    request = NtpExchange().request(NONCE, NOW)
    assert sum(ask(responder, request, source=host) is not None for host in flood * 10) in (80, 40)
    assert ask(responder, request, source="203.0.113.1") is not None


def test_whose_limits_are_remembered_is_bounded() -> None:
    responder = NtpResponder(NtpLimits(burst=1, rate=0.001, addresses=4))  # two, and their /24s
    request = NtpExchange().request(NONCE, NOW)
    got = [ask(responder, request, source=f"192.0.{last}.1") is not None for last in (1, 2, 1, 3, 2, 1)]
    assert got == [True, True, False, True, True, True], "2 was forgotten for 3, and 1 for 2"


@pytest.mark.parametrize("stratum", [0, 16, -1])
def test_a_stratum_that_no_client_would_take(stratum: int) -> None:
    with pytest.raises(ValueError, match="1 to 15"):
        NtpResponder(stratum=stratum)
