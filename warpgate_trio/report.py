"""What a walk did and why it ended: the typed answer to "why are these two peers (not) connected?".

`ConnectError` and `Pipe.report` have the report; `warpgate_trio.walk.recorder` makes it.  It is plain data: the command
line prints ``msgspec.to_builtins(report)`` as JSON.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import Final

import msgspec

__all__ = [
    "ADVICE",
    "BETTER_ADVICE",
    "REMEDIES",
    "ComboReport",
    "ConnectReport",
    "Known",
    "Lookup",
    "LookupOutcome",
    "Outcome",
    "PathChangeReport",
    "PathReport",
    "SignalReport",
    "Verdict",
    "WalkEvent",
    "advise",
]


class LookupOutcome(Enum):
    """The result of asking one server for the record of a key (docs/contacts.md)."""

    RECORD = "record"
    """The server has a usable record."""
    NOBODY = "nobody"
    """The server has no record of that key."""
    TOO_MANY = "too_many"
    """The server accepts no further lookups from this node for now."""
    UNSUPPORTED = "unsupported"
    """The server does not store key records: it is of an older release."""
    FORBIDDEN = "forbidden"
    """The rules of an MQTT broker (ACL) do not let this node read the topics of key records."""
    SILENT = "silent"
    """The server is not connected, or does not answer."""
    OTHER_KEY = "other_key"
    """The server returned the record of another key."""
    FORGED = "forged"
    """The server returned a record that is not signed by its key."""
    MALFORMED = "malformed"
    """The server returned bytes that are not a record."""
    UNKNOWN_VERSION = "unknown_version"
    """The record is of a later release."""
    EXPIRED = "expired"
    """The record has expired."""
    NOT_YET_VALID = "not_yet_valid"
    """The record's time of issue is in the future: a clock is wrong."""
    ROLLED_BACK = "rolled_back"
    """The record is older than one that was seen before."""


class Lookup(msgspec.Struct, frozen=True):
    """The result of looking up a key at one server.

    Attributes:
      server: the server's URL, without a password.
      outcome: the result.
    """

    server: str
    outcome: LookupOutcome


class Verdict(Enum):
    """How a walk ended: the reason that explains most."""

    CONNECTED = "connected"
    REFUSED = "refused"
    """The peer's ``authorize`` refused this node."""
    NOT_ACCEPTING = "not_accepting"
    """The peer was reached and does not accept Pipes."""
    BUSY = "busy"
    """The peer was reached and has no room for another Pipe now."""
    UNSUPPORTED = "unsupported"
    """The two releases have no common protocol version, or the peer lacks a plugin that was needed."""
    WRONG_PEER = "wrong_peer"
    """A path led to another node, and no other path made a Pipe."""
    NOTHING_TO_TRY = "nothing_to_try"
    """No combo was valid: no common address family, or the options exclude everything."""
    CLOCK_OFF = "clock_off"
    """The peer refused signals for their timestamps, and correcting these by its clock did not help."""
    NO_DNS = "no_dns"
    """The names of all signal servers, or of all STUN servers, cannot be resolved, and no direct path worked."""
    NO_SIGNAL = "no_signal"
    """No signal server that the two share could be reached, and no direct path worked."""
    PEER_OFFLINE = "peer_offline"
    """The signal servers were reached, but the peer is not connected to them; no direct path worked."""
    PEER_SILENT = "peer_silent"
    """A signal server accepted the signals, but the peer never answered; no direct path worked."""
    BROKE_OFF = "broke_off"
    """A path was found and proven, and then broke before the peer accepted."""
    TIMED_OUT = "timed_out"
    """The caller's timeout, or ``budgets.total``, was over."""
    NO_BETTER_PATH = "no_better_path"
    """A search for a better path of a Pipe found none; the Pipe stays on its path."""
    UNREACHABLE = "unreachable"
    """Nothing answered on any path that was tried."""
    NO_RELAY_CONFIGURED = "no_relay_configured"
    """Everything direct failed, the peer answers signals, and there is no relay that the two may use."""
    RELAY_FAILED = "relay_failed"
    """Everything direct failed, the peer answers signals, and no relay worked."""
    RELAY_FORBIDS = "relay_forbids"
    """Everything direct failed, and the TURN server forbids sending to the peer's address."""

    def __str__(self) -> str:
        """The value, by which the JSON and the documentation name it."""
        return self.value


