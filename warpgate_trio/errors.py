"""Every exception that the package raises on purpose.

Trio's three resource errors (`trio.BusyResourceError`, `trio.ClosedResourceError`, `trio.BrokenResourceError`) are used
unchanged on streams, with the real reason in ``__cause__``.  What stands here is what Trio has no word for.  The rule
of the tree: a name says *what was wrong with what*, so that nobody has to read the message to decide what to do next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .report import ConnectReport, Lookup, LookupOutcome, Verdict

__all__ = [
    "AddressError",
    "AddressExpired",
    "AddressForged",
    "AddressMalformed",
    "AddressNotYetValid",
    "AddressUnsupported",
    "AttemptFailed",
    "CarrierError",
    "ClockUnavailable",
    "CodeMalformed",
    "CodeRefused",
    "ConfigError",
    "ConnectError",
    "ContactError",
    "ContactExists",
    "ContactKeyChanged",
    "ContactNameError",
    "ContactUnknown",
    "ContactsFileError",
    "IdentityError",
    "KeyRecordError",
    "LibraryPanicked",
    "LocalProtocolError",
    "PairingError",
    "PairingUnavailable",
    "PeerAborted",
    "PeerIdError",
    "PeerNotFound",
    "PeerRefused",
    "PluginError",
    "PortMapError",
    "PortMapMalformed",
    "PortMapRefused",
    "PortMapTimeout",
    "ProtocolError",
    "ProxyError",
    "RelayForbidden",
    "RemoteProtocolError",
    "SealError",
    "SignalError",
    "SignalForged",
    "SignalMalformed",
    "SignalMisdirected",
    "SignalUnavailable",
    "SignalUnsupported",
    "StunError",
    "StunMalformed",
    "StunRefused",
    "StunTimeout",
    "TargetRefused",
    "TransferError",
    "TransferFailed",
    "TransferRefused",
    "WarpgateError",
    "WrongPeer",
    "is_panic",
    "panics_as_errors",
    "printable",
]

MAX_MESSAGE: Final = 2000
"""Characters of an exception's message: eight servers with a reason each; what one says has bounds of its own."""


def printable(text: str, limit: int = MAX_MESSAGE) -> str:
    """A text that a server or a peer may have had a hand in, fit for a log or a terminal: it moves no cursor, begins no
    line, turns no writing direction, and is no longer than `limit` characters.
    """
    plain = text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text[: limit + 1])
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


class WarpgateError(Exception):
    """The base of every exception that this package defines.

    Much of what others say comes to people in one of these: the text of each is `printable`, whatever was put into it.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(WarpgateError, ValueError):
    """The configuration cannot be used; the message names the key, its value and where it came from."""


class IdentityError(ConfigError):
    """The node's key file is missing, unreadable, readable by others, or holds no Ed25519 key."""


class ContactsFileError(ConfigError):
    """The contacts file cannot be read, is not what it should be, or cannot be written; the message has the line."""


class ContactError(WarpgateError, ValueError):
    """A contact is not there, or cannot be made; the subclasses say why."""


class ContactNameError(ContactError):
    """A text is no name for a contact."""


class ContactUnknown(ContactError):
    """There is no contact of that name."""


class ContactExists(ContactError):
    """There is one of that name, or for that peer; or there are too many."""


class ContactKeyChanged(ContactError):
    """Who is to have a name has another key than who has it: a new key of the same peer, or somebody else.

    Attributes:
      name: of the contact.
      known: the peer id that it has, and keeps.
      offered: the other one.
    """

    def __init__(self, name: str, *, known: str, offered: str) -> None:
        super().__init__(
            f"the key of {name!r} has changed: it is known as {known}, and this is {offered}.  Either the peer has a "
            f"new key, or this is somebody else.  Ask it by another way; if it has, remove {name!r} and add it again"
        )
        self.name = name
        self.known = known
        self.offered = offered


class PeerIdError(WarpgateError, ValueError):
    """A text is not a peer id (52 characters of lower-case base32)."""


class KeyRecordError(WarpgateError, ValueError):
    """What a server shows as the record of a key cannot be used.

    Attributes:
      flaw: what is wrong with it, a `warpgate_trio.report.LookupOutcome`.
    """

    def __init__(self, flaw: LookupOutcome, message: str) -> None:
        super().__init__(message)
        self.flaw = flaw


