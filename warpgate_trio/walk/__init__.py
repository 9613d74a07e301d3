"""One call: a walk through the phases, its attempts, and what is said of them."""

from __future__ import annotations
