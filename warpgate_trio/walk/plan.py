"""The combos of a walk: those planned at its start, and those that are added on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Final, final

from ..address import PeerAddress
from ..address.nat_profile import Filtering
from ..combos import Combo
from ..punch.outlook import is_unforeseeable
from ..report import Outcome
from .phases import PHASE_TABLE
from .recorder import Recorder

__all__ = ["Plan"]


@final
class Plan:
    """See the module's docstring.

    Args:
      phases: the phases of the walk, in order.
    """

    def __init__(self, combos: Iterable[Combo], phases: Sequence[str | None], recorder: Recorder) -> None:
        self._combos: Final = list(combos)
        self._phases: Final = phases
        self._recorder: Final = recorder

    def __bool__(self) -> bool:
        return bool(self._combos)

    def record(self) -> None:
        """Record all combos as not started, at the beginning of a session."""
        for combo in self._combos:
            self._recorder.planned(combo)

    def add(self, combos: Iterable[Combo]) -> None:
        """Add and record combos."""
        for combo in combos:
            self._combos.append(combo)
            self._recorder.planned(combo)

    def add_new(self, combos: Iterable[Combo]) -> list[Combo]:
        """Add those of `combos`, planned with a newer address of the peer, that are new or were hopeless before.

        Returns the combos that were added.
        """
        known = {combo.aim: combo for combo in self._combos}
        new = [each for each in combos if (old := known.get(each.aim)) is None or (old.hopeless and each != old)]
        for combo in new:
            if combo.aim in known:
                self._combos.remove(known[combo.aim])
        self.add(new)
        return new

    def of_phase(self, phase: str | None) -> list[Combo]:
        """The combos of a phase that are not hopeless."""
        return [combo for combo in self._combos if combo.phase == phase and not combo.hopeless]

    def hopeless(self) -> list[Combo]:
        """The hopeless combos of all phases."""
        return [combo for combo in self._combos if combo.hopeless]

    def add_second_tries(self, phase: str | None, *, delay: float) -> list[Combo]:
        """Add second tries to a phase: the combos that ran out of time in the phase that it repeats.

        They wait for `delay` seconds, until punches over UDP have succeeded or failed.  Some NATs, the kernel's among
        them, assign ports to both transports in one sequence, so that the ports of two simultaneous punches cannot be
        predicted.

        Returns the combos that were added.
        """
        repeats = PHASE_TABLE[phase].repeats
        again = [
            dataclasses.replace(combo, phase=phase, delay=combo.delay + delay)
            for combo in self._combos
            if repeats is not None and combo.phase == repeats and self._recorder.outcome(combo) is Outcome.TIMED_OUT
        ]
        self.add(again)
        return again

    @property
    def lacks_a_common_server(self) -> bool:
        """Whether only a common rendezvous server is missing for relaying by one."""
        servers = [combo.server for combo in self._combos if combo.server is not None]
        return bool(servers) and not any(servers)

    def something_follows(self, phase: str | None) -> bool:
        """Whether a later phase has a combo that is not hopeless, or a second try of this phase."""
        later = self._phases[self._phases.index(phase) + 1 :]
        return any(PHASE_TABLE[each].repeats == phase is not None or self.of_phase(each) for each in later)

    def sprays_are_better(self, punches: Sequence[Combo], ours: PeerAddress, peers: PeerAddress) -> bool:
        """Whether the punch phase should be shortened in favour of the sprays.

        That is where no punch is likely, there are sprays, one side's ports are unpredictable, and the other side's
        filtering may be address and port-dependent: most of these pairs cannot punch.
        """
        if "spray" not in self._phases or not self.of_phase("spray") or any(combo.likely for combo in punches):
            return False
        one, other = (each.nat_profiles.get(None, 4).udp for each in (ours, peers))
        return any(
            is_unforeseeable(hard) and easy.filtering in (Filtering.UNKNOWN, Filtering.ADDRESS_AND_PORT_DEPENDENT)
            for hard, easy in ((one, other), (other, one))
        )
