"""The house rules that no other linter knows, for warpgate_trio and the built-in plugins.

* Only host.py uses the clock, random numbers, threads and sockets of the machine. So the code that users run is, line
  for line, the code that the simulator runs.
* Only address/scope.py says whether an address is public or private: Python's `is_global` and `is_private` differ from
  it. host.py, which stands below, uses them for a guess.
* The simulator is exempt from that rule, and does not use the package: it imports only Trio and the standard library.
* A module holds one idea: at most 550 lines, and a docstring that says what it is.  A class has at most 300 lines, a
  function at most 60 without its docstring; a longer one states why beside it: ``# long: reason``.

The check follows names through imports (`import time as t`, `from os import urandom`), so it does not mistake
`trio.socket`, or a function that is called `sleep`, for a forbidden one. It does not follow values: deliberately hidden
uses stay hidden.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("warpgate_trio", "strategies/warpgate_strategies")
MAX_LINES = 550
MAX_CLASS = 300
MAX_FUNCTION = 60
REASON = re.compile(r"#\s*long: \S")
HOST = "warpgate_trio/host.py"
SIMULATOR = "warpgate_trio/sim/"

WALL = "host.current().wall_time(), or trio.current_time() in a shell"
CHANCE = "host.current().entropy(n) or .random"
TRIO = "Trio's own"
SOCKETS = "trio.socket or trio.open_tcp_stream"

# Dotted name -> what to use instead. A name covers everything below it.
FORBIDDEN = {
    "time.time": WALL,
    "time.time_ns": WALL,
    "time.monotonic": WALL,
    "time.monotonic_ns": WALL,
    "time.perf_counter": WALL,
    "time.perf_counter_ns": WALL,
    "datetime.datetime.now": WALL,
    "datetime.datetime.today": WALL,
    "datetime.datetime.utcnow": WALL,
    "datetime.date.today": WALL,
    "time.sleep": "trio.sleep",
    "os.urandom": CHANCE,
    "os.getrandom": CHANCE,
    "random": CHANCE,
    "secrets": CHANCE,
    "uuid.uuid1": CHANCE,
    "uuid.uuid4": CHANCE,
    "asyncio": TRIO,
    "threading": TRIO,
    "_thread": TRIO,
    "concurrent.futures": TRIO,
    "socket.socket": SOCKETS,
    "socket.socketpair": SOCKETS,
    "socket.fromfd": SOCKETS,
    "socket.fromshare": SOCKETS,
    "socket.create_connection": SOCKETS,
    "socket.create_server": SOCKETS,
    "socket.getaddrinfo": SOCKETS,
    "socket.gethostbyname": SOCKETS,
    "socket.gethostbyname_ex": SOCKETS,
    "socket.gethostbyaddr": SOCKETS,
    "socket.getnameinfo": SOCKETS,
    "socket.getfqdn": SOCKETS,
    "select": TRIO,
    "selectors": TRIO,
}

SCOPES = {"is_global", "is_private"}

# Exceptions, each with its reason: file -> forbidden names that it may use.
EXEMPT: dict[str, frozenset[str]] = {
    # Reads and writes the descriptors of sockets that Trio made, many datagrams per checkpoint.
    "warpgate_trio/ports/datagrams.py": frozenset({"socket.socket"}),
}


def forbidden(dotted: str) -> str | None:
    """The entry of `FORBIDDEN` that covers a dotted name, or None."""
    parts = dotted.split(".")
    return next((name for end in range(1, len(parts) + 1) if (name := ".".join(parts[:end])) in FORBIDDEN), None)


def foreign_imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Imports of anything but Trio, the standard library and the simulator itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        else:
            continue
        for name in names:
            own = f"{name}.".startswith("warpgate_trio.sim.")
            if not own and name.partition(".")[0] not in {"trio", *sys.stdlib_module_names}:
                yield node.lineno, name


def is_type_checking(test: ast.expr) -> bool:
    """Whether a condition is TYPE_CHECKING or typing.TYPE_CHECKING."""
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


class Uses(ast.NodeVisitor):
    """Collects (line, dotted name) of every use of a forbidden name in one module.

    Imports under TYPE_CHECKING are ignored: they are for annotations (`random.Random`), and code that used such a name
    at run time would fail.
    """

    def __init__(self) -> None:
        self.bound: dict[str, str] = {}
        self.found: list[tuple[int, str]] = []

    def note(self, line: int, dotted: str) -> None:
        """Records a use if `FORBIDDEN` covers it."""
        if forbidden(dotted) is not None:
            self.found.append((line, dotted))

    def visit_If(self, node: ast.If) -> None:
        """Skips the body of `if TYPE_CHECKING`."""
        if is_type_checking(node.test):
            for statement in node.orelse:
                self.visit(statement)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        """`import a.b as c` binds c to a.b; `import a.b` binds a."""
        for alias in node.names:
            self.bound[alias.asname or alias.name.partition(".")[0]] = (
                alias.name if alias.asname else alias.name.partition(".")[0]
            )
            self.note(node.lineno, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """`from a import b as c` binds c to a.b."""
        if node.level or node.module is None:
            return
        for alias in node.names:
            dotted = f"{node.module}.{alias.name}"
            self.bound[alias.asname or alias.name] = dotted
            self.note(node.lineno, dotted)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Resolves `t.monotonic` by the import that binds `t`."""
        parts = [node.attr]
        value = node.value
        while isinstance(value, ast.Attribute):
            parts.append(value.attr)
            value = value.value
        if isinstance(value, ast.Name):
            if value.id in self.bound:
                self.note(node.lineno, ".".join([self.bound[value.id], *reversed(parts)]))
        else:
            self.visit(value)


