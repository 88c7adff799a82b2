"""A training step asks the GPU for few operations: each takes the host some 10 µs, however small it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "count_device_ops.py"


# Of a training step with AdamW and clipped gradients; the largest numbers that are wanted.
@pytest.mark.parametrize(("most", "options"), [
    (250, "--model vit_tiny_patch16_224 --img-size 32 --patch-size 4 --depth 6 --batch 64"),
    (480, "--model vit_tiny_patch16_224 --batch 32"),
    (680, "--model swin_tiny_patch4_window7_224 --batch 8"),
    (320, "--model resnet18 --batch 16"),
    (1200, "--model mvitv2_tiny --batch 8"),
    (1000, "--model detr_resnet18 --img-size 128 --batch 2 --execute"),
], ids=["ViT, 6 layers", "ViT-Ti/16", "Swin-T", "ResNet-18", "MViTv2-T", "DETR-R18"])
def test_operations_of_a_step(most, options, tmp_path):
    counts = counted(options, tmp_path)
    assert sum(counts["operations"].values()) <= most
    # The host never waits; a detector's once, for the costs of matching.
    waits = {call: count for call, count in counts["calls"].items() if call.endswith((" sync", " d2h"))}
    assert waits == ({"forward sync": 1, "forward memcpyAsync d2h": 1} if "detr" in options else {})


def counted(options, folder):
    command = [sys.executable, str(SCRIPT), *options.split(), "--json", str(folder / "counts.json")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "counts.json").read_text())
