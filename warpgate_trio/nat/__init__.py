"""The NATs that this host is behind: measuring and classifying them, predicting their ports, and what they allow."""

from __future__ import annotations
