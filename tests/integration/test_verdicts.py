"""Every verdict, end to end: the circumstances in which a walk ends with it."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest
import trio

from tests.identities import ALICE, BOB, CAROL
from tests.links import link_of
from tests.nodes import QUICK, LoopbackHost, address_of, closed_port, config, loopback_node, pair
from tests.turn_servers import open_servers
from tests.waiting import wait_until
from warpgate_strategies.turn import Turn
from warpgate_trio import EXT_BIND, ConnectError, PeerRefused, Verdict, anyone
from warpgate_trio.carrier import TlsCarrier, TlsContexts
from warpgate_trio.config import Budgets, ServerUrl
from warpgate_trio.errors import CarrierError, RelayForbidden
from warpgate_trio.link import Link, RefuseReason
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.report import ADVICE, BETTER_ADVICE, Known, Outcome, WalkEvent
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.signal import SignalHub

pytestmark = pytest.mark.usefixtures("jumping_clock")


@asynccontextmanager
async def expect(
    verdict: Verdict, *, advice: str | None = None, lacks: tuple[str, ...] | None = None
) -> AsyncGenerator[None]:
    with pytest.raises(ConnectError) as caught:
        yield
    report = caught.value.report
    assert caught.value.verdict is report.verdict is verdict, report
    assert caught.value.advice == (advice or ADVICE[verdict])
    if lacks is not None:
        assert [have[: len(start)] for have, start in zip(report.lacks, lacks, strict=True)] == list(lacks)
    assert str(caught.value).startswith(verdict.value)
    msgspec.json.encode(report)
    assert report.winner is None
    assert all(combo.cleanup_ms is None or combo.cleanup_ms < 1000 for combo in report.combos), report


@asynccontextmanager
async def impostor(serve: Callable[[trio.socket.SocketType], Awaitable[None]]) -> AsyncGenerator[int]:
    """A TCP server on loopback in place of Bob's node; yields its port."""
    listener = trio.socket.socket()
    await listener.bind(("127.0.0.1", 0))
    listener.listen(16)

    async def one(sock: trio.socket.SocketType) -> None:
        try:
            await serve(sock)
        except (OSError, trio.BrokenResourceError, CarrierError):
            pass
        finally:
            sock.close()

    async with open_background_nursery() as nursery:

        async def accept() -> None:
            with suppress(trio.ClosedResourceError):
                while True:
                    sock, _ = await listener.accept()
                    nursery.start_soon(one, sock)

        nursery.start_soon(accept)
        try:
            yield listener.getsockname()[1]
        finally:
            listener.close()


async def committed(sock: trio.socket.SocketType) -> Link:
    """Bob's side by hand, up to the COMMIT."""
    link = await Link.receive_proof(await TlsCarrier.serve(sock, TlsContexts(BOB)))
    link.set_role(initiator=False)
    await link.receive_commit()
    return link


async def test_connected() -> None:
    async with pair() as both:
        async with await both.alice.auto_connect(both.bob.address, afs=[4]) as pipe:
            report = pipe.report
            assert report is not None
            assert report.verdict is Verdict.CONNECTED
            assert report.winner is not None
            assert report.winner.plugin == pipe.path.plugin == "direct_connect"
            relays = {"turn", "ws_relay"}
            others = {c.outcome for c in report.combos if c.plugin not in relays}
            assert others <= {Outcome.WON, Outcome.LOST, Outcome.NOT_STARTED}
            assert [c.outcome for c in report.combos if c.plugin in relays] == [
                Outcome.HOPELESS
            ] * 2  # no server relays
            assert report.peer == both.bob.peer_id
            msgspec.json.encode(report)


async def test_refused_on_the_link() -> None:
    async def nobody(peer_id: str) -> bool:
        assert peer_id == ALICE.peer_id
        return False

    async with pair(authorize=nobody) as both, expect(Verdict.REFUSED, lacks=()):
        await both.alice.connect(both.bob.address, plugin="direct_connect")


