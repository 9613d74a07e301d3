"""One local TCP port with all that punching needs: on the kernel's loopback and in the simulator."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio
import trio.testing

from tests.cancel_sweep import cuts
from tests.hangs import HANG
from tests.sim.worlds import run
from warpgate_trio.errors import StunError
from warpgate_trio.ports.tcp import BACKLOG, TcpPort
from warpgate_trio.servers.stun import StunServer, serve_stun
from warpgate_trio.sim import Network, presets
from warpgate_trio.sockaddr import TransportAddress
from warpgate_trio.testing import simulated_hosts

Check = Callable[[TcpPort], Awaitable[None]]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


async def on(function: Check, address: str) -> None:
    with trio.fail_after(HANG):
        port = await TcpPort.open(address)
        try:
            await function(port)
        finally:
            port.close()
            port.close()


@pytest.mark.parametrize(
    "address", ["127.0.0.1", pytest.param("::1", marks=pytest.mark.needs("ipv6"))], ids=["ipv4", "ipv6"]
)
@pytest.mark.parametrize("function", CHECKS, ids=lambda function: function.__name__)
async def test_on_the_kernel(function: Check, address: str) -> None:
    await on(function, address)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("function", CHECKS, ids=lambda function: function.__name__)
def test_in_the_simulator(function: Check, address: str) -> None:
    async def world(net: Network) -> None:
        async with simulated_hosts():
            await net.host("a").run(on, function, address)

    run(world)


@asynccontextmanager
async def stun_server(ip: str) -> AsyncGenerator[StunServer]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(partial(serve_stun, host=ip, port=0))
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def tcp_listener(ip: str, *, backlog: int = 1) -> AsyncGenerator[trio.socket.SocketType]:
    with trio.socket.socket(trio.socket.AF_INET6 if ":" in ip else trio.socket.AF_INET) as listener:
        await listener.bind((ip, 0))
        listener.listen(backlog)
        yield listener


def address_of(sock: trio.socket.SocketType) -> TransportAddress:
    name = sock.getsockname()
    return name[0], name[1]


async def expect(kind: type[BaseException], call: Callable[[], Awaitable[object]]) -> None:
    with pytest.raises(kind):
        await call()


# -- the port ----------------------------------------------------------------------------------------------------------


@check
async def it_listens_and_connects_from_one_port(port: TcpPort) -> None:
    ip = port.local[0]
    async with tcp_listener(ip) as far:
        with await port.connect(address_of(far)) as ours:
            theirs, remote = await far.accept()
            with theirs:
                assert remote[:2] == address_of(ours) == port.local
    other = await TcpPort.open(ip)
    try:
        with await other.connect(port.local) as dialled:
            accepted, source = await port.accept()
            with accepted:
                assert source == other.local == address_of(dialled)
                await dialled.send(b"x")
                assert await accepted.recv(1) == b"x"
    finally:
        other.close()


@check
async def two_ports_that_connect_to_each_other_become_one_connection(port: TcpPort) -> None:
    """One connect succeeds; the other fails with EADDRNOTAVAIL, and that side's listener gets the connection."""
    other = await TcpPort.open(port.local[0])
    made: list[trio.socket.SocketType] = []
    try:

        async def knock(here: TcpPort, there: TcpPort) -> None:
            try:
                sock = await here.connect(there.local)
            except OSError:
                sock, _ = await here.accept()
            made.append(sock)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(knock, port, other)
            nursery.start_soon(knock, other, port)
        one, two = made
        assert {address_of(one), address_of(two)} == {port.local, other.local}
        await one.send(b"x")
        assert await two.recv(1) == b"x"
    finally:
        for sock in made:
            sock.close()
        other.close()


@check
async def a_port_of_ones_own_choice(port: TcpPort) -> None:
    chosen = port.local[1]
    port.close()
    again = await TcpPort.open(port.local[0], chosen)
    assert again.local == port.local
    again.close()


@check
async def a_refusal_is_an_error_and_the_port_stays(port: TcpPort) -> None:
    async with tcp_listener(port.local[0]) as far:
        nobody = address_of(far)
    for _ in range(2):
        with pytest.raises(OSError, match=r"."):
            await port.connect(nobody)
    assert not port.closed


@check
async def connecting_is_cancelled_anywhere(port: TcpPort) -> None:
    async with tcp_listener(port.local[0], backlog=50) as far:
        for cut in cuts():
            with cut:
                (await port.connect(address_of(far))).close()
            with trio.move_on_after(0.01):
                (await far.accept())[0].close()


@check
async def accepting_is_cancelled_and_loses_nothing(port: TcpPort) -> None:
    other = await TcpPort.open(port.local[0])
    try:
        with await other.connect(port.local):
            accepted: list[TransportAddress] = []
            for cut in cuts():
                with cut:
                    sock, remote = await port.accept()
                    accepted.append(remote)
                    sock.close()
            assert accepted == [other.local]
    finally:
        other.close()


@check
async def who_waits_on_a_port_that_closes_hears_of_it(port: TcpPort) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect, trio.ClosedResourceError, port.accept)
        await trio.testing.wait_all_tasks_blocked()
        port.close()
    with pytest.raises(trio.ClosedResourceError):
        await port.accept()
    with pytest.raises(trio.ClosedResourceError):
        await port.connect(("127.0.0.1", 1))
    with pytest.raises(trio.ClosedResourceError):
        await port.query(("127.0.0.1", 1), timeout=1)
    assert "closed" in repr(port)


