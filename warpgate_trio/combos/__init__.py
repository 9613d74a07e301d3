"""What to try: one planner for each aim, which lists the combos of a pair and judges a peer's request."""

from __future__ import annotations

from .dialling import RULES as RULES
from .dialling import Aim as Aim
from .dialling import Combo as Combo
from .dialling import Facts as Facts
from .dialling import Likelihood as Likelihood
from .dialling import Route as Route
from .dialling import RouteType as RouteType
from .dialling import Technique as Technique
from .dialling import find_source as find_source
from .dialling import first_opinion as first_opinion
from .dialling import judge as judge
from .dialling import pathless_combo as pathless_combo
from .dialling import plan_combos as plan_combos
from .dialling import unknown as unknown

__all__ = [
    "RULES",
    "Aim",
    "Combo",
    "Facts",
    "Likelihood",
    "Route",
    "RouteType",
    "Technique",
    "find_source",
    "first_opinion",
    "judge",
    "pathless_combo",
    "plan_combos",
    "unknown",
]
