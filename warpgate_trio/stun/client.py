"""Asking STUN servers, over UDP and TCP: the Trio shell of `warpgate_trio.stun.transaction`.

Law 1 of punching: the port that asked is the port that punches.  So the caller brings the socket or the stream, bound
as it wants it, and keeps it; nothing here opens or closes one but `open_stun_stream`, whose stream is the caller's too.
While a datagram socket is being asked over, nobody else may read from it; an owner that demultiplexes (RFC 9443) feeds
`StunTransaction`s itself instead.  The ``query`` functions ask for a binding; the ``transact`` ones take any request.

Several servers over one socket are asked at once, each by its own transaction; that is the race, and also how one sees
a mapping from two sides within one round trip.
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
"""Bytes of an answer over a stream: no Binding response is larger than a packet."""
MAX_STRANGERS: Final = 16
"""Messages in a stream that answer nothing we ask now: late answers to requests that were given up."""

_RECEIVE_SIZE: Final = 2048  # of a datagram; a longer one is no answer, and is cut


def new_transaction_id() -> bytes:
    """12 bytes that nobody guesses."""
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
    """Ask one server from where it sees `sock`.

    Args:
      sock: a datagram socket of the server's family, that nobody else reads; bound or not.
      server: address (no name: `resolve`) and port.
      rto, tries, last_wait: RFC 8489 §6.2.1; with the defaults, a dead server costs 39.5 s.
      change: ask for an answer from elsewhere (RFC 5780), which then must come from `source`: the server itself with
        `StunAnswer.other_address` in place of what is to change.

    Raises:
      StunTimeout: no answer; with `change`, what most filters make of it.
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
    """Ask all servers at once over one socket, requests leaving in order; what each said, in the same order."""
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
    """Ask all servers at once over one socket; the first usable answer.

    Raises:
      StunError: the last server's, when none gave any.
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
    """Send requests of any method and receive until all are done, or `until` holds of one that has its response.

    Args:
      sock: as of `query_udp`.
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
            return  # it worked before; this one is lost like any other
        failed = StunError(f"STUN server {transaction.server[0]} cannot be asked: {_reason(error)}")
        failed.__cause__ = error
        transaction.fail(failed)


async def _receive(sock: trio.socket.SocketType) -> tuple[bytes, TransportAddress]:
    while True:
        try:
            data, address = await sock.recvfrom(_RECEIVE_SIZE)
        except ConnectionError:
            continue  # an ICMP error about an earlier datagram, as Windows tells it
        return data, plain_address(address)


async def query_stream(
    stream: trio.abc.Stream, *, server: TransportAddress | None = None, timeout: float = STREAM_TIMEOUT
) -> StunAnswer:
    """Ask the server at the other end of `stream` from where it sees us; the stream stays open, for the next time.

    After an error or a cancellation in the middle the stream is good for nothing but closing.

    Args:
      server: its address; may be left out for a `trio.SocketStream`.
      timeout: seconds for the answer (RFC 8489 §6.2.2).

    Raises:
      StunTimeout, StunRefused, StunMalformed: as `query_udp`.
      StunError: the connection broke or ended.
    """
    if server is None:
        if not isinstance(stream, trio.SocketStream):
            raise TypeError("server can be left out for a SocketStream only")
        server = plain_address(stream.socket.getpeername())
    transaction = StunTransaction(binding_request(new_transaction_id()), server, rto=timeout, tries=1, last_wait=1)
    with trio.move_on_after(timeout) as scope:
        await transact_stream(stream, transaction)
    if scope.cancelled_caught:
        raise StunTimeout(f"no answer from STUN server {server[0]} within {timeout} s")
    return read_binding_answer(transaction)


async def transact_stream(stream: trio.abc.Stream, transaction: StunTransaction) -> None:
    """Send a request of any method to the server at the other end of `stream`, and wait for its response; the caller
    bounds the time.  The stream is for nothing else meanwhile.

    Raises:
      StunMalformed: what comes is no STUN, or answers nothing.
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
                raise StunMalformed(f"STUN server {server[0]} sends messages that answer nothing")
    raise StunError(f"STUN server {server[0]} closed the connection")


@asynccontextmanager
async def open_stun_stream(
    server: TransportAddress, *, local: TransportAddress | None = None
) -> AsyncGenerator[trio.SocketStream]:
    """Connect to a server over TCP; the stream closes with the body.

    Args:
      local: address and port to connect from.  The port is shared (`share_port`, before the bind), so that a listener
        and punching sockets, made alike, can have it too.

    Raises:
      StunError: it cannot be connected; the OSError is its cause.
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
    """Connect to all servers at once, from one local port if `local` says so, and ask them.

    The first usable answer, and the stream that it came by, which is open until the body ends; the others are closed.

    Raises:
      StunError: the last server's, when none gave any.
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
        for _, stream in won[1:]:  # a dead heat
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
        raise StunError(f"STUN server {server[0]} port {server[1]} cannot be connected: {_reason(error)}") from error
    except BaseException:
        sock.close()
        raise


def _reason(error: OSError) -> str:
    # Without what Trio puts in front, the address a second time.
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error)


def share_port(sock: trio.socket.SocketType) -> None:
    """Let several sockets be bound to one local port, all of which must say so before their bind."""
    sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
    if hasattr(stdlib, "SO_REUSEPORT"):
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEPORT, 1)


async def resolve(host: str, port: int, *, family: int = stdlib.AF_UNSPEC) -> TransportAddress:
    """The first address of a server's name; `family` picks IPv4 or IPv6.

    Raises:
      StunError: the name has none.
    """
    try:
        found = await trio.socket.getaddrinfo(host, port, family=family, type=trio.socket.SOCK_DGRAM)
    except OSError as error:
        raise StunError(f"the address of STUN server {host} cannot be found: {error.strerror or error}") from error
    return plain_address(found[0][4])
