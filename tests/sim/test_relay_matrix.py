"""Every preset NAT with every other one, by a relay only: one TURN server of both, or one rendezvous server.

All nodes are in one world, so that each pair costs only a call.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from itertools import combinations_with_replacement
from typing import Final

import pytest
import trio

from tests.connect_proxy import serve_connect_proxy
from tests.sim.anywhere import CREDENTIALS, PROXY_ONLY, PROXY_PORT
from tests.sim.walks import open_stun, serve, stun_url
from warpgate_trio import ConnectError, Identity, Node, NodeConfig, Servers, anyone, open_node
from warpgate_trio.config import NetworkConfig
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers.rendezvous import RelayRules, open_rendezvous
from warpgate_trio.servers.turn import open_turn_server
from warpgate_trio.sim import Host, Link, NatConfig, Network, presets, simulate
from warpgate_trio.testing import simulated_hosts

RTT: Final = 0.05
LINK: Final = Link(latency=RTT / 4)
TURN: Final = ("turn:alice:sesame@turn:443", "turn:alice:sesame@turn:443?transport=tcp")
KINDS: Final[dict[str, NatConfig | None]] = {"no NAT": None, **presets.NATS, PROXY_ONLY.name: PROXY_ONLY}
WITHIN: Final = {"ws_relay": 6 * RTT + 0.03, "turn": 19 * RTT + 0.25}
"""Seconds of a call: six round trips with `ws_relay`.  With `turn`, nineteen if the responder's UDP fails, and 0.25 s
for a server that UDP does not reach.  Through a proxy, each round trip counts twice."""
REST: Final = 0.25
"""Seconds from one call to the next, so that the first one is over."""


def place(net: Network, name: str, nat: NatConfig | None) -> Host:
    """A host behind a NAT."""
    return net.host(name, link=LINK) if nat is None else net.lan(f"{name}'s", nat=nat, uplink=LINK).host(name)


async def call(caller: Node, listener: Node, plugin: str) -> str | None:
    """What is wrong with a relayed call; None if nothing is."""
    began = trio.current_time()
    try:
        pipe = await caller.auto_connect(listener.address, phases=["relay"])
    except ConnectError as error:
        return str(error)
    taken = trio.current_time() - began
    async with pipe:
        await pipe.send_all(b"x")
        if (pipe.path.plugin, await pipe.receive_some()) != (plugin, b"x"):
            return f"by {pipe.path.plugin}"
    return None if taken <= 2 * WITHIN[plugin] else f"after {taken:.3f} s"


@pytest.mark.slow("46 nodes in one world, and 276 calls")
@pytest.mark.parametrize("plugin", WITHIN)
def test_every_kind_meets_every_other_by_a_relay(plugin: str) -> None:
    names = list(KINDS)

    async def main() -> dict[tuple[str, str], str]:
        async with Network(seed=1, link=LINK) as net, simulated_hosts(), AsyncExitStack() as stack:
            servers = {name: net.host(name) for name in ("server", "turn", "proxy")}
            stun = net.host("stun")
            net.internet.give(stun.interfaces[0], net.internet.free_address())
            with servers["server"]:
                rules = RelayRules(open_to_all=plugin == "ws_relay")
                opened = open_rendezvous(host=None, port=443, public_urls=["ws://server:443"], relay=rules)
                await stack.enter_async_context(opened)
            with servers["turn"]:
                await stack.enter_async_context(open_turn_server(CREDENTIALS, host=None, port=443))
            with stun:
                await stack.enter_async_context(open_stun(stun))
            nursery = await stack.enter_async_context(open_background_nursery())
            with servers["proxy"]:
                await nursery.start(serve_connect_proxy, PROXY_PORT, [])

            async def open_one(name: str, nat: NatConfig | None) -> Node:
                used = Servers(
                    websocket=["ws://server:443"],
                    stun=[stun_url(stun)] if plugin == "turn" else (),
                    turn=TURN if plugin == "turn" else (),
                )
                proxy = f"http://proxy:{PROXY_PORT}" if nat is PROXY_ONLY else "none"
                config = NodeConfig(servers=used, network=NetworkConfig(proxy=proxy))
                identity = Identity.from_seed(name.encode().ljust(32, b"\0"))
                node = await stack.enter_async_context(open_node(config, identity=identity, authorize=anyone))
                await node.wait_signals()
                return node

            callers: list[tuple[Host, Node]] = []
            listeners: list[tuple[Host, Node]] = []
            for word, side in (("caller", callers), ("listener", listeners)):
                for kind, nat in KINDS.items():
                    with place(net, f"{word} {kind}", nat) as host:
                        side.append((host, await open_one(f"{word[0]} {kind}", nat)))
            serving = await stack.enter_async_context(open_background_nursery())
            for host, node in listeners:
                with host:
                    serving.start_soon(serve, node)
            await trio.sleep(5)
            wrong = {}
            for a, b in combinations_with_replacement(range(len(KINDS)), 2):
                one, other = (a, b) if (a + b) % 2 else (b, a)
                with callers[one][0]:
                    why = await call(callers[one][1], listeners[other][1], plugin)
                if why is not None:
                    wrong[names[one], names[other]] = why
                await trio.sleep(REST)
            return wrong

    assert simulate(main) == {}
