"""What a node reports about itself: counters, logs without secrets, events."""

from __future__ import annotations

import base64
import logging
from pathlib import Path
from urllib.parse import quote

import msgspec
import pytest
import trio
import trio.testing

from tests.certificates import Authority
from tests.hangs import HANG
from tests.identities import ALICE, ALICE_SEED, BOB, BOB_SEED
from tests.links import link_of
from tests.nodes import LoopbackHost, config, echo, loopback_node, on_host, pair
from tests.servers_mqtt import PASSWORD, USER, make_mosquitto
from tests.servers_mqtt import libraries as libraries
from tests.waiting import wait_until
from warpgate_strategies.direct_connect import DirectConnect
from warpgate_strategies.reverse_connect import ReverseConnect
from warpgate_trio import ConnectError, Identity, Node, NodeConfig, Servers, anyone
from warpgate_trio.cli.options import Settings
from warpgate_trio.cli.ping import PathKind, _ping
from warpgate_trio.config import IdentityConfig
from warpgate_trio.link.life import Life
from warpgate_trio.report import WalkEvent
from warpgate_trio.servers.rendezvous import open_rendezvous

pytestmark = pytest.mark.usefixtures("jumping_clock")


async def test_stats_count_and_are_frozen() -> None:
    async def only_alice(peer_id: str) -> bool:
        return peer_id == ALICE.peer_id

    async with pair(authorize=only_alice) as both:
        before = both.bob.stats()
        async with await both.alice.auto_connect(both.bob.address) as pipe:
            async with await pipe.open_pipe():
                await wait_until(lambda: not both.bob.stats().attempts)  # Alice may also have asked to be called back
                stats = both.bob.stats()
                assert (stats.pipes_accepted, stats.links, stats.waiting_pipes, stats.attempts) == (2, 1, 2, 0)
                assert both.alice.stats().pipes_made == 1
        async with loopback_node(Identity.generate(), config(both.server)) as stranger:
            await stranger.wait_signals()
            for plugin in ("direct_connect", "reverse_connect"):
                with pytest.raises(ConnectError):
                    await stranger.connect(both.bob.address, plugin=plugin, af=4, timeout=0.2)
            assert stranger.stats().walks == {"refused": 1, "timed_out": 1}
        stats = both.bob.stats()
        assert stats.refused == {"unauthorized": 1, "not_authorized": 1}
        assert stats.signals["Accepted"] >= 1
        assert before.pipes_accepted == 0  # it was a snapshot
        with pytest.raises(AttributeError):
            stats.links = 7  # type: ignore[misc]
        assert both.bob.peer_id.encode() not in msgspec.json.encode(stats)


async def test_failed_handshakes_are_counted() -> None:
    async with loopback_node(BOB, config(), authorize=anyone) as bob:
        port = next(endpoint.port for _, endpoint in bob.address.endpoints())
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"no TLS at all")
            await stream.receive_some()
        await wait_until(lambda: bob.stats().handshakes_failed)
        assert bob.stats().handshakes == 0


async def test_events_tell_the_walk_as_it_happens() -> None:
    events: list[WalkEvent] = []
    async with pair() as both:
        # A single phase lasts as long as it needs; with several, a busy machine may get to the next one.
        async with await both.alice.auto_connect(both.bob.address, phases=["direct"], on_event=events.append) as pipe:
            assert pipe.report is not None
    assert [event.phase for event in events if event.kind == "phase"] == ["direct"]
    assert [event.at_ms for event in events] == sorted(event.at_ms for event in events)
    started = [event.combo for event in events if event.kind == "combo_started"]
    ended = [event.combo for event in events if event.kind == "combo_ended"]
    assert len(started) == len(ended)
    assert [combo.outcome.value for combo in ended if combo is not None].count("won") == 1


async def test_events_and_counters_tell_what_becomes_of_the_path() -> None:
    """`on_event` also gets the events after the walk, as long as the Link lives; both nodes count them."""
    events: list[WalkEvent] = []
    async with pair() as both:
        ours = await both.alice.connect(both.bob.address, plugin="direct_connect", af=4, on_event=events.append)
        theirs = await both.bob.listener.accept()
        async with ours, theirs:
            walk = len(events)
            assert walk
            await wait_until(lambda: link_of(theirs).protocol.movable)
            link_of(ours).carrier.close_nowait()
            with trio.fail_after(HANG):
                await ours.send_all(b"on the next path")
                assert await theirs.receive_some() == b"on the next path"
            await wait_until(lambda: ours.search_report is not None)
            lost, found = (event.path for event in events[walk:] if event.kind == "path")
            assert lost is not None
            assert found is not None
            (search,) = (event.report for event in events[walk:] if event.kind != "path")
            assert search is not None
            assert search.winner is not None
            assert (search, search.winner.plugin) == (ours.search_report, "direct_connect")
            assert [event.at_ms for event in events] == sorted(event.at_ms for event in events)
            assert (lost.cause, lost.new, found.cause, found.old) == ("lost", None, "found", None)
            assert lost.old is not None
            assert lost.old == found.new
            assert (lost.old.phase, lost.old.plugin, lost.old.route) == ("direct", "direct_connect", "LOOPBACK_BIND")
            assert lost.old.state == "live"
            alice, bob = both.alice.stats(), both.bob.stats()
            assert (alice.switches, alice.false_alarms, bob.switches, bob.false_alarms) == (1, 0, 1, 0)
            assert alice.searches >= 1
            await trio.testing.wait_all_tasks_blocked()
            link_of(ours).protocol.life.life = Life.SUSPECT
            link_of(ours).hint()
            await ours.ping()
            assert both.alice.stats().false_alarms == 1
            assert both.alice.stats().switches == 1
            heard = len(events)
        assert len(events) == heard