@pytest.mark.parametrize("listens", [True, False])
async def test_who_is_not_let_in_hears_nothing_by_signal(listens: bool) -> None:
    """Any answer would carry the present address."""

    async def nobody(_: str) -> bool:
        return False

    async with pair(authorize=nobody if listens else None, budgets=QUICK) as both, expect(Verdict.PEER_SILENT):
        await both.alice.auto_connect(both.bob.address, plugins=["reverse_connect"])


async def test_an_authorize_that_fails_or_dawdles_is_a_no(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_: str) -> bool:
        raise RuntimeError("the user's own bug")

    async with pair(authorize=broken, budgets=QUICK) as both, expect(Verdict.REFUSED):
        await both.alice.auto_connect(both.bob.address)
    assert "the user's own bug" in caplog.text

    async def dawdling(_: str) -> bool:
        await trio.sleep_forever()
        return True

    async with pair(authorize=dawdling, budgets=QUICK) as both, expect(Verdict.REFUSED):
        await both.alice.auto_connect(both.bob.address)


async def test_not_accepting() -> None:
    async with pair(authorize=None) as both, expect(Verdict.NOT_ACCEPTING):
        await both.alice.connect(both.bob.address, plugin="direct_connect")


async def test_not_accepting_after_the_listener_was_closed() -> None:
    async with pair() as both:
        await both.bob.listener.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await both.bob.listener.accept()
        async with expect(Verdict.NOT_ACCEPTING):
            await both.alice.auto_connect(both.bob.address)


async def test_busy() -> None:
    async with pair() as both:
        async with await both.alice.auto_connect(both.bob.address) as pipe:
            opened = []
            with pytest.raises(PeerRefused) as refused:
                for _ in range(100):
                    opened.append(await pipe.open_pipe())
            assert refused.value.reason == RefuseReason.BUSY
            assert len(opened) == 63  # together with the first, as many as may wait for accept()
            async with expect(Verdict.BUSY):
                await both.alice.auto_connect(both.bob.address)


async def test_busy_with_the_one_peer_that_is_served() -> None:
    """The advice is not to try again in a moment, since that would not help."""
    async with pair() as both, await both.alice.auto_connect(both.bob.address):
        both.bob.listener.close_nowait(RefuseReason.TAKEN)
        async with expect(Verdict.BUSY, advice=BETTER_ADVICE[Verdict.BUSY, Known.TAKEN]):
            await both.alice.auto_connect(both.bob.address)


async def test_unsupported() -> None:
    async def serve(sock: trio.socket.SocketType) -> None:
        await (await committed(sock)).refuse(RefuseReason.UNSUPPORTED)

    async with impostor(serve) as port, loopback_node(ALICE, config()) as alice, expect(Verdict.UNSUPPORTED):
        await alice.auto_connect(address_of(BOB, port=port))


async def test_a_refusal_of_a_later_version_is_a_refusal() -> None:
    async def serve(sock: trio.socket.SocketType) -> None:
        await (await committed(sock)).refuse(99)  # type: ignore[arg-type]

    async with impostor(serve) as port, loopback_node(ALICE, config()) as alice, expect(Verdict.NOT_ACCEPTING):
        await alice.auto_connect(address_of(BOB, port=port))


async def test_wrong_peer() -> None:
    """Carol answers on a port that was Bob's."""
    async with (
        loopback_node(CAROL, config(), authorize=anyone) as carol,
        loopback_node(ALICE, config()) as alice,
    ):
        port = next(endpoint.port for _, endpoint in carol.address.endpoints())
        async with expect(Verdict.WRONG_PEER):
            await alice.auto_connect(address_of(BOB, port=port))


async def test_nothing_to_try() -> None:
    async with pair() as both, expect(Verdict.NOTHING_TO_TRY):
        await both.alice.auto_connect(both.bob.address, route_types=[EXT_BIND], phases=["direct"])


async def test_no_signal() -> None:
    dead = f"ws://127.0.0.1:{await closed_port()}"
    lacks = (f"no signal server is connected: {dead}: ",)
    async with loopback_node(ALICE, config(dead, budgets=QUICK)) as alice, expect(Verdict.NO_SIGNAL, lacks=lacks):
        await alice.auto_connect(address_of(BOB, port=await closed_port(), signals=[dead]), phases=["direct"])


