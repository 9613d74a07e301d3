"""What this machine's NATs do: how they are measured, classified and foretold, and what that allows."""

from __future__ import annotations
