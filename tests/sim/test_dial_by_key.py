"""Peers that are called by their keys: two homes, a peer that has moved, lying servers, and what stays private."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, final

import pytest
import trio

from tests.identities import ALICE, BOB, CAROL
from tests.sim.test_hints import stranger
from tests.sim.worlds import run
from warpgate_trio import Contacts, Node, NodeConfig, Servers, anyone, open_node
from warpgate_trio.address import KeyRecord
from warpgate_trio.config import ListenConfig
from warpgate_trio.errors import AddressExpired, ContactsFileError, PeerNotFound
from warpgate_trio.identity import Identity
from warpgate_trio.node import own_key_record
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.report import LookupOutcome
from warpgate_trio.servers.key_record_frames import FindStatus, Found, Lookup, Publish
from warpgate_trio.servers.rendezvous import RendezvousServer, open_rendezvous
from warpgate_trio.servers.server_connection import ServerConnection
from warpgate_trio.sim import Host, Link, Network, presets, simulate
from warpgate_trio.testing.hosts import simulated_hosts
from warpgate_trio.testing.world import WORLD_CONFIG, world
from warpgate_trio.testing.worlds import PeerPair

FIRST, SECOND = "ws://first:443", "ws://second:443"
INSTANCE: Final = b"instance"


def config(*urls: str, findable: bool = True) -> NodeConfig:
    return NodeConfig(servers=Servers(websocket=urls), listen=ListenConfig(findable=findable))


@final
@dataclass(frozen=True)
class Scene:
    """A caller and what it needs."""

    net: Network
    stack: AsyncExitStack

    def host(self, name: str) -> Host:
        return self.net.hosts.get(name) or self.net.host(name)

    async def server(self, name: str) -> RendezvousServer:
        with self.host(name):
            opened = open_rendezvous(host=None, port=443, public_urls=[f"ws://{name}:443"])
            return await self.stack.enter_async_context(opened)

    async def node(
        self,
        name: str,
        identity: Identity,
        settings: NodeConfig,
        *,
        contacts: Contacts | None = None,
        let_in: Sequence[str] | None = None,
        listens: bool = False,
    ) -> Node:
        async def rule(peer_id: str) -> bool:
            await trio.lowlevel.checkpoint()
            return let_in is None or peer_id in let_in

        with self.host(name):
            opened = open_node(settings, identity=identity, contacts=contacts, authorize=rule if listens else None)
            node = await self.stack.enter_async_context(opened)
        await node.wait_signals()
        if listens:
            await node.wait_published()
        return node


@asynccontextmanager
async def scene(net: Network) -> AsyncGenerator[Scene]:
    async with simulated_hosts(), AsyncExitStack() as stack:
        yield Scene(net, stack)


def lie(server: RendezvousServer, record: Callable[[Lookup], bytes | None]) -> None:
    """Make a server answer each lookup with the record that `record` returns, or with none."""
    records = server._rendezvous._core.key_records
    honest = records.receive

    def receive(connection: ServerConnection, frame: Publish | Lookup, now: float) -> bytes:
        if isinstance(frame, Publish):
            return honest(connection, frame, now)
        shown = record(frame)
        return Found(frame.id, FindStatus.NOBODY if shown is None else FindStatus.RECORD, shown or b"").encode()

    records.receive = receive  # type: ignore[method-assign]


def record_of(identity: Identity, issued_at: float, *urls: str) -> bytes:
    made = KeyRecord.issue(identity, issued_ms=int(issued_at * 1000), signals=urls or (FIRST,), instance=INSTANCE)
    return made.to_bytes()


# --- who is there ---


@pytest.mark.slow("two homes, NATs and all")
def test_two_homes_by_peer_id_alone() -> None:
    async def main() -> None:
        pair = PeerPair.between(presets.LINUX, presets.LINUX)
        async with world(pair) as (_, alices, bobs):
            async with AsyncExitStack() as stack:
                with bobs:
                    bob = await stack.enter_async_context(
                        open_node(WORLD_CONFIG, identity=BOB, authorize=anyone, plugins=None)
                    )
                await bob.wait_published()
                with alices:
                    alice = await stack.enter_async_context(open_node(WORLD_CONFIG, identity=ALICE))
                    async with await alice.auto_connect(bob.peer_id, relay_first=False) as pipe:
                        assert pipe.peer_id == bob.peer_id
                        assert pipe.path.phase != "relay"

    simulate(main)


def test_an_address_comes_from_the_peer_alone_and_to_whom_it_lets_in() -> None:
    async def body(net: Network) -> None:
        async with scene(net) as here:
            server = await here.server("first")
            bob = await here.node("bob", BOB, config(FIRST), let_in=[ALICE.peer_id], listens=True)
            (record,) = server._rendezvous._core.key_records._by_key[BOB.public_key].values()
            assert net.hosts["bob"].ip.encode() not in record.to_bytes()
            alice = await here.node("alice", ALICE, config(FIRST))
            assert await alice.find_address(BOB.peer_id) == bob.address
            carol = await here.node("carol", CAROL, config(FIRST))
            with pytest.raises(PeerNotFound, match="asking the peer for its address failed: no answer") as caught:
                await carol.auto_connect(BOB.peer_id)
            assert [each.outcome for each in caught.value.lookups] == [LookupOutcome.RECORD]

    run(body)


@pytest.mark.parametrize("known", [False, True])
def test_who_is_absent_or_not_findable_is_not_found(known: bool) -> None:
    async def body(net: Network) -> None:
        async with scene(net) as here:
            server = await here.server("first")
            if known:
                await here.node("bob", BOB, config(FIRST, findable=False), listens=True)
            alice = await here.node("alice", ALICE, config(FIRST))
            with pytest.raises(
                PeerNotFound, match=r"none of your servers has a usable record of it .*it knows no such peer"
            ) as caught:
                await alice.auto_connect(BOB.peer_id)
            assert [(each.server, each.outcome) for each in caught.value.lookups] == [
                ("ws://first:443", LookupOutcome.NOBODY)
            ]
            assert len(server._rendezvous._core.key_records) == 0, "nor does who only calls"

    run(body)


def test_three_round_trips_to_the_server_are_what_it_costs() -> None:
    """One for the key record, and two for the question to the peer and its answer; none once the peer has answered."""

    async def body(net: Network) -> tuple[float, float]:
        far = Link(latency=0.025)
        for name in ("first", "alice", "bob"):
            net.host(name, link=far)
        async with scene(net) as here:
            await here.server("first")
            await here.node("bob", BOB, config(FIRST), listens=True)
            alice = await here.node("alice", ALICE, config(FIRST))
            began = trio.current_time()
            await alice.find_address(BOB.peer_id)
            found = trio.current_time()
            await alice.find_address(BOB.peer_id)
            return found - began, trio.current_time() - found

    first, again = run(body)
    assert first == pytest.approx(3 * 0.1, abs=0.01)
    assert again == 0


def test_who_has_left_has_no_record() -> None:
    async def body(net: Network) -> None:
        async with scene(net) as here:
            server = await here.server("first")
            async with AsyncExitStack() as stack:
                await Scene(net, stack).node("bob", BOB, config(FIRST), listens=True)
                assert len(server._rendezvous._core.key_records) == 1
            await trio.sleep(1)
            assert len(server._rendezvous._core.key_records) == 0

    run(body)


def test_without_a_server_nobody_is_found() -> None:
    async def body(net: Network) -> None:
        async with scene(net) as here:
            with net.host("alice"):
                alice = await here.stack.enter_async_context(open_node(NodeConfig(), identity=ALICE))
            with pytest.raises(PeerNotFound, match="no signal server is configured"):
                await alice.auto_connect(BOB.peer_id)
            with pytest.raises(PeerNotFound):
                await alice.refresh_address(BOB.peer_id)
            with pytest.raises(ValueError, match="own address"):
                await alice.auto_connect(ALICE.peer_id)

    run(body)


def test_the_peers_other_server_is_visited() -> None:
    """The record names a second server; the peer's answer comes through whichever server reaches the peer."""

    async def body(net: Network) -> None:
        async with scene(net) as here:
            await here.server("first")
            second = await here.server("second")
            bob = await here.node("bob", BOB, config(SECOND), listens=True)
            lying = net.epoch + net.wire.now
            lie(second, lambda _: None)
            first = await here.server("third")
            lie(first, lambda _: record_of(BOB, lying, SECOND))
            alice = await here.node("alice", ALICE, config("ws://third:443"))
            with here.host("alice"):
                assert await alice.find_address(BOB.peer_id) == bob.address

    run(body)


