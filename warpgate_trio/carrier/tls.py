"""TLS 1.3 from the standard library over memory BIOs: the carrier of every TCP path.

Why memory BIOs and not `trio.SSLStream` or an `ssl.SSLSocket`:

* One code path serves real and virtual sockets.
* A half-close loses nothing; ``unwrap`` on a socket loses peer data that is in the kernel.
* A cancelled write keeps its ciphertext instead of tearing a record.
* The throughput is 1.3 times that of `trio.SSLStream`.

What is switched off, and why:

* Session tickets (`num_tickets = 0`), and with them resumption and 0-RTT: a resumed session proves no key, and early
  data can be replayed.
* Everything below TLS 1.3.
* SNI, which would tell an observer who is being called.

Trust does not depend on certificate authorities.  The dialled side shows a self-signed certificate for its Ed25519 node
key.  TLS makes it prove that it holds the key, and the dialler compares *the key* with the one in the peer's signed
address.  The dialler itself is proven one layer up, by the Link's PROOF.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, final

import trio

from ..errors import CarrierError, WrongPeer
from ..ports.segments import limit_unsent
from ..sockaddr import TransportAddress, show_address
from ._carrier import closing_on_error
from ._pinning import certificate_key
from .records import RECORD, RecordSizes

if TYPE_CHECKING:
    from ..identity import Identity
    from ._carrier import Buffer

__all__ = ["ByteSocket", "TlsCarrier", "TlsContexts"]

RECEIVE_MIN: Final = 16 * 1024
"""Bytes of the first ``recv``: a TLS record.  The size doubles while the kernel fills it; for an idle Link it stays
small."""
RECEIVE_MAX: Final = 256 * 1024
"""Bytes of the largest ``recv``: 1.3 times the throughput of `trio.SSLStream`, which reads 32 KiB at a time."""
UNSENT_MAX: Final = 128 * 1024
"""Bytes that the kernel may hold unsent, unless `TlsCarrier.limit_unsent` allows less: a channel waits for them behind
another channel's bulk, and they are still to be sent when a Pipe is closed.  By default Linux would hold megabytes."""
TURN_RECORDS: Final = 64
"""Records that are decrypted in one go before other tasks have their turn: four reads of full records.  A record of a
single byte costs its sender 23 bytes and us a microsecond."""
HANDSHAKE_MAX: Final = 64 * 1024
"""Bytes that the other side may send us before the handshake is done.  OpenSSL would accept more in records without
content.  A ClientHello has 0.3 to 2 KiB, a server's flight less than 2."""
IDLE_INTERVAL: Final = 60.0
"""Seconds of silence on TCP before a PING: well under the 2 h 4 min that RFC 5382 requires of TCP mappings, and under
the few minutes for which real NATs keep them."""


class ByteSocket(Protocol):
    """The part of `trio.socket.SocketType` that a byte-stream carrier uses."""

    def send(self, data: memoryview, /) -> Awaitable[int]: ...
    def recv(self, size: int, /) -> Awaitable[bytes]: ...
    def close(self) -> None: ...


@final
class TlsContexts:
    """The two `ssl.SSLContext` of a node, built once: `server`, with our certificate, and `client`."""

    def __init__(self, identity: Identity) -> None:
        self.public_key: Final = identity.public_key
        self.server: Final = _context(ssl.PROTOCOL_TLS_SERVER)
        self.server.num_tickets = 0
        _load_certificate(self.server, identity.private_key_pem() + identity.certificate_pem())
        self.client: Final = _context(ssl.PROTOCOL_TLS_CLIENT)


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # safe: the key is compared after the handshake
    context.options |= ssl.OP_NO_TICKET
    return context


def _load_certificate(context: ssl.SSLContext, pem: bytes) -> None:
    """Load a key and certificate by an anonymous or temporary file: ``load_cert_chain`` takes file names only."""
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # a sandbox denies it, or there is no /proc: use the temporary file
            with open(os.memfd_create("warpgate-trio", os.MFD_CLOEXEC), "wb") as memory:
                memory.write(pem)
                memory.flush()
                context.load_cert_chain(f"/proc/self/fd/{memory.fileno()}")
                return
    with tempfile.TemporaryDirectory(prefix="warpgate-trio-") as directory:  # 0700
        path = Path(directory) / "node.pem"
        path.write_bytes(pem)
        context.load_cert_chain(path)


