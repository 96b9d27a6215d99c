"""Sums: counted numbers and arrays that add up, fade, and cross a process as plain values.

Knows nothing of what is counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Shapes = Mapping[str, tuple[int, ...]]

EXACT_DTYPE, COMPACT_DTYPE = np.dtype("<f8"), np.dtype("<f4")


@dataclass(frozen=True, eq=False)
class Sums:
    """Base of dataclasses whose fields are floats and float64 arrays, none of them negative."""

    COMPACT: ClassVar[frozenset[str]] = frozenset()  # arrays that travel as float32, exact for counts below 2^24

    def __add__(self, other: Self) -> Self:
        """Both together. Raises ValueError when they are not of one shape."""
        parts = {name: (getattr(self, name), getattr(other, name)) for name in _names(self)}
        for name, (one, two) in parts.items():
            if np.shape(one) != np.shape(two):
                raise ValueError(f"{name} of shape {np.shape(two)} does not add up with one of {np.shape(one)}")
        return type(self)(**{name: one + two for name, (one, two) in parts.items()})

    def scaled(self, factor: float) -> Self:
        """The same, counting `factor` times as much."""
        return type(self)(**{name: getattr(self, name) * factor for name in _names(self)})

    def to_dict(self) -> dict[str, Any]:
        """Numbers, and arrays as little-endian bytes, so that it crosses a process without pickled classes."""
        return {name: self._packed(name) for name in _names(self)}

    @classmethod
    def zeros(cls, shapes: Shapes) -> Self:
        """Nothing counted yet. shapes: of every field, () for a number."""
        return cls(**{name: np.zeros(shape) if shape else 0.0 for name, shape in shapes.items()})

    @classmethod
    def read(cls, given: object, shapes: Shapes) -> Self:
        """Inverse of `to_dict` for fields of these shapes. Raises ValueError on anything else."""
        if not isinstance(given, Mapping) or set(given) != set(shapes):
            raise ValueError(f"{cls.__name__} must be a mapping of {', '.join(sorted(shapes))}")
        return cls(**{name: cls._unpacked(name, given[name], shape) for name, shape in shapes.items()})

    def _packed(self, name: str) -> float | bytes:
        value = getattr(self, name)
        return value.astype(self._dtype(name)).tobytes() if isinstance(value, np.ndarray) else value

    @classmethod
    def _unpacked(cls, name: str, value: object, shape: tuple[int, ...]) -> float | FloatArray:
        return _array(name, value, shape, cls._dtype(name)) if shape else _number(name, value)

    @classmethod
    def _dtype(cls, name: str) -> np.dtype[Any]:
        return COMPACT_DTYPE if name in cls.COMPACT else EXACT_DTYPE


def _names(sums: Sums) -> list[str]:
    return [field.name for field in fields(sums)]


def _array(name: str, value: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> FloatArray:
    expected = math.prod(shape) * dtype.itemsize
    if not isinstance(value, bytes) or len(value) != expected:
        found = f"{len(value)} bytes" if isinstance(value, bytes) else type(value).__name__
        raise ValueError(f"{name} must be {expected} bytes for an array of shape {shape}, got {found}")
    array = np.frombuffer(value, dtype).astype(np.float64).reshape(shape)
    if not np.isfinite(array).all() or (array < 0.0).any():
        raise ValueError(f"{name} holds numbers that count nothing: not finite, or negative")
    return array


def _number(name: str, value: object) -> float:
    # A bool is an int to Python, and an int may be too large for a float.
    if type(value) not in (int, float) or not 0.0 <= value < 1e300:  # type: ignore[operator]
        raise ValueError(f"{name} must be a number, finite and not negative, got {str(value)[:40]}")
    return float(value)  # type: ignore[arg-type]
