"""``fan_out``: race several named plugins towards one peer; the first path wins.

``node.connect(peer, plugin=["direct_connect", "my_plugin"])`` is this plugin with those two.  Each candidate starts a
moment after the previous one, so that the later ones need not run where an earlier one is quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, final

from warpgate_trio.plugin import Message, Plugin, register

if TYPE_CHECKING:
    from warpgate_trio.link import Link
    from warpgate_trio.plugin import AttemptContext

__all__ = ["FanOut"]

STAGGER: Final = 0.05
"""Seconds between two starts: several times a connect within one network, and too short for people to notice."""
DEFAULT_CANDIDATES: Final = ("direct_connect", "reverse_connect")


@final
@register(phase=None)
class FanOut(Plugin):
    name = "fan_out"
    timeout = 30.0
    pathless = True

    def __init__(self, attempt: AttemptContext, candidates: Sequence[str] = DEFAULT_CANDIDATES) -> None:
        super().__init__(attempt)
        self.candidates: Final = tuple(candidates)

    async def run(self, reply: Message | None = None) -> Link:
        return await self.race(self.candidates, stagger=STAGGER)
