"""The whole pipeline never unpickles, and never writes outside the run's folder: the interpreter itself is asked.

Python tells an audit hook (PEP 578) of every file that is opened and of every class that a pickle names. What C code
opens by itself the hook does not see, so the places where such files go, the working, home and temporary folders, are
empty ones of the test's own, and are looked at afterwards.

A process that a library starts is the library's: Matplotlib asks `fc-list` for the fonts, joblib and so scikit-learn
may ask `lscpu` for the cores. The hook tells who started it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import SECONDS

# What a system's libraries open and start of their own accord, the fonts' list above all, is known for Linux.
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is opened and started is told apart on Linux")

# Runs a program in the same interpreter and reports what the hook saw; nothing is imported before it but this.
PROGRAM = """
import os, sys

written, unpickled, started = [], [], []
CHANGES = {  # event: which of its arguments are paths that change
    "os.rename": (0, 1), "os.remove": (0,), "os.mkdir": (0,), "os.rmdir": (0,), "os.link": (1,), "os.symlink": (1,),
    "os.truncate": (0,), "os.chmod": (0,), "os.chown": (0,), "os.utime": (0,), "os.setxattr": (0,),
    "shutil.rmtree": (0,), "tempfile.mkstemp": (0,), "tempfile.mkdtemp": (0,), "sqlite3.connect": (0,),
}

def see(event, args):
    if event == "open":
        path, mode, flags = args
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        if (writes or set(mode or "") & set("wax+")) and not isinstance(path, int):
            written.append(os.path.abspath(os.fsdecode(path)))
    elif event in CHANGES:
        written.extend(os.path.abspath(os.fsdecode(args[i])) for i in CHANGES[event] if not isinstance(args[i], int))
    elif event == "pickle.find_class":
        unpickled.append(".".join(map(str, args)))
    elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"):
        started.append(f"{who()}: {event} {args[0] if args else ''}")

def who():
    "The package whose code is nearest, Python's own library apart."
    frame = sys._getframe(2)
    while frame:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in sys.stdlib_module_names:
            return package
        frame = frame.f_back
    return "__main__"

sys.addaudithook(see)

# A pickle of numbers and lists names no class, so the readers themselves are watched too.
import pickle, _pickle
def watch(module, name):
    reader = getattr(module, name)
    if isinstance(reader, type):
        class Watched(reader):
            def __init__(self, *args, **kwargs):
                unpickled.append(f"{module.__name__}.{name}")
                super().__init__(*args, **kwargs)
        setattr(module, name, Watched)
    else:
        def watched(*args, **kwargs):
            unpickled.append(f"{module.__name__}.{name}")
            return reader(*args, **kwargs)
        setattr(module, name, watched)
for module in (pickle, _pickle):
    for name in ("load", "loads", "Unpickler"):
        watch(module, name)

import json
program, report = sys.stdin.read().split("\\0")
exec(program)
seen = {"written": written, "unpickled": unpickled, "started": started}
seen = {name: sorted(set(found)) for name, found in seen.items()}
with open(report, "w") as file:
    json.dump(seen, file)
"""


@pytest.fixture
def places(tmp_path):
    """Empty folders for all that programs write of their own accord."""
    places = {name: tmp_path / name for name in ("cwd", "home", "tmp", "matplotlib")}
    for place in places.values():
        place.mkdir()
    return places


def audited(program, places, report):
    """{"written": paths, "unpickled": classes that a pickle named and readers that ran, "started": processes, …}."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=f"{program}\0{report}", cwd=places["cwd"],
        capture_output=True, text=True, timeout=SECONDS,
        env=os.environ | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PYTHONDONTWRITEBYTECODE": "1",             # Python's own cache
            "MPLCONFIGDIR": str(places["matplotlib"]),  # Matplotlib lists the machine's fonts there, once
            "HOME": str(places["home"]), "TMPDIR": str(places["tmp"]),
        },
    )
    assert done.returncode == 0, done.stderr
    return json.loads(report.read_text())


