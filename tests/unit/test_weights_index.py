"""Headers of sound files, and every way in which a file can be broken: found without reading tensor data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from actors.weights.index import INDEX_NAME, MAX_HEADER_BYTES, SINGLE_NAME, read_index

TENSORS = {"a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
Header = dict[str, Any]


def write_raw(path: Path, header: object, num_data_bytes: int = 32) -> None:
    """A file with this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(num_data_bytes))


def entry(dtype: str = "F32", shape: object = (2, 3), first: object = 0, last: object = 24) -> Header:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [first, last]}


def only_problem(folder: Path) -> str:
    """The one problem of a folder, in which no tensor of the broken file may be offered."""
    index = read_index(folder)
    assert len(index.problems) == 1, index.problems
    return index.problems[0]


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    """Shape, format and position of each tensor are those of the library that wrote the file."""
    save_file(TENSORS, tmp_path / SINGLE_NAME, metadata={"format": "pt"})
    index = read_index(tmp_path)
    assert index.problems == ()
    infos = {name: (record.shape, record.dtype) for name, record in index.tensors.items()}
    assert infos == {"a": ((2, 3), "F32"), "b": ((4,), "BF16")}
    record = index.tensors["a"]
    stored = record.path.read_bytes()[record.first_byte : record.first_byte + record.num_bytes]
    assert stored == TENSORS["a"].numpy().tobytes()


def test_scalars_and_empty_tensors_are_tensors(tmp_path: Path) -> None:
    """A shape of [] is one element, a zero in a shape is none."""
    header = {
        "x": entry(shape=(), last=4),
        "y": entry(shape=(0, 5), first=4, last=4),
        "z": entry(shape=(7,), first=4, last=32),
    }
    write_raw(tmp_path / SINGLE_NAME, header)
    assert {name: r.num_bytes for name, r in read_index(tmp_path).tensors.items()} == {"x": 4, "y": 0, "z": 28}


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b"not json", "cannot be used"),
        (b"\xff\xfe{}", "cannot be used"),
        (b"[1, 2]", "not an object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "repeats the key 'a'"),
        ({"a": 5}, "not dtype, shape and data_offsets"),
        ({"a": {"dtype": "F32", "shape": [2, 3]}}, "not dtype, shape and data_offsets"),
        ({"a": entry(dtype="Q4_K")}, "'Q4_K' of a is not known"),
        ({"a": entry(dtype=["F32"])}, "is not known"),  # type: ignore[arg-type]
        ({"a": entry(shape=(2, -3))}, "not sizes"),
        ({"a": entry(shape=(2.0, 3))}, "not sizes"),
        ({"a": entry(shape=(True, 6))}, "not sizes"),
        ({"a": entry(shape="23")}, "not sizes"),
        ({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24, 32]}}, "not sizes"),
        ({"a": entry(first=-8, last=16)}, "not sizes"),
        ({"a": entry(last=20)}, "needs 24 bytes"),
        ({"a": entry(first=24, last=0)}, "needs 24 bytes"),
        ({"a": entry(shape=(2**40, 2**40))}, "data_offsets are"),
        ({"a": entry(), "b": entry(first=20, last=44)}, "b overlaps the tensor before it"),
        ({"a": entry(first=8, last=32)}, "a follows a gap"),
        ({"a": entry()}, "truncated or damaged"),
        ({"a": entry(), "b": entry(first=24, last=48)}, "truncated or damaged"),
        ({}, "truncated or damaged"),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: object, problem: str) -> None:
    """Each lie is one sentence that names the file, and no tensor of that file is offered."""
    write_raw(tmp_path / SINGLE_NAME, header)
    sentence = only_problem(tmp_path)
    assert problem in sentence
    assert SINGLE_NAME in sentence
    assert not read_index(tmp_path).tensors


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "too few"),
        (b"1234567", "too few"),
        ((1000).to_bytes(8, "little") + b"{}", "header claims 1000 bytes"),
        ((2**63).to_bytes(8, "little") + b"{}", "header claims"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", "header claims"),
    ],
)
def test_files_without_a_header(tmp_path: Path, content: bytes, problem: str) -> None:
    """A file too short for what it claims is refused before anything of that size is read."""
    (tmp_path / SINGLE_NAME).write_bytes(content)
    assert problem in only_problem(tmp_path)


