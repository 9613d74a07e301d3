"""Runs programs of the lab in their own PID namespace, whose end kills every process that they started."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence


def enclosed(module: str, *arguments: str) -> list[str]:
    """The command for a module of the lab; killing it kills everything below it."""
    words = ["unshare", "--fork", "--pid", "--kill-child", "--mount-proc", sys.executable, "-m", module]
    return [*words, *arguments]


def run_enclosed(module: str, main: Callable[[Sequence[str]], int]) -> None:
    """Replace a directly run module by its enclosed command; does not return."""
    if os.getpid() != 1:
        command = enclosed(module, *sys.argv[1:])
        os.execvp(command[0], command)
    sys.exit(main(sys.argv[1:]))