ADVICE: Final = {
    Verdict.CONNECTED: "Nothing to do.",
    Verdict.REFUSED: "Ask the peer to allow your id (its authorize rule, or `--allow` on its command line).",
    Verdict.NOT_ACCEPTING: "Start the peer as a listener: authorize=… in code, `warpgate-trio listen` in a shell.",
    Verdict.BUSY: "Try again in a moment: the peer's queue of incoming pipes is full.",
    Verdict.UNSUPPORTED: "Update warpgate-trio on both sides to a common version.",
    Verdict.WRONG_PEER: "Ask the peer for its current address: another node answers at the one you have.",
    Verdict.NOTHING_TO_TRY: "Check that both sides have IPv4 or IPv6 in common, and that no option excludes it.",
    Verdict.CLOCK_OFF: "Set the clocks: yours and the peer's differ by more than five minutes.",
    Verdict.NO_DNS: "Check this machine's DNS and the names in [servers]; the report's notes say which ones.",
    Verdict.NO_SIGNAL: "Check your connection: none of the signal servers in [servers] could be reached.",
    Verdict.PEER_OFFLINE: "Check that the peer is running and that both sides use the same signal server.",
    Verdict.PEER_SILENT: "Check the peer: its signal server took the messages, but it does not answer.",
    Verdict.BROKE_OFF: "Try again: the path that had been found broke before the peer accepted.",
    Verdict.TIMED_OUT: "Give it more time (timeout=… or budgets.total); the report shows the slow step.",
    Verdict.NO_BETTER_PATH: (
        "The Pipe goes on; one side that is reachable makes it direct (`listen --port` and a forwarded port, or IPv6)."
    ),
    Verdict.UNREACHABLE: "Check that the peer is running and that no firewall stands between; see the report's paths.",
    Verdict.NO_RELAY_CONFIGURED: (
        "Name a TURN server in [servers], or one that relays (`serve --open`), "
        "or make one side reachable (`listen --port`)."
    ),
    Verdict.RELAY_FAILED: "Check the relays: the report's rows of `turn` and `ws_relay` say what the servers answered.",
    Verdict.RELAY_FORBIDS: "Have the TURN server allow its own address (coturn: allowed-peer-ip), or use another.",
}
"""What would help, by verdict; `BETTER_ADVICE` is more specific."""


class Known(Enum):
    """A known obstacle, in words, on which the advice depends besides the verdict; `REMEDIES` says what would help."""

    NO_RELAY_TOKEN = "neither side has the relay token of a server that both use"
    NO_COMMON_SERVER = "the two have no rendezvous server in common"
    NO_SIGNAL_HERE = "this side has no signal server configured"
    NO_STUN_HERE = "this side has no STUN server configured, and would have punched"
    NO_STUN_THERE = "the peer's address says nothing of its NAT, and this side would have punched"
    UDP_BLOCKED_HERE = "this side's network blocks UDP"
    UDP_BLOCKED_THERE = "the peer's network blocks UDP"
    BOTH_SYMMETRIC = "both NATs are symmetric, and their ports cannot be predicted"
    TAKEN = "the peer accepts only one Pipe, which is taken"

    def __str__(self) -> str:
        """The value."""
        return self.value


REMEDIES: Final = {
    Known.NO_RELAY_TOKEN: (
        "Put the server's relay_token into [servers] on one side, or have the server started with `serve --open`."
    ),
    Known.NO_COMMON_SERVER: (
        "Name the peer's rendezvous server in [servers] here, or yours there: one that relays for both."
    ),
    Known.NO_SIGNAL_HERE: "Name a signal server in [servers] here; `warpgate-trio serve` runs one.",
    Known.NO_STUN_HERE: "Name a STUN server in [servers] here, to get through NATs; `warpgate-trio serve` runs one.",
    Known.NO_STUN_THERE: (
        "Have the peer name a STUN server in its [servers], to get through NATs; `warpgate-trio serve` runs one."
    ),
    Known.UDP_BLOCKED_HERE: "Allow outgoing UDP, and the replies to it, in this network's firewall.",
    Known.UDP_BLOCKED_THERE: "Have outgoing UDP, and the replies to it, allowed in the firewall of the peer's network.",
    Known.BOTH_SYMMETRIC: "Forward a port to one side (`listen --port`), give it IPv6, or another router.",
    Known.TAKEN: "Wait until the peer is free: it serves one caller at a time, and another one is connected.",
}
"""What would help against each obstacle."""

_BETTER: Final = {
    Verdict.BUSY: (Known.TAKEN,),
    Verdict.NO_SIGNAL: (Known.NO_SIGNAL_HERE,),
    Verdict.NO_RELAY_CONFIGURED: (
        Known.NO_RELAY_TOKEN,
        Known.NO_COMMON_SERVER,
        Known.NO_STUN_HERE,
        Known.NO_STUN_THERE,
    ),
    Verdict.NO_BETTER_PATH: (
        Known.NO_STUN_HERE,
        Known.NO_STUN_THERE,
        Known.UDP_BLOCKED_HERE,
        Known.UDP_BLOCKED_THERE,
        Known.BOTH_SYMMETRIC,
    ),
}
BETTER_ADVICE: Final = {(verdict, known): REMEDIES[known] for verdict, some in _BETTER.items() for known in some}
"""What would help, by verdict and known obstacle."""


def advise(verdict: Verdict, known: Collection[Known] = ()) -> str:
    """One sentence on what would help, by the first known obstacle that has one for this verdict."""
    return next(
        (BETTER_ADVICE[verdict, each] for each in Known if (verdict, each) in BETTER_ADVICE and each in known),
        ADVICE[verdict],
    )


