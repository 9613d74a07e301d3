"""Runs commands on the lab's machines, and `warpgate-trio` between two homes, as its users run it."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import trio

from tests.end_to_end.processes import Command, started
from tests.kernel.lab import RTT, SECOND, SERVER, Host, Lab, open_lab
from tests.kernel.nats import FORWARDED, Nat, Transport
from tests.kernel.wire import Wire
from tests.requirements import find_program

ECHO: Final = 1000
TURN_PORT: Final = 3480
TRACE: Final = 100_000
"""Packets that the trace for the logs keeps."""
TURN: Final = f"turn:user:secret@{SECOND}:{TURN_PORT}"
"""The relay of `pair`."""
NODE_SERVERS: Final = ("websocket", "mqtt", "stun", "ntp", "turn")
"""The kinds of servers that `serve` announces, and whose URLs a node's configuration lists."""


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call from one home to the other went.

    Attributes:
      code: the exit code of `connect`.
      event: the line of `connect --json`.
      listened: the lines of `listen --json`, and `served` those of `serve --json`.
      stderr: each program's error output, by its name.
    """

    code: int
    event: dict[str, Any]
    listened: list[dict[str, Any]]
    served: list[dict[str, Any]]
    stderr: dict[str, str]

    @property
    def phase(self) -> str | None:
        """The phase in which they connected and echoed; None when they did not."""
        return self.event["phase"] if self.code == 0 and self.event["echo_ok"] is not False else None

    @property
    def verdict(self) -> str | None:
        """Why they did not connect."""
        verdict: str | None = self.event.get("verdict")
        return verdict

    def __str__(self) -> str:
        if self.event["event"] == "connected":
            return f"{self.phase} by {self.event['plugin']}, {self.event['connect_ms']:.0f} ms"
        return f"no: {self.verdict}"


async def run_on(host: Host, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run any command on a machine of the lab, to its end; stdout and stderr are kept, any exit code is accepted."""
    machine = host.machine
    return await trio.run_process(
        machine.command(words), pass_fds=[machine.fd], capture_stdout=True, capture_stderr=True, check=False, env=env
    )


@asynccontextmanager
async def program_on(
    host: Host, *arguments: str | Path, home: Path, logs: Path | None, stdin: int = subprocess.DEVNULL
) -> AsyncGenerator[Command]:
    """`warpgate-trio` on a machine, for the time of the body."""
    machine, name = host.machine, arguments[0]
    within = machine.command(())
    async with started(*arguments, stdin=stdin, within=within, pass_fds=[machine.fd], env=private(home)) as command:
        try:
            yield command
        finally:
            if logs is not None:
                (logs / f"{name}.out").write_bytes(command.out)
                (logs / f"{name}.err").write_bytes(command.err)