async def everything(server_url: str, bob: Node, alice: Node) -> None:
    """A run that uses everything that logs."""
    for plugin in ("direct_connect", "reverse_connect"):
        async with await alice.connect(bob.address, plugin=plugin, af=4, early_data=b"PAYLOAD-EARLY") as pipe:
            await pipe.send_all(b"PAYLOAD-SENT")
            await pipe.send_eof()
            assert b"".join([data async for data in pipe]) == b"PAYLOAD-EARLYPAYLOAD-SENT"
    await alice.refresh_address(bob.address)
    await alice.announce_address(bob.address)


async def test_a_debug_log_holds_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    """No key, payload or password, in any form in which it could get into a line."""
    caplog.set_level(logging.DEBUG)
    secrets = [
        b"PAYLOAD-EARLY",
        b"PAYLOAD-SENT",
        b"hunter2",
        b"user:hunter2",
    ]  # the last one is the form that HTTP sends
    for identity, seed in ((ALICE, ALICE_SEED), (BOB, BOB_SEED)):
        assert Identity.from_seed(seed).peer_id == identity.peer_id
        pem = identity.private_key_pem()
        secrets += [seed, pem, pem.splitlines()[1]]
    async with open_rendezvous() as server:
        url = f"ws://user:hunter2@127.0.0.1:{server.port}"
        async with (
            loopback_node(BOB, config(url), authorize=anyone) as bob,
            loopback_node(ALICE, config(url)) as alice,
            trio.open_nursery() as nursery,
        ):
            await alice.wait_signals()
            await bob.wait_signals()
            nursery.start_soon(trio.serve_listeners, echo, [bob.listener])
            await everything(url, bob, alice)
            logging.getLogger("warpgate_trio").debug("%r %r %r", alice, alice.signal_servers, alice.plugins)
            nursery.cancel_scope.cancel()
    find_secrets(caplog, secrets)


@pytest.mark.needs("mosquitto")
@pytest.mark.slow("a broker with TLS and a password file, and four TLS handshakes with it")
async def test_a_debug_log_of_mqtt_holds_no_secret(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """The same with a broker that requires TLS and a login, and again with a login that it refuses."""
    caplog.set_level(logging.DEBUG)
    authority = Authority(tmp_path)
    broker = make_mosquitto(tmp_path, tls=authority, password=True)
    try:
        broker.start()
        for password in (PASSWORD, "another-secret"):
            login = f"{USER}:{quote(password, safe='')}"
            url = str(broker.url).replace("//", f"//{login}@")
            servers = Servers(mqtt=[url], ca_file=authority.ca_file)
            async with (
                loopback_node(BOB, NodeConfig(servers=servers), authorize=anyone) as bob,
                loopback_node(ALICE, NodeConfig(servers=servers)) as alice,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(trio.serve_listeners, echo, [bob.listener])
                if password == PASSWORD:
                    await alice.wait_signals()
                    await bob.wait_signals()
                    await everything(url, bob, alice)
                else:
                    await wait_until(lambda: any(each.last_error for each in alice.signal_servers))
                logging.getLogger("warpgate_trio").debug("%r %r", alice.signal_servers, alice.address)
                assert password not in str(alice.address)
                nursery.cancel_scope.cancel()
    finally:
        broker.kill()
    secrets = [b"PAYLOAD-EARLY", b"PAYLOAD-SENT", PASSWORD.encode(), quote(PASSWORD, safe="").encode()]
    find_secrets(caplog, [*secrets, b"another-secret", ALICE_SEED, ALICE.private_key_pem()])


def find_secrets(caplog: pytest.LogCaptureFixture, secrets: list[bytes]) -> None:
    """Checks that none of the secrets is in the log, in any form."""
    log = "\n".join(record.getMessage() + str(record.exc_text or "") for record in caplog.records)
    assert "warpgate_trio" in {record.name.partition(".")[0] for record in caplog.records}
    for secret in secrets:
        forms = (
            secret.decode("latin-1"),
            repr(secret)[2:-1],
            secret.hex(),
            base64.b64encode(secret).decode().rstrip("="),
        )
        for form in forms:
            assert form not in log, form


@pytest.mark.parametrize(("phase", "code"), [("direct", 0), ("relay", 1)])
async def test_ping_exits_with_the_kind_of_path(phase: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code 2, no path at all, is tested in `test_connect_and_listen.py`."""
    for plugin in (DirectConnect, ReverseConnect):
        monkeypatch.setattr(plugin, "phase", phase)
    async with loopback_node(BOB, config(), authorize=anyone) as bob, on_host(LoopbackHost()):
        caller = NodeConfig(servers=Servers(), identity=IdentityConfig(ephemeral=True))
        assert await _ping(Settings(quiet=True), caller, str(bob.address), 1, 0, 2) == PathKind(code) == code
