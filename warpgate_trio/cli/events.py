"""The JSON lines, one type per event; docs/schemas/ has the JSON Schema of each.

Keys are only ever added.  Times are in milliseconds, rates in 10^6 bytes per second.
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
    """`listen` can be called.

    Attributes:
      address: what `connect` wants, ``wg1…``.
      peer: the node's id.
      signals: the signal servers that are connected; without one only a peer with a direct path gets through.
    """

    address: str
    peer: str
    signals: list[str]


class CodeOffered(Event, frozen=True, kw_only=True, tag="code"):
    """`listen --code` offers a code.

    Attributes:
      code: what `connect --code` wants, as ``7-guitar-orbit``.
      seconds: for how long it is good.
      servers: at which it is offered.
    """

    code: str
    seconds: float
    servers: list[str]


class CodePaired(Event, frozen=True, kw_only=True, tag="paired"):
    """Somebody has typed the code, or this side has: the other one's id and address, both proven."""

    peer: str
    address: str


class ServeReady(Event, frozen=True, kw_only=True, tag="ready"):
    """`serve` is up.

    Attributes:
      servers: the URLs of its servers, by key of ``[servers]``; those of the TURN server with the login for it.
      relay_token: what one of two peers needs, so that the rendezvous server relays for them; null where that is
        everybody, or nobody.
      health: the URL of `--health`; null without it.
    """

    servers: dict[str, list[str]]
    relay_token: str | None = None
    health: str | None = None


class Forwarding(Event, frozen=True, kw_only=True, tag="forwarding"):
    """`forward` leads connections on.

    Attributes:
      listens: where connections are taken, ``HOST:PORT``.
      target: where they lead.
      reverse: the peer listens, and the target is on this side; else the other way round.
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
      old, new: the path before and after it, with the keys of `PipeOpened` and ``state``; null where there is none.
      cause: why, a `PathCause`'s value.
      detail: what is known beyond that; of a path that is lost, the error.
      silence_ms: for how long the peer had acknowledged nothing of what it was sent.
      replayed: bytes that are said again on the new path, at most.
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
    """`ping` measured a round trip: the `number`-th, of `rtt_ms`."""

    peer: str
    phase: str | None
    plugin: str
    af: int
    route: str
    number: int
    rtt_ms: float


class Explained(Event, frozen=True, kw_only=True, tag="explained"):
    """`ping --explain` has gone through the steps of the call.

    Attributes:
      kind: ``"direct"``, ``"relayed"`` or ``"none"``, as the exit code has it.
      verdict: a `Verdict`'s value.
      advice: one sentence on what would help; of a relayed path, what would make it direct.
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
      phase, plugin, af, route: how it travels when the line is printed.
      connect_ms: from the call to the Pipe.
      first_byte_ms: from the call to the first echoed byte; null without --echo-test.
      echo_ok: whether every byte came back as it was sent; null without --echo-test.
      mb_per_s: from the first byte sent to the last one echoed; null where that never came.
      report: the whole walk, a `ConnectReport`; its winner is how the Pipe travelled at first.
      search: the last search for another path, if one has ended: a `ConnectReport`.
      error: what went wrong after the Pipe was there; null when nothing did.
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
      verdict: a `Verdict`'s value, or ``"bad_address"``, ``"bad_code"`` or ``"bad_configuration"`` where nothing was
        tried.
      advice: one sentence on what would help.
      report: the whole walk; null where nothing was tried.
      error: the sentence that stderr has.
    """

    verdict: str
    advice: str
    report: dict[str, Any] | None
    error: str


class NetChecked(Event, frozen=True, kw_only=True, tag="netcheck"):
    """`netcheck` is done: a `NetcheckReport`, key by key.

    Attributes:
      online: whether at least one server was reached.
      complete: false where the time was up before all had been asked.
      elapsed_ms: how long it took.
      external: our addresses as servers saw them.
      paths: per interface and address family: the NAT profile, and what it means.
      servers: per server and transport: whether it was reached, and the round trip.
      clock: seconds to add to this machine's clock, and the uncertainty of that.
      gateways: per router: what it speaks, and the port that it has opened.
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
    """`id`: the node's id and where its key is; `key_file` is null with --ephemeral."""

    peer: str
    key_file: str | None


class ContactLine(Event, frozen=True, kw_only=True, tag="contact"):
    """`contacts`: a contact, as it is, or was where it is removed.

    Attributes:
      address: where it was last, ``wg1…``; null where that is not known.
      added: when, as RFC 3339 has it.
      how: how it was made sure whose key that is: ``"call"``, ``"pairing"`` or ``"hand"``.
    """

    name: str
    peer: str
    address: str | None
    added: str
    how: str


class Simulated(Event, frozen=True, kw_only=True, tag="simulated"):
    """`simulate` ran one world.

    Attributes:
      nat_a, nat_b: what the caller and the peer were behind, as on the command line.
      verdict: a `Verdict`'s value.
      phase, plugin: of the path; null without one.
      connect_ms: from the call to the accepted Pipe; null without one.
      first_byte_ms: from the call to the first echoed byte.
      echo_ok: whether every byte came back as it was sent; null without a Pipe.
      digest: a hash over everything that every packet did; equal for equal runs.
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
    """`simulate --list`: a NAT, what it models and whence that is known, and its main axes per transport."""

    name: str
    models: str
    udp: dict[str, str]
    tcp: dict[str, str]


class Transferring(Event, frozen=True, kw_only=True, tag="transferring"):
    """`send` or `receive` moves files: once a second.

    Attributes:
      sending: this side sends, else it receives.
      stage: ``"moving"``, or ``"checking"`` while what is there is read again, or gets its names.
      size: bytes of all files.
      done: bytes that are over.
      there: of these, what the receiver had before.
      files: how many there are.
      name: of the file that is moving, as the sender has it.
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
    """`send` or `receive` has moved files: they have their names at the receiver.

    Attributes:
      sending: this side has sent, else it has received.
      size: bytes of all files.
      there: of these, what had come before the last Pipe.
      elapsed_ms: from the offer on the last Pipe.
      paths: of `receive`: where they are.
      skipped: of `send`: what was left out.
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
