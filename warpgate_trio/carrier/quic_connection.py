"""One qh3 connection, behind a single boundary that every call into the library passes.

qh3 is written in Python and Rust.  A stranger's bytes can make it raise what it does not document: errors of its
buffers, of Unicode, indices and types.  A failure in the Rust part is a panic, which is not even an `Exception`.  So
all calls go through `Connection._call`, which raises nothing but `CarrierError`.  A connection that raised something
undocumented is never called again.  No other module imports qh3.

Only X25519 is offered and accepted.  qh3 would also take X25519MLKEM768, P-256 and P-384.  But its ML-KEM panics when a
key share is short, and each further group is code that a stranger reaches with one datagram.  A peer that offers more
than X25519, as older releases do, is answered with X25519.

A listener may ask a client to prove that it receives our datagrams before a handshake is begun for it: Retry, RFC 9000
§8.1.2.  `make_retry` and `read_token` are stateless.
"""

from __future__ import annotations

import hmac
import logging
import math
import ssl
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, final

from qh3 import tls
from qh3._hazmat import Buffer as TlsBuffer
from qh3.quic import events
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection, QuicConnectionError
from qh3.quic.packet import QuicProtocolVersion, encode_quic_retry, pull_quic_header

from ..errors import CarrierError, panics_as_errors

if TYPE_CHECKING:
    from ._carrier import Buffer

__all__ = [
    "CONNECTION_ID",
    "DATAGRAM",
    "Connection",
    "QuicConfiguration",
    "events",
    "make_configuration",
    "make_retry",
    "read_token",
]

logger: logging.Logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

CONNECTION_ID: Final = 8
"""Bytes of our connection ids: qh3's default, repeated here because datagrams are assigned by them."""
DATAGRAM: Final = 1200
"""Bytes of every full datagram: the least that a path must carry (RFC 9000 §14).  With the headers of UDP and IPv6, and
those of a TURN channel or a tunnel, it still fits into 1,280 bytes, the smallest MTU of IPv6."""
_KEY_SHARE: Final = 32  # bytes of an X25519 key share (RFC 8446 §4.2.8.2)
_ALPN: Final = "warpgate-trio"
_ED25519: Final = 0x0807
_PEER: Final = ("192.0.2.1", 443)
# qh3 needs an address for each datagram; ours all come by one path, so any address will do.
_TAG: Final = 16  # bytes of a token's MAC

_calling: ContextVar[bool] = ContextVar("_calling", default=False)


class _NotOurs(logging.Filter):
    """Drops qh3's warnings about connections that the peer closes: the Link reports those."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _calling.get()


logging.getLogger("quic").addFilter(_NotOurs())


def make_configuration(
    *, dialler: bool, initial_rtt: float | None, window: int, idle_timeout: float, datagram: int
) -> QuicConfiguration:
    """The configuration of either side; `warpgate_trio.carrier.quic_protocol` gives the reasons."""
    configuration = QuicConfiguration(
        alpn_protocols=[_ALPN],
        connection_id_length=CONNECTION_ID,
        idle_timeout=idle_timeout,
        is_client=dialler,
        max_data=window,
        max_stream_data=window,
        max_datagram_frame_size=0,
        max_datagram_size=datagram,
        probe_datagram_size=False,
    )
    if initial_rtt is not None:
        configuration.initial_rtt = initial_rtt
    if dialler:
        configuration.verify_mode = ssl.CERT_NONE  # safe: `QuicCarrier.dial` compares the key
        configuration.verify_hostname = False
        configuration.signature_algorithms = [_ED25519]  # not among qh3's defaults
    return configuration


# -- X25519 alone ------------------------------------------------------------------------------------------------------


def _pull_client_hello(buffer: TlsBuffer) -> tls.ClientHello:
    """qh3's parser, but of the key shares only those that we answer."""
    hello = tls.pull_client_hello(buffer)
    shares = hello.key_share or []
    hello.key_share = [share for share in shares if share[0] == tls.Group.X25519 and len(share[1]) == _KEY_SHARE]
    return hello


class _Tls(tls.Context):
    """qh3's TLS, restricted to X25519: by itself it takes the first key share that it knows, without a setting for it.

    The method is qh3's own, with the parser above in place of qh3's.  Only this class is changed, not qh3's, which
    others in the process may use.
    """

    _server_handle_hello = FunctionType(
        tls.Context._server_handle_hello.__code__,
        {**vars(tls), "pull_client_hello": _pull_client_hello},
        "_server_handle_hello",
    )


@final
class _Quic(QuicConnection):
    def _create_tls(self, remote_source_cid: bytes | None) -> Any:
        bridge = super()._create_tls(remote_source_cid)
        context = bridge.tls
        context.__class__ = _Tls
        # The reserved value at the start (GREASE, RFC 8701) stays: it keeps other implementations open to new groups.
        context._supported_groups = [context._supported_groups[0], tls.Group.X25519]
        return bridge


# -- the boundary ------------------------------------------------------------------------------------------------------


class _Broke(CarrierError):
    """qh3 raised what it does not document."""


