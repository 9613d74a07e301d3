"""Pairing by a code, with two nodes and a rendezvous server on loopback."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio

from tests.documented import code, page
from tests.hangs import HANG
from tests.identities import ALICE, BOB
from tests.nodes import LoopbackHost, Pair, config, loopback_node, on_host, pair
from tests.ports import free_port
from tests.waiting import wait_until
from warpgate_trio import Node, PeerAddress, anyone
from warpgate_trio.errors import CodeMalformed, CodeRefused, PairingUnavailable
from warpgate_trio.pairing import Paired, PairedPeers
from warpgate_trio.servers.mailbox_frames import Outcome
from warpgate_trio.servers.rendezvous import open_rendezvous

pytestmark = [pytest.mark.usefixtures("jumping_clock"), pytest.mark.slow("nodes, servers and key exchanges in Python")]


@asynccontextmanager
async def two(*, hang: float = HANG) -> AsyncGenerator[Pair]:
    with trio.fail_after(hang):
        async with pair(authorize=anyone) as both:
            yield both


def other(code: str) -> str:
    """A code for the same mailbox with another word."""
    nameplate, one, _ = code.split("-")
    return f"{nameplate}-{one}-{'acorn' if not code.endswith('acorn') else 'orbit'}"


async def test_both_learn_who_the_other_one_is_and_where() -> None:
    async with two() as both:
        told: list[Paired] = []
        async with both.bob.offer_code(on_paired=told.append) as offer:
            assert offer.code.startswith("1-")
            assert offer.servers == (both.server.url,)
            by_alice = await both.alice.accept_code(offer.code.upper().replace("-", "  "))
            by_bob = await offer.wait_paired()
        assert by_alice == Paired(BOB.peer_id, both.bob.address)
        assert by_bob == Paired(ALICE.peer_id, both.alice.address)
        assert told == [by_bob]
        async with await both.alice.auto_connect(by_alice.address) as pipe:
            assert pipe.peer_id == BOB.peer_id
        await both.bob.listener.accept()


async def test_a_wrong_code_is_told_to_both_and_the_right_one_is_still_good() -> None:
    async with two() as both, both.bob.offer_code() as offer:
        with pytest.raises(CodeRefused, match="the code is wrong") as refused:
            await both.alice.accept_code(other(offer.code))
        assert refused.value.outcome == Outcome.WRONG
        assert offer.wrong_tries == 1
        await both.alice.accept_code(offer.code)
        assert (await offer.wait_paired()).peer_id == ALICE.peer_id


async def test_used_left_expired_and_unknown_codes_are_told_apart() -> None:
    async with two() as both:
        async with both.bob.offer_code() as offer:
            used = offer.code
            await both.alice.accept_code(used)
        async with both.bob.offer_code() as offer:
            left = offer.code
        for code, why in ((used, "has been used"), (left, "has gone"), (f"99{used}", "no code with that number")):
            with pytest.raises(CodeRefused, match=why):
                await both.alice.accept_code(code)
        with pytest.raises(CodeMalformed, match="begins with a number"):
            await both.alice.accept_code("guitar")
        async with both.bob.offer_code(lifetime=20) as offer:
            with pytest.raises(CodeRefused, match="the code has expired"):
                await offer.wait_paired()
            assert offer.seconds_left == 0
        with pytest.raises(CodeRefused, match="the code has expired"):
            await both.alice.accept_code(offer.code)


async def test_three_wrong_tries_end_an_offer() -> None:
    async with two(hang=10 * HANG) as both, both.bob.offer_code() as offer:
        for _ in range(3):
            while True:
                with pytest.raises(CodeRefused) as refused:
                    await both.alice.accept_code(other(offer.code))
                if refused.value.outcome == Outcome.WRONG:
                    break
                assert refused.value.outcome == Outcome.WAIT
                await trio.sleep(refused.value.retry_after)
        with pytest.raises(CodeRefused, match="it was tried too often"):
            await offer.wait_paired()


async def test_what_the_application_raises_reaches_it_and_nobody_is_paired() -> None:
    def refuse(_: Paired) -> None:
        raise LookupError("not him")

    async with two() as both, both.bob.offer_code(on_paired=refuse) as offer:
        with pytest.raises(CodeRefused):
            await both.alice.accept_code(offer.code)
        with pytest.raises(LookupError, match="not him"):
            await offer.wait_paired()


async def test_only_who_was_paired_is_let_in() -> None:
    friends = PairedPeers()
    with trio.fail_after(HANG):
        async with pair(authorize=friends) as both:
            async with both.bob.offer_code(on_paired=friends.add) as offer:
                assert not await friends(ALICE.peer_id)
                paired = await both.alice.accept_code(offer.code)
            assert ALICE.peer_id in friends
            async with await both.alice.auto_connect(paired.address):
                await both.bob.listener.accept()


async def test_a_cancelled_wait_leaves_the_offer_as_it_is() -> None:
    async with two() as both, both.bob.offer_code() as offer:
        with trio.move_on_after(1):
            await offer.wait_paired()
        await both.alice.accept_code(offer.code)
        assert (await offer.wait_paired()).peer_id == ALICE.peer_id


async def test_an_offer_survives_its_connection() -> None:
    """The server keeps the offer while the code is valid, and a restarted server accepts the code again."""
    with trio.fail_after(HANG):
        async with open_rendezvous() as first:
            node_config, port = config(first), first.port
            async with loopback_node(BOB, node_config) as bob, loopback_node(ALICE, node_config) as alice:
                async with bob.offer_code() as offer:
                    await first.drain()
                    async with open_rendezvous(port=port):
                        paired = None
                        while paired is None:
                            try:
                                paired = await alice.accept_code(offer.code)
                            except (CodeRefused, PairingUnavailable):
                                await trio.sleep(0.5)
                        assert await offer.wait_paired() == Paired(ALICE.peer_id, alice.address)


async def test_several_servers_share_a_number_and_one_that_is_down_delays_nobody() -> None:
    with trio.fail_after(HANG):
        async with open_rendezvous() as one, open_rendezvous() as two_, open_rendezvous() as gone:
            dead = gone.url
            await gone.drain()
            async with (
                loopback_node(BOB, config(one, two_, dead)) as bob,
                loopback_node(ALICE, config(two_)) as alice,
                bob.offer_code() as offer,
            ):
                assert set(offer.servers) == {one.url, two_.url}
                assert len(offer.problems) == 1
                assert int(offer.code.split("-")[0]) >= 10
                await alice.accept_code(offer.code)
                assert (await offer.wait_paired()).peer_id == ALICE.peer_id


async def test_one_slip_is_one_wrong_try_at_however_many_servers() -> None:
    with trio.fail_after(HANG):
        async with open_rendezvous() as one, open_rendezvous() as two_:
            both = config(one, two_)
            async with loopback_node(BOB, both) as bob, loopback_node(ALICE, both) as alice, bob.offer_code() as offer:
                with pytest.raises(CodeRefused, match="wrong"):
                    await alice.accept_code(other(offer.code))
                assert offer.wrong_tries == 1
                await alice.accept_code(offer.code)


async def test_without_a_server_there_is_no_pairing() -> None:
    with trio.fail_after(HANG):
        async with loopback_node(BOB, config()) as bob:
            with pytest.raises(PairingUnavailable, match="no signal server is configured"):
                async with bob.offer_code():
                    raise AssertionError
            with pytest.raises(PairingUnavailable, match="no signal server is configured"):
                await bob.accept_code("7-guitar-orbit")
            with pytest.raises(ValueError, match="1 to 300 seconds"):
                async with bob.offer_code(lifetime=0):
                    raise AssertionError


async def test_a_server_that_is_down_is_told_at_once() -> None:
    with trio.fail_after(HANG):
        async with open_rendezvous() as gone:
            await gone.drain()
            async with loopback_node(BOB, config(gone)) as bob:
                with pytest.raises(PairingUnavailable, match="refused"):
                    async with bob.offer_code():
                        raise AssertionError
                with pytest.raises(PairingUnavailable, match="refused"):
                    await bob.accept_code("7-guitar-orbit")


async def test_the_nodes_end_ends_offers_and_calls() -> None:
    async with trio.open_nursery() as nursery:
        async with two() as both:

            async def offer(node: Node, *, task_status: trio.TaskStatus[str]) -> None:
                with pytest.raises(trio.ClosedResourceError):
                    async with node.offer_code() as offered:
                        task_status.started(offered.code)
                        await offered.wait_paired()

            await nursery.start(offer, both.bob)
        with pytest.raises(trio.ClosedResourceError):
            await both.alice.accept_code("7-guitar-orbit")


async def test_an_address_that_came_by_a_code_is_fresh() -> None:
    async with two() as both, both.bob.offer_code() as offer:
        paired = await both.alice.accept_code(offer.code)
        assert PeerAddress.from_text(str(paired.address)) == both.bob.address


async def test_the_programs_of_the_page() -> None:
    (program,) = code(page("pairing.md"), "python")
    identities = iter((BOB, ALICE))
    names: dict[str, Any] = {}
    exec(compile(program, "pairing.md", "exec", dont_inherit=True), names)
    open_node = names["open_node"]
    names["open_node"] = lambda config, **options: open_node(config, identity=next(identities), **options)
    shown: list[str] = []
    with trio.fail_after(HANG):
        async with open_rendezvous() as server, on_host(LoopbackHost()), trio.open_nursery() as nursery:
            names["print"] = lambda *words, **_: shown.append(" ".join(map(str, words)))
            nursery.start_soon(names["offer"], config(server))
            await wait_until(lambda: shown)
            await names["accept"](config(server), shown[0])
    assert shown[1:] == [f"paired with {ALICE.peer_id}", "hello\n"]


async def test_a_server_that_falls_silent_is_noticed_at_once_where_the_network_has_changed() -> None:
    """The connection is dead, and nothing reports that; the offer is made again on the next connection."""
    silent: set[object] = set()

    async def pass_on(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                if not silent & {source, sink}:
                    await sink.send_all(data)

    port = free_port()
    url = f"ws://127.0.0.1:{port}"
    async with open_rendezvous(public_urls=[url]) as server:
        carried: list[trio.SocketStream] = []

        async def carry(stream: trio.SocketStream) -> None:
            carried.append(stream)
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as inner, trio.open_nursery() as nursery:
                nursery.start_soon(pass_on, stream, inner)
                nursery.start_soon(pass_on, inner, stream)

        with trio.fail_after(10 * HANG):
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(trio.serve_tcp, carry, port, host="127.0.0.1"))
                async with loopback_node(BOB, config(url)) as bob, bob.offer_code() as offer:
                    silent.update(carried)
                    start = trio.current_time()
                    bob.network_changed()
                    await wait_until(lambda: not offer.servers)
                    assert trio.current_time() - start < 5
                    await wait_until(lambda: offer.servers)
                nursery.cancel_scope.cancel()
