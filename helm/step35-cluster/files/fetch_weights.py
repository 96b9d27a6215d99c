"""The init container of model.weights.source download: fetch one revision, then check every file's SHA-256.

A file that differs, is missing or is not listed stops the pod. Files that are there and right are not fetched again.
"""

import argparse
import fcntl
import hashlib
import sys
from pathlib import Path

CHUNK_BYTES = 16 * 2**20
WEIGHTS = "*.safetensors"


def main(arguments: argparse.Namespace) -> int:
    """Exit status 1 names what is wrong."""
    listed = parse_sums(arguments.checksums.read_text())
    wanted = descriptions(listed) if arguments.descriptions_only else listed
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pods of one node share a cache
        seal = folder / ".verified"
        digest = hashlib.sha256(repr(sorted(wanted.items())).encode()).hexdigest()
        if seal.exists() and seal.read_text() == digest:
            return 0
        download(arguments.repository, arguments.revision, folder, sorted(wanted))
        problems = find_problems(folder, wanted)
        if not problems:
            seal.write_text(digest)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def parse_sums(text: str) -> dict[str, str]:
    """Lines of sha256sum: digest, two spaces, name. Raises ValueError naming a line that is not one."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        digest, _, name = line.partition("  ")
        path = Path(name.strip())
        if len(digest) != 64 or not name.strip() or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"line {number} of the checksums is not a digest, two spaces and a name: {line!r}")
        found[path.as_posix()] = digest.lower()
    if not found:
        raise ValueError("the checksums list no file")
    return found


def descriptions(listed: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in listed.items() if not Path(name).match(WEIGHTS)}


def download(repository: str, revision: str, folder: Path, names: list[str]) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(repository, revision=revision, local_dir=folder, allow_patterns=names)


def find_problems(folder: Path, wanted: dict[str, str]) -> list[str]:
    """One sentence for each file that is not what the list says."""
    problems = []
    for name, digest in sorted(wanted.items()):
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (actual := sha256_of(path)) != digest:
            problems.append(f"{name} has the SHA-256 {actual}, not {digest}")
    strays = {path.relative_to(folder).as_posix() for path in folder.rglob(WEIGHTS)} - wanted.keys()
    return problems + [f"{name} is not in the checksums" for name in sorted(strays)]


def sha256_of(path: Path) -> str:
    made = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            made.update(chunk)
    return made.hexdigest()


def parse_arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("repository", "revision"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("folder", "checksums"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--descriptions-only", action="store_true")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main(parse_arguments(sys.argv[1:])))
