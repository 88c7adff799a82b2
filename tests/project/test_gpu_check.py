"""scripts/gpu_check.py as far as a machine without a GPU goes: what fails costs no more than itself.

Whether its parts run on CuPy is seen by `tests/fakegpu/run python scripts/gpu_check.py`.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from scripts.gpu_parts import part, plan, suite
from scripts.gpu_parts.runner import CUT, Runner
from tests.support import gpu_check_parts
from tests.support.scripts import SCRIPTS, import_script

gpu_check = import_script("gpu_check.py")
ROOT = SCRIPTS.parent
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals end its processes")


@pytest.fixture
def setting(tmp_path):
    (tmp_path / "scratch").mkdir()
    return part.Setting("cpu", tmp_path, tmp_path / "scratch", small=True)


@pytest.fixture
def run(setting):
    """Runs a part of gpu_check_parts; returns its rows by their items, and what was said."""
    def run(name, seconds=600.0, plan="tests.support.gpu_check_parts"):
        said = []
        runner = Runner(setting, "quick", time.monotonic() + seconds, tell=said.append, plan=plan)
        rows = runner.run(gpu_check_parts.find(name))
        assert [row["part"] for row in rows] == [name] * len(rows)
        return {row["item"]: row for row in rows}, "\n".join(said)

    return run


# --- the runner -----------------------------------------------------------------------------------------------------


def test_an_item_that_fails_costs_no_other_item(run):
    rows, said = run("failures")
    assert list(rows) == list(gpu_check_parts.find("failures").items)
    found = {item: row["ok"] for item, row in rows.items()}
    passed = {"first", "same process", "after the crash", "after the loss", "last"}
    assert {item for item, ok in found.items() if ok} == passed and found.pop("without torch") is None
    assert rows["raises"]["result"] == "RuntimeError: no kernel image" and "traceback" in rows["raises"]
    assert "timm is missing" in rows["skipped"]["result"]
    assert rows["without torch"]["result"] == "not run: torch is not installed"
    assert "torch_is_not_here" in rows["another package"]["result"] and rows["another package"]["ok"] is False
    assert rows["crashes"]["result"] == "its process was ended by SIGSEGV; see log.txt"
    assert "illegal memory access" in rows["loses the device"]["result"]
    assert rows["ends"]["result"] == "its process ended with status 7; see log.txt"
    assert "5 passed, 6 FAILED, 1 not run" in said and "FAILED crashes: its process was ended by SIGSEGV" in said


def test_a_new_process_starts_only_where_the_old_one_is_broken(run):
    rows, _ = run("failures")
    processes = [rows[item]["process"] for item in ("first", "same process", "after the crash", "after the loss")]
    assert processes[0] == processes[1] and len(set(processes)) == 3
    rows, _ = run("alone")
    assert rows["first"]["process"] != rows["second"]["process"]


def test_an_item_that_hangs_is_ended_and_the_next_one_runs(run):
    rows, _ = run("hanging")
    assert rows["hangs"]["result"] == "ended after its 2 s; see log.txt" and "before it hangs" in rows["hangs"]["log"]
    assert rows["first"]["ok"] and rows["last"]["ok"]


def test_a_part_ends_at_its_limit_and_a_run_at_its_own(run):
    rows, _ = run("slow")
    assert rows["hangs"]["ok"] is False and rows["hangs"]["result"].startswith("ended at the part's limit")
    assert rows["last"]["result"] == "not run: the part's time was over"
    rows, _ = run("hanging", seconds=1)
    assert {row["result"] for row in rows.values()} == {"not run: no time was left"}


def test_what_is_cut_by_the_end_of_the_run_has_not_failed(run):
    rows, _ = run("slow", seconds=4)
    assert rows["hangs"]["ok"] is None and rows["hangs"]["result"].startswith(CUT)


def test_nothing_is_lost_if_everything_is_killed(tmp_path):
    """A kill -9 in the middle: the rows so far are there, and can be read though the last line was cut off."""
    rows = tmp_path / part.ROWS
    code = (
        "import sys, time; from pathlib import Path; from scripts.gpu_parts.part import append\n"
        "append(Path(sys.argv[1]), {'item': 'first', 'ok': True}); print('written', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(rows)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "written\n"
        process.kill()
    with rows.open("a") as file:
        file.write('{"item": "sec')
    assert part.read(rows) == [{"item": "first", "ok": True}]


@pytest.mark.slow
def test_ended_from_outside_it_leaves_no_process_behind(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, SCRIPTS / "gpu_check.py", "--parts", "first steps", "--device=cpu", f"--out={out}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process:
        while "first steps" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    children = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(out) not in children


def test_a_part_that_cannot_start_is_tried_once(run):
    rows, _ = run("alone", plan="no_such_module")
    assert rows["first"]["ok"] is False and "No module named 'no_such_module'" in rows["first"]["log"]
    assert rows["second"]["ok"] is False                # alone: a process of its own
    rows, _ = run("hanging", plan="no_such_module")
    assert rows["hangs"]["result"] == rows["last"]["result"] == "not run: the process of the part does not start"


# --- the plan -------------------------------------------------------------------------------------------------------


def test_the_limits_are_within_the_budgets():
    for mode, parts in plan.MODES.items():
        assert sum(each.seconds for each in parts) <= plan.BUDGETS[mode]
        assert all(each.item_seconds <= each.seconds and each.items for each in parts)
    assert plan.BUDGETS["quick"] <= 200 and plan.BUDGETS["measure"] <= 460


def test_every_part_has_a_name_of_its_own():
    names = [each.name for parts in plan.MODES.values() for each in parts if each.name != "facts"]
    assert len(set(names)) == len(names) and all(plan.find(name) for name in names)


def test_what_is_optional_is_not_imported_by_the_plan(tmp_path):
    """pytest, PyTorch, timm, Hypothesis, pycocotools and scikit-learn are not there on every machine."""
    for name in ("pytest", "torch", "torchvision", "timm", "hypothesis", "pycocotools", "sklearn", "cupy"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name}', name='{name}')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, SCRIPTS / "gpu_check.py", "--list"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"  {each.name} " in done.stdout for parts in plan.MODES.values() for each in parts)


def test_without_a_gpu_it_is_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "cupy.py").write_text("raise ModuleNotFoundError(\"No module named 'cupy'\", name='cupy')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert gpu_check.main(["--quick", "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("gpu_check: ") and printed.err.count("\n") == 1 and "CuPy" in printed.err
    rows = part.read(tmp_path / "out" / part.ROWS)
    assert {row["part"] for row in rows} == {"facts"} and rows[0]["ok"] is False


def test_results_are_not_written_over(tmp_path, capsys):
    (tmp_path / part.ROWS).write_text("")
    assert gpu_check.main(["--quick", "--device=cpu", "--out", str(tmp_path)]) == 1
    assert "name another folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_rehearsal_on_the_cpu(tmp_path, capsys):
    """A part from its start to the page; what comes back from a borrowed machine is at most eight files."""
    names = ["facts", "training", "training steps"]
    assert gpu_check.main(["--parts", *names, "--device=cpu", "--limit-scale=4", "--out", str(tmp_path)]) == 0
    rows = part.read(tmp_path / part.ROWS)
    assert list(dict.fromkeys(row["part"] for row in rows)) == names and not any(row["ok"] is False for row in rows)
    page = (tmp_path / "summary.md").read_text("utf-8")
    assert "A rehearsal with the smallest sizes" in page and "## Targets" not in page
    assert "largest relative difference 0.0e+00" in page and "FAILED" not in capsys.readouterr().out
    written = {"gpu.jsonl", "log.txt", "summary.md"}
    assert {path.name for path in tmp_path.iterdir()} == written
    assert len(written | {suite.TESTS, suite.LOG, "tests.xml", "tests_again.log"}) < 8


# --- the device tests -----------------------------------------------------------------------------------------------

FAILING = """
import pytest

