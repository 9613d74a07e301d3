"""DNS names in a network: how they are compared, and how a test makes lookups slow or fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NameTrouble:
    """Trouble with a name: lookups take `delay` seconds longer, and then fail with `error`, an EAI number, if set."""

    delay: float = 0.0
    error: int | None = None


def canonical_name(host: bytes | str) -> str:
    """A name in lower case without a trailing dot, which only forbids appending a domain (RFC 1034, section 3.1)."""
    text = host if isinstance(host, str) else host.decode("ascii")
    return text.lower().removesuffix(".")
