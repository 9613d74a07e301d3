"""The wire format of the built-in plugins' messages, which must never change: peers of other releases read them."""

from __future__ import annotations

import msgspec
import pytest

from warpgate_strategies.get_addr import AddressIs, AskAddress
from warpgate_strategies.random_probe import Opened, SprayAgreed, SprayBusy, SprayForMe
from warpgate_strategies.return_addr import NewAddress
from warpgate_strategies.reverse_connect import DialMe
from warpgate_strategies.tcp_punch import MeetByTcp, MeetMeByTcp
from warpgate_strategies.turn import MeetByRelay, MeetMeByRelay
from warpgate_strategies.udp_punch import Go, MeetByUdp, MeetMeByUdp
from warpgate_strategies.ws_relay import ClientHello, ServerFlight
from warpgate_trio.combos import RouteType
from warpgate_trio.errors import SignalMalformed
from warpgate_trio.plugin import load_plugins
from warpgate_trio.punch.candidates import Candidate
from warpgate_trio.punch.spray import Role
from warpgate_trio.signal import Cancel, ClockReply, Envelope, Failed, Message, Refused, decode_payload, wire_name
from warpgate_trio.signal.core import OWNER, RefusalReason

DIAL_ME = DialMe(af=4, route_type=RouteType.NIC_BIND, address=bytes([192, 168, 1, 9]), port=4433)

HERE = (Candidate(bytes([192, 0, 2, 9]), 4433),)
SECRET = bytes(range(16))
HERE_HEX = "aa63616e646964617465739192c404c0000209cd1151"
PATH_HEX = "a2616604aa726f7574655f7479706502a761646472657373c400a4706f727400"  # an empty address: nobody is dialled
SECRET_HEX = "a6736563726574c410000102030405060708090a0b0c0d0e0f"

GOLDEN = [
    ("reverse_connect", DIAL_ME, "84a2616604aa726f7574655f7479706501a761646472657373c404c0a80109a4706f7274cd1151"),
    ("get_addr", AskAddress(), "80"),
    ("get_addr", AddressIs(), "80"),
    ("return_addr", NewAddress(), "80"),
    (
        "tcp_punch",
        MeetByTcp(
            af=4,
            route_type=RouteType.EXT_BIND,
            candidates=HERE,
            sent_at=1.5,
            uncertainty=0.25,
            bucket=7,
            secret=SECRET,
        ),
        f"89{PATH_HEX}{HERE_HEX}a773656e745f6174cb3ff8000000000000ab756e6365727461696e7479cb3fd0000000000000"
        f"a66275636b657407{SECRET_HEX}",
    ),
    (
        "tcp_punch",
        MeetMeByTcp(candidates=HERE, received_at=1.5, sent_at=1.75, uncertainty=None, punch_at=2.0),
        f"85{HERE_HEX}ab72656365697665645f6174cb3ff8000000000000a773656e745f6174cb3ffc000000000000"
        "ab756e6365727461696e7479c0a870756e63685f6174cb4000000000000000",
    ),
    (
        "udp_punch",
        MeetByUdp(af=4, route_type=RouteType.EXT_BIND, secret=SECRET, candidates=HERE),
        f"86{PATH_HEX}{SECRET_HEX}{HERE_HEX}",
    ),
    ("udp_punch", MeetMeByUdp(candidates=HERE), f"81{HERE_HEX}"),
    (
        "ws_relay",
        ClientHello(af=4, route_type=RouteType.EXT_BIND, flight=b"hello"),
        f"85{PATH_HEX}a6666c69676874c40568656c6c6f",
    ),
    ("ws_relay", ServerFlight(flight=b"hello"), "81a6666c69676874c40568656c6c6f"),
    ("udp_punch", Go(), "80"),
    (
        "random_probe",
        SprayForMe(af=4, route_type=RouteType.EXT_BIND, secret=SECRET, candidates=HERE),
        f"86{PATH_HEX}{SECRET_HEX}{HERE_HEX}",
    ),
    ("random_probe", SprayAgreed(role=Role.EASY, candidates=HERE), f"82a4726f6c65a465617379{HERE_HEX}"),
    ("random_probe", SprayBusy(retry_after=2.0), "81ab72657472795f6166746572cb4000000000000000"),
    ("random_probe", Opened(), "80"),
    (
        "turn",
        MeetByRelay(af=4, route_type=RouteType.EXT_BIND, secret=SECRET, relaying=True, seen=HERE),
        f"87{PATH_HEX}{SECRET_HEX}a872656c6179696e67c3a47365656e{HERE_HEX[22:]}",
    ),
    ("turn", MeetMeByRelay(relayed=HERE, seen=HERE), f"82a772656c61796564{HERE_HEX[22:]}a47365656e{HERE_HEX[22:]}"),
    (OWNER, ClockReply(time_ms=1_700_000_000_000), "81a774696d655f6d73cf0000018bcfe56800"),
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
