"""--timeline: what the file has of a step of one and of two ranks, and clocks that differ."""

import json
import time

import numpy as np
import pytest
from PIL import Image

from scratchvit.errors import ScratchvitError
from scratchvit.training import TrainingLoop
from scratchvit.training.classification.task import ClassificationTask
from scratchvit.training.timeline import NETWORK, OPS, STEP, _tracks, clock_offsets, timeline
from tests.support.ranks import run_ranks
from tests.support.runs import CONFIG
from tests.support.scripts import import_script

RUN = CONFIG.replace(epochs=1, timeline=True)


def trained(folder, ranks=None, config=RUN):
    """The events of a run by (rank, track), without those that name tracks, and the names of its processes."""
    given = {} if ranks is None else {"ranks": ranks}
    loop = TrainingLoop(ClassificationTask(config), config, folder, log=lambda line: None, **given)
    with loop.folder:
        loop.run()
    return loop


def read(folder):
    found = json.loads((folder / "timeline.json").read_text("utf-8"))
    tracks = {}
    for event in found["traceEvents"]:
        if event["ph"] == "X":
            tracks.setdefault((event["pid"], event["tid"]), []).append(event)
    names = [event["args"]["name"] for event in found["traceEvents"] if event["name"] == "process_name"]
    return tracks, names, found["otherData"]


def end(event):
    return event["ts"] + event["dur"]


def test_a_step_of_one_process(tmp_path):
    trained(tmp_path)
    tracks, names, about = read(tmp_path)
    assert set(tracks) == {(0, STEP), (0, OPS)} and len(names) == 1 and about["step"] == 2
    phases = {event["name"]: event for event in tracks[0, STEP]}
    assert list(phases) == ["next batch", "forward", "backward", "update"]
    assert phases["next batch"]["ts"] == 0 < phases["update"]["dur"]
    for direction in ("forward", "backward"):
        calls = [event for event in tracks[0, OPS] if event["cat"] == direction]
        assert all(phases[direction]["ts"] <= call["ts"] and end(call) <= end(phases[direction]) + 1 for call in calls)
        of_first = [call["name"] for call in calls if call["args"]["module"] == "blocks.0.attn.qkv"]
        assert of_first == ["linear"]


@pytest.mark.parametrize("sharded", [False, True])
def test_a_step_of_two_ranks(sharded, tmp_path):
    config = RUN.replace(shard_optimizer=sharded)
    first, _ = run_ranks(2, lambda ranks: trained(tmp_path, ranks, config))
    tracks, names, about = read(tmp_path)
    assert names == ["rank 0 on threads", "rank 1 on threads"] and about["clocks_of_ranks_may_be_wrong_by_us"][0] == 0
    for rank in (0, 1):
        phases = {event["name"]: event for event in tracks[rank, STEP]}
        assert list(phases) == [
            "next batch", "forward", "backward", "wait for sums", "update", *["wait for parameters"] * sharded
        ]
        network = [event for track in range(NETWORK, NETWORK + 9) for event in tracks.get((rank, track), [])]
        assert {event["name"] for event in network} == {"bucket 0", "numbers", *["join of bucket 0"] * sharded}
        sums = [event for event in network if not event["name"].startswith("join")]
        assert max(map(end, sums)) <= end(phases["wait for sums"]) + 1
    assert first.learn.buckets.events is None       # it is recorded once


def test_a_timeline_is_drawn(tmp_path, monkeypatch):
    figure = import_script("figures/timeline.py")
    of_rank = {
        "host": "node1", "phases": [["next batch", 0.0, 0.1], ["forward", 0.1, 0.3], ["backward", 0.3, 0.8]],
        "ops": {"forward": [["linear", "head", 0.1, 0.3]], "backward": [["linear", "head", 0.3, 0.8]]},
        "network": [["bucket 0", 0.4, 0.6], ["bucket 1", 0.5, 0.9]],
    }
    path = tmp_path / "timeline.json"
    path.write_bytes(timeline(2, [of_rank, of_rank], [(0.0, 0.0), (0.05, 0.001)]))
    events, names = figure.read(path)
    assert len(events) == 2 * 7 and len(names) == 2 * 4 and names[1, NETWORK] == "rank 1, network"
    begins = [min(event["ts"] for event in events if event["pid"] == rank) for rank in (0, 1)]
    assert begins == pytest.approx([50_000, 0])     # of clocks that say the same, rank 1's is 0.05 s ahead
    monkeypatch.setattr("sys.argv", ["timeline.py", str(path), str(tmp_path / "timeline.png")])
    figure.draw()
    with Image.open(tmp_path / "timeline.png") as picture:
        assert min(picture.size) > 200
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ScratchvitError, match="is no timeline of a run"):
        figure.draw()


def test_a_run_without_it_has_no_file(tmp_path):
    trained(tmp_path, config=RUN.replace(timeline=False))
    assert not (tmp_path / "timeline.json").exists()


def test_recording_changes_no_weight(tmp_path):
    weights = []
    for wanted in (False, True):
        loop = trained(tmp_path / str(wanted), config=RUN.replace(timeline=wanted))
        weights.append(loop.model.state_dict())
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_clocks_that_differ_are_found():
    ahead = [0.0, 3600.0, -0.25]
    results = run_ranks(3, lambda ranks: clock_offsets(ranks, lambda: time.perf_counter() + ahead[ranks.rank]))
    assert results[0] == results[1] == results[2]
    for (offset, uncertain), true in zip(results[0], ahead):
        assert abs(offset - true) <= uncertain + 1e-9 and uncertain < 0.1


def test_sums_at_the_same_time_get_tracks_of_their_own():
    events = [("a", 0.0, 2.0), ("b", 1.0, 3.0), ("c", 2.0, 4.0), ("d", 2.5, 2.6)]
    found = [(name, track - NETWORK) for track, (name, *_) in _tracks(events)]
    assert found == [("a", 0), ("b", 1), ("c", 0), ("d", 2)]