class PeerNotFound(WarpgateError):
    """Where a peer is cannot be found out: no server of ours knows it, or it does not answer by what one knows.

    Attributes:
      peer_id: of the peer.
      why: what is known of that; the message has it.
      lookups: what each server of ours has said, a `warpgate_trio.report.Lookup` each.
    """

    def __init__(self, peer_id: str, why: str, lookups: Sequence[Lookup] = ()) -> None:
        super().__init__(f"{peer_id} is not found: {why}")
        self.peer_id = peer_id
        self.why = why
        self.lookups: tuple[Lookup, ...] = tuple(lookups)


class SealError(WarpgateError):
    """A sealed blob cannot be opened with our key, or a key cannot be sealed to."""


class AddressError(WarpgateError, ValueError):
    """A peer address cannot be used; the subclasses say why."""


class AddressMalformed(AddressError):
    """The text or record breaks a limit, the checksum, or the format."""


class AddressUnsupported(AddressError):
    """The record is of a version that this release does not know."""


class AddressForged(AddressError):
    """The signature of the record is not by the key that the record names."""


class AddressExpired(AddressError):
    """The record was good once; ask the peer for a fresh one."""


class AddressNotYetValid(AddressError):
    """The record was issued in our future: one of the two clocks is wrong."""


class ProtocolError(WarpgateError):
    """Bytes or calls that a protocol's state table does not allow.  Abstract: one side is always to blame.

    See `LocalProtocolError` (you did it) and `RemoteProtocolError` (they did it); the split is h11's.
    """

    def __init__(self, message: str) -> None:
        if type(self) is ProtocolError:
            raise TypeError("ProtocolError is abstract: raise LocalProtocolError or RemoteProtocolError")
        super().__init__(message)


class LocalProtocolError(ProtocolError):
    """This side asked for something that its protocol state does not allow: a bug here."""


class RemoteProtocolError(ProtocolError):
    """The other side sent something that its protocol state does not allow."""


class SignalError(WarpgateError):
    """A signal message was not accepted; the subclasses say why."""


class SignalMalformed(SignalError):
    """Over the size limit, truncated, not openable with our key, or not of the message's format."""


class SignalUnsupported(SignalError):
    """A version of the envelope that this release does not know."""


class SignalForged(SignalError):
    """The signature, or the sender's own address inside, does not belong to the key that the message names."""


class SignalMisdirected(SignalError):
    """Signed for another receiver: somebody re-sealed or re-addressed it."""


class SignalUnavailable(SignalError):
    """No signal server can carry a message now."""


class ProxyError(WarpgateError):
    """A proxy opened no way to a server: it could not be reached, refused, or is no proxy.

    The message names the proxy, what it said, and what to do; the server itself has said nothing.
    """


class StunError(WarpgateError):
    """A STUN server told nothing that can be used; the subclasses say why.  Raised as itself: it cannot be reached."""


class StunMalformed(StunError, ValueError):
    """Bytes that are no STUN message, a value that is not of its format, or an answer that cannot be true."""


class StunRefused(StunError):
    """The server answered with an error.

    Attributes:
      code: of RFC 8489 section 14.8, 300 to 699.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class StunTimeout(StunError):
    """No answer came in time."""


class PortMapError(WarpgateError):
    """A gateway opened no port; the subclasses say why.  Raised as itself: nobody can be asked, or nothing is true."""


class PortMapMalformed(PortMapError, ValueError):
    """Bytes that are no answer of a gateway, or an answer that points where it must not."""


class PortMapRefused(PortMapError):
    """The gateway answered with an error.

    Attributes:
      code: its number, in the protocol that it was asked by.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class PortMapTimeout(PortMapError):
    """The gateway did not answer in time."""


class ClockUnavailable(WarpgateError):
    """No time server answered, or those that did contradict each other; the message names each with its reason."""


class CarrierError(WarpgateError):
    """The encrypted carrier could not be set up on a path that did connect."""


class WrongPeer(CarrierError):
    """Something answered on the path, but not the peer that the address names."""


class LibraryPanicked(WarpgateError):
    """A library in Rust gave up on what it was given; see `panics_as_errors`."""


class AttemptFailed(WarpgateError):
    """A plugin's attempt ended without a path for a reason that it expected; one sentence, no traceback needed."""


