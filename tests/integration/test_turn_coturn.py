"""Relays at coturn, a third-party server: over UDP, TCP and TLS, to IPv4 and IPv6, with a Pipe's carrier on top."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.certificates import Authority
from tests.coturn import Relay, coturn_relay
from tests.hangs import HANG
from tests.identities import BOB
from tests.links import close_carriers, receive_exactly
from tests.paths import SocketPath
from tests.ports import free_port
from tests.requirements import unmet
from tests.waiting import wait_until
from warpgate_trio.carrier.quic import QuicCarrier
from warpgate_trio.config.server_url import TurnServer
from warpgate_trio.errors import StunError, StunRefused
from warpgate_trio.names import Names
from warpgate_trio.ports.datagrams import DatagramSocket
from warpgate_trio.turn.framing import is_channel_data
from warpgate_trio.turn.relays import Relays

pytestmark = pytest.mark.needs("linux", "turnserver", "ipv6")

HOSTS = {4: "127.0.0.1", 6: "::1"}
Started = tuple[Relay, ssl.SSLContext]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    if unmet("linux") or unmet("turnserver"):
        pytest.skip("said by the marker")
    folder = tmp_path_factory.mktemp("relay")
    authority = Authority(folder)
    authority.server("127.0.0.1")
    with coturn_relay(folder, certificate=folder / "127.0.0.1.pem") as relay:
        yield relay, authority.client()


@asynccontextmanager
async def open_relays(
    *urls: str, trust: Callable[[], ssl.SSLContext] = ssl.create_default_context, password: str = "secret"
) -> AsyncGenerator[Relays]:
    names = Names()
    made = Relays([TurnServer(url, "user", password) for url in urls], names=names, trust=trust)
    async with names.running(), trio.open_nursery() as nursery:
        async with made.running(nursery):
            yield made
    assert len(made) == 0


def url(relay: Relay, how: str) -> str:
    host = "[::1]" if how.endswith("6") else "127.0.0.1"
    form = {"udp": "turn:{}:{}", "tcp": "turn:{}:{}?transport=tcp", "tls": "turns:{}:{}"}[how[:3]]
    return form.format(host, relay.port)


@pytest.mark.slow("several round trips of another program, and TLS")
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("how", ["udp4", "udp6", "tcp4", "tcp6", "tls4"])
async def test_quic_runs_over_a_relay(started: Started, how: str, family: int) -> None:
    relay, trust = started
    with trio.fail_after(HANG):
        async with open_relays(url(relay, how), trust=lambda: trust) as relays:
            port = await relays.open(6 if family == 6 else 4)
            assert port.local[0] == HOSTS[family]
            assert list(port.mapped.values()) == [port.local]
            peer = SocketPath(await DatagramSocket.bind((HOSTS[family], 0)), port.local)
            carriers: list[QuicCarrier] = []

            async def serve() -> None:
                carriers.append(await QuicCarrier.serve(peer, BOB))
                carriers[0].feed(b"x" * 300_000)
                await carriers[0].flush()
                await carriers[0].receive()  # a waiting reader drives the carrier, which repairs losses

            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                carrier = await QuicCarrier.dial(port.open_path(peer.sock.local), peer_key=BOB.public_key)
                assert await receive_exactly(carrier, 300_000) == b"x" * 300_000
                nursery.cancel_scope.cancel()
            close_carriers(carrier, *carriers)
            port.release()


@pytest.mark.slow("several round trips of another program")
async def test_the_channel_is_there_before_the_first_full_packet(started: Started) -> None:
    relay, _ = started
    with trio.fail_after(HANG):
        async with open_relays(url(relay, "udp4")) as relays:
            port = await relays.open()
            sent: list[bytes] = []
            real = port._transport.send

            async def send(messages: list[bytes]) -> None:
                sent.extend(messages)
                await real(messages)

            port._transport.send = send  # type: ignore[assignment, method-assign]
            peer = await DatagramSocket.bind(("127.0.0.1", 0))
            path = port.open_path(peer.local)
            await path.send([bytes(1200)])
            assert (await peer.receive_batch())[0][0] == bytes(1200)
            data = [each for each in sent if len(each) > 1000]
            assert len(data) == 1
            assert is_channel_data(data[0])
            assert len(data[0]) == 1204
            peer.close()
            port.release()


@pytest.mark.slow("several round trips of another program")
@pytest.mark.parametrize("how", ["udp4", "tcp4"])
async def test_probes_are_heard_from_a_port_that_nobody_told(started: Started, how: str) -> None:
    relay, _ = started
    probe = bytes([0, 1, 0, 0]) + b"\x21\x12\xa4\x42" + bytes(12)
    with trio.fail_after(HANG):
        async with open_relays(url(relay, how)) as relays:
            port = await relays.open()
            await port.wait_settled(port.permit_nowait(["127.0.0.1"]))
            port.listen_for_probes(lambda data, source: [(data + b"", source)])
            peer = await DatagramSocket.bind(("127.0.0.1", 0))
            await peer.send_batch([(probe, port.local)])
            assert await peer.receive_batch() == [(probe, port.local)]
            peer.close()
            port.release()


@pytest.mark.slow("waits for coturn to give back a quota")
@pytest.mark.parametrize("how", ["udp4", "tcp4"])
async def test_a_released_relay_is_free_for_the_next(tmp_path: Path, how: str) -> None:
    with coturn_relay(tmp_path, "user-quota=1") as relay, trio.fail_after(HANG):
        async with open_relays(url(relay, how)) as relays:
            port = await relays.open()
            with pytest.raises(StunError, match="486 Allocation Quota Reached"):
                await relays.open()
            port.release()
            while True:
                try:
                    (await relays.open()).release()
                    break
                except StunError:
                    await trio.sleep(0.2)


@pytest.mark.slow("starts coturn twice, and waits for silence")
async def test_a_restarted_relay_is_noticed_by_the_silence_after_a_datagram(tmp_path: Path) -> None:
    with coturn_relay(tmp_path) as relay, trio.fail_after(HANG):
        async with open_relays(url(relay, "udp4")) as relays:
            port = await relays.open()
            path = port.open_path(("127.0.0.1", 9))
            await path.send([b"x"])
            await wait_until(lambda: port._bound[path.remote].granted)
            relay.kill()
            await trio.to_thread.run_sync(relay.start)
            await path.send([b"PING"])
            with pytest.raises(trio.BrokenResourceError, match="437"):
                await path.receive()


@pytest.mark.slow("starts coturn twice")
@pytest.mark.parametrize("how", ["udp4", "tcp4"])
async def test_a_relay_that_was_restarted_breaks_its_paths_when_asked(tmp_path: Path, how: str) -> None:
    with coturn_relay(tmp_path) as relay, trio.fail_after(HANG):
        async with open_relays(url(relay, how)) as relays:
            port = await relays.open()
            path = port.open_path(("127.0.0.1", 9))
            await path.send([b"x"])
            await wait_until(lambda: port._bound[path.remote].granted)
            relay.kill()
            await trio.to_thread.run_sync(relay.start)
            port.check()
            why = "437" if how == "udp4" else "connection .* broke"
            with pytest.raises(trio.BrokenResourceError, match=why):
                await path.receive()
            assert port.closed


@pytest.mark.slow("several round trips of another program")
async def test_a_wrong_password_says_so(started: Started) -> None:
    relay, _ = started
    with trio.fail_after(HANG):
        async with open_relays(url(relay, "udp4"), password="wrong") as relays:
            with pytest.raises(StunError, match="401 Unauthorized"):
                await relays.open()


@pytest.mark.slow("several round trips of another program")
async def test_dead_servers_are_passed_by(started: Started) -> None:
    relay, _ = started
    with trio.fail_after(HANG):
        dead = free_port()
        async with open_relays(
            f"turn:127.0.0.1:{dead}", f"turn:127.0.0.1:{dead}?transport=tcp", url(relay, "udp4")
        ) as relays:
            port = await relays.open()
            assert port.name == url(relay, "udp4")
            port.release()


@pytest.mark.slow("starts coturn twice")
async def test_another_server_is_followed_once(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    with coturn_relay(other) as good, trio.fail_after(HANG):
        with coturn_relay(one, f"alternate-server=127.0.0.1:{good.port}") as sends_on:
            async with open_relays(url(sends_on, "udp4"), url(sends_on, "tcp4")) as relays:
                port = await relays.open()
                assert next(iter(port.mapped))[1] == good.port
                port.release()
        with coturn_relay(one, "alternate-server=192.168.77.1:3478") as sends_astray:
            async with open_relays(url(sends_astray, "udp4")) as relays:
                with pytest.raises(StunError, match="300"):
                    await relays.open()


@pytest.mark.slow("starts coturn")
async def test_403_is_said_of_the_one_peer(tmp_path: Path) -> None:
    with coturn_relay(tmp_path, "denied-peer-ip=198.51.100.7") as relay, trio.fail_after(HANG):
        async with open_relays(url(relay, "udp4")) as relays:
            port = await relays.open(permit=["198.51.100.7", "127.0.0.1"])
            bad, good = grants = port.permit_nowait(["198.51.100.7", "127.0.0.1"])
            await port.wait_settled(grants)
            assert good.granted
            assert isinstance(bad.error, StunRefused)
            assert bad.error.code == 403
            port.release()


@pytest.mark.slow("several round trips of another program")
async def test_a_primed_socket_is_the_one_that_allocates(started: Started) -> None:
    relay, _ = started
    with trio.fail_after(HANG):
        async with open_relays(url(relay, "udp4"), url(relay, "tcp4")) as relays:
            await relays.prime()
            assert len(relays) == 2
            port = await relays.open()
            assert len(relays) == 2
            port.release()
