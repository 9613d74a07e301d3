"""Which addresses lead to this host itself: those of its interfaces, and those that its routing table makes local."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from warpgate_trio.address import OwnAddresses
from warpgate_trio.host import Interface, InterfaceAddress, RealHost


class Machine(RealHost):  # type: ignore[misc]  # final for everybody else
    """Has public addresses, one of a virtual interface, and two that only its routing table knows."""

    def interfaces(self) -> tuple[Interface, ...]:
        def interface(index: int, *texts: str, is_virtual: bool = False) -> Interface:
            addresses = tuple(InterfaceAddress(ip=ip_address(text), prefix=24) for text in texts)
            return Interface(
                name=f"eth{index}", index=index, addresses=addresses, is_loopback=False, is_virtual=is_virtual
            )

        return interface(2, "203.0.113.7", "2001:db8::7"), interface(3, "172.17.0.1", is_virtual=True)

    def source_address(self, dest: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address | None:
        return dest if dest in (ip_address("10.99.0.1"), ip_address("fd00:99::1")) else ip_address("203.0.113.7")


@pytest.mark.parametrize(
    "text",
    [
        *("127.0.0.1", "127.9.9.9", "::1", "203.0.113.7", "2001:db8::7", "172.17.0.1", "10.99.0.1", "fd00:99::1"),
        *("::ffff:203.0.113.7", "64:ff9b::203.0.113.7", "2002:cb00:7107::1", "::ffff:127.0.0.1"),
    ],
)
def test_an_address_of_the_machine(text: str) -> None:
    assert ip_address(text) in OwnAddresses(Machine())


@pytest.mark.parametrize(
    "text", ["203.0.113.8", "172.17.0.2", "10.99.0.2", "2001:db8::8", "8.8.8.8", "64:ff9b::808:808"]
)
def test_an_address_of_somebody_else(text: str) -> None:
    assert ip_address(text) not in OwnAddresses(Machine())


def test_what_is_no_address_is_not_among_them() -> None:
    assert "127.0.0.1" not in OwnAddresses(Machine())


def test_on_this_very_machine() -> None:
    """All addresses that the host reports, and all of 127.0.0.0/8, although an interface has only one of those."""
    own = OwnAddresses(RealHost())
    for interface in RealHost().interfaces():
        for address in interface.addresses:
            assert address.ip in own
    assert ip_address("127.200.1.1") in own
    assert ip_address("203.0.113.77") not in own
