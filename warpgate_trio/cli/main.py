"""The entry point: what has to happen before anything else is imported."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Final

__all__ = ["USUAL_THRESHOLDS", "WHILE_LOADING", "main"]

USUAL_THRESHOLDS: Final = gc.get_threshold()
WHILE_LOADING: Final = 50_000
"""Objects more than there were, after which the garbage collector looks through the new ones.  Loading makes some
60,000 that all stay, and each look is time that the user waits; `runner` goes back to the usual when all is loaded."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    signal.signal(signal.SIGINT, _exit_at_once)
    reserve_standard_descriptors()
    gc.set_threshold(WHILE_LOADING)
    from .group import call

    sys.exit(call(argv))


def _exit_at_once(_number: int, _frame: FrameType | None) -> None:
    """SIGINT until Trio runs, and after it: nothing is open that would want a goodbye.

    A KeyboardInterrupt can get lost there: Python drops it when it comes up in a callback of the import system.
    """
    os._exit(130)


def reserve_standard_descriptors() -> None:
    """Open what the caller closed (``<&-``), lest a socket of ours be number 0, 1 or 2 and get what is meant for it."""
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            return


if __name__ == "__main__":
    main()
