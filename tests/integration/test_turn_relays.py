"""The relays of a node, with a small server of ours: cancelled at any step, they leave no allocation behind."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import NoReturn

import pytest
import trio
import trio.testing

from tests.cancel_sweep import cuts
from tests.hangs import HANG
from tests.panicking import PanicException
from tests.turn_model import ModelServer
from tests.turn_servers import UdpServer, open_servers
from warpgate_trio.config import Proxies, ServerUrl, TurnServer
from warpgate_trio.errors import ConfigError, StunError
from warpgate_trio.names import Names
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.stun.transaction import binding_request
from warpgate_trio.turn import relay_port as relay_port_module
from warpgate_trio.turn.client_core import TurnClientCore
from warpgate_trio.turn.framing import TurnStreamReader, encode_channel_data
from warpgate_trio.turn.relays import Relays
from warpgate_trio.turn.transport import StreamTransport

BINDING = binding_request(bytes(12))


@asynccontextmanager
async def open_relays(servers: list[UdpServer]) -> AsyncGenerator[Relays]:
    names = Names()
    relays = Relays([TurnServer(each.url, "user", "secret") for each in servers], names=names)
    async with names.running(), trio.open_nursery() as nursery:
        async with relays.running(nursery):
            yield relays
    assert len(relays) == 0


async def settle(over: Callable[[], bool]) -> None:
    """Waits until `over()` is true, while other tasks run and the kernel passes data between them."""
    while not over():
        await trio.testing.wait_all_tasks_blocked(0.001)


@asynccontextmanager
async def open_stream_server(says: bytes) -> AsyncGenerator[str]:
    """The URL of a TURN server over TCP that sends `says` and closes, once it has bound a channel.

    A whole datagram, in a segment of its own, comes before that.
    """

    async def serve(stream: trio.SocketStream) -> None:
        model, reader = ModelServer(), TurnStreamReader(most=65_536)
        with suppress(trio.BrokenResourceError):
            async for data in stream:
                for message in reader.feed(bytes(data)):
                    answer = model.receive(message, trio.current_time())
                    await stream.send_all(answer or b"")
                if model.channels:
                    await stream.send_all(encode_channel_data(0x4000, b"whole", padded=True))
                    await trio.testing.wait_all_tasks_blocked()
                    await stream.send_all(says)
                    break
            await stream.send_eof()
            async for _ in stream:  # until the other side ends: closing with unread data would be a reset
                pass
        await trio.aclose_forcefully(stream)

    with trio.fail_after(HANG):
        async with open_background_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            yield f"turn:127.0.0.1:{listener.socket.getsockname()[1]}?transport=tcp"


@asynccontextmanager
async def open_stream_relays(url: str) -> AsyncGenerator[Relays]:
    names = Names()
    relays = Relays([TurnServer(url, "user", "secret")], names=names)
    async with names.running(), trio.open_nursery() as nursery, relays.running(nursery):
        yield relays


@pytest.mark.slow("once for each checkpoint")
@pytest.mark.parametrize("primed", [False, True])
@pytest.mark.parametrize("number", [1, 2])
async def test_cancelled_anywhere_opening_leaves_nothing(primed: bool, number: int) -> None:
    for cut in cuts():
        async with open_servers(number) as servers, open_relays(servers) as relays:
            if primed:
                await relays.prime()
            with cut:
                port = await relays.open(permit=["127.0.0.1"])
                assert port.local == ("192.0.2.7", 50_000)
            if not cut.caught:
                port.release()
            await settle(lambda: not any(each.allocations for each in servers) and len(relays) <= primed * number)


@pytest.mark.slow("once for each checkpoint")
async def test_cancelled_anywhere_priming_leaves_nothing_but_primed_sockets() -> None:
    for cut in cuts():
        async with open_servers() as servers, open_relays(servers) as relays:
            with cut:
                await relays.prime()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert len(relays) <= 1
            assert servers[0].allocations == 0


@pytest.mark.slow("once for each checkpoint")
async def test_cancelled_anywhere_sending_frees_with_its_path() -> None:
    for cut in cuts():
        async with open_servers() as servers, open_relays(servers) as relays:
            port = await relays.open()
            path = port.open_path(("127.0.0.1", 9))
            port.release()
            assert not port.closed
            with cut:
                await path.send([b"x"])
            path.close_nowait()
            path.close_nowait()
            assert port.closed
            await settle(lambda: not servers[0].allocations and not len(relays))


async def test_a_node_that_ends_frees_what_it_has() -> None:
    async with open_servers() as servers:
        async with open_relays(servers) as relays:
            path = (await relays.open()).open_path(("127.0.0.1", 9))
            await relays.prime()
            assert servers[0].allocations == 1
        assert servers[0].allocations == 0
        with pytest.raises(trio.BrokenResourceError, match="the relay was released"):
            await path.send([b"x"])
        with pytest.raises(trio.ClosedResourceError):
            await relays.open()


async def test_a_cancelled_node_frees_what_it_has() -> None:
    async with open_servers() as servers:
        with trio.CancelScope() as scope:
            async with open_relays(servers) as relays:
                await relays.open()
                scope.cancel()
                await trio.sleep_forever()
        assert servers[0].allocations == 0


async def test_the_first_server_that_gives_an_address_wins_and_the_other_has_nothing() -> None:
    async with open_servers(3) as servers, open_relays(servers) as relays:
        servers[0].code = 486
        servers[1].code = 508
        port = await relays.open()
        assert port.name == servers[2].url
        assert [each.allocations for each in servers] == [0, 0, 1]
        port.release()


async def test_every_server_says_why_not() -> None:
    async with open_servers(2) as servers, open_relays(servers) as relays:
        servers[0].code, servers[1].code = 486, 508
        with pytest.raises(StunError, match=r"486.*; .*508"):
            await relays.open()


async def test_each_attempt_learns_why_it_got_no_address_itself() -> None:
    """It does not get the reasons of another attempt, at the same time or before it."""
    async with open_servers() as servers, open_relays(servers) as relays:
        found: dict[int, list[str]] = {}
        asking, over = trio.Event(), trio.Event()

        async def attempt(code: int) -> None:
            with relays.noting_failures() as failures:
                async with trio.open_nursery() as nursery:  # a nursery of the plugin's own
                    nursery.start_soon(ask, code)
            await trio.lowlevel.checkpoint()
            found[code] = failures

        async def ask(code: int) -> None:
            if code == 486:
                await asking.wait()
            servers[0].code = code
            with suppress(StunError):
                await relays.open()
            asking.set()
            if code == 508:
                await over.wait()
            over.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(attempt, 486)
            nursery.start_soon(attempt, 508)
        assert {code: [str(code) in each for each in said] for code, said in found.items()} == {
            486: [True],
            508: [True],
        }
        servers[0].code = 0
        with relays.noting_failures() as failures:
            (await relays.open()).release()
        assert failures == []


async def test_without_a_server_there_is_none_to_ask() -> None:
    async with open_relays([]) as relays:
        await relays.prime()
        with pytest.raises(StunError, match="there is no TURN server to ask"):
            await relays.open()


async def test_several_tasks_wait_for_what_the_server_says() -> None:
    async with open_servers() as servers, open_relays(servers) as relays:
        port = await relays.open()
        async with trio.open_nursery() as nursery:
            for number in (1, 2, 3):
                nursery.start_soon(port.wait_settled, port.permit_nowait([f"203.0.113.{number}"]))
                nursery.start_soon(port.open_path(("127.0.0.1", number)).send, [b"x"])
        port.close_nowait()


async def test_a_channel_that_is_refused_breaks_its_path() -> None:
    async with open_servers() as servers, open_relays(servers) as relays:
        port = await relays.open()
        next(iter(servers[0].clients.values())).forbidden = {"127.0.0.1"}
        path = port.open_path(("127.0.0.1", 9))
        await path.send([b"x"])  # sent behind the request, without waiting for its answer
        with pytest.raises(trio.BrokenResourceError, match=r"no channel to 127\.0\.0\.1:9: .* 403"):
            await path.receive()
        with pytest.raises(trio.BrokenResourceError, match="403"):
            await path.send([b"x"])
        port.release()


@pytest.mark.parametrize("part", ["receive", "transmit"])
@pytest.mark.parametrize("error", [PanicException, KeyError])
async def test_whatever_a_server_makes_us_raise_ends_its_relay_and_no_more(
    part: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node goes on, whoever waits for the relay gets an error, and the next relay works."""

    def fail(*_: object) -> NoReturn:
        raise error("boo")

    async with open_servers() as servers, open_relays(servers) as relays:
        with monkeypatch.context() as patch:
            patch.setattr(TurnClientCore, part, fail)
            with pytest.raises(StunError, match="gave a relayed address"):
                await relays.open()
            await relays.prime()
        await settle(lambda: not len(relays))
        (await relays.open()).release()


