"""A running node: what it is made of, and whom it lets in."""

from __future__ import annotations

from .node import Node as Node
from .node import open_node as open_node

__all__ = [
    "Node",
    "open_node",
]
