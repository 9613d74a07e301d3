"""The exception that a Rust library raises when it panics."""

from __future__ import annotations

PanicException = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
"""Like pyo3's: each library makes its own class, which cannot be imported."""
