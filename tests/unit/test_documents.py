"""The documents say what is true of the tree: packages, paths, links and code names they mention exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE_ROOTS = ("cluster", "actors", "routing", "ops")
DOCUMENTS = sorted(path.name for path in ROOT.glob("*.md"))

# A path in backticks that starts in a folder of ours, such as `routing/wire.py` or `tests/unit`.
OWN_PATH = re.compile(r"`((?:cluster|actors|routing|ops|tests)/[\w./-]+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")


def test_architecture_has_every_package_with_its_sentence() -> None:
    """The table and the packages on disk agree both ways, and each sentence is its package's docstring."""
    rows = re.findall(r"^\| `([\w/]+)` \| (.+) \|$", _section("ARCHITECTURE.md", "Packages"), flags=re.MULTILINE)
    written, true = set(rows), {(name, _sentence(name)) for name in _packages()}
    assert (sorted(written - true), sorted(true - written)) == ([], []), "(wrong in the table, missing from it)"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_mentioned_paths_exist(document: str) -> None:
    """Every path of ours in backticks and every local link leads to something."""
    text = (ROOT / document).read_text()
    mentioned = {*OWN_PATH.findall(text), *LINK.findall(text)}
    assert sorted(path for path in mentioned if not (ROOT / path).exists()) == []


def test_glossary_names_occur_in_the_sources() -> None:
    """A code name of the glossary that no source uses is a word nobody needs."""
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \| ([^|]*) \|", (ROOT / "GLOSSARY.md").read_text(), flags=re.MULTILINE)
    names = {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}
    assert len(names) > 40, "the table was not understood"
    sources = " ".join(path.read_text() for root in PACKAGE_ROOTS for path in (ROOT / root).rglob("*.py"))
    assert sorted(name for name in names if not re.search(rf"\b{name}\b", sources)) == []


def test_decisions_are_numbered_and_complete() -> None:
    """Numbers run from 1 without a gap, and each entry has context, decision and consequence in this order."""
    _, *entries = re.split(r"^## (?=\d+\. )", (ROOT / "DECISIONS.md").read_text(), flags=re.MULTILINE)
    assert [int(entry.split(".")[0]) for entry in entries] == list(range(1, len(entries) + 1))
    for entry in entries:
        assert re.findall(r"^\*\*(\w+)\.\*\*", entry, flags=re.MULTILINE) == ["Context", "Decision", "Consequence"]


def test_make_targets_that_documents_name_exist() -> None:
    """A command that the documents tell to run is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    told = {name for text in map(_text, DOCUMENTS) for name in re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE)}
    assert told - targets == set()
    assert {"serve", "test", "check"} <= told


def _text(document: str) -> str:
    return (ROOT / document).read_text()


def _section(document: str, title: str) -> str:
    _, _, rest = _text(document).partition(f"\n## {title}\n")
    return rest.split("\n## ")[0]


def _packages() -> list[str]:
    found = (path.parent for root in PACKAGE_ROOTS for path in (ROOT / root).rglob("__init__.py"))
    return [path.relative_to(ROOT).as_posix() for path in found]


def _sentence(package: str) -> str:
    docstring = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text())) or ""
    return docstring.split("\n")[0]
