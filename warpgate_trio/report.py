"""What a walk did and why it ended: the typed answer to "why are these two peers (not) connected?".

`ConnectError` and `Pipe.report` carry it; `warpgate_trio.walk.recorder` writes it.  All of it is plain data:
``msgspec.to_builtins(report)`` is what the command line prints as JSON.
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
    """What came of asking one server for the record of a key (docs/contacts.md)."""

    RECORD = "record"
    """It has one that can be used."""
    NOBODY = "nobody"
    """It says that nobody is registered by that key who has published one."""
    TOO_MANY = "too_many"
    """It takes no further lookups from here now."""
    UNSUPPORTED = "unsupported"
    """It keeps no key records: it is of an older release."""
    FORBIDDEN = "forbidden"
    """Its rules do not let us ask: those of a broker (ACL), for the topics of key records."""
    SILENT = "silent"
    """It is not connected, or does not answer."""
    OTHER_KEY = "other_key"
    """It shows the record of another key."""
    FORGED = "forged"
    """It shows a record that is not signed by its key."""
    MALFORMED = "malformed"
    """It shows what is no record."""
    UNKNOWN_VERSION = "unknown_version"
    """The peer is of a later release."""
    EXPIRED = "expired"
    """It shows a record that is not good any more."""
    NOT_YET_VALID = "not_yet_valid"
    """It shows a record from the future: a clock is wrong."""
    ROLLED_BACK = "rolled_back"
    """It shows an older record than was seen before."""


class Lookup(msgspec.Struct, frozen=True):
    """One server and what it said of a key.

    Attributes:
      server: its URL, without a password.
      outcome: what came of it.
    """

    server: str
    outcome: LookupOutcome


class Verdict(Enum):
    """The one reason that explains most of a walk's end."""

    CONNECTED = "connected"
    REFUSED = "refused"
    """The peer's ``authorize`` said no."""
    NOT_ACCEPTING = "not_accepting"
    """The peer was reached and does not take Pipes."""
    BUSY = "busy"
    """The peer was reached and has no room now."""
    UNSUPPORTED = "unsupported"
    """The peer speaks a version of the protocol that this release does not."""
    WRONG_PEER = "wrong_peer"
    """Every path that opened led to another node."""
    NOTHING_TO_TRY = "nothing_to_try"
    """No combo was valid: no common address family, or the options exclude everything."""
    CLOCK_OFF = "clock_off"
    """Signals are refused for their time, and correcting it did not help."""
    NO_DNS = "no_dns"
    """The names of all signal servers, or of all STUN servers, cannot be resolved, and no direct path worked."""
    NO_SIGNAL = "no_signal"
    """No signal server that the two share could be reached, and no direct path worked."""
    PEER_OFFLINE = "peer_offline"
    """The signal servers are there, the peer is not; no direct path worked."""
    PEER_SILENT = "peer_silent"
    """Signals were handed to the peer, which never answered; no direct path worked."""
    BROKE_OFF = "broke_off"
    """A path was found and proven, and then broke before the peer accepted."""
    TIMED_OUT = "timed_out"
    """The time that the caller or ``budgets.total`` gave was over."""
    NO_BETTER_PATH = "no_better_path"
    """A search behind a Pipe has found none; the Pipe stays on its path."""
    UNREACHABLE = "unreachable"
    """Nothing answered on any path that was tried."""
    NO_RELAY_CONFIGURED = "no_relay_configured"
    """Everything direct failed, the peer answers signals, and there is no relay that the two may use."""
    RELAY_FAILED = "relay_failed"
    """Everything direct failed, the peer answers signals, and no relay brought the two together."""
    RELAY_FORBIDS = "relay_forbids"
    """Everything direct failed, and the relay's server forbids it to send to where the peer is."""

    def __str__(self) -> str:
        """Its value, which is what the JSON and the documentation call it."""
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
"""What would help; `BETTER_ADVICE` where more is known than the verdict."""


