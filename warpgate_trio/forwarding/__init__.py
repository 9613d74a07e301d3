"""TCP port forwarding: local ports that lead to targets in the peer's network, and the reverse.

Each connection is a further Pipe on the same Link; its label names the target.  The side that serves requests has a
list of the targets that it exposes, `Exposed`, and a list of the ports on which it listens for a peer, `Bindable`.
Without a list it refuses everything.  See docs/forwarding.md.
"""

from __future__ import annotations

from .asking import open_target as open_target
from .asking import serve_forward as serve_forward
from .reaching import TARGET_PATIENCE as TARGET_PATIENCE
from .reverse import handle_bound as handle_bound
from .reverse import serve_reverse as serve_reverse
from .serving import handle_forward as handle_forward
from .targets import Bindable as Bindable
from .targets import Exposed as Exposed
from .targets import Target as Target
from .wire import Answer as Answer
from .wire import is_forward as is_forward

__all__ = [
    "TARGET_PATIENCE",
    "Answer",
    "Bindable",
    "Exposed",
    "Target",
    "handle_bound",
    "handle_forward",
    "is_forward",
    "open_target",
    "serve_forward",
    "serve_reverse",
]
