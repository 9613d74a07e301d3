"""From a program's start to the first echoed byte, by a relay first, between each two kinds of NATs, in the simulator.

The caller's program was just started: the time runs from `open_node`, before its first socket, to the first byte that
comes back of what went with the call.  The listener waits, as listeners do.  Any two machines are one round trip apart,
servers too; signals and the relay go by ``ws``, for ``wss`` there is one round trip more.  The caller has the server's
token, or (``--open``) the server relays for everybody, which it has to say first.  Virtual time: processors take none.

All pairs live in one world; a caller's node is new for each call.  Who is behind a proxy is told apart: there a
connection takes a round trip more.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections import Counter
from contextlib import AsyncExitStack
from typing import Final, final

import trio

from tests.connect_proxy import serve_connect_proxy
from tests.sim.anywhere import PROXY_ONLY, PROXY_PORT
from tests.sim.test_relay_matrix import KINDS
from tests.sim.walks import open_stun, serve, stun_url
from warpgate_trio import ConnectError, Identity, Node, NodeConfig, Servers, anyone, open_node
from warpgate_trio.config import NetworkConfig
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers.ntp import open_ntp
from warpgate_trio.servers.rendezvous import RelayRules, open_rendezvous
from warpgate_trio.servers.stun import open_stun_server
from warpgate_trio.sim import Host, Link, NatConfig, Network, simulate
from warpgate_trio.testing import simulated_hosts

TOKEN: Final = "of-43-characters-as-the-command-line-makes-one"
REST: Final = 2.0
"""Seconds from one call to the next, so that the first call and its state in the NATs do not affect the next one."""
BARS: Final = (0.35, 0.5)
"""Target times in seconds at a round-trip time of 50 ms: of the median, and of the worst pair."""
WORST: Final = 10


@final
class World:
    """The servers of a world, and a place for each kind of NAT on either side."""

    def __init__(self, net: Network, rtt: float, *, open_to_all: bool) -> None:
        self.net = net
        self.link = Link(latency=rtt / 4)
        self.open_to_all = open_to_all
        self.servers: Servers = Servers()

    async def open_servers(self, stack: AsyncExitStack) -> None:
        net = self.net
        server, stun, stun2, ntp, proxy = (
            net.host(name, link=self.link) for name in ("server", "stun", "stun2", "ntp", "proxy")
        )
        net.internet.give(stun.interfaces[0], net.internet.free_address())
        rules = RelayRules(open_to_all=True) if self.open_to_all else RelayRules(token=TOKEN)
        opened = open_rendezvous(host=None, port=443, public_urls=["ws://server:443"], relay=rules)
        for host, manager in (
            (server, opened),
            (stun, open_stun(stun)),
            (stun2, open_stun_server(host=stun2.ip, port=3478)),
            (ntp, open_ntp(host=ntp.ip, port=123)),
        ):
            with host:
                await stack.enter_async_context(manager)
        nursery = await stack.enter_async_context(open_background_nursery())
        with proxy:
            await nursery.start(serve_connect_proxy, PROXY_PORT, [])
        self.servers = Servers(
            websocket=["ws://server:443"],
            stun=[stun_url(stun), stun_url(stun2)],
            ntp=["ntp://ntp:123"],
            relay_token=None if self.open_to_all else TOKEN,
        )

    def place(self, name: str, nat: NatConfig | None) -> Host:
        if nat is None:
            return self.net.host(name, link=self.link)
        return self.net.lan(f"{name}'s", nat=nat, uplink=self.link).host(name)

    def config(self, nat: NatConfig | None, *, token: bool) -> NodeConfig:
        proxy = f"http://proxy:{PROXY_PORT}" if nat is PROXY_ONLY else "none"
        servers = self.servers if token else replace_token(self.servers)
        return NodeConfig(servers=servers, network=NetworkConfig(proxy=proxy))


def replace_token(servers: Servers) -> Servers:
    """The servers without the token, which the listener does not need."""
    return Servers(websocket=servers.websocket, stun=servers.stun, ntp=servers.ntp)


@final
class Found:
    """The results of the calls."""

    def __init__(self) -> None:
        self.times: dict[tuple[str, str], float] = {}
        self.plugins: Counter[str] = Counter()
        self.failed: dict[tuple[str, str], str] = {}


async def measure(rtt: float, *, open_to_all: bool, only: str | None) -> Found:
    """Let every kind call every other."""
    found = Found()
    async with Network(seed=1, time_limit=1e7) as net, simulated_hosts(), AsyncExitStack() as stack:
        world = World(net, rtt, open_to_all=open_to_all)
        await world.open_servers(stack)
        callers = {kind: world.place(f"caller {kind}", nat) for kind, nat in KINDS.items()}
        nodes: dict[str, Node] = {}
        for kind, nat in KINDS.items():
            with world.place(f"listener {kind}", nat):
                identity = Identity.from_seed(f"l {kind}".encode().ljust(32, b"\0"))
                opened = open_node(world.config(nat, token=False), identity=identity, authorize=anyone)
                node = await stack.enter_async_context(opened)
                await node.wait_signals()
                nodes[kind] = node
        serving = await stack.enter_async_context(open_background_nursery())
        for kind, node in nodes.items():
            with net.hosts[f"listener {kind}"]:
                serving.start_soon(serve, node)
        await trio.sleep(60.0)
        for caller, nat in KINDS.items():
            for listener, node in nodes.items():
                if only is not None and only not in (caller, listener):
                    continue
                identity = Identity.from_seed(f"{caller} {listener}".encode()[:32].ljust(32, b"\0"))
                with callers[caller]:
                    began = trio.current_time()
                    async with open_node(world.config(nat, token=True), identity=identity) as ours:
                        try:
                            pipe = await ours.auto_connect(node.address, relay_first=True, early_data=b"x")
                        except ConnectError as error:
                            found.failed[caller, listener] = str(error)
                            continue
                        async with pipe:
                            await pipe.receive_some()
                            found.times[caller, listener] = trio.current_time() - began
                            found.plugins[pipe.path.plugin] += 1
                await trio.sleep(REST)
    return found


def show(found: Found, rtt: float) -> None:
    """Print the results."""
    proxied = {pair: taken for pair, taken in found.times.items() if PROXY_ONLY.name in pair}
    others = {pair: taken for pair, taken in found.times.items() if pair not in proxied}
    for name, times in (("without a proxy", others), ("through a proxy", proxied)):
        if not times:
            continue
        median, worst = statistics.median(times.values()), max(times.values())
        print(
            f"{name}: {len(times)} pairs, first byte after {median:.3f} s in the median, {worst:.3f} s at worst: "
            f"{median / rtt:.1f} and {worst / rtt:.1f} round trips"
        )
        if times is others and rtt == 0.05:
            kept = round(median, 3) <= BARS[0] and round(worst, 3) <= BARS[1]
            print(f"bars of {BARS[0]} and {BARS[1]} s: {'kept' if kept else 'MISSED'}")
    ranked = sorted(others.items(), key=lambda each: -each[1])
    counted = Counter(round(taken / rtt, 1) for taken in others.values())
    print("round trips: " + ", ".join(f"{trips} ({number} pairs)" for trips, number in sorted(counted.items())))
    for (caller, listener), taken in ranked[:WORST]:
        print(f"  {caller} calls {listener}: {taken:.3f} s")
    print(f"by {dict(found.plugins.most_common())}")
    for (caller, listener), why in found.failed.items():
        print(f"FAILED: {caller} calls {listener}: {why}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtt", type=float, default=50.0, help="milliseconds between any two machines")
    parser.add_argument("--open", action="store_true", help="the server relays for everybody; the caller has no token")
    parser.add_argument("--only", choices=list(KINDS), help="calls of this kind, and to it")
    options = parser.parse_args()
    logging.getLogger("warpgate_trio").setLevel(logging.ERROR)  # some networks block the NTP server, which is logged
    rtt = options.rtt / 1000
    show(simulate(lambda: measure(rtt, open_to_all=options.open, only=options.only), seed=1), rtt)


if __name__ == "__main__":
    main()