def outside(paths, *allowed):
    """Those in none of the folders allowed, and no device."""
    allowed = [Path(folder).resolve() for folder in (*allowed, "/dev")]
    return [path for path in paths if not any(Path(path).resolve().is_relative_to(folder) for folder in allowed)]


OURS = ("scratchvit: ", "__main__: ")

WHOLE_PIPELINE = """
from scratchvit.cli import main
run = {run!r}
tiny = ("--embed-dim 16 --depth 1 --num-heads 2 --mlp-ratio 2 --patch-size 4 --batch-size 256 --epochs 2 "
        "--save-every 2 --ema-decay 0.9 --augment light1 --random-erasing 0.3").split()
assert main(["train", *tiny, "--out", run]) == 0
assert main(["train", "--resume", run, "--epochs", "3"]) == 0
assert main(["eval", "--checkpoint", run]) == 0
assert main(["predict", run + "/sample.png", "--checkpoint", run + "/best.safetensors"]) == 0
"""


@pytest.mark.slow
def test_nothing_is_written_outside_the_run_and_nothing_unpickled(tmp_path, places):
    run = tmp_path / "runs" / "run"
    seen = audited(WHOLE_PIPELINE.format(run=str(run)), places, tmp_path / "report.json")
    assert seen["unpickled"] == []
    assert not [call for call in seen["started"] if call.startswith(OURS) or "socket.connect" in call]
    inside = {Path(path).name for path in seen["written"] if Path(path).is_relative_to(run)}
    assert {"config.json", "last.safetensors", "best.safetensors", "metrics.csv", "sample.png"} <= inside
    assert outside(seen["written"], run, places["matplotlib"]) == [str(run.parent)]       # which was made for it
    assert not [path for name in ("cwd", "home", "tmp") for path in places[name].rglob("*")]


@pytest.mark.parametrize(
    "write",
    ["open('elsewhere', 'w')", "open('elsewhere', 'ab')", "os.open('elsewhere', os.O_WRONLY | os.O_CREAT)",
     "os.mkdir('elsewhere')", "__import__('pathlib').Path('elsewhere').touch()",
     "os.rename(__import__('tempfile').mkstemp()[1], 'elsewhere')", "np.save('elsewhere', np.zeros(1))",
     "__import__('PIL.Image').Image.new('L', (1, 1)).save('elsewhere', 'png')"],
)
def test_the_hook_sees_what_is_written(write, tmp_path, places):
    seen = audited(f"import numpy as np\n{write}", places, tmp_path / "report.json")
    assert any(Path(path).name.startswith("elsewhere") for path in outside(seen["written"], places["matplotlib"]))
    assert seen["unpickled"] == [] and list(places["cwd"].iterdir())


@pytest.mark.parametrize(
    "read",
    ["pickle.load(io.BytesIO(b'N.'))", "pickle.loads(b'N.')", "pickle.Unpickler(io.BytesIO(b'N.')).load()",
     "_pickle.loads(pickle.dumps(1))", "pickle.loads(pickle.dumps(np.zeros(1)))",
     "np.save('a.npy', np.array([None])); np.load('a.npy', allow_pickle=True)",
     "from pickle import load; load(io.BytesIO(b'N.'))"],
)
def test_the_hook_sees_what_is_unpickled(read, tmp_path, places):
    seen = audited(f"import io\nimport numpy as np\n{read}", places, tmp_path / "report.json")
    assert seen["unpickled"]


@pytest.mark.parametrize("start", ["os.system('true')", "__import__('subprocess').run(['true'])"])
@pytest.mark.parametrize("package", ["scratchvit.cli", "joblib.externals.loky"])
def test_the_hook_sees_what_is_started_and_by_whom(start, package, tmp_path, places):
    program = f"exec({start!r}, {{'__name__': {package!r}, 'os': os}})"
    started = audited(program, places, tmp_path / "report.json")["started"]
    assert started and all(call.startswith(package.partition(".")[0] + ": ") for call in started)


def test_what_the_program_itself_starts_is_ours(tmp_path, places):
    (call,) = audited("os.system('true')", places, tmp_path / "report.json")["started"]
    assert call.startswith(OURS)
