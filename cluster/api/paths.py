"""Paths of the API that more than their own route must know."""

from __future__ import annotations

PUBLIC_PATHS = frozenset({"/health", "/ready"})  # answered without a key
