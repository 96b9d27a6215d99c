"""Freely licensed text that every Python installation has: the standard library's sources and its language reference.

Python's documentation and sources are under the PSF License Agreement.
"""

from __future__ import annotations

import ast
import hashlib
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from ops.nano.data.conversation import HELD_OUT_ONE_IN

CODE, PROSE = "code", "text"
PIECE_CHARACTERS = 1200
SHORTEST_DOCSTRING = 400

# Tests, tables, generated grammars and third-party packages are no examples of how people write.
_LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "site-packages",
    "encodings",
    "pydoc_data",
    "turtledemo",
    "__pycache__",
}


@dataclass(frozen=True)
class Library:
    """Files of code and passages of prose, split by a hash of the text so that no piece is on both sides."""

    code: tuple[str, ...]
    prose: tuple[str, ...]

    def piece(self, domain: str, rng: random.Random, num_characters: int = PIECE_CHARACTERS) -> str:
        """A run of whole lines from a random place, of about that many characters."""
        texts = self.code if domain == CODE else self.prose
        text = rng.choices(texts, weights=[len(text) for text in texts])[0] if len(texts) > 1 else texts[0]
        start = rng.randrange(max(1, len(text) - num_characters // 2))
        start = text.rfind("\n", 0, start) + 1
        end = text.find("\n", start + num_characters)
        return text[start : end if end >= 0 else len(text)].strip("\n")


def load_library(*, held_out: bool) -> Library:
    """Read the local Python's library: the part for training, or the part kept for evaluation. Takes seconds."""
    root = Path(sysconfig.get_path("stdlib"))
    sources = [path.read_text(encoding="utf-8", errors="ignore") for path in _source_files(root)]
    code = [text for text in sources if _is_held_out(text) == held_out]
    prose = [text for text in topics.values() if _is_held_out(text) == held_out]
    # A docstring goes where its file goes, whose code contains it too.
    prose += [docstring for text in code for docstring in _long_docstrings(text)]
    return Library(tuple(code), tuple(prose))


def _source_files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*.py")):
        if not _LEFT_OUT.intersection(path.relative_to(root).parts[:-1]):
            yield path


def _long_docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            docstring = ast.get_docstring(node)
            if docstring and len(docstring) >= SHORTEST_DOCSTRING:
                yield docstring


def _is_held_out(text: str) -> bool:
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], "little") % HELD_OUT_ONE_IN == 0
