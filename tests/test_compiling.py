"""What is shown while CuPy compiles kernels. CuPy is a stand-in here; with the real one: fakegpu/test_first_run.py."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import pytest

from scratchvit import compiling, gpu, progress
from scratchvit.cli._warm import compile_ours
from scratchvit.kernels.cuda import modules
from tests.support.fake_cupy import FakeCuPy


class Terminal(io.StringIO):
    """A standard error that is a terminal of 100 columns."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of kernels, with a file that CuPy has written there."""
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("CUPY_CACHE_IN_MEMORY", raising=False)
    (tmp_path / "0123.cubin").touch()
    return tmp_path


def compile_in_a_process(monkeypatch: pytest.MonkeyPatch, cupy: FakeCuPy, kernels: int = 1) -> compiling.Count:
    """What a new process does that compiles so many kernels."""
    monkeypatch.setattr(compiling, "COUNT", compiling.Count())
    for _ in range(2):
        compiling.watch(cupy)       # a second call changes nothing: each kernel is counted once
    for number in range(kernels):
        assert cupy.cuda.compiler.compile_using_nvrtc(number) == f"compiled {number}"
    return compiling.COUNT


def test_where_kernels_are_kept_is_said_once_for_all_processes(monkeypatch, kept, capsys):
    compile_in_a_process(monkeypatch, FakeCuPy(), kernels=3)
    said = f"scratchvit: compiling kernels for the GPU, only the first time: they are kept in {kept}\n"
    assert capsys.readouterr().err == said
    compile_in_a_process(monkeypatch, FakeCuPy())
    assert capsys.readouterr().err == ""
    assert [path.name for path in kept.iterdir() if path.suffix != ".cubin"] == [
        "scratchvit-0.1.0-cupy-14.2.0-nvrtc-12.9-sm90"
    ]


@pytest.mark.parametrize("changed", ["CuPy", "NVRTC", "scratchvit", "the GPU"])
def test_and_again_when_kept_kernels_may_not_fit_any_more(monkeypatch, kept, capsys, changed):
    compile_in_a_process(monkeypatch, FakeCuPy())
    capsys.readouterr()
    cupy = FakeCuPy(version="15.0.0" if changed == "CuPy" else "14.2.0", cuda=13 if changed == "NVRTC" else 12)
    if changed == "scratchvit":
        monkeypatch.setattr("scratchvit.__version__", "0.2.0")
    with cupy.cuda.Device(1 if changed == "the GPU" else 0):
        compile_in_a_process(monkeypatch, cupy)
    assert "compiling kernels" in capsys.readouterr().err


def test_nothing_is_said_if_nothing_is_compiled_kept_or_shown(monkeypatch, kept, capsys):
    compile_in_a_process(monkeypatch, FakeCuPy(), kernels=0)
    with progress.hidden():
        compile_in_a_process(monkeypatch, FakeCuPy())
    monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", "1")
    compile_in_a_process(monkeypatch, FakeCuPy())
    assert compiling.folder() is None and capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_written_is_cupys_to_tell(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "missing"))
    monkeypatch.delenv("CUPY_CACHE_IN_MEMORY", raising=False)
    assert compile_in_a_process(monkeypatch, FakeCuPy()).kernels == 1
    assert "are kept in" in capsys.readouterr().err


def test_kernels_are_counted_on_a_terminal_below_the_bar(monkeypatch, kept):
    monkeypatch.setattr("sys.stderr", stream := Terminal())
    monkeypatch.setenv("COLUMNS", "100")
    with progress.bar(9, "epoch 1/3"):
        count = compile_in_a_process(monkeypatch, FakeCuPy(), kernels=3)
    shown = stream.getvalue()
    assert "compiling kernels for the GPU: 2 done in 0.0 s" in shown and "3 done" not in shown
    assert shown.count("only the first time") == 1
    assert count.kernels == 3 and 0 < count.seconds < 5


def test_our_own_kernels_have_a_bar_since_their_number_is_known(monkeypatch, capsys):
    compiled = []
    monkeypatch.setattr(modules, "compile_module", lambda name, dtype: compiled.append(name))
    compile_ours()
    called = [name for name in modules.MODULES if not name.startswith("flash")]     # not those of TF32 and 16 bits
    assert compiled == called and capsys.readouterr().err == ""      # no terminal, no bar
    monkeypatch.setattr("sys.stderr", stream := Terminal())
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(modules, "compile_module", lambda name, dtype: time.sleep(0.12))    # tqdm draws every 0.1 s
    compile_ours()
    total = len(called)
    assert "our kernels:   0%|" in stream.getvalue() and f"{total - 1}/{total} " in stream.getvalue()


def test_a_kernel_that_cannot_be_compiled_is_not_counted(monkeypatch, kept):
    cupy = FakeCuPy()
    cupy.cuda.compiler.compile_using_nvrtc = lambda source: 1 / 0
    with pytest.raises(ZeroDivisionError):
        compile_in_a_process(monkeypatch, cupy)
    assert compiling.COUNT.kernels == 0


def test_a_cupy_without_the_function_that_is_watched(monkeypatch):
    cupy = FakeCuPy()
    del cupy.cuda.compiler.compile_using_nvrtc
    compiling.watch(cupy)
    assert not vars(cupy.cuda.compiler)


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_headers_are_precompiled_unless_the_user_says_otherwise(monkeypatch, before, after):
    monkeypatch.setenv("CUPY_NVRTC_USE_PCH", before or "")
    if before is None:
        monkeypatch.delenv("CUPY_NVRTC_USE_PCH")

    def imported(name):
        assert os.environ["CUPY_NVRTC_USE_PCH"] == after      # CuPy reads it when it is imported
        return FakeCuPy()

    monkeypatch.setattr(gpu.importlib, "import_module", imported)
    gpu._import()
    assert os.environ["CUPY_NVRTC_USE_PCH"] == after
