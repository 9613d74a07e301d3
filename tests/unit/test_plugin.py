"""Registration and loading: which names plugins may have, what happens to broken ones, and which are chosen."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import trio

from warpgate_trio.errors import ConfigError, PluginError
from warpgate_trio.plugin import (
    PHASES,
    TCP,
    UDP,
    Aim,
    Message,
    Plugin,
    PluginStatus,
    RouteType,
    load_plugins,
    plugin_registry,
    register,
)
from warpgate_trio.plugin import base as plugin_module
from warpgate_trio.plugin.registry import ENTRY_POINT_GROUP, status_of, technique_of


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, type[Plugin]]]:
    """An empty registry for each test; the process's own registry is restored afterwards."""
    load_plugins()  # modules are imported once, so their registrations must be in the saved registry
    kept = dict(plugin_registry)
    plugin_registry.clear()
    yield plugin_registry
    plugin_registry.clear()
    plugin_registry.update(kept)


class Bell(Message, frozen=True):
    """A message."""


class Chime(Message, frozen=True):
    """Another message."""


class Ring(Plugin):
    name = "ring"
    proto_messages = (Bell, Chime)

    async def run(self, reply: Message | None = None) -> Any:
        raise AssertionError("never run")


def a_plugin(**declarations: object) -> type[Plugin]:
    """A new plugin class, as if defined in a module of its own."""

    async def run(self: Plugin, reply: Message | None = None) -> Any:
        raise AssertionError("never run")

    return type("Made", (Plugin,), {"__module__": "elsewhere", "run": run, **declarations})


class TestRegister:
    @pytest.mark.parametrize("phase", [*PHASES, None])
    def test_it_declares_the_phase_and_gives_the_class_back(self, phase: Any) -> None:
        kind = a_plugin(name="ring")
        assert register(phase=phase)(kind) is kind
        assert kind.phase == phase
        assert plugin_registry == {"ring": kind}

    @pytest.mark.parametrize("name", ["", "two words", "with-hyphen", "7th", "core", None, 5, b"ring"])
    def test_a_name_that_cannot_be(self, name: object) -> None:
        with pytest.raises(PluginError, match=r"^Made: a plugin's name is an identifier"):
            register(phase="direct")(a_plugin(name=name))
        assert plugin_registry == {}

    def test_no_name(self) -> None:
        with pytest.raises(PluginError, match="identifier, not None"):
            register(phase="direct")(a_plugin())

    def test_a_phase_that_there_is_not(self) -> None:
        wrong: Any = "Direct"
        with pytest.raises(PluginError, match="unknown phase 'Direct'; there are direct, punch, spray, relay"):
            register(phase=wrong)(a_plugin(name="ring"))
        assert plugin_registry == {}

    @pytest.mark.parametrize("wrong", [int, "Bell", Bell(), None])
    def test_proto_messages_are_message_types(self, wrong: object) -> None:
        with pytest.raises(PluginError, match=r"ring: proto_messages holds .*, which is no Message type"):
            register(phase="direct")(a_plugin(name="ring", proto_messages=(Bell, wrong)))
        assert plugin_registry == {}

    def test_a_name_that_is_taken(self) -> None:
        register(phase="direct")(Ring)
        with pytest.raises(PluginError, match=re.escape(f"'ring' is taken by {__name__}.Ring")):
            register(phase="punch")(a_plugin(name="ring"))
        assert plugin_registry == {"ring": Ring}

    def test_a_module_that_is_loaded_again_replaces_its_own(self) -> None:
        first, second = a_plugin(name="ring"), a_plugin(name="ring")
        register(phase="direct")(first)
        register(phase="direct")(second)
        assert plugin_registry == {"ring": second}

    def test_in_the_order_of_registration(self) -> None:
        for name in ("c", "a", "b"):
            register(phase="direct")(a_plugin(name=name))
        assert list(plugin_registry) == ["c", "a", "b"]


