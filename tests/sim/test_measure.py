"""Measuring simulated NATs, by packets to servers: the profile is what was configured."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from itertools import product
from random import Random

import pytest
import trio
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.sim.worlds import run
from warpgate_trio.address.nat_profile import UNKNOWN, Allocation, Filtering, Mapping, NatProfile, TransportProfile
from warpgate_trio.errors import StunError, StunMalformed, StunRefused, StunTimeout
from warpgate_trio.nat import measure as measuring
from warpgate_trio.nat.measure import measure_nat
from warpgate_trio.servers.stun import serve_stun
from warpgate_trio.sim import (
    Behavior,
    Block,
    Conflict,
    Fault,
    Hairpin,
    Hash,
    Kind,
    Link,
    NatConfig,
    Network,
    Preserve,
    Sequential,
    Uniform,
    presets,
)
from warpgate_trio.sim import Filtering as SimFiltering
from warpgate_trio.sim import Mapping as Axis
from warpgate_trio.sockaddr import TransportAddress
from warpgate_trio.stun.codec import (
    BINDING,
    CHANGE_REQUEST,
    ERROR_CODE,
    OTHER_ADDRESS,
    XOR_MAPPED_ADDRESS,
    ChangeRequest,
    ErrorCode,
    MessageClass,
    decode,
    encode,
)
from warpgate_trio.stun.transaction import StunAnswer
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.strategies import nats

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
    faults: Sequence[Fault] = (),
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
                    net.schedule(faults)
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
        assert profile.udp.hairpin is (config.udp.hairpin not in (Hairpin.NONE, Hairpin.LOCAL))
    else:
        assert profile.udp.hairpin is None
    assert took < 4


@pytest.mark.parametrize("mapping", Axis)
@pytest.mark.parametrize("filtering", SimFiltering)
@pytest.mark.parametrize("allocation", [Uniform(), Preserve(), Sequential(delta=-2)], ids=["random", "keeps", "steps"])
def test_every_combination_of_the_axes(mapping: Axis, filtering: SimFiltering, allocation: Preserve) -> None:
    behavior = Behavior(mapping=mapping, filtering=filtering, allocation=allocation)
    check(measure(NatConfig(udp=behavior, tcp=behavior))[0].udp, behavior, filtering=True)


@settings(max_examples=30, deadline=None)
@given(nats(), st.integers(0, 99))
@pytest.mark.slow("thirty whole measurements, a dozen milliseconds each")
def test_any_nat_is_measured_as_it_behaves(config: NatConfig, seed: int) -> None:
    """Exceptions: some NATs do not look as configured.

    * If several mappings of a socket share one port, each with its own remote, only one mapping is seen from outside.
    * If the second mapping of a socket always conflicts, a NAT that drops or degrades on conflicts behaves otherwise.
    * If a small block of ports makes conflicts likely, so does any NAT that does not take the next port.
    """
    assume(config.udp.ports is None)
    profile, _ = measure(config, seed=seed)
    for found, behavior, filtering in ((profile.udp, config.udp, True), (profile.tcp, config.tcp, False)):
        same = isinstance(behavior.allocation, Preserve) or (
            isinstance(behavior.allocation, Hash) and not behavior.allocation.remote
        )
        assert found.translated is True
        assert found.blocked is False
        if isinstance(behavior.allocation, Block) and behavior.conflict is not Conflict.NEXT:
            continue
        if same and behavior.conflict is Conflict.OVERLOAD:
            assert found.mapping is Mapping.ENDPOINT_INDEPENDENT
        elif behavior.conflict in (Conflict.NEXT, Conflict.OVERLOAD) or behavior.mapping is Axis.EIM:
            assert found.mapping is MAPPINGS[behavior.mapping]
        if filtering:
            assert found.filtering in (FILTERS[behavior.filtering], Filtering.UNKNOWN)


def test_two_plain_servers_give_the_mapping_and_honest_unknowns() -> None:
    for config in (presets.LINUX, presets.LINUX_SYMMETRIC):
        profile, _ = measure(config, [(PLAIN, PORT), (SECOND, PORT + 7), (DEAD, PORT)])
        assert profile.udp.mapping is Mapping.UNKNOWN  # the second server does not exist
        assert profile.udp.filtering is Filtering.UNKNOWN
        assert profile.udp.allocation is not Allocation.UNKNOWN
        profile, _ = measure(config, [(PLAIN, PORT), (FIRST, PORT)])
        assert profile.udp.mapping is MAPPINGS[config.udp.mapping]


def test_a_dead_server_costs_next_to_nothing() -> None:
    without = measure(presets.FULL_CONE, [(PLAIN, PORT), (FIRST, PORT)])[1]
    assert measure(presets.FULL_CONE, [(DEAD, PORT), (PLAIN, PORT), (FIRST, PORT)])[1] < without + 0.6
    assert measure(presets.FULL_CONE, [(DEAD, PORT), (PLAIN, PORT)])[1] < 2  # asked again, as it may only be late


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


@pytest.mark.parametrize("firewall", presets.FIREWALLS6.values(), ids=lambda c: c.name)
def test_an_ipv6_firewall_translates_nothing(firewall: NatConfig) -> None:
    found: list[NatProfile] = []

    async def world(net: Network) -> None:
        server = net.host("server")
        client = net.lan("home", nat=presets.LINUX, firewall6=firewall).host("c")
        async with simulated_hosts():
            async with trio.open_nursery() as nursery:
                with server:
                    await nursery.start(partial(serve_stun, host=None, port=PORT))
                with client:
                    found.append(await measure_nat(client.ip6, [(server.ip6, PORT)]))
                nursery.cancel_scope.cancel()

    run(world, ipv6=True)
    for profile in (found[0].udp, found[0].tcp):
        assert (profile.translated, profile.blocked) == (False, False)
        assert (profile.mapping, profile.filtering) == (Mapping.ENDPOINT_INDEPENDENT, Filtering.UNKNOWN)


Lie = Callable[[bytes, TransportAddress, Random], list[bytes]]


def lying(request: bytes, _source: TransportAddress, random: Random) -> list[bytes]:
    """Answer with another mapped address and another OTHER-ADDRESS each time."""
    token = decode(request).transaction_id
    where = (f"11.77.{random.randrange(256)}.9", random.randint(1, 65535))
    other = OTHER_ADDRESS((f"11.78.0.{random.randrange(1, 255)}", random.randint(1, 65535)))
    return [encode(BINDING, MessageClass.SUCCESS, token, [XOR_MAPPED_ADDRESS(where), other])]


def impossible(request: bytes, _source: TransportAddress, _random: Random) -> list[bytes]:
    token = decode(request).transaction_id
    return [encode(BINDING, MessageClass.SUCCESS, token, [XOR_MAPPED_ADDRESS(("255.255.255.255", 0))])]


def noise(request: bytes, _source: TransportAddress, random: Random) -> list[bytes]:
    return [random.randbytes(random.randrange(64)), request, b"\x01\x01" + request[2:20]]


@pytest.mark.parametrize("lie", [lying, impossible, noise])
@pytest.mark.parametrize("honest", [0, 1, 2])
def test_servers_that_lie_make_unknowns_at_worst(lie: Lie, honest: int) -> None:
    found: list[NatProfile] = []

    async def liar(sock: trio.socket.SocketType, random: Random) -> None:
        while True:
            data, source = await sock.recvfrom(2048)
            for answer in lie(data, source, random):
                await sock.sendto(answer, source)

    async def world(net: Network) -> None:
        bad, good = net.host("bad"), [net.host(f"good{i}") for i in range(honest)]
        client = net.lan("home", nat=presets.LINUX).host("c")
        async with simulated_hosts():
            async with trio.open_nursery() as nursery:
                for host in good:
                    with host:
                        await nursery.start(partial(serve_stun, host=None, port=PORT))
                with bad, trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
                    await sock.bind(("0.0.0.0", PORT))
                    nursery.start_soon(liar, sock, Random(1))
                    with client:
                        servers = [(host.ip, PORT) for host in (bad, *good)]
                        found.append(await measure_nat(client.ip, servers, online=True))
                    nursery.cancel_scope.cancel()

    run(world)
    udp = found[0].udp
    assert udp.filtering is Filtering.UNKNOWN
    if honest == 2:
        assert udp.mapping is Mapping.ENDPOINT_INDEPENDENT
        assert udp.allocation is Allocation.PRESERVING
        assert len(udp.external) == 1


def test_a_server_that_names_an_address_of_ours_is_not_asked_there() -> None:
    """Packets there would arrive through the loopback interface, at services that expect local clients only."""
    heard: list[bytes] = []

    async def liar(sock: trio.socket.SocketType) -> None:
        while True:
            data, source = await sock.recvfrom(2048)
            where = [XOR_MAPPED_ADDRESS(source), OTHER_ADDRESS((source[0], 9999))]
            await sock.sendto(encode(BINDING, MessageClass.SUCCESS, decode(data).transaction_id, where), source)

    async def world(net: Network) -> None:
        bad, client = net.host("bad"), net.host("client")
        async with simulated_hosts():
            async with trio.open_nursery() as nursery:
                with bad, trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
                    await sock.bind(("0.0.0.0", PORT))
                    nursery.start_soon(liar, sock)
                    with client, trio.socket.socket(type=trio.socket.SOCK_DGRAM) as service:
                        await service.bind(("0.0.0.0", 9999))
                        await measure_nat(client.ip, [(bad.ip, PORT)], online=True)
                        with trio.move_on_after(1):
                            heard.append((await service.recvfrom(2048))[0])
                    nursery.cancel_scope.cancel()

    run(world)
    assert heard == []


def test_a_refusal_is_not_taken_for_silence_whatever_its_words() -> None:
    """The server refuses CHANGE-REQUEST with an error whose text is that of a timeout; the filtering stays unknown."""
    found: list[NatProfile] = []
    refused: list[bytes] = []
    socks: dict[TransportAddress, trio.socket.SocketType] = {}

    async def serve(sock: trio.socket.SocketType) -> None:
        while True:
            data, source = await sock.recvfrom(2048)
            request = decode(data)
            change = request.get(CHANGE_REQUEST)
            if change is not None:
                refused.append(data)
                no = [ERROR_CODE(ErrorCode(500, f"no answer from STUN server {FIRST}:{PORT} to 4 request(s)"))]
                there = (SECOND if change.ip else FIRST, PORT + 1)
                await socks[there].sendto(encode(BINDING, MessageClass.ERROR, request.transaction_id, no), source)
                continue
            where = [XOR_MAPPED_ADDRESS(source), OTHER_ADDRESS((SECOND, PORT + 1))]
            await sock.sendto(encode(BINDING, MessageClass.SUCCESS, request.transaction_id, where), source)

    async def world(net: Network) -> None:
        full = net.host("full", address=(FIRST, SECOND))
        client = net.lan("home", nat=presets.FULL_CONE).host("c")
        async with simulated_hosts():
            async with trio.open_nursery() as nursery:
                with full, ExitStack() as stack:
                    for place in product((FIRST, SECOND), (PORT, PORT + 1)):
                        sock = socks[place] = stack.enter_context(trio.socket.socket(type=trio.socket.SOCK_DGRAM))
                        await sock.bind(place)
                        nursery.start_soon(serve, sock)
                    with client:
                        found.append(await measure_nat(client.ip, RFC5780))
                    nursery.cancel_scope.cancel()

    run(world)
    assert refused
    assert found[0].udp.mapping is Mapping.ENDPOINT_INDEPENDENT
    assert found[0].udp.filtering is Filtering.UNKNOWN


@pytest.mark.parametrize(
    ("error", "answered"),
    [
        (StunTimeout("silence"), False),
        (StunRefused(420, "no answer"), None),
        (StunMalformed("no answer"), None),
        (StunError("no answer"), None),
        (OSError(errno.ENETUNREACH, "no answer"), None),
    ],
    ids=lambda each: type(each).__name__,
)
async def test_only_silence_shows_a_filter(
    error: Exception, answered: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def query(*_: object, **__: object) -> StunAnswer:
        raise error

    monkeypatch.setattr(measuring, "query_udp", query)
    udp = measuring._Udp("127.0.0.1", [], lambda _: None)
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
        asked = udp.answered_elsewhere(sock, (FIRST, PORT), ChangeRequest(ip=True, port=True), (SECOND, PORT + 1))
        assert await asked is answered


async def test_without_sockets_there_is_no_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> trio.socket.SocketType:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(trio.socket, "socket", full)
    profile = await measure_nat("127.0.0.1", [("127.0.0.1", PORT)])
    assert (profile.udp, profile.tcp) == (UNKNOWN, UNKNOWN)


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


def test_three_losses_in_a_row_do_not_make_a_filter() -> None:
    """At 0.07 s the server is asked to answer from elsewhere; the request arrives 0.03 s later."""
    profile, _ = measure(presets.FULL_CONE, faults=[Fault(at=0.09, until=0.72, target="full", kind=Kind.BLACKHOLE)])
    assert profile.udp.filtering is Filtering.ENDPOINT_INDEPENDENT


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
