"""A new direct path that turns into a black hole costs nothing up to its trial, and little after that (law 8)."""

from __future__ import annotations

from functools import cache
from typing import Final

import pytest

from tests.sim.holes import MOMENTS, WAYS, Hole, Load, Moment, Plugin, Way, bar, fall

pytestmark = pytest.mark.slow("whole nodes with TLS, and seconds of bulk")

RTT: Final = 0.05
EVEN: Final = 0.001
"""Seconds by which two runs may differ, because packets that arrive at one time have some order."""


@cache
def without_a_hole(plugin: Plugin, load: Load, *, search: bool) -> float:
    """Seconds of silence in the same world without a hole, or without any search for a new path."""
    return fall(plugin, load, None, rtt=RTT, search=search).worst


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(("plugin", "load"), [("tcp_punch", "both"), ("udp_punch", "both"), ("udp_punch", "back")])
def test_a_new_path_that_turns_into_a_hole(plugin: Plugin, load: Load, moment: Moment, way: Way) -> None:
    fallen = fall(plugin, load, Hole(moment=moment, way=way), rtt=RTT)
    after = bar(moment, RTT) > 0
    longer = fallen.worst - without_a_hole(plugin, load, search=after)
    print(f"{plugin}, {load}: a hole at the {moment}, {way}: {longer:.2f} s longer than without")
    assert fallen.opened
    assert fallen.left is after
    assert fallen.phase == "relay"
    assert longer <= max(bar(moment, RTT), EVEN)
