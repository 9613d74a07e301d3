"""`Node.network_changed`: which paths and servers are checked, and what follows."""

from __future__ import annotations

import pytest

from tests.identities import BOB
from tests.links import link_of
from tests.nodes import config, loopback_node, pair
from tests.waiting import wait_until
from warpgate_trio import Pipe


def questions(pipe: Pipe) -> int:
    """How many PINGs the Pipe's Link has sent."""
    return link_of(pipe).protocol.life._asked


async def test_every_link_and_the_signal_servers_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pair() as both:
        pipes = [await both.alice.auto_connect(both.bob.address) for _ in range(3)]
        await wait_until(lambda: all(pipe.rtt is not None for pipe in pipes))
        hub, checked = both.alice._runtime.hub, list[str]()
        (slot,) = hub._keeper.own
        assert slot.channel is not None

        def check() -> bool:
            checked.append("the signal server")
            return True

        monkeypatch.setattr(slot.channel, "check", check)
        before = [questions(pipe) for pipe in pipes]
        both.alice.network_changed()
        assert [questions(pipe) for pipe in pipes] == [number + 1 for number in before]
        assert checked == ["the signal server"]
        await wait_until(lambda: [link_of(pipe).protocol.life.answered for pipe in pipes] == [n + 1 for n in before])


async def test_a_hint_that_is_of_one_address_is_for_its_links_alone() -> None:
    async with pair() as both:
        pipes = [await both.alice.auto_connect(both.bob.address) for _ in range(2)]
        await wait_until(lambda: all(pipe.rtt is not None for pipe in pipes))
        before = [questions(pipe) for pipe in pipes]
        both.alice._runtime.links.hint(pipes[0].path.local)
        assert [questions(pipe) for pipe in pipes] == [before[0] + 1, before[1]]


async def test_the_address_follows() -> None:
    async with loopback_node(BOB, config()) as bob:
        own, looked = bob._runtime.own, bob.address
        own._listed = own._interfaces = ()  # as if the machine had had no interfaces at the last look
        assert own.current().interfaces != looked.interfaces
        bob.network_changed()
        assert own.current().interfaces == looked.interfaces


async def test_a_node_that_was_left_has_nothing_to_ask() -> None:
    async with pair() as both:
        await both.alice.auto_connect(both.bob.address)
    both.alice.network_changed()
