"""The lab's own properties: its delay, where packets expire and who gets the ICMP error, and that it leaves nothing."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest
import trio

from tests.kernel.lab import RTT, Lab, open_lab
from tests.kernel.namespaces import SocketsOfNamespaces
from tests.kernel.nats import FORWARDED, NATS, Transport
from tests.kernel.run import run_on
from tests.kernel.wire import ROUTER, Wire, aged, checksum, time_exceeded
from tests.sim.programs import bound, receive, reusable

_IP_RECVERR = 11  # Linux's constant; in `socket` since Python 3.14


def ipv4(ttl: int = 64, payload: bytes = b"payload!", protocol: int = socket.IPPROTO_UDP) -> bytes:
    source, destination = socket.inet_aton("192.0.2.1"), socket.inet_aton("192.0.2.2")
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 7, 0, ttl, protocol, 0) + source + destination
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def test_routers_lower_the_ttl_and_mend_the_checksum() -> None:
    assert aged(ipv4(64), 6) == ipv4(58)


def test_a_router_names_the_packet_that_died() -> None:
    dead = ipv4(3)
    answer = time_exceeded(dead)
    assert answer is not None
    assert answer[12:20] == socket.inet_aton(ROUTER) + dead[12:16]
    assert answer[20:22] == bytes([11, 0])
    assert answer[28:] == dead[:48]
    assert checksum(answer[:20]) == checksum(answer[20:]) == 0


def test_no_error_about_an_icmp_packet() -> None:
    assert time_exceeded(ipv4(3, protocol=socket.IPPROTO_ICMP)) is None


@pytest.mark.slow("the kernel takes a while to make and to forget namespaces")
@pytest.mark.needs("network_namespaces", "nft", "tun")
class TestInTheKernel:
    async def test_a_round_trip_takes_its_time_between_any_two(self) -> None:
        trio.socket.set_custom_socket_factory(SocketsOfNamespaces())
        with Wire() as wire:
            async with open_lab(wire, "open", "port-restricted") as lab:
                for home in lab.homes:
                    with await bound(home.host) as client, await bound(lab.server, 9) as server:
                        sent = trio.current_time()
                        await client.sendto(b"?", (lab.server.ip, 9))
                        got = await receive(server, 5)
                        assert got is not None
                        await server.sendto(b"!", got[1])
                        assert await receive(client, 5) is not None
                        took = trio.current_time() - sent
                        assert RTT <= took < 3 * RTT  # a busy machine may be late

    async def test_a_small_ttl_dies_between_the_nats(self) -> None:
        trio.socket.set_custom_socket_factory(SocketsOfNamespaces())
        with Wire() as wire:
            async with open_lab(wire, "port-restricted") as lab:
                host = lab.homes[0].host
                with await bound(host, 40_000) as client, await bound(lab.server, 9) as server:
                    client.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
                    client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 3)
                    await client.sendto(b"opener", (lab.server.ip, 9))
                    with trio.fail_after(5), pytest.raises(OSError, match="No route to host"):
                        await client.recvfrom(10)  # time exceeded, translated back by the NAT
                    client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 64)
                    await client.sendto(b"late", (lab.server.ip, 9))
                    got = await receive(server, 5)
                    assert got == (b"late", (lab.homes[0].outside, 40_000))

    async def test_a_forwarded_port_leads_to_the_first_host(self) -> None:
        trio.socket.set_custom_socket_factory(SocketsOfNamespaces())
        with Wire() as wire:
            async with open_lab(wire, "forwarded") as lab:
                home = lab.homes[0]
                with await bound(home.host, FORWARDED) as inside, await bound(lab.bystander) as stranger:
                    await stranger.sendto(b"hello", (home.outside, FORWARDED))
                    got = await receive(inside, 5)
                    assert got is not None
                    await inside.sendto(b"hello you", got[1])
                    assert await receive(stranger, 5) == (b"hello you", (home.outside, FORWARDED))

    @pytest.mark.parametrize("only", ["udp", "tcp"])
    @pytest.mark.parametrize("kind", ["open", "full-cone"])
    async def test_one_transport_alone(self, only: Transport, kind: str) -> None:
        trio.socket.set_custom_socket_factory(SocketsOfNamespaces())
        with Wire() as wire:
            async with open_lab(wire, kind, only=only) as lab:
                host = lab.homes[0].host
                with await bound(lab.server, 9) as udp, await bound(host) as client:
                    await client.sendto(b"?", (lab.server.ip, 9))
                    got = await receive(udp, 5 if only == "udp" else 4 * RTT)
                    if got is not None:
                        await udp.sendto(b"!", got[1])
                        got = await receive(client, 5)
                    assert (got is not None) == (only == "udp")
                for place, reachable in ((lab.server, True), (lab.bystander, only == "tcp")):
                    with reusable(place) as listener, reusable(host) as caller:
                        await listener.bind(("0.0.0.0", 9))
                        listener.listen()
                        with trio.move_on_after(5 if reachable else 4 * RTT) as patience:
                            await caller.connect((place.ip, 9))
                        assert patience.cancelled_caught != reachable

    async def test_commands_run_on_a_machine(self) -> None:
        with Wire() as wire:
            async with open_lab(wire, "port-restricted") as lab:
                host = lab.homes[0].host
                done = await run_on(host, "ip", "-4", "-brief", "address", "show", "dev", "eth0")
                assert host.ip in done.stdout.decode()
                done = await run_on(host, "sh", "-c", "echo no >&2; exit 3")
                assert (done.returncode, done.stderr) == (3, b"no\n")

    def test_every_kind_is_taken_down_without_a_trace(self) -> None:
        before = len(os.listdir("/proc/self/fd"))
        names = set(Path("/sys/class/net").iterdir())
        with Wire() as wire:
            for kind in NATS:
                lab = Lab(wire)
                lab.home(kind)
                lab.close()
        assert len(os.listdir("/proc/self/fd")) == before
        assert set(Path("/sys/class/net").iterdir()) == names

    def test_bad_rules_say_what_is_wrong(self) -> None:
        with Wire() as wire:
            lab = Lab(wire)
            try:
                with pytest.raises(RuntimeError, match=r"server: nft .*syntax error"):
                    lab.server.machine.rules("nonsense")
            finally:
                lab.close()
