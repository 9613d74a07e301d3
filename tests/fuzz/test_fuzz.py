"""A second of `make fuzz` for each target, with new inputs in every run."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.run import feed
from tests.fuzz.targets import TARGETS


@pytest.mark.no_cover  # coverage would leave time for a third of the inputs, and reach nothing that other tests do not
@pytest.mark.slow("a second of hostile inputs")
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_its_own_errors_leaves(name: str) -> None:
    seed = random.getrandbits(32)  # seeded by pytest-randomly
    for number in range(TARGETS[name].inputs):
        feed(TARGETS[name], seed, number)
