"""Port mapping behind a carrier-grade NAT: what a port is good for that a home's router (miniupnpd) opens."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.hangs import HANG
from tests.kernel.carrier import Carrier, open_carrier, outside_of, that_maps_in_a_carriers_network
from tests.kernel.lab import Host
from tests.kernel.miniupnpd import HOST, OUTSIDE, WAN
from tests.kernel.run import configuration, program_on
from warpgate_trio.address import EndpointKind, PeerAddress

PORT = 40_000

pytestmark = [
    pytest.mark.slow("the kernel takes a while to make namespaces, and miniupnpd to start"),
    pytest.mark.needs("network_namespaces", "nft", "miniupnpd"),
]


async def call(carrier: Carrier, caller: Host, folder: Path, *options: str) -> tuple[list[str], dict[str, Any]]:
    """The endpoints that `listen` in the first home publishes as mapped, and the event of `connect` to it."""
    run_on = partial(program_on, home=folder, logs=None)
    public = Host(carrier.outside, str(OUTSIDE))
    listening = Host(carrier.homes[0].host, str(HOST))
    with trio.fail_after(HANG):
        async with run_on(public, "serve", "--host", str(OUTSIDE), "--json") as server:
            config = folder / "config.toml"
            config.write_text(configuration((await server.event())["servers"]), encoding="utf-8")
            words = ["--config", str(config), "--allow-any", "--json", "--echo", "--port", str(PORT)]
            async with run_on(listening, "listen", *words) as listener:
                address = (await listener.event())["address"]
                words = [address, "--config", str(config), "--echo-test", "1000", "--json", *options]
                async with run_on(caller, "connect", *words) as command:
                    event = await command.event()
                    if await command.code():
                        listener.interrupt()
                await listener.code()
    endpoints = PeerAddress.from_text(address).interfaces[0].endpoints
    return [f"{each.ip}:{each.port}" for each in endpoints if each.kind is EndpointKind.MAPPED], event


@pytest.mark.parametrize(
    ("settings", "forwarded", "mapped", "plugin"),
    [
        (f"ext_ip={WAN}", True, [f"{WAN}:{PORT}"], "direct_connect"),
        (f"ext_ip={WAN}", False, [f"{WAN}:{PORT}"], "reverse_connect"),
        ("", False, [], "reverse_connect"),
    ],
    ids=["forwarded by the carrier", "not forwarded", "without ext_ip"],
)
async def test_a_home_behind_a_carriers_nat(
    settings: str, forwarded: bool, mapped: list[str], plugin: str, tmp_path: Path
) -> None:
    """The router is configured with the carrier's public address.

    A port that it opens is dialled if the carrier forwards that port, and does no harm otherwise.
    """
    async with open_carrier(tmp_path) as carrier:
        if forwarded:
            carrier.forward(PORT)
        (home,) = carrier.homes
        await home.start(more=settings)
        published, event = await call(carrier, Host(carrier.outside, str(OUTSIDE)), tmp_path)
        assert published == mapped
        assert (event["phase"], event["plugin"]) == ("direct", plugin)
        assert f"dport {PORT} dnat" not in home.rules()


@pytest.mark.parametrize("maps", [True, False])
async def test_two_homes_behind_one_carriers_nat(maps: bool, tmp_path: Path) -> None:
    """They connect at a router's address in the carrier's network, because the carrier's NAT does not hairpin."""
    async with open_carrier(tmp_path, homes=2) as carrier:
        if maps:
            program = that_maps_in_a_carriers_network(tmp_path)
            for home in carrier.homes:
                await home.start(program=program)
        options = () if maps else ("--phases", "direct")
        published, event = await call(carrier, Host(carrier.homes[1].host, str(HOST)), tmp_path, *options)
        if not maps:
            assert (published, event["event"]) == ([], "failed")
            return
        assert published == [f"{outside_of(0)}:{PORT}"]
        assert (event["phase"], event["plugin"]) == ("direct", "direct_connect")
        assert f"dport {PORT} dnat" not in carrier.homes[0].rules()
