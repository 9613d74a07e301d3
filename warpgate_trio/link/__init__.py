"""The Link: the session between two peers, and the Pipes on it (docs/wire_formats.md, docs/live_links.md).

`frames` is the wire format, `ends` why a side ends it, `states` every state and transition.  Without I/O, `lane` is one
carrier, with `life` for its judge and `quiet` for what judges share, and `protocol` the Link above its carriers, with
`moving`, `lanes`, `channels`, `stream` and `attaching` for its parts.  On Trio, `handshake` makes a Link of a carrier,
`lane_driver` drives a carrier and `link` them all, and `travelling` is for who looks for paths; `pipe` is what
applications hold, `path` what they are told of how it travels, `path_log` what has become of that.
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