class Known(Enum):
    """What advice goes by besides the verdict, in words; `REMEDIES` has what would help against each."""

    NO_RELAY_TOKEN = "neither side has the relay token of a server that both use"
    NO_COMMON_SERVER = "the two have no rendezvous server in common"
    NO_SIGNAL_HERE = "this side has no signal server configured"
    NO_STUN_HERE = "this side has no STUN server configured, and would have punched"
    NO_STUN_THERE = "the peer's address says nothing of its NAT, and this side would have punched"
    UDP_BLOCKED_HERE = "this side's network lets nothing come back over UDP"
    UDP_BLOCKED_THERE = "the peer's network lets nothing come back over UDP"
    BOTH_SYMMETRIC = "both NATs are symmetric, and nobody foretells their ports"
    TAKEN = "the peer serves one Pipe, and has it"

    def __str__(self) -> str:
        """Its value."""
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
    Known.UDP_BLOCKED_HERE: "Let UDP out of this network (its firewall), and what answers it back in.",
    Known.UDP_BLOCKED_THERE: "Have UDP let out of the peer's network (its firewall), and what answers it back in.",
    Known.BOTH_SYMMETRIC: "Forward a port to one side (`listen --port`), give it IPv6, or another router.",
    Known.TAKEN: "Wait until the peer is free: it serves one caller at a time, and has one.",
}
"""What would help against each."""

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
"""What would help, where more is known than the verdict."""


def advise(verdict: Verdict, known: Collection[Known] = ()) -> str:
    """One sentence on what would help, by the first of `Known` that has one for this verdict."""
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
    """Its phase's budget, the plugin's ceiling or the overall deadline was over."""
    NOT_STARTED = "not_started"
    """Another combo won before this one's turn."""
    HOPELESS = "hopeless"
    """Known to be impossible; skipped, or tried only in the last round."""


class ComboReport(msgspec.Struct, frozen=True, kw_only=True):
    """One combo's fate; times in milliseconds from the start of the walk, or of the search.

    `target` is the endpoint that was dialled, by us or (for `reverse_connect`) by the peer: kind, transport, address,
    as in ``"nic tcp 192.168.1.9:4433"``; of a relay its server's URL, without a password.  `cleanup_ms` is what a combo
    took to end after it was told to.
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
    """What became of what a walk said to the peer by signal.

    Attributes:
      sent: there was something to say.
      delivery: the best that a signal server did with it: ``"nobody_home"`` (it knows that the peer is not there),
        ``"full"`` (the peer takes nothing at the moment), ``"queued"`` (it tells no more) or ``"delivered"``; None
        where none took it, or nobody waited for its word.
      answered: the peer has answered, other than about the time.
      clock_corrected: it has told its time, and signals went by that.
    """

    sent: bool
    delivery: str | None
    answered: bool
    clock_corrected: bool


class ConnectReport(msgspec.Struct, frozen=True, kw_only=True):
    """A whole walk: a call's, or that of a search for another path behind a Pipe.

    Attributes:
      peer: the peer's id.
      session: 32 hex digits that both sides' logs name.
      verdict, advice: the one reason, and one sentence on what would help.
      elapsed_ms: from the call, or the search's beginning, to the Pipe, or its path, or to giving up.
      combos: every combo that was planned, in the order of their plan.
      lacks: what this side was without, one sentence each; empty where there is a Pipe.
      notes: what else is worth knowing, one sentence each (names that do not resolve, dead servers, a corrected clock,
        plugins that were skipped).
      began_ms: from the call that made the Pipe to the beginning of a search behind it, and on the side that was called
        from the Pipe; 0 for a call.
      known: what explains that there is no Pipe, or none but by a relay; each has its own of `REMEDIES`.
      signals: what became of what the peer was told by signal.
      peer_nats: what the peer's address says of its NATs, a sentence for each address family.
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
        """The combo that made the Pipe, or its other path."""
        return next((combo for combo in self.combos if combo.outcome is Outcome.WON), None)


class PathReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a Pipe travels, in plain words; `PathInfo` has what they mean."""

    phase: str | None
    plugin: str
    af: int
    route: str
    state: str


class PathChangeReport(msgspec.Struct, frozen=True, kw_only=True):
    """One change of a Pipe's path, in plain words; `PathChange` has what they mean.  The time is in milliseconds."""

    old: PathReport | None
    new: PathReport | None
    cause: str
    detail: str
    silence_ms: float
    replayed: int


class WalkEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a walk, or what becomes of the path that it has found, for live views.

    `kind` is ``"phase"``, ``"combo_started"``, ``"combo_ended"`` or ``"note"``; once there is a Pipe, ``"path"``, with
    `path` saying what changed, and ``"search"``, with the `report` of a search for another path that has ended.
    `at_ms` runs from the start of the walk.
    """

    kind: str
    at_ms: float
    phase: str | None = None
    combo: ComboReport | None = None
    text: str = ""
    path: PathChangeReport | None = None
    report: ConnectReport | None = None
