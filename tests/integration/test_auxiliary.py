"""get_addr, return_addr and fan_out, and what a walk does with a fresh address."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.identities import ALICE, BOB, CAROL
from tests.links import link_of
from tests.nodes import QUICK, LoopbackHost, address_of, closed_port, config, loopback_node, on_host, pair
from tests.sim.walks import RTT, in_world
from tests.waiting import wait_until
from warpgate_strategies.fan_out import STAGGER
from warpgate_trio import (
    ConnectError,
    Node,
    NodeConfig,
    PathCause,
    PeerAddress,
    Pipe,
    RouteType,
    Servers,
    Verdict,
    anyone,
    open_node,
)
from warpgate_trio.carrier import Carrier
from warpgate_trio.config import Budgets, ServerUrl
from warpgate_trio.contacts import Contacts
from warpgate_trio.errors import (
    AddressExpired,
    AddressNotYetValid,
    AttemptFailed,
    ConfigError,
    PeerNotFound,
    SignalUnavailable,
)
from warpgate_trio.link import Link
from warpgate_trio.node.runtime import NodeRuntime
from warpgate_trio.plugin import Message, Plugin, plugin_registry, register
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.testing.walks import NodePair

pytestmark = pytest.mark.usefixtures("jumping_clock")


async def test_get_addr_returns_the_present_address() -> None:
    async with pair() as both:
        old = address_of(BOB, port=1, now=LoopbackHost().wall_time() - 60)
        assert await both.alice.refresh_address(old) == both.bob.address
        assert await both.alice.refresh_address(str(old)) == both.bob.address


async def test_get_addr_is_for_those_who_may_connect() -> None:
    async def nobody(_: str) -> bool:
        return False

    for rule in (nobody, None):
        async with pair(authorize=rule) as both:
            with pytest.raises(trio.TooSlowError):
                await both.alice.refresh_address(both.bob.address, timeout=0.1)
            assert both.alice._runtime.view.known_address(BOB.public_key) is None


async def test_get_addr_of_a_peer_that_is_not_there() -> None:
    async with open_rendezvous() as server, loopback_node(ALICE, config(server)) as alice:
        await alice.wait_signals()
        with pytest.raises(AttemptFailed, match="know no such peer"):
            await alice.refresh_address(address_of(BOB, port=1))
    async with loopback_node(ALICE, config()) as alice:
        with pytest.raises(SignalUnavailable):
            await alice.refresh_address(address_of(BOB, port=1))
    dead = f"ws://127.0.0.1:{await closed_port()}"
    async with loopback_node(ALICE, config(dead)) as alice:
        with pytest.raises(trio.TooSlowError):
            await alice.refresh_address(address_of(BOB, port=1), timeout=0.05)


@pytest.mark.parametrize("peer", [address_of(BOB, port=1), BOB.peer_id], ids=["address", "peer id"])
async def test_a_node_without_get_addr_cannot_ask(peer: PeerAddress | str) -> None:
    async with loopback_node(ALICE, config(), plugins=["direct_connect"]) as alice:
        with pytest.raises(ConfigError, match="no plugin 'get_addr'"):
            await alice.refresh_address(peer)


def test_an_answer_that_nobody_waits_for_any_more_is_not_answered() -> None:
    """Otherwise two listening nodes would never stop: each would take the other's answer for a question."""

    async def main(nodes: NodePair) -> None:
        with trio.move_on_after(1.5 * RTT):  # signals take one round trip each way
            await nodes.alice.refresh_address(nodes.bob.address)
        await trio.sleep(20 * RTT)
        assert nodes.bob.stats().signals["Accepted"] == nodes.alice.stats().signals["Accepted"] == 1
        assert nodes.alice.stats().signals["late"] == 1

    in_world(main)


async def test_a_stale_address_is_refreshed_and_the_walk_goes_on() -> None:
    """Alice's address of Bob leads nowhere any more; he is asked for a fresh one, and reached there."""
    async with pair() as both:
        stale = address_of(BOB, port=await closed_port(), now=LoopbackHost().wall_time() - 60)
        async with await both.alice.auto_connect(stale, plugins=["direct_connect"]) as pipe:
            report = pipe.report
            assert report is not None
            assert report.notes == ("the peer's address was out of date; the peer sent its present one",)
            assert report.winner is not None
            assert report.winner.target.endswith(f":{pipe.path.remote[1]}")
        # The next walk begins where the first one ended.
        async with await both.alice.auto_connect(stale, plugins=["direct_connect"]) as pipe:
            assert pipe.report is not None
            assert pipe.report.notes == ()


