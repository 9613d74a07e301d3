from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import trio

import warpgate_trio
from warpgate_trio import host, linux, machine
from warpgate_trio.host import LIST_LASTS, Gateway, Interface, InterfaceAddress, RealHost

FINGERPRINT = b"\1" * 32


@dataclass
class FakeHost:
    """A host that only knows its time, and can be told apart by that."""

    time: float = 0.0
    random: random.Random = field(default_factory=lambda: random.Random(1))

    def interfaces(self) -> tuple[Interface, ...]:
        return ()

    async def wait_change(self) -> None:
        await trio.sleep_forever()

    def source_address(self, dest: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address | None:
        return None

    def gateways(self) -> tuple[Gateway, ...]:
        return ()

    def name(self) -> str:
        return "fake"

    def environment(self) -> Mapping[str, str]:
        return {}

    def wall_time(self) -> float:
        return self.time

    def asleep(self) -> float:
        return 0.0

    def entropy(self, n: int) -> bytes:
        return bytes(n)

    def spare_descriptors(self) -> int:
        return 0

    def machine_fingerprint(self) -> bytes:
        return FINGERPRINT


class TestCurrent:
    def test_is_the_real_machine_outside_of_trio(self) -> None:
        assert isinstance(host.current(), RealHost)

    async def test_is_the_real_machine_inside_of_trio(self) -> None:
        assert isinstance(host.current(), RealHost)

    async def test_provider_is_asked_every_time_and_put_back(self) -> None:
        hosts = iter([FakeHost(1.0), FakeHost(2.0)])

        def first() -> FakeHost:
            return next(hosts)

        assert host.set_provider(first) is None
        assert [host.current().wall_time(), host.current().wall_time()] == [1.0, 2.0]
        second = FakeHost(3.0)
        assert host.set_provider(lambda: second) is first
        assert host.current() is second
        host.set_provider(None)
        assert isinstance(host.current(), RealHost)

    def test_provider_ends_with_its_run(self) -> None:
        async def install() -> None:
            host.set_provider(FakeHost)

        async def ask() -> host.Host:
            return host.current()

        trio.run(install)
        assert isinstance(trio.run(ask), RealHost)

    async def test_worker_threads_see_the_real_machine(self) -> None:
        host.set_provider(FakeHost)
        assert isinstance(await trio.to_thread.run_sync(host.current), RealHost)

    def test_provider_needs_a_run(self) -> None:
        with pytest.raises(RuntimeError):
            host.set_provider(None)


class TestRealHost:
    """Against the host that runs the test, whatever it is."""

    def test_interfaces(self) -> None:
        interfaces = RealHost().interfaces()
        assert len({each.index for each in interfaces}) == len(interfaces)
        loopback = [each for each in interfaces if each.is_loopback]
        assert any(address.ip.is_loopback for each in loopback for address in each.addresses)
        for each in interfaces:
            for address in each.addresses:
                assert 0 <= address.prefix <= address.ip.max_prefixlen
                assert "%" not in str(address.ip)

    @pytest.mark.skipif(sys.platform == "win32", reason="psutil's names are not the kernel's there")
    def test_indexes_are_the_kernel_s(self) -> None:
        indexes = {name: index for index, name in socket.if_nameindex()}
        assert all(indexes[each.name] == each.index for each in RealHost().interfaces())

    def test_a_list_of_interfaces_is_good_for_a_moment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now, lists = 100.0, 0
        real = RealHost()

        def count() -> dict[str, list[object]]:
            nonlocal lists
            lists += 1
            return {}

        monkeypatch.setattr(psutil, "net_if_addrs", count)
        monkeypatch.setattr(time, "monotonic", lambda: now)
        for _ in range(3):
            real.interfaces()
        assert lists == 1
        now += 2 * LIST_LASTS
        real.interfaces()
        assert lists == 2

    async def test_who_waits_for_a_change_is_never_told_an_old_list(self, monkeypatch: pytest.MonkeyPatch) -> None:
        looks: list[Callable[[], object]] = []

        async def keep(look: Callable[[], object]) -> None:
            looks.append(look)

        states: list[dict[str, SimpleNamespace]] = [{}, {"eth0": SimpleNamespace(isup=True, flags="up")}]
        monkeypatch.setattr(host, "wait_difference", keep)
        monkeypatch.setattr(psutil, "net_if_addrs", dict)
        monkeypatch.setattr(psutil, "net_if_stats", partial(states.pop, 0))
        monkeypatch.setattr(time, "monotonic", lambda: 100.0)
        real = RealHost()
        assert real.interfaces() == ()
        await real.wait_change()
        assert looks[0]() == real.interfaces() != ()

    def test_some_descriptors_are_to_spare(self) -> None:
        assert RealHost().spare_descriptors() > 0

    def test_source_of_loopback_is_loopback(self) -> None:
        assert RealHost().source_address(IPv4Address("127.0.0.1")) == IPv4Address("127.0.0.1")

    @pytest.mark.parametrize("dest", ["0.0.0.0", "::", "255.255.255.255", "fe80::1"])
    def test_no_source_for_what_is_no_destination(self, dest: str) -> None:
        assert RealHost().source_address(ip_address(dest)) is None

    def test_source_is_an_address_of_an_interface(self) -> None:
        real = RealHost()
        own = {address.ip for each in real.interfaces() for address in each.addresses}
        assert real.source_address(IPv4Address("192.0.2.1")) in own | {None}

    def test_wall_time(self) -> None:
        before = time.time()
        assert before <= RealHost().wall_time() <= time.time()

    def test_entropy(self) -> None:
        first, second = RealHost().entropy(32), RealHost().entropy(32)
        assert len(first) == 32
        assert first != second

    def test_random_is_one_generator_that_is_not_the_module_s(self) -> None:
        real = RealHost()
        assert real.random is real.random
        random.seed(1)
        first = real.random.random()
        random.seed(1)
        assert real.random.random() != first

    def test_fingerprint_is_stable(self) -> None:
        assert len(RealHost().machine_fingerprint()) == 32
        assert RealHost().machine_fingerprint() == RealHost().machine_fingerprint()

    @pytest.mark.needs("network_namespaces")
    @pytest.mark.slow("starts a second interpreter: without setns(2), new in Python 3.12, a thread cannot come back")
    def test_fingerprint_is_another_in_another_network_namespace(self) -> None:
        code = "from warpgate_trio.host import RealHost as H; print(H().machine_fingerprint().hex(), H().interfaces())"
        path = str(Path(warpgate_trio.__file__).parents[1])
        done = subprocess.run(
            ["unshare", "--net", sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        fingerprint, _, interfaces = done.stdout.partition(" ")
        assert len(bytes.fromhex(fingerprint)) == 32
        assert fingerprint != RealHost().machine_fingerprint().hex()
        assert interfaces == "()\n"  # loopback is down in a new namespace, and only interfaces that are up count

    @pytest.mark.needs("network_namespaces")
    @pytest.mark.slow("the kernel takes its time to find out that an address is somebody else's")
    def test_the_kernel_s_states_of_ipv6_addresses(self) -> None:
        """Both ends of a cable: a deprecated address, a duplicate one, and one whose duplicate detection still runs."""
        code = """
import subprocess
from warpgate_trio.host import RealHost
def ip(*words): return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
def seen(name):
    (found,) = [each for each in RealHost().interfaces() if each.name == name]
    return sorted((str(each.ip), each.is_deprecated) for each in found.addresses if not each.ip.is_link_local)
ip("link", "add", "wg0", "type", "veth", "peer", "name", "wg1")
for name in ("lo", "wg0", "wg1"):
    ip("link", "set", name, "up")
ip("addr", "add", "2001:db8:1::1/64", "dev", "wg0", "nodad", "preferred_lft", "0")
ip("addr", "add", "2001:db8:2::1/64", "dev", "wg0", "nodad")
ip("addr", "add", "2001:db8:3::1/64", "dev", "wg1", "nodad")
ip("addr", "add", "2001:db8:3::1/64", "dev", "wg0")
while "dadfailed" not in ip("addr", "show", "dev", "wg0"):
    pass
with open("/proc/sys/net/ipv6/conf/wg0/dad_transmits", "w") as file:
    file.write("100")  # as many seconds
ip("addr", "add", "2001:db8:4::1/64", "dev", "wg0")
assert "tentative" in ip("addr", "show", "to", "2001:db8:4::1")
print(seen("wg0"), seen("wg1"))
"""
        done = subprocess.run(
            ["unshare", "--net", sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(Path(warpgate_trio.__file__).parents[1])},
            capture_output=True,
            text=True,
            check=False,
        )
        expected = [("2001:db8:1::1", True), ("2001:db8:2::1", False)], [("2001:db8:3::1", False)]
        assert done.stdout.strip() == " ".join(map(str, expected)), done.stderr


class TestFingerprintParts:
    """The fallbacks of `machine_fingerprint`, when the usual files are missing."""

    def test_machine_id_falls_back_to_the_mac_address(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "_read_line", lambda path: "")
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setattr("uuid.getnode", lambda: 0x0200_0000_0001)
        assert machine._machine_id() == "mac-020000000001"
        first = RealHost().machine_fingerprint()
        monkeypatch.setattr("uuid.getnode", lambda: 0x0200_0000_0002)
        assert RealHost().machine_fingerprint() != first

    def test_containers_that_share_a_network_namespace_are_one_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The containers of a Kubernetes pod each have their image's machine id, or none."""
        boot_id = {"/proc/sys/kernel/random/boot_id": "b7d2"}
        monkeypatch.setattr(machine, "_read_line", lambda path: boot_id.get(path, ""))
        monkeypatch.setattr(machine, "_network_namespace", lambda: "4:4026531840")
        first = RealHost().machine_fingerprint()
        boot_id["/etc/machine-id"] = "another"
        assert RealHost().machine_fingerprint() == first
        monkeypatch.setattr(machine, "_network_namespace", lambda: "4:4026531841")
        assert RealHost().machine_fingerprint() != first

    def test_a_missing_or_binary_file_is_no_error(self, tmp_path: Path) -> None:
        (tmp_path / "id").write_bytes(b"\xff\xfe" * 400)
        assert machine._read_line(str(tmp_path / "missing")) == ""
        assert len(machine._read_line(str(tmp_path / "id"))) == 256


class TestHostId:
    def test_golden(self) -> None:
        assert host.host_id(FINGERPRINT, b"\2" * 8, b"\3" * 32).hex() == "a573eab35b9a43a540f93bdee0683fb0"

    def test_golden_of_earlier_releases(self) -> None:
        assert host.host_id(FINGERPRINT, b"\2" * 8).hex() == "e92cd9a8821b0ae830c39ff1fcc8efdb"

    def test_depends_on_each(self) -> None:
        either = (b"\1", b"\2")
        ids = {host.host_id(f * 32, s * 8, k * 32) for f in either for s in either for k in either}
        assert len(ids) == 8
        assert all(len(each) == host.HOST_ID_LENGTH for each in ids)

    @pytest.mark.parametrize(
        ("fingerprint", "salt", "key"), [(31, 8, 32), (33, 8, 32), (32, 7, 32), (32, 9, 32), (32, 8, 31), (32, 8, 33)]
    )
    def test_lengths(self, fingerprint: int, salt: int, key: int) -> None:
        with pytest.raises(ValueError, match="a host id is of a"):
            host.host_id(bytes(fingerprint), bytes(salt), bytes(key))


class TestInterfacesFromPsutil:
    """psutil's data from other platforms, as `Interface` tuples."""

    def test_linux(self) -> None:
        found = host._interfaces(
            {
                "lo": [("127.0.0.1", "255.0.0.0"), ("::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")],
                "eth0": [("192.0.2.2", "255.255.254.0"), ("fe80::1%eth0", "ffff:ffff:ffff:ffff::")],
                "eth0:backup": [("192.0.2.9", "255.255.255.255"), ("192.0.2.2", "255.255.254.0")],
                "down0": [("192.0.2.3", "255.255.255.0")],
                "ppp0": [("198.51.100.1", None)],
            },
            {"ppp0": {"up"}, "lo": {"up", "loopback"}, "eth0": {"up"}, "wlan0": {"up"}},
            {"lo": 1, "eth0": 2, "ppp0": 5, "wlan0": 3}.get,
            {},
        )
        assert [(each.name, each.index, each.is_loopback) for each in found] == [
            ("lo", 1, True),
            ("eth0", 2, False),
            ("wlan0", 3, False),
            ("ppp0", 5, False),
        ]
        assert found[1].addresses == (
            InterfaceAddress(ip=IPv4Address("192.0.2.2"), prefix=23),
            InterfaceAddress(ip=IPv6Address("fe80::1"), prefix=64),
            InterfaceAddress(ip=IPv4Address("192.0.2.9"), prefix=32),
        )
        assert found[2].addresses == ()
        assert found[3].addresses == (InterfaceAddress(ip=IPv4Address("198.51.100.1"), prefix=32),)

    def test_windows(self) -> None:
        found = host._interfaces(
            {
                "Loopback Pseudo-Interface 1": [("127.0.0.1", "255.0.0.0"), ("::1", None)],
                "Ethernet": [("192.0.2.2", "255.255.255.0"), ("2001:db8::2", None)],
                "vEthernet (WSL)": [("172.20.0.1", "255.255.240.0")],
            },
            {"Loopback Pseudo-Interface 1": {""}, "Ethernet": {""}, "vEthernet (WSL)": {""}},
            lambda name: None,
            {},
        )
        assert [each.is_loopback for each in found] == [True, False, False]
        assert len({each.index for each in found}) == 3
        assert found[1].addresses[1].prefix == 64

    @pytest.mark.parametrize(
        ("name", "virtual"),
        [
            ("docker0", True),
            ("docker_gwbridge", True),
            ("br-0123456789ab", True),
            ("br-lan", False),  # OpenWrt's LAN
            ("br0", False),
            ("veth1a2b3c4", True),
            ("vethernet0", False),
            ("vEthernet (External)", False),
            ("virbr0", True),
            ("vmnet8", True),
            ("VMware Network Adapter VMnet8", True),
            ("vboxnet0", True),
            ("VirtualBox Host-Only Network", True),
            ("cni0", True),
            ("cni-podman0", True),
            ("flannel.1", True),
            ("podman1", True),
            ("eth0", False),
            ("wlp2s0", False),
            ("wg0", False),
            ("tun0", False),
            ("lo", False),
        ],
    )
    def test_virtual_names(self, name: str, virtual: bool) -> None:
        (found,) = host._interfaces({}, {name: {"up"}}, lambda name: 1, {})
        assert found.is_virtual is virtual

    def test_states_of_ipv6_addresses(self) -> None:
        """From the flags in /proc/net/if_inet6, which are those of the kernel's if_addr.h."""
        lines = {
            "2001:db8::10": 0x80,  # permanent
            "2001:db8::11": 0x01,  # temporary
            "2001:db8::12": 0xA0,  # deprecated
            "2001:db8::13": 0x21,
            "2001:db8::14": 0x48,  # duplicate address detection failed; the kernel keeps the tentative flag
            "2001:db8::15": 0x08,
            "2001:db8::16": 0x40,  # tentative
            "2001:db8::17": 0x44,  # optimistic: may be used meanwhile
        }
        text = "".join(f"{IPv6Address(ip).packed.hex()} 02 40 00 {flags:02x}     eth0\n" for ip, flags in lines.items())
        text += f"{IPv6Address('2001:db8::10').packed.hex()} 03 40 00 08     eth1\nnonsense\n"
        mask = "ffff:ffff:ffff:ffff::"
        (eth0, _) = host._interfaces(
            {
                "eth0": [("192.0.2.2", "255.255.255.0"), *((ip, mask) for ip in lines), ("2001:db8::18", mask)],
                "eth1": [],
            },
            {"eth0": {"up"}, "eth1": {"up"}},
            {"eth0": 2, "eth1": 3}.get,
            linux.parse_if_inet6(text),
        )
        assert {str(each.ip): (each.is_deprecated, each.is_temporary) for each in eth0.addresses} == {
            "192.0.2.2": (False, False),
            "2001:db8::10": (False, False),
            "2001:db8::11": (False, True),
            "2001:db8::12": (True, False),
            "2001:db8::13": (True, True),
            "2001:db8::17": (False, False),
            "2001:db8::18": (False, False),  # appeared between the two readings
        }

    def test_gateways_are_those_of_default_routes(self) -> None:
        """From /proc/net/route, where IPv4 addresses are in the host's byte order, and /proc/net/ipv6_route."""

        def word(ip: str) -> str:
            return f"{int.from_bytes(IPv4Address(ip).packed, sys.byteorder):08X}"

        zero, mask = word("0.0.0.0"), word("255.255.255.0")
        text = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        for name, to, by, flags, of in (
            ("eth0", zero, word("192.168.1.1"), 3, zero),
            ("tun0", zero, zero, 1, zero),  # no gateway: a tunnel
            ("eth0", word("192.168.1.0"), zero, 1, mask),
            ("eth0", word("10.0.0.0"), word("192.168.1.2"), 3, mask),
        ):
            text += f"{name}\t{to}\t{by}\t{flags:04X}\t0\t0\t100\t{of}\t0\t0\t0\n"
        assert linux.parse_route(text + "nonsense\n") == [("eth0", IPv4Address("192.168.1.1"))]
        router, none = IPv6Address("fe80::1").packed.hex(), "0" * 32
        lines = (
            f"{none} 00 {none} 00 {router} 00000400 1 0 00000003 eth0",
            f"{none} 00 {none} 00 {none} ffffffff 1 0 00200200 lo",  # unreachable
            f"20010db8{'0' * 24} 40 {none} 00 {none} 00000100 1 0 00000001 eth0",
        )
        assert linux.parse_ipv6_route("\n".join(lines)) == [("eth0", IPv6Address("fe80::1"))]

    def test_where_nobody_tells_the_gateway_is_a_private_networks_first_address(self) -> None:
        def interface(index: int, ip: str, prefix: int, *, is_virtual: bool = False) -> Interface:
            address = InterfaceAddress(ip=ip_address(ip), prefix=prefix)
            return Interface(
                name=f"eth{index}", index=index, addresses=(address,), is_loopback=False, is_virtual=is_virtual
            )

        interfaces = (
            interface(1, "192.168.7.20", 24),
            interface(2, "8.8.8.8", 24),
            interface(3, "10.8.0.2", 32),  # a tunnel
            interface(4, "172.17.0.2", 16, is_virtual=True),
            interface(5, "fd00::2", 64),
        )
        assert host._likely_gateways(interfaces) == (host.Gateway(1, IPv4Address("192.168.7.1")),)

    @pytest.mark.needs("linux")
    def test_states_are_known_without_proc_or_not_at_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(*_arguments: object, **_named: object) -> None:
            raise FileNotFoundError(2, "No such file or directory")

        monkeypatch.setattr("builtins.open", missing)
        assert linux.ipv6_states() == {}
        monkeypatch.setattr(sys, "platform", "darwin")
        assert linux.ipv6_states() == {}

    def test_index_of_an_interface_that_has_gone(self) -> None:
        assert host._kernel_index("gone-since-then") is None
