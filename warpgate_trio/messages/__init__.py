"""Messages over a byte stream: the implementation of `Pipe.messages`, for any stream.

`framing` is the format without I/O, `channel` the `trio.abc.Channel` over a `trio.abc.Stream`.  docs/applications.md
describes the use, docs/wire_formats.md the bytes.
"""

from __future__ import annotations

from .channel import MessageChannel as MessageChannel
from .framing import DEFAULT_MAX_SIZE as DEFAULT_MAX_SIZE
from .framing import HEADER_SIZE as HEADER_SIZE
from .framing import MessageReader as MessageReader
from .framing import encode_header as encode_header

__all__ = ["DEFAULT_MAX_SIZE", "HEADER_SIZE", "MessageChannel", "MessageReader", "encode_header"]
