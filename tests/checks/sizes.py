"""Measures the tree against the size budgets: how long files and functions are, how many arguments they take.

Prints one line of figures and one line for everything past a budget. Knows nothing of what the code does.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("cluster", "actors", "routing", "ops")

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_KERNEL_LINES = 150
MAX_ARGUMENTS = 6
SHARE_OF_FUNCTIONS = {10: 0.66, 30: 0.90}  # at least this share lies within so many lines
BANNED_FILE_NAMES = frozenset({"utils", "util", "common", "helpers", "misc", "core", "manager"})

# "path" or "path:function" -> why a budget does not hold there.
EXEMPTIONS: dict[str, str] = {
    "routing/dispatcher.py:compute": "a frame's fields one by one; a dataclass would be built per frame for nothing",
    "actors/attention/step.py:__init__": "the parts that a step goes through, one by one",
    "actors/expert/shard.py:compute": "as the contract in routing/dispatcher.py",
}


@dataclass(frozen=True)
class Function:
    """One def. lines: from `def` to its last line. num_arguments: without self and cls."""

    where: str
    lines: int
    num_arguments: int


def main() -> int:
    """Exit status 1 when anything is past its budget."""
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    file_lines = {_name(path): len(path.read_text().splitlines()) for path in paths}
    functions = [function for path in paths for function in functions_of(path.read_text(), _name(path))]
    print(figures(list(file_lines.values()), [function.lines for function in functions]))
    problems = [*file_problems(file_lines), *function_problems(functions), *stale_exemptions(file_lines, functions)]
    for problem in problems:
        print(f"  {problem}")
    return 1 if problems else 0


def functions_of(source: str, name: str) -> Iterator[Function]:
    """Every function and method of one file, nested ones included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            yield Function(f"{name}:{node.name}", lines, _num_arguments(node.args))


def figures(file_lines: Sequence[int], function_lines: Sequence[int]) -> str:
    """The size columns: files, their lines, and the distribution of function lengths."""
    shares = " / ".join(f"{_share_within(function_lines, limit):.0%}" for limit in (10, 30, MAX_FUNCTION_LINES))
    return (
        f"{len(file_lines)} files, {sum(file_lines)} lines; "
        f"per file median {statistics.median(file_lines):.0f}, p90 {_p90(file_lines)}, max {max(file_lines)}; "
        f"{len(function_lines)} functions, within 10 / 30 / {MAX_FUNCTION_LINES} lines {shares}, "
        f"max {max(function_lines)}"
    )


def file_problems(file_lines: dict[str, int]) -> Iterator[str]:
    """Files that are too long or whose name says nothing."""
    for name, lines in file_lines.items():
        if lines > MAX_FILE_LINES and name not in EXEMPTIONS:
            yield f"{name}: {lines} lines, at most {MAX_FILE_LINES}"
        if Path(name).stem in BANNED_FILE_NAMES:
            yield f"{name}: a name that says nothing"


def function_problems(functions: Sequence[Function]) -> Iterator[str]:
    """Functions past a hard limit, and a tree whose functions are too long on the whole."""
    for function in functions:
        limit = MAX_KERNEL_LINES if function.where.startswith("actors/kernels/triton/") else MAX_FUNCTION_LINES
        if function.where in EXEMPTIONS:
            continue
        if function.lines > limit:
            yield f"{function.where}: {function.lines} lines, at most {limit}"
        if function.num_arguments > MAX_ARGUMENTS:
            yield f"{function.where}: {function.num_arguments} arguments, at most {MAX_ARGUMENTS}; make a dataclass"
    lengths = [function.lines for function in functions]
    for limit, share in SHARE_OF_FUNCTIONS.items():
        if _share_within(lengths, limit) < share:
            yield f"{_share_within(lengths, limit):.0%} of functions are within {limit} lines, at least {share:.0%}"


def stale_exemptions(file_lines: dict[str, int], functions: Sequence[Function]) -> Iterator[str]:
    """Exemptions for something that is gone or within its budget again."""
    needed = {name for name, lines in file_lines.items() if lines > MAX_FILE_LINES}
    needed |= {f.where for f in functions if f.lines > MAX_FUNCTION_LINES or f.num_arguments > MAX_ARGUMENTS}
    for where in EXEMPTIONS.keys() - needed:
        yield f"{where}: exempt without need; remove it from EXEMPTIONS"


def _num_arguments(args: ast.arguments) -> int:
    names = [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def _share_within(lengths: Sequence[int], limit: int) -> float:
    return sum(length <= limit for length in lengths) / len(lengths)


def _p90(values: Sequence[int]) -> int:
    return sorted(values)[int(0.9 * (len(values) - 1))]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


if __name__ == "__main__":
    sys.exit(main())
