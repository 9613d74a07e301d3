"""Deterministic scheduling of Trio: the only module that touches Trio's private scheduling flag.

Trio runs the tasks of a batch in an order that it draws from a private `random.Random`.  It sorts the batch before
that only if a private flag is set, which exists for Hypothesis.  `deterministic` sets the flag and seeds the generator.
If a version of Trio has lost these names, `deterministic` raises RuntimeError; a test detects that.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from random import Random
from typing import Final

from trio._core import _run  # pyright: ignore[reportPrivateUsage]

_FLAG: Final = "_ALLOW_DETERMINISTIC_SCHEDULING"
_GENERATOR: Final = "_r"


@contextmanager
def deterministic(seed: int) -> Generator[None]:
    """Make every `trio.run` inside schedule its tasks in an order that `seed` alone decides."""
    flag = getattr(_run, _FLAG, None)
    generator = getattr(_run, _GENERATOR, None)
    if not isinstance(flag, bool) or not isinstance(generator, Random):
        raise RuntimeError(
            f"this version of Trio has no trio._core._run.{_FLAG} (a bool) or .{_GENERATOR} (a random.Random), "
            "so runs are not reproducible until warpgate_trio.sim.determinism learns where they went"
        )
    state = generator.getstate()
    setattr(_run, _FLAG, True)
    generator.seed(seed)
    try:
        yield
    finally:
        setattr(_run, _FLAG, flag)
        generator.setstate(state)
