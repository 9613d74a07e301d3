"""The TLS carrier on real sockets: whose key the peer has, what breaks a handshake, what a stream may rely on."""

from __future__ import annotations

import datetime
import errno
import os
import re
import socket
import ssl
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from tests.cancel_sweep import cuts
from tests.hangs import HANG
from tests.identities import ALICE, BOB, MALLORY
from tests.links import (
    CONTEXTS,
    FAMILIES,
    Sockets,
    close_carriers,
    connect_sockets,
    receive_exactly,
    tls_carriers,
    wired_sockets,
)
from tests.panicking import PanicException
from tests.wire import Fault, Script
from warpgate_trio.carrier import TlsCarrier, TlsContexts
from warpgate_trio.carrier._pinning import certificate_key
from warpgate_trio.carrier.records import FIRST_FLIGHT, FIRST_RECORD, IDLE, RECORD
from warpgate_trio.carrier.tls import RECEIVE_MAX, RECEIVE_MIN, TURN_RECORDS, UNSENT_MAX
from warpgate_trio.errors import CarrierError, WrongPeer


async def outcomes(
    sockets: Sockets,
    dial: Callable[[], Awaitable[object]],
    serve: Callable[[], Awaitable[object]],
) -> list[object]:
    """What each end has in the end: a carrier or an exception."""
    found: list[object] = [None, None]

    async def run(index: int, end: Callable[[], Awaitable[object]]) -> None:
        try:
            found[index] = await end()
        except Exception as error:
            found[index] = error

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, 0, dial)
            nursery.start_soon(run, 1, serve)
    for sock, outcome in zip(sockets, found, strict=True):
        if isinstance(outcome, TlsCarrier):
            outcome.close_nowait()
        assert sock.fileno() == -1, "a failed handshake closes its socket"
    return found


def dialing(sockets: Sockets, key: bytes = BOB.public_key) -> Callable[[], Awaitable[object]]:
    return lambda: TlsCarrier.dial(sockets[0], CONTEXTS[ALICE], peer_key=key)


def serving(sockets: Sockets) -> Callable[[], Awaitable[object]]:
    return lambda: TlsCarrier.serve(sockets[1], CONTEXTS[BOB])


# --- who the peer is ---


@pytest.mark.parametrize("family", FAMILIES)
async def test_another_nodes_key(family: int) -> None:
    sockets = await connect_sockets(family)
    host, port = sockets[0].getpeername()[:2]
    dialed, _ = await outcomes(sockets, dialing(sockets, MALLORY.public_key), serving(sockets))
    assert isinstance(dialed, WrongPeer)
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    assert str(dialed) == f"{where} answered with another node's key"


def server_with(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, folder: Path) -> ssl.SSLContext:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2000, 1, 1))
        .not_valid_after(datetime.datetime(2100, 1, 1))
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )
    pem = folder / "server.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


async def test_a_certificate_that_is_not_ed25519_is_nobodys(tmp_path: Path) -> None:
    context = server_with(ec.generate_private_key(ec.SECP256R1()), tmp_path)
    sockets = await connect_sockets()

    async def serve() -> None:
        stream = trio.SSLStream(trio.SocketStream(sockets[1]), context, server_side=True)
        async with stream:
            await stream.do_handshake()

    dialed, _ = await outcomes(sockets, dialing(sockets), serve)
    assert isinstance(dialed, WrongPeer)


async def test_a_certificate_of_a_version_that_there_is_not_is_nobodys() -> None:
    """For a certificate version that does not exist, the parser raises an exception that is no ValueError."""
    der = ssl.PEM_cert_to_DER_cert(BOB.certificate_pem().decode())
    odd = der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07", 1)
    assert certificate_key(der) == BOB.public_key
    assert odd != der
    assert certificate_key(odd) is None


def test_no_garbled_certificate_raises() -> None:
    der = ssl.PEM_cert_to_DER_cert(BOB.certificate_pem().decode())
    for at in range(len(der)):
        for bit in (1, 0x80):
            certificate_key(der[:at] + bytes([der[at] ^ bit]) + der[at + 1 :])


