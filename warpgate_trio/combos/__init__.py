"""What to try: a planner for each aim lists the combos of a pair, and judges a peer's requests by the same rules."""

from __future__ import annotations

from .combo import (
    Aim,
    Combo,
    JudgedPath,
    Likelihood,
    Pair,
    PathRefused,
    RelayServer,
    RequestedPath,
    Route,
    RouteType,
    Technique,
    find_source,
    pathless_combo,
)

__all__ = [
    "Aim",
    "Combo",
    "JudgedPath",
    "Likelihood",
    "Pair",
    "PathRefused",
    "RelayServer",
    "RequestedPath",
    "Route",
    "RouteType",
    "Technique",
    "find_source",
    "pathless_combo",
]
