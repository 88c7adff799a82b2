"""The parts of scripts/gpu_check.py: what they compare is the same, what they measure is right, what the page says."""

import contextlib
import json
import os
import types
from pathlib import Path

import numpy as np
import pytest

from scratchvit.detection.config import DetectConfig
from scratchvit.detection.task import make_criterion
from scripts.gpu_parts import kernels, part, speed, summary, timing, training
from scripts.gpu_parts.cases import CASES, our_model
from tests.support.margins import agree
from tests.support.model_parity import in_float64
from tests.support.scripts import SCRIPTS

REHEARSAL = part.Setting("cpu", Path("out"), Path("scratch"), small=True)
FULL = part.Setting("gpu", Path("out"), Path("scratch"), small=False)

# --- what is measured -----------------------------------------------------------------------------------------------


def test_losses_that_part_or_are_no_numbers_are_a_failure(monkeypatch):
    for last, said in ((1.1, "1.0e-01"), (np.nan, "nan")):
        losses = {"cpu": np.array([2.0, 1.0]), "gpu": np.array([2.0, last])}
        monkeypatch.setattr(training, "train", lambda device, steps, losses=losses: losses[device])
        row = training.as_on_the_cpu(FULL)
        assert not row["ok"] and said in row["result"]


def test_a_run_that_is_resumed_draws_what_it_would_have_drawn():
    whole, parts, other = training.train("cpu", 4), training.train("cpu", 4, stop_at=2), training.train("cpu", 3)
    assert np.array_equal(whole, parts) and np.array_equal(whole[:3], other) and len(set(whole)) == 4


def test_the_time_of_a_step_is_without_its_first_two(monkeypatch):
    now, durations = 0.0, iter([5.0, 2.0])

    def step():
        nonlocal now
        now += next(durations, 0.1)

    def wait():
        nonlocal now
        now += 0.3

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    found = timing.step_times(step, wait, most_steps=10, seconds=100.0)
    assert found["first_s"] == 5.3 and found["host_ms"] == 100.0 and found["steps"] == 10
    assert found["ms"] == 130.0         # ten steps and one wait


def test_a_slow_step_is_not_repeated_longer_than_allowed(monkeypatch):
    calls, now = 0, 0.0

    def step():
        nonlocal calls, now
        calls, now = calls + 1, now + 10.0

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    assert timing.step_times(step, lambda: None, 50, 3.0)["steps"] == 1 and calls == 2 + 1 + timing.ROUNDS


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_the_peers_are_the_same_functions(name):
    """With the same weights: outputs in training mode, and the loss of a detector, matching and all; in float64."""
    torch = pytest.importorskip("torch")
    from scripts.gpu_parts import peers

    case = CASES[name]
    config, (images, labels) = case.config(small=True), case.data(small=True)
    model = in_float64(our_model(case, small=True))
    peer = peers.peer_of(case.model, config).double()
    peer.load_state_dict({key: torch.from_numpy(value) for key, value in model.state_dict().items()})
    x = torch.from_numpy(images.astype(np.float64))
    theirs = peer.train()(x)
    model.train()
    if isinstance(labels, list):
        criterion = make_criterion(DetectConfig(), model)

        def ours():
            out = model(images.astype(np.float64))
            return [out["pred_logits"], out["pred_boxes"], criterion.total(criterion(out, labels))]

        theirs = [*theirs[-2:], peers.set_loss(theirs, labels)]
    else:
        def ours():
            return [model(images.astype(np.float64))]

        with peers.plain_attention():
            plain = peer(x)
        assert float((plain - theirs).detach().abs().max()) < 1e-12
        theirs = [theirs]
    agree(ours, theirs, dtype=np.float64, samples=1)


@pytest.mark.parity
def test_pytorchs_switches_for_tf32_are_set_and_set_back():
    torch = pytest.importorskip("torch")
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [each.allow_tf32 for each in switches]
    for precision, expected in (("float32", False), ("TF32", True), ("bf16", False)):
        with speed.torch_precision(precision):
            assert [each.allow_tf32 for each in switches] == [expected] * 2
    assert [each.allow_tf32 for each in switches] == before


def test_the_gradients_of_all_cases_reach_every_parameter():
    for name, case in CASES.items():
        loss, found = training.loss_and_gradients(name)
        assert np.isfinite(loss) and all(np.isfinite(g).all() and g.any() for g in found.values()), name
        model = our_model(case, small=True)
        assert len(found) == len(list(model.parameters()))


# --- what is said ---------------------------------------------------------------------------------------------------


def measured(side, ms, way="eager", precision="float32", case="ViT D192 L6, 32²", peak=None):
    return {
        "part": "", "item": "", "ok": True, "result": "", "side": side, "case": case, "precision": precision,
        "way": way, "ms": ms, "host_ms": ms, "peak_bytes": peak,
    }


def lines_of(rows):
    page = summary.summary(rows, FULL)
    return [line for line in page.splitlines() if line.startswith("| ViT D192 L6, 32²")]


