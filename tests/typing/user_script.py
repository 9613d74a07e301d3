"""A user's script, as mypy --strict must accept it against the installed package (`make dist`)."""

from __future__ import annotations

import warpgate_trio

print(warpgate_trio.__name__)
