"""Pairs of homes without a direct path connect through coturn, or, if only HTTPS gets out, the rendezvous server.

With coturn they use one allocation or two, over UDP and TCP.
"""

from __future__ import annotations

import pytest
import trio

from tests.hangs import HANG
from tests.kernel.nats import WEB_ONLY, Nat
from tests.kernel.run import TURN, Outcome, pair

pytestmark = [
    pytest.mark.slow("real time"),
    pytest.mark.needs("network_namespaces", "nft", "tun", "turnserver"),
]
TCP = f"{TURN}?transport=tcp"


async def relayed(a: str, b: str, *, turn: str = TURN, coturn: tuple[str, ...] = ()) -> Outcome:
    with trio.fail_after(HANG):
        return await pair(a, b, phases=["relay"], turn=[turn], coturn=coturn, second_host=True)


@pytest.mark.parametrize(
    ("a", "b", "turn"),
    [
        ("symmetric", "symmetric", TURN),
        ("symmetric", "symmetric", TCP),
        ("port-restricted", "sequential", TURN),
        ("udp-blocked", "symmetric", TCP),
        ("symmetric", "udp-blocked", TCP),
        ("udp-blocked", "udp-blocked", TCP),
    ],
)
async def test_a_pair_meets_at_a_relay(a: str, b: str, turn: str) -> None:
    outcome = await relayed(a, b, turn=turn)
    assert outcome.phase == "relay", outcome.stderr["connect"]
    assert outcome.event["plugin"] == "turn"


@pytest.mark.parametrize(
    "other",
    ["open", "port-restricted", "symmetric", "udp-blocked", WEB_ONLY],
    ids=["open", "port-restricted", "symmetric", "udp-blocked", "web-only"],
)
async def test_a_network_that_lets_only_https_out_is_relayed_by_the_rendezvous_server(other: Nat | str) -> None:
    with trio.fail_after(HANG):
        outcome = await pair(WEB_ONLY, other, phases=["relay"], serve=["--port", "443", "--open"])
    assert outcome.phase == "relay", outcome.stderr["connect"]
    assert outcome.event["plugin"] == "ws_relay"


async def test_the_whole_walk_of_two_symmetric_homes_ends_at_a_relay() -> None:
    with trio.fail_after(HANG):
        outcome = await pair("symmetric", "symmetric", turn=[TURN], second_host=True)
    assert outcome.phase == "relay", outcome.stderr["connect"]


async def test_a_server_that_forbids_relay_to_relay_has_a_verdict_of_its_own() -> None:
    outcome = await relayed("udp-blocked", "udp-blocked", turn=TCP, coturn=("denied-peer-ip=203.0.113.3",))
    assert outcome.verdict == "relay_forbids"
    (row,) = [row for row in outcome.event["report"]["combos"] if row["plugin"] == "turn"]
    assert "forbids its relays to send to 203.0.113.3" in row["error"]


async def test_a_full_server_is_a_relay_that_failed() -> None:
    outcome = await relayed("udp-blocked", "udp-blocked", turn=TCP, coturn=("user-quota=1",))
    assert outcome.verdict == "relay_failed"
