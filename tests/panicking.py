"""What a library in Rust raises where it gives up."""

from __future__ import annotations

PanicException = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
"""As pyo3 makes it: a class of each library's own, which nobody can import."""
