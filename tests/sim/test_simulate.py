"""``warpgate-trio simulate``, in this process: its output, JSON, files and errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.processes import checked_event
from warpgate_trio.cli.group import call
from warpgate_trio.sim import presets

pytestmark = [
    pytest.mark.usefixtures("own_logging"),
    pytest.mark.slow("whole nodes with TLS, in a world with servers of every kind"),
]

Capture = pytest.CaptureFixture[str]


def test_a_pair_that_connects(capfd: Capture) -> None:
    assert call(["simulate", "--nat-a", "linux", "--rtt", "100"]) == 0
    shown = capfd.readouterr()
    assert shown.out == (
        "seed 0: connected in 300.0 ms by direct_connect, the first byte was back after 400.0 ms (4.0 RTT)\n"
    )
    assert "direct_connect" in shown.err  # the table of combos


def test_a_pair_that_does_not(capfd: Capture) -> None:
    assert call(["simulate", "--nat-a", "udp-blocked", "--nat-b", "web-only", "--phases", "direct", "--quiet"]) == 1
    assert "seed 0: no pipe (no_relay_configured) after" in capfd.readouterr().out


def test_runs_are_of_seeds_and_equal_seeds_give_equal_runs(capfd: Capture) -> None:
    words = ["simulate", "--nat-b", "linux", "--loss", "5", "--skew", "-20", "--json", "--quiet"]
    assert call([*words, "--runs", "2", "--seed", "1"]) == 0
    first, second = (checked_event(line) for line in capfd.readouterr().out.splitlines())
    assert (first["seed"], second["seed"]) == (1, 2)
    assert (first["plugin"], first["phase"], first["echo_ok"]) == ("tcp_punch", "punch", True)  # SYNs were lost
    assert first["report"]["verdict"] == first["verdict"] == "connected"
    assert first["digest"] != second["digest"]
    assert call([*words, "--seed", "2"]) == 0
    assert checked_event(capfd.readouterr().out) == second


def test_a_line_that_loses_everything(capfd: Capture) -> None:
    assert call(["simulate", "--loss", "100", "--json"]) == 1
    event = checked_event(capfd.readouterr().out)
    assert (event["connect_ms"], event["plugin"], event["echo_ok"]) == (None, None, None)
    assert event["verdict"] == "no_signal"


def test_stacked_nats_and_a_plugin(capfd: Capture) -> None:
    assert call(["simulate", "--nat-b", "cgn+linux", "--plugin", "reverse_connect"]) == 0
    assert "by reverse_connect" in capfd.readouterr().out


def test_the_ladder_shows_what_nats_decided(capfd: Capture) -> None:
    assert call(["simulate", "--nat-a", "linux", "--ladder"]) == 0
    shown = capfd.readouterr().out
    assert "NAT▶" in shown
    assert "(new session)" in shown
    assert shown.splitlines()[-1].startswith("seed 0: connected")
    assert call(["simulate", "--nat-a", "linux", "--ladder", "--json"]) == 0
    out, err = capfd.readouterr()
    checked_event(out)
    assert "NAT▶" in err


def test_a_capture(tmp_path: Path, capfd: Capture) -> None:
    file = tmp_path / "run.pcapng"
    assert call(["simulate", "--pcap", str(file)]) == 0
    data = file.read_bytes()
    assert data.startswith(b"\x0a\x0d\x0d\x0a")
    assert b"alice:eth0@internet" in data
    assert call(["simulate", "--pcap", str(tmp_path / "no" / "run.pcapng")]) == 2
    assert "--pcap: " in capfd.readouterr().err


def test_a_matrix(capfd: Capture) -> None:
    assert call(["simulate", "--matrix", "--nat-a", "none,linux", "--nat-b", "none,rst"]) == 0
    *_, columns, first, second = capfd.readouterr().out.splitlines()
    assert columns.split() == ["1", "2"]
    assert first.split() == ["none", "d150", "d225"]
    assert second.split()[:2] == ["linux", "d150"]
    assert call(["simulate", "--matrix", "--nat-a", "linux", "--nat-b", "none", "--runs", "2"]) == 0
    assert capfd.readouterr().out.splitlines()[-1].split() == ["linux", "2/2", "d150"]
    assert call(["simulate", "--matrix", "--nat-a", "linux", "--nat-b", "none", "--json", "--quiet"]) == 0
    event = checked_event(capfd.readouterr().out)
    assert (event["nat_a"], event["nat_b"], event["plugin"], event["report"]) == (
        "linux",
        "none",
        "direct_connect",
        None,
    )


def test_the_list(capfd: Capture) -> None:
    assert call(["simulate", "--list"]) == 0
    names = [line.split()[0] for line in capfd.readouterr().out.splitlines()[2:]]
    assert names == list(presets.NATS)
    assert call(["simulate", "--list", "--json"]) == 0
    events = [checked_event(line) for line in capfd.readouterr().out.splitlines()]
    assert [event["name"] for event in events] == names
    assert events[names.index("rst")]["tcp"] == {"mapping": "EIM", "filtering": "APDF", "unsolicited": "rst"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nat-a", "linx"], "--nat-a: there is no NAT 'linx'; the nearest is 'linux'"),
        (["--nat-b", "cgn+"], "--nat-b: there is no NAT ''"),
        (["--matrix", "--nat-b", "linux,nonsense"], "--nat-b: there is no NAT 'nonsense'"),
        (["--matrix", "--nat-b", ","], "--nat-b names no NAT"),
        (["--loss", "101"], "--loss"),
        (["--rtt", "-1"], "--rtt"),
        (["--runs", "0"], "--runs"),
        (["--skew", "nan"], "are numbers"),
        (["--runs", "2", "--pcap", "f"], "--pcap records one run"),
        (["--matrix", "--pcap", "f"], "--pcap records one run"),
        (["--matrix", "--ladder"], "--ladder"),
        (["--plugin", "p", "--phases", "direct"], "give one of them"),
        (["--plugin", "no_such_plugin"], "no_such_plugin"),
        (["--phases", "brute"], "'brute' is no phase"),
    ],
)
def test_wrong_usage(words: list[str], said: str, capfd: Capture) -> None:
    assert call(["simulate", *words]) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert said in shown.err