@check
async def what_was_handed_out_outlives_the_port(port: TcpPort) -> None:
    async with tcp_listener(port.local[0]) as far:
        with await port.connect(address_of(far)) as ours:
            port.close()
            theirs, _ = await far.accept()
            with theirs:
                await ours.send(b"x")
                assert await theirs.recv(1) == b"x"


# -- asking a server ---------------------------------------------------------------------------------------------------


@check
async def a_server_is_asked_over_a_connection_that_stays(port: TcpPort) -> None:
    async with stun_server(port.local[0]) as server:
        for _ in range(3):
            answer = await port.query(server.address, timeout=1)
            assert answer.mapped == port.local
            assert port.mapped == {server.address: port.local}
            assert port.mapped_at == pytest.approx(trio.current_time(), abs=1)
            assert list(port.servers()) == [server.address]
        port.close()
        assert list(port.servers()) == []


@check
async def a_server_that_is_not_there(port: TcpPort) -> None:
    async with tcp_listener(port.local[0]) as far:
        nobody = address_of(far)
    with pytest.raises(StunError):
        await port.query(nobody, timeout=1)
    assert (port.mapped, list(port.servers())) == ({}, [])
    assert not port.closed


@check
async def a_server_that_is_silent(port: TcpPort) -> None:
    async with tcp_listener(port.local[0]) as far:
        with pytest.raises(StunError):
            await port.query(address_of(far), timeout=0.02)
    assert (port.mapped, list(port.servers())) == ({}, [])


@check
async def a_server_that_talks_nonsense_or_hangs_up(port: TcpPort) -> None:
    for said in (b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4, b"\0" * 4000, b""):
        async with tcp_listener(port.local[0]) as far:

            async def answer(far: trio.socket.SocketType = far, said: bytes = said) -> None:
                sock, _ = await far.accept()
                with sock:
                    await sock.recv(100)
                    await sock.send(said)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                with pytest.raises(StunError):
                    await port.query(address_of(far), timeout=1)
        assert (port.mapped, list(port.servers())) == ({}, [])


@check
async def a_mapping_that_broke_is_forgotten_and_made_anew(port: TcpPort) -> None:
    async with stun_server(port.local[0]) as server:
        await port.query(server.address, timeout=1)
        port._streams[server.address].socket.shutdown(trio.socket.SHUT_RDWR)
        with pytest.raises(StunError):
            await port.query(server.address, timeout=1)
        assert (port.mapped, list(port.servers())) == ({}, [])


@check
async def a_question_is_cancelled_anywhere(port: TcpPort) -> None:
    ip = port.local[0]
    for cut in cuts():
        async with stun_server(ip) as server:
            fresh = await TcpPort.open(ip)
            with cut:
                await fresh.query(server.address, timeout=1)
            assert bool(fresh.mapped) == bool(fresh.servers()) == (not cut.caught)
            fresh.close()


@check
async def closing_while_a_server_is_being_connected_leaves_nothing(port: TcpPort) -> None:
    """An attempt may end, and close its port, while the service still queries a server from that port."""
    async with stun_server(port.local[0]) as server:
        for wait in range(8):
            fresh = await TcpPort.open(port.local[0])

            async def ask(fresh: TcpPort = fresh) -> None:
                with suppress(StunError, trio.ClosedResourceError):
                    await fresh.query(server.address, timeout=1)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                for _ in range(wait):
                    await trio.lowlevel.checkpoint()
                fresh.close()
            assert (list(fresh.servers()), fresh.mapped) == ([], {})
            await trio.testing.wait_all_tasks_blocked()


# -- behind a NAT ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nat", ["linux", "linux-symmetric"])
def test_the_mapping_lives_as_long_as_the_connection(nat: str) -> None:
    async def world(net: Network) -> None:
        server = net.host("server")
        client = net.lan("home", nat=presets.NATS.get(nat, presets.LINUX)).host("c")
        async with simulated_hosts(), trio.open_nursery() as nursery:
            with server:
                running = await nursery.start(partial(serve_stun, host=server.ip, port=3478))
            with client:
                port = await TcpPort.open(client.ip)
                first = await port.query(running.address, timeout=5)
                assert first.mapped != port.local
                for _ in range(20):
                    await trio.sleep(15)
                    assert (await port.query(running.address, timeout=5)).mapped == first.mapped
                port.close()
            nursery.cancel_scope.cancel()

    run(world)


async def test_too_many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    port = await TcpPort.open("127.0.0.1")

    def full(*_: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(trio.socket, "socket", full)
        for call in (
            lambda: TcpPort.open("127.0.0.1"),
            lambda: port.connect(("127.0.0.1", 9)),
        ):
            with pytest.raises(OSError, match="too many"):
                await call()
        with pytest.raises(StunError, match="too many"):
            await port.query(("127.0.0.1", 9), timeout=1)
    port.close()


async def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(OSError, match=r"."):
        await TcpPort.open("203.0.113.9")


@pytest.mark.slow("as long as a busy machine may take to connect so often")
async def test_strangers_do_not_fill_more_than_the_backlog() -> None:
    port = await TcpPort.open("127.0.0.1")
    strangers: list[trio.socket.SocketType] = []
    try:
        with trio.move_on_after(1.0):
            for _ in range(4 * BACKLOG):
                strangers.append(trio.socket.socket())
                await strangers[-1].connect(port.local)
        assert BACKLOG <= len(strangers) < 2 * BACKLOG
    finally:
        for each in strangers:
            each.close()
        port.close()
