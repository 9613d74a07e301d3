"""The combos of a walk: those that were planned with, and those that come to it on the way."""

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
    """See the module's page.

    Args:
      phases: those of the walk, in order.
    """

    def __init__(self, combos: Iterable[Combo], phases: Sequence[str | None], recorder: Recorder) -> None:
        self._combos: Final = list(combos)
        self._phases: Final = phases
        self._recorder: Final = recorder

    def __bool__(self) -> bool:
        return bool(self._combos)

    def record(self) -> None:
        """A session begins: none of the combos has been tried in it."""
        for combo in self._combos:
            self._recorder.planned(combo)

    def add(self, combos: Iterable[Combo]) -> None:
        """More to try."""
        for combo in combos:
            self._combos.append(combo)
            self._recorder.planned(combo)

    def add_new(self, combos: Iterable[Combo]) -> list[Combo]:
        """What joins this plan of one with a newer address of the peer, which judges what is hopeless here anew."""
        known = {combo.aim: combo for combo in self._combos}
        new = [each for each in combos if (old := known.get(each.aim)) is None or (old.hopeless and each != old)]
        for combo in new:
            if combo.aim in known:
                self._combos.remove(known[combo.aim])
        self.add(new)
        return new

    def of_phase(self, phase: str | None) -> list[Combo]:
        """Those of a phase that may work."""
        return [combo for combo in self._combos if combo.phase == phase and not combo.hopeless]

    def hopeless(self) -> list[Combo]:
        """Those that are known to fail."""
        return [combo for combo in self._combos if combo.hopeless]

    def add_second_tries(self, phase: str | None, *, delay: float) -> list[Combo]:
        """The combos of the phase that this one repeats, where they only ran out of time, as combos of this one.

        They wait for `delay` seconds, in which what punches over UDP has met the peer or not: a NAT may number the
        ports of both transports in one row, and then nobody foretells the ports of two punches at once (seen with the
        kernel's).
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
        """Whether it could be relayed, if the two had a rendezvous server in common."""
        servers = [combo.server for combo in self._combos if combo.server is not None]
        return bool(servers) and not any(servers)

    def something_follows(self, phase: str | None) -> bool:
        """Whether a later phase has a combo that may work, or a second try."""
        later = self._phases[self._phases.index(phase) + 1 :]
        return any(PHASE_TABLE[each].repeats == phase is not None or self.of_phase(each) for each in later)

    def sprays_are_better(self, punches: Sequence[Combo], ours: PeerAddress, peers: PeerAddress) -> bool:
        """Whether nobody foretells one side's ports, and the other side may let in by port: most of these cannot punch.

        Then the punches have a shorter phase, if none of them is likely and there is something to spray for.
        """
        if "spray" not in self._phases or not self.of_phase("spray") or any(combo.likely for combo in punches):
            return False
        one, other = (each.nat_profiles.get(None, 4).udp for each in (ours, peers))
        return any(
            is_unforeseeable(hard) and easy.filtering in (Filtering.UNKNOWN, Filtering.ADDRESS_AND_PORT_DEPENDENT)
            for hard, easy in ((one, other), (other, one))
        )