@pytest.mark.parametrize("error", [ValueError, PanicException, KeyError])
async def test_a_certificate_that_cannot_be_read_is_nobodys(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(_der: bytes) -> NoReturn:
        raise error("what is this?")

    monkeypatch.setattr(x509, "load_der_x509_certificate", unreadable)
    sockets = await connect_sockets()
    dialed, _ = await outcomes(sockets, dialing(sockets), serving(sockets))
    assert isinstance(dialed, WrongPeer)


# --- which TLS is spoken ---


async def test_a_handshake_of_endless_records_is_given_up() -> None:
    """OpenSSL itself sets no bound on them: here a ClientHello comes in records of one byte each, and never ends."""
    dialed, accepted = await connect_sockets()
    serve = TlsCarrier.serve(accepted, CONTEXTS[BOB])
    hello = b"\x01\x00\xff\xff" + bytes(0xFFFF)
    records = b"".join(b"\x16\x03\x01\0\x01" + hello[at : at + 1] for at in range(len(hello)))

    async def flood() -> None:
        with dialed, suppress(OSError):
            for at in range(0, len(records), 16384):
                await dialed.send(records[at : at + 16384])
            await dialed.recv(1)

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            with pytest.raises(CarrierError, match="too many bytes before the end of the TLS handshake"):
                await serve
    assert accepted.fileno() == -1


async def test_a_client_of_tls_1_2_is_refused() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    sockets = await connect_sockets()

    async def dial() -> None:
        async with trio.SSLStream(trio.SocketStream(sockets[0]), context) as stream:
            await stream.do_handshake()

    dialed, served = await outcomes(sockets, dial, serving(sockets))
    assert isinstance(dialed, trio.BrokenResourceError)
    assert isinstance(dialed.__cause__, ssl.SSLError)
    assert dialed.__cause__.reason == "TLSV1_ALERT_PROTOCOL_VERSION"  # it learns the reason
    assert isinstance(served, CarrierError)
    assert str(served).endswith("UNSUPPORTED_PROTOCOL")


async def test_a_server_of_tls_1_2_is_refused(tmp_path: Path) -> None:
    context = server_with(ed25519.Ed25519PrivateKey.generate(), tmp_path)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    sockets = await connect_sockets()

    async def serve() -> None:
        async with trio.SSLStream(trio.SocketStream(sockets[1]), context, server_side=True) as stream:
            await stream.do_handshake()

    dialed, _ = await outcomes(sockets, dialing(sockets), serve)
    assert isinstance(dialed, CarrierError)
    assert not isinstance(dialed, WrongPeer)


async def test_no_tickets_no_resumption_no_name_of_who_is_called() -> None:
    contexts = TlsContexts(BOB)
    names: list[str | None] = []
    contexts.server.sni_callback = lambda _tls, name, _context: names.append(name)
    sockets = await connect_sockets()
    ends: list[TlsCarrier] = []

    async def serve() -> None:
        ends.append(await TlsCarrier.serve(sockets[1], contexts))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        dialler = await TlsCarrier.dial(sockets[0], CONTEXTS[ALICE], peer_key=BOB.public_key)
    ends[0].feed(b"x")
    await ends[0].flush()
    await dialler.receive()  # tickets would have come before this byte
    assert names == [None]
    assert contexts.server.num_tickets == 0
    assert dialler._tls.session is None or not dialler._tls.session.has_ticket
    assert dialler._tls.version() == "TLSv1.3"
    assert dialler._tls.session_reused is False
    dialler.close_nowait()
    ends[0].close_nowait()


@pytest.mark.needs("linux")
def test_the_key_never_touches_the_disk_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **keywords: object) -> NoReturn:
        raise AssertionError("a folder for the key")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    monkeypatch.setattr(Path, "write_bytes", refuse)
    TlsContexts(ALICE)


async def test_elsewhere_the_key_is_in_a_private_file_that_is_gone_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    modes: list[int] = []
    write = Path.write_bytes

    def note(path: Path, data: bytes) -> int:
        modes.append(path.parent.stat().st_mode & 0o777)
        return write(path, data)

    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "write_bytes", note)
    contexts = TlsContexts(BOB)
    assert modes == [0o700]
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    sockets = await connect_sockets()
    dialed, served = await outcomes(sockets, dialing(sockets), lambda: TlsCarrier.serve(sockets[1], contexts))
    assert isinstance(dialed, TlsCarrier)
    assert isinstance(served, TlsCarrier)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="there are no anonymous files here")
def test_a_sandbox_may_deny_anonymous_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def denied(*_arguments: object) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", denied)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert TlsContexts(ALICE).public_key == ALICE.public_key
    assert list(tmp_path.iterdir()) == []


