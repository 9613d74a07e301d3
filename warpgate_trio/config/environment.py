"""Which environment variables are settings: those that begin with ``WARPGATE_``, with two kinds of exceptions.

Some are for the project's own scripts and tests.  Others are generated: Kubernetes gives each container variables whose
names are made from those of Services, as Docker did for its links.  Next to a Service called "warpgate" there is a
``WARPGATE_SERVICE_HOST``, and ``WARPGATE_PORT=tcp://10.96.0.7:8765``.  The user has not written them, so they are
ignored.  Any other variable with the prefix and without a matching key is a misspelt one, and an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

__all__ = ["settings_in"]

# The configuration file, which `load_config` reads itself; what tests may not skip; the interpreter of scripts.
_NO_SETTINGS: Final = frozenset({"WARPGATE_CONFIG", "WARPGATE_REQUIRE", "WARPGATE_PYTHON"})
# Generated from the name of a Service or of another container ("_ENV_…": that container's own variables).
_MADE: Final = re.compile(
    r"WARPGATE_(\w+_)?"
    r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?|ENV_\w+)",
    re.ASCII,
)
# These are recognized by their values: for a Service "warpgate-listen", the variable has the name of one of our keys.
_MADE_BY_VALUE: Final = (
    (re.compile(r"WARPGATE_(\w+_)?PORT", re.ASCII), re.compile(r"(tcp|udp|sctp)://\S+:[0-9]+", re.ASCII)),
    (re.compile(r"WARPGATE_(\w+_)?NAME", re.ASCII), re.compile(r"/\S+/\S+", re.ASCII)),
)


def settings_in(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that are meant as settings, with known names or not."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith("WARPGATE_") and name not in _NO_SETTINGS and not _is_made(name, value)
    }


def _is_made(name: str, value: str) -> bool:
    by_value = any(names.fullmatch(name) and values.fullmatch(value) for names, values in _MADE_BY_VALUE)
    return by_value or _MADE.fullmatch(name) is not None
