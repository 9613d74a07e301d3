"""The Link: the session between two peers on one carrier, and the Pipes on it (docs/wire_formats.md).

`frames` is the wire format, `states` every state and transition, `protocol` the machine without I/O, with `channels`,
`stream` and `life` for its parts; `link` is the Trio shell that drives it, with `writer`; `pipe` is what applications
hold, `path` what they are told of how it travels.
"""

from __future__ import annotations

from .channels import EARLY_DATA_LIMIT as EARLY_DATA_LIMIT
from .frames import RefuseReason as RefuseReason
from .frames import Terms as Terms
from .link import Link as Link
from .path import PathInfo as PathInfo
from .path import PathState as PathState
from .pipe import Pipe as Pipe

__all__ = ["EARLY_DATA_LIMIT", "Link", "PathInfo", "PathState", "Pipe", "RefuseReason", "Terms"]
