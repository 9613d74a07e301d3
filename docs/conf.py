"""How Sphinx builds these pages: `make docs`.

The pages are Markdown that a forge shows as well, so nothing in them is for Sphinx alone but the directives of
`reference/`.  The checkout is the source folder and its README the first page, so that links are the same in both
places; what is in the menu, and in which order, is what docs/README.md lists.  Python's and Trio's own names lead to
their documentation by the table below, without an inventory that would have to be fetched.
"""

from __future__ import annotations

import builtins
import re
import sys
from collections.abc import Iterator
from importlib.metadata import version as installed
from pathlib import Path
from typing import Final

from docutils import nodes
from pygments.lexers.special import TextLexer
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.nodes import make_refnode

DOCS: Final = Path(__file__).resolve().parent
ROOT: Final = DOCS.parent

project = "warpgate-trio"
author = "The warpgate-trio authors"
release = version = installed("warpgate-trio")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib_trio"]
root_doc = "README"
include_patterns = ["*.md", "docs/**.md", "benchmarks/README.md"]
exclude_patterns = [".*", "dist", "newsfragments", "strategies", "tests", "tools", "warpgate_trio", "docs/_*"]
nitpicky = True
nitpick_ignore_regex = [("py:obj", ".*")]
"""`py:obj` is what single backticks in docstrings are: a link where there is something to link to, else code."""
default_role = "py:obj"
INSIDE: Final = frozenset(
    [
        "Allocation",
        "Circuit",
        "DatagramPath",
        "Entry",
        "Gateway",
        "JudgedPath",
        "Medium",
        "NatProfile",
        "NatProfiles",
        "NatService",
        "Offer",
        "Packet",
        "Prefix",
        "Random",
        "Relays",
        "Route",
        "T",
        "TlsContexts",
        "TransportAddress",
        "Ts",
        "UdpPorts",
        "WorldServer",
        "_Access",
        "warpgate_trio.link.link.Link",
    ]
)
"""Types that public names take or return and no page describes; what they are for is said where they are used."""
highlight_language = "text"
myst_heading_anchors = 4

# Members stand as the source has them; a class's attributes are in its docstring.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_google_docstring = napoleon_numpy_docstring = False  # `_lay_out_docstring` calls it
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"warpgate-trio {release}"
templates_path = ["_templates"]
html_additional_pages = {"index": "moved.html"}
html_copy_source = False
html_show_sphinx = False


# -- the menu ----------------------------------------------------------------------------------------------------------


