"""How a host's interfaces and clocks show that it has moved or slept."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_address
from typing import final

import pytest
import trio
from trio.testing import MockClock

from tests.nodes import LoopbackHost
from warpgate_trio.host import Interface, InterfaceAddress
from warpgate_trio.node.network_watch import LOOK_INTERVAL, NAP, SLEEP_INTERVAL, SLEPT, NetworkWatch


def interface(name: str, ip: str) -> Interface:
    address = InterfaceAddress(ip=ip_address(ip), prefix=24)
    return Interface(name=name, index=2, addresses=(address,), is_loopback=False, is_virtual=False)


ETH0 = interface("eth0", "192.0.2.7")


@final
class Machine(LoopbackHost):  # type: ignore[misc]  # final for everybody else
    """A host whose interfaces and clocks the test controls."""

    def __init__(self) -> None:
        super().__init__()
        self.listed: tuple[Interface, ...] = (ETH0,)
        self.ahead = self.slept = 0.0
        self.dumb = False

    def interfaces(self) -> tuple[Interface, ...]:
        if self.dumb:
            raise OSError("no netlink")
        return self.listed

    def wall_time(self) -> float:
        return trio.current_time() + self.ahead

    def asleep(self) -> float:
        return self.slept


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def watch(machine: Machine) -> NetworkWatch:
    return NetworkWatch(machine, on_change=lambda: None, on_look=lambda: None)


async def test_what_is_seen_first_is_no_change(watch: NetworkWatch) -> None:
    assert [(watch.has_moved(), watch.has_slept()) for _ in range(3)] == [(False, False)] * 3


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
    watch.has_moved()
    for listed in (now, (ETH0,)):
        machine.listed = listed
        assert [watch.has_moved() for _ in range(2)] == [True, False]


@pytest.mark.parametrize("kind", ["is_loopback", "is_virtual", "is_excluded"])
async def test_an_interface_that_no_path_goes_by_is_none(machine: Machine, watch: NetworkWatch, kind: str) -> None:
    watch.has_moved()
    other = interface("docker0", "172.17.0.1")
    machine.listed = (ETH0, dataclasses.replace(other, **{kind: True}))  # type: ignore[arg-type]
    assert not watch.has_moved()


@pytest.mark.parametrize("by", [3600.0, -3600.0, SLEPT + 0.01])
async def test_a_clock_that_jumps_is_a_sleep(machine: Machine, watch: NetworkWatch, by: float) -> None:
    watch.has_slept()
    machine.ahead += by
    assert [watch.has_slept() for _ in range(2)] == [True, False]


async def test_a_clock_that_drifts_is_none(machine: Machine, watch: NetworkWatch) -> None:
    for _ in range(10):
        machine.ahead += SLEPT - 0.01
        assert not watch.has_slept()


async def test_that_time_passes_is_none(autojump_clock: MockClock, watch: NetworkWatch) -> None:
    watch.has_slept()
    await trio.sleep(3600.0)
    assert not watch.has_slept()


@pytest.mark.parametrize("by", [0.1, 3600.0])
async def test_a_sleep_that_the_system_counts_is_one_however_short(
    machine: Machine, watch: NetworkWatch, by: float
) -> None:
    watch.has_slept()
    machine.slept += by
    assert [watch.has_slept() for _ in range(2)] == [True, False]
    machine.slept += NAP / 2
    assert not watch.has_slept()


async def test_who_looks_in_mid_sleep_waits_for_its_end(
    autojump_clock: MockClock, machine: Machine, watch: NetworkWatch
) -> None:
    watch.has_slept()
    for _ in range(3):
        await trio.sleep(SLEEP_INTERVAL)
        machine.slept += SLEEP_INTERVAL
        assert not watch.has_slept()
    await trio.sleep(SLEEP_INTERVAL)
    machine.slept += SLEEP_INTERVAL / 2
    assert watch.has_slept()


async def test_it_looks_for_addresses_every_two_seconds_for_sleep_each_half_and_tells(
    autojump_clock: MockClock, machine: Machine
) -> None:
    changes: list[float] = []
    looks: list[float] = []
    watch = NetworkWatch(
        machine,
        on_change=lambda: changes.append(trio.current_time()),
        on_look=lambda: looks.append(trio.current_time()),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await trio.sleep(2.55 * LOOK_INTERVAL)
        machine.listed = ()
        await trio.sleep(LOOK_INTERVAL)
        machine.ahead += 60.0
        await trio.sleep(LOOK_INTERVAL)
        nursery.cancel_scope.cancel()
    assert changes == [3 * LOOK_INTERVAL, 3.5 * LOOK_INTERVAL + SLEEP_INTERVAL]
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
    with trio.move_on_after(0.01):
        await watch.run()