def test_a_header_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    """A sparse file may be large enough for a huge header; the limit holds all the same."""
    with (tmp_path / SINGLE_NAME).open("wb") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(2 * MAX_HEADER_BYTES)
    assert "header claims" in only_problem(tmp_path)


@pytest.mark.parametrize("num_lost_bytes", [1, 8, 31])
def test_truncated_files(tmp_path: Path, num_lost_bytes: int) -> None:
    """A download that stopped early is found from the sizes alone."""
    path = tmp_path / SINGLE_NAME
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-num_lost_bytes])
    assert "truncated or damaged" in only_problem(tmp_path)


def test_an_empty_folder(tmp_path: Path) -> None:
    """The message names both files that would do."""
    assert INDEX_NAME in only_problem(tmp_path)
    assert SINGLE_NAME in only_problem(tmp_path)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two shards, one tensor each, and an index that is right."""
    save_file({"a": TENSORS["a"]}, tmp_path / "one.safetensors")
    save_file({"b": TENSORS["b"]}, tmp_path / "two.safetensors")
    write_map(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    return tmp_path


def turn_into_pipe(path: Path) -> None:
    """Opening a pipe would wait for a writer that never comes."""
    path.unlink()
    os.mkfifo(path)


def write_map(folder: Path, weight_map: object) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_sharded_checkpoint(sharded: Path) -> None:
    """Each tensor is found in the shard that the index names."""
    index = read_index(sharded)
    assert index.problems == ()
    assert {name: record.path.name for name, record in index.tensors.items()} == {
        "a": "one.safetensors",
        "b": "two.safetensors",
    }


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (lambda f: (f / "two.safetensors").unlink(), "two.safetensors cannot be used"),
        (lambda f: write_map(f, {"a": "one.safetensors", "b": "one.safetensors"}), "does not hold it"),
        (lambda f: save_file(TENSORS, f / "two.safetensors"), "tensor a is stored in 2 shards"),
        (
            lambda f: save_file({"b": TENSORS["b"], "c": TENSORS["a"]}, f / "two.safetensors"),
            "does not name",
        ),
        (lambda f: write_map(f, {}), "has no weight_map"),
        (lambda f: write_map(f, ["a"]), "has no weight_map"),
        (lambda f: (f / INDEX_NAME).write_text('{"weight_map": '), f"{INDEX_NAME} cannot be used"),
        (lambda f: write_map(f, {"a": "one.safetensors", "b": "../two.safetensors"}), "not a plain file name"),
        (lambda f: write_map(f, {"a": "one.safetensors", "b": 7}), "7 cannot be used"),
        (lambda f: (f / "two.safetensors").write_bytes(b"\0"), "two.safetensors cannot be used"),
        (lambda f: turn_into_pipe(f / "two.safetensors"), "not a regular file"),
    ],
    ids=[
        "no shard",
        "wrong shard",
        "twice",
        "unnamed",
        "no map",
        "list",
        "not json",
        "outside",
        "number",
        "broken",
        "pipe",
    ],
)
def test_index_and_shards_that_disagree(sharded: Path, break_it: Callable[[Path], object], problem: str) -> None:
    """Every disagreement between index and shards is a sentence, and never an exception."""
    break_it(sharded)
    assert any(problem in sentence for sentence in read_index(sharded).problems)


def test_a_name_that_leads_out_of_the_folder_is_not_opened(sharded: Path) -> None:
    """A shard name from a file cannot reach a file elsewhere, even one that exists and is sound."""
    folder = sharded / "inner"
    folder.mkdir()
    write_map(folder, {"a": "../one.safetensors"})
    index = read_index(folder)
    assert not index.tensors
    assert "not a plain file name" in index.problems[0]


def test_all_broken_files_are_listed(sharded: Path) -> None:
    """One broken shard does not hide another."""
    (sharded / "one.safetensors").write_bytes(b"")
    (sharded / "two.safetensors").unlink()
    assert len(read_index(sharded).problems) == 2
