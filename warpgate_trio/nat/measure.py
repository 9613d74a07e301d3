"""Measures a NAT with whatever STUN servers there are: the Trio shell of `warpgate_trio.nat.classify`.

Theory of operation, for one local address.  UDP and TCP are measured at the same time, each in three steps:

1. Every server is asked from a socket of its own.  Once one has answered, the others get a few more of its round trips.
   Servers that are silent by then are left alone, so a dead server costs little time.
2. Fresh sockets ask one after another, `SPACING` apart, so that the NAT makes their mappings in a known order.  They
   ask the two nearest servers in turn, in case one lies.  One more socket asks all servers.  Over UDP, a server that
   has a second address (RFC 5780) is told to answer from there, *before anything is sent there*: address-dependent
   filtering lets in an address that was sent to, and would look like no filtering.
3. Only then the socket that asked all servers asks the second address and port too.  This shows the mapping, and
   whether the second address answers at all: if it does not, silence in step 2 proves nothing.  For hairpinning, two
   sockets send to each other's external endpoint, by which each opens its own filter.

One plain server gives the allocation, the range and the external addresses.  Two give the mapping.  RFC 5780 gives the
filtering of UDP; that of TCP stays unknown, since TCP servers do not connect back.  About 40 packets are sent.  At most
`MAX_ALTERNATES` of them, each repeated up to twice, go to addresses that a server named.

Nothing that servers do raises an exception: their faults leave axes unknown.  Time is bounded by a few seconds for each
step, and by the caller's scope.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Literal, final

import trio

from .. import host as machine
from ..address.nat_profile import Mapping, NatProfile, TransportProfile
from ..address.own import OwnAddresses
from ..errors import StunError, StunTimeout
from ..sockaddr import TransportAddress, socket_family
from ..stun.client import new_transaction_id, open_stun_stream, query_all_udp, query_stream, query_udp
from ..stun.codec import ChangeRequest
from ..stun.transaction import StunAnswer, binding_request
from .classify import Binding, NatObservations, classify, classify_mapping, classify_translated

if TYPE_CHECKING:
    from random import Random

__all__ = ["measure_nat"]

MAX_SERVERS: Final = 4
"""Servers that are asked: two show a mapping, a third outvotes a liar, a fourth may be dead."""
FRESH_UDP: Final = 16
"""Fresh sockets over UDP, on which the estimate of a port range rests: with 16 it is within a quarter of the truth."""
FRESH_TCP: Final = 8
"""Fresh sockets over TCP: each is a whole connection, and ranges matter less, as TCP is never sprayed."""
SPACING: Final = 0.01
"""Seconds between fresh sockets: more than the reordering in a home network."""
MAX_ALTERNATES: Final = 3
"""Further endpoints of a server with a second address: the other port, the other address, and both."""
RTO: Final = 0.2
"""Seconds before the first retransmission over UDP."""
TRIES: Final = 3
"""Requests in all, the first one included."""
LAST_WAIT: Final = 3.0
"""RTOs that are waited after the last request: 1.2 s in all, twice the round trip by satellite."""
FILTER_RTO: Final = 0.1
"""Seconds before the first retransmission in the test of filtering, where silence means that a NAT filters."""
FILTER_TRIES: Final = 4
"""Requests in the test of filtering: where 19 of 100 round trips fail (5 % loss on each of four lines), three in a row
fail in 7 of 1,000 cases, and four in 1."""
FILTER_LAST_WAIT: Final = 6.0
"""RTOs that are waited after the last request in the test of filtering: 1.3 s in all."""
TCP_PATIENCE: Final = 3.0
"""Seconds for a connection and its answer; a lost SYN is retransmitted after 1 s."""
GRACE: Final = 4.0
"""Round trips of the first server to answer that the other servers get after it."""
GRACE_MIN: Final = 0.5
"""Seconds that the other servers get at least: enough for one retransmission."""
HAIRPIN_WAIT: Final = 0.2
"""Seconds after each of three hairpin packets: they go no farther than the outermost NAT."""
_LOCAL_PORTS: Final = (20000, 60000)  # drawn at random: consecutive local ports look like the offset of a NAT
_BIND_TRIES: Final = 4


async def measure_nat(
    local: str,
    servers: Sequence[TransportAddress],
    *,
    online: bool = False,
    on_ports: Callable[[Literal["udp", "tcp"], TransportProfile], object] = lambda *_: None,
) -> NatProfile:
    """Measure the NATs and firewalls between a local address and the internet.

    Args:
      local: an address of this host, no wildcard.
      servers: STUN servers of the same address family; the first `MAX_SERVERS` are asked.
      online: whether the caller knows that the network works (a signal server answered), so that silence means that a
        transport is blocked.
      on_ports: called for each transport as soon as its mapping and allocation are known, which is enough for a punch
        that cannot wait.  Filtering and hairpinning take over a second longer, since silence is what shows them.
    """
    chosen = list(dict.fromkeys(servers))[:MAX_SERVERS]
    udp = _Udp(local, chosen, partial(on_ports, "udp"))
    tcp = _Tcp(local, chosen, partial(on_ports, "tcp"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(udp.run)
        nursery.start_soon(tcp.run)
    # Silence over TCP while UDP answers says nothing about the NAT: most servers do not offer TCP.
    silent = not udp.bindings and not tcp.bindings
    return NatProfile(
        udp=udp.classify(online=online or bool(tcp.bindings), alive=frozenset(each.server for each in tcp.bindings)),
        tcp=tcp.classify(online=online and silent),
        measured_at=machine.current().wall_time(),
    )


class _Transport:
    """The common part of measuring UDP and measuring TCP."""

    def __init__(
        self, local: str, servers: Sequence[TransportAddress], on_ports: Callable[[TransportProfile], object]
    ) -> None:
        self.local = local
        self.servers = servers
        self.bindings: list[Binding] = []
        self.repeated: list[Binding] = []  # answered after a retransmission: when the mapping was made is not known
        self.other_address: bool | None = None
        self.other_port: bool | None = None
        self.hairpin: bool | None = None
        self._on_ports = on_ports
        self.random: Random = machine.current().random

    def note(self, local: TransportAddress, answer: StunAnswer, at: float) -> None:
        binding = Binding(local=local, server=answer.server, mapped=answer.mapped, at=at)
        (self.repeated if answer.retransmitted else self.bindings).append(binding)

    def classify(self, *, online: bool, alive: frozenset[TransportAddress] = frozenset()) -> TransportProfile:
        if len(self.bindings) < len(self.repeated):  # a distant server: requests were retransmitted without loss
            self.bindings = [*self.bindings, *self.repeated]
        return classify(
            NatObservations(
                bindings=tuple(self.bindings),
                asked=frozenset(self.servers),
                online=online,
                alive=alive,
                other_address=self.other_address,
                other_port=self.other_port,
                hairpin=self.hairpin,
            )
        )

    def tell_ports(self) -> None:
        self._on_ports(self.classify(online=False))

    def draw_port(self) -> int:
        return self.random.randint(*_LOCAL_PORTS)

    async def ask_each(self, ask: Callable[[TransportAddress], Awaitable[StunAnswer | None]]) -> list[StunAnswer]:
        """Ask every server with `ask`; returns the answers in the order in which they came, so the nearest first."""
        answers: list[StunAnswer] = []

        async def one(server: TransportAddress, delay: float) -> None:
            await trio.sleep(delay)
            started = trio.current_time()
            answer = await ask(server)
            if answer is not None:
                answers.append(answer)
                grace = max(GRACE_MIN, GRACE * (trio.current_time() - started))
                scope.deadline = min(scope.deadline, trio.current_time() + grace)

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                for i, server in enumerate(self.servers):
                    nursery.start_soon(one, server, i * SPACING)
        return answers


def _alternates(answers: Sequence[StunAnswer]) -> tuple[StunAnswer, list[TransportAddress]] | None:
    """The answer of the nearest server with a second address, and that server's further endpoints: with the other port,
    the other address, and both.  None when there is no such server."""
    own = OwnAddresses(machine.current())
    for answer in answers:
        other = answer.other_address
        if other is not None and ip_address(other[0]) in own and ip_address(answer.server[0]) not in own:
            continue  # the "other address" is an address of this host, where no server can answer
        if other is not None and other[1] != answer.server[1]:
            (ip, port), (ip2, port2) = answer.server, other
            return answer, [(ip, port2), (ip2, port), (ip2, port2)]
    return None


@final
class _Udp(_Transport):
    async def run(self) -> None:
        with ExitStack() as stack:
            first: dict[TransportAddress, trio.socket.SocketType] = {}

            async def ask_first(server: TransportAddress) -> StunAnswer | None:
                sock = await self.open(stack)
                if sock is None:
                    return None
                first[server] = sock
                return await self.ask(sock, server)

            answers = await self.ask_each(ask_first)
            if not answers:
                return
            second = _alternates(answers)
            mapper = await self.open(stack)
            fresh: list[trio.socket.SocketType] = []
            async with trio.open_nursery() as filtering:
                if second is not None:
                    filtering.start_soon(self.test_filter, stack, first[second[0].server], second[0])
                async with trio.open_nursery() as nursery:
                    if mapper is not None:
                        await trio.sleep(SPACING)
                        # When only one server has answered, the late ones are asked again: it takes two for a mapping.
                        there = [each.server for each in answers] if len(answers) > 1 else self.servers
                        nursery.start_soon(self.ask_all, mapper, there)
                    for i in range(FRESH_UDP - len(self.servers)):
                        await trio.sleep(SPACING)
                        sock = await self.open(stack)
                        if sock is not None:
                            fresh.append(sock)
                            nursery.start_soon(self.ask, sock, answers[i % min(2, len(answers))].server)
                self.tell_ports()
            async with trio.open_nursery() as nursery:
                if second is not None and mapper is not None:
                    nursery.start_soon(self.ask_alternates, mapper, second[1])
                nursery.start_soon(self.test_hairpin, fresh[-2:])

    async def open(self, stack: ExitStack) -> trio.socket.SocketType | None:
        """A bound socket; None when the system provides none."""
        family = socket_family(self.local)
        try:
            sock = stack.enter_context(trio.socket.socket(family, trio.socket.SOCK_DGRAM))
        except OSError:
            return None
        for attempt in range(_BIND_TRIES):
            try:
                await sock.bind((self.local, 0 if attempt == _BIND_TRIES - 1 else self.draw_port()))
            except OSError:
                continue
            return sock
        return None

    async def ask(self, sock: trio.socket.SocketType, server: TransportAddress) -> StunAnswer | None:
        """Ask a server, and note the answer; None when there is none."""
        at = trio.current_time()
        try:
            answer = await query_udp(sock, server, rto=RTO, tries=TRIES, last_wait=LAST_WAIT)
        except (StunError, OSError):
            return None
        self.note(self.name(sock), answer, at)
        return answer

    def name(self, sock: trio.socket.SocketType) -> TransportAddress:
        return self.local, sock.getsockname()[1]

    async def ask_all(self, sock: trio.socket.SocketType, servers: Sequence[TransportAddress]) -> list[StunAnswer]:
        """Ask several servers from one socket, and note the answers."""
        at = trio.current_time()
        try:
            outcomes = await query_all_udp(sock, servers, rto=RTO, tries=TRIES, last_wait=LAST_WAIT)
        except OSError:
            return []
        answers = [each for each in outcomes if isinstance(each, StunAnswer)]
        for answer in answers:  # in the order of asking, which `at` does not show: it is the same for all
            self.note(self.name(sock), answer, at)
        return answers

    async def test_filter(self, stack: ExitStack, asked: trio.socket.SocketType, answer: StunAnswer) -> None:
        """Let a server answer from its other address, and from its other port, each to a socket that asked only it."""
        assert answer.other_address is not None
        elsewhere = partial(
            self.answered_elsewhere, asked, answer.server, ChangeRequest(ip=True, port=True), answer.other_address
        )

        async def other_address() -> None:
            self.other_address = await elsewhere()

        async def other_port() -> None:
            assert answer.other_address is not None
            sock = await self.open(stack)
            if sock is not None and await self.ask(sock, answer.server) is not None:
                there = (answer.server[0], answer.other_address[1])
                self.other_port = await self.answered_elsewhere(sock, answer.server, ChangeRequest(port=True), there)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other_address)
            nursery.start_soon(other_port)

    async def answered_elsewhere(
        self, sock: trio.socket.SocketType, server: TransportAddress, change: ChangeRequest, source: TransportAddress
    ) -> bool | None:
        try:
            await query_udp(
                sock,
                server,
                rto=FILTER_RTO,
                tries=FILTER_TRIES,
                last_wait=FILTER_LAST_WAIT,
                change=change,
                source=source,
            )
        except StunTimeout:
            return False
        except (StunError, OSError):  # a refusal, a malformed answer, or a request that was not sent shows no filter
            return None
        return True

    async def ask_alternates(self, sock: trio.socket.SocketType, alternates: Sequence[TransportAddress]) -> None:
        """Ask a server's other endpoints for the mapping.

        One that is silent here as well as in `test_filter` may be down, so its silence there proves nothing.
        """
        answers = await self.ask_all(sock, alternates[:MAX_ALTERNATES])
        alive = {each.server for each in answers}
        if self.other_address is False and alternates[2] not in alive:
            self.other_address = None
        if self.other_port is False and alternates[0] not in alive:
            self.other_port = None

    async def test_hairpin(self, pair: Sequence[trio.socket.SocketType]) -> None:
        """Let two sockets of this host send to each other's external endpoint.

        The mapping has to be endpoint-independent.  With any other, the sockets get new mappings for each other, whose
        ports nobody knows.
        """
        known = {each.local: each.mapped for each in (*self.bindings, *self.repeated)}
        names = [self.name(sock) for sock in pair]
        independent = classify_mapping([*self.bindings, *self.repeated]) is Mapping.ENDPOINT_INDEPENDENT
        if len(pair) < 2 or not all(name in known for name in names) or not independent:
            return
        if not classify_translated([*self.bindings, *self.repeated]):
            return
        tokens = [binding_request(new_transaction_id()) for _ in pair]
        came = trio.Event()

        async def listen(sock: trio.socket.SocketType, token: bytes) -> None:
            try:
                while True:
                    data, _ = await sock.recvfrom(len(token) + 1)
                    if data == token:
                        came.set()
                        return
            except OSError:
                return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, pair[0], tokens[1])
            nursery.start_soon(listen, pair[1], tokens[0])
            for _ in range(TRIES):
                for sock, token, target in zip(pair, tokens, reversed(names), strict=True):
                    try:
                        await sock.sendto(token, known[target])
                    except OSError:
                        continue
                with trio.move_on_after(HAIRPIN_WAIT):
                    await came.wait()
            nursery.cancel_scope.cancel()
        self.hairpin = came.is_set()


@final
class _Tcp(_Transport):
    async def run(self) -> None:
        answers = await self.ask_each(self.ask_fresh)
        if not answers:
            return
        second = _alternates(answers)
        more = [] if second is None else second[1]
        there = [each.server for each in answers] if len(answers) > 1 else self.servers  # as in `_Udp.run`
        targets = list(dict.fromkeys([*there, *more]))
        port = (self.local, self.draw_port())
        # Connections from the shared port stay open until the last server has answered: they keep the mapping alive.
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            for target in targets:
                nursery.start_soon(self.ask, stack, target, port)
                await trio.sleep(SPACING)
            for i in range(FRESH_TCP - len(self.servers)):
                nursery.start_soon(self.ask_fresh, answers[i % min(2, len(answers))].server)
                await trio.sleep(SPACING)
        self.tell_ports()

    async def ask_fresh(self, server: TransportAddress) -> StunAnswer | None:
        """Ask a server from a fresh local port; None when there is no answer."""
        async with AsyncExitStack() as stack:
            return await self.ask(stack, server, (self.local, self.draw_port()))
        return None  # not reached: for mypy, to which an exit stack may swallow exceptions

    async def ask(self, stack: AsyncExitStack, server: TransportAddress, local: TransportAddress) -> StunAnswer | None:
        """Ask a server from a given local port; None when there is no answer.

        The connection stays open until the stack closes, since it keeps the mapping alive.
        """
        at = trio.current_time()
        with trio.move_on_after(TCP_PATIENCE):
            try:
                stream = await stack.enter_async_context(open_stun_stream(server, local=local))
                answer = await query_stream(stream, timeout=TCP_PATIENCE)
            except (StunError, OSError):
                return None
            self.note(local, answer, at)
            return answer
        return None
