"""Races over UDP between ports on loopback: cancelled anywhere, and disturbed by other senders."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, final

import pytest
import trio
import trio.testing

from tests.cancel_sweep import cuts
from tests.hangs import HANG
from tests.panicking import PanicException
from tests.races import SECRET, carrier_of, half, hold
from tests.sim.worlds import run
from tests.waiting import wait_until
from warpgate_strategies import datagram_race
from warpgate_strategies.datagram_race import LINGER, MAX_DIALS, DatagramRace, open_datagram_race
from warpgate_trio.carrier import Carrier
from warpgate_trio.carrier.quic import QuicCarrier
from warpgate_trio.errors import CarrierError
from warpgate_trio.plugin import Plugin
from warpgate_trio.ports.datagrams import Datagram, DatagramHandler, DatagramPath, DatagramPort
from warpgate_trio.ports.udp import UdpPort, UdpPorts
from warpgate_trio.punch.probe import ProbeCodec
from warpgate_trio.sim import Network
from warpgate_trio.sockaddr import TransportAddress


@asynccontextmanager
async def open_ports() -> AsyncGenerator[UdpPorts]:
    ports = UdpPorts()
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            async with ports.running(nursery):
                yield ports
            nursery.cancel_scope.cancel()


async def meet_udp(plugin: Plugin, ports: UdpPorts, port: DatagramPort, there: Sequence[TransportAddress]) -> Carrier:
    async with open_datagram_race(plugin, SECRET) as race:
        number = race.use(port)
        race.checks.add([(number, each) for each in there], trio.current_time())
        race.checks.probe(trio.current_time())
        race.changed()
        return carrier_of(await race.first())


@pytest.mark.slow("a handshake for each checkpoint of a race")
@pytest.mark.parametrize("inbound", [False, True], ids=["initiator", "responder"])
async def test_a_udp_race_is_cancelled_anywhere_and_leaves_nothing(inbound: bool) -> None:
    async with open_ports() as ours, open_ports() as theirs:
        for cut in cuts():
            here, there = await ours.open("127.0.0.1"), await theirs.open("127.0.0.1")
            found: list[Carrier] = []

            async def other(there: UdpPort = there, here: UdpPort = here) -> None:
                await hold(await meet_udp(half(inbound=not inbound), theirs, there, [here.local]))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(other)
                with cut:
                    found.append(await meet_udp(half(inbound=inbound), ours, here, [there.local]))
                assert len(found) == (not cut.caught)
                assert here.closed is cut.caught
                for winner in found:
                    await winner.flush()
                    winner.close_nowait()
                assert len(ours) == 0
                nursery.cancel_scope.cancel()
            assert len(theirs) == 0


@final
class Supplier:
    """A `DatagramPort` that is no UDP port of ours, like a relayed address."""

    def __init__(self, port: UdpPort) -> None:
        self._port = port
        self.local = port.local
        self.mapped: dict[TransportAddress, TransportAddress] = {}
        self.sent = 0

    @property
    def closed(self) -> bool:
        return self._port.closed

    async def send(self, datagrams: Iterable[Datagram], *, hops: int | None = None) -> None:
        batch = list(datagrams)
        self.sent += len(batch)
        await self._port.send(batch)

    def listen_for_probes(self, handler: DatagramHandler | None) -> None:
        self._port.listen_for_probes(handler)

    def open_path(self, remote: TransportAddress) -> DatagramPath:
        return self._port.open_path(remote)

    def release(self) -> None:
        self._port.release()


async def test_a_race_takes_whoever_supplies_its_datagrams() -> None:
    async with open_ports() as ports:
        here, there = Supplier(await ports.open("127.0.0.1")), await ports.open("127.0.0.1")

        async def other() -> None:
            await hold(await meet_udp(half(inbound=True), ports, there, [here.local]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            winner = await meet_udp(half(inbound=False), ports, here, [there.local])
            await winner.flush()
            winner.close_nowait()
            assert here.closed
            nursery.cancel_scope.cancel()
    assert here.sent > 0


async def test_packets_that_come_while_a_race_ends_start_nothing() -> None:
    """The race's tasks end one after the other, while the task that owns the port goes on reading."""
    async with open_ports() as ports:
        port = await ports.open("127.0.0.1")
        other = await ports.open("127.0.0.1")
        codec = ProbeCodec(SECRET, initiator=True)
        race: DatagramRace
        async with open_datagram_race(half(inbound=True), SECRET) as race:
            race.use(port)
            held = port.open_path(("127.0.0.1", 9))  # so that the port survives its race
        for number in range(3):
            await other.send([(codec.request(bytes(11) + bytes([number])), port.local)])
            await trio.testing.wait_all_tasks_blocked()
        assert not port.closed
        assert race._used == set()
        held.close_nowait()
        assert port.closed
        assert list(ports._ports) == [other]


def test_a_late_probe_is_answered_for_a_while() -> None:
    """The peer may still need our answers (docs/punching.md, law 5).  This ends: a port may carry a Link for days."""

    async def ask() -> None:
        ports = UdpPorts()
        async with trio.open_nursery() as nursery, ports.running(nursery):
            port, other = await ports.open("127.0.0.1"), await ports.open("127.0.0.1")
            codec = ProbeCodec(SECRET, initiator=True)
            answers: list[bytes] = []

            def note(data: bytes, source: TransportAddress) -> list[Datagram]:
                answers.append(data)
                return []

            other.listen_for_probes(note)
            async with open_datagram_race(half(inbound=True), SECRET) as race:
                race.use(port)
                held = port.open_path(("127.0.0.1", 9))
            for number, wait in enumerate((0.0, LINGER - 0.1, 0.2)):
                await trio.sleep(wait)
                await other.send([(codec.request(bytes(11) + bytes([number])), port.local)])
                await trio.sleep(0.01)
            assert len(answers) == 2
            held.close_nowait()
            other.release()
            assert len(ports) == 0

    async def world(net: Network) -> None:
        await net.host("a").run(ask)

    run(world)


