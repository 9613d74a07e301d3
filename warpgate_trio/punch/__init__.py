"""What two sides work out to punch: candidates, checks, sprays, and what comes of it for two NATs."""

from __future__ import annotations
