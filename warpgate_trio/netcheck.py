"""What this machine's network is like: the report of `Node.netcheck`, and how it is made.

Theory of operation.  Everything is asked at once, each server in a task of its own and with a patience of its own, and
what each says goes into its row: a server that is dead costs its row and nothing else.  Per address family one thing
has an order: first every STUN server is asked where it sees us, then the NATs are measured from each interface in turn
(`warpgate_trio.nat.measure`), by those servers that answered.  Two measurements at a time would disturb each other's
order of mappings, so the node's own background measurement is waited for, and used, where one is under way.

When the time is up, the report is of what is known by then; nothing raises for a network that is bad.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, final

import msgspec
import trio

from .address import is_public
from .clock.estimate import ClockEstimate, Interval, intersect
from .clock.ntp_client import measure_offset
from .errors import StunError, WarpgateError
from .nat.abilities import Abilities, abilities
from .nat.measure import measure_nat
from .nat.profile import UNKNOWN, NatProfile, TransportProfile, delta_type, describe, nat_type
from .nat.stun import TransportAddress
from .nat.stun_client import open_stun_stream, query_stream, query_udp, resolve
from .signal import ServerState

if TYPE_CHECKING:
    from .config import Servers, ServerUrl
    from .host import Host, Interface
    from .nat.profile import IpAddress
    from .nat.service import NatService
    from .signal import SignalHub

__all__ = [
    "PATIENCE",
    "TIMEOUT",
    "ClockCheck",
    "NetcheckReport",
    "PathCheck",
    "ServerCheck",
    "TransportCheck",
    "check_network",
]

logger: logging.Logger = logging.getLogger(__name__)

TIMEOUT: Final = 15.0
"""Seconds for the whole check: a measurement with nothing but dead servers, after another one that was under way."""
PATIENCE: Final = 5.0
"""Seconds for one server: TCP, TLS and registration over a bad satellite link, or a lost SYN and its repetitions."""
MAX_INTERFACES: Final = 4
"""Measured per address family, one after another, the one that leads to the internet first."""
RTO: Final = 0.2
"""Seconds to the first repetition of a question over UDP; doubles."""
TRIES: Final = 3
LAST_WAIT: Final = 3.0
"""RTOs after the last request: 1.2 s in all, twice the round trip by satellite."""

Family: TypeAlias = Literal[4, 6]
FAMILIES: Final[tuple[Family, Family]] = (4, 6)
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


# --- The report -------------------------------------------------------------------------------------------------------


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the report; null and None are "unknown"."""


@final
class TransportCheck(_Part, frozen=True, kw_only=True):
    """How the network treats UDP, or TCP: a `TransportProfile` in names.

    Attributes:
      words: for people, "port-restricted cone, keeps ports".
      nat_type, delta_type: `NatType`'s and `DeltaType`'s names in lower case.
      translated, blocked, hairpin: as in the profile.
      mapping, filtering, allocation: the enums' names in lower case.
      delta, low, high: as in the profile.
      external: our addresses as servers saw them.
    """

    words: str
    nat_type: str
    delta_type: str
    translated: bool | None
    blocked: bool | None
    hairpin: bool | None
    mapping: str
    filtering: str
    allocation: str
    delta: int
    low: int
    high: int
    external: tuple[str, ...]


@final
class PathCheck(_Part, frozen=True, kw_only=True):
    """What is between one interface and the internet, over one address family.

    Attributes:
      interface: its name.
      af: 4 or 6.
      address: ours, from which it was measured.
      addresses: all that the interface has of the family.
      main: whether packets to the internet leave by it.
      udp, tcp: the profile.
      can, cannot, unknown: sentences about it (`warpgate_trio.nat.abilities`).
    """

    interface: str
    af: int
    address: str
    addresses: tuple[str, ...]
    main: bool
    udp: TransportCheck
    tcp: TransportCheck
    can: tuple[str, ...]
    cannot: tuple[str, ...]
    unknown: tuple[str, ...]


