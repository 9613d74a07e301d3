"""TURN servers that have failed or will be shut down, and how a node with several servers deals with that."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from tests.hangs import HANG
from tests.integration.test_turn_relays import open_relays
from tests.turn_servers import UdpServer, open_servers
from warpgate_trio import standing
from warpgate_trio.config import TurnServer
from warpgate_trio.names import Names
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.servers.turn import open_turn_server
from warpgate_trio.servers.turn_credentials import TurnCredentials
from warpgate_trio.sockaddr import TransportAddress
from warpgate_trio.turn import relays as relays_module
from warpgate_trio.turn.messages import Code
from warpgate_trio.turn.relays import Relays


async def who_is_asked(relays: Relays, servers: Sequence[UdpServer]) -> list[int]:
    """Opens a relayed address; returns the numbers of the servers that were asked for it."""
    before = [len(each.clients) for each in servers]
    (await relays.open()).release()
    return [number for number, each in enumerate(servers) if len(each.clients) > before[number]]


@pytest.mark.parametrize("code", [401, Code.ALLOCATION_QUOTA_REACHED, Code.INSUFFICIENT_CAPACITY, None])
async def test_a_server_that_failed_is_not_asked_before_the_others_any_more(
    code: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure is a refused allocation, or no answer at all."""
    monkeypatch.setattr(standing, "PASSED_OVER", HANG)
    monkeypatch.setattr(relays_module, "STAGGER", 0.04 if code is None else HANG)
    async with open_servers(2) as servers, open_relays(servers) as relays:
        servers[0].dead, servers[0].code = code is None, code or 0
        assert await who_is_asked(relays, servers) == [0, 1]
        monkeypatch.setattr(relays_module, "STAGGER", HANG)
        assert await who_is_asked(relays, servers) == [1]
        servers[1].code = Code.ALLOCATION_QUOTA_REACHED
        servers[0].dead, servers[0].code = False, 0
        assert await who_is_asked(relays, servers) == [0, 1], "it is when they fail, and has come back"
        assert await who_is_asked(relays, servers) == [0]


@pytest.mark.parametrize("back", [False, True])
async def test_a_server_that_failed_is_asked_again_and_nobody_waits_for_it(
    back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "PASSED_OVER", 0.02)
    monkeypatch.setattr(standing, "PASSED_OVER_MAX", 0.02)
    async with open_servers(2) as servers, open_relays(servers) as relays:
        servers[0].code = Code.ALLOCATION_QUOTA_REACHED
        assert await who_is_asked(relays, servers) == [0, 1]
        await trio.sleep(0.03)
        servers[0].code = 0
        servers[0].dead = not back
        monkeypatch.setattr(relays_module, "STAGGER", HANG)
        with trio.fail_after(HANG / 2):  # the next one is asked at once
            assert 0 in await who_is_asked(relays, servers)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_a_server_that_will_be_shut_down_says_what_is_to_be_left(transport: str) -> None:
    names, told = Names(), list[TransportAddress]()
    with trio.fail_after(HANG):
        async with (
            open_turn_server(TurnCredentials("example.org", {"user": "secret"})) as server,
            names.running(),
            open_background_nursery() as nursery,
        ):
            url = f"turn:{server.address[0]}:{server.address[1]}?transport={transport}"
            relays = Relays([TurnServer(url, "user", "secret")], names=names)
            relays.call_when_leaving(told.append)
            async with relays.running(nursery):
                port = await relays.open()
                drained = trio.Event()

                async def drain() -> None:
                    await server.drain()
                    drained.set()

                nursery.start_soon(drain)
                while not told:
                    await trio.testing.wait_all_tasks_blocked(0.001)
                assert told == [port.local]
                assert not drained.is_set()
                port.release()
                await drained.wait()
