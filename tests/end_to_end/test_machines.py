"""The command line on machines that lack something, which the kernel or a shell denies to a child process."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "warpgate_trio"]
SECCOMP = f"{shlex.quote(sys.executable)} -m tests.seccomp"

pytestmark = pytest.mark.slow("processes")

CONDITIONS = {
    "few files": ("ulimit -n 64; exec {}", "linux"),
    "no netlink": (SECCOMP + " netlink {}", "seccomp"),
    "no sockets of IPv6": (SECCOMP + " ipv6 {}", "seccomp"),
    "no /proc": ("unshare --mount sh -c 'mount -t tmpfs none /proc; exec {}'", "network_namespaces"),
    "no addresses of IPv6": (
        "unshare --net sh -c 'echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; ip link set lo up; exec {}'",
        "network_namespaces",
    ),
    "no network": ("unshare --net {}", "network_namespaces"),
    "a locale without UTF-8": ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 {}", "linux"),
    "no stdin": ("{} <&-", "linux"),
}
"""By condition: the shell command that runs another one (``{}``) under it, and the requirement of the test."""


def on(*names: str) -> pytest.MarkDecorator:
    marked = [pytest.param(name, marks=pytest.mark.needs(CONDITIONS[name][1])) for name in names]
    return pytest.mark.parametrize("condition", marked)


def shell(condition: str, *words: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a `warpgate-trio` command under a condition."""
    command = CONDITIONS[condition][0].format(shlex.join([*PROGRAM, *words]))
    env = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["sh", "-c", command], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


@on("few files", "no netlink", "no sockets of IPv6", "no /proc")
def test_two_nodes_meet(condition: str, tmp_path: Path) -> None:
    done = shell(condition, "demo", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"Traceback|fault of|ExceptionGroup", done.stderr)


@on(*CONDITIONS)
def test_netcheck_reports(condition: str, tmp_path: Path) -> None:
    done = shell(condition, "netcheck", "--json", home=tmp_path)
    report = json.loads(done.stdout)
    assert report["event"] == "netcheck"
    assert report["complete"]
    assert done.returncode == 1  # no server is configured
    assert not re.search(r"Traceback|fault of|ExceptionGroup", done.stderr)


@pytest.mark.needs("seccomp")
def test_a_key_file_without_hard_links(tmp_path: Path) -> None:
    file = tmp_path / "keys" / "node.key"
    words = [*PROGRAM, "id", "--key-file", str(file)]
    denied = [sys.executable, "-m", "tests.seccomp", "links"]
    ids = {
        subprocess.run([*prefix, *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for prefix in (denied, denied, [])
    }
    assert len(ids) == 1
    assert file.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in file.parent.iterdir()] == ["node.key"]
