"""The entry point, and the steps that have to be done before other modules are imported."""

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
"""Threshold of the youngest generation of the garbage collector while modules are imported.  Importing makes some
60,000 objects that all stay, and each collection delays the start.  `runner` restores the usual threshold later."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    signal.signal(signal.SIGINT, _exit_at_once)
    reserve_standard_descriptors()
    gc.set_threshold(WHILE_LOADING)
    from .group import call

    sys.exit(call(argv))


def _exit_at_once(_number: int, _frame: FrameType | None) -> None:
    """Handle SIGINT before and after Trio's run, when nothing is open that has to be closed.

    A KeyboardInterrupt could get lost there: Python drops one that is raised in a callback of the import system.
    """
    os._exit(130)


def reserve_standard_descriptors() -> None:
    """Open standard descriptors that the caller has closed (``<&-``): otherwise a socket would become number 0, 1 or 2
    and get their data.
    """
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            return


if __name__ == "__main__":
    main()
