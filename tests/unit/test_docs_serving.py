"""The how-tos about services and containers: their command lines are understood, and their paths agree."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest

from tests.documented import DOCS, changed, code, page, table
from tests.requirements import find_program
from warpgate_trio.cli.options import Settings
from warpgate_trio.cli.serve import DEFAULT_PORT, serve
from warpgate_trio.cli.services import STUN_PORT
from warpgate_trio.servers.metrics import _METRICS

PAGE = page("serving.md")
UNIT = page("howto/systemd.md")
CONTAINER = page("howto/container.md")


def understood(words: list[str]) -> dict[str, Any]:
    """The parameters that `serve` reads from its arguments."""
    with serve.make_context("serve", list(words), obj=Settings()) as context:
        return dict(context.params)


def value(words: list[str], option: str) -> str:
    assert words.count(option) == 1
    return words[words.index(option) + 1]


# -- systemd -----------------------------------------------------------------------------------------------------------


def unit() -> ConfigParser:
    (text,) = code(UNIT, "ini")
    parser = ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


def test_the_unit_starts_what_the_parser_understands() -> None:
    service = unit()["Service"]
    program, command, *words = shlex.split(service["ExecStart"])
    assert (Path(program).is_absolute(), Path(program).name, command) == (True, "warpgate-trio", "serve")
    understood(words)
    assert value(words, "--state-dir") == f"/var/lib/{service['StateDirectory']}"


def test_the_unit_says_what_the_program_does() -> None:
    service = unit()["Service"]
    assert service["Type"] == "notify"
    assert float(service["WatchdogSec"]) > 0
    assert service["ExecReload"].split()[1:] == ["-HUP", "$MAINPID"]
    # AF_NETLINK is for psutil, AF_UNIX for sd_notify.
    assert {"AF_INET", "AF_INET6", "AF_NETLINK", "AF_UNIX"} == set(service["RestrictAddressFamilies"].split())


@pytest.mark.needs("systemd-analyze")
@pytest.mark.slow("starts systemd-analyze")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    (text,) = code(UNIT, "ini")
    file = tmp_path / "warpgate-trio.service"
    file.write_text(changed(text, {"/opt/warpgate-trio/bin/warpgate-trio": sys.executable}), encoding="utf-8")
    program = find_program("systemd-analyze")
    assert program is not None
    run = subprocess.run([program, "verify", "--man=no", file], capture_output=True, encoding="utf-8")
    assert (run.returncode, run.stderr) == (0, "")


# -- containers --------------------------------------------------------------------------------------------------------


def containerfile() -> dict[str, list[str]]:
    """The arguments of each instruction in the Containerfile."""
    (text,) = code(CONTAINER, "dockerfile")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        instruction, arguments = line.split(" ", 1)
        found.setdefault(instruction, []).append(arguments)
    return found


def test_the_container_starts_what_the_parser_understands() -> None:
    file = containerfile()
    (entry,), (more,) = file["ENTRYPOINT"], file["CMD"]
    program, command, *words = json.loads(entry)
    assert (program, command) == ("warpgate-trio", "serve")
    parameters = understood([*words, *json.loads(more)])
    state = value(words, "--state-dir")
    assert file["VOLUME"] == [state]
    assert file["STOPSIGNAL"] == ["SIGTERM"]
    ports = f"{DEFAULT_PORT}/tcp {STUN_PORT}/tcp {STUN_PORT}/udp {parameters['ntp_port']}/udp"
    assert file["EXPOSE"] == [ports]
    (user,) = file["USER"]
    uid, gid = user.split(":")
    assert f"install -d -o {uid} -g {gid} -m 0700 {state}" in file["RUN"]
    assert int(uid) > 0
    (check,) = file["HEALTHCHECK"]
    assert f"http://{value(words, '--health')}/healthz" in check


def test_the_container_has_a_python_that_the_package_takes() -> None:
    (image,) = containerfile()["FROM"]
    version = re.search(r"/python:(\d+\.\d+)-", image)
    assert version is not None
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"Programming Language :: Python :: {version[1]}" in project["classifiers"]


def test_the_same_folder_is_mounted_and_used() -> None:
    (state,) = containerfile()["VOLUME"]
    assert re.findall(r"^    podman run .* -v \S+?:(\S+) ", CONTAINER, re.MULTILINE) == [state]


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_the_metrics() -> None:
    rows = [(row["metric"].strip("`"), row["meaning"]) for row in table(PAGE, "metric", "meaning")]
    known = [each for by_field in _METRICS.values() for each in by_field.values()]
    assert rows == [(name, (meaning[0].lower() + meaning[1:]).removesuffix(".")) for name, meaning in known]
