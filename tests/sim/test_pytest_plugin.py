"""The pytest plugin, in a separate pytest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = 'pytest_plugins = ["warpgate_trio.testing.pytest_plugin"]\n'
TESTS = """
import pytest
import trio
from hypothesis import Phase, given, settings, strategies as st
from warpgate_trio.sim import Network, presets, simulate

async def lose(port):
    async with Network(seed=port) as net:
        net.host("server")
        with net.lan("home", nat=presets.LINUX).host("client"), trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
            await sock.sendto(b"?", (net.hosts["server"].ip, port))
            await trio.sleep(3600)
        return port

def test_good():
    assert simulate(lambda: lose(7)) == 7

@settings(derandomize=True, database=None, max_examples=30, phases=[Phase.generate, Phase.shrink])
@given(st.integers(1, 60000))
def test_after(port):
    assert simulate(lambda: lose(port)) < 9000

def test_inside():
    async def main():
        async with Network(seed=77) as net:
            net.host("client")
            raise ZeroDivisionError
    simulate(main)

def test_of_something_else():
    assert not "a simulation"
"""


@pytest.mark.slow("starts interpreters")
@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_run_shows(workers: int, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:randomly", "-n", str(workers), "-q", "--rootdir", str(tmp_path)],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "3 failed, 1 passed" in done.stdout
    told = re.search(r"^simulated ([\d,]+) worlds, [\d,]+ packet events, [\d.]+ hours", done.stdout, re.MULTILINE)
    assert told is not None
    assert int(told[1].replace(",", "")) > 20
    assert done.stdout.count("the last simulated network") == 1
    screen = done.stdout.partition("the last simulated network")[2]
    assert "seed 9000, 3600.000 s after the start" in screen  # the smallest example
    assert "> 11.0.0.1:9000" in screen
    assert "seed 77," in done.stdout  # the note on an exception that leaves a network


PAGE = Path(__file__).parents[2] / "docs" / "howto" / "testing.md"
SYMMETRIC = """@example(PeerPair.between(presets.LINUX_SYMMETRIC, presets.LINUX_SYMMETRIC), ["a"], ["b"])"""
MISTAKES = {
    "raises": ("    assume(can_connect(pair))\n", ""),
    "differs": ("(bob_says, alice_says)", "(bob_says, alice_says[:-1])"),
}


@pytest.mark.slow("starts interpreters, and simulates whole nodes")
@pytest.mark.parametrize(("right", "wrong"), MISTAKES.values(), ids=MISTAKES)
def test_the_failure_of_a_chat_fits_on_a_screen(right: str, wrong: str, tmp_path: Path) -> None:
    """The page's own chat with a mistake, in worlds of `peer_pairs`, with NATs of every kind."""
    programs = dict(
        re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    )
    test = programs["test_chat.py"]
    assert right in test
    test = test.replace(right, wrong).replace(
        "max_examples=25", "phases=PHASES, report_multiple_bugs=False, derandomize=True, database=None"
    )
    test = test.replace("@given", f"{SYMMETRIC if not wrong else ''}\n@given")
    extra = (
        "from hypothesis import Phase, example\n"
        "from warpgate_trio.sim import presets\n"
        "from warpgate_trio.testing.worlds import PeerPair\n"
        "PHASES = [Phase.explicit, Phase.generate]\n"
    )
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "chat.py").write_text(programs["chat.py"])
    (tmp_path / "test_chat.py").write_text(extra + test)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:randomly", "-q", "--rootdir", str(tmp_path)],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed" in done.stdout
    report = done.stdout.partition("= FAILURES =")[2].partition("short test summary info")[0]
    assert len(report.splitlines()) <= 60, report
    assert "pair=PeerPair(" in report
    assert "the last packets:" in report