@final
class ServerCheck(_Part, frozen=True, kw_only=True):
    """One server over one transport.

    Attributes:
      url: without what is secret.
      kind: the key of ``[servers]`` that names it.
      transport: "udp" or "tcp".
      reachable: None: not tested.
      latency_ms: a round trip to it; None where there was none.
      error: one sentence on why it is not reachable, or not tested.
    """

    url: str
    kind: str
    transport: str
    reachable: bool | None
    latency_ms: float | None = None
    error: str | None = None


@final
class ClockCheck(_Part, frozen=True, kw_only=True):
    """What time servers say of this machine's clock.

    Attributes:
      offset_s: seconds to add to it.
      uncertainty_s: seconds by which that may be wrong.
      agreeing, outvoted: the servers that say so, and those that say something else.
    """

    offset_s: float | None = None
    uncertainty_s: float | None = None
    agreeing: tuple[str, ...] = ()
    outvoted: tuple[str, ...] = ()


@final
class NetcheckReport(_Part, frozen=True, kw_only=True):
    """What `Node.netcheck` found.

    Attributes:
      online: whether at least one server was reached.
      complete: False: the time was up before all had been asked.
      elapsed_ms: how long it took.
      external: our addresses as servers saw them, over all paths.
      paths: per interface and address family, those that lead to the internet first.
      servers: one row per server and transport, in the order of the configuration.
      clock: what is wrong with it.
      can, cannot, unknown: what holds for the node as a whole, then each path's sentences.
    """

    online: bool
    complete: bool
    elapsed_ms: float
    external: tuple[str, ...]
    paths: tuple[PathCheck, ...]
    servers: tuple[ServerCheck, ...]
    clock: ClockCheck
    can: tuple[str, ...]
    cannot: tuple[str, ...]
    unknown: tuple[str, ...]


# --- Which paths there are --------------------------------------------------------------------------------------------


@final
@dataclass(slots=True)
class Path:
    """An interface, an address family, and what was measured there; without a profile, why there is none."""

    interface: str
    af: Family
    address: IpAddress
    addresses: tuple[IpAddress, ...]
    main: bool = False
    profile: NatProfile | None = None
    why: str = "was not measured: the time was up"


def plan_paths(interfaces: Sequence[Interface], af: Family, source: IpAddress | None) -> list[Path]:
    """The paths of one family; `source` is our address on the way to the servers, None where none leads there.

    Interfaces that lead to this machine alone are no paths, except where the servers are there.
    """
    found: list[Path] = []
    for interface in interfaces:
        ours = tuple(
            each.ip
            for each in interface.addresses
            if each.ip.version == af and not (each.ip.is_link_local or each.ip.is_multicast or each.ip.is_unspecified)
        )
        main = source is not None and source in ours
        if not ours or ((interface.is_loopback or interface.is_virtual) and not main):
            continue
        address = source if main and source is not None else next((ip for ip in ours if is_public(ip)), ours[0])
        found.append(Path(interface.name, af, address, ours, main=main))
    return sorted(found, key=lambda path: not path.main)[:MAX_INTERFACES]


# --- Asking -----------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of asking one server by one of its addresses."""

    latency: float | None = None
    error: str | None = None
    asked: bool = True


@final
@dataclass(slots=True)
class _Row:
    """A server over a transport; the first of its addresses to answer counts, and only all together are silence."""

    url: ServerUrl
    transport: str
    asks: int = 1
    outcomes: list[_Outcome] = field(default_factory=list)
    not_tested: str | None = None

    def check(self) -> ServerCheck:
        make = partial(ServerCheck, url=self.url.redacted, kind=_KINDS[self.url.scheme], transport=self.transport)
        latencies = [each.latency for each in self.outcomes if each.latency is not None]
        if latencies:
            return make(reachable=True, latency_ms=_ms(min(latencies)))
        errors = sorted((each for each in self.outcomes if each.error), key=lambda each: not each.asked)
        if errors and len(self.outcomes) == self.asks:
            return make(reachable=False, error=errors[0].error)
        return make(reachable=None, error=self.not_tested or "not tested: the time was up")


