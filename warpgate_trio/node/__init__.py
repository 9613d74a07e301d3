"""A running node: its parts, and the admission of peers."""

from __future__ import annotations

from .node import Node as Node
from .node import open_node as open_node

__all__ = [
    "Node",
    "open_node",
]
