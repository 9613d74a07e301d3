"""NAT-PMP and PCP: golden bytes, what is refused, and when a request is retransmitted."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpgate_trio.address import Transport
from warpgate_trio.errors import PortMapMalformed
from warpgate_trio.portmap import natpmp, pcp
from warpgate_trio.portmap.exchange import RTO, TRIES, Exchange

GATEWAY = ("192.168.1.1", 5351)
NONCE = bytes(range(12))
CLIENT4 = bytes.fromhex("00000000000000000000ffffc0a80102")


class TestNatPmp:
    def test_golden_requests(self) -> None:
        assert natpmp.encode_address() == bytes.fromhex("0000")
        assert natpmp.encode_map(Transport.UDP, 4433, 4434, 3600) == bytes.fromhex("00010000 1151 1152 00000e10")
        assert natpmp.encode_map(Transport.TCP, 4433, 0, 0) == bytes.fromhex("00020000 1151 0000 00000000")

    def test_golden_answers(self) -> None:
        assert natpmp.decode(bytes.fromhex("00800000 0000000a cb007105")) == natpmp.ExternalAddress(
            10, IPv4Address("203.0.113.5")
        )
        assert natpmp.decode(bytes.fromhex("00820000 0000000a 1151 1152 00000e10")) == natpmp.Mapped(
            Transport.TCP, 10, 4433, 4434, 3600
        )
        assert natpmp.decode(bytes.fromhex("00810002 0000000a 1151 0000 00000000")) == natpmp.Refused(
            Transport.UDP, 10, 4433, natpmp.Result.NOT_AUTHORIZED
        )
        assert natpmp.decode(bytes.fromhex("00800003 0000000a")) == natpmp.Refused(None, 10, None, 3)

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            ("", "0 bytes"),
            ("00800000", "4 bytes"),
            ("00" * 1101, "1101 bytes"),
            ("02800001 0000000a", "version 2"),
            ("00000000 0000000a cb007105", "opcode 0"),
            ("00830000 0000000a cb007105", "opcode 131"),
            ("00800000 0000000a cb", "too short"),
            ("00810000 0000000a 1151", "too short"),
            ("00810000 0000000a 0000 1151 00000e10", "port 0"),
            ("00810000 0000000a 1151 0000 00000e10", "port 0"),
        ],
    )
    def test_what_is_no_answer(self, data: str, why: str) -> None:
        with pytest.raises(PortMapMalformed, match=why):
            natpmp.decode(bytes.fromhex(data))

    @given(
        st.sampled_from(Transport),
        st.integers(1, 65535),
        st.integers(1, 65535),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
    )
    def test_a_gateways_echo_is_read_back(
        self, transport: Transport, internal: int, external: int, lifetime: int, epoch: int
    ) -> None:
        request = natpmp.encode_map(transport, internal, external, lifetime)
        answer = bytes([0, request[1] + 128, 0, 0]) + epoch.to_bytes(4, "big") + request[4:]
        assert natpmp.decode(answer) == natpmp.Mapped(transport, epoch, internal, external, lifetime)


class TestPcp:
    def test_golden_requests(self) -> None:
        client = ip_address("192.168.1.2")
        assert pcp.encode_announce(client) == bytes.fromhex("02000000 00000000") + CLIENT4
        assert pcp.encode_map(client, NONCE, Transport.TCP, 4433, 4434, 3600) == (
            bytes.fromhex("02010000 00000e10")
            + CLIENT4
            + NONCE
            + bytes.fromhex("06000000 1151 1152 00000000000000000000ffff00000000")
        )
        six = ip_address("2001:db8::2")
        assert pcp.encode_map(six, NONCE, Transport.UDP, 4433, 4433, 0) == (
            bytes.fromhex("02010000 00000000") + six.packed + NONCE + bytes.fromhex("11000000 1151 1151") + bytes(16)
        )

    def test_golden_answers(self) -> None:
        head = "0281 00 {result:02x} 00000e10 0000000a 000000000000000000000000"
        body = NONCE + bytes.fromhex("06000000 1151 1152 00000000000000000000ffffcb007105")
        ip = IPv4Address("203.0.113.5")
        assert pcp.decode(bytes.fromhex(head.format(result=0)) + body) == pcp.Mapped(
            NONCE, Transport.TCP, 10, 4433, 4434, ip, 3600
        )
        assert pcp.decode(bytes.fromhex(head.format(result=8)) + body) == pcp.Refused(
            NONCE, 10, ip, 3600, pcp.Result.NO_RESOURCES
        )
        assert pcp.decode(bytes.fromhex(head.format(result=8))) == pcp.Refused(None, 10, None, 3600, 8)
        assert pcp.decode(bytes.fromhex("02800000 00000000 0000000a") + bytes(12)) == pcp.Announced(10)
        assert pcp.decode(bytes.fromhex("02800001 00000000 0000000a") + bytes(12)) == pcp.Refused(None, 10, None, 0, 1)

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            ("", "0 bytes"),
            ("00800001 0000000a", "8 bytes"),
            ("02800000 00000000 0000000a" + "00" * 13, "25 bytes"),
            ("02" * 1104, "1104 bytes"),
            ("01800000 00000000 0000000a" + "00" * 12, "version 1"),
            ("02000000 00000000 0000000a" + "00" * 12, "opcode 0"),
            ("02820000 00000000 0000000a" + "00" * 12, "opcode 130"),
            ("02810000 00000e10 0000000a" + "00" * 12, "too short"),
            ("02810000 00000e10 0000000a" + "00" * 24 + "06000000 0000 1152" + "00" * 16, "port 0"),
            ("02810000 00000e10 0000000a" + "00" * 24 + "07000000 1151 1152" + "00" * 16, "protocol 7"),
        ],
    )
    def test_what_is_no_answer(self, data: str, why: str) -> None:
        with pytest.raises(PortMapMalformed, match=why):
            pcp.decode(bytes.fromhex(data))

    @given(st.ip_addresses(), st.sampled_from(Transport), st.integers(1, 65535), st.integers(1, 65535))
    def test_a_gateways_echo_is_read_back(
        self, ip: IPv4Address | IPv6Address, transport: Transport, internal: int, external: int
    ) -> None:
        request = pcp.encode_map(ip, NONCE, transport, internal, external, 60)
        head = bytes([2, 129, 0, 0]) + request[4:8] + (7).to_bytes(4, "big") + bytes(12)
        answer = pcp.decode(head + request[24:44] + request[8:24])
        assert isinstance(answer, pcp.Mapped)
        expected = ip.ipv4_mapped or ip if isinstance(ip, IPv6Address) else ip
        assert (answer.ip, answer.transport, answer.internal, answer.external) == (
            expected,
            transport,
            internal,
            external,
        )


def _read(data: bytes) -> bytes | None:
    if data == b"broken":
        raise PortMapMalformed("broken")
    return data if data == b"answer" else None


class TestExchange:
    def test_the_question_is_repeated_and_given_up(self) -> None:
        exchange = Exchange(b"question", GATEWAY, _read)
        now, sent = 100.0, []
        while not exchange.done:
            if exchange.transmit(now) is not None:
                sent.append(now - 100)
                assert exchange.transmit(now) is None
            now = min(exchange.deadline, now + 1000)
            exchange.handle_timer(now)
        assert sent == [RTO * (2**n - 1) for n in range(TRIES)]
        assert now == pytest.approx(107.75)
        assert exchange.answer is None

    def test_only_the_gateways_answer_to_this_is_heard(self) -> None:
        exchange = Exchange(b"question", GATEWAY, _read)
        assert exchange.transmit(0.0) == b"question"
        assert not exchange.receive(b"answer", ("192.168.1.9", 5351), 0.1)
        assert not exchange.receive(b"answer", ("192.168.1.1", 5350), 0.1)
        assert not exchange.receive(b"another", GATEWAY, 0.1)
        assert not exchange.receive(b"broken", GATEWAY, 0.1)
        assert not exchange.done
        assert exchange.receive(b"answer", GATEWAY, 0.2)
        assert exchange.done
        assert exchange.answer == b"answer"
        assert exchange.deadline == float("inf")
        assert exchange.transmit(1.0) is None

    def test_a_scope_does_not_make_another_gateway(self) -> None:
        exchange = Exchange(b"question", ("fe80::1%2", 5351), _read)
        exchange.transmit(0.0)
        assert exchange.receive(b"answer", ("fe80::1%2", 5351), 0.1)
