"""MQTT brokers for tests: mosquitto and amqtt, each as a process, and a wire that can be cut.

    def test_something(mosquitto: Broker) -> None: ...

A test with `mosquitto` is skipped where that is not installed (`make lab-deps`). One with `any_broker` runs with both;
amqtt is always there. Brokers are ended by their process id and listen on ports of 127.0.0.1 (`tests.ports`).
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import final

import pytest
import trio

from tests.certificates import Authority
from tests.ports import free_port
from tests.requirements import find_program
from warpgate_trio.config.server_url import ServerUrl
from warpgate_trio.nurseries import open_background_nursery
from warpgate_trio.signal.mqtt.connection import load_libraries

USER, PASSWORD = "alice", "correct:horse/battery"


@final
class Broker:
    """A broker that can be started, killed, frozen and started again, always on the same port."""

    def __init__(self, command: list[str], port: int, *, scheme: str = "mqtt", log: Path | None = None) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._log = log
        self.port = port
        self.url = ServerUrl.parse(f"{scheme}://127.0.0.1:{port}")

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        assert self._process is None
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(2000):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self._process.poll() is None, f"{self._command} ended"
                time.sleep(0.005)
            else:
                return
        raise AssertionError(f"{self._command} does not take connections")

    def kill(self) -> None:
        """End it at once (SIGKILL), frozen or not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Ask it to end (SIGTERM): it closes connections and saves its persistent state."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(10)
        self._process = None

    def freeze(self) -> None:
        """Stop its process: the kernel still accepts connections, but the broker answers nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def count(self, pattern: str) -> int:
        """How often a pattern occurs in the broker's log."""
        assert self._log is not None
        return len(re.findall(pattern, self._log.read_text(errors="replace")))

    def connections(self) -> int:
        """How many clients of this package are connected, according to the broker's log."""
        return self.count(r"New client connected \S+ \S+ as wg") - self.count(r"Client wg\w+ (?:disconnected|closed)")


def make_mosquitto(
    folder: Path,
    *,
    tls: Authority | None = None,
    name: str = "127.0.0.1",
    password: bool = False,
    acl: str | None = None,
    retains: bool = True,
) -> Broker:
    """A mosquitto that is configured but not started; `acl` is the text of its ACL file, which may be empty."""
    program = find_program("mosquitto")
    assert program is not None
    port, log = free_port(), folder / "mosquitto.log"
    lines = [f"listener {port} 127.0.0.1", f"log_dest file {log}", "log_type all", "set_tcp_nodelay true"]
    if tls is not None:
        tls.server(name)
        file = tls.ca_file.with_name(f"{name}.pem")
        lines += [f"certfile {file}", f"keyfile {file}"]
    if password:
        hasher, passwords = find_program("mosquitto_passwd"), folder / "passwords"
        assert hasher is not None
        subprocess.run([hasher, "-b", "-c", str(passwords), USER, PASSWORD], check=True, capture_output=True)
        lines += ["allow_anonymous false", f"password_file {passwords}"]
    else:
        lines += ["allow_anonymous true"]
    if acl is not None:
        (folder / "acl").write_text(acl)
        (folder / "acl").chmod(0o600)
        lines += [f"acl_file {folder / 'acl'}"]
    if not retains:
        lines += ["retain_available false"]
    if os.geteuid() == 0:
        lines += ["user root"]  # otherwise it becomes a user who may not write here
    configuration = folder / "mosquitto.conf"
    configuration.write_text("\n".join([*lines, ""]))
    return Broker([program, "-c", str(configuration)], port, scheme="mqtts" if tls else "mqtt", log=log)


def make_amqtt() -> Broker:
    """An amqtt that is not started."""
    port = free_port()
    return Broker([sys.executable, "-m", "tests.servers_mqtt", str(port)], port)


@pytest.fixture(autouse=True, scope="session")
def libraries() -> None:
    """Imports the libraries ahead, because their first import would slow down one test."""
    load_libraries()


@pytest.fixture(name="mosquitto")
def mosquitto_fixture(tmp_path: Path) -> Iterator[Broker]:
    """A running mosquitto; the test has to be marked with `needs("mosquitto")`."""
    broker = make_mosquitto(tmp_path)
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()


@pytest.fixture(scope="session")
def amqtt() -> Iterator[Broker]:
    """One amqtt for all tests, because it takes half a second to start; a test must not stop or change it."""
    broker = make_amqtt()
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.needs("mosquitto")), "amqtt"])
def any_broker(request: pytest.FixtureRequest) -> Broker:
    broker: Broker = request.getfixturevalue(request.param)
    return broker


@final
class Wire:
    """A TCP proxy in front of a broker, which plays faults of the network."""

    def __init__(self, target: int, port: int) -> None:
        self.target = target
        """The broker's port."""
        self._scopes: set[trio.CancelScope] = set()
        self.url = ServerUrl.parse(f"mqtt://127.0.0.1:{port}")
        self.delay = 0.0
        """Seconds before each chunk is passed on."""
        self.piece = 65536
        """The largest chunk, in bytes."""
        self.swallow = False
        """Whether data from clients is dropped silently."""

    def cut(self) -> None:
        """Break every connection."""
        for scope in self._scopes:
            scope.cancel()

    async def _serve(self, client: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                async with client, await trio.open_tcp_stream("127.0.0.1", self.target) as broker:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._carry, client, broker, scope)
                        nursery.start_soon(self._carry, broker, client, scope)
            except* (trio.BrokenResourceError, OSError):
                pass
            finally:
                self._scopes.discard(scope)

    async def _carry(self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
        async for data in source:
            for start in range(0, len(data), self.piece):
                await trio.sleep(self.delay)
                if not (self.swallow and sink.socket.getpeername()[1] == self.target):
                    await sink.send_all(data[start : start + self.piece])
        scope.cancel()


@asynccontextmanager
async def open_wire(broker: Broker) -> AsyncGenerator[Wire]:
    """A proxy in front of a broker, which need not run yet."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    wire = Wire(broker.port, listener.socket.getsockname()[1])
    async with open_background_nursery() as nursery:
        await nursery.start(trio.serve_listeners, wire._serve, [listener])
        yield wire


def _run_amqtt(port: int) -> None:
    import asyncio

    from amqtt.broker import Broker as Amqtt

    async def run() -> None:
        plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
        listener = {"type": "tcp", "bind": f"127.0.0.1:{port}"}
        await Amqtt({"listeners": {"default": listener}, "plugins": plugins}).start()
        await asyncio.Event().wait()

    asyncio.run(run())


if __name__ == "__main__":
    _run_amqtt(int(sys.argv[1]))
