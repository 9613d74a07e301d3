"""PCP (RFC 6887), as far as a client needs it: ANNOUNCE and MAP, without options.  No I/O.

Over IPv6, MAP opens a pinhole in the gateway's firewall: the external address equals the internal one.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias, final

import msgspec

from ..address.endpoint import Transport
from ..errors import PortMapMalformed
from ..sockaddr import IpAddress, unmapped

__all__ = ["NONCE_LENGTH", "Announced", "Mapped", "Refused", "Result", "decode", "encode_announce", "encode_map"]

NONCE_LENGTH: Final = 12
"""Bytes of the nonce that identifies a mapping's owner (RFC 6887 §11.2)."""
MAX_MESSAGE: Final = 1100
"""Bytes of the longest message (RFC 6887 §7)."""

_VERSION: Final = 2
_ANNOUNCE, _MAP = 0, 1
_RESPONSE: Final = 128
_REQUEST: Final = struct.Struct("!BBHI16s")
_HEAD: Final = struct.Struct("!BBBBII12x")
_BODY: Final = struct.Struct("!12sB3xHH16s")
_PROTOCOL: Final = {Transport.TCP: 6, Transport.UDP: 17}
_TRANSPORTS: Final = {number: transport for transport, number in _PROTOCOL.items()}


class Result(IntEnum):
    """Result codes (RFC 6887 §7.4)."""

    SUCCESS = 0
    UNSUPP_VERSION = 1
    NOT_AUTHORIZED = 2
    MALFORMED_REQUEST = 3
    UNSUPP_OPCODE = 4
    UNSUPP_OPTION = 5
    MALFORMED_OPTION = 6
    NETWORK_FAILURE = 7
    NO_RESOURCES = 8
    UNSUPP_PROTOCOL = 9
    USER_EX_QUOTA = 10
    CANNOT_PROVIDE_EXTERNAL = 11
    ADDRESS_MISMATCH = 12
    EXCESSIVE_REMOTE_PEERS = 13


@final
class Announced(msgspec.Struct, frozen=True):
    """The answer to ANNOUNCE, or an announcement; `epoch` shows whether the gateway has lost its mappings."""

    epoch: int


@final
class Mapped(msgspec.Struct, frozen=True):
    """The answer to a request for a mapping; a lifetime of 0 answers a deletion."""

    nonce: bytes
    transport: Transport
    epoch: int
    internal: int
    external: int
    ip: IpAddress
    lifetime: int


@final
class Refused(msgspec.Struct, frozen=True):
    """A refusal.

    Attributes:
      nonce: that of the request for a mapping, where the answer repeats it.
      ip: the gateway's external address, which some report with a refusal too.
      lifetime: seconds for which the same request would be refused again.
      result: a `Result`, or a number that RFC 6887 does not define.
    """

    nonce: bytes | None
    epoch: int
    ip: IpAddress | None
    lifetime: int
    result: int


Answer: TypeAlias = Announced | Mapped | Refused


def encode_announce(client: IpAddress) -> bytes:
    """An ANNOUNCE request, which shows whether the gateway speaks PCP; `client` is the address that it is sent from."""
    return _REQUEST.pack(_VERSION, _ANNOUNCE, 0, 0, _packed(client))


def encode_map(
    client: IpAddress, nonce: bytes, transport: Transport, internal: int, external: int, lifetime: int
) -> bytes:
    """A request for a mapping of `lifetime` seconds to `client`, 0 to delete it; `external` is a suggestion."""
    unspecified = IPv4Address(0) if client.version == 4 else IPv6Address(0)
    return _REQUEST.pack(_VERSION, _MAP, 0, lifetime, _packed(client)) + _BODY.pack(
        nonce, _PROTOCOL[transport], internal, external, _packed(unspecified)
    )


def decode(data: bytes) -> Answer:
    """Read an answer.

    Raises:
      PortMapMalformed: it is no answer of PCP, or answers a request that this module does not make.
    """
    if len(data) > MAX_MESSAGE or len(data) < _HEAD.size or len(data) % 4:
        raise PortMapMalformed(f"a PCP answer cannot have {len(data)} bytes")
    version, opcode, _, result, lifetime, epoch = _HEAD.unpack_from(data)
    if version != _VERSION or opcode not in (_RESPONSE + _ANNOUNCE, _RESPONSE + _MAP):
        raise PortMapMalformed(f"version {version}, opcode {opcode} is not a PCP answer")
    if opcode == _RESPONSE + _ANNOUNCE:
        return Refused(None, epoch, None, lifetime, result) if result else Announced(epoch)
    if len(data) < _HEAD.size + _BODY.size:
        if not result:
            raise PortMapMalformed("a PCP answer is too short for a mapping")
        return Refused(None, epoch, None, lifetime, result)
    nonce, protocol, internal, external, packed = _BODY.unpack_from(data, _HEAD.size)
    ip = unmapped(IPv6Address(packed))
    if result:
        return Refused(nonce, epoch, None if ip.is_unspecified else ip, lifetime, result)
    transport = _TRANSPORTS.get(protocol)
    if transport is None or not internal or (lifetime and not external):
        raise PortMapMalformed(
            f"a PCP answer has an invalid mapping: protocol {protocol}, port {internal} to {external}"
        )
    return Mapped(nonce, transport, epoch, internal, external, ip, lifetime)


def _packed(ip: IpAddress) -> bytes:
    return ip.packed if ip.version == 6 else bytes(10) + b"\xff\xff" + ip.packed
