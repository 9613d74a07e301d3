"""The package's public names; importing the package costs nothing, and every public name is documented."""

from __future__ import annotations

import enum
import inspect
import pkgutil
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import warpgate_trio

ROOT = Path(__file__).parents[2]
ALIASES = {"Authorize"}
CONSTANTS = {"IP4": 4, "IP6": 6, "NIC_BIND": 1, "EXT_BIND": 2, "LOOPBACK_BIND": 5}


class TestNames:
    @pytest.mark.parametrize("name", warpgate_trio.__all__)
    def test_each_resolves_and_is_documented(self, name: str) -> None:
        value = getattr(warpgate_trio, name)
        if name in CONSTANTS:
            assert value == CONSTANTS[name]
        elif name in ALIASES:
            assert value is getattr(import_module(f"warpgate_trio.{warpgate_trio._HOME[name]}"), name)
        else:
            assert value.__name__ == name
            assert (value.__doc__ or "").strip()

    def test_sorted_without_repetition(self) -> None:
        names = warpgate_trio.__all__
        assert len(set(names)) == len(names)
        constants, rest = [n for n in names if n.isupper()], [n for n in names if not n.isupper()]
        assert names == sorted(constants) + sorted(rest, key=lambda n: (n[0].islower(), n)), (
            "constants, classes, functions"
        )

    def test_dir_shows_them_before_they_are_used(self) -> None:
        shown = run("import warpgate_trio; print(*dir(warpgate_trio))").split()
        assert set(warpgate_trio.__all__) <= set(shown)
        assert shown == sorted(shown)

    @pytest.mark.slow("another interpreter that imports everything")
    def test_a_star_import_brings_all_of_them(self) -> None:
        shown = run("from warpgate_trio import *; print(*[name for name in dir() if not name.startswith('__')])")
        assert set(shown.split()) == set(warpgate_trio.__all__)

    def test_a_name_that_there_is_not(self) -> None:
        with pytest.raises(AttributeError, match="module 'warpgate_trio' has no attribute 'open_gate'"):
            warpgate_trio.open_gate  # noqa: B018

    def test_what_a_configuration_is_made_of_is_there(self) -> None:
        whole = warpgate_trio.NodeConfig()
        sections = {type(getattr(whole, name)).__name__ for name in whole.__struct_fields__}
        assert sections == {
            "Budgets",
            "IdentityConfig",
            "InterfacesConfig",
            "ListenConfig",
            "NetworkConfig",
            "PathsConfig",
            "PortMapConfig",
            "Servers",
        }
        assert sections <= set(warpgate_trio.__all__)

    def test_a_name_is_looked_up_once(self) -> None:
        assert warpgate_trio.open_node is vars(warpgate_trio)["open_node"]


def run(program: str) -> str:
    """The output of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout


HEAVY = ("click", "cryptography", "msgspec", "psutil", "rich", "ssl", "trio", "trio_websocket")


class TestImports:
    def test_the_package_alone_loads_nothing(self) -> None:
        loaded = run(f"import sys, warpgate_trio; print(*set({HEAVY!r}) & set(sys.modules))")
        assert loaded.split() == []

    @pytest.mark.slow("a fresh interpreter imports cryptography")
    def test_the_whole_api_loads_neither_the_command_line_nor_asyncio(self) -> None:
        loaded = run(
            "import sys\nfrom warpgate_trio import *\n"
            "print(*{'click', 'rich', 'trio_asyncio', 'aiomqtt', 'warpgate_trio.cli.main'} & set(sys.modules))"
        )
        assert loaded.split() == []

    def test_configuration_needs_no_network_code(self) -> None:
        program = (
            "import sys\nfrom warpgate_trio import load_config\nprint(*{'trio_websocket', 'ssl'} & set(sys.modules))"
        )
        assert run(program).split() == []


# -- docstrings --------------------------------------------------------------------------------------------------------

UNFINISHED = {  # packages that are still empty; one leaves this list with its first line of code
    "warpgate_trio.cli",
    "warpgate_trio.clock",
    "warpgate_trio.nat",
    "warpgate_trio.sim",
    "warpgate_trio.testing",
}


def modules() -> Iterator[types.ModuleType]:
    """Every module of the package and of the built-in plugins."""
    for name in ("warpgate_trio", "warpgate_strategies"):
        package = import_module(name)
        yield package
        for info in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not info.name.endswith("__main__"):
                yield import_module(info.name)


def is_empty(module: types.ModuleType) -> bool:
    return module.__file__ is not None and not Path(module.__file__).read_bytes().strip()


def shown(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    """The classes and functions that a module defines and lists in its ``__all__``."""
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module.__name__:
            yield name, value


def own_doc(value: Any) -> str:
    """The object's own docstring: neither inherited, nor the signature that a dataclass generates."""
    doc = (vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__) or ""
    return "" if doc.startswith(f"{value.__name__}(") else doc


def documented_members(kind: type) -> bool:
    """Whether it is an enum whose members each have a docstring."""
    if not issubclass(kind, enum.Enum):
        return False
    source = inspect.getsource(kind)
    return all(re.search(rf'^    {name} = .*\n    """', source, re.MULTILINE) for name in kind.__members__)


class TestDocstrings:
    def test_every_module_has_one(self) -> None:
        empty = {module.__name__ for module in modules() if is_empty(module)}
        assert empty <= UNFINISHED
        assert [m.__name__ for m in modules() if m.__name__ not in empty and not (m.__doc__ or "").strip()] == []

    def test_every_public_class_and_function_has_one(self) -> None:
        missing = [
            f"{module.__name__}.{name}"
            for module in modules()
            if module.__name__.startswith("warpgate_trio")  # plugins are documented by their module's docstring
            for name, value in shown(module)
            if not own_doc(value).strip() and not (inspect.isclass(value) and documented_members(value))
        ]
        assert set(missing) <= TERSE

    def test_every_method_of_the_top_level_classes_has_one(self) -> None:
        """A docstring of its own or of its base class, or a mention in the class's docstring."""
        missing = []
        for name in warpgate_trio.__all__:
            kind = getattr(warpgate_trio, name)
            if not inspect.isclass(kind) or issubclass(kind, enum.Enum):
                continue
            for member, value in vars(kind).items():
                function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                if member.startswith("_") or not inspect.isfunction(function):
                    continue
                if not inspect.getdoc(getattr(kind, member)) and not re.search(rf"\b{member}\b", own_doc(kind)):
                    missing.append(f"{name}.{member}")
        assert set(missing) <= TERSE


TERSE = {
    # Frames that are explained in their module's table.
    *(f"warpgate_trio.link.frames.{name}" for name in ("Ping", "Pong")),
    *(
        f"warpgate_trio.servers.rendezvous_frames.{name}"
        for name in ("Challenge", "Error", "Message", "Register", "Register2", "Registered", "Send", "Send2", "Sent")
    ),
    # To be written.
    "warpgate_trio.cli.exits.ExitCode",
    "warpgate_trio.link.states.DirectionState",
    "warpgate_trio.link.states.LinkState",
    "warpgate_trio.signal.slot.ServerState",
}
