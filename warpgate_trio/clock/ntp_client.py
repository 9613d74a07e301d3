"""Measures the wall clock's error with several NTP servers at once: the Trio shell of `ntp` and `estimate`.

Theory of operation.  Each server has a task, with one task below it for each address family; the first family with an
answer wins.  A family's task asks the addresses of the name in order, and begins with the next one when one has failed
or has not answered within `RETRY`.  An address is asked until there are `SAMPLES` answers.  Of these, the one with the
shortest round trip is kept, as its error is smallest.  A server with a rate limit may answer only once, so a second
answer is not waited for long.

As soon as a majority of *all* servers agrees, the rest is cancelled.  Otherwise the measurement ends at most `SETTLE`
after the first server is done.  So a dead server costs little time.

Times of sending and arrival are read from a clock that is set to the wall clock at the start and then follows Trio's
clock.  So it does not matter if the wall clock is moved meanwhile.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, final

import trio

from ..config import ServerUrl
from ..errors import ClockUnavailable
from ..host import Host
from ..names import Names
from ..sockaddr import FAMILIES, TransportAddress, family_of, socket_family
from .estimate import ClockEstimate, Interval, Offset, intersect
from .ntp import KissOfDeath, NtpExchange, NtpRejected, NtpSample, WrongOrigin

__all__ = ["MAX_ADDRESSES", "MAX_REQUESTS", "MAX_SERVERS", "RETRY", "SAMPLES", "SETTLE", "measure_offset"]

logger: logging.Logger = logging.getLogger(__name__)

SAMPLES: Final = 3
"""Answers wanted of each server: three are rarely all delayed, and more in a row would run into rate limits."""
MAX_REQUESTS: Final = 6
"""Requests to one address in one measurement, lost ones included."""
MAX_ADDRESSES: Final = 4
"""Addresses of one family that are asked for a server's name, one after another: as many as NTP pools return."""
MAX_SERVERS: Final = 8
"""Servers that are asked in one measurement: the first of the configuration."""
RETRY: Final = 1.0
"""Seconds for a first answer before the request is sent again: the shortest wait that RFC 5905 allows a client (its
MINPOLL is for clients that stay)."""
SETTLE: Final = 0.5
"""Seconds after the first server is done in which the others may still answer: longer than round trips on Earth."""
_MIN_AGAIN: Final = 0.05  # Seconds for a second and third answer at least; else three times the best round trip.


@final
@dataclass(slots=True)
class _Reading:
    """The state of asking one server."""

    name: str
    best: NtpSample | None = None
    fault: str | None = None
    done: bool = False


async def measure_offset(
    servers: Sequence[ServerUrl], *, timeout: float, host: Host, names: Names | None = None
) -> ClockEstimate:
    """Measure the wall clock's offset by NTP servers.

    Args:
      servers: ntp URLs, of which the first `MAX_SERVERS` are asked.
      timeout: seconds for the whole measurement.
      names: resolves and remembers the servers' names; with None, names are resolved for this measurement only.

    Raises:
      ClockUnavailable: no server answered, or no majority of those that did agrees; names each with its reason.
      ValueError: a URL has another scheme than ntp.
    """
    for url in servers:
        if url.scheme != "ntp":
            raise ValueError(f"{url.redacted} is not the URL of an NTP server")
    chosen = list(dict.fromkeys(str(url) for url in servers))[:MAX_SERVERS]
    if not chosen:
        raise ClockUnavailable("no NTP server is configured")
    wall_at, started = host.wall_time(), trio.current_time()
    readings = [_Reading(name) for name in chosen]

    def local() -> float:
        return wall_at + (trio.current_time() - started)

    if names is not None:
        await _ask_all(readings, timeout, local, host, names)
    else:
        names = Names()
        async with names.running():
            await _ask_all(readings, timeout, local, host, names)
    offset = _agreed(readings, local())
    faults = {each.name: each.fault for each in readings if each.best is None and each.fault is not None}
    if offset is None:
        for each in readings:
            if each.best is not None:
                faults[each.name] = f"answered an offset of {each.best.offset:+.3f} s, on which no majority agrees"
        raise ClockUnavailable("; ".join(f"{name}: {fault}" for name, fault in faults.items()))
    for name in offset.outvoted:
        faults[name] = "outvoted: contradicts what most servers say"
    for name, fault in faults.items():
        logger.info("NTP server %s: %s", name, fault)
    return ClockEstimate(
        offset=offset.offset,
        uncertainty=offset.uncertainty,
        measured_at=trio.current_time(),
        wall_at=local(),
        servers=offset.agreeing,
        faults=faults,
        delays={each.name: each.best.delay for each in readings if each.best is not None},
    )


