"""The JSON lines, one type for each event; docs/schemas/ has the JSON Schema of each.

Later versions only add keys.  Times are in milliseconds, rates in 10^6 bytes per second.
"""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = [
    "CodeOffered",
    "CodePaired",
    "Connected",
    "ContactLine",
    "Event",
    "Explained",
    "Failed",
    "Forwarding",
    "Identified",
    "ListenReady",
    "NetChecked",
    "PathChanged",
    "PipeOpened",
    "Pong",
    "Preset",
    "Searched",
    "ServeReady",
    "Simulated",
    "Transferred",
    "Transferring",
    "encode",
]


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """A line."""


class ListenReady(Event, frozen=True, kw_only=True, tag="ready"):
    """`listen` is ready for calls.

    Attributes:
      address: the address for `connect`, ``wg1…``.
      peer: the node's peer id.
      signals: the connected signal servers; without any, only a peer with a direct path can connect.
    """

    address: str
    peer: str
    signals: list[str]


class CodeOffered(Event, frozen=True, kw_only=True, tag="code"):
    """`listen --code` offers a code.

    Attributes:
      code: the code for `connect --code`, such as ``7-guitar-orbit``.
      seconds: how long it is valid.
      servers: the servers at which it is offered.
    """

    code: str
    seconds: float
    servers: list[str]


class CodePaired(Event, frozen=True, kw_only=True, tag="paired"):
    """A peer has typed this side's code, or this side the peer's: the peer's id and address, both proven."""

    peer: str
    address: str


class ServeReady(Event, frozen=True, kw_only=True, tag="ready"):
    """`serve` is ready.

    Attributes:
      servers: the URLs of its servers, by key of ``[servers]``; those of the TURN server include its login.
      relay_token: the token that one of two peers needs so that the rendezvous server relays for them; null if it
        relays for everybody, or for nobody.
      health: the URL of `--health`; null without it.
    """

    servers: dict[str, list[str]]
    relay_token: str | None = None
    health: str | None = None


class Forwarding(Event, frozen=True, kw_only=True, tag="forwarding"):
    """`forward` is forwarding connections.

    Attributes:
      listens: the addresses on which connections are accepted, ``HOST:PORT``.
      target: where they lead.
      reverse: whether the peer listens and the target is on this side, rather than the reverse.
    """

    listens: list[str]
    target: str
    reverse: bool


class PipeOpened(Event, frozen=True, kw_only=True, tag="pipe"):
    """`listen` accepted a Pipe."""

    peer: str
    phase: str | None
    plugin: str
    af: int
    route: str


class PathChanged(Event, frozen=True, kw_only=True, tag="path"):
    """`connect` or `listen` with --path-events: the path of a Pipe has changed, or its state.

    Attributes:
      old, new: the path before and after the change, with the keys of `PipeOpened` and ``state``; null for no path.
      cause: the reason, a `PathCause`'s value.
      detail: further details; for a lost path, the error.
      silence_ms: how long the peer had acknowledged nothing of the data sent to it.
      replayed: the most bytes that are sent again on the new path.
    """

    peer: str
    old: dict[str, Any] | None
    new: dict[str, Any] | None
    cause: str
    detail: str
    silence_ms: float
    replayed: int


class Searched(Event, frozen=True, kw_only=True, tag="search"):
    """`connect` with --path-events: a search for another path has ended; `report` is a `ConnectReport`."""

    peer: str
    report: dict[str, Any]


class Pong(Event, frozen=True, kw_only=True, tag="pong"):
    """`ping` measured round trip `number`, which took `rtt_ms`."""

    peer: str
    phase: str | None
    plugin: str
    af: int
    route: str
    number: int
    rtt_ms: float


class Explained(Event, frozen=True, kw_only=True, tag="explained"):
    """`ping --explain` has analysed the steps of the call.

    Attributes:
      kind: ``"direct"``, ``"relayed"`` or ``"none"``, as in the exit code.
      verdict: a `Verdict`'s value.
      advice: one sentence on what would help; for a relayed path, what would make it direct.
      steps: each with the keys of `Step`: ``side``, ``step``, ``outcome``, ``detail``, ``advice``.
      report: the whole walk, a `ConnectReport`.
    """

    peer: str
    kind: str
    verdict: str
    advice: str
    steps: list[dict[str, Any]]
    report: dict[str, Any]


class Connected(Event, frozen=True, kw_only=True, tag="connected"):
    """`connect` had a Pipe.

    Attributes:
      phase, plugin, af, route: its path when the line is printed.
      connect_ms: from the call to the Pipe.
      first_byte_ms: from the call to the first echoed byte; null without --echo-test.
      echo_ok: whether every byte came back as it was sent; null without --echo-test.
      mb_per_s: the rate from the first byte sent to the last one echoed; null if not all bytes came back.
      report: the whole walk, a `ConnectReport`; its winner is the first path of the Pipe.
      search: the last finished search for another path, a `ConnectReport`; null without one.
      error: what went wrong after the Pipe was opened; null if nothing did.
    """

    peer: str
    phase: str | None
    plugin: str
    af: int
    route: str
    connect_ms: float
    first_byte_ms: float | None = None
    echo_ok: bool | None = None
    mb_per_s: float | None = None
    report: dict[str, Any] | None = None
    search: dict[str, Any] | None = None
    error: str | None = None


