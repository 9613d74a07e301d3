"""One call: a walk through the phases, its attempts, and its report."""

from __future__ import annotations
