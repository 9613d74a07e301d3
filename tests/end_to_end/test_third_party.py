"""Plugins in separate packages, installed into a fresh environment: the guide's, and two defective ones."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "writing_a_plugin.md"

CANNOT_BE_IMPORTED = "raise RuntimeError('made for another release')\n"
NAME_IS_TAKEN = """
from warpgate_trio.plugin import Plugin, register

@register(phase="direct")
class Impostor(Plugin):
    name = "direct_connect"

    async def run(self, reply=None):
        raise AssertionError
"""
PROGRAM = """
import json

import trio

from warpgate_trio import Identity, NodeConfig, Servers, anyone, open_node
from warpgate_trio.servers.rendezvous import open_rendezvous


async def main():
    async with open_rendezvous() as server:
        config = NodeConfig(servers=Servers(websocket=[server.url]))
        async with (
            open_node(config, identity=Identity.generate(), authorize=anyone) as bob,
            open_node(config, identity=Identity.generate()) as alice,
        ):
            await bob.wait_signals()
            await alice.wait_signals()
            print(json.dumps({each.name: each.problem for each in alice.plugins}))
            async with await alice.auto_connect(bob.address, plugins=["doorbell"]) as pipe:
                print(pipe.path.plugin, (await bob.listener.accept()).path.plugin)
            async with await alice.auto_connect(bob.address, phases=["direct"]) as pipe:
                print("doorbell" in {combo.plugin for combo in pipe.report.combos}, pipe.path.plugin)


trio.run(main)
"""


def code(language: str, first_line: str) -> str:
    """The guide's code block that begins with a line."""
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    return next(block for block in blocks if block.startswith(first_line))


def wheel(folder: Path, project: str, module: str, source: str, entry_points: dict[str, str]) -> Path:
    """A minimal wheel (PEP 427)."""
    info = f"{project}-1.0.dist-info"
    path = folder / f"{project}-1.0-py3-none-any.whl"
    points = "".join(f"{name} = {value}\n" for name, value in entry_points.items())
    files = {
        f"{module}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[warpgate.strategies]\n{points}",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in files) + f"{info}/RECORD,,\n")
    return path


@pytest.mark.slow("makes an environment and installs three packages into it")
def test_packages_of_third_parties(tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    # warpgate-trio and its dependencies come from the environment of the tests; only the plugins are installed.
    (own,) = environment.glob("**/site-packages")
    (own / "shared.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")

    ((name, module),) = tomllib.loads(code("toml", "[project]"))["project"]["entry-points"][
        "warpgate.strategies"
    ].items()
    wheels = [
        wheel(tmp_path, "doorbell", module, code("python", "# warpgate_doorbell.py"), {name: module}),
        wheel(tmp_path, "outdated", "outdated", CANNOT_BE_IMPORTED, {"outdated": "outdated"}),
        wheel(tmp_path, "impostor", "impostor", NAME_IS_TAKEN, {"impostor": "impostor"}),
    ]
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        *wheels,
    ]
    subprocess.run(pip, check=True)
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [python, "-W", "error", tmp_path / "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    plugins, pinned, walked = done.stdout.splitlines()
    assert '"doorbell": null' in plugins
    assert '"direct_connect": null' in plugins
    assert '"outdated": "RuntimeError: made for another release"' in plugins
    assert "the plugin name 'direct_connect' is taken by warpgate_strategies.direct_connect.DirectConnect" in plugins
    assert pinned == "doorbell doorbell"
    assert walked == "True direct_connect"
    assert "made for another release" in done.stderr  # in the log, too