async def test_no_signal_without_any_server() -> None:
    advice = BETTER_ADVICE[Verdict.NO_SIGNAL, Known.NO_SIGNAL_HERE]
    lacks = ("no signal server is configured here", "no STUN server is configured here")
    async with loopback_node(ALICE, config(budgets=QUICK)) as alice:
        async with expect(Verdict.NO_SIGNAL, advice=advice, lacks=lacks):
            await alice.auto_connect(address_of(BOB, port=await closed_port()))


class NoNames(trio.abc.HostnameResolver):
    async def getaddrinfo(self, *_: object, **__: object) -> NoReturn:
        await trio.lowlevel.checkpoint()
        raise trio.socket.gaierror(trio.socket.EAI_AGAIN, "Temporary failure in name resolution")

    async def getnameinfo(self, *_: object) -> NoReturn:
        raise NotImplementedError


async def test_no_dns() -> None:
    trio.socket.set_custom_hostname_resolver(NoNames())
    dead = "ws://server.example"
    async with loopback_node(ALICE, config(dead, budgets=QUICK)) as alice:
        await wait_until(lambda: alice.signal_servers[0].last_error is not None)
        async with expect(Verdict.NO_DNS, lacks=(f"no signal server is connected: {dead}: ",)):
            await alice.auto_connect(address_of(BOB, port=await closed_port(), signals=[dead]), phases=["direct"])


async def test_peer_offline() -> None:
    async with open_rendezvous() as server, loopback_node(ALICE, config(server, budgets=QUICK)) as alice:
        await alice.wait_signals()
        async with expect(Verdict.PEER_OFFLINE):
            await alice.auto_connect(address_of(BOB, port=await closed_port()))


@asynccontextmanager
async def mute_bob(url: str) -> AsyncGenerator[SignalHub]:
    """Bob is registered, takes messages, and answers none."""
    hub = SignalHub(BOB, [ServerUrl.parse(url)])
    async with open_background_nursery() as nursery:
        await nursery.start(hub.run)
        await hub.wait_connected()
        yield hub


async def test_peer_silent() -> None:
    async with open_rendezvous() as server, loopback_node(ALICE, config(server, budgets=QUICK)) as alice:
        await alice.wait_signals()
        async with mute_bob(f"ws://127.0.0.1:{server.port}"), expect(Verdict.PEER_SILENT):
            await alice.auto_connect(address_of(BOB, port=await closed_port()), phases=["direct"])


async def test_no_relay_configured() -> None:
    """Bob answers signals and dials, but neither side can be dialled, and punching fails as well."""
    async with pair() as both:  # with the usual time for Bob's answer; all attempts fail at once
        for node in (both.alice, both.bob):
            for sock in node._runtime._sockets:
                sock.close()
        async with expect(Verdict.NO_RELAY_CONFIGURED):
            await both.alice.auto_connect(both.bob.address, phases=["direct"])


async def test_relay_failed() -> None:
    async with open_servers() as (server,), pair(turn=[f"turn:user:secret@{server.url[5:]}"]) as both:
        server.code = 486
        for node in (both.alice, both.bob):
            for sock in node._runtime._sockets:
                sock.close()
        async with expect(Verdict.RELAY_FAILED):
            await both.alice.auto_connect(both.bob.address, phases=["direct", "relay"])


