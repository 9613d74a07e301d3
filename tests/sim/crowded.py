"""A machine whose few ports are half taken: ``python -m tests.sim.crowded`` in its own network namespace.

Prints which behaviours of `test_parity` failed there, among those that need one port on two addresses.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import trio

from tests.sim import test_parity

PORTS = range(40_000, 40_020)
TIMES = 10


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(f"{PORTS[0]} {PORTS[-1]}")
    taken: list[trio.socket.SocketType] = []

    async def take() -> None:
        for port in PORTS[1::4]:  # `bind` chooses odd ports
            for host in ("127.0.0.2", "127.0.0.3"):
                for sock in (test_parity.stream(), test_parity.datagram()):
                    await sock.bind((host, port))
                    taken.append(sock)

    trio.run(take)
    failed: set[str] = set()
    for behaviour in (test_parity.tcp_v6only, test_parity.tcp_bind_rules, test_parity.udp_specific_address_wins):
        for _ in range(TIMES):
            try:
                test_parity.on_kernel(behaviour)
            except Exception:
                failed.add(behaviour.__name__)
    print(*sorted(failed))


if __name__ == "__main__":
    main()
