"""Trio's own installed tests of sockets, streams, TLS and DTLS, on a simulated host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

MODULES: Final = [
    "test_socket",
    "test_ssl",
    "test_dtls",
    "test_highlevel_generic",
    "test_highlevel_open_tcp_listeners",
    "test_highlevel_open_tcp_stream",
    "test_highlevel_open_unix_stream",
    "test_highlevel_serve_listeners",
    "test_highlevel_socket",
    "test_highlevel_ssl_helpers",
]

THREAD = "runs its peer in a thread, over blocking sockets"
ASKED = "wants Python's own getaddrinfo to be asked, which Trio does in a thread"
PRIVATE = "looks into Trio's own class of sockets"
HOOK = "wants to be the first to put something behind trio.socket"
UNIX = "a UNIX domain socket is a file of the real machine"

CANNOT: Final = {
    "test_ssl_client_basics": THREAD,
    "test_ssl_server_basics": THREAD,
    "test_attributes": THREAD,
    "test_full_duplex_basics": THREAD,
    "test_renegotiation_randomized": THREAD,
    "test_checkpoints": THREAD,
    "test_send_all_empty_string": THREAD,
    "test_server_hostname_is_idna_2008": THREAD,
    "test_ssl_handshake_failure_during_aclose": THREAD,
    "test_getprotobyname": "asks the system for protocols, in a thread",
    "test_getaddrinfo": ASKED,
    "test_idna": ASKED,
    "test_custom_hostname_resolver": HOOK,
    "test_custom_socket_factory": HOOK,
    "test_from_stdlib_socket": "makes a subclass of socket.socket, which would be a real socket",
    "test_SocketType_resolve": PRIVATE,
    "test_SocketType_connect_paths": PRIVATE,
    "test_resolve_address_exception_in_connect_closes_socket": PRIVATE,
    "test_unix_domain_socket": UNIX,
    "test_open_with_bad_filename_type": UNIX,
    "test_open_bad_socket": UNIX,
    "test_open_unix_socket": UNIX,
}
"""The tests that do not run on a simulated host, and why; all others do."""


@pytest.mark.slow("190 tests in another interpreter")
@pytest.mark.skipif(find_spec("trio._tests") is None, reason="Trio is installed without its tests")
@pytest.mark.skipif(sys.platform != "linux", reason="the simulator follows Linux")
def test_trios_own_tests_pass_on_a_simulated_host(tmp_path: Path) -> None:
    without = ("randomly", "cacheprovider", "anyio", "trio", "hypothesispytest")
    options = ["-c", os.devnull, "--rootdir", str(tmp_path), "-q", "--tb=short", "-rfE", "-p", "tests.sim.carried"]
    options += [word for name in without for word in ("-p", f"no:{name}")]
    modules = [f"trio._tests.{name}" for name in MODULES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--pyargs", *modules],
        cwd=Path(__file__).resolve().parents[2],
        env={key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "COV_"))},
        capture_output=True,
        text=True,
    )
    failed = set(re.findall(r"^FAILED \S+::(\w+)", done.stdout, re.MULTILINE))
    assert failed == set(CANNOT), done.stdout[-20_000:] + done.stderr
    told = re.search(r"(\d+) failed, (\d+) passed", done.stdout)
    assert told is not None, done.stdout[-2000:]
    assert int(told[2]) >= 150