def test_a_name_that_another_process_has_made_is_known_and_a_broken_file_stops_names_alone(tmp_path: Path) -> None:
    contacts = Contacts.load(tmp_path / "contacts.toml")

    async def body(net: Network) -> None:
        async with scene(net) as here:
            await here.server("first")
            bob = await here.node("bob", BOB, config(FIRST), listens=True)
            alice = await here.node("alice", ALICE, config(FIRST), contacts=contacts)
            with here.host("alice"):
                Contacts.load(contacts.path).add("bob", bob.address)
                assert await alice.find_address("bob") == bob.address
                contacts.path.write_text("nonsense")
                for peer in (bob.peer_id, str(bob.address)):
                    assert await alice.find_address(peer) == bob.address
                with pytest.raises(ContactsFileError):
                    await alice.find_address("bob")

    run(body)


# --- addresses that have aged ---


def test_a_contact_whose_address_is_too_old_heals(tmp_path: Path) -> None:
    contacts = Contacts.load(tmp_path / "contacts.toml")

    async def body(net: Network) -> None:
        async with scene(net) as here:
            await here.server("first")
            old = stranger(["ws://gone:443"], net.epoch - 30 * 86400)
            with here.host("alice"):
                contacts.add("bob", old)
            bob = await here.node("bob", BOB, config(FIRST), listens=True)
            async with AsyncExitStack() as stack:
                alice = await Scene(net, stack).node("alice", ALICE, config(FIRST), contacts=contacts)
                with here.host("alice"):
                    async with await alice.auto_connect("Bob") as pipe:
                        assert pipe.peer_id == BOB.peer_id
            contact = Contacts.load(contacts.path).find("bob")
            assert contact.address == bob.address

    run(body)