async def check_network(
    *, servers: Servers, hub: SignalHub, nat: NatService, host: Host, everything: bool, timeout: float
) -> NetcheckReport:
    """Make the report; see `Node.netcheck`."""
    if not timeout > 0:
        raise ValueError(f"a timeout is more than 0 s, not {timeout}")
    check = _Check(servers, hub, nat, host, everything)
    started = trio.current_time()
    with trio.move_on_after(timeout) as scope:
        await check.run()
    return check.report(complete=not scope.cancelled_caught, elapsed=trio.current_time() - started)


@final
class _Check:
    def __init__(self, servers: Servers, hub: SignalHub, nat: NatService, host: Host, everything: bool) -> None:
        self._servers = servers
        self._hub = hub
        self._nat = nat
        self._host = host
        self._everything = everything
        self._signals: list[ServerCheck | _Row] = []
        self._signals_done = trio.Event()
        self._stun = list(dict.fromkeys(url for url in servers.stun if url.scheme == "stun"))
        self._rows = {
            (url, transport): _Row(url, transport, asks=len(FAMILIES))
            for url in self._stun
            for transport in (("udp", "tcp") if everything else ("udp",))
        }
        self._ntp = {url: _Row(url, "udp") for url in servers.ntp}
        self._estimates: dict[ServerUrl, ClockEstimate] = {}
        self._paths: dict[Family, list[Path]] = {af: [] for af in FAMILIES}

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._check_signals)
            for url in self._ntp:
                nursery.start_soon(self._check_ntp, url)
            for af in self._paths:
                nursery.start_soon(self._check_family, af)

    # -- signals and time --------------------------------------------------------------------------------------------

    async def _check_signals(self) -> None:
        if self._everything:
            rows = [_Row(url, "tcp") for url in dict.fromkeys(self._servers.signal)]
            self._signals += rows
            async with trio.open_nursery() as nursery:
                for row in rows:
                    nursery.start_soon(self._fill, row, partial(self._hub.measure_server, row.url))
        else:
            with trio.move_on_after(PATIENCE):
                await self._hub.wait_tried()
        self._signals_done.set()

    def _signal_rows(self) -> list[ServerCheck]:
        """What became of the signal servers: as the hub sees them now, unless each was tried afresh."""
        if self._everything:
            return [each.check() if isinstance(each, _Row) else each for each in self._signals]
        return [
            ServerCheck(
                url=each.url,
                kind=_KINDS[each.url.partition(":")[0]],
                transport="tcp",
                reachable=each.state is ServerState.CONNECTED or (None if each.last_error is None else False),
                latency_ms=None if each.rtt is None else _ms(each.rtt),
                error=each.last_error or (None if each.state is ServerState.CONNECTED else "not connected yet"),
            )
            for each in self._hub.status()
            if not each.visiting
        ]

    async def _fill(self, row: _Row, ask: Callable[[], Awaitable[float]]) -> None:
        row.outcomes.append(await _outcome(ask))

    async def _check_ntp(self, url: ServerUrl) -> None:
        async def ask() -> float:
            estimate = await measure_offset([url], timeout=PATIENCE, host=self._host)
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
        sources = [self._host.source_address(ip_address(server[0])) for server in there.values()]
        paths = self._paths[af] = plan_paths(
            self._host.interfaces(), af, next((each for each in sources if each is not None), None)
        )
        if not there:
            for path in paths:
                path.why = f"was not measured: no STUN server can be asked over IPv{af}"
        if not there or not paths:
            return
        before = self._nat.profiles.by_key.get((None, af))
        async with self._nat.measuring[af]:
            after = self._nat.profiles.by_key.get((None, af))
            alive = await self._ask_stun(there)
            if not alive:
                await self._signals_done.wait()  # silence means something where somebody else answers
            online = any(each.reachable for each in self._signal_rows())
            for path in paths:
                if path.main and after is not None and after is not before and (after.udp != UNKNOWN or not online):
                    path.profile = after  # measured in the background, while we waited for our turn
                elif paths[0].address.is_loopback and not path.main:
                    path.why = "was not measured: the STUN servers are on this machine"
                else:
                    path.profile = await measure_nat(
                        str(path.address), alive or list(there.values()), online=online and path.main
                    )

    async def _resolve(self, af: Family) -> dict[ServerUrl, TransportAddress]:
        family = trio.socket.AF_INET if af == 4 else trio.socket.AF_INET6
        found: dict[ServerUrl, TransportAddress] = {}

        async def one(url: ServerUrl) -> None:
            try:
                address = await resolve(url.host, url.port, family=family)
            except StunError as error:
                why = str(error)
            else:
                if self._host.source_address(ip_address(address[0])) is not None:
                    found[url] = address
                    return
                why = f"no route leads to {address[0]}"
            for (each, _), row in self._rows.items():
                if each == url:
                    row.outcomes.append(_Outcome(error=why, asked=False))

        async with trio.open_nursery() as nursery:
            for url in self._stun:
                nursery.start_soon(one, url)
        return {url: found[url] for url in self._stun if url in found}

    async def _ask_stun(self, servers: dict[ServerUrl, TransportAddress]) -> list[TransportAddress]:
        """Fill the rows of STUN servers; those that answer over UDP."""
        alive: set[ServerUrl] = set()

        async def udp(url: ServerUrl) -> None:
            outcome = await _outcome(partial(_ask_udp, servers[url]))
            self._rows[url, "udp"].outcomes.append(outcome)
            if outcome.error is None:
                alive.add(url)

        async with trio.open_nursery() as nursery:
            for url, address in servers.items():
                nursery.start_soon(udp, url)
                if self._everything:
                    nursery.start_soon(self._fill, self._rows[url, "tcp"], partial(_ask_tcp, address))
        return [address for url, address in servers.items() if url in alive]

    # -- the report --------------------------------------------------------------------------------------------------

    def report(self, *, complete: bool, elapsed: float) -> NetcheckReport:
        later = [
            _Row(url, "tcp", not_tested="not tested: STUN over TLS comes later")
            for url in dict.fromkeys(self._servers.stun)
            if url.scheme == "stuns"
        ]
        later += [
            _Row(turn.url, turn.url.transport, not_tested="not tested: TURN comes later")
            for turn in dict.fromkeys(self._servers.turn)
        ]
        signals = self._signal_rows()
        ntp = [row.check() for row in self._ntp.values()]
        stun = [row.check() for row in self._rows.values()]
        rows = (*signals, *stun, *(row.check() for row in later), *ntp)
        if any(each.reachable for each in ntp):
            self._unblock()
        paths = [_path_check(path) for each in self._paths.values() for path in each]
        paths.sort(key=lambda path: not path.main)
        whole = _whole(paths, signals, self._servers, ntp)
        said = {
            name: tuple(
                dict.fromkeys(
                    (
                        *getattr(whole, name),
                        *(_named(each, path, paths) for path in paths for each in getattr(path, name)),
                    )
                )
            )
            for name in ("can", "cannot", "unknown")
        }
        return NetcheckReport(
            online=any(each.reachable for each in rows),
            complete=complete,
            elapsed_ms=_ms(elapsed),
            external=tuple(
                dict.fromkeys(ip for path in paths for each in (path.udp, path.tcp) for ip in each.external)
            ),
            paths=tuple(paths),
            servers=rows,
            clock=self._clock(),
            **said,
        )

    def _unblock(self) -> None:
        """A time server has answered: whatever is wrong with UDP to the STUN servers, it is not blocked."""
        for path in (path for each in self._paths.values() for path in each):
            if path.profile is not None and path.profile.udp.blocked:
                path.profile = replace(path.profile, udp=replace(path.profile.udp, blocked=None))


