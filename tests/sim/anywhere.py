"""Worlds of every kind: two peers behind anything, with servers of every kind that both, one or neither of them use.

`draw` makes a world, `meet_anywhere` runs whole nodes in it, and `tests.sim.oracles` says what has to happen there.
"""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Final, Literal, final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import strategies as st

from tests.certificates import Authority
from tests.connect_proxy import serve_connect_proxy
from tests.sim.punching import Chooser
from tests.sim.walks import Meeting, meet, open_stun, stun_url
from warpgate_trio import NodeConfig, Servers
from warpgate_trio.config import NetworkConfig
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers.ntp import open_ntp
from warpgate_trio.servers.rendezvous import RelayRules, open_rendezvous
from warpgate_trio.servers.stun import open_stun_server
from warpgate_trio.servers.turn import open_turn_server
from warpgate_trio.servers.turn_credentials import TurnCredentials
from warpgate_trio.sim import Host, NatConfig, Network, presets
from warpgate_trio.testing.worlds import Machine, PeerPair, Place

PROXY_PORT: Final = 3128
PROXY_ONLY: Final = replace(
    presets.WEB_ONLY,
    name="proxy-only",
    source="a company's firewall that lets nothing out but to its proxy",
    tcp=replace(presets.WEB_ONLY.tcp, ports=(PROXY_PORT,)),
)

