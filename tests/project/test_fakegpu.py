"""tests/fakegpu, CuPy on the CPU: what it says where it cannot be built, and that its own tests wait for it.

The tests that need it are in its folder.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "tests" / "fakegpu" / "build.sh"
NEEDED = ["awk", "bash", "cat", "cut", "dirname", "flock", "mkdir", "sha1sum"]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not all(map(shutil.which, NEEDED)), reason="it runs on Linux only"
)


@pytest.fixture
def build(tmp_path):
    """Builds it with these programs only: {name: a shell script}. Returns the exit code and what was said."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in NEEDED:
        (programs / name).symlink_to(shutil.which(name))

    def build(**scripts):
        for name, script in {"uname": "echo Linux x86_64", "nm": "", **scripts}.items():
            (programs / name).write_text(f"#!{shutil.which('bash')}\n{script}\n")
            (programs / name).chmod(0o755)
        environment = {"PATH": str(programs), "FAKEGPU_CACHE": str(tmp_path / "cache"), "PYTHON": "python"}
        done = subprocess.run([shutil.which("bash"), BUILD], env=environment, capture_output=True, text=True)
        return done.returncode, done.stderr

    return build


def test_on_another_system_it_is_one_sentence(build):
    said = "fakegpu: the stand-in for a GPU runs on x86-64 Linux only, not on Darwin arm64\n"
    assert build(uname="echo Darwin arm64") == (1, said)


def test_without_a_compiler_it_is_one_sentence(build):
    said = "fakegpu: the stand-in for a GPU needs g++, which is not installed: apt-get install g++\n"
    assert build() == (1, said)


def test_without_the_internet_it_is_one_sentence(build, tmp_path):
    venv = f"{shutil.which('mkdir')} -p $3/bin; echo exit 1 > $3/bin/python; {shutil.which('chmod')} +x $3/bin/python"
    code, said = build(**{"g++": "", "python": venv})
    assert code == 1 and said.count("\n") == 1
    assert said.startswith("fakegpu: pip could not install ") and "is there an internet connection?" in said
    assert (tmp_path / "cache" / "build" / "pip.log").exists() and not (tmp_path / "cache" / "stamp").exists()


def test_its_own_tests_are_skipped_without_it(tmp_path):
    options = "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'its'}", "-rs", "-n", "0"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "PYTHONPATH"))}
    command = [sys.executable, "-m", "pytest", *options, "tests/fakegpu"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "needs the stand-in for a GPU: tests/fakegpu/run pytest tests/fakegpu" in done.stdout
    assert "passed" not in done.stdout and "failed" not in done.stdout and "error" not in done.stdout