class RelayForbidden(AttemptFailed):
    """A TURN server forbids its relays to send to where the peer is, at another relay for the most part."""


class PeerRefused(WarpgateError):
    """The peer answered, and said no.  `reason` is a `warpgate_trio.link.RefuseReason`.

    Raised inside attempts; at the end of a walk it shows as a `ConnectError` whose verdict says which no it was.
    """

    def __init__(self, reason: int, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class TargetRefused(WarpgateError):
    """The peer does not lead a forwarded connection where it was asked to; the text says why (docs/forwarding.md).

    Attributes:
      answer: the peer's answer, a `warpgate_trio.forwarding.Answer`.
    """

    def __init__(self, answer: int, message: str) -> None:
        super().__init__(message)
        self.answer = answer


class TransferError(WarpgateError):
    """Files did not come over, for a reason that one of the two sides has said (docs/files.md); the subclasses say
    when.

    Attributes:
      reason: a `warpgate_trio.files.Reason`.
      by_peer: the peer has said it, and not this side.
    """

    def __init__(self, reason: int, message: str, *, by_peer: bool) -> None:
        super().__init__(message)
        self.reason = reason
        self.by_peer = by_peer


class TransferRefused(TransferError):
    """The receiver takes nothing of the offer."""


class TransferFailed(TransferError):
    """A transfer ended in the middle; what has come is kept, and is not sent again."""


class PairingError(WarpgateError):
    """Two nodes were not paired by a code; the subclasses say why (docs/pairing.md)."""


class CodeMalformed(PairingError, ValueError):
    """The text cannot be a code; the message says what is wrong with it."""


class CodeRefused(PairingError):
    """The code was wrong, used, void or unknown, or may not be tried now.

    Attributes:
      outcome: a `warpgate_trio.servers.mailbox_frames.Outcome`.
      retry_after: seconds after which it may be tried; 0.0 where it does not help to wait.
    """

    def __init__(self, outcome: int, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.retry_after = retry_after


class PairingUnavailable(PairingError):
    """There is no server to pair by: none is configured, none can be reached, or none can pair."""


class PeerAborted(WarpgateError):
    """The peer gave a Pipe up: it was interrupted, or failed.  The cause of `trio.BrokenResourceError` on the Pipe."""


class PluginError(WarpgateError):
    """A plugin breaks the plugin contract; with ``strict_plugins=True`` it reaches the caller."""


class ConnectError(WarpgateError):
    """No Pipe: raised by `Node.auto_connect` and `Node.connect` after every combo has been given up.

    Attributes:
      verdict: the one reason that explains most, a `Verdict`.
      advice: one sentence on what would help.
      report: the whole `ConnectReport`, every combo with its outcome and its times.
    """

    def __init__(self, report: ConnectReport) -> None:
        super().__init__(f"{report.verdict.value}: {report.advice}")
        self.report = report

    @property
    def verdict(self) -> Verdict:
        return self.report.verdict

    @property
    def advice(self) -> str:
        return self.report.advice


def is_panic(error: BaseException) -> bool:
    """Whether this is what pyo3 makes of a panic.  Each library has a class of its own, and none can be imported."""
    kind = type(error)
    return kind.__name__ == "PanicException" and kind.__module__ == "pyo3_runtime"


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise `LibraryPanicked` in place of a panic, also of one that a task inside has raised.

    Where Rust code panics, pyo3 raises ``PanicException``, a `BaseException`: it passes every ``except Exception``,
    cancels each nursery on its way and ends the program, though all that happened is that somebody's bytes met a bug.
    Whoever handles what comes from outside works inside of this, beside an ``except Exception`` that keeps the rest
    with the connection, the attempt or the message that it belongs to.  KeyboardInterrupt, SystemExit and a
    cancellation pass; a cancellation that is in one group with a panic goes on alone.

    The line that Rust itself writes to stderr with each panic cannot be silenced from Python: no library offers a hook.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        panics, others = group.split(is_panic)
        if panics is None:
            raise
        if others is not None:
            raise others from panics
        raise LibraryPanicked("a library panicked") from panics
    except BaseException as error:
        if is_panic(error):
            raise LibraryPanicked(f"a library panicked: {error}") from error
        raise
