"""Training on a GPU: what a step asks of it, and that a resumed run goes on bit for bit."""

import contextlib
import csv
import shutil

import pytest
from fakegpu import device

import scratchvit as sv
from scratchvit.costs.counting import readable_bytes
from scratchvit.training import ClassificationTask, Interrupted, TrainingLoop, load_checkpoint, train
from tests.support.runs import EVERYTHING, assert_same_run, stop_at

ON_GPU = EVERYTHING.replace(device="gpu", batch_size=64, train_fraction=0.4)


@pytest.fixture
def gpu():
    yield sv.use("gpu")
    sv.use("cpu")


@pytest.mark.parametrize(("options", "bytes_of_a_pixel"), [
    ({}, 1), ({"mixup": 0.2, "cutmix": 1.0}, 1), ({"random_erasing": 0.5}, 4),
    ({"non_finite": "skip", "loss_scale": 1024.0}, 1), ({"accumulate": 3}, 1),
], ids=["plain", "mixed", "erased with noise", "skipped and scaled", "accumulated"])
def test_a_step_reads_nothing_from_the_device(gpu, tmp_path, options, bytes_of_a_pixel):
    """Nor does anything wait for it, and images go there as uint8 unless something follows after normalising."""
    config = ON_GPU.replace(**options)
    loop = TrainingLoop(ClassificationTask(config), config, tmp_path / "run")
    copies = []
    with loop.folder, contextlib.closing(iter(loop.loader)) as batches:
        loop._step(next(batches), look=False)
        device.reset()
        device.trace(lambda what, name, size, _: copies.append(size) if name == "h2d" else None)
        try:
            for _ in range(4):
                loop._step(next(batches), look=False)
        finally:
            device.trace(None)
        counts = device.counts()
    assert counts["d2h"] == counts["syncs"] == 0
    sizes = {bytes_: copies.count(64 * 8 * 8 * bytes_) for bytes_ in (1, 4)}
    assert sizes == {1: 0, 4: 0} | {bytes_of_a_pixel: 4}


@pytest.mark.parametrize("options", [
    {}, {"non_finite": "skip", "loss_scale": 2.0**127, "accumulate": 2, "save_every": 5},
], ids=["plain", "skipped, scaled, accumulated"])
def test_a_run_on_a_gpu_goes_on_bit_for_bit(gpu, tmp_path, monkeypatch, options):
    """And on a CPU: what is saved are numbers."""
    config = ON_GPU.replace(**options)
    spoil(monkeypatch, (3, 10), overflows=bool(options))
    whole = train(config, tmp_path / "whole", log=lambda line: None)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 12)
        train(config, tmp_path / "resumed", log=lambda line: None)
    saved = load_checkpoint(tmp_path / "resumed" / "last.safetensors")
    steps = 12 - saved.progress["learn"]["skipped"] - sum(row["skipped"] for row in saved.progress["history"])
    assert {value for name, value in saved.optimizer.items() if name.startswith("step.")} == {steps}
    shutil.copytree(tmp_path / "resumed", tmp_path / "on the CPU")
    settings = tmp_path / "on the CPU" / "config.json"
    settings.write_text(settings.read_text().replace('"device": "gpu"', '"device": "cpu"'))
    train(config, tmp_path / "resumed", resume=True, log=lambda line: None)
    assert_same_run(tmp_path / "resumed", tmp_path / "whole")
    assert whole.skipped >= (3 if options else 0)
    there = train(config.replace(device="cpu"), tmp_path / "on the CPU", resume=True, log=lambda line: None)
    assert abs(there.val_loss - whole.val_loss) < 0.05 and there.skipped == whole.skipped


def spoil(monkeypatch, steps, overflows):
    """Spoil the batches of these steps (from 1), and make the head so steep that a large scale overflows."""
    make_step = TrainingLoop._step

    def spoiled(self, batch, look):
        if overflows and self.step == 0:
            self.model.head.weight.data *= 10
        if overflows and self.step + 1 in steps:
            images = batch.images.copy()
            images[0] = float("nan")
            batch = batch._replace(images=images)
        make_step(self, batch, look)

    monkeypatch.setattr(TrainingLoop, "_step", spoiled)


def test_the_peak_of_the_memory_is_in_the_log_and_in_the_metrics(gpu, tmp_path):
    lines = []
    loop = TrainingLoop(ClassificationTask(ON_GPU), ON_GPU, tmp_path / "run", log=lines.append)
    with loop.folder:
        loop.run()
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    peaks = [int(row["gpu_peak_bytes"]) for row in rows]
    assert 0 < peaks[0] <= peaks[1] <= peaks[2] <= gpu.held() + loop.learn.held
    assert loop.learn.held > 0          # captured steps have memory of their own
    for line, peak in zip([line for line in lines if line.startswith("epoch")], peaks, strict=True):
        assert f" s, {readable_bytes(peak)}" in line


def test_no_peak_on_the_cpu(tmp_path):
    lines = []
    train(ON_GPU.replace(device="cpu", epochs=1), tmp_path / "run", log=lines.append)
    assert "gpu" not in (tmp_path / "run" / "metrics.csv").read_text() and "iB" not in lines[0]
