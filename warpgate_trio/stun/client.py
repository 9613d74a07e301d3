"""Asking STUN servers, over UDP and TCP: the Trio shell of `warpgate_trio.stun.transaction`.

A NAT's mapping belongs to a local port, so the port that sends STUN requests has to be the port that punches.
Therefore the caller provides the socket or the stream, bound as needed, and keeps it.  Only `open_stun_stream` and
`race_tcp` open streams, for their bodies.  While a datagram socket is in use here, nobody else may read from it; an
owner that demultiplexes (RFC 9443) feeds `StunTransaction`s itself instead.  The ``query`` functions send Binding
requests, the ``transact`` functions any request.

Several servers can be asked at once over one socket, each by its own transaction.  This serves to race them, and to
compare the mappings that two servers see within one round trip.
"""

from __future__ import annotations

import math
import os
import socket as stdlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from .. import host as machine
from ..errors import StunError, StunMalformed, StunTimeout
from ..sockaddr import TransportAddress, plain_address, socket_family
from .codec import TRANSACTION_ID_LENGTH, ChangeRequest, StreamReader
from .transaction import (
    DEFAULT_RTO,
    LAST_WAIT,
    STREAM_TIMEOUT,
    TRIES,
    StunAnswer,
    StunTransaction,
    binding_request,
    read_binding_answer,
)

__all__ = [
    "MAX_STREAM_ANSWER",
    "new_transaction_id",
    "open_stun_stream",
    "query_all_udp",
    "query_stream",
    "query_udp",
    "race_tcp",
    "race_udp",
    "resolve",
    "share_port",
    "transact_stream",
    "transact_udp",
]

MAX_STREAM_ANSWER: Final = 2048
"""Bytes of an answer over a stream; no Binding response is larger than a packet."""
MAX_STRANGERS: Final = 16
"""Messages in a stream that answer no current request, such as late answers to requests that were given up."""

_RECEIVE_SIZE: Final = 2048  # of a datagram; a longer one is truncated, and not an answer


def new_transaction_id() -> bytes:
    """A new transaction id: 12 unpredictable bytes."""
    return machine.current().entropy(TRANSACTION_ID_LENGTH)


async def query_udp(
    sock: trio.socket.SocketType,
    server: TransportAddress,
    *,
    rto: float = DEFAULT_RTO,
    tries: int = TRIES,
    last_wait: float = LAST_WAIT,
    change: ChangeRequest | None = None,
    source: TransportAddress | None = None,
) -> StunAnswer:
    """Ask one server for the server-reflexive address of `sock`.

    Args:
      sock: a datagram socket of the server's family that nobody else reads from; bound or not.
      server: IP address and port; `resolve` looks a name up.
      rto, tries, last_wait: see `StunTransaction`; with the defaults, a dead server takes 39.5 s.
      change: request an answer from another address or port of the server (RFC 5780).
      source: where that answer has to come from: `server`, with the changed part taken from
        `StunAnswer.other_address`.

    Raises:
      StunTimeout: no answer; with `change` most often because a NAT filters it.
      StunRefused: the server answered with an error.
      StunMalformed: the answer cannot be used.
      StunError: the request cannot be sent; the OSError is its cause.
    """
    transaction = StunTransaction(
        binding_request(new_transaction_id(), change=change),
        server,
        source=source,
        rto=rto,
        tries=tries,
        last_wait=last_wait,
    )
    await transact_udp(sock, [transaction])
    return read_binding_answer(transaction)


async def query_all_udp(
    sock: trio.socket.SocketType,
    servers: Sequence[TransportAddress],
    *,
    rto: float = DEFAULT_RTO,
    tries: int = TRIES,
    last_wait: float = LAST_WAIT,
) -> list[StunAnswer | StunError]:
    """Ask all servers at once over one socket, in order; returns each one's answer or error, in the same order."""
    transactions = _transactions(servers, rto, tries, last_wait)
    await transact_udp(sock, transactions)
    return [_outcome(each) for each in transactions]


