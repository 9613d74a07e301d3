"""The servers' counts in the text format of Prometheus (version 0.0.4).  No I/O.

Names follow https://prometheus.io/docs/practices/naming/: the program, the server, what is counted, and its unit.
Names that end in ``_total`` are counters, all others gauges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

from .key_records import KeyRecordStatistics
from .mailboxes import PairingStatistics
from .ntp_core import NtpStatistics
from .relay_core import RelayStatistics
from .rendezvous_core import RendezvousStatistics
from .stun_core import StunStatistics
from .turn_limits import TurnStatistics

__all__ = ["CONTENT_TYPE", "Statistics", "exposition"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""The content type of `exposition`."""
Statistics: TypeAlias = NtpStatistics | RendezvousStatistics | StunStatistics | TurnStatistics
"""What a server's ``statistics()`` returns."""

# By dataclass and field: the metric's name and help text.
_METRICS: Final[dict[type, dict[str, tuple[str, str]]]] = {
    RendezvousStatistics: {
        "connections": ("warpgate_rendezvous_connections", "Clients that are connected."),
        "mailboxes": ("warpgate_rendezvous_mailboxes", "Keys that are registered."),
        "queued": ("warpgate_rendezvous_queued_frames", "Frames that wait to be written to clients."),
        "registrations": ("warpgate_rendezvous_registrations_total", "Registrations that were accepted."),
        "sends": ("warpgate_rendezvous_sends_total", "Signals that clients sent."),
        "handed_over": (
            "warpgate_rendezvous_handed_over_signals_total",
            "Signals handed to clients, counted once for each client.",
        ),
        "errors": ("warpgate_rendezvous_errors_total", "Connections that were ended with an error."),
    },
    RelayStatistics: {
        "circuits": ("warpgate_relay_circuits", "Circuits that exist, unanswered ones included."),
        "held": ("warpgate_relay_held_bytes", "Relayed bytes that wait to be written to clients."),
        "calls": ("warpgate_relay_calls_total", "Circuits that clients asked for."),
        "answered": ("warpgate_relay_answered_calls_total", "Circuits that were answered."),
        "relayed_bytes": ("warpgate_relay_relayed_bytes_total", "Bytes that were relayed."),
    },
    PairingStatistics: {
        "offers": ("warpgate_pairing_offers", "Codes that are offered."),
        "claims": ("warpgate_pairing_claims_total", "Tries of codes."),
        "paired": ("warpgate_pairing_paired_total", "Tries that paired two nodes."),
        "wrong": ("warpgate_pairing_wrong_codes_total", "Tries whose code was wrong."),
        "waits": ("warpgate_pairing_waits_total", "Tries refused by a rate limit."),
    },
    KeyRecordStatistics: {
        "records": ("warpgate_keys_records", "Keys whose record is stored."),
        "lookups": ("warpgate_keys_answered_lookups_total", "Lookups of keys that were answered."),
        "limited": ("warpgate_keys_limited_lookups_total", "Lookups of keys that exceeded a limit."),
    },
    StunStatistics: {
        "answered": ("warpgate_stun_answered_requests_total", "Requests that were answered."),
        "refused": ("warpgate_stun_refused_requests_total", "Requests that were answered with an error."),
        "ignored": ("warpgate_stun_ignored_messages_total", "Messages that are not a valid Binding request."),
        "limited": ("warpgate_stun_limited_requests_total", "Requests that exceeded a limit."),
    },
    TurnStatistics: {
        "allocations": ("warpgate_turn_allocations", "Allocations that exist."),
        "permissions": ("warpgate_turn_permissions", "Permissions of all allocations."),
        "channels": ("warpgate_turn_channels", "Channels of all allocations."),
        "answered": ("warpgate_turn_answered_requests_total", "Requests that succeeded."),
        "challenged": ("warpgate_turn_challenged_requests_total", "Requests that were asked for credentials."),
        "refused": ("warpgate_turn_refused_requests_total", "Requests that were answered with another error."),
        "limited": ("warpgate_turn_limited_requests_total", "Requests that exceeded a limit."),
        "ignored": (
            "warpgate_turn_ignored_messages_total",
            "Messages that are neither a valid TURN request nor a Send indication.",
        ),
        "relayed": ("warpgate_turn_relayed_datagrams_total", "Datagrams relayed to peers and to clients."),
        "relayed_bytes": ("warpgate_turn_relayed_bytes_total", "Bytes in the relayed datagrams."),
        "dropped": (
            "warpgate_turn_dropped_datagrams_total",
            "Datagrams dropped: malformed, or without an allocation, a permission or an open relay.",
        ),
    },
    NtpStatistics: {
        "answered": ("warpgate_ntp_answered_requests_total", "Requests that were answered."),
        "ignored": ("warpgate_ntp_ignored_packets_total", "Packets that are not a valid request."),
        "limited": ("warpgate_ntp_limited_requests_total", "Requests that exceeded a limit."),
    },
}


def exposition(statistics: Iterable[Statistics]) -> str:
    """The text that Prometheus scrapes; the values of several servers of one kind are added up."""
    found: dict[str, tuple[str, int]] = {}
    for each in statistics:
        for name, meaning, value in _samples(each):
            found[name] = meaning, value + found.get(name, ("", 0))[1]
    return "".join(
        f"# HELP {name} {meaning}\n# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}\n{name} {value}\n"
        for name, (meaning, value) in found.items()
    )


def _samples(
    statistics: Statistics | RelayStatistics | PairingStatistics | KeyRecordStatistics,
) -> Iterator[tuple[str, str, int]]:
    table = _METRICS[type(statistics)]
    for field in dataclasses.fields(statistics):
        value = getattr(statistics, field.name)
        if isinstance(value, RelayStatistics | PairingStatistics | KeyRecordStatistics):
            yield from _samples(value)
        else:
            yield *table[field.name], value