class CUDARuntimeError(RuntimeError):
    pass

CUDARuntimeError.__module__ = "cupy_backends.cuda.api.runtime"

def test_passes(): pass
def test_fails(): assert 1 == 2, "one is not two"
def test_is_skipped(): pytest.skip("not here")
def test_loses_the_device(): raise CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access")
def test_is_after_it(): pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [[], ["-n", "2", "--dist", "loadfile"]], ids=["one process", "two workers"])
def test_tests_go_on_after_a_kernel_has_failed(setting, tmp_path, monkeypatch, workers):
    (tmp_path / "test_a.py").write_text(FAILING)
    (tmp_path / "test_b.py").write_text("import a_package_that_is_not_there\n")
    rows = tmp_path / suite.TESTS
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}

    def run_pytest(setting, options, end, more):
        command = [
            sys.executable, "-m", "pytest", "-q", "-p", "scripts.gpu_parts.pytest_rows", "-p", "no:cacheprovider",
            "-c", os.devnull, "--rootdir", tmp_path, f"--basetemp={tmp_path / 'its'}",
            "--continue-on-collection-errors", *options, tmp_path,
        ]
        paths = {"PYTHONPATH": str(ROOT), suite.VARIABLE: str(rows)}
        return subprocess.run(command, cwd=tmp_path, env=environment | paths | more, capture_output=True).returncode

    monkeypatch.setattr(suite, "run_pytest", run_pytest)
    assert suite.run_until_done(setting, workers, time.monotonic() + 120) in suite.FINISHED
    found = {test.rpartition("::")[2]: outcome for test, outcome in suite.outcomes(part.read(rows)).items()}
    assert found == {
        "test_passes": "passed", "test_fails": "failed", "test_is_skipped": "skipped", "test_is_after_it": "passed",
        "test_loses_the_device": suite.LOST, "test_b.py": suite.NOT_COLLECTED,
    }
    assert suite.LOST in suite.FAILED
    errors = [row.get("error", "") for row in part.read(rows)]
    assert any("one is not two" in error for error in errors) and any("illegal memory" in error for error in errors)
    assert list(suite.missing_packages(part.read(rows))) == ["a_package_that_is_not_there"]


