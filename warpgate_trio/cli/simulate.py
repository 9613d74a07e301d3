"""``warpgate-trio simulate``: two real nodes in a virtual world, on this machine alone and in no time."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

import click

from .events import Preset, Simulated, encode
from .exits import ExitCode, UsageProblem
from .options import Settings, common_options, json_option, pass_settings
from .parameters import PluginOption, check_plugin, read_phases

if TYPE_CHECKING:
    from ..address import PeerAddress
    from ..link import Pipe
    from ..node import Node
    from ..plugin import Phase
    from ..sim import Behavior, NatConfig
    from ..testing.walks import Walk

__all__ = ["simulate"]

NO_NAT: Final = "none"
MAX_RTT: Final = 10_000.0
"""Largest round-trip time in milliseconds: the budgets of a walk allow no more."""
MAX_SKEW: Final = 365 * 86400.0
"""Largest clock error in seconds, a year; a larger one makes no difference."""
_EPILOGUE: Final = (
    "P is a name that --list prints, none for no NAT, or several with + between, outermost first (cgn+linux)."
)


@click.command(short_help="Connect two nodes in a virtual internet, through NATs of your choice.", epilog=_EPILOGUE)
@click.option("--nat-a", metavar="P", help="What the caller is behind; with --matrix the rows, P,P,…")
@click.option("--nat-b", metavar="P", help="What the peer is behind; with --matrix the columns, P,P,…")
@click.option(
    "--rtt", type=click.FloatRange(0, MAX_RTT), default=50.0, metavar="MS", help="Round trip between any two (50 ms)."
)
@click.option("--loss", type=click.FloatRange(0, 100), default=0.0, metavar="%", help="Packets lost, one way.")
@click.option(
    "--skew", type=click.FloatRange(-MAX_SKEW, MAX_SKEW), default=0.0, metavar="S", help="The peer's clock is S ahead."
)
@click.option("--seed", type=click.IntRange(0), default=0, metavar="N", help="Decides all that is random.")
@click.option("--runs", type=click.IntRange(1), default=1, metavar="N", help="Run with N seeds, from --seed on.")
@click.option("--plugin", cls=PluginOption, metavar="P", help="Use this plugin and nothing else.")
@click.option("--phases", callback=read_phases, metavar="P,P,…", help="Take only these phases.")
@click.option("--ladder", is_flag=True, help="Print every packet of the walk, and what the NATs decided.")
@click.option("--pcap", type=click.Path(path_type=Path), metavar="F", help="Write all packets to F, for Wireshark.")
@click.option("--matrix", is_flag=True, help="Every NAT of --list (or of --nat-a) against every one (of --nat-b).")
@click.option("--list", "listing", is_flag=True, help="Print the NATs that there are.")
@json_option
@common_options
@pass_settings
def simulate(
    settings: Settings,
    *,
    nat_a: str | None,
    nat_b: str | None,
    rtt: float,
    loss: float,
    skew: float,
    seed: int,
    runs: int,
    plugin: str | None,
    phases: tuple[Phase, ...] | None,
    ladder: bool,
    pcap: Path | None,
    matrix: bool,
    listing: bool,
) -> int:
    """Let one node connect to another in a virtual internet, with a rendezvous server between them.

    The nodes are real and have all plugins that are installed; only the network, the clocks and the machines are
    simulated.  Equal seeds give equal runs.  Nothing is sent on a real network, and no file is read but the
    program's own.
    """
    settings.start_logging()
    if listing:
        _list(settings)
        return ExitCode.OK
    if not math.isfinite(rtt + loss + skew):
        raise click.UsageError("--rtt, --loss and --skew are numbers")
    if plugin is not None and phases is not None:
        raise click.UsageError("--plugin names one technique, --phases chooses among many: give one of them")
    if pcap is not None and (matrix or runs > 1):
        raise click.UsageError("--pcap records one run; it excludes --matrix and --runs")
    if ladder and matrix:
        raise click.UsageError("--ladder would print every pair's packets: leave out --matrix")
    check_plugin(plugin)
    simulation = _Simulation(
        settings, rtt=rtt, loss=loss, skew=skew, seeds=range(seed, seed + runs), plugin=plugin, phases=phases
    )
    if matrix:
        return simulation.matrix(_names(nat_a, "--nat-a"), _names(nat_b, "--nat-b"))
    return simulation.pair(nat_a or NO_NAT, nat_b or NO_NAT, ladder=ladder, pcap=pcap)


def _names(text: str | None, option: str) -> list[str]:
    """The names in --nat-a or --nat-b for a matrix."""
    from ..sim import presets

    if text is None:
        return [NO_NAT, *presets.NATS]
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageProblem(f"{option} names no NAT")
    return names


def _nats(name: str, option: str) -> tuple[NatConfig, ...]:
    """The NATs of ``cgn+linux``, outermost first."""
    from ..sim import presets

    if name == NO_NAT:
        return ()
    found = []
    for each in name.split("+"):
        if each not in presets.NATS:
            import difflib

            nearest = difflib.get_close_matches(each, presets.NATS, n=1, cutoff=0.0)[0]
            raise UsageProblem(f"{option}: there is no NAT {each!r}; the nearest is {nearest!r}, --list prints all")
        found.append(presets.NATS[each])
    return tuple(found)


def _list(settings: Settings) -> None:
    from ..sim import presets
    from .render import plain_table

    if settings.json:
        for config in presets.NATS.values():
            settings.put(
                encode(Preset(name=config.name, models=config.source, udp=_axes(config.udp), tcp=_axes(config.tcp)))
            )
        return
    rows = [
        (config.name, *("/".join(_axes(each).values()) for each in (config.udp, config.tcp)), config.source)
        for config in presets.NATS.values()
    ]
    settings.put(f"{plain_table(('NAT', 'UDP', 'TCP', 'what it models'), rows)}\n".encode())


def _axes(behavior: Behavior) -> dict[str, str]:
    return {
        "mapping": behavior.mapping.name,
        "filtering": behavior.filtering.name,
        "unsolicited": behavior.unsolicited.value,
    }


@final
class _Simulation:
    """The common settings of all runs, and the output of results."""

    def __init__(
        self,
        settings: Settings,
        *,
        rtt: float,
        loss: float,
        skew: float,
        seeds: Sequence[int],
        plugin: str | None,
        phases: tuple[Phase, ...] | None,
    ) -> None:
        self._settings = settings
        self._rtt = rtt
        self._loss = loss
        self._skew = skew
        self._seeds = seeds
        self._plugin = plugin
        self._phases = phases

    def pair(self, nat_a: str, nat_b: str, *, ladder: bool, pcap: Path | None) -> ExitCode:
        """Run every seed for one pair of NATs."""
        behind = _nats(nat_a, "--nat-a"), _nats(nat_b, "--nat-b")
        events = []
        for seed in self._seeds:
            walk = self._walk(behind, seed, pcap)
            events.append(self._event(nat_a, nat_b, seed, walk))
            if ladder:
                self._show(walk.ladder)
            self._print(events[-1], walk)
        connected = [event.connect_ms for event in events if event.connect_ms is not None]
        if len(events) > 1:
            self._show(f"{len(connected)} of {len(events)} connected{_spread(connected)}\n")
        return ExitCode.OK if len(connected) == len(events) else ExitCode.NO_PATH

    def matrix(self, rows: Sequence[str], columns: Sequence[str]) -> ExitCode:
        """Run every pair of NATs."""
        callers = {name: _nats(name, "--nat-a") for name in rows}
        peers = {name: _nats(name, "--nat-b") for name in columns}
        width, cell = max(map(len, callers)), 6 if len(self._seeds) == 1 else 8 + 2 * len(str(len(self._seeds)))
        self._show("Rows call columns: phase (d direct, p punch, s spray, r relay) and ms to the Pipe\n")
        self._show("".join(f"{number:>4}  {name}\n" for number, name in enumerate(peers, 1)))
        self._show(f"{'':{width}}{''.join(f'{number:>{cell}}' for number in range(1, len(peers) + 1))}\n")
        for row, caller in callers.items():
            cells = []
            for column, peer in peers.items():
                events = [
                    self._event(row, column, seed, self._walk((caller, peer), seed), with_report=False)
                    for seed in self._seeds
                ]
                if self._settings.json:
                    self._settings.put(b"".join(map(encode, events)))
                cells.append(_cell(events))
            self._show(f"{row:<{width}}{''.join(f'{each:>{cell}}' for each in cells)}\n")
        return ExitCode.OK

    def _walk(
        self, behind: tuple[tuple[NatConfig, ...], tuple[NatConfig, ...]], seed: int, pcap: Path | None = None
    ) -> Walk:
        from ..testing.walks import simulate_walk
        from ..testing.worlds import PeerPair

        pair = PeerPair.between(
            *behind, rtt=self._rtt / 1000, loss=self._loss / 100, clock_offsets=(0.0, self._skew), seed=seed
        )
        try:
            return simulate_walk(pair, self._connect, capture=pcap)
        except OSError as error:
            if pcap is None or error.filename != str(pcap):
                raise
            raise UsageProblem(f"--pcap: {error}") from error

    async def _connect(self, node: Node, peer: PeerAddress) -> Pipe:
        if self._plugin is not None:
            return await node.connect(peer, plugin=self._plugin)
        return await node.auto_connect(peer, phases=self._phases)

    def _event(self, nat_a: str, nat_b: str, seed: int, walk: Walk, *, with_report: bool = True) -> Simulated:
        import msgspec

        winner = walk.report.winner if walk.connected else None
        return Simulated(
            seed=seed,
            nat_a=nat_a,
            nat_b=nat_b,
            rtt_ms=self._rtt,
            loss_percent=self._loss,
            skew_s=self._skew,
            verdict=walk.report.verdict.value,
            phase=None if winner is None else winner.phase,
            plugin=None if winner is None else winner.plugin,
            connect_ms=_ms(walk.connect),
            first_byte_ms=_ms(walk.first_byte),
            echo_ok=walk.intact if walk.connected else None,
            digest=walk.digest,
            report=msgspec.to_builtins(walk.report) if with_report else None,
        )

    def _print(self, event: Simulated, walk: Walk) -> None:
        if self._settings.json:
            self._settings.put(encode(event))
        if walk.left:
            self._settings.warn(f"seed {event.seed}: left behind: {walk.left}")
        if event.connect_ms is None:
            self._show(f"seed {event.seed}: no pipe ({event.verdict}) after {walk.report.elapsed_ms:.1f} ms\n")
        else:
            told = (
                "" if event.first_byte_ms is None else f", the first byte was back after {event.first_byte_ms:.1f} ms"
            )
            trips = (
                "" if event.first_byte_ms is None or not self._rtt else f" ({event.first_byte_ms / self._rtt:.1f} RTT)"
            )
            broken = "" if event.echo_ok else "; then it broke"
            self._show(
                f"seed {event.seed}: connected in {event.connect_ms:.1f} ms by {event.plugin}{told}{trips}{broken}\n"
            )
        if len(self._seeds) == 1:
            from .render import show_report

            show_report(self._settings, walk.report)

    def _show(self, text: str) -> None:
        """Print a result as text: to stdout, which with --json is reserved for events."""
        if self._settings.json:
            self._settings.say(text.removesuffix("\n"))
        else:
            self._settings.put(text.encode())


def _cell(events: Sequence[Simulated]) -> str:
    """``d120``, and with several seeds ``7/10 d120``, the median; ``-`` for none."""
    times = [event.connect_ms for event in events if event.connect_ms is not None]
    count = "" if len(events) == 1 else f"{len(times)}/{len(events)} "
    if not times:
        return f"{count}-"
    (phase, _), *_ = Counter((event.phase or "?")[0] for event in events if event.connect_ms is not None).most_common()
    return f"{count}{phase}{statistics.median(times):.0f}"


def _spread(times: Sequence[float]) -> str:
    if not times:
        return ""
    return f", in {min(times):.1f} / {statistics.median(times):.1f} / {max(times):.1f} ms (min / median / max)"


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
