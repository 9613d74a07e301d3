"""Reads the XML of gateways with the standard library's expat, within bounds and without entities.

A document type declaration is refused, and with it every custom entity, so nothing expands and nothing is fetched.
Prefixes of names are dropped, since gateways choose them freely.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, final
from xml.parsers import expat

from ..errors import PortMapMalformed

__all__ = ["MAX_DOCUMENT", "Element", "parse"]

MAX_DOCUMENT: Final = 256 * 1024
"""Bytes of a document: a gateway's description has 3 to 20 kB."""
MAX_ELEMENTS: Final = 4096
"""Elements of a document: a description has some hundred."""
MAX_DEPTH: Final = 32
"""Levels of nested elements: a description has ten."""


@final
@dataclass(slots=True)
class Element:
    """An element without its attributes.

    Attributes:
      text: the text directly in it, stripped of white space.
    """

    name: str
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def find(self, name: str) -> str:
        """The text of the first child of that name; empty if there is none."""
        return next((child.text for child in self.children if child.name == name), "")

    def iterate(self) -> Iterator[Element]:
        """This element and all its descendants."""
        yield self
        for child in self.children:
            yield from child.iterate()


def parse(data: bytes) -> Element:
    """Read a document.

    Raises:
      PortMapMalformed: it is no XML, has a document type, or exceeds the bounds.
    """
    if len(data) > MAX_DOCUMENT:
        raise PortMapMalformed(f"a gateway sent a document of {len(data)} bytes, more than {MAX_DOCUMENT}")
    root = Element("")
    stack = [root]
    count = 0

    def start(name: str, _attributes: object) -> None:
        nonlocal count
        count += 1
        if count > MAX_ELEMENTS or len(stack) > MAX_DEPTH:
            raise PortMapMalformed("a gateway sent a document with too many or too deeply nested elements")
        element = Element(name.rpartition(":")[2])
        stack[-1].children.append(element)
        stack.append(element)
        texts.append([])

    def end(_name: str) -> None:
        stack.pop().text = "".join(texts.pop()).strip()

    def refuse(*_arguments: object) -> int:
        raise PortMapMalformed("a gateway's XML has a document type declaration, which is refused")

    texts: list[list[str]] = [[]]
    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = lambda text: texts[-1].append(text)
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.ExternalEntityRefHandler = refuse
    try:
        parser.Parse(data.strip(b"\0 \t\r\n"), True)
    except expat.ExpatError as error:
        raise PortMapMalformed(f"a gateway sent invalid XML: {error}") from None
    except (LookupError, ValueError, UnicodeError) as error:  # an unknown encoding
        if isinstance(error, PortMapMalformed):
            raise
        raise PortMapMalformed(f"a gateway sent XML that cannot be decoded: {error}") from None
    return root.children[0]
