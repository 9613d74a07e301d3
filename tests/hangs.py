"""How long a test waits for what comes at once before it takes it for a hang.

The machine may stand still for seconds while other people's work is done.  Only where the time itself is what is
tested has a test a limit of its own, and then what would happen otherwise takes several times as long.
"""

from __future__ import annotations

from typing import Final

HANG: Final = 60.0
"""Seconds; longer than all that has a time limit of its own by default takes to give up (`Budgets.total`)."""
