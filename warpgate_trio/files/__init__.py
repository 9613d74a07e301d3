"""Transfer of files and folders over a Pipe.

Each top-level name appears complete and replaces no existing file.  Either side may have opened the Pipe.  An
interrupted transfer resumes over another Pipe, also in new processes, and repeats at most one block of each file.  See
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