def test_an_old_address_that_nobody_heals_is_told_as_that() -> None:
    async def body(net: Network) -> None:
        async with scene(net) as here:
            await here.server("first")
            alice = await here.node("alice", ALICE, config(FIRST))
            with pytest.raises(AddressExpired):
                await alice.auto_connect(stranger([FIRST], net.epoch - 30 * 86400))

    run(body)


def test_a_contact_needs_no_address_at_all(tmp_path: Path) -> None:
    contacts = Contacts.load(tmp_path / "contacts.toml")

    async def body(net: Network) -> None:
        async with scene(net) as here:
            await here.server("first")
            bob = await here.node("bob", BOB, config(FIRST), listens=True)
            with here.host("alice"):
                contacts.add("bob", BOB.peer_id)
            async with AsyncExitStack() as stack:
                alice = await Scene(net, stack).node("alice", ALICE, config(FIRST), contacts=contacts)
                async with await alice.auto_connect("bob") as pipe:
                    assert pipe.peer_id == BOB.peer_id
            contact = Contacts.load(contacts.path).find("bob")
            assert contact.address == bob.address
            assert contact.seen > 0

    run(body)


def test_a_record_is_renewed_for_as_long_as_its_node_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_key_record, "RENEWAL", 60.0)

    async def body(net: Network) -> None:
        async with scene(net) as here:
            server = await here.server("first")
            await here.node("bob", BOB, config(FIRST), listens=True)
            kept = server._rendezvous._core.key_records._by_key[BOB.public_key]
            (first,) = kept.values()
            await trio.sleep(100)
            (second,) = kept.values()
            assert second.issued_ms - first.issued_ms == pytest.approx(60_000, abs=1_000)

    run(body)


# --- servers that lie ---

LIES: Final[dict[LookupOutcome, Callable[[float], bytes | None]]] = {
    LookupOutcome.OTHER_KEY: lambda now: record_of(CAROL, now),
    LookupOutcome.FORGED: lambda now: record_of(BOB, now)[:-1] + b"?",
    LookupOutcome.MALFORMED: lambda now: b"\1nonsense",
    LookupOutcome.UNKNOWN_VERSION: lambda now: b"\2" + record_of(BOB, now)[1:],
    LookupOutcome.EXPIRED: lambda now: record_of(BOB, now - 30 * 86400),
    LookupOutcome.NOT_YET_VALID: lambda now: record_of(BOB, now + 30 * 86400),
    LookupOutcome.NOBODY: lambda now: None,
}


@pytest.mark.parametrize("outcome", LIES)
def test_a_server_that_lies_hides_a_peer_at_worst(outcome: LookupOutcome) -> None:
    """One honest server beside it suffices to find the peer."""

    async def body(net: Network) -> None:
        async with scene(net) as here:
            liar = await here.server("first")
            await here.server("second")
            lie(liar, lambda _: LIES[outcome](net.epoch + net.wire.now))
            bob = await here.node("bob", BOB, config(FIRST, SECOND), listens=True)
            alice = await here.node("alice", ALICE, config(FIRST))
            with pytest.raises(PeerNotFound, match="none of your servers has a usable record of it") as caught:
                await alice.auto_connect(BOB.peer_id)
            assert [each.outcome for each in caught.value.lookups] == [outcome]
            carol = await here.node("carol", CAROL, config(FIRST, SECOND))
            assert await carol.find_address(BOB.peer_id) == bob.address

    run(body)