def _pages(index: Path) -> Iterator[tuple[str, list[str]]]:
    """Each heading of an index page with the pages that the table below it lists, as names from the checkout's root."""
    for part in re.split(r"^#+ ", index.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        links = re.findall(r"^\| \[[^]]*\]\(([^)#]+\.md)\)", part, re.MULTILINE)
        paths = [(index.parent / link).resolve().relative_to(ROOT) for link in links]
        yield part.partition("\n")[0], [path.with_suffix("").as_posix() for path in paths]


def _add_menu(app: Sphinx, name: str, content: list[str]) -> None:
    """Give the first page the menu that docs/README.md is, and an index in a folder the pages that it lists."""
    if name == root_doc:
        index = DOCS / "README.md"
    elif name.endswith("/README") and name != "docs/README":
        index = ROOT / f"{name}.md"
    else:
        return
    for caption, pages in [("", ["docs/README"] if name == root_doc else []), *_pages(index)]:
        if pages:
            title = f":caption: {caption}\n" if caption and name == root_doc else ""
            listed = "\n".join(f"/{page}" for page in pages)
            content[0] += f"\n```{{toctree}}\n:hidden:\n{title}\n{listed}\n```\n"


# -- docstrings, and what they name ------------------------------------------------------------------------------------

TRIO: Final = {
    "trio.abc.Clock": "core",
    "trio.abc": "io",
    "trio.socket": "io",
    "trio.testing": "testing",
    "trio.lowlevel": "lowlevel",
    "trio.SocketListener": "io",
    "trio.SocketStream": "io",
    "trio": "core",
}
"""Which page of Trio's reference a name is on: that of the longest beginning."""
ELSEWHERE: Final = {
    "anyio": "https://anyio.readthedocs.io/en/stable/api.html",
    "st": "https://hypothesis.readthedocs.io/en/latest/reference/strategies.html",
    "hypothesis.strategies": "https://hypothesis.readthedocs.io/en/latest/reference/strategies.html",
    "msgspec": "https://jcristharif.com/msgspec/api.html",
}
"""Other packages: the page that has all of their names that ours use."""


def _lay_out_docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """``Args:``, ``Attributes:`` and ``Raises:`` as lists.  A property's docstring is prose, not `type: meaning`."""
    if what == "data":
        lines[:] = [*_string_below(name.rpartition(".")[2], obj), ""]
    kind = "method" if what in ("attribute", "data", "property") else what
    lines[:] = GoogleDocstring(list(_one_name_each(lines)), app.config, app, kind, name, obj, options).lines()
    lines[:] = [re.sub(r"\bdocs/((?:\w+/)?\w+)\.md\b", r":doc:`/docs/\1`", line) for line in lines]


def _string_below(name: str, value: object) -> list[str]:
    """The docstring below a constant, in the module that has made it; Sphinx looks for it where it is imported."""
    for module in [each for each in sys.modules if each.startswith("warpgate_trio.")]:
        if vars(sys.modules[module]).get(name) is value:
            analyzer = ModuleAnalyzer.for_module(module)
            analyzer.analyze()
            if text := analyzer.attr_docs.get(("", name)):
                return text
    return []


def _one_name_each(lines: list[str]) -> Iterator[str]:
    """``a, b: meaning`` among attributes as two entries, as napoleon makes them of arguments."""
    inside = False
    entry: list[str] = []
    names: list[str] = []
    for line in [*lines, "."]:
        if re.match(r"  \S", line) is None and (line.startswith("   ") or not line) and names:
            entry.append(line)
            continue
        for name in names:
            yield from [f"  {name}: {entry[0]}", *entry[1:]]
        names = []
        inside = line == "Attributes:" or (inside and line.startswith(" "))
        match = re.fullmatch(r"  (\w+(?:, \w+)+): (.*)", line) if inside else None
        if match:
            names, entry = match[1].split(", "), [match[2]]
        elif line != "." or lines[-1:] == ["."]:
            yield line


def _address(target: str) -> str | None:
    """Where another project documents a name."""
    first = target.partition(".")[0]
    if first == "trio":
        page = max((each for each in TRIO if f"{target}.".startswith(f"{each}.")), key=len)
        return f"https://trio.readthedocs.io/en/stable/reference-{TRIO[page]}.html#{target}"
    for package, page in ELSEWHERE.items():
        if target.startswith(f"{package}."):
            return f"{page}#{target}"
    if first == "builtins" or target in dir(builtins):
        kind = getattr(builtins, target.removeprefix("builtins."))
        page = "exceptions" if isinstance(kind, type) and issubclass(kind, BaseException) else "functions"
        return f"https://docs.python.org/3/library/{page}.html#{target.removeprefix('builtins.')}"
    if first in sys.stdlib_module_names and "." in target:
        module = target.rpartition(".")[0]
        return f"https://docs.python.org/3/library/{module}.html#{target}"
    return None


def _find(app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.TextElement) -> nodes.Element | None:
    """What a name of no page of ours means: the one object that ends so, or another project's."""
    target: str = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target:
        return None
    if node["reftype"] == "class" and not INSIDE.isdisjoint({target, target.rpartition(".")[2]}):
        return shown
    python = env.domains.python_domain
    last = target.rpartition(".")[2]
    if target.startswith("warpgate_trio.") or ("." not in target and last[:1].isupper()):
        ends = {name for name in python.objects if name.rpartition(".")[2] == last and not python.objects[name].aliased}
        if len(ends) == 1:
            (name,) = ends
            found = python.objects[name]
            return make_refnode(app.builder, node["refdoc"], found.docname, found.node_id, shown, name)
    if (address := _address(target)) is None:
        return None
    return nodes.reference("", "", shown, internal=False, refuri=address, reftitle=target)


def setup(app: Sphinx) -> None:
    app.add_lexer("haproxy", TextLexer)
    app.connect("source-read", _add_menu)
    app.connect("autodoc-process-docstring", _lay_out_docstring)
    app.connect("missing-reference", _find)
