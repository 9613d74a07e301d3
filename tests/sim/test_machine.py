"""`simulated_machine`: the clocks of the standard library and psutil, on simulated hosts."""

from __future__ import annotations

import email.utils
import socket
import time
from functools import partial
from typing import Any

import hypercorn.config
import hypercorn.trio
import psutil
import pytest
import trio

from tests.sim import test_machine as this_module
from warpgate_trio.sim import Link, Network, simulate
from warpgate_trio.testing import simulated_machine

now_ns = time.time_ns


def test_clocks_are_the_hosts() -> None:
    async def main() -> None:
        async with Network(seed=3) as net:
            with net.host("right"):
                assert time.time() == net.epoch
                assert now_ns() == time.time_ns() == pytest.approx(net.epoch * 1e9)
                assert time.monotonic() == 0
                await trio.sleep(2.5)
                assert time.time() == net.epoch + 2.5
                assert time.monotonic_ns() == 2_500_000_000
                assert psutil.boot_time() == pytest.approx(net.epoch)
                with net.host("wrong", clock_offset=-20):
                    assert time.time() == net.epoch - 17.5
            assert abs(time.time() - real) < 3600  # outside of any host

    real = time.time()
    before = [time.time, time.monotonic, psutil.net_if_addrs, this_module.now_ns]
    with simulated_machine(this_module):
        simulate(main)
    assert [time.time, time.monotonic, psutil.net_if_addrs, this_module.now_ns] == before


def test_the_clocks_come_back_after_an_exception() -> None:
    before = time.time
    with pytest.raises(KeyError), simulated_machine():
        assert time.time is not before
        raise KeyError
    assert time.time is before


def test_interfaces_are_the_hosts() -> None:
    async def main() -> None:
        async with Network(ipv6=True) as net:
            host = net.lan("home").host("alice", link=Link(mtu=1400))
            with host:
                addresses = psutil.net_if_addrs()
                assert list(addresses) == ["lo", "eth0"]
                assert [each.address for each in addresses["lo"]] == ["127.0.0.1", "::1"]
                four, six = addresses["eth0"]
                assert four[:3] == (socket.AF_INET, host.ip, "255.255.255.0")
                assert six[:2] == (socket.AF_INET6, host.ip6)
                stats = psutil.net_if_stats()
                assert stats["lo"].flags.split(",")[1] == "loopback"
                assert (stats["eth0"].isup, stats["eth0"].mtu) == (True, 1400)

    with simulated_machine():
        simulate(main)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what it imports
def test_a_servers_dates_are_of_the_simulation() -> None:
    config = hypercorn.config.Config()
    config.bind = ["0.0.0.0:80"]
    config.errorlog = config.accesslog = None

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                await send({"type": (await receive())["type"] + ".complete"})
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def main() -> None:
        async with Network(seed=3) as net, trio.open_nursery() as nursery:
            with net.host("server"):
                await nursery.start(partial(hypercorn.trio.serve, application, config, mode="asgi"))
            with net.host("client"):
                async with await trio.open_tcp_stream("server", 80) as stream:
                    await stream.send_all(b"GET / HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n")
                    lines = b"".join([chunk async for chunk in stream]).decode().splitlines()
            (date,) = (line.partition(": ")[2] for line in lines if line.startswith("date: "))
            assert email.utils.parsedate_to_datetime(date).timestamp() == int(net.epoch)
            nursery.cancel_scope.cancel()

    with simulated_machine(hypercorn.config):
        simulate(main)
