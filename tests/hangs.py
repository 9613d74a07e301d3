"""How long a test waits for an event that should come at once before it counts as a hang.

A shared machine may stall for seconds.  A test has a limit of its own only where it tests the time itself; the failure
that it guards against then takes several times as long.
"""

from __future__ import annotations

from typing import Final

HANG: Final = 60.0
"""Seconds; longer than any operation with a default time limit takes to give up (`Budgets.total`)."""