def too_long(tree: ast.Module, lines: list[str]) -> Iterator[tuple[int, str]]:
    """Classes and functions that are too long and give no reason on their first line or the one before it."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        assert node.end_lineno is not None
        length, limit = node.end_lineno - node.lineno + 1, MAX_CLASS
        if not isinstance(node, ast.ClassDef):
            limit = MAX_FUNCTION
            first = node.body[0]
            if ast.get_docstring(node) is not None and first.end_lineno is not None:
                length -= first.end_lineno - first.lineno + 1
        if length > limit and not any(REASON.search(line) for line in lines[max(node.lineno - 2, 0) : node.lineno]):
            yield node.lineno, f"{node.name} has {length} lines, more than {limit}, and no `# long: reason`"


def problems(path: Path) -> Iterator[str]:
    """Every breach in one module, as `file:line: sentence`."""
    name = path.relative_to(ROOT).as_posix()
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source, name)
    if (lines := source.count("\n")) > MAX_LINES:
        yield f"{name}:{MAX_LINES}: {lines} lines; a module holds one idea in at most {MAX_LINES}"
    if tree.body and ast.get_docstring(tree) is None:
        yield f"{name}:1: the module has no docstring"
    for line, sentence in too_long(tree, source.splitlines()):
        yield f"{name}:{line}: {sentence}"
    if name.startswith(SIMULATOR):
        for line, module in foreign_imports(tree):
            yield f"{name}:{line}: the simulator imports Trio and the standard library alone, not {module}"
    if name.startswith((HOST, SIMULATOR)):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in SCOPES:
            yield f"{name}:{node.lineno}: {node.attr} differs from address.scope; use scope_of or is_public"
    uses = Uses()
    uses.visit(tree)
    allowed = EXEMPT.get(name, frozenset())
    for line, dotted in dict.fromkeys(uses.found):
        entry = forbidden(dotted)
        if entry is not None and entry not in allowed:
            yield f"{name}:{line}: {dotted} is for host.py alone; use {FORBIDDEN[entry]}"


def main() -> None:
    """Prints all breaches and exits with 1 when there is one."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    found = [problem for path in files for problem in problems(path)]
    print("\n".join([*found, f"{len(files)} modules, {len(found)} problems"]))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
