"""What a walk needs to know before it begins, and what this side has of what it may need."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, final

from ..combos import Combo
from ..names import NameFailure
from ..plugin import PHASES, Plugin
from .attempt import Attempt, AttemptHome

if TYPE_CHECKING:
    from ..address import PeerAddress

__all__ = ["Factory", "Here", "PlannedWalk", "Unresolved"]

Factory = Callable[[Attempt], Plugin]


@final
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unresolved:
    """What DNS has to do with a walk's end.

    Attributes:
      names: those of servers that cannot be resolved now.
      no_signal, no_stun: all names of signal servers are among them, and all of STUN servers, of which there are some
        and of which none is remembered.
    """

    names: Mapping[str, NameFailure] = dataclasses.field(default_factory=dict)
    no_signal: bool = False
    no_stun: bool = False


@final
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """What this side has of what a walk may need.

    Attributes:
      signal, stun: whether servers of the kind are configured.
      silent: where no signal server is connected, each with the reason.
    """

    signal: bool = True
    stun: bool = True
    silent: Sequence[str] = ()


@final
class PlannedWalk:
    """What a walk needs besides the session: who runs the combos, and for how long.

    Args:
      home: the node.
      factories: plugin name -> maker of its instances.
      combos: the plan.
      phases: those to take, in order; None among them stands for the plugins without a phase (a pinned call).
      strict: let a plugin's unexpected exception out.
      ceiling: seconds that bound every attempt (the plugin's own, in a pinned call); None: only the budgets.
      refresh: asks the peer for its present address; None where the address is to be taken as it is.
      replan: the combos with another address of the peer.
      unresolved: the names of servers that DNS does not resolve now.
      here: what this side has, as of now.
    """

    def __init__(
        self,
        home: AttemptHome,
        *,
        factories: Mapping[str, Factory],
        combos: Sequence[Combo],
        phases: Sequence[str | None] = PHASES,
        strict: bool = False,
        ceiling: float | None = None,
        has_relay: bool = False,
        refresh: Callable[[PeerAddress], Awaitable[PeerAddress]] | None = None,
        replan: Callable[[PeerAddress], Sequence[Combo]] = lambda _: (),
        unresolved: Callable[[], Unresolved] = Unresolved,
        here: Callable[[], Here] = Here,
    ) -> None:
        self.home: Final = home
        self.factories: Final = factories
        self.combos: Final = list(combos)
        self.phases: Final = phases
        self.strict: Final = strict
        self.ceiling: Final = ceiling
        self.has_relay: Final = has_relay
        self.refresh: Final = refresh
        self.replan: Final = replan
        self.unresolved: Final = unresolved
        self.here: Final = here
