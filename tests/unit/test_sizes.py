"""The size check measures what it claims, and a run that forbids skips fails on one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checks.sizes import MAX_FUNCTION_LINES, Function, figures, file_problems, function_problems, functions_of

pytest_plugins = ["pytester"]

CONFTEST = Path(__file__).parents[1] / "conftest.py"

SOURCE = '''
class Thing:
    def method(self, a, *, b):
        """Counts itself, from def to its last line."""
        def inner():
            return a
        return inner
'''


def test_functions_are_measured_from_def_to_last_line() -> None:
    """A method's lines include its docstring and nested functions; self is no argument."""
    assert sorted(functions_of(SOURCE, "thing.py"), key=lambda function: function.where) == [
        Function("thing.py:inner", lines=2, num_arguments=0),
        Function("thing.py:method", lines=5, num_arguments=2),
    ]


def test_figures_show_the_distribution() -> None:
    """Shares, median and maximum of a tree small enough to count by hand."""
    assert figures([10, 20, 30], [5, 10, 20, 61]) == (
        "3 files, 60 lines; per file median 20, p90 20, max 30; "
        "4 functions, within 10 / 30 / 60 lines 50% / 75% / 75%, max 61"
    )


@pytest.mark.parametrize(
    ("name", "lines", "sentence"),
    [
        ("actors/long.py", 401, "actors/long.py: 401 lines, at most 400"),
        ("actors/utils.py", 1, "actors/utils.py: a name that says nothing"),
    ],
)
def test_files_past_the_budget_are_named(name: str, lines: int, sentence: str) -> None:
    """A file that is too long or says nothing by its name is a problem; its neighbour is not."""
    assert list(file_problems({name: lines, "actors/good.py": 400})) == [sentence]


def test_functions_past_the_budget_are_named() -> None:
    """One long function and one with many arguments among enough short ones."""
    short = [Function(f"a.py:f{i}", 5, 1) for i in range(40)]
    long = Function("a.py:long", MAX_FUNCTION_LINES + 1, 1)
    wide = Function("a.py:wide", 5, 7)
    assert list(function_problems([*short, long, wide])) == [
        "a.py:long: 61 lines, at most 60",
        "a.py:wide: 7 arguments, at most 6; make a dataclass",
    ]


def test_a_tree_of_long_functions_is_a_problem() -> None:
    """Each function is within the hard limit, yet too few are short."""
    problems = list(function_problems([Function("a.py:f", 40, 0)] * 3))
    assert problems == [
        "0% of functions are within 10 lines, at least 66%",
        "0% of functions are within 30 lines, at least 90%",
    ]


@pytest.mark.parametrize(("flags", "exit_status"), [((), 0), (("--fail-on-skip",), 1)])
def test_a_skip_fails_the_run_when_forbidden(
    pytester: pytest.Pytester, flags: tuple[str, ...], exit_status: int
) -> None:
    """The same run of one pass and one skip succeeds on a laptop and fails in CI."""
    unit = pytester.mkdir("tests") / "unit"
    unit.mkdir()
    (unit.parent / "conftest.py").write_text(CONFTEST.read_text())
    (unit / "test_it.py").write_text(
        "import pytest\ndef test_runs(): pass\ndef test_skips(): pytest.skip('no such thing here')\n"
    )
    pytester.makeini("[pytest]\nmarkers = unit\nasyncio_default_fixture_loop_scope = function\n")
    result = pytester.runpytest(*flags, "tests")
    assert result.ret == exit_status
    result.assert_outcomes(passed=1, skipped=1)