async def race_udp(
    sock: trio.socket.SocketType,
    servers: Sequence[TransportAddress],
    *,
    rto: float = DEFAULT_RTO,
    tries: int = TRIES,
    last_wait: float = LAST_WAIT,
) -> StunAnswer:
    """Ask all servers at once over one socket; returns the first usable answer.

    Raises:
      StunError: no server gave a usable answer; the error is that of the last server in the list.
    """
    if not servers:
        raise StunError("there is no STUN server to ask")
    transactions = _transactions(servers, rto, tries, last_wait)
    await transact_udp(sock, transactions, until=lambda each: isinstance(_outcome(each), StunAnswer))
    outcomes = [_outcome(each) for each in transactions if each.done]
    for outcome in outcomes:
        if isinstance(outcome, StunAnswer):
            return outcome
    error = outcomes[-1]
    assert isinstance(error, StunError)
    raise error


def _transactions(
    servers: Sequence[TransportAddress], rto: float, tries: int, last_wait: float
) -> list[StunTransaction]:
    return [
        StunTransaction(binding_request(new_transaction_id()), server, rto=rto, tries=tries, last_wait=last_wait)
        for server in servers
    ]


def _outcome(transaction: StunTransaction) -> StunAnswer | StunError:
    try:
        return read_binding_answer(transaction)
    except StunError as error:
        return error


async def transact_udp(
    sock: trio.socket.SocketType,
    transactions: Sequence[StunTransaction],
    *,
    until: Callable[[StunTransaction], bool] = lambda _: False,
) -> None:
    """Send requests of any method, and receive until all are done.

    Args:
      sock: as for `query_udp`.
      until: called with each transaction that gets a response; True ends the wait.
    """
    for each in transactions:
        each.start(trio.current_time())
    while True:
        for each in transactions:
            each.handle_timer(trio.current_time())
            if (request := each.transmit(trio.current_time())) is not None:
                await _send(sock, request, each)
        deadline = min((each.deadline for each in transactions), default=math.inf)
        if deadline == math.inf:
            return
        with trio.move_on_at(deadline):
            while True:
                data, address = await _receive(sock)
                now = trio.current_time()
                took = [each for each in transactions if each.receive(data, address, now)]
                if any(until(each) for each in took):
                    return
                if all(each.done for each in transactions):
                    return


async def _send(sock: trio.socket.SocketType, request: bytes, transaction: StunTransaction) -> None:
    try:
        await sock.sendto(request, transaction.server)
    except OSError as error:
        if transaction.sent > 1:
            return  # an earlier request could be sent; this one counts as lost
        failed = StunError(f"STUN server {transaction.server[0]} cannot be asked: {_reason(error)}")
        failed.__cause__ = error
        transaction.fail(failed)


async def _receive(sock: trio.socket.SocketType) -> tuple[bytes, TransportAddress]:
    while True:
        try:
            data, address = await sock.recvfrom(_RECEIVE_SIZE)
        except ConnectionError:
            continue  # an ICMP error about an earlier datagram, as Windows reports it
        return data, plain_address(address)


async def query_stream(
    stream: trio.abc.Stream, *, server: TransportAddress | None = None, timeout: float = STREAM_TIMEOUT
) -> StunAnswer:
    """Ask the server at the other end of `stream` for our server-reflexive address; the stream stays open.

    After an error or a cancellation the stream can only be closed.

    Args:
      server: its address; may be omitted for a `trio.SocketStream`.
      timeout: seconds for the answer (RFC 8489 §6.2.2).

    Raises:
      StunTimeout, StunRefused, StunMalformed: as `query_udp`.
      StunError: the connection broke or ended.
    """
    if server is None:
        if not isinstance(stream, trio.SocketStream):
            raise TypeError("server may be left out only if stream is a trio.SocketStream")
        server = plain_address(stream.socket.getpeername())
    transaction = StunTransaction(binding_request(new_transaction_id()), server, rto=timeout, tries=1, last_wait=1)
    with trio.move_on_after(timeout) as scope:
        await transact_stream(stream, transaction)
    if scope.cancelled_caught:
        raise StunTimeout(f"no answer from STUN server {server[0]} within {timeout} s")
    return read_binding_answer(transaction)


async def transact_stream(stream: trio.abc.Stream, transaction: StunTransaction) -> None:
    """Send a request of any method to the server at the other end of `stream`, and wait for its response.

    The caller bounds the time, and does not use the stream meanwhile.

    Raises:
      StunMalformed: the server sends something that is not STUN, or too many messages that answer no request.
      StunError: the connection broke or ended.
    """
    try:
        await _exchange(stream, transaction, transaction.server)
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise StunError(f"the connection to STUN server {transaction.server[0]} broke") from error


