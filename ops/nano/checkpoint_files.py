"""Files of a checkpoint: tensors in shards with their index, and JSON. Knows nothing of where tensors come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from actors.weights.index import INDEX_NAME


def write_shards(
    folder: Path, num_bytes: Mapping[str, int], tensor_of: Callable[[str], Tensor], max_shard_bytes: int
) -> None:
    """Write the tensors in order, one file after the other, and the index last: it marks the checkpoint as complete.

    num_bytes: size of each tensor by name; a file is larger than `max_shard_bytes` only when a single tensor is.
    tensor_of: a tensor by name, asked for when its file is written.
    """
    shards = list(_shards(num_bytes, max_shard_bytes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: tensor_of(name) for name in names}, folder / file_name, metadata={"format": "pt"})
        (folder / file_name).chmod(0o644)  # safetensors lets nobody but the owner read; a server is often another user
        weight_map.update(dict.fromkeys(names, file_name))
    index = {"metadata": {"total_size": sum(num_bytes.values())}, "weight_map": weight_map}
    write_json(folder / INDEX_NAME, index)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Readable, with a line end at the end."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _shards(num_bytes: Mapping[str, int], max_shard_bytes: int) -> Iterator[list[str]]:
    """Names in order, cut so that a shard exceeds the limit only when a single tensor does."""
    names: list[str] = []
    shard_bytes = 0
    for name, size in num_bytes.items():
        if names and shard_bytes + size > max_shard_bytes:
            yield names
            names, shard_bytes = [], 0
        names.append(name)
        shard_bytes += size
    yield names
