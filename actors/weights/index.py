"""What a checkpoint folder holds, read from safetensors headers alone: no tensor data, no memory for it.

A folder has `model.safetensors.index.json` and the shards it names, or one `model.safetensors`. Broken files are
collected as sentences, so that one error can list them together with everything else that is wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from actors.weights.item_bytes import ITEM_BYTES
from actors.weights.json_object import parse_object, read_object

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
HEADER_LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
MAX_INDEX_BYTES = 256_000_000  # 36,000 single experts need 5 MB


@dataclass(frozen=True)
class TensorInfo:
    """A stored tensor. dtype: its safetensors code, such as "BF16"."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class TensorRecord(TensorInfo):
    """A stored tensor and where it is: `num_bytes` bytes of `path` from `first_byte` on."""

    path: Path
    first_byte: int


@dataclass(frozen=True)
class CheckpointIndex:
    """The tensors of a checkpoint by name, and one sentence for each thing wrong with its files."""

    tensors: Mapping[str, TensorRecord]
    problems: tuple[str, ...]


def read_index(folder: Path) -> CheckpointIndex:
    """Read every header of a checkpoint. Wrong files become `problems`, never an exception."""
    problems: list[str] = []
    weight_map = _read_weight_map(folder, problems)
    headers = {name: _read_header(folder / name, problems) for name in _shard_names(folder, weight_map, problems)}
    copies = Counter(name for header in headers.values() for name in header)
    problems += [f"tensor {name} is stored in {num} shards" for name, num in sorted(copies.items()) if num > 1]
    if weight_map is not None:
        problems += _map_problems(weight_map, headers)
    return CheckpointIndex({n: r for header in headers.values() for n, r in header.items()}, tuple(problems))


def _read_weight_map(folder: Path, problems: list[str]) -> Mapping[str, Any] | None:
    """Tensor to shard name, as the index file says; None when there is no index file that can be used."""
    path = folder / INDEX_NAME
    if not path.exists():
        if not (folder / SINGLE_NAME).exists():
            problems.append(f"{folder} holds neither {INDEX_NAME} nor {SINGLE_NAME}")
        return None
    try:
        weight_map = read_object(path, MAX_INDEX_BYTES).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError("it has no weight_map")
    except (OSError, ValueError) as error:
        problems.append(f"{INDEX_NAME} cannot be used: {error}")
        return None
    return weight_map


def _shard_names(folder: Path, weight_map: Mapping[str, Any] | None, problems: list[str]) -> list[str]:
    if weight_map is None:
        return [SINGLE_NAME] if (folder / SINGLE_NAME).exists() and not problems else []
    names = sorted({str(shard) for shard in weight_map.values()})
    # A name from a file must not lead out of the folder.
    outside = [name for name in names if Path(name).name != name]
    problems += [f"{INDEX_NAME} names the shard {name!r}, which is not a plain file name" for name in outside]
    return [name for name in names if name not in outside]


def _map_problems(weight_map: Mapping[str, Any], headers: Mapping[str, Mapping[str, TensorRecord]]) -> list[str]:
    """Disagreements between the index file and the headers of shards that could be read."""
    problems = [
        f"{INDEX_NAME} places tensor {name} in {shard}, which does not hold it"
        for name, shard in weight_map.items()
        if headers.get(str(shard)) and name not in headers[str(shard)]
    ]
    problems += [
        f"shard {shard} holds tensor {name}, which {INDEX_NAME} does not name"
        for shard, header in headers.items()
        for name in header
        if name not in weight_map
    ]
    return problems


def _read_header(path: Path, problems: list[str]) -> dict[str, TensorRecord]:
    """The tensors of one file; a file that cannot be trusted has none, and is a problem."""
    try:
        return _parse_header(path)
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be used: {error}")
        return {}


def _parse_header(path: Path) -> dict[str, TensorRecord]:
    if not path.is_file():
        raise ValueError("it is not there, or not a regular file")
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(HEADER_LENGTH_BYTES)
        if len(prefix) < HEADER_LENGTH_BYTES:
            raise ValueError(f"its {file_bytes} bytes are too few for a safetensors file")
        header_bytes = int.from_bytes(prefix, "little")
        if header_bytes > min(MAX_HEADER_BYTES, file_bytes - HEADER_LENGTH_BYTES):
            raise ValueError(f"its header claims {header_bytes} bytes, the file has {file_bytes}")
        entries = parse_object(file.read(header_bytes))
    entries.pop("__metadata__", None)
    data_start = HEADER_LENGTH_BYTES + header_bytes
    records = {name: _parse_entry(name, entry, path, data_start) for name, entry in entries.items()}
    _check_coverage(records, data_start, file_bytes)
    return records


def _parse_entry(name: str, entry: object, path: Path, data_start: int) -> TensorRecord:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {name} is not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ValueError(f"the dtype {dtype!r} of {name} is not known")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"shape {shape!r} and data_offsets {offsets!r} of {name} are not sizes")
    record = TensorRecord(tuple(shape), dtype, path, data_start + offsets[0])
    if record.num_bytes != offsets[1] - offsets[0]:
        raise ValueError(f"{name} {dtype} {shape} needs {record.num_bytes} bytes, its data_offsets are {offsets}")
    return record


def _are_sizes(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_coverage(records: Mapping[str, TensorRecord], data_start: int, file_bytes: int) -> None:
    """Tensors must fill the file from the header to the end, without overlap or gap."""
    position = data_start
    for name, record in sorted(records.items(), key=lambda item: (item[1].first_byte, item[1].num_bytes)):
        if record.first_byte != position:
            kind = "overlaps the tensor before it" if record.first_byte < position else "follows a gap"
            raise ValueError(f"{name} {kind}: it begins at byte {record.first_byte}, not {position}")
        position += record.num_bytes
    if position != file_bytes:
        raise ValueError(f"its tensors end at byte {position}, the file at {file_bytes}: truncated or damaged")
