"""Where stored weights are read from: a checkpoint folder, or tensors in memory. Converts nothing.

A read copies a run of consecutive elements into memory that the caller owns, so a rank touches only its slices.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from actors.errors import CheckpointError
from actors.weights.formats import DTYPE_CODES, ITEM_BYTES, TORCH_DTYPES
from actors.weights.index import TensorInfo, read_index


class WeightSource(Protocol):
    """Stored tensors by name. Reads may come from several threads."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def read_into(self, name: str, first_element: int, destination: Tensor) -> None:
        """Copy `destination.numel()` elements of a tensor, in row-major order, from `first_element` on.

        destination: contiguous, on the CPU, in the stored dtype. Raises ValueError when it is not, or when the
        tensor has no such elements; KeyError for an unknown name; CheckpointError when the bytes cannot be read.
        """
        ...


class MemorySource:
    """Weights that are already tensors: for tests, and for models built in memory."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        self._infos = {
            name: TensorInfo(tuple(tensor.shape), DTYPE_CODES[tensor.dtype]) for name, tensor in weights.items()
        }

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def read_into(self, name: str, first_element: int, destination: Tensor) -> None:
        _check_read(self._infos[name], name, first_element, destination)
        stored = self._weights[name].view(-1)[first_element : first_element + destination.numel()]
        destination.view(-1).copy_(stored)


class SafetensorsSource:
    """A checkpoint folder. Owns one open file per shard until `close`; a context manager.

    Reads go through `preadv` straight into the destination: the page cache serves the next rank on this host, and
    nothing stays mapped in this process. Raises CheckpointError at birth when the folder's files are broken.
    """

    def __init__(self, folder: Path) -> None:
        index = read_index(folder)
        if index.problems:
            raise CheckpointError(str(folder), index.problems)
        self._tensors = index.tensors
        self._files: dict[Path, int] = {}
        with ExitStack() as opened:
            opened.callback(self.close)
            for path in {record.path for record in self._tensors.values()}:
                self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            opened.pop_all()

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    def read_into(self, name: str, first_element: int, destination: Tensor) -> None:
        record = self._tensors[name]
        _check_read(record, name, first_element, destination)
        if record.path not in self._files:
            raise ValueError(f"read of {name} after close")
        memory = destination.view(-1).view(torch.uint8).numpy().data
        _read_exactly(
            self._files[record.path], record.first_byte + first_element * ITEM_BYTES[record.dtype], memory, name
        )

    def close(self) -> None:
        """Close every shard. Idempotent; no read may be under way."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __enter__(self) -> SafetensorsSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ProgressSource:
    """Another source, with a call of `on_progress(bytes_done, bytes_total)` after each read, one call at a time."""

    def __init__(self, source: WeightSource, bytes_total: int, on_progress: Callable[[int, int], None]) -> None:
        self._source = source
        self._bytes_total = bytes_total
        self._bytes_done = 0
        self._lock = threading.Lock()
        self._on_progress = on_progress

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._source.tensors

    def read_into(self, name: str, first_element: int, destination: Tensor) -> None:
        self._source.read_into(name, first_element, destination)
        with self._lock:
            self._bytes_done += destination.numel() * destination.itemsize
            self._on_progress(self._bytes_done, self._bytes_total)


def _check_read(info: TensorInfo, name: str, first_element: int, destination: Tensor) -> None:
    if destination.dtype != TORCH_DTYPES.get(info.dtype) or destination.device.type != "cpu":
        raise ValueError(f"{name} is stored as {info.dtype}, not {destination.dtype} on {destination.device}")
    if not destination.is_contiguous():
        raise ValueError(f"the destination of {name} is not contiguous")
    num_elements, last = info.num_bytes // ITEM_BYTES[info.dtype], first_element + destination.numel()
    if first_element < 0 or last > num_elements:
        raise ValueError(f"elements [{first_element}, {last}) of {name} do not exist: it has {num_elements}")


def _read_exactly(file: int, position: int, memory: memoryview, name: str) -> None:
    """Linux reads at most 2 GiB at once, and fewer at the end of a file that shrank since it was checked."""
    done = 0
    while done < len(memory):
        try:
            num_read = os.preadv(file, [memory[done:]], position + done)
        except OSError as error:
            raise CheckpointError(name, [f"cannot be read: {error}"]) from error
        if num_read == 0:
            raise CheckpointError(name, [f"its file ends {len(memory) - done} bytes early"])
        done += num_read