async def _ask_all(
    readings: Sequence[_Reading], timeout: float, local: Callable[[], float], host: Host, names: Names
) -> None:
    with trio.move_on_after(timeout) as scope:
        async with trio.open_nursery() as nursery:

            async def ask(reading: _Reading) -> None:
                await _ask_server(reading, local, host, names)
                reading.done = True
                if reading.best is None:
                    return
                offset = _agreed(readings, local())
                if offset is not None and len(offset.agreeing) * 2 > len(readings):
                    nursery.cancel_scope.cancel()
                nursery.cancel_scope.deadline = min(nursery.cancel_scope.deadline, trio.current_time() + SETTLE)

            for reading in readings:
                nursery.start_soon(ask, reading)
    for reading in readings:
        if reading.best is None and not reading.done:
            late = (
                f"no answer within {timeout:g} s"
                if scope.cancelled_caught
                else f"no answer within {SETTLE:g} s after that of another server"
            )
            reading.fault = late if reading.fault is None else f"{late} ({reading.fault})"


def _agreed(readings: Sequence[_Reading], now: float) -> Offset | None:
    return intersect(
        [
            Interval(reading.name, reading.best.offset, reading.best.uncertainty).aged(now - reading.best.received_at)
            for reading in readings
            if reading.best is not None
        ]
    )


async def _ask_server(reading: _Reading, local: Callable[[], float], host: Host, names: Names) -> None:
    """Ask one server at its addresses, and record the result in `reading`."""
    url = ServerUrl.parse(reading.name)
    reading.fault = "its name has not been resolved yet"
    found = (await names.look_up([url.host], timeout=math.inf)).get(url.host, ())
    if not found:
        failure = names.failures([url.host]).get(url.host)
        reading.fault = f"the name cannot be resolved: {'no address' if failure is None else failure.why}"
        return
    reading.fault = None
    async with trio.open_nursery() as nursery:
        for version in FAMILIES:
            asks = [
                partial(_ask_address, reading, (ip, url.port), local, host) for ip in found if family_of(ip) == version
            ]
            nursery.start_soon(_race, nursery.cancel_scope, asks[:MAX_ADDRESSES])


async def _race(scope: trio.CancelScope, asks: Sequence[Callable[[], Awaitable[bool]]]) -> None:
    """Start asking the addresses `RETRY` apart, or earlier when one fails; the first success cancels `scope`."""

    async def run(ask: Callable[[], Awaitable[bool]], over: trio.Event) -> None:
        if await ask():
            scope.cancel()
        over.set()

    async with trio.open_nursery() as nursery:
        for ask in asks:
            over = trio.Event()
            nursery.start_soon(run, ask, over)
            with trio.move_on_after(RETRY):
                await over.wait()


async def _ask_address(reading: _Reading, address: TransportAddress, local: Callable[[], float], host: Host) -> bool:
    """Ask one address; returns whether there was a usable answer.  A refusal or an error ends the asking."""
    exchange = NtpExchange()
    good = 0
    try:
        with trio.socket.socket(socket_family(address[0]), trio.socket.SOCK_DGRAM) as sock:
            await sock.connect(address)  # so that only its answers and its "port unreachable" arrive
            for _ in range(MAX_REQUESTS):
                wait = RETRY if reading.best is None else max(_MIN_AGAIN, 3 * reading.best.delay)
                await sock.send(exchange.request(host.entropy(8), local()))
                sample = None
                with trio.move_on_after(wait):
                    sample = await _next_sample(sock, exchange, reading, local)
                if sample is not None:
                    good += 1
                    if reading.best is None or sample.delay < reading.best.delay:
                        reading.best = sample
                if good == SAMPLES or (good and sample is None):
                    break
    except (OSError, NtpRejected) as error:
        if good == 0:
            reading.fault = (error.strerror if isinstance(error, OSError) else None) or str(error)
        elif isinstance(error, KissOfDeath):
            logger.debug("NTP server %s: %s, after %d answers", reading.name, error, good)
        return good > 0
    if good == 0:
        late = f"no answer to {MAX_REQUESTS} requests"
        reading.fault = late if reading.fault is None else f"{late} ({reading.fault})"
    return good > 0


async def _next_sample(
    sock: trio.socket.SocketType, exchange: NtpExchange, reading: _Reading, local: Callable[[], float]
) -> NtpSample:
    while True:
        data = await sock.recv(1024)
        now = local()
        try:
            return exchange.receive(data, now)
        except WrongOrigin as error:  # anybody can send such packets; the server's answer may still come
            reading.fault = str(error)
