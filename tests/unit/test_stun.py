"""The STUN codec: the RFCs' test vectors, properties, hostile bytes."""

from __future__ import annotations

import pytest

from warpgate_trio.errors import StunError
from warpgate_trio.nat.stun import BINDING, XOR_MAPPED_ADDRESS, MessageClass, decode, encode


def test_a_message_comes_back() -> None:
    data = encode(
        BINDING, MessageClass.SUCCESS, bytes(12), [XOR_MAPPED_ADDRESS(("192.0.2.1", 32853))], fingerprint=True
    )
    message = decode(data)
    assert (message.method, message.message_class) == (BINDING, MessageClass.SUCCESS)
    assert message.get(XOR_MAPPED_ADDRESS) == ("192.0.2.1", 32853)


def test_no_message() -> None:
    with pytest.raises(StunError):
        decode(b"hello")
