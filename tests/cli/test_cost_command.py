"""`scratchvit cost`: the table and what stands under it."""

import re

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.cli import main
from scratchvit.cli.cost import layer_of
from scratchvit.costs import cost, peak_memory
from scratchvit.costs.counting import readable_bytes
from scratchvit.models import create_model
from scratchvit.nn import init
from tests.support.seeds import seeded

TINY = ["--img-size", "16", "--patch-size", "4", "--embed-dim", "32", "--depth", "3", "--num-heads", "2"]


def rows_of(text):
    """The table's rows by layer: {"blocks.0 … 2, each": ["16×32", …]}."""
    table = text.split("\n\n")[1]
    return {line.split("  ")[0]: re.split(r"\s{2,}", line.strip())[1:] for line in table.splitlines()}


def test_the_table_of_a_small_vit(capsys):
    assert main(["cost", "vit_tiny_patch16_224", *TINY, "--num-classes", "5"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("vit_tiny_patch16_224, an image of 3×16×16\n")
    rows = rows_of(text)
    assert list(rows) == [
        "layer", "patch_embed", "between layers", "blocks.0 … 2, each", "norm", "head", "cls_token", "pos_embed",
        "total",
    ]
    N, D, heads = 17, 32, 2
    block = 12 * D * D + 13 * D
    entries = heads * N * N
    macs = 12 * N * D * D + 2 * entries * D // heads
    assert rows["blocks.0 … 2, each"][:4] == [f"{N}×{D}", f"{block:,}", f"{macs / 1e6:,.1f} M", f"{entries:,}"]
    assert rows["total"][0] == f"{create_model('vit_tiny_patch16_224', **options()).num_parameters():,}"
    assert rows["total"][2] == f"{3 * entries:,}" and rows["total"][3] == readable_bytes(12 * entries)


def options():
    return {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}


def test_what_a_batch_needs_stands_under_it(capsys):
    assert main(["cost", "vit_tiny_patch16_224", *TINY, "--batch-size", "64"]) == 0
    text = capsys.readouterr().out
    with init.without_weights():
        model = create_model("vit_tiny_patch16_224", **{**options(), "num_classes": 1000})
    peak = peak_memory(model, batch_size=64)
    assert f"training   {readable_bytes(peak.training):>9}" in text and f"is in {peak.worst}.\n" in text
    assert f"inference  {readable_bytes(peak.inference):>9}" in text and "a batch of 64 images" in text
    assert peak.training > peak_memory(model).training


def test_the_courses_figure_from_the_command_line(capsys):
    """R = 128, 48 layers, 16 heads on pixels: 768 GiB of matrices."""
    words = "--img-size 128 --depth 48 --num-heads 16 --embed-dim 64 --no-class-token --global-pool avg"
    assert main(["cost", "pixel_transformer_tiny", *words.split()]) == 0
    total = rows_of(capsys.readouterr().out)["total"]
    assert total[2:4] == [f"{48 * 16 * 128**4:,}", "768 GiB"]


def test_swin_takes_windows_where_vit_takes_all():
    """56×56 tokens: 9.8 M entries a head. In windows of M = 7: M² H W of them."""
    with init.without_weights():
        everything = create_model(
            "vit_tiny_patch16_224", patch_size=4, num_heads=1, class_token=False, global_pool="avg"
        )
        windows = create_model("swin_tiny_patch4_window7_224")
    first = next(row for row in cost(everything).layers if row.op == "attention")
    assert first.attention_entries == (56 * 56) ** 2 == 9_834_496
    first = next(row for row in cost(windows).layers if row.op == "attention")
    assert first.attention_entries == 3 * 7**2 * 56 * 56        # 3 heads


def test_a_detector_takes_square_images_too(capsys):
    """Its own are not square: 800×1066. An option of 64x64 is read as the side of a square."""
    words = ["--enc-layers", "1", "--dec-layers", "1"]
    assert main(["cost", "detr_resnet50", "--img-size", "64x64", *words]) == 0
    assert capsys.readouterr().out.startswith("detr_resnet50, an image of 3×64×64\n")
    with pytest.raises(sv.ScratchvitError, match="img_size of detr_resnet50 must be several numbers"):
        create_model("detr_resnet50", img_size="64")


def test_every_op_in_a_row(capsys):
    assert main(["cost", "vit_tiny_patch16_224", *TINY, "--ops"]) == 0
    text = capsys.readouterr().out
    assert text.count(" attention ") == 3 and "blocks.1.attn.qkv" in text and "1×17×32, 96×32, 96" in text


@pytest.mark.parametrize(
    "path, layer",
    [
        ("", ""), ("head", "head"), ("patch_embed.proj", "patch_embed"), ("blocks.11.attn.qkv", "blocks.11"),
        ("layers.2.blocks.5.mlp.fc1", "layers.2.blocks.5"), ("layers.1.downsample.norm", "layers.1"),
        ("layer2.0.downsample.1", "layer2.0"), ("transformer.h.3.attn", "transformer.h.3"),
        ("patch_embed.backbone.stages.0.blocks.1.conv2", "patch_embed.backbone.stages.0.blocks.1"),
        ("backbone.0.body.layer3.1.conv2", "backbone.0.body.layer3.1"), ("backbone.0.body.conv1", "backbone.0"),
        ("transformer.decoder.layers.2.multihead_attn", "transformer.decoder.layers.2"),
    ],
)
def test_a_layer_ends_with_the_number_of_a_block(path, layer):
    assert layer_of(path) == layer


def test_the_model_stays_as_it_was():
    """Weights, running statistics, gradients, mode, the device in use, and the engine."""
    model = create_model("resnet18", img_size=32, layers=(1, 1, 1, 1), num_classes=5).eval()
    images = seeded(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
    sv.ops.cross_entropy(model(images), np.array([1, 2])).backward()
    state, gradients = model.state_dict(), [p.grad for p in model.parameters()]
    answers, device = model(images).numpy(), sv.device()
    first, second = peak_memory(model, batch_size=2), peak_memory(model, batch_size=2)
    assert first == second and sv.device() == device and not model.training
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients))
    for name, values in model.state_dict().items():
        np.testing.assert_array_equal(values, state[name], err_msg=name)
    np.testing.assert_array_equal(model(images).numpy(), answers)


def test_memory_on_any_device(device):
    """The same forecast wherever the weights are."""
    model = create_model("vit_tiny_patch16_224", **options())
    found = peak_memory(model, batch_size=2)
    assert found.gradients == 4 * model.num_parameters() and found.moments == 2 * found.gradients
    sv.use("cpu")
    assert found == peak_memory(create_model("vit_tiny_patch16_224", **options()), batch_size=2)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["vit_tny"], "there is no model 'vit_tny'"),
        ([], "required: MODEL"),
        (["vit_tiny_patch16_224", "--img-size", "225"], "cannot be cut into patches"),
        (["vit_tiny_patch16_224", "--batch-size", "0"], "--batch-size: must be at least 1, not 0"),
        (["resnet18", "--patch-size", "4"], "there is no option --patch-size"),
    ],
)
def test_what_cannot_be_counted_is_said(capsys, words, sentence):
    assert main(["cost", *words]) in (1, 2)
    shown = capsys.readouterr()
    assert sentence in shown.err and not shown.out


def test_sixteen_bits(capsys):
    words = ["cost", "vit_tiny_patch16_224", "--depth", "1", "--batch-size", "4"]
    assert main([*words, "--precision", "bf16"]) == 0
    out = capsys.readouterr().out
    assert "in bf16, as a GPU would store it" in out and "16-bit copies of weights" in out
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "in float32\n" in out and "16-bit" not in out