async def test_one_port_that_breaks_is_not_the_others() -> None:
    async with open_ports() as ours, open_ports() as theirs:
        broken, good = await ours.open("127.0.0.1"), await ours.open("127.0.0.1")
        there = await theirs.open("127.0.0.1")
        async with trio.open_nursery() as nursery:

            async def other() -> None:
                (await meet_udp(half(inbound=True), theirs, there, [good.local])).close_nowait()

            nursery.start_soon(other)
            async with open_datagram_race(half(inbound=False), SECRET) as race:
                numbers = [race.use(port) for port in (broken, good)]
                broken.close_nowait()
                race.checks.add([(number, there.local) for number in numbers], trio.current_time())
                race.checks.probe(trio.current_time())
                race.changed()
                winner = await race.first()
            winner.close_nowait()
            nursery.cancel_scope.cancel()


async def test_a_peer_in_many_places_is_dialled_in_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure at the first of them does not end the race."""
    monkeypatch.setattr(datagram_race, "STAGGER", 0.0)
    dialled: list[Any] = []

    async def dial(path: Any, **_: object) -> Carrier:
        dialled.append(path.remote)
        path.close_nowait()
        await trio.lowlevel.checkpoint()
        raise CarrierError("nobody there")

    monkeypatch.setattr(QuicCarrier, "dial", dial)
    async with open_ports() as ports:
        port = await ports.open("127.0.0.1")
        others = [await ports.open("127.0.0.1") for _ in range(MAX_DIALS + 3)]
        codec = ProbeCodec(SECRET, initiator=False)
        async with open_datagram_race(half(inbound=False), SECRET) as race:
            race.use(port)
            for number, each in enumerate(others):
                await each.send([(codec.request(bytes(11) + bytes([number])), port.local)])
            with trio.move_on_after(5) as dialling:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(race.first)
                    await wait_until(lambda: len(dialled) >= MAX_DIALS)
                    dialling.deadline = trio.current_time() + 0.1  # time enough for one more
        assert len(dialled) == len(set(dialled)) == MAX_DIALS
        assert port.closed


@pytest.mark.parametrize("error", [PanicException, RuntimeError])
async def test_what_breaks_one_pair_of_a_race_does_not_end_it(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagram_race, "STAGGER", 0.0)
    dial, serve = QuicCarrier.dial, QuicCarrier.serve
    broken: list[str] = []

    async def dial_but_the_first(path: Any, **options: Any) -> Carrier:
        if "dial" not in broken:
            broken.append("dial")
            raise error("boo")
        return await dial(path, **options)

    async def serve_but_the_first(path: Any, *args: Any) -> Carrier:
        if "serve" not in broken:
            broken.append("serve")
            raise error("boo")
        return await serve(path, *args)

    monkeypatch.setattr(QuicCarrier, "dial", dial_but_the_first)
    monkeypatch.setattr(QuicCarrier, "serve", serve_but_the_first)
    async with open_ports() as ports:
        here = [await ports.open("127.0.0.1") for _ in range(3)]
        there = await ports.open("127.0.0.1")

        async def meet(inbound: bool, mine: Sequence[UdpPort], theirs: Sequence[UdpPort]) -> Carrier:
            async with open_datagram_race(half(inbound=inbound), SECRET) as race:
                for number in [race.use(port) for port in mine]:
                    race.checks.add([(number, each.local) for each in theirs], trio.current_time())
                race.checks.probe(trio.current_time())
                race.changed()
                return carrier_of(await race.first())

        async with trio.open_nursery() as nursery:

            async def other() -> None:
                await hold(await meet(True, [there], here))

            nursery.start_soon(other)
            winner = await meet(False, here, [there])
            await winner.flush()
            winner.close_nowait()
    assert sorted(broken) == ["dial", "serve"]


async def test_who_answers_is_dialled_whoever_was_heard_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that sends probes and never answers any may be replaying the peer's packets."""
    dialled: list[Any] = []

    async def dial(path: Any, **_: object) -> Carrier:
        dialled.append(path.remote)
        await trio.sleep_forever()

    monkeypatch.setattr(QuicCarrier, "dial", dial)
    async with open_ports() as ports:
        port = await ports.open("127.0.0.1")
        others = [await ports.open("127.0.0.1") for _ in range(MAX_DIALS)]
        theirs = await ports.open("127.0.0.1")
        codec = ProbeCodec(SECRET, initiator=False)

        def answer(data: bytes, source: TransportAddress) -> list[Datagram]:
            return [(codec.response(data[8:20], source), source)]

        theirs.listen_for_probes(answer)
        async with open_datagram_race(half(inbound=False), SECRET) as race:
            number = race.use(port)
            for index, each in enumerate(others):
                await each.send([(codec.request(bytes(11) + bytes([index])), port.local)])
            await trio.sleep(0.01)
            race.checks.add([(number, theirs.local)], trio.current_time())
            race.checks.probe(trio.current_time())
            race.changed()
            with trio.fail_after(HANG):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(race.first)
                    await wait_until(lambda: theirs.local in dialled)
                    nursery.cancel_scope.cancel()
        assert theirs.local in dialled
