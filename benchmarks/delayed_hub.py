"""A hub between network namespaces that delivers every Ethernet frame after a fixed delay (root, Linux).

It does not use netem, which many kernels lack: it is a Trio program with an AF_PACKET socket for each port and a heap
of frames.  Everything happens inside namespaces that `lab` makes and that vanish with it; nothing outside is touched.
"""

from __future__ import annotations

import array
import fcntl
import heapq
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence

import trio

__all__ = ["forward", "reenter", "wire_up"]

ETH_P_ALL = 3
SIOCETHTOOL = 0x8946
# From linux/ethtool.h.  With offloading, the checksum of a frame would be left to the "hardware", and the other end
# would drop the frame.
OFFLOADS = {"tx checksum": 0x17, "TSO": 0x1F, "GSO": 0x24, "GRO": 0x2C, "rx checksum": 0x15}


def reenter(arguments: Sequence[str]) -> None:
    """Run this program again in new network and mount namespaces, and exit with its status."""
    status = subprocess.run(["unshare", "--net", "--mount", sys.executable, *arguments], check=False).returncode
    sys.exit(status)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def wire_up(names: Sequence[str]) -> dict[str, str]:
    """Make a namespace for each name, with an interface `wan` whose other end, ``w_NAME``, is in this one.

    Returns the IPv4 address for each name.
    """
    os.makedirs("/run/netns", exist_ok=True)
    _run("mount", "-t", "tmpfs", "none", "/run/netns")
    addresses = {}
    for number, name in enumerate(names, 1):
        addresses[name] = f"203.0.113.{number}"
        _run("ip", "netns", "add", name)
        _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "link", "add", f"w_{name}", "type", "veth", "peer", "name", "wan", "netns", name)
        _run("ip", "netns", "exec", name, sys.executable, "-m", "benchmarks.delayed_hub", "offload-off", "wan")
        _run("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        _run("ip", "-n", name, "addr", "add", f"{addresses[name]}/24", "dev", "wan")
        _run("ip", "-n", name, "link", "set", "wan", "up")
        _run("sysctl", "-qw", f"net.ipv6.conf.w_{name}.disable_ipv6=1")
        _run("ip", "link", "set", f"w_{name}", "up")
    return addresses


def offload_off(device: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for command in OFFLOADS.values():
            value = array.array("I", [command, 0])
            request = struct.pack("16sP", device.encode(), value.buffer_info()[0]) + bytes(16)
            try:
                fcntl.ioctl(sock, SIOCETHTOOL, request)
            except OSError:
                continue  # the kernel does not support this offload


async def forward(names: Sequence[str], delay: float) -> None:
    """Run the hub, until cancelled."""
    frames: list[tuple[float, int, str, bytes]] = []
    count = 0
    due = trio.Event()
    ports: dict[str, trio.socket.SocketType] = {}
    for name in names:
        ports[name] = trio.socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        await ports[name].bind((f"w_{name}", 0))

    async def listen(name: str) -> None:
        nonlocal count
        while True:
            frame, source = await ports[name].recvfrom(65535)
            if source[2] != socket.PACKET_OUTGOING:
                count += 1
                heapq.heappush(frames, (trio.current_time() + delay, count, name, frame))
                due.set()

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(listen, name)
        while True:
            while not frames:
                await due.wait()
                due = trio.Event()
            await trio.sleep_until(frames[0][0])
            _, _, origin, frame = heapq.heappop(frames)
            for name, port in ports.items():
                if name != origin:
                    await port.send(frame)


if __name__ == "__main__":
    if sys.argv[1] == "offload-off":
        offload_off(sys.argv[2])
