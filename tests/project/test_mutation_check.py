"""The mutation check itself: its table fits the code, and it tells caught, survived and broken apart."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import mutation_check
from mutants import Mutant

sys.path.pop(0)

MUTANTS = mutation_check.MUTANTS
ROOT = Path(__file__).resolve().parents[2]
GOOD = Mutant("double: three", "a factor", "arithmetic.py", "2 * x", "3 * x", ("test_double.py",))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A package, a test of one of its two functions, and a test of something else. Nothing here changes it."""
    root = tmp_path_factory.mktemp("mutation") / "checkout"
    files = {
        "scratchvit/__init__.py": "",
        "scratchvit/arithmetic.py": "def double(x):\n    return 2 * x\n\n\ndef unused():\n    return 'one'\n",
        "tests/__init__.py": "",
        "tests/conftest.py": "import scratchvit.arithmetic\n",
        "tests/test_double.py": "from scratchvit.arithmetic import double\n\n\n"
                                "def test_other():\n    pass\n\n\n"
                                "def test_double():\n    assert double(3) == 6\n",
        "tests/test_other.py": "import scratchvit\n\n\ndef test_nothing():\n    assert scratchvit\n",
        "tests/test_mutation_check.py": "def test_that_fails_for_every_mutant():\n    assert False\n",
        ".git": "gitdir: elsewhere\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def contents(root):
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


# --- the table ------------------------------------------------------------------------------------------------------


def test_the_table_fits_the_code_of_today():
    assert mutation_check.problems(MUTANTS, ROOT) == []
    assert len(MUTANTS) >= 20
    assert {mutant.file.partition("/")[0] for mutant in MUTANTS} >= {"ops", "kernels", "nn", "optim", "models"}
    kinds = {"a term dropped", "a wrong axis", "eps misplaced", "a factor 1 + 1e-4"}
    assert {mutant.kind for mutant in MUTANTS} >= kinds


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"text": "4 * x"}, "its text stands 0 times in arithmetic.py, not once: '4 * x'"),
        ({"text": "return"}, "its text stands 2 times in arithmetic.py, not once"),
        ({"text": "2 * x", "instead": "2 * x"}, "it changes nothing"),
        ({"instead": "2 *"}, "arithmetic.py is no Python any more: invalid syntax"),
        ({"file": "algebra.py"}, "there is no file algebra.py in the package"),
        ({"tests": ("test_triple.py",)}, "there is no tests/test_triple.py"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(checkout, changes, says):
    assert mutation_check.problems([GOOD], checkout) == []
    (found,) = mutation_check.problems([replace(GOOD, **changes)], checkout)
    assert found.startswith(f"double: three: {says}")


def test_a_name_stands_for_one_row(checkout):
    assert mutation_check.problems([GOOD, GOOD], checkout) == ["double: three: two rows have this name"]


def test_nothing_runs_with_a_table_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(mutation_check, "MUTANTS", [replace(MUTANTS[0], text="no such text")])
    monkeypatch.setattr(mutation_check, "run_tests", None)
    with pytest.raises(SystemExit, match=r"bring the table in scripts/mutants.py up to date .*\n.* 0 times"):
        mutation_check.main([])


# --- running --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "outcome", "test"),
    [
        ({}, "caught", "tests/test_double.py::test_double"),
        ({"tests": ("test_other.py",)}, "caught", "tests/test_double.py::test_double"),        # by the whole quick part
        ({"text": "'one'", "instead": "'two'"}, "survived", ""),
        ({"text": "def double", "instead": "def twice"}, "broken", ""),                         # a test module's import
        ({"text": "def unused", "instead": "import nothing\n\n\ndef unused"}, "broken", ""),    # conftest's
    ],
)
def test_caught_survived_and_broken(checkout, changes, outcome, test):
    before = contents(checkout)
    result = mutation_check.run_mutant(replace(GOOD, **changes), checkout)
    assert (result.outcome, result.test) == (outcome, test), result.why
    assert ("Error" in result.why) == (outcome == "broken")
    assert contents(checkout) == before


def scripted(monkeypatch, *results):
    """Let run_tests give these results, one after another; the list of its calls."""
    left, calls = list(results), []

    def run_tests(copy, tests=(), leave_out=(), on_gpu=False):
        calls.append((list(tests), list(leave_out)))
        return left.pop(0)

    monkeypatch.setattr(mutation_check, "run_tests", run_tests)
    return calls


def test_a_test_that_fails_by_chance_catches_nothing(monkeypatch):
    first, second = mutation_check.Result("caught", "test_a"), mutation_check.Result("caught", "test_b")
    calls = scripted(monkeypatch, first, mutation_check.Result("survived"), second, second)
    assert mutation_check.steady_failure(ROOT, ["tests"]) == second
    assert calls == [(["tests"], []), (["test_a"], []), (["tests"], ["test_a"]), (["test_b"], [])]


def test_nothing_is_judged_by_a_quick_part_that_fails_anyway(monkeypatch, checkout):
    failure = mutation_check.Result("caught", "test_anyway", "assert False")
    scripted(monkeypatch, mutation_check.Result("survived"), failure, failure)
    mutation_check.quick_part.cache_clear()
    result = mutation_check.run_mutant(GOOD, checkout)
    mutation_check.quick_part.cache_clear()
    assert result.outcome == "broken" and result.why == "without it, the quick part fails: test_anyway\nassert False"


def test_results_are_logged_at_once_and_those_of_this_commit_are_not_run_again(monkeypatch, tmp_path):
    commits, ran, log = ["a1"], [], tmp_path / "log.jsonl"

    def run(mutant):
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(mutant.name)
        return mutation_check.Result("caught", "test_a", seconds=2.5)

    monkeypatch.setattr(mutation_check, "MUTANTS", MUTANTS[:3])
    monkeypatch.setattr(mutation_check, "_commit", lambda root: commits[-1])
    monkeypatch.setattr(mutation_check, "run_mutant", run)
    monkeypatch.setattr(mutation_check, "steady_failure", lambda *arguments: mutation_check.Result("survived"))
    with pytest.raises(KeyboardInterrupt):
        mutation_check.main(["--log", str(log)])
    assert ran == [mutant.name for mutant in MUTANTS[:2]]
    ran.clear()
    assert mutation_check.main(["--log", str(log), "--out", str(tmp_path / "table.md")]) == 0
    assert ran == [MUTANTS[2].name] and "**3 of 3 caught**" in (tmp_path / "table.md").read_text("utf-8")
    ran.clear()
    commits.append("b2")
    with pytest.raises(KeyboardInterrupt):
        mutation_check.main(["--log", str(log)])
    assert ran == [mutant.name for mutant in MUTANTS[:2]]


def test_the_report_names_what_happened(checkout):
    caught = mutation_check.Result("caught", "tests/test_double.py::test_double[a|b]", "assert 9 == 6", 1.4)
    text = mutation_check.markdown([(GOOD, caught), (GOOD, mutation_check.Result("survived"))], checkout)
    assert "**1 of 2 caught**" in text and "at commit unknown" in text
    first, second = text.splitlines()[-2:]
    assert first == r"| double: three | a factor | `arithmetic.py` | `tests/test_double.py::test_double[a\|b]` | 1 |"
    assert "**survived**" in second
