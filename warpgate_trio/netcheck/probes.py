"""The probes of `Node.netcheck` (`report` has the report and its texts).

Theory of operation.  All servers are asked at the same time, each in a task of its own and with its own timeout.  The
result goes into the server's row, so a dead server affects only its own row.  For each address family there is one
sequence: first every STUN server is asked for our mapping, then the NATs are measured from each interface in turn
(`warpgate_trio.nat.measure`), with the servers that answered.  Two measurements at a time would disturb the order of
each other's mappings.  So if the node is measuring in the background, the check waits for that measurement and uses it.

When the time is up, the report has what is known by then.  A bad network raises no exception.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, final

import trio

from ..address.nat_profile import UNKNOWN
from ..clock.estimate import ClockEstimate, Interval, intersect
from ..clock.ntp import UNSYNCHRONISED
from ..clock.ntp_client import measure_offset
from ..errors import WarpgateError
from ..names import NameFailure, Names, in_turn
from ..nat.measure import measure_nat
from ..nurseries import reason_of
from ..signal import ServerState
from ..sockaddr import FAMILIES, Family, TransportAddress, family_of, socket_family
from ..stun.client import open_stun_stream, query_stream, query_udp
from .report import (
    ClockCheck,
    NetcheckReport,
    Path,
    ServerCheck,
    gateway_check,
    milliseconds,
    named,
    path_check,
    plan_paths,
    sentence,
    whole,
)

if TYPE_CHECKING:
    from ..config import Servers, ServerUrl, TurnServer
    from ..host import Host
    from ..nat.service import NatService
    from ..portmap.service import PortMaps
    from ..signal import SignalHub
    from ..turn.relays import Relays

__all__ = ["PATIENCE", "TIMEOUT", "check_network"]

logger: logging.Logger = logging.getLogger(__name__)

TIMEOUT: Final = 15.0
"""Seconds for the whole check: enough for a measurement with only dead servers, after another one that was under
way."""
HEAD_START: Final = 1.2
"""Seconds for servers to answer over TCP, and for further names to resolve, before the NATs are measured: later answers
are unlikely."""
PATIENCE: Final = 5.0
"""Seconds for one server: TCP, TLS and registration over a bad satellite link, or a lost SYN that is retransmitted."""
RTO: Final = 0.2
"""Seconds before the first retransmission over UDP; doubles."""
TRIES: Final = 3
"""Requests in all, the first one included."""
LAST_WAIT: Final = 3.0
"""RTOs that are waited after the last request: 1.2 s in all, twice the round trip by satellite."""

Kind: TypeAlias = Literal["websocket", "mqtt", "stun", "turn", "ntp"]
_KINDS: Final[dict[str, Kind]] = {
    "ws": "websocket",
    "wss": "websocket",
    "mqtt": "mqtt",
    "mqtts": "mqtt",
    "stun": "stun",
    "stuns": "stun",
    "turn": "turn",
    "turns": "turn",
    "ntp": "ntp",
}


# --- Asking -----------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class _Outcome:
    """The result of asking one server, at one or several of its addresses."""

    latency: float | None = None
    error: str | None = None
    asked: bool = True
    unresolved: bool = False


@final
@dataclass(slots=True)
class _Row:
    """A server over one transport.  One outcome with an answer makes it reachable; `asks` without one unreachable."""

    url: ServerUrl
    transport: str
    asks: int = 1
    outcomes: list[_Outcome] = field(default_factory=list)
    not_tested: str | None = None

    def check(self) -> ServerCheck:
        make = partial(ServerCheck, url=self.url.redacted, kind=_KINDS[self.url.scheme], transport=self.transport)
        latencies = [each.latency for each in self.outcomes if each.latency is not None]
        if latencies:
            return make(reachable=True, latency_ms=milliseconds(min(latencies)))
        errors = sorted((each for each in self.outcomes if each.error), key=lambda each: not each.asked)
        if errors and len(self.outcomes) == self.asks:
            return make(reachable=False, error=errors[0].error)
        return make(reachable=None, error=self.not_tested or "not tested: the time was up")


async def check_network(
    *,
    servers: Servers,
    hub: SignalHub,
    nat: NatService,
    names: Names,
    relays: Relays,
    portmaps: PortMaps,
    host: Host,
    everything: bool,
    timeout: float,
) -> NetcheckReport:
    """Make the report; see `Node.netcheck`.

    Args:
      everything: whether to try each signal and TURN server afresh, and STUN servers over TCP too.
      timeout: seconds for the whole check.

    Raises:
      ValueError: the timeout is not more than 0.
    """
    if not timeout > 0:
        raise ValueError(f"a timeout has to be more than 0 s, not {timeout}")
    check = _Check(servers, hub, nat, names, relays, portmaps, host, everything)
    started = trio.current_time()
    with trio.move_on_after(timeout) as scope:
        await check.run()
    return check.report(complete=not scope.cancelled_caught, elapsed=trio.current_time() - started)


@final
class _Check:
    def __init__(
        self,
        servers: Servers,
        hub: SignalHub,
        nat: NatService,
        names: Names,
        relays: Relays,
        portmaps: PortMaps,
        host: Host,
        everything: bool,
    ) -> None:
        self._servers = servers
        self._hub = hub
        self._nat = nat
        self._names = names
        self._relays = relays
        self._portmaps = portmaps
        self._unresolved: dict[str, NameFailure] = {}
        self._host = host
        self._everything = everything
        self._signals: list[_Row] = []  # empty unless `everything`
        self._signals_done = trio.Event()
        self._stun = list(dict.fromkeys(url for url in servers.stun if url.scheme == "stun"))
        self._rows = {
            (url, transport): _Row(url, transport, asks=len(FAMILIES))
            for url in self._stun
            for transport in (("udp", "tcp") if everything else ("udp",))
        }
        self._turn = {turn: _Row(turn.url, turn.url.transport) for turn in servers.turn}
        self._ntp = {url: _Row(url, "udp") for url in servers.ntp}
        self._estimates: dict[ServerUrl, ClockEstimate] = {}
        self._paths: dict[Family, list[Path]] = {af: [] for af in FAMILIES}

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._check_signals)
            nursery.start_soon(self._check_gateways)
            if self._everything:
                for turn, row in self._turn.items():
                    nursery.start_soon(self._check_turn, turn, row)
            for url in self._ntp:
                nursery.start_soon(self._check_ntp, url)
            for af in self._paths:
                nursery.start_soon(self._check_family, af)

    async def _check_gateways(self) -> None:
        """Wait for the routers, which the node asks in the background; one that stays silent takes a while."""
        with trio.move_on_after(PATIENCE):
            await self._portmaps.wait_settled()

    # -- signals and time --------------------------------------------------------------------------------------------

    async def _check_signals(self) -> None:
        if self._everything:
            self._signals = [_Row(url, "tcp") for url in dict.fromkeys(self._servers.signal)]
            async with trio.open_nursery() as nursery:
                for row in self._signals:
                    nursery.start_soon(self._fill, row, partial(self._hub.measure_server, row.url, timeout=PATIENCE))
        else:
            with trio.move_on_after(PATIENCE):
                await self._hub.wait_tried()
        self._signals_done.set()

    def _signal_rows(self) -> list[ServerCheck]:
        """The rows of the signal servers: their state in the hub, or with `everything` the result of a new try."""
        if self._everything:
            return [each.check() for each in self._signals]
        return [
            ServerCheck(
                url=each.url,
                kind=_KINDS[each.url.partition(":")[0]],
                transport="tcp",
                reachable=each.state is ServerState.CONNECTED or (None if each.last_error is None else False),
                latency_ms=None if each.rtt is None else milliseconds(each.rtt),
                error=None if each.state is ServerState.CONNECTED else sentence(each.last_error or "not connected yet"),
            )
            for each in self._hub.status()
            if not each.visiting
        ]

    async def _fill(self, row: _Row, ask: Callable[[], Awaitable[float]]) -> None:
        """Add the outcome of `ask`, which has its own timeout: its error says if a proxy or the server is silent."""
        row.outcomes.append(await _outcome(ask, patience=math.inf))

    async def _check_turn(self, turn: TurnServer, row: _Row) -> None:
        """A TURN server is reachable if it gives an allocation for the configured login."""
        row.outcomes.append(await _outcome(partial(self._relays.measure, turn)))

    async def _check_ntp(self, url: ServerUrl) -> None:
        async def ask() -> float:
            estimate = await measure_offset([url], timeout=PATIENCE, host=self._host, names=self._names)
            self._estimates[url] = estimate
            return estimate.delays[str(url)]

        outcome = await _outcome(ask)
        if outcome.error is not None:
            outcome = replace(outcome, error=outcome.error.removeprefix(f"{url}: "))
        self._ntp[url].outcomes.append(outcome)

    def _clock(self) -> ClockCheck:
        now = trio.current_time()
        offset = intersect(
            [
                Interval(url.redacted, each.offset, each.uncertainty).aged(now - each.measured_at)
                for url, each in self._estimates.items()
            ]
        )
        if offset is None:
            return ClockCheck()
        return ClockCheck(
            offset_s=round(offset.offset, 6),
            uncertainty_s=round(offset.uncertainty, 6),
            agreeing=offset.agreeing,
            outvoted=offset.outvoted,
        )

    # -- NATs --------------------------------------------------------------------------------------------------------

    async def _check_family(self, af: Family) -> None:
        there = await self._resolve(af)
        sources = [self._host.source_address(ip_address(ip)) for addresses in there.values() for ip, _ in addresses]
        paths = self._paths[af] = plan_paths(
            self._host.interfaces(), af, next((each for each in sources if each is not None), None)
        )
        if not there:
            why = f"no STUN server can be asked over IPv{af}"
            if self._stun and all(url.host in self._unresolved for url in self._stun):
                why = "no STUN server's name can be resolved"
            for path in paths:
                path.why = f"was not measured: {why}"
            return
        before = self._nat.profiles.by_key.get((None, af))
        async with self._nat.measuring[af], trio.open_nursery() as nursery:
            after = self._nat.profiles.by_key.get((None, af))
            alive = await self._ask_stun(there, nursery)
            if not alive:
                await self._signals_done.wait()  # silence is evidence only where other servers answer
            online = any(each.reachable for each in self._signal_rows())
            for path in paths:
                if path.main and after is not None and after is not before and (after.udp != UNKNOWN or not online):
                    path.profile = after  # measured in the background while this check waited for the lock
                elif paths[0].address.is_loopback and not path.main:
                    path.why = "was not measured: the STUN servers are on this machine"
                else:
                    path.profile = await measure_nat(
                        str(path.address), alive or in_turn(there.values()), online=online and path.main
                    )

    async def _resolve(self, af: Family) -> dict[ServerUrl, list[TransportAddress]]:
        """The reachable addresses of each STUN server in a family; records an outcome for servers without one."""
        hosts = [url.host for url in self._stun]
        known = await self._names.look_up(hosts, timeout=PATIENCE, settle=HEAD_START, fresh=True)
        self._unresolved.update(self._names.failures(hosts))
        found: dict[ServerUrl, list[TransportAddress]] = {}
        for url in self._stun:
            ips = [ip for ip in known.get(url.host, ()) if family_of(ip) == af]
            routed = [(ip, url.port) for ip in ips if self._host.source_address(ip_address(ip)) is not None]
            if routed:
                found[url] = routed
                continue
            failure = self._unresolved.get(url.host)
            if ips:
                why = f"no route leads to {ips[0]}"
            elif failure is not None:
                why = f"the name cannot be resolved: {failure.why}"
            else:
                why = f"the name has no IPv{af} address"
            for (each, _), row in self._rows.items():
                if each == url:
                    row.outcomes.append(_Outcome(error=sentence(why), asked=False))
        return found

    async def _ask_stun(
        self, servers: dict[ServerUrl, list[TransportAddress]], nursery: trio.Nursery
    ) -> list[TransportAddress]:
        """Fill the rows of STUN servers; returns the addresses that answer over UDP.

        TCP is asked in `nursery`, and waited for here only for `HEAD_START`: a failing connection may take longer.
        """
        alive: list[TransportAddress] = []
        tcp = [trio.Event() for _ in servers if self._everything]

        async def ask_udp(url: ServerUrl) -> None:
            async def ask(address: TransportAddress) -> float:
                latency = await _ask_udp(address)
                alive.append(address)
                return latency

            # All addresses are asked, since each that answers can be used for the measurement.
            self._rows[url, "udp"].outcomes.append(await _best(servers[url], ask, enough=len(servers[url])))

        async def ask_tcp(url: ServerUrl, done: trio.Event) -> None:
            self._rows[url, "tcp"].outcomes.append(await _best(servers[url], _ask_tcp, enough=1))
            done.set()

        for url, done in zip(servers, tcp, strict=False):
            nursery.start_soon(ask_tcp, url, done)
        async with trio.open_nursery() as asking:
            for url in servers:
                asking.start_soon(ask_udp, url)
        with trio.move_on_after(HEAD_START):
            for done in tcp:
                await done.wait()
        return [address for address in in_turn(servers.values()) if address in alive]

    def _failing_names(self) -> dict[str, NameFailure]:
        """The servers' names that could not be resolved, in this check or elsewhere in the node."""
        found = {} if self._everything else self._hub.unresolved
        for row in self._signals:
            for outcome in row.outcomes:
                if outcome.unresolved:
                    found[row.url.host] = NameFailure(why=outcome.error or "", remembered=False)
        return found | self._names.failures(url.host for url in (*self._stun, *self._ntp)) | self._unresolved

    # -- the report --------------------------------------------------------------------------------------------------

    def report(self, *, complete: bool, elapsed: float) -> NetcheckReport:
        later = [
            _Row(url, "tcp", not_tested="not tested: STUN over TLS is not supported")
            for url in dict.fromkeys(self._servers.stun)
            if url.scheme == "stuns"
        ]
        for row in self._turn.values():
            row.not_tested = None if self._everything else "not tested: TURN servers are tested only with --servers"
        signals = self._signal_rows()
        ntp = [row.check() for row in self._ntp.values()]
        stun = [row.check() for row in self._rows.values()]
        rows = (*signals, *stun, *(row.check() for row in (*later, *self._turn.values())), *ntp)
        if any(each.reachable or UNSYNCHRONISED in (each.error or "") for each in ntp):
            self._unblock()
        paths = [path_check(path) for each in self._paths.values() for path in each]
        paths.sort(key=lambda path: not path.main)
        said_of_all = whole(paths, signals, self._servers, ntp, unresolved=self._failing_names())
        said = {
            name: tuple(
                dict.fromkeys(
                    (
                        *getattr(said_of_all, name),
                        *(named(each, path, paths) for path in paths for each in getattr(path, name)),
                    )
                )
            )
            for name in ("can", "cannot", "unknown")
        }
        return NetcheckReport(
            online=any(each.reachable for each in rows),
            complete=complete,
            elapsed_ms=milliseconds(elapsed),
            external=tuple(
                dict.fromkeys(ip for path in paths for each in (path.udp, path.tcp) for ip in each.external)
            ),
            paths=tuple(paths),
            servers=rows,
            clock=self._clock(),
            gateways=tuple(map(gateway_check, self._portmaps.gateways)),
            **said,
        )

    def _unblock(self) -> None:
        """Withdraw "UDP is blocked", since an NTP server has answered over UDP."""
        for path in (path for each in self._paths.values() for path in each):
            if path.profile is not None and path.profile.udp.blocked:
                path.profile = replace(path.profile, udp=replace(path.profile.udp, blocked=None))