class Failed(Event, frozen=True, kw_only=True, tag="failed"):
    """`connect` has no Pipe.

    Attributes:
      verdict: a `Verdict`'s value; if nothing was tried, ``"bad_address"``, ``"bad_code"`` or
        ``"bad_configuration"``.
      advice: one sentence on what would help.
      report: the whole walk; null if nothing was tried.
      error: the sentence on stderr.
    """

    verdict: str
    advice: str
    report: dict[str, Any] | None
    error: str


class NetChecked(Event, frozen=True, kw_only=True, tag="netcheck"):
    """`netcheck` is done: a `NetcheckReport`, key by key.

    Attributes:
      online: whether at least one server was reached.
      complete: false if the time was up before all measurements were done.
      elapsed_ms: how long it took.
      external: this machine's addresses as servers saw them.
      paths: for each interface and address family, the NAT profile and what it means.
      servers: for each server and transport, whether it was reached, and the round-trip time.
      clock: seconds to add to this machine's clock, and the uncertainty of that.
      gateways: for each router, its port-mapping protocol, and the port that it has opened.
      can, cannot, unknown: sentences.
    """

    online: bool
    complete: bool
    elapsed_ms: float
    external: list[str]
    paths: list[dict[str, Any]]
    servers: list[dict[str, Any]]
    clock: dict[str, Any]
    gateways: list[dict[str, Any]]
    can: list[str]
    cannot: list[str]
    unknown: list[str]


class Identified(Event, frozen=True, kw_only=True, tag="id"):
    """`id`: the node's peer id and the file of its key; `key_file` is null with --ephemeral."""

    peer: str
    key_file: str | None


class ContactLine(Event, frozen=True, kw_only=True, tag="contact"):
    """`contacts`: a contact; a removed one as it was before.

    Attributes:
      address: its last known address, ``wg1…``; null if there is none.
      added: when it was added, in the format of RFC 3339.
      how: how its key was verified: ``"call"``, ``"pairing"`` or ``"hand"``.
    """

    name: str
    peer: str
    address: str | None
    added: str
    how: str


class Simulated(Event, frozen=True, kw_only=True, tag="simulated"):
    """`simulate` ran one world.

    Attributes:
      nat_a, nat_b: the NATs of the caller and of the peer, as on the command line.
      verdict: a `Verdict`'s value.
      phase, plugin: those of the path; null without one.
      connect_ms: from the call to the accepted Pipe; null without one.
      first_byte_ms: from the call to the first echoed byte.
      echo_ok: whether every byte came back as it was sent; null without a Pipe.
      digest: a hash over all events of packets; equal for equal runs.
      report: the whole walk; null with --matrix.
    """

    seed: int
    nat_a: str
    nat_b: str
    rtt_ms: float
    loss_percent: float
    skew_s: float
    verdict: str
    phase: str | None
    plugin: str | None
    connect_ms: float | None
    first_byte_ms: float | None
    echo_ok: bool | None
    digest: str
    report: dict[str, Any] | None


class Preset(Event, frozen=True, kw_only=True, tag="preset"):
    """`simulate --list`: a NAT preset, its source, and its main behaviours for each transport."""

    name: str
    models: str
    udp: dict[str, str]
    tcp: dict[str, str]


class Transferring(Event, frozen=True, kw_only=True, tag="transferring"):
    """`send` or `receive` is transferring files; printed once a second.

    Attributes:
      sending: whether this side sends, rather than receives.
      stage: ``"moving"``, or ``"checking"`` while data is read again for its checksum, or files get their names.
      size: bytes of all files.
      done: bytes that have been transferred.
      there: of these, the bytes that the receiver had before.
      files: number of files.
      name: path of the current file in the offer.
    """

    peer: str
    sending: bool
    stage: str
    size: int
    done: int
    there: int
    files: int
    name: str


class Transferred(Event, frozen=True, kw_only=True, tag="transferred"):
    """`send` or `receive` has transferred files: they have their names at the receiver.

    Attributes:
      sending: whether this side has sent, rather than received.
      size: bytes of all files.
      there: of these, the bytes that had arrived before the last Pipe.
      elapsed_ms: time since the offer on the last Pipe.
      paths: for `receive`: where the files are.
      skipped: for `send`: what was left out.
    """

    peer: str
    sending: bool
    files: int
    size: int
    there: int
    elapsed_ms: float
    paths: list[str] = []
    skipped: list[str] = []


def encode(event: Event) -> bytes:
    """The line of an event, with its end."""
    return msgspec.json.encode(event) + b"\n"
