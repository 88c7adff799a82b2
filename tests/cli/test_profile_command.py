"""`scratchvit profile`: the table, its last lines, the trace and the JSON."""

import json
import re

import pytest

import scratchvit as sv
from scratchvit import backend
from scratchvit.cli import main
from scratchvit.costs import machine
from tests.support.strict_array import STRICT

TINY = [
    "vit_tiny_patch16_224", "--img-size", "16", "--patch-size", "4", "--embed-dim", "32", "--depth", "2",
    "--num-heads", "2", "--steps", "2", "--batch-size", "2",
]
DETR = ["detr_tiny", "--img-size", "64", "--enc-layers", "1", "--dec-layers", "2", "--steps", "1", "--batch-size", "1"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name, value in (("SECONDS", 0.001), ("COPY_BYTES", 1 << 20), ("SIDES", (64, 64))):
        monkeypatch.setattr(machine, name, value)
    monkeypatch.setenv("COLUMNS", "80")


def sections_of(text):
    """The table's rows by section: {"forward": [["linear", "9", …], …], "backward": …, "total": …}."""
    sections = {}
    for line in text.split("\n\n")[1].splitlines()[1:]:
        if line.startswith("  "):
            next(reversed(sections.values())).append(re.split(r"\s{2,}", line.strip()))
        else:
            sections[line] = []
    return sections


def number(text):
    return float(text.replace(",", ""))


def test_the_table_of_a_small_vit(capsys):
    assert main(["profile", *TINY]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    whole = " ".join(text.split())
    assert whole.startswith(
        "vit_tiny_patch16_224 on the CPU: a training step with 2 images of 3×16×16, median of 2 this machine: "
    )
    header = "calls ms % GFLOP/s peak bytes at best"
    assert header in whole and re.search(r"machine: [\d,]+ GFLOP/s in a float32 product, [\d,.]+ GB/s in a copy", whole)
    sections = sections_of(text)
    assert list(sections) == ["forward", "backward", "total"]
    for direction in ("forward", "backward"):
        rows = sections[direction]
        assert {"linear", "attention", "layer_norm", "gelu", "add"} <= {row[0] for row in rows}
        times = [number(row[2]) for row in rows]
        assert times == sorted(times, reverse=True)
        linear = next(row for row in rows if row[0] == "linear")
        assert linear[1] == "9" and len(linear) == 8 and linear[5].endswith("%")
    total = {row[0]: row for row in sections["total"]}
    assert list(total) == ["forward", "backward", "both"] and total["both"][3] == "100.0"
    assert re.search(
        r"A step takes [\d,.]+ ms, and [\d,.]+ ms while each op is timed\. [\d.]+% of that lies in ops, [\d.]+% in "
        r"AdamW's update, and [\d.]+% between them", whole,
    )


def test_inference_has_no_backward(capsys):
    assert main(["profile", *TINY, "--inference"]) == 0
    text = capsys.readouterr().out
    sections = sections_of(text)
    assert list(sections) == ["forward", "total"] and [row[0] for row in sections["total"]] == ["forward"]
    assert ": inference with 2 images" in " ".join(text.split()) and "AdamW" not in text
    assert "cross_entropy" not in text


def test_json_has_every_number(capsys):
    assert main(["profile", *TINY, "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == TINY[0] and found["batch_size"] == 2 and found["trace"] is None
    assert 0 < found["share_of_ops"] + found["share_of_update"] < 1 and found["step_seconds"] > 0
    linear = next(row for row in found["ops"] if (row["op"], row["direction"]) == ("linear", "forward"))
    assert linear["flops_per_second"] == pytest.approx(2 * linear["macs"] / linear["seconds"])
    whole = max(
        2 * linear["macs"] / found["peak_flops_per_second"], linear["nbytes"] / found["bandwidth_bytes_per_second"]
    )
    assert whole <= linear["at_best"] * (1 + 1e-9) <= 2.1 * whole      # each call is limited by one or the other


def test_a_trace_is_written_for_perfetto(tmp_path, capsys):
    path = tmp_path / "trace.json"
    assert main(["profile", *TINY, "--trace", str(path)]) == 0
    assert f"trace: {path}" in capsys.readouterr().out
    events = json.loads(path.read_text("utf-8"))["traceEvents"]
    assert {"step 1", "step 2", "forward", "backward", "update", "attention"} <= {event["name"] for event in events}
    assert "vit_tiny_patch16_224 on the CPU" in events[1]["args"]["name"]


def test_on_a_gpu(capsys, monkeypatch):
    chosen = []
    monkeypatch.setattr(backend, "_gpu", lambda number: chosen.append(number) or STRICT)
    for device in ("gpu", "gpu:1"):
        assert main(["profile", *TINY, "--device", device]) == 0
        assert f"vit_tiny_patch16_224 on the {device.upper()}" in capsys.readouterr().out
    assert chosen == [0, 1]
    sv.use("cpu")


def test_a_detector_is_profiled_without_matching(capsys):
    assert main(["profile", *DETR]) == 0
    text = capsys.readouterr().out
    assert "without matching" in text and max(map(len, text.splitlines())) <= 80
    assert main(["profile", *DETR, "--inference"]) == 0
    assert "without matching" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["vit_tny"], "there is no model 'vit_tny'"),
        ([], "required: MODEL"),
        (["--batch-size", "4"], "required: MODEL"),
        ([*TINY, "--steps", "0"], "--steps: must be at least 1, not 0"),
        (["resnet18", "--patch-size", "4"], "there is no option --patch-size"),
        ([*TINY, "--trace", "nowhere/trace.json"], "there is no folder nowhere"),
        (["vit_tiny_patch16_224", "--img-size", "225"], "cannot be cut into patches"),
    ],
)
def test_what_cannot_be_profiled_is_said(capsys, words, sentence):
    assert main(["profile", *words]) in (1, 2)
    shown = capsys.readouterr()
    assert sentence in shown.err and not shown.out
