"""Every exception that the package raises on purpose.

Streams raise Trio's three resource errors unchanged (`trio.BusyResourceError`, `trio.ClosedResourceError`,
`trio.BrokenResourceError`), with the reason in ``__cause__``.  This module has the errors that Trio has no name for.
The name of an exception says *what was wrong with what*: a program can decide what to do next without the message.
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
"""Characters of an exception's message: room for eight servers, each with its reason, which is bounded separately."""


def printable(text: str, limit: int = MAX_MESSAGE) -> str:
    """Make a text that may come from a server or a peer safe for a log or a terminal.

    The result has no control characters: nothing that moves the cursor, begins a line or changes the writing direction.
    It has at most `limit` characters.
    """
    plain = text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text[: limit + 1])
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


class WarpgateError(Exception):
    """The base of every exception that this package defines.

    Messages may quote servers and peers, so ``str(error)`` is always `printable`.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(WarpgateError, ValueError):
    """The configuration cannot be used; the message names the key, its value and the source of the value."""


class IdentityError(ConfigError):
    """The node's key file is missing, unreadable, readable by others, or holds no Ed25519 key."""


class ContactsFileError(ConfigError):
    """The contacts file cannot be read, is malformed, or cannot be written; the message has the line."""


class ContactError(WarpgateError, ValueError):
    """A contact does not exist, or cannot be created; the subclasses say why."""


class ContactNameError(ContactError):
    """A text is not a valid name for a contact."""


class ContactUnknown(ContactError):
    """There is no contact of that name."""


class ContactExists(ContactError):
    """There is already a contact of that name or for that peer, or there are too many contacts."""


class ContactKeyChanged(ContactError):
    """A contact has this name, with another key: either the peer has a new key, or this is somebody else.

    Attributes:
      name: of the contact.
      known: the contact's peer id, which it keeps.
      offered: the peer id that was to be stored in its place.
    """

    def __init__(self, name: str, *, known: str, offered: str) -> None:
        super().__init__(
            f"the key of {name!r} has changed: it is known as {known}, and this is {offered}.  Either the peer has a "
            f"new key, or this is somebody else.  Verify the key with the peer by another channel; if it is right, "
            f"remove {name!r} and add it again"
        )
        self.name = name
        self.known = known
        self.offered = offered


class PeerIdError(WarpgateError, ValueError):
    """A text is not a peer id (52 characters of lower-case base32)."""


class KeyRecordError(WarpgateError, ValueError):
    """The key record that a server returned cannot be used.

    Attributes:
      flaw: what is wrong with the record, a `warpgate_trio.report.LookupOutcome`.
    """

    def __init__(self, flaw: LookupOutcome, message: str) -> None:
        super().__init__(message)
        self.flaw = flaw


class PeerNotFound(WarpgateError):
    """A peer cannot be located: none of this node's servers has a usable record of it, or the peer does not answer.

    Attributes:
      peer_id: of the peer.
      why: the reason, as in the message.
      lookups: the result of each of this node's servers, a `warpgate_trio.report.Lookup` each.
    """

    def __init__(self, peer_id: str, why: str, lookups: Sequence[Lookup] = ()) -> None:
        super().__init__(f"peer {peer_id} cannot be located: {why}")
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
    """The record has expired; ask the peer for a fresh one."""


class AddressNotYetValid(AddressError):
    """The record's time of issue is in the future: the clock of this host or of the peer is wrong."""


class ProtocolError(WarpgateError):
    """Bytes or calls that a protocol's state table does not allow.  Abstract: a subclass says which side is to blame.

    See `LocalProtocolError` (this side) and `RemoteProtocolError` (the other side), which are divided as in h11.
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
    """The message is over the size limit, truncated, malformed, or cannot be opened with this node's key."""


class SignalUnsupported(SignalError):
    """The envelope is of a version that this release does not know."""


class SignalForged(SignalError):
    """The signature, or the sender's own address inside, does not belong to the key that the message names."""


class SignalMisdirected(SignalError):
    """The message was signed for another receiver: somebody sealed it again, or changed its receiver."""


class SignalUnavailable(SignalError):
    """No signal server can carry a message now."""


class ProxyError(WarpgateError):
    """A proxy did not connect this node to a server: it cannot be reached, it refused, or it is not a proxy.

    The message names the proxy, its answer, and what to do.  The server itself was not reached.
    """


class StunError(WarpgateError):
    """A STUN server gave no usable answer; the subclasses say why.  This class itself: it cannot be reached."""


class StunMalformed(StunError, ValueError):
    """The bytes are not a STUN message, a value is malformed, or the answer cannot be true."""