class TestTechnique:
    def test_what_the_planner_learns(self) -> None:
        kind = a_plugin(name="ring", transport=UDP, route_types={RouteType.EXT_BIND}, aim=Aim.OURS)
        register(phase="spray")(kind)
        technique = technique_of(kind)
        assert (technique.name, technique.phase, technique.transport) == ("ring", "spray", UDP)
        assert technique.route_types == frozenset({RouteType.EXT_BIND})
        assert technique.aim is Aim.OURS

    def test_the_defaults(self) -> None:
        technique = technique_of(a_plugin(name="ring"))
        assert (technique.phase, technique.transport, technique.aim) == (None, TCP, Aim.PEER)
        assert technique.route_types == frozenset(RouteType)


async def test_setup_yields_the_class_unless_it_is_overridden() -> None:
    view: Any = None
    async with Ring.setup(view) as factory:
        await trio.lowlevel.checkpoint()
        assert factory is Ring


def test_a_plugin_without_run_cannot_be_made() -> None:
    incomplete: Any = type("Incomplete", (Plugin,), {"name": "incomplete"})
    with pytest.raises(TypeError, match="run"):
        incomplete(None)


# -- loading -----------------------------------------------------------------------------------------------------------

GOOD = """
from warpgate_trio.plugin import Plugin, register

@register(phase="direct")
class {name}(Plugin):
    name = "{name}"

    async def run(self, reply=None):
        raise AssertionError
"""


