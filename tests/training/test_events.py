"""TensorBoard's event files, read back with TensorBoard's own reader."""

import csv
import itertools
import sys

import numpy as np
import pytest

from scratchvit.errors import ScratchvitError
from scratchvit.training import train
from scratchvit.training.events import TAGS, EventFile
from tests.support.runs import CONFIG

ROWS = [
    {"epoch": n, "step": 5 * n, "lr": 0.1 / n, "train_loss": 2.0 / n, "train_accuracy": 0.1 * n, "val_loss": 3.0 / n,
     "val_accuracy": 0.2 * n, "images_per_second": 100.0, "seconds": 10.0}
    for n in (1, 2, 3, 4)
]


def scalars(folder):
    """{tag: [(step, value)]} as TensorBoard shows them."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def expected(rows):
    columns = {name: tag for name, tag in TAGS.items() if name in rows[0]}      # some are of a GPU
    return {tag: [(int(row["step"]), np.float32(row[name])) for row in rows] for name, tag in columns.items()}


@pytest.mark.parity
def test_tensorboard_reads_every_row_of_a_run(tmp_path):
    pytest.importorskip("tensorboard")
    train(CONFIG, tmp_path / "run", log=lambda line: None)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == CONFIG.epochs
    assert scalars(tmp_path / "run" / "tensorboard") == expected(rows)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]        # nothing outside the run's folder


@pytest.mark.parity
def test_each_epoch_is_appended_so_that_a_tensorboard_that_watches_sees_it(tmp_path):
    pytest.importorskip("tensorboard")
    events = EventFile(tmp_path / "tensorboard")
    before = b""
    for count in (1, 2, 3):
        events.write(ROWS[:count])
        (path,) = (tmp_path / "tensorboard").iterdir()
        content = path.read_bytes()
        assert content.startswith(before) and len(content) > len(before)
        before = content
        assert scalars(tmp_path / "tensorboard") == expected(ROWS[:count])
    events.write(ROWS[:3])
    assert path.read_bytes() == before      # nothing new, nothing twice


@pytest.mark.parity
@pytest.mark.parametrize("left", ["a whole file", "half a row", "an unfinished file"])
def test_a_session_that_goes_on_leaves_each_epoch_once(tmp_path, left):
    pytest.importorskip("tensorboard")
    folder = tmp_path / "tensorboard"
    EventFile(folder).write(ROWS[:3])       # then killed: the third epoch is made again
    (path,) = folder.iterdir()
    if left == "half a row":
        path.write_bytes(path.read_bytes()[:-30])
    elif left == "an unfinished file":
        path.rename(folder / f".{path.name}.tmp")
    somebody_elses = folder / "events.out.tfevents.1.host"
    somebody_elses.write_bytes(b"")
    events = EventFile(folder)
    events.write([*ROWS[:2], ROWS[2] | {"train_loss": 0.5}])
    assert len(list(folder.iterdir())) == 2 and somebody_elses.exists()
    events.write([*ROWS[:2], ROWS[2] | {"train_loss": 0.5}, ROWS[3]])
    assert scalars(folder) == expected([*ROWS[:2], ROWS[2] | {"train_loss": 0.5}, ROWS[3]])


@pytest.mark.parity
def test_a_kill_between_two_sessions_files_shows_no_epoch_twice(tmp_path):
    pytest.importorskip("tensorboard")
    folder = tmp_path / "tensorboard"
    EventFile(folder).write(ROWS[:3])
    (path,) = folder.iterdir()
    earlier = path.read_bytes()
    EventFile(folder).write(ROWS[:2])
    path.write_bytes(earlier)               # as if the kill had come before it was taken away
    assert len(list(folder.iterdir())) == 2
    assert scalars(folder) == expected(ROWS[:2])


@pytest.mark.parity
def test_times_are_those_of_the_training(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    EventFile(tmp_path).write(ROWS)
    times = [event.wall_time for event in EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps == pytest.approx([10.0] * 3, abs=1.0)


@pytest.mark.parity
def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("a file, not a folder")
    with pytest.raises(ScratchvitError, match=r"tensorboard could not be written \(File exists\)"):
        EventFile(tmp_path / "tensorboard").write(ROWS)


def test_without_tensorboard_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("tensorboard.")]:
        monkeypatch.setitem(sys.modules, name, None)
    EventFile(tmp_path / "tensorboard").write(ROWS)
    assert list(tmp_path.iterdir()) == []
