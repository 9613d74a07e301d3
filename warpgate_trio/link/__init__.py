"""The Link: the session between two peers, and the Pipes on it (docs/wire_formats.md, docs/live_links.md).

`frames` defines the frames, `ends` the reasons to end a Link, `states` every state and transition.

Without I/O: `lane` is one carrier, with its judge in `life`, and in `quiet` what the judges share.  `protocol` is the
Link above its carriers; its parts are `moving`, `lanes`, `channels`, `stream` and `attaching`.

On Trio: `handshake` makes a carrier into a Link, `lane_driver` drives one carrier, and `link` drives all of them.
`travelling` serves the code that looks for paths.  `pipe` is what applications hold, `path` describes how it travels,
and `path_log` records how that has changed.
"""

from __future__ import annotations

from .channels import EARLY_DATA_LIMIT as EARLY_DATA_LIMIT
from .frames import RefuseReason as RefuseReason
from .frames import Terms as Terms
from .link import Link as Link
from .path import PathCause as PathCause
from .path import PathChange as PathChange
from .path import PathInfo as PathInfo
from .path import PathState as PathState
from .pipe import Pipe as Pipe

__all__ = [
    "EARLY_DATA_LIMIT",
    "Link",
    "PathCause",
    "PathChange",
    "PathInfo",
    "PathState",
    "Pipe",
    "RefuseReason",
    "Terms",
]
