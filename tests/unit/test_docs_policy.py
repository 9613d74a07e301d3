"""The pages about policy and migration are right about names, versions and keys."""

from __future__ import annotations

import inspect
import re
import tomllib

import pytest

import warpgate_trio
from tests.documented import ROOT, page, tables
from warpgate_trio import NodeConfig, plugin
from warpgate_trio.plugin import load_plugins

MIGRATION = page("migration.md")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_supported_pythons_are_those_of_the_metadata() -> None:
    versions = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", each)]
    low, high = (int(version.partition(".")[2]) for version in (versions[0], versions[-1]))
    assert PROJECT["requires-python"] == f">=3.{low},<3.{high + 1}"
    said = f"Python {', '.join(versions[:-1])} and {versions[-1]} are supported"
    assert said in page("compatibility.md")
    assert f"3.{high + 1} is refused" in page("compatibility.md").replace("\n", " ")
    (trio,) = [each for each in PROJECT["dependencies"] if each.startswith("trio>=")]
    assert f"version {trio.removeprefix('trio>=')} or newer" in page("compatibility.md")


NEW = [cell for rows in tables(MIGRATION) for row in rows for cell in re.findall(r"`([^`]+)`", row["here"])]


@pytest.mark.parametrize("name", sorted(set(NEW)))
def test_what_is_called_so_here_is_there(name: str) -> None:
    """Names of keys, methods, attributes and keywords; of an expression, the names in it."""
    section, _, key = name.partition(".")
    config = NodeConfig()
    if section in config.__struct_fields__ and re.fullmatch(r"\w+", key):
        assert hasattr(getattr(config, section), key)
        return
    for owner, attribute in re.findall(r"\b(node|pipe|self|Node|Pipe|ConnectError)\.(\w+)", name):
        kinds = {"node": "Node", "pipe": "Pipe", "ConnectError": "ConnectError"}
        kind = plugin.Plugin if owner == "self" else getattr(warpgate_trio, kinds.get(owner, owner))
        assert hasattr(kind, attribute) or attribute in (inspect.getdoc(kind) or ""), name
    for keyword in re.findall(r"\b(\w+)=", name):
        functions = (warpgate_trio.open_node, warpgate_trio.Node.auto_connect, warpgate_trio.Node.connect)
        assert any(keyword in inspect.signature(each).parameters for each in functions), name


def test_the_names_of_the_plugins() -> None:
    named = set(re.findall(r"`(\w+)`", MIGRATION.partition("The built-in ones have")[2].partition("## ")[0]))
    assert named == {name for name, kind in load_plugins().plugins.items() if kind.phase is not None}