@pytest.mark.slow
def test_the_suite_runs_where_packages_are_missing(setting, tmp_path, monkeypatch):
    """Without pytest's plugins, pycocotools, Hypothesis, …: the files that need them are named, all others run."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("pycocotools", "hypothesis", "sklearn", "timm", "torch"):
        (blocked / f"{name}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(blocked), str(ROOT)]))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    files = ["tests/ops/test_op_values.py", "tests/cli/test_detect.py", "tests/ops/test_ops.py"]
    status = suite.run_pytest(setting, files, time.monotonic() + 120, {})
    rows = part.read(tmp_path / suite.TESTS)
    assert status == 1, (tmp_path / "tests.log").read_text()
    missing = suite.missing_packages(rows)
    assert missing == {"pycocotools": ["tests/cli/test_detect.py"], "hypothesis": ["tests/ops/test_ops.py"]}
    outcomes = set(suite.outcomes(rows).values())
    assert {"passed", suite.NOT_COLLECTED} <= outcomes and "failed" not in outcomes


@pytest.mark.slow
def test_a_suite_that_is_late_keeps_what_it_has(setting, monkeypatch):
    """Tests that were done are known by their lines, whenever pytest is ended: here when the first one has passed."""
    def done():
        return suite.outcomes(part.read(setting.out / suite.TESTS))

    class Late(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is None or timeout <= suite.GRACE:
                return super().wait(timeout)
            while "passed" not in done().values():
                assert self.poll() is None
                time.sleep(0.01)
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setattr(subprocess, "Popen", Late)
    assert suite.run_pytest(setting, ["tests/ops/test_ops.py"], time.monotonic() + 600, {}) is None
    assert "passed" in (setting.out / "tests.log").read_text("utf-8")
    assert "passed" in done().values()
