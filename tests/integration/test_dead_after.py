"""`dead_after`, on its way from each place where it can be set to the Link that obeys it."""

from __future__ import annotations

import math

import msgspec
import pytest

from tests.identities import ALICE, BOB
from tests.links import link_of
from tests.nodes import config, loopback_node
from warpgate_trio import Node, PathsConfig, Pipe, anyone

CONFIGURED = msgspec.structs.replace(config(), paths=PathsConfig(dead_after=9.0))


def within(pipe: Pipe) -> float:
    """Seconds within which the Pipe's Link is to notice that its path is dead."""
    return link_of(pipe).protocol.life.notice_within


@pytest.mark.parametrize(("asked", "expected"), [(None, 9.0), (6.0, 6.0), (0, math.inf), (math.inf, math.inf)])
@pytest.mark.parametrize("pinned", [False, True])
async def test_a_call_has_its_own_or_the_configurations_and_who_is_called_the_configurations(
    asked: float | None, expected: float, pinned: bool
) -> None:
    async def call(node: Node, text: str) -> Pipe:
        if pinned:
            return await node.connect(text, plugin="direct_connect", dead_after=asked)
        return await node.auto_connect(text, dead_after=asked)

    async with (
        loopback_node(BOB, CONFIGURED, authorize=anyone) as bob,
        loopback_node(ALICE, CONFIGURED) as alice,
        await call(alice, str(bob.address)) as ours,
        await bob.listener.accept() as theirs,
    ):
        assert (within(ours), within(theirs)) == (expected, 9.0)


async def test_nothing_is_asked_for_by_default() -> None:
    async with (
        loopback_node(BOB, config(), authorize=anyone) as bob,
        loopback_node(ALICE, config()) as alice,
        await alice.auto_connect(bob.address) as ours,
        await bob.listener.accept() as theirs,
    ):
        assert (within(ours), within(theirs)) == (math.inf, math.inf)


@pytest.mark.parametrize("asked", [-1.0, math.nan])
async def test_what_is_no_time_is_refused(asked: float) -> None:
    async with loopback_node(BOB, config(), authorize=anyone) as bob, loopback_node(ALICE, config()) as alice:
        with pytest.raises(ValueError, match=r"^dead_after is .*; it is a number of seconds, or 0$"):
            await alice.auto_connect(bob.address, dead_after=asked)