async def test_relay_forbids(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(plugin: Turn, reply: object = None) -> NoReturn:
        raise RelayForbidden("the server forbids it")

    monkeypatch.setattr(Turn, "run", run)
    async with open_servers() as (server,), pair(turn=[f"turn:user:secret@{server.url[5:]}"]) as both:
        async with expect(Verdict.RELAY_FORBIDS):
            await both.alice.auto_connect(both.bob.address, phases=["relay"])


async def test_broke_off() -> None:
    async def serve(sock: trio.socket.SocketType) -> None:
        (await committed(sock)).close_nowait()

    async with impostor(serve) as port, loopback_node(ALICE, config()) as alice, expect(Verdict.BROKE_OFF):
        await alice.auto_connect(address_of(BOB, port=port))


async def test_broke_off_by_silence_after_the_commit() -> None:
    async def serve(sock: trio.socket.SocketType) -> None:
        await committed(sock)
        await trio.sleep_forever()

    async with (
        impostor(serve) as port,
        loopback_node(ALICE, config(budgets=Budgets(commit=0.1))) as alice,
        expect(Verdict.BROKE_OFF),
    ):
        await alice.auto_connect(address_of(BOB, port=port))


async def test_timed_out() -> None:
    """Something accepts the connection and never sends anything."""

    async def serve(_: trio.socket.SocketType) -> None:
        await trio.sleep_forever()

    async with impostor(serve) as port, loopback_node(ALICE, config()) as alice:
        with trio.fail_after(5):
            async with expect(Verdict.TIMED_OUT):
                await alice.auto_connect(address_of(BOB, port=port), timeout=0.1)


async def test_unreachable() -> None:
    async with loopback_node(ALICE, config()) as alice, expect(Verdict.UNREACHABLE):
        await alice.connect(address_of(BOB, port=await closed_port()), plugin="direct_connect")


async def test_a_clock_that_is_off_is_corrected() -> None:
    async with (
        open_rendezvous() as server,
        loopback_node(BOB, config(server), authorize=anyone) as bob,
        loopback_node(ALICE, config(server), host=LoopbackHost(skew=3600)) as alice,
    ):
        await alice.wait_signals()
        await bob.wait_signals()
        # The clocks are an hour apart: Bob tells Alice his time, she corrects hers and gets through.
        async with await alice.connect(bob.address, plugin="reverse_connect") as pipe:
            assert pipe.report is not None
            assert pipe.report.notes == ("our clock and the peer's differ; the signals were corrected",)


async def test_clock_off() -> None:
    """The peer's clock is moved after the peer has told its time, and before the second try."""
    host = LoopbackHost()

    def leap(event: WalkEvent) -> None:
        if event.kind == "note":
            host.skew = 3600

    async with (
        open_rendezvous() as server,
        loopback_node(BOB, config(server), authorize=anyone, host=host) as bob,
        loopback_node(ALICE, config(server, budgets=QUICK), host=LoopbackHost(skew=3600)) as alice,
    ):
        await alice.wait_signals()
        await bob.wait_signals()
        async with expect(Verdict.CLOCK_OFF):
            await alice.auto_connect(bob.address, plugins=["reverse_connect"], on_event=leap)


async def test_what_cannot_be_tried_is_an_error_and_no_verdict() -> None:
    async with loopback_node(ALICE, config()) as alice:
        own = alice.address
        with pytest.raises(ValueError, match="own address"):
            await alice.auto_connect(own)
        with pytest.raises(ValueError, match="no plugin 'nonsense'"):
            await alice.connect(address_of(BOB, port=1), plugin="nonsense")
        with pytest.raises(ValueError, match="no plugin 'nonsense'"):
            await alice.auto_connect(address_of(BOB, port=1), plugins=["nonsense"])
        with pytest.raises(ValueError, match="no phase 'nonsense'"):
            await alice.auto_connect(address_of(BOB, port=1), phases=["nonsense"])  # type: ignore[list-item]
        with pytest.raises(ValueError, match="early_data"):
            await alice.auto_connect(address_of(BOB, port=1), early_data=bytes(65537))


async def test_no_better_path() -> None:
    """No path is better than loopback; the Pipe goes on."""
    async with pair() as both, await both.alice.auto_connect(both.bob.address) as pipe:
        async with await both.bob.listener.accept() as theirs:
            await wait_until(lambda: link_of(pipe).movable)
            async with expect(Verdict.NO_BETTER_PATH):
                await pipe.migrate()
            await pipe.send_all(b"x")
            assert await theirs.receive_some() == b"x"


def test_every_verdict_is_produced_here() -> None:
    """`expect` checks each verdict; this test checks that none was left out."""
    source = Path(__file__).read_text(encoding="utf-8")
    expected = set(re.findall(r"expect\(Verdict\.(\w+)[,)]", source))
    assert expected == {verdict.name for verdict in Verdict} - {"CONNECTED"}
    assert "report.verdict is Verdict.CONNECTED" in source
