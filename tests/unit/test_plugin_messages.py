"""The messages of the built-in plugins on the wire: never to change, since peers of other releases read them."""

from __future__ import annotations

import msgspec
import pytest

from warpgate_strategies.get_addr import AddressIs, AskAddress
from warpgate_strategies.return_addr import NewAddress
from warpgate_strategies.reverse_connect import DialMe
from warpgate_trio.combos import RouteType
from warpgate_trio.errors import SignalMalformed
from warpgate_trio.plugin import load_plugins
from warpgate_trio.signal import Cancel, Clock, Envelope, Failed, Message, Refused, decode_payload, wire_name
from warpgate_trio.signal.core import OWNER, RefusalReason

DIAL_ME = DialMe(af=4, route_type=RouteType.NIC_BIND, address=bytes([192, 168, 1, 9]), port=4433)

GOLDEN = [
    ("reverse_connect", DIAL_ME, "84a2616604aa726f7574655f7479706501a761646472657373c404c0a80109a4706f7274cd1151"),
    ("get_addr", AskAddress(), "80"),
    ("get_addr", AddressIs(), "80"),
    ("return_addr", NewAddress(), "80"),
    (OWNER, Clock(time_ms=1_700_000_000_000), "81a774696d655f6d73cf0000018bcfe56800"),
    (OWNER, Cancel(), "80"),
    (OWNER, Failed(), "80"),
    (
        OWNER,
        Refused(reason=RefusalReason.BUSY, retry_after=1.0),
        "82a6726561736f6ea462757379ab72657472795f6166746572cb3ff0000000000000",
    ),
]


@pytest.mark.parametrize(("owner", "message", "golden"), GOLDEN, ids=[wire_name(o, type(m)) for o, m, _ in GOLDEN])
def test_golden_bytes(owner: str, message: Message, golden: str) -> None:
    assert msgspec.msgpack.encode(message).hex() == golden
    assert msgspec.msgpack.decode(bytes.fromhex(golden), type=type(message)) == message


def test_every_message_has_golden_bytes() -> None:
    built_in = {name for name, (kind, _) in load_plugins().messages.items() if "warpgate_strategies" in kind.__module__}
    assert built_in <= {wire_name(owner, type(message)) for owner, message, _ in GOLDEN}


@pytest.mark.parametrize(
    "changes",
    [{"af": 5}, {"route_type": 9}, {"address": bytes(17)}, {"port": 65536}, {"port": -1}, {"address": "127.0.0.1"}],
)
def test_a_request_out_of_its_bounds_is_malformed(changes: dict[str, object]) -> None:
    fields = {"af": 4, "route_type": 1, "address": bytes(4), "port": 1} | changes
    envelope = Envelope(None, None, msgspec.msgpack.encode(fields))  # type: ignore[arg-type]
    with pytest.raises(SignalMalformed):
        decode_payload(envelope, DialMe)


def test_unknown_fields_are_ignored() -> None:
    fields = {"af": 4, "route_type": 1, "address": bytes([192, 168, 1, 9]), "port": 4433, "later": [1, 2]}
    envelope = Envelope(None, None, msgspec.msgpack.encode(fields))  # type: ignore[arg-type]
    assert decode_payload(envelope, DialMe) == DIAL_ME
