"""Worlds in which a Pipe begins over a relay and things go wrong for a minute: is it on the best path afterwards?

`draw` makes a world: two peers anywhere, the faults of the peers, routers, paths and servers, and the places to which
the peers move.  `live` lets one peer call the other there, and both talk all the time.  It waits until the faults are
over and the next search for a better path has ended.  Then it reports what is wrong (laws 11 and 12 of live Links): the
Pipe is not on a path of the class that theory promises (`best_class`), bytes are missing, or the path changed too soon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Final, Literal, final

import trio
from hypothesis import strategies as st

from tests.links import link_of
from tests.sim.oracles import expected
from tests.sim.punching import Chooser
from tests.sim.roaming import numbered
from tests.sim.test_ws_relay import OPEN, server
from warpgate_trio import PathCause, PathChange, PathState, Pipe, anyone
from warpgate_trio.link.path import PathClass, path_class
from warpgate_trio.node.path_keeper import _Kept
from warpgate_trio.node.upgrade_schedule import DWELL, DWELL_MAX, DWELL_MEMORY
from warpgate_trio.nurseries import leaves
from warpgate_trio.sim import Fault, Kind, NatConfig, Network, presets, simulate
from warpgate_trio.testing import Restarts, simulated_hosts
from warpgate_trio.testing.theory import can_connect
from warpgate_trio.testing.walks import NTP, STUN, STUN2, open_nodes
from warpgate_trio.testing.worlds import PeerPair

__all__ = ["LiveWorld", "Lived", "best_class", "draw", "live", "live_worlds"]

Who = Literal["alice", "bob"]
PEERS: Final[tuple[Who, Who]] = ("alice", "bob")
WARM: Final = 3.0
"""Seconds of talk before anything goes wrong."""
TROUBLE: Final = 40.0
"""Seconds in which faults begin."""
LONGEST: Final = 20.0
"""The longest fault in seconds: all together are shorter than the time for which a Link is kept without a path."""
PATIENCE: Final = 120.0
"""Seconds until there is a path again after the last fault: by then a search runs every 30 s."""
SETTLED: Final = 5.0
"""Seconds from a better path to the same one at both ends, with nothing left to retransmit."""
STAYS: Final = 10.0
"""Seconds on the best path until it counts: a path that died in the trouble has been noticed and left by then."""
NOTICED: Final = 1.0
"""Seconds in which the keeper of a Link has noticed a change of its path."""
TALK: Final = 1.0
"""Seconds between two words of a talk."""
WORD: Final = 100
HOUR: Final = 3600.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LiveWorld:
    """A world.

    Attributes:
      cafes: the NATs of the places to which alice and bob may move.
      faults: the faults, with times in seconds from the end of `WARM`.
      restarts: server machines that are restarted: when, which, and for how many seconds they are away.
      calls: who calls whom.
    """

    pair: PeerPair
    cafes: tuple[NatConfig, NatConfig] = (presets.LINUX, presets.LINUX)
    faults: tuple[Fault, ...] = ()
    restarts: tuple[tuple[float, str, float], ...] = ()
    calls: Who = "alice"

    def __str__(self) -> str:
        lines = [f"{self.pair}; {self.calls} calls; cafés: {', '.join(nat.name for nat in self.cafes)}"]
        lines += [f"  {fault}" for fault in self.faults]
        lines += [f"  {machine} is started again at {at:g}, after {pause:g} s" for at, machine, pause in self.restarts]
        return "\n".join(lines)

    @property
    def over_at(self) -> float:
        """When the last fault is over, on the time scale of `faults`."""
        ends = [fault.until if fault.until < HOUR else fault.at for fault in self.faults]
        return max([0.0, *ends, *(at + pause for at, _, pause in self.restarts)])

    @property
    def in_the_end(self) -> PeerPair:
        """The pair at the places where the peers are in the end."""
        pair = self.pair
        moved = [any(each.kind is Kind.MOVE and each.target == who for each in self.faults) for who in PEERS]
        if not any(moved):
            return pair
        places = [
            replace(place, nats=(cafe,) if gone else (*pair.shared, *place.nats))
            for place, cafe, gone in zip((pair.alice, pair.bob), self.cafes, moved, strict=True)
        ]
        return replace(pair, alice=places[0], bob=places[1], shared=())


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Lived:
    """The result of a world.

    Attributes:
      why: what is wrong, in sentences.
      path: the plugin of the final path.
      changes: the changes of the caller's path, and of the listener's.
      waited: seconds from the end of the faults until the Pipe was on a path as good as promised.
    """

    why: tuple[str, ...] = ()
    path: str = ""
    changes: tuple[tuple[PathChange, ...], tuple[PathChange, ...]] = ((), ())
    waited: float = 0.0

    @property
    def log(self) -> str:
        """The changes in readable form."""
        found = []
        for who, changes in zip(("caller", "listener"), self.changes, strict=True):
            found += [f"{each.at:9.3f} {who:8} {each}" for each in changes]
        return "\n".join(sorted(found))


def best_class(world: LiveWorld) -> PathClass:
    """The class of path that theory promises in the end; a better one may be found by luck.

    Upgrades never go to private addresses of a network that the dialling side is not in, so a private path is promised
    only to peers in one network.  Punching is promised if `can_connect` says so.
    """
    pair = world.in_the_end
    if pair.shared and not (pair.alice.nats or pair.bob.nats):
        return PathClass.LAN
    dialled = expected(pair if world.calls == "alice" else replace(pair, alice=pair.bob, bob=pair.alice))
    open_to = [not (*pair.shared, *place.nats) for place in (pair.alice, pair.bob)]
    callee_is_open, caller_is_open = reversed(open_to) if world.calls == "alice" else open_to
    if (dialled.direct and callee_is_open) or (dialled.reverse and caller_is_open):
        return PathClass.PUBLIC
    if not pair.shared and can_connect(pair):
        return PathClass.PUNCHED
    return PathClass.RELAYED


# -- drawing -----------------------------------------------------------------------------------------------------------

_CARRIERS: Final = (presets.CGN, presets.CGN_SYMMETRIC)
_HOMES: Final = (presets.LINUX, presets.OPENWRT, presets.RESTRICTED, presets.FULL_CONE, presets.LINUX_SYMMETRIC)
_PLACES: Final = ("cone", "cone", "preset", "preset", "open", "carrier")
_TROUBLES: Final = (
    "reboot",
    "rebind",
    "address",
    "move",
    "move",
    "down",
    "sleep",
    "hole",
    "path",
    "path",
    "payload",
    "loss",
    "delay",
    "server",
    "restart",
)


def draw(random: Chooser) -> LiveWorld:
    """Two peers anywhere, and up to four faults."""
    shared = random.choice(((), (), (), (), (), (presets.LINUX,), _CARRIERS[:1]))
    rtt = random.choice((0.05, 0.02, 0.15))
    pair = PeerPair.between(
        _nats(random),
        _nats(random),
        rtt=rtt,
        server_rtt=random.choice((None, rtt / 2, 2 * rtt)),
        clock_offsets=(random.choice((0.0, 1.5)), 0.0),
        shared=shared,
        seed=random.randint(0, 10_000),
    )
    cafes = (random.choice(_HOMES), random.choice(_HOMES))
    world = LiveWorld(pair=pair, cafes=cafes, calls=random.choice(PEERS))
    for _ in range(random.randint(0, 4)):
        world = _with_trouble(random, world)
    return replace(world, faults=tuple(sorted(world.faults, key=lambda each: (each.at, each.target))))


def live_worlds() -> st.SearchStrategy[LiveWorld]:
    """`draw` for properties."""
    return st.randoms(use_true_random=False).map(draw)


def _nats(random: Chooser) -> tuple[NatConfig, ...]:
    kind = random.choice(_PLACES)
    if kind == "open":
        return ()
    if kind == "carrier":
        return (random.choice(_CARRIERS), random.choice(_HOMES))
    return (random.choice(_HOMES if kind == "cone" else list(presets.NATS.values())),)


def _routers(world: LiveWorld, who: Who) -> list[str]:
    place = world.pair.alice if who == "alice" else world.pair.bob
    return [f"shared-nat{n}" for n in range(len(world.pair.shared))] + [f"{who}-nat{n}" for n in range(len(place.nats))]


def _with_trouble(random: Chooser, world: LiveWorld) -> LiveWorld:
    kind, who = random.choice(_TROUBLES), random.choice(PEERS)
    other: Who = "bob" if who == "alice" else "alice"
    at = random.randint(0, round(10 * TROUBLE)) / 10
    until = at + random.randint(1, round(10 * LONGEST)) / 10
    way = random.choice(("", ":up", ":down"))
    routers = _routers(world, who)
    if kind == "restart":
        machine = random.choice(("server", "server", "stun"))
        return replace(world, restarts=(*world.restarts, (at, machine, random.choice((0.0, 1.0, until - at)))))
    if kind == "server":
        fault = Fault(at=at, until=until, target="server" + way, kind=Kind.BLACKHOLE)
    elif kind == "reboot" and routers:
        fault = Fault(at=at, until=at + 1.0, target=random.choice(routers), kind=Kind.REBOOT)
    elif kind == "rebind" and routers:
        fault = Fault(at=at, target=random.choice(routers), kind=Kind.REBIND)
    elif kind == "move" and not any(each.kind is Kind.MOVE and each.target == who for each in world.faults):
        fault = Fault(at=at, target=who, kind=Kind.MOVE, to=f"{who}-cafe")
    elif kind == "down":
        fault = Fault(at=at, until=until, target=who, kind=Kind.LINK_DOWN)
    elif kind == "sleep":
        fault = Fault(at=at, until=until, target=who, kind=Kind.SLEEP)
    elif kind == "path":
        fault = Fault(at=at, until=until, target=who + way, kind=Kind.BLACKHOLE, peer=_outermost(world, other))
    elif kind == "payload":
        passes = random.choice((0, 5, 20, 100))
        fault = Fault(
            at=at,
            until=until,
            target=who + way,
            kind=Kind.PAYLOAD_HOLE,
            value=1000,
            after=passes,
            peer=_outermost(world, other),
        )
    elif kind == "loss":
        fault = Fault(at=at, until=until, target=who + way, kind=Kind.LOSS, value=random.choice((0.05, 0.3)))
    elif kind == "delay":
        fault = Fault(at=at, until=until, target=who + way, kind=Kind.DELAY, value=random.choice((0.1, 0.5)))
    elif kind == "hole":
        fault = Fault(at=at, until=until, target=who + way, kind=Kind.BLACKHOLE)
    else:
        fault = Fault(at=at, target=who, kind=Kind.NEW_ADDRESS)
    return replace(world, faults=(*world.faults, fault))


def _outermost(world: LiveWorld, who: Who) -> str:
    """The name of the router (or host) whose address the other peer sees for a peer at home."""
    place = world.pair.alice if who == "alice" else world.pair.bob
    return f"{who}-nat0" if place.nats else who


# -- living in it ------------------------------------------------------------------------------------------------------


@final
class _Chat:
    """Numbered words one way, until it is over."""

    def __init__(self, sender: Pipe, receiver: Pipe) -> None:
        self.sender, self.receiver = sender, receiver
        self.sent = self.got = 0
        self.heard_at = trio.current_time()
        self.goes_on = True
        self.wrong = False

    async def send(self) -> None:
        while self.goes_on:
            await self.sender.send_all(numbered(self.sent, WORD))
            self.sent += WORD
            await trio.sleep(TALK)

    async def receive(self) -> None:
        while True:
            data = await self.receiver.receive_some()
            if data != numbered(self.got, len(data)) or not data:
                self.wrong = True
            self.got += len(data)
            self.heard_at = trio.current_time()


def live(world: LiveWorld) -> Lived:
    """Let the peers call and talk through the faults; report what is wrong long enough after the last one."""
    return simulate(partial(_live, world), seed=world.pair.seed)


async def _live(world: LiveWorld) -> Lived:
    restarts = Restarts()
    servers = restarts.of(server(OPEN), STUN, STUN2, NTP)
    async with world.pair.build(time_limit=1e6) as net, simulated_hosts():
        for who, place, cafe in zip(PEERS, (world.pair.alice, world.pair.bob), world.cafes, strict=True):
            net.lan(f"{who}-cafe", nat=cafe, uplink=place.link)
        async with open_nodes(net, servers=servers, authorize_alice=anyone) as nodes:
            await trio.sleep(2.0)
            caller, listener = (nodes.alice, nodes.bob) if world.calls == "alice" else (nodes.bob, nodes.alice)
            with net.hosts[world.calls]:
                ours = await caller.auto_connect(listener.address, relay_first=True)
            theirs = await listener.listener.accept()
            try:
                async with ours, theirs:
                    return await _suffer(world, net, restarts, ours, theirs)
            except BaseExceptionGroup as group:
                broken = [each for each in leaves(group) if isinstance(each, trio.BrokenResourceError)]
                if not broken:
                    raise
                return Lived(why=(f"it broke: {broken[0]}",), changes=(ours.path_log, theirs.path_log))


async def _suffer(world: LiveWorld, net: Network, restarts: Restarts, ours: Pipe, theirs: Pipe) -> Lived:
    async with trio.open_nursery() as nursery:
        chats = [_Chat(ours, theirs), _Chat(theirs, ours)]
        for chat in chats:
            nursery.start_soon(chat.receive)
            nursery.start_soon(chat.send)
        await trio.sleep(WARM)
        for at, machine, pause in world.restarts:
            nursery.start_soon(_restart, restarts, at, machine, pause)
        net.schedule(world.faults)
        await trio.sleep(world.over_at + 0.1)
        well_at = trio.current_time()
        why = await _wait_for_the_best(world, ours, theirs)
        waited = trio.current_time() - well_at - STAYS
        await trio.sleep(SETTLED)
        with trio.move_on_after(SETTLED):  # an end may be changing over at this moment
            while _way(ours) != _way(theirs):
                await theirs.wait_path_change()
        why += _what_is_wrong(chats, ours, theirs)
        for chat in chats:
            chat.goes_on = False
        await trio.sleep(SETTLED)
        if any(chat.got != chat.sent for chat in chats) or any(chat.wrong for chat in chats):
            why.append(f"bytes: {[(chat.sent, chat.got, chat.wrong) for chat in chats]}")
        nursery.cancel_scope.cancel()
    logs = (ours.path_log, theirs.path_log)
    if any(each.cause is PathCause.BETTER for each in theirs.path_log):
        why.append("the listener has looked for a better path")
    why += [f"{who}: {fault}" for who, log in zip(("caller", "listener"), logs, strict=True) for fault in flaps(log)]
    return Lived(why=tuple(why), path=ours.path.plugin, changes=logs, waited=waited)


async def _restart(restarts: Restarts, at: float, machine: str, pause: float) -> None:
    await trio.sleep(at)
    await restarts.restart(machine, pause=pause)


def _class_of(pipe: Pipe) -> PathClass:
    return path_class(pipe.path.phase, pipe.path.route_type)


async def _wait_live(*pipes: Pipe) -> None:
    for pipe in pipes:
        while pipe.path.state is not PathState.LIVE:
            await pipe.wait_path_change()


def search_time(pair: PeerPair) -> float:
    """Seconds until a search has tried all that theory promises: its direct and punch phases, and a handshake."""
    to_server = [place.link.latency + pair.server.latency for place in (pair.alice, pair.bob)]
    signal = 2 * sum(to_server)
    return 5.0 + min(max(3 * signal, 0.3), 2.0) + max(1.5, 4 * signal + 0.5)


async def _wait_for_the_best(world: LiveWorld, ours: Pipe, theirs: Pipe) -> list[str]:
    """Wait until the Pipe is on a path as good as promised; returns a complaint if it should be by now, but is not."""
    best = best_class(world)
    while True:
        with trio.move_on_after(PATIENCE) as scope:
            await _wait_live(ours, theirs)
        if scope.cancelled_caught:
            return [f"no path for {PATIENCE:g} s: {ours.path.state.value}, {theirs.path.state.value}"]
        if _class_of(ours) <= best:
            with trio.move_on_after(STAYS):
                while _class_of(ours) <= best:
                    await ours.wait_path_change()
            if _class_of(ours) <= best and all(pipe.path.state is PathState.LIVE for pipe in (ours, theirs)):
                return []
            continue  # the path was left or is suspected; a path that paused may be suspected for half a minute
        await trio.sleep(NOTICED)
        kept = getattr(link_of(ours).migrator, "__self__", None)
        assert isinstance(kept, _Kept)
        while kept._searching.locked():  # noqa: ASYNC110 - a search that began during the faults proves nothing
            await trio.sleep(NOTICED)
        if _class_of(ours) <= best:
            continue
        schedule, changes = kept._schedule, len(ours.path_log)
        next_at = max(schedule.next_at, trio.current_time())
        sits_out = max((until for until, _ in schedule._sitting_out.values()), default=0.0)
        with trio.move_on_at(next_at + search_time(world.pair)):
            while _class_of(ours) > best:
                await ours.wait_path_change()
        if _class_of(ours) > best and len(ours.path_log) == changes and sits_out <= next_at:
            return [f"it is {_class_of(ours).name}, and {best.name} is promised; a search was due at {next_at:.1f}"]


def _what_is_wrong(chats: Sequence[_Chat], ours: Pipe, theirs: Pipe) -> list[str]:
    why = []
    if any(trio.current_time() - chat.heard_at > 4 * TALK for chat in chats):
        why.append(f"nothing comes: {[round(trio.current_time() - chat.heard_at, 1) for chat in chats]}")
    if _way(ours) != _way(theirs):
        why.append(f"they are not on one path: {_way(ours)} and {_way(theirs)}")
    return why


def _way(pipe: Pipe) -> tuple[PathClass, str, PathState]:
    """Both ends must agree on these; phases may differ: the caller counts a punch retried beside sprays as a spray."""
    return _class_of(pipe), pipe.path.plugin, pipe.path.state


def flaps(changes: Sequence[PathChange]) -> list[str]:
    """Upgrades that came too soon after another upgrade.

    An upgrade soon after the loss of a path does not count.  A search that was under way then may find a relay first
    and a better path a moment later; to wait 10 s for it would use the relay for nothing.
    """
    upgrades = [each for each in changes if each.switched and each.cause is PathCause.BETTER]
    found = []
    for number, (earlier, later) in enumerate(pairwise(upgrades)):
        lately = sum(earlier.at - each.at < DWELL_MEMORY for each in upgrades[:number])
        found.append((earlier, later, min(DWELL * 2**lately, DWELL_MAX)))
    return [
        f"better after {later.at - earlier.at:.1f} s only, not {dwell:g} s: {later}"
        for earlier, later, dwell in found
        if later.at - earlier.at < dwell
    ]
