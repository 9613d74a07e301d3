"""What a gateway answers that is asked for a port."""

from __future__ import annotations

from ipaddress import ip_address

from tests.fuzz.registry import target
from warpgate_trio.address import Transport
from warpgate_trio.errors import PortMapMalformed
from warpgate_trio.portmap import natpmp, pcp


def _natpmp() -> list[bytes]:
    return [
        bytes.fromhex("00800000 0000000a cb007105"),
        bytes.fromhex("00820000 0000000a 1151 1152 00000e10"),
        bytes.fromhex("00810002 0000000a 1151 0000 00000000"),
    ]


@target(_natpmp, PortMapMalformed, inputs=20_000)
def natpmp_answers(data: bytes) -> None:
    answer = natpmp.decode(data)
    if isinstance(answer, natpmp.Mapped):
        assert natpmp.encode_map(answer.transport, answer.internal, answer.external, answer.lifetime)


def _pcp() -> list[bytes]:
    head = bytes.fromhex("02810000 00000e10 0000000a") + bytes(12)
    body = bytes(12) + bytes.fromhex("06000000 1151 1152 00000000000000000000ffffcb007105")
    return [head + body, head[:3] + b"\x08" + head[4:] + body, bytes.fromhex("02800000 00000000 0000000a") + bytes(12)]


@target(_pcp, PortMapMalformed, inputs=20_000)
def pcp_answers(data: bytes) -> None:
    answer = pcp.decode(data)
    if isinstance(answer, pcp.Mapped):
        client = ip_address("192.168.1.2")
        assert pcp.encode_map(client, answer.nonce, Transport.TCP, answer.internal, answer.external, answer.lifetime)
