"""Files and folders over a Pipe: they arrive whole, under names that nobody had, and a break costs a block.

One side sends what it has looked at, the other one takes it into a folder; who has dialled whom does not matter.  A
transfer that was interrupted goes on where it was when the two meet again, by another Pipe, or in other processes.  See
docs/files.md.
"""

from __future__ import annotations

from .progress import Progress as Progress
from .receiving import Inbox as Inbox
from .receiving import Received as Received
from .receiving import receive_files as receive_files
from .resuming import keep_sending as keep_sending
from .resuming import looking_again as looking_again
from .resuming import serve_inbox as serve_inbox
from .sending import send_files as send_files
from .sending import send_outgoing as send_outgoing
from .sources import Outgoing as Outgoing
from .sources import Skipped as Skipped
from .sources import look_at as look_at
from .wire import Reason as Reason

__all__ = [
    "Inbox",
    "Outgoing",
    "Progress",
    "Reason",
    "Received",
    "Skipped",
    "keep_sending",
    "look_at",
    "looking_again",
    "receive_files",
    "send_files",
    "send_outgoing",
    "serve_inbox",
]