async def _exchange(stream: trio.abc.Stream, transaction: StunTransaction, server: TransportAddress) -> None:
    transaction.start(trio.current_time())
    request = transaction.transmit(trio.current_time())
    assert request is not None
    await stream.send_all(request)
    reader = StreamReader(most=MAX_STREAM_ANSWER)
    strangers = 0
    while data := await stream.receive_some(MAX_STREAM_ANSWER):
        for message in reader.feed(bytes(data)):
            if transaction.receive(message, server, trio.current_time()):
                return
            strangers += 1
            if strangers > MAX_STRANGERS:
                raise StunMalformed(f"STUN server {server[0]} sends messages that match no request")
    raise StunError(f"STUN server {server[0]} closed the connection")


@asynccontextmanager
async def open_stun_stream(
    server: TransportAddress, *, local: TransportAddress | None = None
) -> AsyncGenerator[trio.SocketStream]:
    """Connect to a server over TCP; the stream is closed at the end of the body.

    Args:
      local: address and port to connect from.  The port is shared (`share_port`), so that a listener and punching
        sockets can be bound to it too, if they share it as well.

    Raises:
      StunError: the connection fails; the OSError is its cause.
    """
    stream = await _connect(server, local)
    try:
        yield stream
    finally:
        stream.socket.close()


@asynccontextmanager
async def race_tcp(
    servers: Sequence[TransportAddress], *, local: TransportAddress | None = None, timeout: float = STREAM_TIMEOUT
) -> AsyncGenerator[tuple[StunAnswer, trio.SocketStream]]:
    """Connect to all servers at once and ask them, from one local port if `local` is given.

    Yields the first usable answer and its stream, which is open until the body ends; the other streams are closed.

    Args:
      local: as for `open_stun_stream`.
      timeout: seconds for an answer once a connection is open.

    Raises:
      StunError: no server gave a usable answer; the error is the one that came last.
    """
    errors: list[StunError] = [StunError("there is no STUN server to ask")]
    won: list[tuple[StunAnswer, trio.SocketStream]] = []

    async def run(server: TransportAddress) -> None:
        try:
            stream = await _connect(server, local)
            try:
                answer = await query_stream(stream, timeout=timeout)
            except BaseException:
                stream.socket.close()
                raise
        except StunError as error:
            errors.append(error)
            return
        won.append((answer, stream))
        nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for each in servers:
                nursery.start_soon(run, each)
        if not won:
            raise errors[-1]
        for _, stream in won[1:]:  # several answered at once
            stream.socket.close()
        yield won[0]
    finally:
        for _, stream in won:
            stream.socket.close()


async def _connect(server: TransportAddress, local: TransportAddress | None) -> trio.SocketStream:
    sock = trio.socket.socket(socket_family(server[0]))
    try:
        if local is not None:
            share_port(sock)
            await sock.bind(local)
        await sock.connect(server)
        return trio.SocketStream(sock)
    except OSError as error:
        sock.close()
        raise StunError(f"STUN server {server[0]} port {server[1]} cannot be reached: {_reason(error)}") from error
    except BaseException:
        sock.close()
        raise


def _reason(error: OSError) -> str:
    # Trio's own text would repeat the address.
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error)


def share_port(sock: trio.socket.SocketType) -> None:
    """Let several sockets be bound to one local port; to be called for each of them before its bind."""
    sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
    if hasattr(stdlib, "SO_REUSEPORT"):
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEPORT, 1)


async def resolve(host: str, port: int, *, family: int = stdlib.AF_UNSPEC) -> TransportAddress:
    """The first address of a server's name; `family` selects IPv4 or IPv6.

    Raises:
      StunError: the name has no such address, or the lookup fails.
    """
    try:
        found = await trio.socket.getaddrinfo(host, port, family=family, type=trio.socket.SOCK_DGRAM)
    except OSError as error:
        raise StunError(f"the address of STUN server {host} cannot be found: {error.strerror or error}") from error
    return plain_address(found[0][4])