class Outcome(Enum):
    """How one combo ended."""

    WON = "won"
    LOST = "lost"
    """Another combo won while this one was under way."""
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    """Its phase's budget, the plugin's timeout or the walk's deadline was over."""
    NOT_STARTED = "not_started"
    """Another combo won before this one's turn."""
    HOPELESS = "hopeless"
    """Expected to fail, and not tried: hopeless combos are tried only in a walk's last round."""


class ComboReport(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one combo; times are in milliseconds from the start of the walk, or of the search.

    Attributes:
      phase, plugin, af, route: what the combo is.
      target: the endpoint that was dialled, by this node or (for `reverse_connect`) by the peer: kind, transport and
        address, as in ``"nic tcp 192.168.1.9:4433"``.  For a rendezvous server that relays, its URL without a password.
      likelihood: the planner's expectation, a value of `Likelihood`.
      outcome: how it ended.
      error: why, in one sentence; for a hopeless combo why it is hopeless.
      started_ms, ended_ms: when its attempt began and ended; None where it did not.
      cleanup_ms: how long it took to end after its cancellation.
    """

    phase: str | None
    plugin: str
    af: int
    route: str
    target: str
    likelihood: str
    outcome: Outcome
    error: str | None = None
    started_ms: float | None = None
    ended_ms: float | None = None
    cleanup_ms: float | None = None


class SignalReport(msgspec.Struct, frozen=True, kw_only=True):
    """The walk's signals to the peer, and their results.

    Attributes:
      sent: a signal was sent, or at least begun.
      delivery: the best result that a signal server reported: ``"nobody_home"`` (the peer is not connected to it),
        ``"full"`` (the peer's mailbox is full), ``"queued"`` (the server reports no more than that it took the signal)
        or ``"delivered"``; None where no server took a signal, or its report was not waited for.
      answered: the peer answered, with something other than its time.
      clock_corrected: the peer told its time, and later signals were stamped by it.
    """

    sent: bool
    delivery: str | None
    answered: bool
    clock_corrected: bool


class ConnectReport(msgspec.Struct, frozen=True, kw_only=True):
    """A whole walk: that of a call, or that of a later search for another path of a Pipe.

    Attributes:
      peer: the peer's id.
      session: 32 hex digits, which the logs of both sides name.
      verdict: how the walk ended, and why.
      advice: one sentence on what would help.
      elapsed_ms: milliseconds from the beginning of the walk to its end.
      combos: every planned combo, in the order of the plan.
      notes: further remarks, one sentence each (names that do not resolve, dead servers, a corrected clock, plugins
        that were skipped).
      lacks: what this side lacked, one sentence each; empty where there is a Pipe.
      began_ms: for a search, milliseconds from the call that made the Pipe to the beginning of the search (on the
        responder's side, from the Pipe); 0 for a call.
      known: the obstacles because of which there is no Pipe, or only one by a relay; see `REMEDIES`.
      signals: the signals to the peer, and their results.
      peer_nats: the peer's NATs by its address, one sentence for each address family.
    """

    peer: str
    session: str
    verdict: Verdict
    advice: str
    elapsed_ms: float
    combos: tuple[ComboReport, ...]
    notes: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    began_ms: float = 0.0
    known: tuple[Known, ...] = ()
    signals: SignalReport | None = None
    peer_nats: tuple[str, ...] = ()

    @property
    def winner(self) -> ComboReport | None:
        """The combo that made the Pipe, or its further path; None where there is none."""
        return next((combo for combo in self.combos if combo.outcome is Outcome.WON), None)


class PathReport(msgspec.Struct, frozen=True, kw_only=True):
    """A Pipe's path as plain data; `PathInfo` explains the attributes."""

    phase: str | None
    plugin: str
    af: int
    route: str
    state: str


class PathChangeReport(msgspec.Struct, frozen=True, kw_only=True):
    """A change of a Pipe's path as plain data; `PathChange` explains the attributes.  Times are in milliseconds."""

    old: PathReport | None
    new: PathReport | None
    cause: str
    detail: str
    silence_ms: float
    replayed: int


class WalkEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a walk, or a later change of the path that it found, for live views.

    Attributes:
      kind: ``"phase"``, ``"combo_started"``, ``"combo_ended"`` or ``"note"``; once there is a Pipe, ``"path"`` or
        ``"search"``.
      at_ms: milliseconds from the start of the walk.
      phase: of ``"phase"``, ``"combo_started"`` and ``"combo_ended"``.
      combo: of ``"combo_started"`` and ``"combo_ended"``.
      text: of ``"note"``.
      path: of ``"path"``: the change.
      report: of ``"search"``: the report of a search for another path, which has ended.
    """

    kind: str
    at_ms: float
    phase: str | None = None
    combo: ComboReport | None = None
    text: str = ""
    path: PathChangeReport | None = None
    report: ConnectReport | None = None
