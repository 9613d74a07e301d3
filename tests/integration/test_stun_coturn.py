"""STUN with a third-party server and third-party clients: coturn's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from tests.coturn import Address, coturn
from tests.hangs import HANG
from tests.requirements import find_program, unmet
from warpgate_trio.servers.stun import open_stun_server
from warpgate_trio.stun.client import open_stun_stream, query_all_udp, query_stream, query_udp, race_tcp
from warpgate_trio.stun.codec import ChangeRequest
from warpgate_trio.stun.transaction import StunAnswer

pytestmark = pytest.mark.needs("linux", "turnserver", "turnutils")  # Linux, where all of 127/8 is this machine


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[int, int], Address]]:
    if unmet("linux") or unmet("turnserver"):
        pytest.skip("said by the marker")
    with coturn(tmp_path_factory.mktemp("coturn")) as found:
        yield found


Places = dict[tuple[int, int], Address]


async def test_coturn_tells_where_from_over_udp(places: Places) -> None:
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))
        answers = await query_all_udp(sock, list(places.values()))
        for (a, p), answer in zip(places, answers, strict=True):
            assert isinstance(answer, StunAnswer)
            assert answer.mapped == sock.getsockname()
            assert answer.response_origin == answer.source == places[a, p]
            # coturn names its second address even to clients of that one; we ignore an address that is no other.
            assert answer.other_address == (places[1, 1 - p] if a == 0 else None)
            assert "Coturn" in str(answer.software)


@pytest.mark.parametrize("change", [ChangeRequest(ip=ip, port=port) for ip in (False, True) for port in (False, True)])
async def test_coturn_answers_from_elsewhere(places: Places, change: ChangeRequest) -> None:
    there = places[int(change.ip), int(change.port)]
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))
        answer = await query_udp(sock, places[0, 0], change=change, source=there)
        assert answer.mapped == sock.getsockname()
        assert answer.source == answer.response_origin == there


async def test_coturn_tells_where_from_over_tcp(places: Places) -> None:
    async with open_stun_stream(places[0, 0]) as stream:
        for _ in range(2):
            answer = await query_stream(stream)
            assert answer.mapped == stream.socket.getsockname()
    async with race_tcp([("127.0.0.1", 1), *places.values()]) as (answer, stream):
        assert answer.mapped == stream.socket.getsockname()
        assert (await query_stream(stream)).mapped == answer.mapped


async def output_of(program: str, *words: str) -> str:
    path = find_program(program)
    assert path is not None
    with trio.fail_after(HANG):
        run = await trio.run_process([path, *words, "127.0.0.1"], capture_stdout=True, capture_stderr=True)
    return run.stdout.decode()


@pytest.mark.slow("coturn's client waits")
async def test_natdiscovery_makes_out_the_whole_of_our_server() -> None:
    async with open_stun_server(second_host="127.0.0.2") as server:
        port = str(server.address[1])
        said = await output_of("turnutils_natdiscovery", "-m", "-f", "-H", "-L", "127.0.0.1", "-p", port)
        assert "Endpoint Independent Mapping" in said
        assert "Endpoint Independent Filtering" in said
        assert "No ALG: Mapped == XOR-Mapped" in said
        assert f"Other addr: : 127.0.0.2:{server.address[1] + 1}" in said
        assert server.statistics().ignored == 0


async def test_stunclient_follows_rfc5780_up_to_padding() -> None:
    async with open_stun_server(second_host="127.0.0.2") as server:
        said = await output_of("turnutils_stunclient", "-p", str(server.address[1]))
        assert "RFC 5780 response 2" in said  # a response from and to elsewhere: CHANGE-REQUEST and RESPONSE-PORT
        assert "420 (Unknown Attribute)" in said  # refuses PADDING by the right error


async def test_stunclient_with_one_address() -> None:
    async with open_stun_server() as server:
        said = await output_of("turnutils_stunclient", "-p", str(server.address[1]))
        assert "UDP reflexive addr: 127.0.0.1:" in said
        assert "RFC 5780" not in said