def _call(operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call into qh3, as nothing else does."""
    token = _calling.set(True)
    try:
        try:
            return operation(*args, **kwargs)
        except BaseException:  # entering `panics_as_errors` before each call would cost as much as most calls
            with panics_as_errors():
                raise
    except QuicConnectionError as error:  # documented: about a connection that is open, or over
        raise CarrierError(f"QUIC: {error.reason_phrase}") from error
    except MemoryError:  # the host's own, not caused by received bytes
        raise
    except Exception as error:
        logger.debug("unexpected error in qh3", exc_info=True)
        raise _Broke(f"QUIC: unexpected error in qh3: {type(error).__name__}") from error
    finally:
        _calling.reset(token)


@final
class Connection:
    """A qh3 connection.  Whatever comes from outside, its methods raise nothing but `CarrierError`.

    Attributes:
      broken: qh3 raised something undocumented, so its state is unknown, and it is not called any more.
      validated: the client has proven by a token of ours that it receives our datagrams.
    """

    def __init__(
        self, configuration: QuicConfiguration, *, destination: bytes | None = None, retry: bytes | None = None
    ) -> None:
        """A client's connection, or with `destination` a server's.

        Args:
          configuration: from `make_configuration`.
          destination: the connection id to which the client sent its first datagram.
          retry: the connection id that our Retry gave to the client, if we sent one.
        """
        self.broken: bool = False
        self.validated: Final = retry is not None
        self._quic: _Quic = self._call(
            _Quic,
            configuration=configuration,
            original_destination_connection_id=destination,
            retry_source_connection_id=retry,
        )

    def _call(self, operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self.broken:
            raise CarrierError("QUIC: the connection is unusable after an unexpected error in qh3")
        try:
            return _call(operation, *args, **kwargs)
        except _Broke:
            self.broken = True
            raise

    def _ask(self, question: Callable[[], T], otherwise: T) -> T:
        """Query qh3; returns `otherwise` for a broken connection, on which the next action raises."""
        try:
            return self._call(question)
        except CarrierError:
            return otherwise

    @property
    def host_cid(self) -> bytes:
        """The connection id that we chose for ourselves."""
        return self._quic.host_cid

    def connect(self, now: float) -> None:
        """Begin, as a client."""
        self._call(self._quic.connect, _PEER, now)

    def receive(self, datagrams: Sequence[bytes], now: float) -> None:
        """Take datagrams as they came."""
        self._call(self._quic.receive_many_datagrams, list(datagrams), _PEER, now)

    def transmit(self, now: float) -> list[bytes]:
        """Datagrams to send now."""
        return [datagram for datagram, _ in self._call(self._quic.datagrams_to_send, now)]

    @property
    def deadline(self) -> float:
        """When `handle_timer` is to be called; infinity while no timer runs."""
        timer = self._ask(self._quic.get_timer, None)
        return math.inf if timer is None else timer

    def handle_timer(self, now: float) -> None:
        """Handle the timers that are due."""
        self._call(self._quic.handle_timer, now)

    def events(self) -> list[events.QuicEvent]:
        """The events since the last call; none once the connection is broken."""
        if self.broken:
            return []
        found: list[events.QuicEvent] = []
        while (event := self._call(self._quic.next_event)) is not None:
            found.append(event)
        return found

    def send(self, stream: int, data: Buffer, *, end: bool) -> None:
        """Put bytes on a stream."""
        self._call(self._quic.send_stream_data, stream, data, end)

    def send_ping(self) -> None:
        """Send a PING frame; its acknowledgement is the event `PingAcknowledged`."""
        self._call(self._quic.send_ping, 0)

    def stands(self, stream: int) -> bool:
        """Whether the connection can still send.

        qh3 reports the peer's close only after the draining period.  An empty write, which sends nothing, tells it
        before.
        """

        def write_nothing() -> bool:
            try:
                self._quic.send_stream_data(stream, b"")
            except ValueError:  # we have sent our end, and the connection is open
                return True
            except QuicConnectionError:
                return False
            return True

        return self._call(write_nothing)

    def close(self, error_code: int = 0, *, reason_phrase: str = "") -> None:
        """Close the connection; `transmit` returns the datagrams that tell the peer."""
        self._call(self._quic.close, error_code, reason_phrase=reason_phrase)

    def unsent(self, stream: int) -> int:
        """Bytes of a stream that were never sent."""
        return self._ask(lambda: self._quic.get_send_buffer_size(stream), 0)

    @property
    def unacknowledged_streams(self) -> int:
        """How many of our streams the peer has not acknowledged completely."""
        return self._ask(lambda: self._quic.open_outbound_streams, 1)

    def peer_certificate(self) -> bytes | None:
        """The peer's certificate, in DER."""

        def get() -> bytes | None:
            certificate = self._quic.get_peercert()
            return None if certificate is None else bytes(certificate.public_bytes())

        return self._call(get)


# -- Retry -------------------------------------------------------------------------------------------------------------


def make_retry(first: bytes, *, secret: bytes) -> bytes | None:
    """A Retry in answer to a client's first datagram; None if the datagram cannot be parsed."""

    def make() -> bytes:
        header = pull_quic_header(TlsBuffer(data=first), host_cid_length=CONNECTION_ID)
        destination = header.destination_cid
        name, tag = _name_and_tag(secret, destination)
        return encode_quic_retry(
            version=QuicProtocolVersion.VERSION_1,
            source_cid=name,
            destination_cid=header.source_cid,
            original_destination_cid=destination,
            retry_token=tag + destination,
        )

    try:
        return _call(make)
    except CarrierError:
        return None


def read_token(first: bytes, *, secret: bytes) -> bytes | None:
    """The connection id to which a client sent its first datagram before our Retry; None without a token of ours."""
    try:
        header = _call(lambda: pull_quic_header(TlsBuffer(data=first), host_cid_length=CONNECTION_ID))
    except CarrierError:
        return None
    tag, original = header.token[:_TAG], header.token[_TAG:]
    name, right = _name_and_tag(secret, original)
    return original if hmac.compare_digest(name + right, header.destination_cid + tag) else None


def _name_and_tag(secret: bytes, destination: bytes) -> tuple[bytes, bytes]:
    """The connection id that our Retry gives, and the MAC by which we recognise our token."""
    digest = hmac.digest(secret, destination, "sha256")
    return digest[:CONNECTION_ID], digest[-_TAG:]
