"""`Host.wait_change` on machines of the kernel: what it reports, what it does not, and what it does without netlink."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from typing import Final

import pytest
import trio
import trio.testing

from tests.hangs import HANG
from tests.kernel.machines import inside
from tests.kernel.namespaces import Namespace
from warpgate_trio import host, linux

pytestmark = pytest.mark.needs("network_namespaces")


_CABLE: Final = (
    "link add eth0 type veth peer name eth9",
    *(f"link set {name} addrgenmode none up" for name in ("eth0", "eth9")),  # a link-local address would take seconds
)
_SO_RCVBUFFORCE: Final = 33  # of asm-generic/socket.h


@asynccontextmanager
async def machine() -> AsyncGenerator[Namespace]:
    """A machine with an interface that has an address."""
    with closing(Namespace("a")) as namespace:
        namespace.ip_commands(*_CABLE, "addr add 192.0.2.1/24 dev eth0")
        async with inside(namespace):
            with trio.fail_after(HANG):
                while len(host.current().interfaces()) < 3:  # noqa: ASYNC110 - the links come up a moment later
                    await trio.sleep(0.001)
            yield namespace


async def begin_waiting(nursery: trio.Nursery) -> trio.Event:
    """Wait for a change in `nursery`; returns an event that is set when `wait_change` returns."""
    told = trio.Event()

    async def wait() -> None:
        await host.current().wait_change()
        told.set()

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert not told.is_set()
    return told


@pytest.mark.parametrize(
    "command",
    [
        "addr add 192.0.2.7/24 dev eth0",
        "addr del 192.0.2.1/24 dev eth0",
        "addr add 2001:db8::7/64 dev eth0 nodad",
        "link set eth0 down",
        "link del eth0",
        "link add eth1 up type bridge",
    ],
)
async def test_a_change_is_told(command: str) -> None:
    async with machine() as namespace, trio.open_nursery() as nursery:
        told = await begin_waiting(nursery)
        namespace.ip_commands(command)
        with trio.fail_after(HANG):
            await told.wait()


async def test_what_changes_nothing_is_not_told() -> None:
    """The kernel announces a link's new MTU and a renewed address, but the list of interfaces stays the same."""
    async with machine() as namespace:
        with await linux._open_news() as news:
            async with trio.open_nursery() as nursery:
                told = await begin_waiting(nursery)
                namespace.ip_commands(
                    "link set eth0 mtu 1400", "addr change 192.0.2.1/24 dev eth0 valid_lft 1000 preferred_lft 1000"
                )
                with trio.fail_after(HANG):
                    await news.recv(65536)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert not told.is_set()
                nursery.cancel_scope.cancel()


async def test_a_change_between_the_call_and_its_first_wait_is_told() -> None:
    """The list of interfaces changes after its first reading, before the netlink socket is open."""
    async with machine() as namespace:

        async def wait() -> None:
            await linux.wait_difference(look)

        def look() -> object:
            found = host.current().interfaces()
            if not looks:
                namespace.ip_commands("addr add 192.0.2.7/24 dev eth0")
            looks.append(found)
            return found

        looks: list[object] = []
        with trio.fail_after(HANG):
            await wait()
        assert len(looks) == 2


async def test_more_news_than_the_socket_holds_is_news() -> None:
    """ENOBUFS means lost messages, so anything may have changed."""
    async with machine() as namespace:
        with await linux._open_news() as news:
            news.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            namespace.ip_commands(*(f"addr add 192.0.2.{number}/24 dev eth0" for number in range(2, 100)))
            with trio.fail_after(HANG):
                assert await linux._wait_news(news)


async def test_a_storm_is_taken_in_bounded_steps() -> None:
    async with machine() as namespace:
        with await linux._open_news() as news:
            news.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 22)
            namespace.ip_commands(*(f"addr add 192.0.2.{number}/24 dev eth0" for number in range(2, 100)))
            with trio.fail_after(HANG):
                assert not await linux._wait_news(news)
                assert news.is_readable()
                assert not await linux._wait_news(news)
            assert not news.is_readable()


PROGRAM = """
import subprocess
import trio
from warpgate_trio import host, linux

async def main():
    linux.POLL_INTERVAL = 0.05
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.current().wait_change)
        await trio.sleep(0.2)
        assert nursery.child_tasks
        # What is denied to this process its parent does.
        print("now", flush=True)

trio.run(main)
print("told")
"""


@pytest.mark.slow("another interpreter")
@pytest.mark.needs("seccomp")
@pytest.mark.parametrize("denied", ["netlink", ""])
def test_where_netlink_is_denied_it_looks_now_and_then(denied: str) -> None:
    with closing(Namespace("a")) as namespace:
        namespace.ip_commands(*_CABLE, "route add default dev eth0")
        command = [sys.executable, "-c", PROGRAM]
        if denied:
            command = [sys.executable, "-m", "tests.seccomp", denied, *command]
        with subprocess.Popen(
            namespace.command(command), stdout=subprocess.PIPE, text=True, pass_fds=[namespace.fd]
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "now\n"
            namespace.ip_commands("addr add 192.0.2.7/24 dev eth0")
            try:
                assert child.communicate(timeout=HANG)[0] == "told\n"
            finally:
                child.kill()