@asynccontextmanager
async def coturn_on(
    host: Host, folder: Path, *lines: str, port: int = TURN_PORT, certificate: Path | None = None
) -> AsyncGenerator[None]:
    """coturn on a machine, with the user ``user`` whose password is ``secret``, for the time of the body.

    Args:
      lines: more lines of its configuration.
      port: for UDP and TCP, and for TLS if there is a `certificate`.
    """
    tls = [f"cert={certificate}", f"pkey={certificate}"] if certificate is not None else ["no-tls"]
    config = folder / "coturn.conf"
    config.write_text(
        "\n".join(
            [
                *(f"listening-port={port}", *tls, "no-dtls", "no-cli", "lt-cred-mech", "user=user:secret"),
                *("realm=test", "log-file=stdout", "simple-log", f"pidfile={folder}/pid", f"userdb={folder}/db"),
                *(f"listening-ip={host.ip}", f"relay-ip={host.ip}", *lines),
            ]
        )
    )
    program = find_program("turnserver")
    assert program is not None
    with (folder / "coturn.log").open("wb") as log:
        process = subprocess.Popen(
            host.machine.command([program, "-c", str(config)]),
            pass_fds=[host.machine.fd],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(10)


def private(home: Path) -> dict[str, str]:
    """An environment without the user's keys and settings; nodes may ask routers for ports, which are the lab's."""
    folders = ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME")
    return dict.fromkeys(folders, str(home)) | {"WARPGATE_PORTMAP_ENABLED": "true"}


async def pair(
    kind_a: Nat | str,
    kind_b: Nat | str,
    *,
    phases: Sequence[str] = (),
    transport: Transport | None = None,
    rtt: float = RTT,
    echo: int = ECHO,
    largest: int | None = None,
    wire: Wire | None = None,
    second_host: bool = False,
    serve: Sequence[str] = (),
    listen: Sequence[str] = (),
    connect: Sequence[str] = (),
    settings: str = "",
    turn: Sequence[str] = (),
    coturn: Sequence[str] = (),
    logs: Path | None = None,
) -> Outcome:
    """`connect` in home A to `listen` in home B, with `serve` outside.

    Args:
      phases: for ``--phases``; all if empty.
      transport: the only one between the homes.
      echo: bytes to echo; 0 for no test.
      largest: bytes of the largest packet that passes between the homes; larger ones are dropped without an ICMP error.
      second_host: give the server its second address, ``--second-host``.
      serve, listen, connect: more arguments, which follow the lab's own.
      settings: more lines for the configuration of both nodes.
      turn: TURN servers of both nodes' configurations, for which coturn runs on the server's second address (`TURN`).
      coturn: more lines of its configuration.
      logs: a folder for the programs' output, the trace of the wire, and the final state of the NATs.
    """
    async with AsyncExitStack() as stack:
        if wire is None:
            wire = stack.enter_context(Wire())
        lab = await stack.enter_async_context(open_lab(wire, kind_a, kind_b, rtt=rtt, only=transport))
        a, b = lab.homes
        if largest is not None:
            outside = socket.inet_aton(SERVER)
            lab.internet.drop = lambda packet: len(packet) > largest and outside not in (packet[12:16], packet[16:20])
        if logs is not None:
            stack.push_async_callback(_keep, lab, logs)
            lab.internet.trace = deque(maxlen=TRACE)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="warpgate-lab-")))
        hosts = ["--host", SERVER, *(["--second-host", SECOND] if second_host else [])]
        server = await stack.enter_async_context(
            program_on(lab.server, "serve", *hosts, "--json", *serve, home=folder, logs=logs)
        )
        config = folder / "config.toml"
        servers = {**(await server.event())["servers"], "turn": list(turn)}
        if turn:
            await stack.enter_async_context(coturn_on(lab.second_server, folder, *coturn))
        config.write_text(configuration(servers, settings), encoding="utf-8")
        port = ["--port", str(FORWARDED)] if b.nat.forwards else []
        words = ["--config", str(config), "--echo", "--allow-any", "--json"]
        listener = await stack.enter_async_context(
            program_on(b.host, "listen", *words, *port, *listen, home=folder, logs=logs)
        )
        address = (await listener.event())["address"]
        test = ["--echo-test", str(echo)] if echo else []
        only = ["--phases", ",".join(phases)] if phases else []
        words = [address, "--config", str(config), *test, "--json", *only]
        caller = await stack.enter_async_context(
            program_on(a.host, "connect", *words, *connect, home=folder, logs=logs)
        )
        event = await caller.event()
        code = await caller.code()
        if code:
            listener.interrupt()
        await listener.code()
        server.interrupt()
        await server.code()
        return Outcome(
            code,
            event,
            _lines(listener.out),
            _lines(server.out),
            {"serve": server.stderr_text, "listen": listener.stderr_text, "connect": caller.stderr_text},
        )


async def _keep(lab: Lab, logs: Path) -> None:
    """Write the trace of the wire and the final state of the NATs to `logs`."""
    assert lab.internet.trace is not None
    (logs / "wire").write_text("\n".join(lab.internet.trace) + "\n", encoding="utf-8")
    for home in lab.homes:
        if home.router is not None:
            flows = home.router.sh("cat", "/proc/thread-self/net/nf_conntrack")
            rules = home.router.sh("nft", "list", "ruleset")
            (logs / home.router.name).write_text(f"{flows}\n{rules}", encoding="utf-8")


def _lines(out: bytes | bytearray) -> list[dict[str, Any]]:
    return [json.loads(line) for line in bytes(out).splitlines()]


def configuration(servers: dict[str, list[str]], more: str = "") -> str:
    """A node's configuration, for the servers that `serve` announced."""
    lines = [f"{name} = {json.dumps(servers[name])}" for name in NODE_SERVERS if servers.get(name)]
    return "\n".join(["[servers]", *lines, "[identity]", "ephemeral = true", more, ""])
