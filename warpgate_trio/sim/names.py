"""DNS names in a network: how they are compared, and what a test can let go wrong with a lookup."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NameTrouble:
    """What is wrong with a name: its lookups take `delay` seconds more, and then fail with `error`, an EAI number."""

    delay: float = 0.0
    error: int | None = None


def canonical_name(host: bytes | str) -> str:
    """A name as networks know it: a trailing dot says only that nothing is to be appended (RFC 1034, section 3.1)."""
    text = host if isinstance(host, str) else host.decode("ascii")
    return text.lower().removesuffix(".")