def test_targets_are_reached_missed_or_not_measured():
    rows = [measured("ours", 1.1, peak=12 << 30), measured("PyTorch", 1.0, peak=10 << 30)]
    replay, eager, memory = lines_of(rows)[:3]
    assert replay.endswith("| replay |  | 0.4 | not measured |")
    assert eager.endswith("| eager | 1.10 | 1.2 | reached |")
    assert memory.endswith("| eager | 1.20 | 1.1 | **missed** |")
    rows = [measured("ours", 1.3), measured("ours", 0.3, "replay"), measured("PyTorch", 1.0)]
    replay, eager, memory = lines_of(rows)[:3]
    assert replay.endswith("| 0.30 | 0.4 | reached |") and eager.endswith("| 1.30 | 1.2 | **missed** |")
    assert memory.endswith("not measured |")
    replay, eager, _ = lines_of([measured("ours", 1.3)])[:3]
    assert replay.endswith("not measured |") and eager.endswith("PyTorch was not measured |")


def test_a_rehearsal_compares_with_no_target():
    page = summary.summary([measured("ours", 1.1), measured("PyTorch", 1.0)], REHEARSAL)
    assert "## Targets" not in page and "Its times mean nothing" in page


def test_what_the_sanitizer_says():
    clean = "========= COMPUTE-SANITIZER\n3 passed\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors)\n"
    assert kernels.verdict(clean, 0)["errors"] == 0
    race = "========= Error: Race reported\n========= RACECHECK SUMMARY: 2 hazards displayed (2 errors)\n"
    assert kernels.verdict(race, 9)["errors"] == 2 and "Race reported" in kernels.verdict(race, 9)["said"]
    assert kernels.verdict("========= ERROR SUMMARY: 5 errors\n", 9)["errors"] == 5
    assert kernels.verdict("Device not supported\n", 1)["errors"] == 1
    assert kernels.verdict("1 failed\n========= ERROR SUMMARY: 0 errors\n", 1)["errors"] == 1


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="a shell script stands for the sanitizer")
def test_the_sanitizer_runs_a_process_for_each_file_of_tests(tmp_path, monkeypatch):
    """A script in its place finds a hazard in one file, and one file takes too long."""
    script = tmp_path / "compute-sanitizer"
    script.write_text(
        'said="0 hazards"\n'
        'case "$*" in *test_column_sums*) said="2 hazards";; *test_layer_norm*) exec sleep 600;; esac\n'
        'echo "========= RACECHECK SUMMARY: $said displayed"; [ "$said" = "0 hazards" ] || exit 9\n'
    )
    monkeypatch.setattr(kernels.shutil, "which", lambda *args, **named: script)
    command = kernels.sanitizer_command("sanitizer", "racecheck", Path("test_a.py"))
    assert command[:5] == ["sanitizer", "--tool", "racecheck", "--error-exitcode", "9"]
    assert {f"kne={name}" for names in part.kernel_names().values() for name in names} <= set(command)
    monkeypatch.setattr(kernels, "sanitizer_command", lambda path, tool, file: ["sh", str(path), tool, str(file)])
    row = kernels.sanitized("racecheck", part.Setting("gpu", tmp_path, tmp_path, small=False, seconds=26))
    assert row["ok"] is False and "test_column_sums: RACECHECK SUMMARY: 2 hazards displayed" in row["result"]
    assert row["result"].endswith("not finished: test_layer_norm") and row["answers"]["test_ops"]["errors"] == 0


def test_kernels_are_summed_by_their_kinds():
    """PyTorch's profiler cannot see kernels without a GPU: these are events as it gives them."""
    def event(key, count, us):
        return types.SimpleNamespace(key=key, count=count, self_device_time_total=us)

    events = [event("layer_norm", 4, 40.0), event("sm90_xmma_gemm_f32", 2, 200.0), event("cudaLaunchKernel", 9, 0.0)]
    found = contextlib.nullcontext(types.SimpleNamespace(key_averages=lambda: events))
    torch = types.SimpleNamespace(
        cuda=types.SimpleNamespace(init=lambda: None),
        profiler=types.SimpleNamespace(
            profile=lambda activities: found, ProfilerActivity=types.SimpleNamespace(CUDA="CUDA")
        ),
    )
    row = kernels.by_kernel(torch, lambda: None, lambda: None)
    assert row["busy_ms"] == pytest.approx(0.24) and row["operations"] == 6
    assert row["kinds"] == {"products": [2, 200.0], "our kernels": [4, 40.0]}
    assert row["result"].endswith("products 0.20 ms (2), our kernels 0.04 ms (4)")


def test_our_kernels_are_known_by_the_names_in_their_texts():
    names = {name for of_module in part.kernel_names().values() for name in of_module}
    folder = SCRIPTS.parent / "scratchvit" / "kernels" / "cuda"
    texts = "".join(path.read_text("utf-8") for path in folder.glob("*.py"))
    assert texts.count('extern "C" __global__') == len(names) >= 4      # some are in two modules
    for name in names:
        assert kernels.kind_of(name) == kernels.kind_of(f"void {name}(float const*, float*)") == "our kernels"
    kinds = {"sm90_xmma_gemm_f32f32": "products", "cupy_add__float32_float32": "element by element",
             "Memcpy HtoD (Pageable -> Device)": "copies", "Memset (Device)": "fills", "cupy_sum": "reductions"}
    assert {name: kernels.kind_of(name) for name in kinds} == kinds


def test_rows_are_json_whatever_they_hold(tmp_path):
    row = {"ok": True, "number": np.float32(0.5), "path": Path("a"), "name": "32²"}
    part.append(tmp_path / "rows", row)
    assert json.loads((tmp_path / "rows").read_text("utf-8")) == {"ok": True, "number": 0.5, "path": "a", "name": "32²"}