async def _outcome(ask: Callable[[], Awaitable[float]]) -> _Outcome:
    """Ask within `PATIENCE`.  A server's answer can be anything; nothing of it is raised."""
    try:
        with trio.move_on_after(PATIENCE):
            return _Outcome(latency=await ask())
    except OSError as error:
        return _Outcome(error=f"{error} ({error.__cause__})" if error.__cause__ else str(error))
    except WarpgateError as error:
        return _Outcome(error=str(error))
    except Exception as error:
        logger.exception("a server could not be tested")
        return _Outcome(error=f"unexpected {type(error).__name__}")
    return _Outcome(error=f"no answer within {PATIENCE:g} s")


async def _ask_udp(server: TransportAddress) -> float:
    family = trio.socket.AF_INET6 if ":" in server[0] else trio.socket.AF_INET
    with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as sock:
        return (await query_udp(sock, server, rto=RTO, tries=TRIES, last_wait=LAST_WAIT)).rtt


async def _ask_tcp(server: TransportAddress) -> float:
    async with open_stun_stream(server) as stream:
        return (await query_stream(stream, server=server, timeout=PATIENCE)).rtt
    raise AssertionError("unreachable")  # for mypy, to which `async with` may swallow exceptions


# --- Words ------------------------------------------------------------------------------------------------------------


