"""Why a rank does not compute a frame. Pure: replicas count by it without knowing tensors."""

from __future__ import annotations

from typing import Literal

Refusal = Literal["map_not_served", "bad_frame", "kernel"]
