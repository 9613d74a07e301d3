"""Records a walk while it runs: its events, and at the end its `ConnectReport`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import final

import msgspec

from ..combos import Combo
from ..link import PathChange
from ..link.path_log import PathLog
from ..report import ComboReport, ConnectReport, Known, Outcome, SignalReport, Verdict, WalkEvent, advise

__all__ = ["Recorder"]


@final
class Recorder:
    """The record of one walk.  ``now`` is a monotonic time in seconds.

    Args:
      on_event: called with each `WalkEvent`, synchronously; it must not block.
    """

    def __init__(self, *, peer: str, now: float, on_event: Callable[[WalkEvent], None] | None = None) -> None:
        self._peer = peer
        self._began = now
        self._on_event = on_event
        self._rows: dict[Combo, ComboReport] = {}
        self._notes: list[str] = []

    @property
    def began(self) -> float:
        """When the walk began."""
        return self._began

    def _ms(self, now: float) -> float:
        return round((now - self._began) * 1000, 3)

    def _emit(self, event: WalkEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)

    def follow(self, log: PathLog) -> None:
        """From now on pass changes of the found path, and later searches, to `on_event`.

        This outlives the walk, but keeps no reference to the recorder.
        """
        on_event, began = self._on_event, self._began
        log.began = began
        if on_event is None:
            return

        def tell_change(change: PathChange) -> None:
            on_event(WalkEvent(kind="path", at_ms=round((change.at - began) * 1000, 3), path=change.as_report()))

        def tell_search(report: ConnectReport) -> None:
            on_event(WalkEvent(kind="search", at_ms=round(report.began_ms + report.elapsed_ms, 3), report=report))

        log.watchers.append(tell_change)
        log.search_watchers.append(tell_search)

    def planned(self, combo: Combo) -> None:
        """Add a combo of the plan, as not started or hopeless."""
        self._rows[combo] = ComboReport(
            phase=combo.phase,
            plugin=combo.plugin,
            af=combo.af,
            route=combo.route_type.name,
            target=(combo.server or "") if combo.target is None else str(combo.target),
            likelihood=combo.likelihood.value,
            outcome=Outcome.HOPELESS if combo.hopeless else Outcome.NOT_STARTED,
            error=combo.why if combo.hopeless else None,
        )

    def phase(self, name: str, now: float) -> None:
        """Record the beginning of a phase."""
        self._emit(WalkEvent(kind="phase", at_ms=self._ms(now), phase=name))

    def outcome(self, combo: Combo) -> Outcome:
        """The outcome of a planned combo, as far as it is known."""
        return self._rows[combo].outcome

    def started(self, combo: Combo, now: float) -> None:
        """Record the start of a combo's attempt.  Its outcome is "timed out" unless `ended` sets another one."""
        row = self._rows[combo] = msgspec.structs.replace(
            self._rows[combo], started_ms=self._ms(now), outcome=Outcome.TIMED_OUT
        )
        self._emit(WalkEvent(kind="combo_started", at_ms=self._ms(now), phase=combo.phase, combo=row))

    def ended(
        self, combo: Combo, outcome: Outcome, now: float, *, error: str | None = None, cleanup: float | None = None
    ) -> None:
        """Record the end of an attempt; `cleanup` is the seconds from its cancellation to its end."""
        if combo.hopeless and error is not None:
            error = f"{combo.why}; tried all the same: {error}"
        row = self._rows[combo] = msgspec.structs.replace(
            self._rows[combo],
            outcome=outcome,
            error=error,
            ended_ms=self._ms(now),
            cleanup_ms=None if cleanup is None else round(cleanup * 1000, 3),
        )
        self._emit(WalkEvent(kind="combo_ended", at_ms=self._ms(now), phase=combo.phase, combo=row))

    def note(self, text: str, now: float) -> None:
        """Add a sentence to `ConnectReport.notes`, unless it is there already."""
        if text not in self._notes:
            self._notes.append(text)
            self._emit(WalkEvent(kind="note", at_ms=self._ms(now), text=text))

    def finish(
        self,
        verdict: Verdict,
        now: float,
        *,
        session_id: bytes,
        known: Collection[Known] = (),
        lacks: Sequence[str] = (),
        signals: SignalReport | None = None,
        peer_nats: Sequence[str] = (),
    ) -> ConnectReport:
        """The report as of now; the advice depends on `known`."""
        return ConnectReport(
            peer=self._peer,
            session=session_id.hex(),
            verdict=verdict,
            advice=advise(verdict, known),
            elapsed_ms=self._ms(now),
            combos=tuple(self._told_rows()),
            notes=tuple(self._notes),
            lacks=tuple(lacks),
            known=tuple(each for each in Known if each in known),
            signals=signals,
            peer_nats=tuple(peer_nats),
        )

    def _told_rows(self) -> Iterator[ComboReport]:
        """The rows to report, without hopeless combos whose aim was tried or judged anew since."""
        latest = {combo.aim: combo for combo in self._rows}
        worth = {combo.aim for combo, row in self._rows.items() if row.outcome is not Outcome.HOPELESS}
        for combo, row in self._rows.items():
            if row.outcome is not Outcome.HOPELESS or (latest[combo.aim] is combo and combo.aim not in worth):
                yield row