class StunRefused(StunError):
    """The server answered with an error.

    Attributes:
      code: the error code of RFC 8489 section 14.8, 300 to 699.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class StunTimeout(StunError):
    """No answer came in time."""


class PortMapError(WarpgateError):
    """A gateway opened no port; the subclasses say why.

    This class itself: the gateway says that it has mapped a port, but refuses to show the mapping.
    """


class PortMapMalformed(PortMapError, ValueError):
    """The bytes are not a gateway's answer, or the answer points to a place that it must not name."""


class PortMapRefused(PortMapError):
    """The gateway answered with an error.

    Attributes:
      code: the error code, in the port-mapping protocol of the request.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class PortMapTimeout(PortMapError):
    """The gateway did not answer in time."""


class ClockUnavailable(WarpgateError):
    """No NTP server answered, or the answers contradict each other; the message names each server with its reason."""


class CarrierError(WarpgateError):
    """The path connected, but no encrypted carrier could be set up on it."""


class WrongPeer(CarrierError):
    """The other end of the path is not the peer that the address names."""


class LibraryPanicked(WarpgateError):
    """A library written in Rust panicked on its input; see `panics_as_errors`."""


class AttemptFailed(WarpgateError):
    """A plugin's attempt found no path, for a reason that the plugin expects.  The message is one sentence."""


class RelayForbidden(AttemptFailed):
    """A TURN server forbids its allocations to send to the peer's address, which mostly is another relay's."""


class PeerRefused(WarpgateError):
    """The peer answered with a refusal.

    Attempts raise it.  At the end of a walk it becomes a `ConnectError` whose verdict tells the kind of refusal.

    Attributes:
      reason: a `warpgate_trio.link.RefuseReason`.
    """

    def __init__(self, reason: int, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class TargetRefused(WarpgateError):
    """The peer does not forward a connection to the requested target; the message says why (docs/forwarding.md).

    Attributes:
      answer: the peer's answer, a `warpgate_trio.forwarding.Answer`.
    """

    def __init__(self, answer: int, message: str) -> None:
        super().__init__(message)
        self.answer = answer


class TransferError(WarpgateError):
    """One of the two sides ended a transfer of files and gave a reason (docs/files.md); the subclasses say when.

    Attributes:
      reason: a `warpgate_trio.files.Reason`.
      by_peer: True where the reason is the peer's, False where it is this side's.
    """

    def __init__(self, reason: int, message: str, *, by_peer: bool) -> None:
        super().__init__(message)
        self.reason = reason
        self.by_peer = by_peer


class TransferRefused(TransferError):
    """The receiver accepts none of the offered files."""


class TransferFailed(TransferError):
    """A transfer ended before it was complete.  What was received is kept, and is not sent again."""


class PairingError(WarpgateError):
    """Two nodes were not paired by a code; the subclasses say why (docs/pairing.md)."""


class CodeMalformed(PairingError, ValueError):
    """The text cannot be a code; the message says what is wrong with it."""


class CodeRefused(PairingError):
    """The code is wrong, used, void or unknown, or may not be tried now.

    Attributes:
      outcome: a `warpgate_trio.servers.mailbox_frames.Outcome`.
      retry_after: seconds after which it may be tried again; 0.0 where waiting does not help.
    """

    def __init__(self, outcome: int, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.retry_after = retry_after


class PairingUnavailable(PairingError):
    """No server is available for pairing: none is configured, none can be reached, or none supports it."""


class PeerAborted(WarpgateError):
    """The peer aborted a Pipe, because it was interrupted or failed.

    It is the cause of the `trio.BrokenResourceError` that the Pipe raises.
    """


class PluginError(WarpgateError):
    """A plugin broke the plugin contract.  It reaches the caller where ``strict_plugins=True``."""


class ConnectError(WarpgateError):
    """`Node.auto_connect` and `Node.connect` raise this when no combo led to a Pipe, or none did in time.

    Attributes:
      verdict: the reason that explains most, a `Verdict`.
      advice: one sentence on what would help.
      report: the `ConnectReport`, with the outcome and the times of every combo.
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
    """Whether this is pyo3's exception for a panic.  Each library has its own class, which cannot be imported."""
    kind = type(error)
    return kind.__name__ == "PanicException" and kind.__module__ == "pyo3_runtime"


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise `LibraryPanicked` in place of a panic of Rust code, also where a task in an inner nursery raised it.

    Where Rust code panics, pyo3 raises ``PanicException``, which is a `BaseException`.  It passes every
    ``except Exception``, cancels each nursery on its way and ends the program, though all that happened is that
    received bytes met a bug.  So code that handles received data runs inside this context manager.  An
    ``except Exception`` around it confines all failures to the connection, the attempt or the message concerned.

    KeyboardInterrupt, SystemExit and cancellations pass.  Of a group with a cancellation and a panic, only the
    cancellation is raised.

    Rust also writes a line to stderr for each panic.  No library offers a hook to silence it from Python.
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
