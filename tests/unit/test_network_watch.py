"""When a machine has moved or slept, by what it says of itself."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_address
from typing import final

import pytest
import trio
from trio.testing import MockClock

from tests.nodes import LoopbackHost
from warpgate_trio.host import Interface, InterfaceAddress
from warpgate_trio.node.network_watch import LOOK_INTERVAL, SLEPT, NetworkWatch

MOVED, SLEPT_OR_SET = "the machine's addresses have changed", "the machine has slept, or its clock was set"


def interface(name: str, ip: str) -> Interface:
    address = InterfaceAddress(ip=ip_address(ip), prefix=24)
    return Interface(name=name, index=2, addresses=(address,), is_loopback=False, is_virtual=False)


ETH0 = interface("eth0", "192.0.2.7")


@final
class Machine(LoopbackHost):  # type: ignore[misc]  # final for everybody else
    """One whose interfaces and clock the test has a hand in."""

    def __init__(self) -> None:
        super().__init__()
        self.listed: tuple[Interface, ...] = (ETH0,)
        self.ahead = 0.0
        self.dumb = False

    def interfaces(self) -> tuple[Interface, ...]:
        if self.dumb:
            raise OSError("no netlink")
        return self.listed

    def wall_time(self) -> float:
        return trio.current_time() + self.ahead


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def watch(machine: Machine) -> NetworkWatch:
    return NetworkWatch(machine, on_change=lambda: None, on_look=lambda: None)


async def test_what_is_seen_first_is_no_change(watch: NetworkWatch) -> None:
    assert [watch.look() for _ in range(3)] == [""] * 3


@pytest.mark.parametrize(
    "now",
    [
        (interface("eth0", "192.0.2.8"),),
        (ETH0, interface("wlan0", "198.51.100.1")),
        (dataclasses.replace(ETH0, addresses=()),),
        (),
    ],
)
async def test_another_address_is_a_change_once(machine: Machine, watch: NetworkWatch, now: tuple[Interface]) -> None:
    watch.look()
    machine.listed = now
    assert [watch.look() for _ in range(2)] == [MOVED, ""]
    machine.listed = (ETH0,)
    assert [watch.look() for _ in range(2)] == [MOVED, ""]


@pytest.mark.parametrize("kind", ["is_loopback", "is_virtual", "is_excluded"])
async def test_an_interface_that_no_path_goes_by_is_none(machine: Machine, watch: NetworkWatch, kind: str) -> None:
    watch.look()
    other = interface("docker0", "172.17.0.1")
    machine.listed = (ETH0, dataclasses.replace(other, **{kind: True}))  # type: ignore[arg-type]
    assert watch.look() == ""


@pytest.mark.parametrize("by", [3600.0, -3600.0, SLEPT + 0.01])
async def test_a_clock_that_jumps_is_a_sleep(machine: Machine, watch: NetworkWatch, by: float) -> None:
    watch.look()
    machine.ahead += by
    assert [watch.look() for _ in range(2)] == [SLEPT_OR_SET, ""]


async def test_a_clock_that_drifts_is_none(machine: Machine, watch: NetworkWatch) -> None:
    for _ in range(10):
        machine.ahead += SLEPT - 0.01
        assert watch.look() == ""


async def test_it_looks_every_two_seconds_and_tells(autojump_clock: MockClock, machine: Machine) -> None:
    changes: list[float] = []
    looks: list[float] = []
    watch = NetworkWatch(
        machine,
        on_change=lambda: changes.append(trio.current_time()),
        on_look=lambda: looks.append(trio.current_time()),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await trio.sleep(2.5 * LOOK_INTERVAL)
        machine.listed = ()
        await trio.sleep(LOOK_INTERVAL)
        machine.ahead += 60.0
        await trio.sleep(LOOK_INTERVAL)
        nursery.cancel_scope.cancel()
    assert changes == [3 * LOOK_INTERVAL, 4 * LOOK_INTERVAL]
    assert looks == [number * LOOK_INTERVAL for number in range(5)]


async def test_a_machine_that_tells_of_no_change_is_looked_at_all_the_same(
    autojump_clock: MockClock, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise OSError("Too many open files")

    monkeypatch.setattr(machine, "wait_change", fail)
    looks: list[float] = []
    watch = NetworkWatch(machine, on_change=lambda: None, on_look=lambda: looks.append(trio.current_time()))
    with trio.move_on_after(4.5 * LOOK_INTERVAL):
        await watch.run()
    assert looks == [number * LOOK_INTERVAL for number in range(5)]


async def test_a_machine_that_does_not_tell_moves_unnoticed(machine: Machine, watch: NetworkWatch) -> None:
    machine.dumb = True
    await watch.run()
