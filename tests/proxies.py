"""Proxies for tests: squid, tinyproxy and microsocks as processes, and one that sends whatever the test says."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path

import trio

from tests.kernel.namespaces import Namespace
from tests.requirements import find_program
from warpgate_trio.nurseries import open_background_nursery

USER, PASSWORD = "ann", "sesame"
BASIC_AUTH = "/usr/lib/squid/basic_ncsa_auth"
SQUID = """\
http_port {host}:{port}
acl open_ports port {allowed}
acl CONNECT method CONNECT
{login}
http_access deny CONNECT !open_ports
{rule}
http_access deny all
cache deny all
cache_mem 0
access_log none
cache_log {folder}/cache.log
pid_filename {folder}/pid
coredump_dir {folder}
netdb_filename none
hosts_file {folder}/hosts
dns_nameservers 127.0.0.1
dns_timeout 1 second
dns_retransmit_interval 1 second
shutdown_lifetime 0 seconds
visible_hostname squid.example
pinger_enable off
"""
SQUID_LOGIN = """\
auth_param basic program {program} {folder}/passwords
acl known proxy_auth REQUIRED
"""
TINYPROXY = """\
Port {port}
Listen {host}
LogFile "{folder}/log"
MaxClients 20
Timeout 60
{allowed}
{login}
"""


@contextmanager
def squid(
    port: int,
    *,
    host: str = "127.0.0.1",
    allowed: str = "443",
    login: bool = False,
    names: Sequence[str] = (),
    machine: Namespace | None = None,
) -> Iterator[None]:
    """Run squid.

    Args:
      allowed: the ports that it connects to.
      login: whether it demands `USER` and `PASSWORD`.
      names: the host names that it resolves to this machine.
      machine: where it runs; on this host if not given.
    """
    program = find_program("squid")
    assert program is not None
    hashed = subprocess.run(["openssl", "passwd", "-apr1", PASSWORD], capture_output=True, check=True).stdout.decode()
    with _folder() as folder:
        (folder / "passwords").write_text(f"{USER}:{hashed}")
        (folder / "hosts").write_text("".join(f"127.0.0.1 {name}\n" for name in names))
        text = SQUID.format(
            host=host,
            port=port,
            folder=folder,
            allowed=allowed,
            login=SQUID_LOGIN.format(program=BASIC_AUTH, folder=folder) if login else "",
            rule=f"http_access allow {'known' if login else 'all'}",
        )
        (folder / "squid.conf").write_text(text)
        if os.geteuid() == 0:  # squid drops its privileges to this user
            proxy = pwd.getpwnam("proxy")
            for path in (folder, *folder.iterdir()):
                os.chown(path, proxy.pw_uid, proxy.pw_gid)
        command = [program, "-N", "-n", f"test{port}", "-f", str(folder / "squid.conf")]
        with running(command, host, port, folder, machine=machine):
            yield


@contextmanager
def tinyproxy(
    port: int,
    *,
    host: str = "127.0.0.1",
    allowed: str = "443",
    login: bool = False,
    machine: Namespace | None = None,
) -> Iterator[None]:
    """Run tinyproxy; the arguments as for `squid`."""
    program = find_program("tinyproxy")
    assert program is not None
    with _folder() as folder:
        text = TINYPROXY.format(
            host=host,
            port=port,
            folder=folder,
            allowed="\n".join(f"ConnectPort {each}" for each in allowed.split()),
            login=f"BasicAuth {USER} {PASSWORD}" if login else "",
        )
        (folder / "tinyproxy.conf").write_text(text)
        command = [program, "-d", "-c", str(folder / "tinyproxy.conf")]
        with running(command, host, port, folder, machine=machine):
            yield


@contextmanager
def microsocks(port: int, *, login: bool = False) -> Iterator[None]:
    """Run microsocks on loopback, a SOCKS5 proxy that connects to everything."""
    program = find_program("microsocks")
    assert program is not None
    words = ["-u", USER, "-P", PASSWORD] if login else []
    with _folder() as folder, running([program, "-i", "127.0.0.1", "-p", str(port), *words], "127.0.0.1", port, folder):
        yield


@contextmanager
def _folder() -> Iterator[Path]:
    """A temporary folder outside pytest's, which no other user may enter."""
    with tempfile.TemporaryDirectory(prefix="proxy-") as name:
        yield Path(name)


@contextmanager
def running(
    command: Sequence[str], host: str, port: int, folder: Path, *, machine: Namespace | None = None
) -> Iterator[None]:
    """Run a server until the body ends; it is killed, because squid takes two seconds to end by itself."""
    words, descriptors = (command, []) if machine is None else (machine.command(command), [machine.fd])
    with (folder / "out").open("wb") as log:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, pass_fds=descriptors
        )
        try:
            for _ in range(1000):
                assert process.poll() is None, (folder / "out").read_text()
                try:
                    with nullcontext() if machine is None else machine.inside():
                        socket.create_connection((host, port), 1).close()
                except OSError:
                    time.sleep(0.01)
                else:
                    break
            else:
                raise AssertionError(f"{command[0]} does not take connections")
            yield
        finally:
            process.kill()
            process.wait(10)


@asynccontextmanager
async def says(*answers: bytes | None, host: str = "127.0.0.1") -> AsyncGenerator[int]:
    """A proxy on loopback that reads a request and sends `answers`, one write each; yields its port.

    After None it hangs up; otherwise it keeps the connection open.
    """

    async def answer(stream: trio.SocketStream) -> None:
        try:
            await stream.receive_some(4096)
            for each in answers:
                if each is None:
                    await stream.send_eof()  # closing with unread data would reset the connection
                else:
                    await stream.send_all(each)
            async for _ in stream:  # until the other side ends
                pass
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with open_background_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host=host)
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        yield listener.socket.getsockname()[1]