async def _outcome(ask: Callable[[], Awaitable[float]], *, patience: float = PATIENCE) -> _Outcome:
    """Ask within `patience` seconds.  Any exception becomes the outcome's error, since answers can be anything."""
    try:
        with trio.move_on_after(patience):
            return _Outcome(latency=await ask())
    except OSError as error:
        return _Outcome(error=sentence(reason_of(error)), unresolved=isinstance(error, trio.socket.gaierror))
    except WarpgateError as error:
        return _Outcome(error=sentence(str(error)))
    except Exception as error:
        logger.exception("a server could not be tested")
        return _Outcome(error=f"unexpected {type(error).__name__}")
    return _Outcome(error=f"no answer within {patience:g} s")


async def _best(
    addresses: Sequence[TransportAddress], ask: Callable[[TransportAddress], Awaitable[float]], *, enough: int
) -> _Outcome:
    """Ask all addresses of a server at once, until `enough` have answered; the fastest answer, or the first failure."""
    outcomes: list[_Outcome] = []

    async def one(address: TransportAddress) -> None:
        outcome = await _outcome(partial(ask, address))
        outcomes.append(outcome)
        if sum(each.error is None for each in outcomes) >= enough:
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for address in addresses:
            nursery.start_soon(one, address)
    answers = [each for each in outcomes if each.latency is not None]
    return min(answers, key=lambda each: each.latency or 0.0) if answers else outcomes[0]


async def _ask_udp(server: TransportAddress) -> float:
    family = socket_family(server[0])
    with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as sock:
        return (await query_udp(sock, server, rto=RTO, tries=TRIES, last_wait=LAST_WAIT)).rtt


async def _ask_tcp(server: TransportAddress) -> float:
    async with open_stun_stream(server) as stream:
        return (await query_stream(stream, server=server, timeout=PATIENCE)).rtt
    raise AssertionError("unreachable")  # for mypy, to which `async with` may swallow exceptions