def _whole(
    paths: Sequence[PathCheck], signals: Sequence[ServerCheck], servers: Servers, ntp: Sequence[ServerCheck]
) -> Abilities:
    """What holds for the node, whatever its paths are like."""
    can: list[str] = []
    cannot: list[str] = []
    unknown: list[str] = []
    alone = "peers can be dialled, and nothing that both sides have to agree on works"
    if not signals:
        cannot.append(f"no signal server is configured: {alone}")
    elif not any(each.reachable for each in signals):
        cannot.append(f"no signal server answers: {alone}")
    else:
        can.append("exchanges signals with peers that use the same servers")
    if not paths:
        cannot.append("this machine has no address but its own loopback")
    elif not any(path.af == 6 for path in paths):
        cannot.append("has no IPv6, over which there would be no NAT")
    if not servers.stun:
        unknown.append("no STUN server is configured: what lies between here and the internet is not known")
    if not any(each.reachable for each in ntp):
        why = "answers" if ntp else "is configured"
        unknown.append(f"no time server {why}: how wrong the clock is, only peers tell")
    return Abilities(can=tuple(can), cannot=tuple(cannot), unknown=tuple(unknown))


def _named(sentence: str, path: PathCheck, paths: Sequence[PathCheck]) -> str:
    return sentence if len(paths) == 1 else f"IPv{path.af} by {path.interface}: {sentence}"


def _path_check(path: Path) -> PathCheck:
    profile = path.profile or NatProfile()
    said = abilities(profile) if path.profile is not None else Abilities(unknown=(path.why,))
    return PathCheck(
        interface=path.interface,
        af=path.af,
        address=str(path.address),
        addresses=tuple(map(str, path.addresses)),
        main=path.main,
        udp=_transport_check(profile.udp),
        tcp=_transport_check(profile.tcp),
        can=said.can,
        cannot=said.cannot,
        unknown=said.unknown,
    )


def _transport_check(profile: TransportProfile) -> TransportCheck:
    return TransportCheck(
        words=describe(profile),
        nat_type=nat_type(profile).name.lower(),
        delta_type=delta_type(profile).name.lower(),
        translated=profile.translated,
        blocked=profile.blocked,
        hairpin=profile.hairpin,
        mapping=profile.mapping.name.lower(),
        filtering=profile.filtering.name.lower(),
        allocation=profile.allocation.name.lower(),
        delta=profile.delta,
        low=profile.low,
        high=profile.high,
        external=tuple(map(str, profile.external)),
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
