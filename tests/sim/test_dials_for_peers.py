"""A node that lets everybody in dials a bystander on behalf of many made-up peers only at a bounded rate.

With `authorize=anyone`, each request comes from a new identity, so limits per peer do not help.  The bystander accepts
every connection, and either ends it at once, so that the next one may follow, or holds it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from itertools import cycle

import pytest
import trio

from tests.sim.hostile import BYSTANDER, World, lying, with_hostile
from warpgate_strategies.reverse_connect import DialMe, ReverseConnect
from warpgate_strategies.tcp_punch import MeetByTcp, TcpPunch
from warpgate_trio import ConnectError, Identity, PeerAddress
from warpgate_trio.address import AddressInterface, Endpoint, EndpointKind, Transport
from warpgate_trio.errors import AttemptFailed
from warpgate_trio.host import current
from warpgate_trio.plugin import Message, PathRequest, Plugin, RouteType
from warpgate_trio.punch.allowance import TARGET_DIALS, TARGET_DIALS_REFILL
from warpgate_trio.punch.candidates import MAX_CANDIDATES, to_candidates
from warpgate_trio.signal import Delivery, Incoming, seal_message, wire_name
from warpgate_trio.sim import presets
from warpgate_trio.testing.worlds import PeerPair

PAIR = PeerPair.between(presets.LINUX, presets.LINUX, rtt=0.05)
PAUSE = 0.01
PORTS = range(40000, 40000 + MAX_CANDIDATES)


def dial_me(ip: str) -> tuple[str, PathRequest]:
    return "reverse_connect", DialMe(af=4, route_type=RouteType.EXT_BIND, address=ip_address(ip).packed, port=PORTS[0])


def meet_me(ip: str) -> tuple[str, PathRequest]:
    now = current().wall_time()
    where = to_candidates([(ip, port) for port in PORTS])
    request = MeetByTcp(
        af=4,
        route_type=RouteType.EXT_BIND,
        candidates=where,
        sent_at=now,
        uncertainty=0.0,
        bucket=1,
        secret=bytes(16),
    )
    return "tcp_punch", request


Request = Callable[[str], tuple[str, PathRequest]]


def fresh_peer(ip: str) -> tuple[Identity, PeerAddress]:
    """A new identity, and its signed address record with this IP address."""
    identity, now = Identity.from_seed(current().entropy(32)), int(current().wall_time())
    endpoint = Endpoint.make(transport=Transport.TCP, kind=EndpointKind.EXT, ip=ip, port=PORTS[0])
    record = PeerAddress.issue(
        identity,
        seq=now,
        issued_at=now,
        expires_at=now + 600,
        host_salt=bytes(8),
        host_id=bytes(16),
        interfaces=[AddressInterface(1, (endpoint,))],
    )
    return identity, record


async def ask_bob(world: World, request: Request, seconds: float) -> Counter[str]:
    """Send requests of new peers, a hundred a second, all for the bystander's address; returns Bob's refusals."""
    bob = world.nodes.bob
    with world.net.hosts["bob"]:
        await bob._runtime.nat.wait_looked("tcp", 4)
        bob._runtime.sender.send = taken  # type: ignore[method-assign]
        began = trio.current_time()
        channels = cycle(range(1, 50))
        before = Counter(bob.stats().refused)
        while trio.current_time() < began + seconds:
            identity, record = fresh_peer(world.claimed)
            owner, message = request(world.claimed)
            blob = seal_message(
                identity,
                bob.address,
                record,
                wire_name=wire_name(owner, type(message)),
                payload=message,
                message_id=current().entropy(16),
                session=current().entropy(16),
                attempt=current().entropy(16),
                time_ms=int(current().wall_time() * 1000),
            )
            via = f"ws://127.0.0.1:{next(channels)}"  # signals of strangers are also limited per channel
            bob._runtime.router.handle(Incoming(blob, via))
            await trio.sleep(PAUSE)
        return Counter(bob.stats().refused) - before


async def taken(*_: object, **__: object) -> Delivery:
    """Stands in for Bob's sending of answers, which the server always accepts."""
    await trio.lowlevel.checkpoint()
    return Delivery.DELIVERED


async def take_all(counts: Counter[int], *, hold: bool) -> None:
    """The bystander: accepts every connection, and ends or holds it."""

    async def serve(port: int) -> None:
        listener = trio.socket.socket()
        await listener.bind(("0.0.0.0", port))
        listener.listen(1000)
        held = []
        try:
            while True:
                sock, _ = await listener.accept()
                counts[port] += 1
                if hold:
                    held.append(sock)
                else:
                    sock.close()
        finally:
            for sock in (listener, *held):
                sock.close()

    async with trio.open_nursery() as nursery:
        for port in PORTS:
            nursery.start_soon(serve, port)


@pytest.mark.slow("hundreds of requests")
@pytest.mark.parametrize(
    ("request_of", "hold", "seconds"),
    [(dial_me, False, 10.0), (dial_me, True, 1.0), (meet_me, False, 1.0), (meet_me, True, 1.0)],
    ids=["reverse_connect", "reverse_connect-held", "tcp_punch", "tcp_punch-held"],
)
def test_what_one_bystander_gets_of_a_node_that_lets_everybody_in(
    request_of: Request, hold: bool, seconds: float
) -> None:
    counts: Counter[int] = Counter()

    async def main(world: World) -> None:
        async with trio.open_nursery() as nursery:
            with world.net.hosts[BYSTANDER]:
                nursery.start_soon(lambda: take_all(counts, hold=hold))
            refused = await ask_bob(world, request_of, seconds)
            await trio.sleep(12)  # until the last attempt has ended
            nursery.cancel_scope.cancel()
        connections = counts.total()
        print(f"{connections} connections in {seconds:.0f} s, refused: {dict(refused)}")
        assert TARGET_DIALS / 2 <= connections <= TARGET_DIALS + (seconds + 12) * TARGET_DIALS_REFILL
        assert request_of is meet_me or refused["busy"] >= 100 * seconds - connections - 2
        assert connections <= world.wire.received(BYSTANDER)
        assert world.nodes.bob.stats().attempts == 0

    with_hostile(main, TcpPunch, pair=PAIR)


@pytest.mark.slow("fifty calls")
@pytest.mark.parametrize("commits", [True, False])
def test_who_is_where_it_says_is_dialled_as_often_as_it_asks(commits: bool) -> None:
    """A dial that reaches the peer has disturbed nobody else, and does not count, even if another path wins."""
    dialled = 0

    async def run(self: Plugin, _: Message | None) -> object:
        nonlocal dialled
        dest = self.dest
        await self.send_signal(DialMe(af=4, route_type=self.route_type, address=dest.address, port=dest.port))
        link = await self.wait_inbound()
        dialled += 1
        if commits:
            return link
        link.close_nowait()
        raise AttemptFailed("another path was first")

    async def main(world: World) -> None:
        (caller,) = world.hostile
        for _ in range(TARGET_DIALS + 10):
            with suppress(ConnectError):
                pipe = await caller.connect(world.nodes.bob.address, plugin="reverse_connect", timeout=5)
                await pipe.aclose()
        assert not world.nodes.bob.stats().refused
        assert dialled == TARGET_DIALS + 10

    with_hostile(main, lying(ReverseConnect, run), pair=PeerPair.between(rtt=0.05))
