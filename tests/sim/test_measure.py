"""Measuring simulated NATs, over packets, with the servers that there are: the profile is what was configured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from ipaddress import ip_address

import pytest
import trio

from tests.sim.worlds import run
from warpgate_trio.nat.measure import measure_nat
from warpgate_trio.nat.profile import UNKNOWN, Allocation, Filtering, Mapping, NatProfile, TransportProfile
from warpgate_trio.nat.stun import TransportAddress
from warpgate_trio.servers.stun import serve_stun
from warpgate_trio.sim import Behavior, Block, Hairpin, Link, NatConfig, Network, Preserve, Sequential, Uniform, presets
from warpgate_trio.sim import Filtering as SimFiltering
from warpgate_trio.sim import Mapping as Axis
from warpgate_trio.testing import simulated_hosts

PORT = 3478
FIRST, SECOND, PLAIN, DEAD = "11.9.0.1", "11.9.0.2", "11.9.1.1", "11.9.2.1"
RFC5780, PLAINS = [(FIRST, PORT)], [(PLAIN, PORT), (SECOND, PORT)]
MAPPINGS = dict(zip(Axis, list(Mapping)[1:], strict=True))
FILTERS = dict(zip(SimFiltering, list(Filtering)[1:], strict=True))


def measure(
    nat: NatConfig | None,
    servers: Sequence[TransportAddress] = ((FIRST, PORT), (PLAIN, PORT)),
    *,
    online: bool = False,
    seed: int = 0,
    loss: float = 0.0,
    ipv6: bool = False,
) -> tuple[NatProfile, float]:
    """The profile of a host behind a NAT, and how many seconds it took."""
    found: list[tuple[NatProfile, float]] = []

    async def world(net: Network) -> None:
        link = Link(latency=0.02, loss=loss)
        full = net.host("full", address=(FIRST, SECOND), link=link)
        plain = net.host("plain", address=PLAIN, link=link)
        net.host("dead", address=DEAD, link=link)
        uplink = Link(latency=0.01, loss=loss)
        client = net.host("client", link=uplink) if nat is None else net.lan("home", nat=nat, uplink=uplink).host("c")
        async with simulated_hosts():
            async with trio.open_nursery() as nursery:
                with full:
                    await nursery.start(partial(serve_stun, host=FIRST, port=PORT, second_host=SECOND))
                with plain:
                    await nursery.start(partial(serve_stun, host=None, port=PORT))
                with client:
                    started = trio.current_time()
                    profile = await measure_nat(client.ip, servers, online=online)
                    found.append((profile, trio.current_time() - started))
                nursery.cancel_scope.cancel()

    run(world, seed=seed)
    return found[0]


def check(profile: TransportProfile, behavior: Behavior, *, filtering: bool) -> None:
    assert profile.blocked is False
    assert profile.translated is True
    assert profile.mapping is MAPPINGS[behavior.mapping]
    assert profile.filtering is (FILTERS[behavior.filtering] if filtering else Filtering.UNKNOWN)
    match behavior.allocation:
        case Preserve():
            assert profile.allocation is Allocation.PRESERVING
        case Sequential(delta=delta):
            assert (profile.allocation, profile.delta) == (Allocation.SEQUENTIAL, delta)
        case Block(size=size):
            assert profile.allocation is Allocation.RANDOM
            assert profile.ports <= 4 * size
        case _:
            assert profile.allocation is Allocation.RANDOM


@pytest.mark.parametrize("config", [c for c in presets.NATS.values() if c.udp.ports is None], ids=lambda c: c.name)
def test_a_preset_is_measured_as_configured(config: NatConfig) -> None:
    profile, took = measure(config)
    check(profile.udp, config.udp, filtering=True)
    check(profile.tcp, config.tcp, filtering=False)
    if config.udp.mapping is Axis.EIM:
        assert profile.udp.hairpin is (config.udp.hairpin is not Hairpin.NONE)
    else:
        assert profile.udp.hairpin is None
    assert took < 4


@pytest.mark.parametrize("mapping", Axis)
@pytest.mark.parametrize("filtering", SimFiltering)
@pytest.mark.parametrize("allocation", [Uniform(), Preserve(), Sequential(delta=-2)], ids=["random", "keeps", "steps"])
def test_every_combination_of_the_axes(mapping: Axis, filtering: SimFiltering, allocation: Preserve) -> None:
    behavior = Behavior(mapping=mapping, filtering=filtering, allocation=allocation)
    check(measure(NatConfig(udp=behavior, tcp=behavior))[0].udp, behavior, filtering=True)


def test_two_plain_servers_give_the_mapping_and_honest_unknowns() -> None:
    for config in (presets.LINUX, presets.LINUX_SYMMETRIC):
        profile, _ = measure(config, [(PLAIN, PORT), (SECOND, PORT + 7), (DEAD, PORT)])
        assert profile.udp.mapping is Mapping.UNKNOWN  # the second is none
        assert profile.udp.filtering is Filtering.UNKNOWN
        assert profile.udp.allocation is not Allocation.UNKNOWN
        profile, _ = measure(config, [(PLAIN, PORT), (FIRST, PORT)])
        assert profile.udp.mapping is MAPPINGS[config.udp.mapping]


def test_a_dead_server_costs_next_to_nothing() -> None:
    without = measure(presets.FULL_CONE, [(PLAIN, PORT), (FIRST, PORT)])[1]
    assert measure(presets.FULL_CONE, [(DEAD, PORT), (PLAIN, PORT), (FIRST, PORT)])[1] < without + 0.6
    assert measure(presets.FULL_CONE, [(DEAD, PORT), (PLAIN, PORT)])[1] < 2  # it may only be late: it is asked again


def test_in_the_open() -> None:
    profile, _ = measure(None)
    assert (profile.udp.translated, profile.udp.filtering) == (False, Filtering.ENDPOINT_INDEPENDENT)
    assert (profile.tcp.translated, profile.tcp.filtering) == (False, Filtering.UNKNOWN)
    assert profile.udp.external == profile.tcp.external != ()


def test_blocked_is_said_with_evidence_only() -> None:
    profile, _ = measure(presets.UDP_BLOCKED)
    assert profile.udp.blocked is True
    assert profile.tcp.blocked is False
    profile, _ = measure(presets.WEB_ONLY)
    assert (profile.udp.blocked, profile.tcp.blocked) == (None, None)
    profile, _ = measure(presets.WEB_ONLY, online=True)
    assert (profile.udp.blocked, profile.tcp.blocked) == (True, True)


def test_without_servers() -> None:
    profile, took = measure(presets.LINUX, [])
    assert (profile.udp, profile.tcp) == (UNKNOWN, UNKNOWN)
    assert took == 0


def test_both_addresses_of_one_server_in_the_list_do_not_spoil_its_filtering_test() -> None:
    config = replace(presets.RESTRICTED, name="restricted")
    profile, _ = measure(config, [(FIRST, PORT), (SECOND, PORT), (SECOND, PORT + 1)])
    check(profile.udp, config.udp, filtering=True)


@pytest.mark.parametrize("seed", range(4))
def test_losses(seed: int) -> None:
    for config in (presets.LINUX, presets.CGN_SYMMETRIC):
        profile, _ = measure(config, loss=0.05, seed=seed)
        assert profile.udp.mapping is MAPPINGS[config.udp.mapping]
        assert profile.udp.external == (profile.udp.external[0],)
        assert ip_address(profile.udp.external[0]).version == 4


def test_cancelled_in_the_middle_it_leaves_nothing() -> None:
    async def world(net: Network) -> None:
        client = net.lan("home", nat=presets.LINUX).host("c")
        async with simulated_hosts():
            with client:
                for seconds in (0.0, 0.005, 0.1, 0.5, 1.1):
                    with trio.move_on_after(seconds):
                        await measure_nat(client.ip, [(DEAD, PORT), (PLAIN, PORT)])
        assert not net.netstat(), net.netstat()

    run(world)
