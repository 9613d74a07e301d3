"""Hole punching without I/O: candidates, connectivity checks, sprays, and the prospects between two NATs."""

from __future__ import annotations
