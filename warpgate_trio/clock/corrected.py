"""The node's corrected wall clock, and the task that keeps it measured.

`CorrectedClock` provides the time for plugins and signals: the host's wall clock corrected by the newest
`ClockEstimate`, and the uncertainty of that.  Until there is an estimate it equals the wall clock, and its uncertainty
is infinite.

`keep_measured` asks the NTP servers at its start, when the estimate has aged, and when the wall clock was moved.  After
a failure it asks again with growing pauses, since public servers must not be overloaded (RFC 8633 section 3.3).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Final, NoReturn, final

import trio

from ..config import ServerUrl
from ..errors import ClockUnavailable, panics_as_errors
from ..host import Host
from ..names import Names
from .estimate import DRIFT, ClockEstimate
from .ntp_client import measure_offset

__all__ = [
    "CHECK_INTERVAL",
    "INTERVAL",
    "MAX_UNCERTAINTY",
    "MOVED",
    "RETRY_FIRST",
    "CorrectedClock",
    "keep_measured",
]

logger: logging.Logger = logging.getLogger(__name__)

INTERVAL: Final = 1024.0
"""Seconds between measurements: 2^10, the usual longest poll interval of NTP clients, in which a clock drifts 15 ms."""
RETRY_FIRST: Final = 16.0
"""Seconds to the next measurement after a failure, doubling up to `INTERVAL`: the shortest poll interval of RFC 5905
(MINPOLL)."""
CHECK_INTERVAL: Final = 16.0
"""Seconds between checks whether the wall clock was moved, which send no packets."""
MOVED: Final = 0.1
"""Seconds by which wall clock and monotonic clock may diverge before a new measurement: more than a daemon slews in
`CHECK_INTERVAL` (500 ppm), and less than a punch tolerates."""
MAX_UNCERTAINTY: Final = 10.0
"""Seconds of uncertainty above which an estimate is not used: no pair of peers could meet by it."""


@final
class CorrectedClock:
    """Wall-clock time, corrected as well as possible.  A `warpgate_trio.clock.wall.Clock`."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._estimate: ClockEstimate | None = None
        self._asked = trio.Event()

    @property
    def estimate(self) -> ClockEstimate | None:
        """The newest measurement; None before the first."""
        return self._estimate

    def now(self) -> float:
        """Unix seconds, corrected by the newest estimate.  To be called inside `trio.run`."""
        wall = self._host.wall_time()
        return wall if self._estimate is None else self._estimate.corrected(wall, trio.current_time())

    def uncertainty(self, at: float | None = None) -> float:
        """Seconds by which this clock may be wrong now, or with `at` at that time of this clock; infinite while nothing
        was measured.
        """
        if self._estimate is None:
            return math.inf
        ahead = 0.0 if at is None else max(at - self.now(), 0.0)
        return self._estimate.uncertainty_at(self._host.wall_time(), trio.current_time()) + DRIFT * ahead

    def moved(self) -> float:
        """Seconds by which the wall clock was moved since the measurement; 0.0 when there is none."""
        if self._estimate is None:
            return 0.0
        return self._estimate.moved(self._host.wall_time(), trio.current_time())

    def trio_time(self, instant: float) -> float:
        """Convert a Unix time of this clock to one of `trio.current_time`, for `trio.sleep_until` and deadlines."""
        return trio.current_time() + (instant - self.now())

    def note_asked(self) -> None:
        """Record that a measurement has ended, with or without success."""
        self._asked.set()

    async def wait_asked(self) -> None:
        """Wait until a first measurement has succeeded or failed; the caller has to limit the time."""
        await self._asked.wait()

    def update(self, estimate: ClockEstimate) -> float:
        """Use a new estimate from now on; returns the seconds by which that moved this clock.

        It is not used if its uncertainty is above `MAX_UNCERTAINTY`, or above that of the present estimate.
        """
        wall, monotonic = self._host.wall_time(), trio.current_time()
        uncertainty = estimate.uncertainty_at(wall, monotonic)
        if uncertainty > min(MAX_UNCERTAINTY, self.uncertainty()):
            return 0.0
        before = self.now()
        self._estimate = estimate
        return self.now() - before


async def keep_measured(
    clock: CorrectedClock,
    servers: Sequence[ServerUrl],
    *,
    timeout: float,
    host: Host,
    names: Names | None = None,
    on_failure: Callable[[ClockUnavailable], None] = lambda error: None,
) -> NoReturn:
    """Keep `clock` measured until cancelled; a service of the node.

    Args:
      timeout: seconds for one measurement.
      names: as in `measure_offset`.
      on_failure: called with the error of a failed measurement, after it was logged; must not block.
    """
    pause = RETRY_FIRST
    while True:
        try:
            with panics_as_errors():
                estimate = await measure_offset(servers, timeout=timeout, host=host, names=names)
        except Exception as error:  # any failure caused by a server only means that the clock is not measured
            if not isinstance(error, ClockUnavailable):
                logger.exception("measuring the clock ended with an unexpected error")
                error = ClockUnavailable(f"unexpected {type(error).__name__}")
            logger.warning("the clock could not be measured: %s", error)
            clock.note_asked()
            on_failure(error)
            await trio.sleep(pause * host.random.uniform(0.9, 1.1))  # jitter, against synchronised nodes
            pause = min(2 * pause, INTERVAL)
            continue
        pause = RETRY_FIRST
        clock.update(estimate)
        clock.note_asked()
        logger.info(
            "the clock is %+.3f s ± %.3f s off, by %s", -estimate.offset, estimate.uncertainty, estimate.servers
        )
        await _until_stale(clock, INTERVAL * host.random.uniform(0.9, 1.1))


async def _until_stale(clock: CorrectedClock, seconds: float) -> None:
    """Wait until the estimate has aged by `seconds` or the wall clock was moved, and at least `CHECK_INTERVAL`."""
    ends = trio.current_time() + seconds
    while True:
        # A moved clock causes no event (except by timerfd, on Linux only), so it is polled.
        await trio.sleep(CHECK_INTERVAL)
        if trio.current_time() >= ends or abs(clock.moved()) > MOVED:
            return