TOKEN: Final = "of-16-characters-and-more"
CREDENTIALS: Final = TurnCredentials("example.org", {"alice": "sesame"})
Form = Literal["udp", "tcp", "tcp443", "tls443"]
FORMS: Final[dict[Form, str]] = {
    "udp": "turn:alice:sesame@{}:3478",
    "tcp": "turn:alice:sesame@{}:3478?transport=tcp",
    "tcp443": "turn:alice:sesame@{}:443?transport=tcp",
    "tls443": "turns:alice:sesame@{}:443",
}
"""URLs of a TURN server, by the transport that they name."""
RULES: Final = {
    "none": RelayRules(),
    "token": RelayRules(token=TOKEN),
    "open": RelayRules(open_to_all=True),
}
"""The rules by which a rendezvous server relays."""
_SERVERS: Final = ("server2", "turn", "turn2", "dead")
_TO_PROXY: Final = 0.001
"""Seconds from a proxy to the internet: it is at the edge of its network."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """The configuration of one of the nodes.

    Attributes:
      rendezvous: machines of rendezvous servers.
      turn: machines of TURN servers, each with its kind of URL.
      stun: how many STUN servers; the first of two has two addresses.
      token: whether it has the rendezvous servers' token.
      proxy: whether it uses the proxy.
    """

    rendezvous: tuple[str, ...] = ("server",)
    turn: tuple[tuple[str, Form], ...] = ()
    stun: int = 2
    token: bool = False
    proxy: bool = False

    def __str__(self) -> str:
        words = [" ".join(self.rendezvous), *(f"{machine}/{form}" for machine, form in self.turn), f"{self.stun} STUN"]
        return ", ".join([*words, *(["token"] if self.token else []), *(["proxy"] if self.proxy else [])])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Anywhere:
    """A world.

    Attributes:
      relays: by which rules the rendezvous servers relay, a key of `RULES`.
      ntp: whether there is an NTP server.
    """

    pair: PeerPair
    alice: Side = Side()
    bob: Side = Side()
    relays: str = "none"
    ntp: bool = True

    def __str__(self) -> str:
        version = "IPv6 too, " if self.pair.ipv6 else ""
        return (
            f"{self.pair}; {version}rendezvous servers relay for {self.relays}, {'NTP' if self.ntp else 'no NTP'}\n"
            f"  alice has {self.alice}\n  bob has {self.bob}"
        )

    @property
    def lossy(self) -> bool:
        return self.pair.server.loss > 0

    def layers(self, who: Literal["alice", "bob"]) -> tuple[NatConfig, ...]:
        """All NATs that a peer is behind, outermost first."""
        return (*self.pair.shared, *(self.pair.alice if who == "alice" else self.pair.bob).nats)


def meet_anywhere(world: Anywhere) -> Meeting:
    """Let alice call bob there; see `meet`.

    If packets are lost and servers are far, bob may give up before the acknowledgement of his last bytes comes.
    """
    return meet(world.pair, servers=partial(open_servers, world=world), lossy=world.lossy, breaks=world.lossy)


# -- its servers -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_servers(net: Network, *, world: Anywhere) -> AsyncGenerator[tuple[NodeConfig, NodeConfig]]:
    """Run all configured servers, except on the machine `dead`; yields alice's configuration and bob's."""
    sides = (world.alice, world.bob)
    async with AsyncExitStack() as stack:
        for name in sorted({name for side in sides for name in side.rendezvous}):
            with net.hosts[name]:
                url = f"ws://{name}:443"
                opened = open_rendezvous(host=None, port=443, public_urls=[url], relay=RULES[world.relays])
                await stack.enter_async_context(opened)
        turn = [each for side in sides for each in side.turn]
        for name in sorted({name for name, _ in turn if name != "dead"}):
            with net.hosts[name]:
                forms = {form for machine, form in turn if machine == name}
                await stack.enter_async_context(_open_turn(name, forms))
        if max(side.stun for side in sides):
            with net.hosts["stun"]:
                await stack.enter_async_context(open_stun(net.hosts["stun"]))
            with net.hosts["stun2"]:
                await stack.enter_async_context(open_stun_server(host=net.hosts["stun2"].ip, port=3478))
        if world.ntp:
            with net.hosts["ntp"]:
                await stack.enter_async_context(open_ntp(host=net.hosts["ntp"].ip, port=123))
        if any(side.proxy for side in sides):
            nursery = await stack.enter_async_context(open_background_nursery())
            with net.hosts["proxy"]:
                await nursery.start(serve_connect_proxy, PROXY_PORT, [])
        yield _told(net, world, world.alice), _told(net, world, world.bob)


@asynccontextmanager
async def _open_turn(name: str, forms: set[Form]) -> AsyncGenerator[None]:
    context = server_context(name) if "tls443" in forms else None
    port = 443 if "tcp443" in forms else 3478
    async with open_turn_server(CREDENTIALS, host=None, port=port, ssl_context=context, tls_port=443):
        yield


def _told(net: Network, world: Anywhere, side: Side) -> NodeConfig:
    stun: Sequence[Host] = [net.hosts[name] for name in ("stun", "stun2")][2 - side.stun :]
    return NodeConfig(
        servers=Servers(
            websocket=[f"ws://{name}:443" for name in side.rendezvous],
            turn=[FORMS[form].format(name) for name, form in side.turn],
            stun=[stun_url(host) for host in stun],
            ntp=["ntp://ntp:123"] if world.ntp else [],
            relay_token=TOKEN if side.token else None,
            ca_file=authority().ca_file if any(form == "tls443" for _, form in side.turn) else None,
        ),
        network=NetworkConfig(proxy=f"http://proxy:{PROXY_PORT}" if side.proxy else "none"),
    )


# With keys whose signatures all have one length, so that a world is the same each time.


@cache
def authority() -> Authority:
    return Authority(Path(_folder().name), make_key=Ed25519PrivateKey.generate)


@cache
def server_context(name: str) -> ssl.SSLContext:
    return authority().server(name)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def with_machines(pair: PeerPair) -> PeerPair:
    """The pair, with the machines for the servers of `open_servers`."""
    made = tuple(Machine(name=name, link=pair.server) for name in _SERVERS)
    proxy = Machine(name="proxy", link=replace(pair.server, latency=_TO_PROXY))
    return replace(pair, public=(*pair.public, *made, proxy))


# -- drawing -----------------------------------------------------------------------------------------------------------

_CARRIERS: Final = (presets.CGN, presets.CGN_SYMMETRIC)
_HOMES: Final = (presets.LINUX, presets.OPENWRT, presets.RESTRICTED, presets.FULL_CONE, presets.LINUX_SYMMETRIC)
_OF_ONE_SERVER: Final[tuple[Form, ...]] = ("udp", "tcp", "tls443")
_KINDS: Final = ("preset", "preset", "preset", "open", "carrier", "web", "no udp", "proxy")


def draw(random: Chooser, *, loss: float = 0.0) -> Anywhere:
    """Two peers anywhere, and servers of any kind."""
    shared: tuple[NatConfig, ...] = random.choice(((), (), (), (), (), _CARRIERS[:1], _CARRIERS[1:], (presets.LINUX,)))
    alice, bob = _nats(random), _nats(random)
    rtt = random.choice((0.05, 0.02, 0.15))
    offsets = (0.0, 30.0, -30.0, 1.5)
    pair = PeerPair.between(
        alice,
        bob,
        rtt=rtt,
        server_rtt=random.choice((None, rtt / 2, 2 * rtt)),
        loss=loss,
        clock_offsets=(random.choice(offsets), random.choice(offsets)),
        shared=shared,
        seed=random.randint(0, 10_000),
    )
    pair = replace(with_machines(pair), ipv6=random.choice((False, False, True)))
    lan = random.choice((None, None, "192.168.1.0/24"))
    pair = replace(
        pair,
        alice=_furnished(random, pair.alice, lan, ipv6=pair.ipv6),
        bob=_furnished(random, pair.bob, lan, ipv6=pair.ipv6),
    )
    world = _with_servers(random, Anywhere(pair=pair))
    if pair.bob.nats and not pair.ipv6 and random.randint(0, 9) == 0:
        return replace(world, pair=replace(pair, bob=replace(pair.bob, forwarded=True)))
    return world


def _nats(random: Chooser) -> tuple[NatConfig, ...]:
    kind = random.choice(_KINDS)
    if kind == "open":
        return ()
    if kind == "carrier":
        return (random.choice(_CARRIERS), random.choice(_HOMES))
    if kind == "preset":
        return (random.choice(list(presets.NATS.values())),)
    return ({"web": presets.WEB_ONLY, "no udp": presets.UDP_BLOCKED, "proxy": PROXY_ONLY}[kind],)


def _furnished(random: Chooser, place: Place, lan: str | None, *, ipv6: bool) -> Place:
    """The place with an IPv6 firewall that lets out no more than its NATs do."""
    if not place.nats:
        return place
    strictest = next((nat for nat in place.nats if (nat.udp.ports, nat.tcp.ports) != (None, None)), None)
    firewall = random.choice((None, *presets.FIREWALLS6.values()))
    if strictest is not None:
        firewall = presets.FIREWALL6
        firewall = replace(
            firewall,
            name=f"{strictest.name}6",
            udp=replace(firewall.udp, ports=strictest.udp.ports),
            tcp=replace(firewall.tcp, ports=strictest.tcp.ports),
        )
    return replace(place, firewall6=firewall if ipv6 else None, prefix4=lan)


def _with_servers(random: Chooser, world: Anywhere) -> Anywhere:
    alice, bob = random.choice(
        (
            (("server",), ("server",)),
            (("server",), ("server",)),
            (("server2", "server"), ("server",)),
            (("server2",), ("server",)),
        )
    )
    one, two = (random.choice(list(FORMS)) for _ in range(2))
    other: Form = one if one == "tcp443" else random.choice(_OF_ONE_SERVER)
    turn, same, turn2, dead = ("turn", one), ("turn", other), ("turn2", two), ("dead", two)
    alices, bobs = random.choice(
        (
            ((), ()),
            ((), ()),
            ((turn,), (turn,)),
            ((turn,), (same,)),
            ((dead, turn), (dead, same)),
            ((turn, turn2), (turn2,)),
            ((turn,), (turn2,)),
            ((turn,), ()),
            ((), (turn,)),
        )
    )
    behind = [any(nat is PROXY_ONLY for nat in world.layers(who)) for who in ("alice", "bob")]
    stun = random.choice((2, 2, 2, 1, 0))
    tokens = random.choice(((True, False), (False, True), (True, True), (False, False)))
    return replace(
        world,
        alice=Side(rendezvous=alice, turn=alices, stun=stun, token=tokens[0], proxy=behind[0]),
        bob=Side(rendezvous=bob, turn=bobs, stun=random.choice((stun, stun, 0)), token=tokens[1], proxy=behind[1]),
        relays=random.choice(("open", "token", "token", "none")),
        ntp=random.choice((True, False)),
    )


def anywhere(*, loss: float = 0.0) -> st.SearchStrategy[Anywhere]:
    """`draw` for properties."""
    return st.randoms(use_true_random=False).map(partial(draw, loss=loss))
