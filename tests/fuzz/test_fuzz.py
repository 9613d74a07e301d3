"""A second of `make fuzz` for each target, with other inputs in every run."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.run import feed
from tests.fuzz.targets import TARGETS


@pytest.mark.no_cover  # which would make a third of it, and see nothing that no other test reaches
@pytest.mark.slow("a second of hostile inputs")
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_its_own_errors_leaves(name: str) -> None:
    seed = random.getrandbits(32)  # which pytest-randomly decides
    for number in range(TARGETS[name].inputs):
        feed(TARGETS[name], seed, number)