async def test_every_address_of_the_peer_gets_a_permission_of_its_own() -> None:
    async with open_servers() as servers, open_relays(servers) as relays:
        wanted = {"203.0.113.1", "203.0.113.2", "203.0.113.3"}
        port = await relays.open(permit=sorted(wanted)[:2])
        grants = port.permit_nowait(sorted(wanted))
        await port.wait_settled(grants)
        assert len(grants) == 3
        assert all(grant.granted for grant in grants)
        (client,) = servers[0].clients.values()
        assert client.permissions.keys() == wanted
        port.release()


async def test_a_server_that_has_forgotten_us_is_noticed_by_the_silence_after_a_datagram(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server forgets its clients, for example, when it restarts."""
    monkeypatch.setattr(relay_port_module, "SILENCE", 0.02)
    async with open_servers() as servers, open_relays(servers) as relays:
        path = (await relays.open()).open_path(("127.0.0.1", 9))
        await path.send([b"x"])
        next(iter(servers[0].clients.values())).forget()
        with pytest.raises(trio.BrokenResourceError, match="437"):
            await path.receive()


@pytest.mark.parametrize("ends", ["reader", "writer", "close"])
async def test_who_waits_for_room_hears_of_the_end(ends: str) -> None:
    """This holds for every kind of end: in the middle of a transfer the outbox is full."""
    ours, theirs = trio.testing.lockstep_stream_pair()
    transport = StreamTransport(ours, ("192.0.2.7", 3478))

    async def send() -> None:
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await transport.send([bytes(1000)])
        sent.set()

    async def run() -> None:
        with writing:
            await transport.run()

    sent, writing = trio.Event(), trio.CancelScope()
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            assert not sent.is_set()
            if ends == "reader":
                await theirs.send_stream.aclose()
                with pytest.raises(trio.BrokenResourceError):
                    await transport.receive()
            elif ends == "writer":
                await theirs.receive_stream.aclose()
            else:
                writing.cancel()
                await transport.aclose()
            await sent.wait()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("says", "why"),
    [
        pytest.param(encode_channel_data(0x4000, bytes(4096)), "a message of 4100 bytes", id="oversized ChannelData"),
        pytest.param(bytes([1, 1, 0x10, 0]) + BINDING[4:], "a message of 4116 bytes", id="oversized STUN"),
        pytest.param(
            encode_channel_data(0x4000, b"abc") + encode_channel_data(0x4000, b"defg"), "", id="unpadded ChannelData"
        ),
        pytest.param(encode_channel_data(0x4000, b"abc") + BINDING, "neither STUN", id="unpadded, STUN behind it"),
        pytest.param(bytes([1, 1, 0, 3]) + BINDING[4:] + b"abc", "neither STUN", id="unpadded STUN"),
        pytest.param(BINDING[:4] + bytes(16), "does not carry STUN", id="no cookie"),
        pytest.param(encode_channel_data(0x4000, b"abcd")[:-1], "the server closed", id="truncated ChannelData"),
        pytest.param(BINDING[:-1], "the server closed", id="truncated STUN"),
    ],
)
async def test_a_stream_out_of_frame_breaks_its_relay_with_the_reason(says: bytes, why: str) -> None:
    """After such bytes, no message boundary can be found again.  The node goes on, and its next relay works."""
    async with open_stream_server(says) as url, open_stream_relays(url) as relays:
        for _ in range(2):
            port = await relays.open()
            path = port.open_path(("203.0.113.5", 9))
            with pytest.raises(trio.BrokenResourceError, match=f"the connection to .*tcp broke: .*{why}"):
                while True:
                    await path.send([b"x"])
                    assert set(await path.receive()) <= {b"whole", b"abc"}  # b"abc" lacks only its padding
            await settle(lambda: not len(relays))


async def test_priming_is_nobodys_business(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> NoReturn:
        await trio.lowlevel.checkpoint()
        raise PanicException("boo")

    async with open_servers() as servers, open_relays(servers) as relays:
        monkeypatch.setattr(Relays, "_connect", fail)
        await relays.prime()


def test_a_proxy_that_cannot_be_used_is_said_at_once() -> None:
    """The rule is that of signal servers, and applies only if a proxy is needed."""
    proxies = Proxies("env", {"https_proxy": "gopher://proxy.example"})
    by_tcp = TurnServer(ServerUrl.parse("turns:relay.example"), "user", "secret")
    with pytest.raises(ConfigError, match="https_proxy"):
        Relays([by_tcp], names=Names(), proxies=proxies)
    Relays([TurnServer(ServerUrl.parse("turn:relay.example"), "user", "secret")], names=Names(), proxies=proxies)
