"""Paths that silently drop packets that fit their ends' links: TCP's segments fit, or the path does not win."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from functools import partial
from typing import Literal

import pytest
import trio

from tests.sim.walks import meet, rows
from tests.sim.worlds import run
from warpgate_trio import Node, PeerAddress, Pipe
from warpgate_trio.ports.segments import MAX_PACKET, clamp_segments
from warpgate_trio.servers.rendezvous import open_rendezvous
from warpgate_trio.sim import Fault, Host, Kind, Network, presets
from warpgate_trio.sim.packet import ACK, SYN, TCP
from warpgate_trio.testing import simulated_hosts
from warpgate_trio.testing.worlds import PeerPair

MAXSEG = trio.socket.IPPROTO_TCP, trio.socket.TCP_MAXSEG
RTT = 0.05
PhaseName = Literal["direct", "punch", "spray"]
PHASES: Sequence[PhaseName] = ("direct", "punch", "spray")


# -- the option --------------------------------------------------------------------------------------------------------


async def connected(
    a: Host, b: Host, *, dialler: int = 0, listener: int = 0
) -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    with b:
        listening = trio.socket.socket()
        if listener:
            listening.setsockopt(*MAXSEG, listener)
        await listening.bind(("", 80))
        listening.listen()
    with a:
        dialled = trio.socket.socket()
        if dialler:
            dialled.setsockopt(*MAXSEG, dialler)
        await dialled.connect((b.ip, 80))
    accepted, _ = await listening.accept()
    listening.close()
    return dialled, accepted


@pytest.mark.parametrize(
    ("dialler", "listener", "largest"), [(0, 0, 1500), (1240, 0, 1280), (0, 1240, 1280), (1000, 1240, 1040)]
)
def test_one_end_that_asks_for_small_segments_bounds_both(dialler: int, listener: int, largest: int) -> None:
    """As on Linux, timestamps reduce the payload of a segment; packets have the same sizes here and there."""

    async def world(net: Network) -> None:
        ends = await connected(net.host("a"), net.host("b"), dialler=dialler, listener=listener)
        for end in ends:
            assert end.getsockopt(*MAXSEG) == largest - 40
            end.setsockopt(*MAXSEG, 88)  # too late
            await end.send(bytes(20_000))
        for end in ends:
            got = 0
            while got < 20_000:
                got += len(await end.recv(65536))
        sizes = [event.packet.size for event in net.trace.latest() if event.packet.proto == TCP]
        assert max(sizes) == largest
        for end in ends:
            end.close()

    run(world)


def test_the_option_takes_what_linux_takes() -> None:
    async def world(net: Network) -> None:
        with net.host("a"):
            sock = trio.socket.socket()
        assert sock.getsockopt(*MAXSEG) == 536
        for value in (87, 32768, -1):
            with pytest.raises(OSError, match="Invalid argument") as caught:
                sock.setsockopt(*MAXSEG, value)
            assert caught.value.errno == errno.EINVAL
        sock.setsockopt(*MAXSEG, 1240)
        assert sock.getsockopt(*MAXSEG) == 1240
        sock.close()
        await trio.lowlevel.checkpoint()

    run(world)


def test_a_syn_says_it() -> None:
    async def world(net: Network) -> None:
        ends = await connected(net.host("a"), net.host("b"), dialler=1240)
        said = [event.packet.mss for event in net.trace.latest() if event.packet.flags & SYN and event.event == "send"]
        assert said == [1240, 1460]
        for end in ends:
            end.close()

    run(world)


@pytest.mark.parametrize(("ip", "value"), [("192.0.2.1", 1240), ("2001:db8::1", 1220), ("127.0.0.1", 536)])
def test_what_is_asked_for(ip: str, value: int) -> None:
    async def world(net: Network) -> None:
        with net.host("a"):
            sock = trio.socket.socket(trio.socket.AF_INET6 if ":" in ip else trio.socket.AF_INET)
        clamp_segments(sock, ip)
        assert sock.getsockopt(*MAXSEG) == value
        sock.close()
        await trio.lowlevel.checkpoint()

    run(world)


def test_a_rendezvous_server_asks_for_small_segments() -> None:
    """Signals are longer than a packet, and clients may be behind such a path."""

    async def world(net: Network) -> None:
        server, client = net.host("server"), net.host("client")
        async with simulated_hosts():
            with server:
                async with open_rendezvous(host=None, port=443):
                    with client:
                        await (await trio.open_tcp_stream(server.ip, 443)).aclose()
                    await trio.sleep(1)
        said = [event.packet.mss for event in net.trace.latest() if event.packet.flags == SYN | ACK]
        assert set(said) == {MAX_PACKET - 40}

    run(world)


# -- nodes -------------------------------------------------------------------------------------------------------------


def hole(net: Network, size: int, *lines: str) -> None:
    net.schedule([Fault(at=0, target=line, kind=Kind.MTU_BLACKHOLE, value=size) for line in lines])


async def transfer(node: Node, address: PeerAddress, *, phases: Sequence[PhaseName] = PHASES) -> Pipe:
    """Connect, and send 300 kB there and back; `meet` goes on with the Pipe."""
    pipe = await node.auto_connect(address, phases=phases)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipe.send_all, bytes(300_000))
            got = 0
            while got < 300_000:
                got += len(await pipe.receive_some())
    return pipe


@pytest.mark.slow("whole nodes, and 600 kB through the simulator")
@pytest.mark.parametrize("line", ["bob:down", "bob:up", "alice:up", "alice:down"])
@pytest.mark.parametrize("nats", [False, True], ids=["open", "punch"])
def test_a_path_of_1280_bytes_carries_what_tcp_has_won(line: str, nats: bool) -> None:
    pair = PeerPair.between(presets.LINUX, presets.LINUX, rtt=RTT) if nats else PeerPair.between(None, None, rtt=RTT)
    phases: Sequence[PhaseName] = ("punch",) if nats else ("direct",)
    meeting = meet(pair, partial(transfer, phases=phases), on_network=lambda net: hole(net, MAX_PACKET, line))
    assert meeting.plugin == ("tcp_punch" if nats else "direct_connect"), rows(meeting)


@pytest.mark.slow("whole nodes, and a handshake that gets no answer")
def test_a_path_that_carries_no_full_segment_does_not_win() -> None:
    """QUIC's packets are 52 bytes smaller than full segments."""
    meeting = meet(
        PeerPair.between(None, None, rtt=RTT),
        transfer,
        on_network=lambda net: hole(net, MAX_PACKET - 1, "bob:down"),
        lossy=True,
    )
    assert meeting.report.winner is not None, rows(meeting)
    assert meeting.plugin == "udp_punch", rows(meeting)