# --- handshakes that fail ---


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", bytes(100), b"\x80" * 70_000]
)
@pytest.mark.parametrize("dialler", [True, False])
async def test_garbage(garbage: bytes, dialler: bool) -> None:
    sockets = await connect_sockets()
    other = sockets[1 if dialler else 0]

    async def garble() -> None:
        with other:
            await trio.SocketStream(other).send_all(garbage)
            while await other.recv(1000):
                pass

    ends = (dialing(sockets), garble) if dialler else (garble, serving(sockets))
    found = await outcomes(sockets, *ends)
    error = found[0 if dialler else 1]
    assert isinstance(error, CarrierError)
    assert str(error).startswith("no TLS 1.3 with 127.0.0.1:")


@pytest.mark.parametrize("dialler", [True, False])
async def test_a_handshake_with_a_silent_peer_ends_when_it_is_cancelled(dialler: bool) -> None:
    sockets = await connect_sockets()
    ours, other = sockets if dialler else reversed(sockets)
    with other, trio.move_on_after(0.01) as scope:
        await (dialing(sockets) if dialler else serving(sockets))()
    assert scope.cancelled_caught
    assert ours.fileno() == -1


# The client sends 301 bytes in a handshake, 237 of them in its first flight; the server sends 589.
@pytest.mark.parametrize("fault", [Fault.CUT, Fault.END])
@pytest.mark.parametrize(("there", "back"), [(0, None), (1, None), (200, None), (300, None), (None, 0), (None, 588)])
async def test_a_peer_that_vanishes_in_the_handshake(fault: Fault, there: int | None, back: int | None) -> None:
    scripts = [None if after is None else Script(fault, after) for after in (there, back)]
    async with wired_sockets(there=scripts[0], back=scripts[1]) as sockets:
        dialed, served = await outcomes(sockets, dialing(sockets), serving(sockets))
    if there == 300:  # the client is done before the server is
        assert isinstance(dialed, TlsCarrier)
        dialed = served
    for outcome in (dialed, served):
        assert isinstance(outcome, CarrierError)
        assert re.search(r"during the TLS handshake|the connection broke before TLS began", str(outcome))


async def test_a_handshake_is_cancelled_at_each_of_its_checkpoints() -> None:
    for dialler in (True, False):
        for cut in cuts():
            sockets = await connect_sockets()
            ours, other = sockets if dialler else reversed(sockets)
            end = dialing(sockets) if dialler else serving(sockets)
            counterpart = serving(sockets) if dialler else dialing(sockets)
            async with trio.open_nursery() as nursery:

                async def play(counterpart: Callable[[], Awaitable[object]] = counterpart) -> None:
                    try:
                        carrier = await counterpart()
                    except CarrierError:
                        return
                    assert isinstance(carrier, TlsCarrier)
                    carrier.close_nowait()

                nursery.start_soon(play)
                with cut:
                    made = await end()
                    assert isinstance(made, TlsCarrier)
                    made.close_nowait()
                assert ours.fileno() == -1
            assert other.fileno() == -1


async def test_a_socket_that_is_not_connected() -> None:
    sock = trio.socket.socket()
    with pytest.raises(CarrierError, match="the connection broke before TLS began: "):
        await TlsCarrier.dial(sock, CONTEXTS[ALICE], peer_key=BOB.public_key)
    assert sock.fileno() == -1


# --- the stream ---


async def test_a_cancelled_flush_keeps_the_rest_and_its_place() -> None:
    dialler, server = await tls_carriers(await connect_sockets(buffers=65536))
    message = bytes(range(256)) * 512
    for part in range(8):
        dialler.feed(message)
        with trio.move_on_after(0.002):
            await dialler.flush()
        dialler.feed(b"after %d" % part)
    assert dialler.owed  # 1 MiB is more than these sockets take
    with trio.CancelScope() as scope:
        scope.cancel()
        await dialler.flush()
    assert scope.cancelled_caught
    expected = b"".join(message + b"after %d" % part for part in range(8))
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dialler.flush)
            assert await receive_exactly(server, len(expected)) == expected
    dialler.close_nowait()
    server.close_nowait()


async def test_a_connection_that_breaks() -> None:
    async with wired_sockets(there=Script(Fault.CUT, 2000)) as sockets:
        dialler, server = await tls_carriers(sockets)
        dialler.feed(bytes(1 << 23))
        with pytest.raises(trio.BrokenResourceError, match="the connection broke: "):
            await dialler.flush()
        with pytest.raises(trio.BrokenResourceError, match=r"the connection (broke: |was closed without)"):
            while True:
                await server.receive()
        dialler.close_nowait()
        server.close_nowait()