def test_a_record_that_was_put_back_is_noticed(tmp_path: Path) -> None:
    """A node that has seen a newer record notices it, and so does a later node with the same contacts."""
    contacts = Contacts.load(tmp_path / "contacts.toml")

    async def body(net: Network) -> None:
        async with scene(net) as here:
            with here.host("alice"):
                contacts.add("bob", BOB.peer_id)
            liar = await here.server("first")
            await here.node("bob", BOB, config(FIRST), listens=True)
            old = record_of(BOB, net.epoch - 60, "ws://elsewhere:443")
            async with AsyncExitStack() as stack:
                alice = await Scene(net, stack).node("alice", ALICE, config(FIRST), contacts=contacts)
                await alice.refresh_address(BOB.peer_id)
                lie(liar, lambda _: old)
                with pytest.raises(PeerNotFound, match="older than one that was seen before"):
                    await alice.refresh_address(BOB.peer_id)
            assert contacts.find("bob").seen > 0
            lines = contacts.path.read_text().splitlines(keepends=True)
            contacts.path.write_text("".join(line for line in lines if not line.startswith("address")))
            again = await here.node("alice", ALICE, config(FIRST), contacts=contacts)
            with pytest.raises(PeerNotFound) as caught:
                await again.refresh_address(BOB.peer_id)
            assert [each.outcome for each in caught.value.lookups] == [LookupOutcome.ROLLED_BACK]

    run(body)


def test_presence_of_who_is_absent_leads_to_nobody() -> None:
    async def body(net: Network) -> None:
        async with scene(net) as here:
            liar = await here.server("first")
            lie(liar, lambda _: record_of(BOB, net.epoch + net.wire.now))
            await here.node("carol", CAROL, config(FIRST), listens=True)
            alice = await here.node("alice", ALICE, config(FIRST))
            with pytest.raises(PeerNotFound, match="has a record of it, but asking the peer for its address failed"):
                await alice.auto_connect(BOB.peer_id)

    run(body)


def test_what_a_record_names_is_judged_as_what_an_address_names() -> None:
    async def body(net: Network) -> list[str]:
        heard: list[str] = []
        async with open_background_nursery() as nursery, scene(net) as here:
            liar = await here.server("first")
            alices = net.host("alice")
            net.add_name("inside.example", "127.0.0.1")

            async def service(address: str, port: int, task_status: trio.TaskStatus[None]) -> None:
                with alices, trio.socket.socket() as sock:
                    await sock.bind((address, port))
                    sock.listen(8)
                    task_status.started()
                    while True:
                        (await sock.accept())[0].close()
                        heard.append(f"{address}:{port}")

            for address, port in (("127.0.0.1", 80), (alices.ip, 8080)):
                await nursery.start(service, address, port)
            urls = ["ws://127.0.0.1", "ws://inside.example", f"ws://{alices.ip}:8080", "ws://me:secret@first:443/x"]
            lie(liar, lambda _: record_of(BOB, net.epoch + net.wire.now, *urls))
            alice = await here.node("alice", ALICE, config(FIRST))
            with pytest.raises(PeerNotFound), here.host("alice"):
                await alice.auto_connect(BOB.peer_id)
            await here.stack.aclose()
        return heard

    assert run(body) == []


def test_a_server_that_hangs_costs_a_while_and_no_more() -> None:
    async def body(net: Network) -> float:
        async with scene(net) as here:
            silent = await here.server("first")
            await here.server("second")
            bob = await here.node("bob", BOB, config(SECOND), listens=True)
            records = silent._rendezvous._core.key_records
            records.receive = partial(_say_nothing)  # type: ignore[method-assign]
            alice = await here.node("alice", ALICE, config(FIRST, SECOND))
            began = trio.current_time()
            assert await alice.find_address(BOB.peer_id) == bob.address
            return trio.current_time() - began

    assert run(body) == pytest.approx(3.0, abs=0.1)


def _say_nothing(_connection: object, _frame: Publish | Lookup, _now: float) -> bytes:
    return Found(9999, FindStatus.NOBODY).encode()