async def test_an_expired_address_is_refreshed_before_the_walk() -> None:
    async with pair() as both:
        expired = address_of(BOB, port=await closed_port(), now=LoopbackHost().wall_time() - 8 * 24 * 3600)
        async with await both.alice.auto_connect(expired) as pipe:
            assert pipe.peer_id == both.bob.peer_id


async def test_asking_for_a_fresh_address_is_within_the_callers_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers.  Without the caller's bound the wait would last as long as that for any signal."""

    async def silent(self: NodeRuntime, peer: PeerAddress, plugin: str) -> object:
        await trio.sleep_forever()
        return None

    monkeypatch.setattr(NodeRuntime, "ask", silent)
    async with loopback_node(ALICE, config(budgets=Budgets(signal=2 * HANG))) as alice:
        expired = address_of(BOB, port=1, now=LoopbackHost().wall_time() - 8 * 24 * 3600)
        with trio.fail_after(HANG), pytest.raises(AddressExpired):
            await alice.auto_connect(expired, timeout=0.05)


@pytest.mark.parametrize("timeout", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize(
    ("issued", "error"), [(-8 * 24 * 3600, AddressExpired), (24 * 3600, AddressNotYetValid), (None, PeerNotFound)]
)
async def test_time_servers_that_are_silent_take_all_of_the_callers_time(
    timeout: float, issued: int | None, error: type[Exception]
) -> None:
    """When the clock does not jump, they take a little more; the error still says what was wrong with the address."""
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as silent:
        await silent.bind(("127.0.0.1", 0))
        servers = Servers(ntp=(ServerUrl.parse(f"ntp://127.0.0.1:{silent.getsockname()[1]}"),))
        async with loopback_node(ALICE, NodeConfig(servers=servers)) as alice:
            whom = BOB.peer_id if issued is None else address_of(BOB, port=1, now=LoopbackHost().wall_time() + issued)
            for call in (
                partial(alice.auto_connect, whom),
                partial(alice.connect, whom, plugin="direct_connect"),
                partial(alice.find_address, whom),
            ):
                with pytest.raises(error):
                    await call(timeout=timeout)


async def test_an_expired_address_that_cannot_be_refreshed_says_so() -> None:
    async with open_rendezvous() as server, loopback_node(ALICE, config(server)) as alice:
        await alice.wait_signals()
        with pytest.raises(AddressExpired):
            await alice.auto_connect(address_of(BOB, port=1, now=LoopbackHost().wall_time() - 8 * 24 * 3600))


@pytest.mark.parametrize("how", ["address", "text", "peer id", "contact"])
async def test_who_is_asked_and_told_is_named_as_in_a_call(how: str, tmp_path: Path) -> None:
    contacts = Contacts.load(tmp_path / "contacts")
    async with pair() as both:
        contacts.add("bob", both.bob.peer_id)
        names: dict[str, PeerAddress | str] = {
            "address": both.bob.address,
            "text": str(both.bob.address),
            "peer id": BOB.peer_id,
            "contact": "bob",
        }
        async with on_host(LoopbackHost()), open_node(config(both.server), identity=CAROL, contacts=contacts) as carol:
            await carol.wait_signals()
            assert await carol.refresh_address(names[how]) == both.bob.address
            await carol.announce_address(names[how])
            await wait_until(lambda: both.bob._runtime.view.known_address(CAROL.public_key) is not None)
            own = carol.address if how == "address" else str(carol.address) if how == "text" else carol.peer_id
            for call in (carol.refresh_address, carol.announce_address):
                with pytest.raises(ValueError, match="this node's own"):
                    await call(own)


async def test_return_addr_tells_those_who_would_let_us_in() -> None:
    async with pair() as both:
        await both.alice.announce_address(both.bob.address)
        key = both.alice.address.public_key
        await wait_until(lambda: both.bob._runtime.view.known_address(key) is not None)
        assert both.bob._runtime.view.known_address(key) == both.alice.address

    async def not_carol(peer_id: str) -> bool:
        return peer_id != CAROL.peer_id

    async with pair(authorize=not_carol) as both, loopback_node(CAROL, config(both.server)) as carol:
        await carol.wait_signals()
        await carol.announce_address(both.bob.address)
        await wait_until(lambda: both.bob.stats().refused)  # counted once her announcement has been handled
        assert both.bob._runtime.view.known_address(carol.address.public_key) is None


async def test_learned_addresses_are_bounded_and_the_last_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warpgate_trio.node.address_book.MAX_KNOWN", 2)
    async with loopback_node(ALICE, config()) as alice:
        now = LoopbackHost().wall_time()
        ahead, fresh = address_of(BOB, port=1, now=now + 3600), address_of(BOB, port=2, now=now)
        alice._runtime.home.learn_address(ahead)
        alice._runtime.home.learn_address(fresh)
        assert alice._runtime.view.known_address(BOB.public_key) == fresh
        for identity in (CAROL, ALICE):
            alice._runtime.home.learn_address(address_of(identity, port=1))
        assert alice._runtime.view.known_address(BOB.public_key) is None


async def test_fan_out_races_named_plugins() -> None:
    async with pair() as both:
        async with await both.alice.connect(both.bob.address, plugin=["reverse_connect", "direct_connect"]) as pipe:
            assert pipe.path.plugin in ("reverse_connect", "direct_connect")
            report = pipe.report
            assert report is not None
            assert [combo.plugin for combo in report.combos] == ["fan_out"]
        async with await both.alice.connect(both.bob.address, plugin="fan_out") as pipe:
            assert pipe.path.plugin == "direct_connect"


async def test_fan_out_takes_the_one_that_works() -> None:
    async with pair() as both:
        for sock in both.bob._runtime._sockets:
            sock.close()
        async with await both.alice.connect(both.bob.address, plugin=["direct_connect", "reverse_connect"]) as pipe:
            assert pipe.path.plugin == "reverse_connect"


async def test_fan_out_starts_its_candidates_one_after_the_other() -> None:
    """If an early candidate is quick, the later ones do no work; none waits for an earlier one to fail."""
    starts: list[tuple[str, float]] = []

    def candidate(number: int) -> type[Plugin]:
        @register(phase="direct")
        class Candidate(Plugin):
            name = f"candidate_{number}"
            pathless = True

            async def run(self, reply: Message | None = None) -> Carrier | Link:
                starts.append((self.name, trio.current_time()))
                await trio.sleep_forever()
                raise AssertionError

        return Candidate

    before = dict(plugin_registry)
    names = [f"candidate_{number}" for number in range(3)]
    plugins: list[str | type[Plugin]] = ["fan_out", *(candidate(number) for number in range(3))]
    try:
        async with loopback_node(ALICE, config(), plugins=plugins) as alice:
            begin = trio.current_time()
            with pytest.raises(ConnectError):
                await alice.connect(address_of(BOB, port=1), plugin=names, timeout=1)
    finally:
        plugin_registry.clear()
        plugin_registry.update(before)
    assert [name for name, _ in starts] == names
    assert [at - begin for _, at in starts] == pytest.approx([0, STAGGER, 2 * STAGGER])


async def test_the_auxiliary_plugins_are_in_no_walk() -> None:
    async with pair() as both:
        phases = {each.name: each.phase for each in both.alice.plugins}
        assert {name: phases[name] for name in ("get_addr", "return_addr", "fan_out")} == {
            "get_addr": None,
            "return_addr": None,
            "fan_out": None,
        }
        async with await both.alice.auto_connect(both.bob.address) as pipe:
            assert pipe.report is not None
            assert not {combo.plugin for combo in pipe.report.combos} & {"get_addr", "return_addr", "fan_out"}


@pytest.mark.parametrize("af", [4, 6])
async def test_fan_out_tries_the_pinned_family_and_route_alone(af: Literal[4, 6]) -> None:
    async with pair() as both:
        for plugin in ("direct_connect", ["direct_connect"], ["reverse_connect", "direct_connect"]):
            async with await both.alice.connect(both.bob.address, plugin=plugin, af=af) as pipe:
                assert pipe.path.af == af
        with pytest.raises(ConnectError):
            await both.alice.connect(both.bob.address, plugin=["direct_connect"], route_type=RouteType.EXT_BIND)


@pytest.mark.parametrize("plugins", [["reverse_connect"], ["direct_connect"]])
async def test_a_lost_path_of_fan_outs_is_searched_for_by_the_same_plugins(plugins: list[str]) -> None:
    async with pair() as both:
        ours = await both.alice.connect(both.bob.address, plugin=plugins, af=4)
        theirs = await both.bob.listener.accept()
        async with ours, theirs:
            await theirs.send_all(b"!")
            assert await ours.receive_some() == b"!"
            link_of(ours).carrier.close_nowait()
            async for change in ours.path_changes():
                if change.cause is PathCause.FOUND:
                    break
            assert (ours.path.phase, ours.path.plugin, ours.path.af) == ("direct", plugins[0], 4)


@pytest.mark.slow("a call and a search in a world with NATs")
@pytest.mark.parametrize("plugins", [["udp_punch"], ["tcp_punch", "udp_punch"]])
def test_a_lost_path_between_nats_too(plugins: list[str]) -> None:
    """Only the named plugins look for a new path, and no others look for a better one afterwards."""

    async def main(nodes: NodePair) -> None:
        async with await nodes.alice.connect(nodes.bob.address, plugin=plugins) as pipe:
            await pipe.send_all(b"!")
            assert await pipe.receive_some() == b"!"
            link_of(pipe).carrier.close_nowait()
            async for change in pipe.path_changes():
                if change.cause is PathCause.FOUND:
                    break
            assert pipe.path.plugin in plugins
            for _ in range(60):
                await pipe.send_all(b"!")
                await trio.sleep(1.0)
            assert pipe.path_log[-1] is change

    in_world(main)


async def test_fan_out_that_fails_says_why() -> None:
    async with loopback_node(ALICE, config(budgets=QUICK)) as alice:
        with pytest.raises(ConnectError) as caught:
            await alice.connect(address_of(BOB, port=await closed_port()), plugin=["direct_connect"])
        (combo,) = caught.value.report.combos
        assert combo.error is not None
        assert combo.error.startswith("no plugin made a path: ")
        assert "refused" in combo.error
        with pytest.raises(ValueError, match="no plugin 'nonsense'"):
            await alice.connect(address_of(BOB, port=1), plugin=["direct_connect", "nonsense"])


async def test_fan_out_reports_a_refusal() -> None:
    async def nobody(_: str) -> bool:
        return False

    async with pair(authorize=nobody) as both:
        with pytest.raises(ConnectError) as caught:
            await both.alice.connect(both.bob.address, plugin=["direct_connect"])
        assert caught.value.verdict is Verdict.REFUSED


@pytest.mark.slow("a hundred times two connects, about 15 ms each")
async def test_glare() -> None:
    """Both nodes call each other at the same moment: each time two sessions and two Pipes, and no deadlock."""
    async with (
        open_rendezvous() as server,
        loopback_node(BOB, config(server), authorize=anyone) as bob,
        loopback_node(ALICE, config(server), authorize=anyone) as alice,
    ):
        await alice.wait_signals()
        await bob.wait_signals()
        made: list[Pipe] = []

        async def call(ours: Node, theirs: Node) -> None:
            made.append(await ours.auto_connect(theirs.address))

        with trio.fail_after(60):
            for _ in range(100):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(call, alice, bob)
                    nursery.start_soon(call, bob, alice)
                made += [await alice.listener.accept(), await bob.listener.accept()]
                assert len(made) == 4
                for pipe in made:
                    await pipe.aclose()
                made.clear()


@pytest.mark.slow("ten walks at once on one core")
async def test_ten_calls_at_once_give_ten_pipes() -> None:
    async with pair() as both:
        ours: list[Pipe] = []

        async def call() -> None:
            ours.append(await both.alice.auto_connect(both.bob.address))

        with trio.fail_after(HANG):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(call)
            theirs = [await both.bob.listener.accept() for _ in range(10)]
        for number, pipe in enumerate(ours):
            await pipe.send_all(bytes([number]))
        heard = {await pipe.receive_some() for pipe in theirs}
        assert heard == {bytes([number]) for number in range(10)}
        with trio.move_on_after(0.02):
            await both.bob.listener.accept()
            pytest.fail("an eleventh Pipe")
        for pipe in (*ours, *theirs):
            await pipe.aclose()
