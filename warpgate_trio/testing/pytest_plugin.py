"""A pytest plugin for tests that simulate networks.  It is not loaded by default: a top-level ``conftest.py`` needs

    pytest_plugins = ["warpgate_trio.testing.pytest_plugin"]

It does three things:

* If a test fails after its network was left, as in ``assert simulate(main) == expected``, its report has one screen
  about that network.  With Hypothesis this is the network of the smallest failing example, which is run last.  (An
  exception that leaves the network already has the screen as a note.)
* The traceback of a test that simulated something is in pytest's short style, so that the failure fits on a screen.  An
  explicit ``--tb=long``, or another style, is respected.
* The summary of the run shows how many worlds were simulated, with pytest-xdist those of all workers.

There are no fixtures: a jumping clock belongs to one run, and a test may have many, so `simulate` makes one for each.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final, final

import pytest

from ..sim import Network
from ..sim.network import observers

__all__ = ["Tally"]

_KEY: Final = "warpgate_trio_simulated"


@final
@dataclass(slots=True)
class Tally:
    """Counts of what was simulated.

    Attributes:
      worlds: number of networks that were entered and left.
      events: number of events of packets: sent, translated, dropped, received.
      seconds: virtual time, in seconds.
      last: the network that was left last in the running test.
    """

    worlds: int = 0
    events: int = 0
    seconds: float = 0.0
    last: Network | None = None

    def add(self, net: Network) -> None:
        """Count a network that was left."""
        self.worlds += 1
        self.events += net.trace.total
        self.seconds += net.wire.now
        self.last = net

    def __str__(self) -> str:
        return (
            f"{self.worlds:,} worlds, {self.events:,} packet events, {self.seconds / 3600:,.1f} hours of virtual time"
        )


_tally: Final = pytest.StashKey[Tally]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_tally] = tally = Tally()
    observers.append(tally.add)


def pytest_unconfigure(config: pytest.Config) -> None:
    if (tally := config.stash.get(_tally, None)) is not None and tally.add in observers:
        observers.remove(tally.add)


def pytest_runtest_setup(item: pytest.Item) -> None:
    item.config.stash[_tally].last = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    net, options = item.config.stash[_tally].last, item.config.option
    style = options.tbstyle
    if net is not None and style == "auto":
        options.tbstyle = "short"
    try:
        report = yield
    finally:
        options.tbstyle = style
    if report.failed and net is not None and call.excinfo is not None:
        screen = net.explain()
        if not any(screen.partition("\n")[2][:200] in note for note in getattr(call.excinfo.value, "__notes__", ())):
            report.sections.append(("the last simulated network", screen))
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:  # a worker of pytest-xdist
        tally = session.config.stash[_tally]
        output[_KEY] = (tally.worlds, tally.events, tally.seconds)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    worlds, events, seconds = getattr(node, "workeroutput", {}).get(_KEY, (0, 0, 0.0))
    tally = node.config.stash[_tally]
    tally.worlds += worlds
    tally.events += events
    tally.seconds += seconds


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tally = config.stash[_tally]
    if tally.worlds:
        terminalreporter.write_line(f"simulated {tally}")