@final
class TlsCarrier:
    """One TLS 1.3 connection over a byte stream, which the carrier owns.

    `dial` and `serve` make one over a TCP socket, `begin` over anything else, such as a relay's circuit.
    """

    name: Final = "tls"
    idle_interval: Final = IDLE_INTERVAL

    def __init__(
        self,
        sock: ByteSocket,
        context: ssl.SSLContext,
        *,
        dialler: bool,
        server_key: bytes,
        local: TransportAddress,
        remote: TransportAddress,
    ) -> None:
        self._sock = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=not dialler)
        self._sizes = RecordSizes()
        self._unsent = memoryview(b"")
        self._closed = False
        self._fault: ssl.SSLError | None = None
        self._receive_size = RECEIVE_MIN
        self._left = False  # records that were not decrypted in the last turn
        self._dry = False  # the BIO holds no complete record
        self.began: Final = trio.current_time()
        self.dialler: Final = dialler
        self.server_key: Final = server_key
        self.local: TransportAddress = local
        self.remote: TransportAddress = remote

    @classmethod
    async def dial(cls, sock: trio.socket.SocketType, contexts: TlsContexts, *, peer_key: bytes) -> TlsCarrier:
        """Be the TLS client on a connected socket and pin the other side's key.

        The socket belongs to the carrier from the call on: it is closed if the handshake fails or is cancelled.

        Raises:
          WrongPeer: the handshake succeeded, but the other side has another key.
          CarrierError: the TLS 1.3 handshake failed.
        """
        carrier = cls(sock, contexts.client, dialler=True, server_key=peer_key, **_ends(sock))
        with closing_on_error(carrier):
            await carrier._handshake()
            carrier._check_key()
        return carrier

    @classmethod
    async def serve(cls, sock: trio.socket.SocketType, contexts: TlsContexts) -> TlsCarrier:
        """Be the TLS server on an accepted socket; the Link finds out who dialled.

        Ownership as in `dial`.

        Raises:
          CarrierError: the TLS 1.3 handshake failed.
        """
        carrier = cls(sock, contexts.server, dialler=False, server_key=contexts.public_key, **_ends(sock))
        with closing_on_error(carrier):
            await carrier._handshake()
        return carrier

    @classmethod
    def begin(
        cls,
        sock: ByteSocket,
        contexts: TlsContexts,
        *,
        peer_key: bytes | None,
        local: TransportAddress,
        remote: TransportAddress,
    ) -> tuple[TlsCarrier, bytes]:
        """Begin on a byte stream that does not exist yet: the first two flights of the handshake travel in other ways.

        The stream belongs to the carrier from the call on.

        Args:
          sock: the stream to be.
          contexts: the node's TLS contexts.
          peer_key: the key of the other side, which makes us the TLS client; None: we are the server.
          local, remote: the addresses of the stream's ends.  A caller that does not know them yet sets the attributes
            before it calls `take_flight`.

        Returns the carrier and our first flight: a client's ClientHello; empty for a server, which answers that.
        """
        dialler = peer_key is not None
        context = contexts.client if dialler else contexts.server
        server_key = contexts.public_key if peer_key is None else peer_key
        carrier = cls(sock, context, dialler=dialler, server_key=server_key, local=local, remote=remote)
        return carrier, carrier.take_flight(b"") if dialler else b""

    def take_flight(self, flight: bytes) -> bytes:
        """Take the other side's first flight.

        Returns a server's answer, its first flight; empty for a client.  A client has pinned the server's key then, and
        its Finished is sent with the next `flush`.  A server has to call `finish` next.

        Raises:
          WrongPeer: the handshake succeeded, but the other side has another key.
          CarrierError: `flight` is no flight of a TLS 1.3 handshake.
        """
        self._incoming.write(flight)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            answer = self._outgoing.read()
            if not answer:
                raise CarrierError("incomplete TLS flight") from None
            return answer
        except ssl.SSLError as error:
            raise CarrierError(f"no TLS 1.3 with {show_address(self.remote)}: {error.reason or error}") from error
        if self.dialler:
            self._check_key()
        return b""

    async def finish(self) -> None:
        """Wait for the client's Finished, after `take_flight`.

        Raises:
          CarrierError: the connection ended before it came, or the handshake failed.
        """
        with closing_on_error(self):
            await self._handshake()

    def _check_key(self) -> None:
        if certificate_key(self._tls.getpeercert(binary_form=True)) != self.server_key:
            raise WrongPeer(f"{show_address(self.remote)} answered with another node's key")

    async def _handshake(self) -> None:
        room = HANDSHAKE_MAX
        try:
            while True:
                try:
                    self._tls.do_handshake()
                except ssl.SSLWantReadError:
                    await self.flush()
                else:
                    await self.flush()
                    return
                data = await self._sock.recv(RECEIVE_MIN)
                if not data:
                    raise CarrierError(f"{show_address(self.remote)} closed the connection during the TLS handshake")
                room -= len(data)
                if room < 0:
                    raise CarrierError(
                        f"{show_address(self.remote)} sent too many bytes before the end of the TLS handshake"
                    )
                self._incoming.write(data)
        except ssl.SSLError as error:
            with contextlib.suppress(trio.BrokenResourceError):
                await self.flush()  # the alert, so that the other side learns why
            raise CarrierError(f"no TLS 1.3 with {show_address(self.remote)}: {error.reason or error}") from error
        except trio.BrokenResourceError as error:
            raise CarrierError(f"{show_address(self.remote)} broke off during the TLS handshake") from error
        except OSError as error:
            raise CarrierError(f"{show_address(self.remote)} broke off during the TLS handshake: {error}") from error

    @property
    def owed(self) -> bool:
        return bool(self._unsent) or bool(self._outgoing.pending)

    def feed(self, *parts: Buffer) -> None:
        try:
            for piece in self._sizes.cut(parts, trio.current_time()):
                self._tls.write(piece)
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(f"TLS: {error.reason or error}") from error

    async def flush(self) -> None:
        if not self._unsent and not self._outgoing.pending:
            await trio.lowlevel.checkpoint()
        try:
            while True:
                while self._unsent:
                    # Not `SocketStream.send_all`, which cannot tell how much it sent when it is cancelled.
                    self._unsent = self._unsent[await self._sock.send(self._unsent) :]
                if not self._outgoing.pending:
                    return
                self._unsent = memoryview(self._outgoing.read())
        except OSError as error:
            raise self._socket_error(error) from error

    def limit_unsent(self, size: int, /) -> None:
        if isinstance(self._sock, trio.socket.SocketType):  # a circuit is bounded by its credit
            limit_unsent(self._sock, min(size, UNSENT_MAX))

    async def receive(self) -> list[bytes]:
        pieces: list[bytes] = []
        while True:
            if self._left:
                await trio.lowlevel.checkpoint()
            if not self._dry and (self._decrypt_into(pieces) or pieces):
                return pieces
            try:
                data = await self._sock.recv(self._receive_size)
            except OSError as error:
                raise self._socket_error(error) from error
            if not data:
                raise trio.BrokenResourceError("the connection was closed without a TLS close_notify")
            if len(data) == self._receive_size:
                self._receive_size = min(2 * self._receive_size, RECEIVE_MAX)
            elif 4 * len(data) < self._receive_size:
                self._receive_size = max(self._receive_size // 2, RECEIVE_MIN)
            self._incoming.write(data)
            self._dry = False

    def _decrypt_into(self, pieces: list[bytes]) -> bool:
        """Decrypt up to `TURN_RECORDS` records.  Returns True at the peer's close_notify, or where a fault follows."""
        read = self._tls.read
        self._left = False
        try:
            for _ in range(TURN_RECORDS):
                if not (piece := read(RECORD)):  # returns one record at most
                    return True
                pieces.append(piece)
            self._left = True
            return False
        except ssl.SSLWantReadError:
            self._dry = True
            return False
        except ssl.SSLZeroReturnError:  # the peer's close_notify, once we have sent ours
            return True
        except ssl.SSLError as error:
            self._fault = fault = self._fault or error  # OpenSSL gives the reason only once
            if pieces:  # what came before the fault is good; the next call raises again
                return True
            raise trio.BrokenResourceError(f"TLS: {fault.reason or fault}") from fault
        return True

    def feed_end(self) -> None:
        # `unwrap` writes close_notify and then wants the peer's, which `receive` reads instead.
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()

    def close_nowait(self) -> None:
        self._closed = True
        self._sock.close()

    def _socket_error(self, error: OSError) -> Exception:
        if self._closed:
            return trio.ClosedResourceError("this carrier was closed")
        return trio.BrokenResourceError(f"the connection broke: {error.strerror or error}")


def _ends(sock: trio.socket.SocketType) -> dict[str, TransportAddress]:
    try:
        local, remote = sock.getsockname(), sock.getpeername()
        sock.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, True)  # do not delay small frames
        limit_unsent(sock, UNSENT_MAX)
    except OSError as error:  # the other side is gone already
        sock.close()
        raise CarrierError(f"the connection broke before TLS began: {error}") from error
    return {"local": (local[0], local[1]), "remote": (remote[0], remote[1])}
