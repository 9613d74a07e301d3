"""Which variables of the environment are settings of ours: those that begin with ``WARPGATE_``, but for two kinds.

Some are for the project's own scripts and tests.  And Kubernetes tells each container of the Services around it by
variables that it makes of their names, as Docker does of its old links: next to a Service called "warpgate" there is a
``WARPGATE_SERVICE_HOST``, and ``WARPGATE_PORT=tcp://10.96.0.7:8765``.  Nobody has written those, so they are passed
over.  Whatever else begins like ours is a misspelt key, and told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

__all__ = ["settings_in"]

# The file to read, which `load_config` asks for itself; what tests may not skip; the interpreter that scripts use.
_NO_SETTINGS: Final = frozenset({"WARPGATE_CONFIG", "WARPGATE_REQUIRE", "WARPGATE_PYTHON"})
# What is made of the name of a Service, or of another container ("_ENV_…": that container's own variables).
_MADE: Final = re.compile(
    r"WARPGATE_(\w+_)?"
    r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?|ENV_\w+)",
    re.ASCII,
)
# Of these the value has to tell, as a Service "warpgate-listen" makes a variable that has the name of a key of ours.
_MADE_BY_VALUE: Final = (
    (re.compile(r"WARPGATE_(\w+_)?PORT", re.ASCII), re.compile(r"(tcp|udp|sctp)://\S+:[0-9]+", re.ASCII)),
    (re.compile(r"WARPGATE_(\w+_)?NAME", re.ASCII), re.compile(r"/\S+/\S+", re.ASCII)),
)


def settings_in(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that are settings of ours, known or not."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith("WARPGATE_") and name not in _NO_SETTINGS and not _is_made(name, value)
    }


def _is_made(name: str, value: str) -> bool:
    by_value = any(names.fullmatch(name) and values.fullmatch(value) for names, values in _MADE_BY_VALUE)
    return by_value or _MADE.fullmatch(name) is not None
