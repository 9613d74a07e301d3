"""NAT-PMP (RFC 6886): the requests to a gateway at its port 5351, and its answers.  No I/O.

A gateway that speaks only PCP answers with version 2 and UNSUPP_VERSION.  `decode` does not accept that as an answer,
so the request times out.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from ipaddress import IPv4Address
from typing import Final, TypeAlias, final

import msgspec

from ..address.endpoint import Transport
from ..errors import PortMapMalformed

__all__ = ["PORT", "ExternalAddress", "Mapped", "Refused", "Result", "decode", "encode_address", "encode_map"]

PORT: Final = 5351
"""The port on which gateways listen, for NAT-PMP and PCP."""
MAX_ANSWER: Final = 1100
"""Bytes of an answer at most: those of PCP's longest message (RFC 6887 §7)."""

_VERSION: Final = 0
_ADDRESS: Final = 0
_MAP: Final = {Transport.UDP: 1, Transport.TCP: 2}
_TRANSPORTS: Final = {opcode: transport for transport, opcode in _MAP.items()}
_RESPONSE: Final = 128
_HEAD: Final = struct.Struct("!BBHI")
_MAPPED: Final = struct.Struct("!HHI")


class Result(IntEnum):
    """Result codes (RFC 6886 §3.5)."""

    SUCCESS = 0
    UNSUPPORTED_VERSION = 1
    NOT_AUTHORIZED = 2
    NETWORK_FAILURE = 3
    OUT_OF_RESOURCES = 4
    UNSUPPORTED_OPCODE = 5


@final
class ExternalAddress(msgspec.Struct, frozen=True):
    """The gateway's external address, as an answer or as an announcement."""

    epoch: int
    ip: IPv4Address


@final
class Mapped(msgspec.Struct, frozen=True):
    """The answer to a request for a mapping; a lifetime of 0 answers a deletion."""

    transport: Transport
    epoch: int
    internal: int
    external: int
    lifetime: int


@final
class Refused(msgspec.Struct, frozen=True):
    """A refusal.

    Attributes:
      transport: that of the mapping; None where the external address was asked for.
      internal: the local port of the request, where the answer repeats it.
      result: a `Result`, or a number that RFC 6886 does not define.
    """

    transport: Transport | None
    epoch: int
    internal: int | None
    result: int


Answer: TypeAlias = ExternalAddress | Mapped | Refused


def encode_address() -> bytes:
    """A request for the external address."""
    return bytes([_VERSION, _ADDRESS])


def encode_map(transport: Transport, internal: int, external: int, lifetime: int) -> bytes:
    """A request for a mapping of `lifetime` seconds, 0 to delete it; `external` is a suggestion, 0 for none."""
    return bytes([_VERSION, _MAP[transport], 0, 0]) + _MAPPED.pack(internal, external, lifetime)


def decode(data: bytes) -> Answer:
    """Read an answer.

    Raises:
      PortMapMalformed: it is no answer of NAT-PMP.
    """
    if not _HEAD.size <= len(data) <= MAX_ANSWER:
        raise PortMapMalformed(f"a NAT-PMP answer cannot have {len(data)} bytes")
    version, opcode, result, epoch = _HEAD.unpack_from(data)
    transport = _TRANSPORTS.get(opcode - _RESPONSE)
    if version != _VERSION or (transport is None and opcode != _RESPONSE + _ADDRESS):
        raise PortMapMalformed(f"version {version}, opcode {opcode} is not a NAT-PMP answer")
    body = data[_HEAD.size :]
    if result:
        internal = None if transport is None or len(body) < 2 else int.from_bytes(body[:2], "big")
        return Refused(transport, epoch, internal, result)
    if transport is None:
        if len(body) < 4:
            raise PortMapMalformed("a NAT-PMP answer is too short for an address")
        return ExternalAddress(epoch, IPv4Address(body[:4]))
    if len(body) < _MAPPED.size:
        raise PortMapMalformed("a NAT-PMP answer is too short for a mapping")
    internal, external, lifetime = _MAPPED.unpack_from(body)
    if not internal or (lifetime and not external):
        raise PortMapMalformed("a NAT-PMP answer maps port 0")
    return Mapped(transport, epoch, internal, external, lifetime)