async def test_forged_bytes_break_it_and_what_came_before_is_good() -> None:
    async with wired_sockets(back=Script(Fault.GARBLE, 0)) as sockets:
        dialed, served = await outcomes(sockets, dialing(sockets), serving(sockets))
        assert isinstance(dialed, CarrierError)
        assert isinstance(served, CarrierError)
    dialler, server = await tls_carriers()
    server.feed(b"good")
    good = server._outgoing.read()
    server.feed(b"bad")
    bad = bytearray(server._outgoing.read())
    bad[-1] ^= 1
    await trio.SocketStream(server._sock).send_all(good + bad)  # type: ignore[arg-type]
    assert await dialler.receive() == [b"good"]
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError, match="TLS: DECRYPTION_FAILED_OR_BAD_RECORD_MAC"):
            await dialler.receive()
    with pytest.raises(trio.BrokenResourceError, match="TLS: "):
        dialler.feed(b"x")
    dialler.close_nowait()
    server.close_nowait()


async def test_a_carrier_that_was_closed_here() -> None:
    dialler, server = await tls_carriers(await connect_sockets(buffers=65536))
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await dialler.receive()

        async def flush() -> None:
            dialler.feed(bytes(1 << 20))
            with pytest.raises(trio.ClosedResourceError):
                await dialler.flush()

        nursery.start_soon(receive)
        nursery.start_soon(flush)
        await trio.testing.wait_all_tasks_blocked()
        dialler.close_nowait()
        dialler.close_nowait()
    with pytest.raises(trio.ClosedResourceError):
        await dialler.receive()
    with pytest.raises(trio.ClosedResourceError):
        await dialler.flush()
    server.close_nowait()


async def test_reads_grow_with_the_traffic_and_shrink_again() -> None:
    dialler, server = await tls_carriers()
    sizes = set()
    async with trio.open_nursery() as nursery:
        dialler.feed(bytes(1 << 22))
        nursery.start_soon(dialler.flush)
        received = 0
        while received < 1 << 22:
            received += sum(map(len, await server.receive()))
            sizes.add(server._receive_size)
    assert max(sizes) == RECEIVE_MAX
    for _ in range(5):
        dialler.feed(b"x")
        await dialler.flush()
        await server.receive()
    assert server._receive_size == RECEIVE_MIN
    dialler.close_nowait()
    server.close_nowait()


async def test_what_is_written_after_a_silence_is_small_records_at_first(mock_clock: trio.testing.MockClock) -> None:
    dialler, server = await tls_carriers()

    async def lengths() -> list[int]:
        """The lengths of the records of one write."""
        pieces: list[bytes] = []
        dialler.feed(bytes(RECORD))
        await dialler.flush()
        while sum(map(len, pieces)) < RECORD:
            pieces += await server.receive()
        return [len(piece) for piece in pieces]

    first = [*[FIRST_RECORD] * (FIRST_FLIGHT // FIRST_RECORD), RECORD - FIRST_FLIGHT]
    assert await lengths() == first
    assert await lengths() == [RECORD]
    mock_clock.jump(IDLE)
    assert await lengths() == first
    close_carriers(dialler, server)


async def test_many_small_records_are_taken_in_turns() -> None:
    dialler, server = await tls_carriers()
    for _ in range(1000):
        dialler.feed(b"x")
    await dialler.flush()
    others = got = 0

    async def look_on() -> None:
        nonlocal others
        while True:
            others += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look_on)
        with trio.fail_after(HANG):
            while got < 1000:
                pieces = await server.receive()
                assert len(pieces) <= TURN_RECORDS
                got += len(pieces)
        nursery.cancel_scope.cancel()
    assert got == 1000
    assert others >= 1000 // TURN_RECORDS // 2
    close_carriers(dialler, server)


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="not every system has it")
async def test_what_the_kernel_holds_unsent_is_limited() -> None:
    dialler, server = await tls_carriers()
    assert unsent_of(dialler) == UNSENT_MAX
    for asked, set_to in ((4096, 4096), (UNSENT_MAX, UNSENT_MAX), (2 * UNSENT_MAX, UNSENT_MAX)):
        dialler.limit_unsent(asked)
        assert unsent_of(dialler) == set_to
    close_carriers(dialler, server)


def unsent_of(carrier: TlsCarrier) -> int:
    sock = carrier._sock
    assert isinstance(sock, trio.socket.SocketType)
    return int(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT))
