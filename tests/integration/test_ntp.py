"""NTP over real sockets: our client and our server, each with chrony at the other end, and the client of ntplib."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import ntplib
import pytest
import trio

from tests.hangs import HANG
from tests.ports import free_port
from tests.requirements import find_program
from warpgate_trio import host as machine
from warpgate_trio.clock.estimate import ClockEstimate
from warpgate_trio.clock.ntp_client import measure_offset
from warpgate_trio.config import ServerUrl
from warpgate_trio.errors import ClockUnavailable
from warpgate_trio.servers.ntp import open_ntp

CONFIGURATION = """\
port {port}
bindaddress 127.0.0.1
allow 127.0.0.1
{local}
cmdport 0
pidfile {folder}/pid
"""


@asynccontextmanager
async def chrony(folder: Path, *, local: str = "local stratum 10") -> AsyncGenerator[ServerUrl]:
    """A chronyd that serves this machine's clock on loopback.

    With -x it never sets that clock.  Without `local` it has no time to serve, since it has no servers of its own.
    """
    port = free_port()
    configuration = folder / "chrony.conf"
    configuration.write_text(CONFIGURATION.format(port=port, local=local, folder=folder))
    program = find_program("chronyd")
    assert program is not None
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            partial(
                trio.run_process,
                [program, "-x", "-d", "-u", "root", "-f", str(configuration)],
                capture_stderr=True,
                check=False,
            )
        )
        try:
            yield ServerUrl.parse(f"ntp://127.0.0.1:{port}")
        finally:
            process.terminate()


async def answered(url: ServerUrl) -> ClockEstimate:
    """Asks until the server listens, and has a time to serve."""
    while True:
        try:
            return await measure_offset([url], timeout=2, host=machine.current())
        except ClockUnavailable:
            await trio.sleep(0.02)


@pytest.mark.slow("chronyd takes a moment to start, in which a request is refused")
@pytest.mark.needs("chronyd", "root")
async def test_our_client_asks_chrony(tmp_path: Path) -> None:
    async with chrony(tmp_path) as url:
        with trio.fail_after(HANG):
            estimate = await answered(url)
    # A chronyd predicts when its answer will leave; one in sixty claimed to leave 60 to 90 µs after it had arrived.
    assert abs(estimate.offset) <= estimate.uncertainty + 0.001
    assert estimate.uncertainty < 0.1
    assert estimate.servers == (str(url),)


@pytest.mark.slow("chronyd takes a moment to start, in which a request is refused")
@pytest.mark.needs("chronyd", "root")
async def test_a_chrony_without_a_time_is_passed_over(tmp_path: Path) -> None:
    async with chrony(tmp_path, local="") as url, open_ntp() as other:
        with trio.fail_after(HANG):
            why = "refused"
            while "refused" in why:
                with pytest.raises(ClockUnavailable) as caught:
                    await measure_offset([url], timeout=2, host=machine.current())
                why = str(caught.value)
                await trio.sleep(0.02)
            estimate = await measure_offset([url, ServerUrl.parse(other.url)], timeout=2, host=machine.current())
    assert why == f"{url}: the server's clock is not synchronised (stratum 0, code 0x00000000)"
    assert estimate.servers == (other.url,)
    assert set(estimate.faults) == {str(url)}


@pytest.mark.slow("chronyd starts, asks and ends")
@pytest.mark.needs("chronyd", "root")
async def test_chrony_asks_our_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = 1234.5
    program = find_program("chronyd")
    assert program is not None
    wall = machine.current().wall_time
    monkeypatch.setattr(machine.RealHost, "wall_time", lambda self: wall() + wrong)
    async with open_ntp() as server:
        done = await trio.run_process(
            [
                *(program, "-Q", "-d", "-t", "8", "-u", "root"),
                *(f"server 127.0.0.1 port {server.port} iburst maxsamples 1", f"pidfile {tmp_path}/pid", "cmdport 0"),
            ],
            capture_stderr=True,
            capture_stdout=True,
            check=False,
        )
        assert server.statistics().answered >= 1
    said = (done.stderr + done.stdout).decode()
    assert done.returncode == 0, said
    found = re.search(r"System clock wrong by (-?[0-9.]+) seconds \(ignored\)", said)
    assert found is not None, said
    assert float(found[1]) == pytest.approx(wrong, abs=1.0)


@pytest.mark.needs("linux")  # where all of 127/8 is this machine
async def test_an_answer_comes_from_where_it_was_asked() -> None:
    """For a socket on all addresses the kernel would choose the source; our client ignores any other address."""
    async with open_ntp(host=None) as server:
        for asked in ("127.0.0.1", "127.0.0.2"):
            estimate = await measure_offset(
                [ServerUrl.parse(f"ntp://{asked}:{server.port}")], timeout=10, host=machine.current()
            )
            assert abs(estimate.offset) < 1


@pytest.mark.parametrize("version", [2, 3, 4])
async def test_ntplibs_client_asks_our_server(version: int) -> None:
    async with open_ntp() as server:
        stats = await trio.to_thread.run_sync(
            partial(ntplib.NTPClient().request, "127.0.0.1", port=server.port, version=version, timeout=5)
        )
    assert (
        abs(stats.offset) <= stats.delay / 2 + 0.001
    )  # RFC 5905 §8: the error is bounded by the asymmetry of the path
    assert (stats.mode, stats.version, stats.stratum, stats.leap) == (4, version, 10, 0)
    assert stats.orig_timestamp <= stats.recv_timestamp <= stats.tx_timestamp <= stats.dest_timestamp


async def test_our_client_asks_our_server() -> None:
    async with open_ntp() as server, open_ntp(stratum=2) as other:
        urls = [ServerUrl.parse(each.url) for each in (server, other)]
        estimate = await measure_offset(urls, timeout=5, host=machine.current())
    assert abs(estimate.offset) <= estimate.uncertainty
    assert estimate.servers == tuple(str(url) for url in urls)
    assert estimate.uncertainty >= 0.01


@pytest.mark.needs("ipv6")
async def test_ipv6() -> None:
    async with open_ntp(host="::1") as server:
        assert server.url == f"ntp://[::1]:{server.port}"
        estimate = await measure_offset([ServerUrl.parse(server.url)], timeout=5, host=machine.current())
    assert estimate.servers == (server.url,)


async def test_nobody_listens() -> None:
    url = ServerUrl.parse(f"ntp://127.0.0.1:{free_port()}")
    with trio.fail_after(20), pytest.raises(ClockUnavailable, match="refused"):
        await measure_offset([url], timeout=60, host=machine.current())


async def test_an_address_that_is_taken() -> None:
    async with open_ntp() as server:
        with pytest.raises(OSError, match="in use"):
            async with open_ntp(port=server.port):
                pass


async def test_a_family_that_is_switched_off_is_left_out_where_all_are_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    async def both(*_: object, **__: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        return [(socket.AF_INET, socket.SOCK_DGRAM, 0, "", (ip, 0)) for ip in ("127.0.0.1", "192.0.2.1")]

    monkeypatch.setattr(trio.socket, "getaddrinfo", both)
    async with open_ntp(host=None) as server:
        assert server.port
    with pytest.raises(OSError, match="assign requested address"):
        async with open_ntp(host="both.example"):
            pass


async def test_a_server_survives_what_it_is_sent() -> None:
    async with open_ntp() as server:
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
            await sock.connect(("127.0.0.1", server.port))
            for junk in (b"", b"\x23", bytes(48), b"\xff" * 1400):
                await sock.send(junk)
        url = ServerUrl.parse(server.url)
        assert (await measure_offset([url], timeout=5, host=machine.current())).servers
        assert server.statistics().ignored == 4