class Installed:
    """Modules that can be imported, and the entry points for them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.points: list[EntryPoint] = []

    def module(self, name: str, source: str) -> EntryPoint:
        (self._folder / f"{name}.py").write_text(source)
        return self.point(name, name)

    def good(self, module: str, plugin: str) -> EntryPoint:
        return self.module(module, GOOD.format(name=plugin))

    def point(self, name: str, value: str) -> EntryPoint:
        self.points.append(EntryPoint(name=name, value=value, group=ENTRY_POINT_GROUP))
        return self.points[-1]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield Installed(tmp_path)
    for name in set(sys.modules) - before:
        del sys.modules[name]


class TestLoading:
    def test_importing_is_registering(self, installed: Installed) -> None:
        installed.good("loading_one", "one")
        installed.good("loading_two", "two")
        loaded = load_plugins(entry_points=installed.points)
        assert set(loaded.plugins) == {"one", "two"} == set(plugin_registry)
        assert loaded.problems == ()

    BROKEN: tuple[tuple[str, Callable[[Installed], object], str], ...] = (
        ("a missing dependency", lambda i: i.module("broken", "import no_such_module_at_all"), "ModuleNotFoundError"),
        ("any other exception", lambda i: i.module("broken", "1 / 0"), "ZeroDivisionError: division by zero"),
        ("a syntax error", lambda i: i.module("broken", "def"), "SyntaxError"),
        ("a module that is gone", lambda i: i.point("broken", "no_such_module_at_all"), "ModuleNotFoundError"),
        ("an attribute that is gone", lambda i: i.point("broken", "json:no_such_thing"), "AttributeError"),
        ("a bad declaration", lambda i: i.module("broken", GOOD.format(name="core")), "PluginError: core"),
    )

    @pytest.mark.parametrize(("break_it", "problem"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
    def test_a_broken_one_is_skipped_logged_and_listed(
        self,
        installed: Installed,
        caplog: pytest.LogCaptureFixture,
        break_it: Callable[[Installed], object],
        problem: str,
    ) -> None:
        break_it(installed)
        installed.good("loading_last", "whole")
        with caplog.at_level(logging.WARNING, plugin_module.__name__):
            loaded = load_plugins(entry_points=installed.points)
        assert set(loaded.plugins) == {"whole"}
        (status,) = loaded.problems
        assert (status.name, status.source) == ("broken", installed.points[0].value)
        assert status.problem is not None
        assert status.problem.startswith(problem)
        (record,) = caplog.records
        assert "broken" in record.message
        assert record.exc_info is not None

    def test_of_two_with_one_name_the_first_by_entry_point_stays(self, installed: Installed) -> None:
        installed.good("loading_z", "twin")
        installed.good("loading_a", "twin")
        loaded = load_plugins(entry_points=installed.points)
        assert loaded.plugins["twin"].__module__ == "loading_a"
        (status,) = loaded.problems
        assert status.name == "loading_z"
        assert status.problem == "PluginError: the plugin name 'twin' is taken by loading_a.twin"

    def test_no_plugins_at_all_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match=r"no plugin could be loaded from the entry points of 'warpgate\.strat"):
            load_plugins(entry_points=[])

    def test_only_broken_ones_is_the_same_error(self, installed: Installed) -> None:
        installed.module("broken", "1 / 0")
        with pytest.raises(ConfigError, match="no plugin could be loaded"):
            load_plugins(entry_points=installed.points)

    def test_choosing_none_is_the_same_error(self, installed: Installed) -> None:
        installed.good("loading_one", "one")
        with pytest.raises(ConfigError, match="no plugin could be loaded"):
            load_plugins([], entry_points=installed.points)

    def test_selection_by_name_and_by_class(self, installed: Installed) -> None:
        installed.good("loading_one", "one")
        installed.good("loading_two", "two")
        loaded = load_plugins(["two", Ring], entry_points=installed.points)
        assert list(loaded.plugins) == ["two", "ring"]
        assert loaded.plugins["ring"] is Ring
        assert set(plugin_registry) == {"one", "two"}  # a plugin class that is passed in need not be registered

    def test_an_unknown_name_is_an_error_that_names_the_known_ones(self, installed: Installed) -> None:
        installed.good("loading_one", "one")
        installed.good("loading_two", "two")
        with pytest.raises(ConfigError, match=r"there is no plugin 'three' \(one, two\)"):
            load_plugins(["one", "three"], entry_points=installed.points)

    def test_an_unknown_name_where_there_are_none(self) -> None:
        with pytest.raises(ConfigError, match=r"there is no plugin 'one' \(none is installed\)"):
            load_plugins(["one"], entry_points=[])

    def test_the_wire_names(self) -> None:
        loaded = load_plugins([Ring], entry_points=[])
        assert loaded.messages == {"ring.Bell": (Ring, Bell), "ring.Chime": (Ring, Chime)}

    def test_a_wire_name_that_cannot_be_skips_the_plugin(self, caplog: pytest.LogCaptureFixture) -> None:
        long = a_plugin(name="x" * 60, proto_messages=(Bell, Chime))
        loaded = load_plugins([Ring, long], entry_points=[])
        assert list(loaded.plugins) == ["ring"]
        assert set(loaded.messages) == {"ring.Bell", "ring.Chime"}
        (status,) = loaded.problems
        assert (status.name, status.source) == ("x" * 60, "elsewhere.Made")
        assert "at most 64 characters" in str(status.problem)
        assert "is skipped" in caplog.text

    def test_a_message_whose_wire_name_is_taken_skips_the_plugin(self) -> None:
        namesake = type("Bell", (Message,), {}, frozen=True)
        twice = a_plugin(name="twice", proto_messages=(Bell, namesake))
        loaded = load_plugins([Ring, twice], entry_points=[])
        assert list(loaded.plugins) == ["ring"]
        assert [status.name for status in loaded.problems] == ["twice"]

    def test_status_names_what_is_there_then_what_was_skipped(self, installed: Installed) -> None:
        installed.good("loading_one", "one")
        installed.module("broken", "1 / 0")
        assert status_of(load_plugins(entry_points=installed.points)) == (
            PluginStatus(name="one", phase="direct", source="loading_one.one"),
            PluginStatus(name="broken", source="broken", problem="ZeroDivisionError: division by zero"),
        )


def test_the_built_in_plugins_come_by_their_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "warpgate_strategies"]:
        monkeypatch.delitem(sys.modules, name)
    loaded = load_plugins()
    assert {"direct_connect", "reverse_connect"} <= set(loaded.plugins)
    assert loaded.problems == ()
    assert "reverse_connect.DialMe" in loaded.messages
