"""The servers' counters, in the form that Prometheus reads."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Final, get_args

import pytest

from warpgate_trio.servers.key_records import KeyRecordStatistics
from warpgate_trio.servers.mailboxes import PairingStatistics
from warpgate_trio.servers.metrics import Statistics, exposition
from warpgate_trio.servers.ntp_core import NtpStatistics
from warpgate_trio.servers.relay_core import RelayStatistics
from warpgate_trio.servers.rendezvous_core import RendezvousStatistics
from warpgate_trio.servers.stun_core import StunStatistics
from warpgate_trio.servers.turn_limits import TurnStatistics

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
UNITS = ("seconds", "bytes")


def parse(text: str) -> dict[str, tuple[str, float]]:
    """Type and value by name; strict: each metric has HELP, TYPE and one sample without labels, in this order."""
    assert text.endswith("\n")
    lines = iter(text[:-1].split("\n"))
    found: dict[str, tuple[str, float]] = {}
    for line in lines:
        mark, word, name, meaning = line.split(" ", 3)
        assert (mark, word) == ("#", "HELP")
        assert NAME.fullmatch(name)
        assert meaning
        assert "\\" not in meaning, "escapes are not needed"
        mark, word, again, kind = next(lines).split(" ")
        assert (mark, word, again) == ("#", "TYPE", name)
        assert kind in ("counter", "gauge")
        sample, value = next(lines).split(" ")
        assert sample == name
        assert name not in found, "twice"
        found[name] = kind, float(value)
    return found


PARTS: Final[dict[str, type[Any]]] = {
    "relay": RelayStatistics,
    "pairing": PairingStatistics,
    "key_records": KeyRecordStatistics,
}


def filled(kind: type[Any], start: int) -> Any:
    """Statistics with a different number in each field, counted from `start`; and the next number."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in PARTS:
            values[field.name], start = filled(PARTS[field.name], start)
        else:
            values[field.name], start = start, start + 1
    return kind(**values), start


def everything() -> tuple[list[Any], int]:
    start, servers = 1, []
    for kind in get_args(Statistics):
        statistics, start = filled(kind, start)
        servers.append(statistics)
    return servers, start - 1


def test_each_field_of_each_server_is_there_once() -> None:
    servers, last = everything()
    assert len(servers) == 4
    found = parse(exposition(servers))
    assert sorted(value for _, value in found.values()) == [float(each) for each in range(1, last + 1)]


def test_names_say_the_server_the_unit_and_the_kind() -> None:
    found = parse(exposition(everything()[0]))
    for name, (kind, _) in found.items():
        assert re.match(r"warpgate_(rendezvous|relay|pairing|keys|stun|turn|ntp)_[a-z]", name)
        assert name == name.lower()
        assert name.endswith("_total") == (kind == "counter")
        assert ("byte" in name) == (name.removesuffix("_total").endswith("_bytes"))


def test_what_is_held_now_is_a_gauge_and_what_was_done_a_counter() -> None:
    found = parse(exposition(everything()[0]))
    assert {name for name, (kind, _) in found.items() if kind == "gauge"} == {
        "warpgate_rendezvous_connections",
        "warpgate_rendezvous_mailboxes",
        "warpgate_rendezvous_queued_frames",
        "warpgate_relay_circuits",
        "warpgate_relay_held_bytes",
        "warpgate_pairing_offers",
        "warpgate_keys_records",
        "warpgate_turn_allocations",
        "warpgate_turn_permissions",
        "warpgate_turn_channels",
    }


def test_a_whole_page() -> None:
    assert exposition([NtpStatistics(answered=12345678901234567890, ignored=0, limited=1)]) == (
        "# HELP warpgate_ntp_answered_requests_total Requests that were answered.\n"
        "# TYPE warpgate_ntp_answered_requests_total counter\n"
        "warpgate_ntp_answered_requests_total 12345678901234567890\n"
        "# HELP warpgate_ntp_ignored_packets_total Packets that are not a valid request.\n"
        "# TYPE warpgate_ntp_ignored_packets_total counter\n"
        "warpgate_ntp_ignored_packets_total 0\n"
        "# HELP warpgate_ntp_limited_requests_total Requests that exceeded a limit.\n"
        "# TYPE warpgate_ntp_limited_requests_total counter\n"
        "warpgate_ntp_limited_requests_total 1\n"
    )


def test_of_several_servers_of_a_kind_there_is_the_sum() -> None:
    one, two = (StunStatistics(answered=n, refused=0, ignored=2 * n, limited=1) for n in (1, 10))
    found = parse(exposition([one, two]))
    assert found["warpgate_stun_answered_requests_total"] == ("counter", 11)
    assert found["warpgate_stun_ignored_messages_total"] == ("counter", 22)


def test_no_server_no_metrics() -> None:
    assert exposition([]) == ""


@pytest.mark.parametrize("kind", [RendezvousStatistics, StunStatistics, TurnStatistics, NtpStatistics])
def test_every_kind_of_statistics_is_known(kind: type[Any]) -> None:
    assert kind in get_args(Statistics)
