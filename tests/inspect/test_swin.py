"""`scratchvit inspect`: what is computed of a Swin's windows, against the model itself; the pictures; the command."""

import json
import sys

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import scratchvit as sv
from scratchvit.cli import main
from scratchvit.inspect.swin import (
    PADDING,
    bias_table,
    mask_kinds,
    merged_into,
    pixels,
    reach_after_every_block,
    window_blocks,
)
from scratchvit.inspect.swin_pictures import PICTURES, in_words
from scratchvit.training import train
from tests.support.model_parity import in_float64
from tests.support.runs import CONFIG
from tests.support.seeds import seeded
from tests.support.window_blocks import axis_groups, randomised

NAMES = {"V1": "swin_tiny_patch4_window7_224", "V2": "swinv2_tiny_window8_256"}
TINY = {"img_size": 32, "patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4,
        "num_classes": 3, "mlp_ratio": 1.0}
CASES = {
    "whole windows": {},
    "padded": {"img_size": 20, "window_size": 4},                               # maps of 10, of 5
    "padded by one: timm's mask lets edges meet": {"img_size": 22, "window_size": 6},
    "not square": {"img_size": (20, 36), "patch_size": (2, 4), "window_size": (2, 5)},
    "a window covers one axis": {"img_size": (6, 24), "window_size": 4},
    "windows of one token": {"img_size": 8, "window_size": 1},
    "padded, then rolled": {"img_size": 20, "window_size": 4, "window_rule": "huggingface"},
    "windows larger than the map": {"img_size": (12, 20), "window_size": 8, "window_rule": "torchvision"},
    "odd maps": {"img_size": (14, 22), "window_size": 3, "depths": (2, 1, 2), "num_heads": (2, 2, 2)},
}


def small(version, **options):
    return sv.create_model(NAMES[version], **{**TINY, **options})


# --- receptive growth against the gradient ---


def gradients(model, token):
    """After every block, where the gradient of the token that is followed is not zero: bool (H, W), one by one."""
    rng = seeded(1)
    shape = (1, model.config.in_chans, *model.patch_embed.img_size)
    image = rng.standard_normal(shape)
    number = 0
    for stage, depth in enumerate(model.config.depths):
        for _ in range(depth):
            number += 1
            x = sv.Tensor(image, requires_grad=True)
            y = first_blocks(model, x, number)[(0, *merged_into(token, stage + 1))]
            (y * sv.Tensor(rng.standard_normal(y.shape))).sum().backward()
            yield (sv.backend.asnumpy(x.grad)[0] != 0).any(axis=0)


def first_blocks(model, x, count):
    """The map after so many blocks."""
    x = model.patch_embed(x)
    for stage in model.layers:
        x = stage.downsample(x)
        for block in stage.blocks:
            x, count = block(x), count - 1
            if not count:
                return x
    raise AssertionError("the model has fewer blocks")


@pytest.mark.parametrize("version", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_a_token_reaches_exactly_the_pixels_of_its_gradient(version, case):
    """Of random weights, in float64: pixel by pixel, after every block, from the middle, a corner and the edges."""
    model = small(version, **CASES[case])
    for name, parameter in randomised(model).named_parameters():
        if "norm" not in name:
            parameter.data *= np.float32(0.2)           # so that no softmax is so sure that a share rounds to zero
    in_float64(model)
    blocks = window_blocks(model)
    h, w = blocks[0].size
    for token in ((h // 2, w // 2), (0, 0), (h - 1, w // 2), (1, w - 1)):
        predicted = reach_after_every_block(blocks, token)
        assert len(predicted) == sum(model.config.depths)
        for block, reached, found in zip(blocks, predicted, gradients(model, token), strict=True):
            expected = pixels(reached, model.patch_embed.patch_size)
            assert np.array_equal(found, expected), f"stage {block.stage}, block {block.number}, token {token}"


def test_padding_lets_opposite_edges_meet():
    """timm rolls, then pads, and counts the last rows of what is padded: a corner token sees all four corners."""
    blocks = window_blocks(small("V1", **CASES["padded by one: timm's mask lets edges meet"]))
    reached = reach_after_every_block(blocks, (0, 0))
    assert blocks[1].size == (11, 11) and blocks[1].padding == (1, 1) and blocks[1].shift == (3, 3)
    assert np.flatnonzero(blocks[1].looked_at(np.eye(1, 121, dtype=bool).reshape(11, 11))[0]).tolist() == [0, 9, 10]
    assert in_words(reached[0], (2, 2)) == "12×12 px" and in_words(reached[1], (2, 2)) == "22×22 px"
    near = np.zeros((5, 9), bool)
    near[1:3, 2:5] = True
    assert in_words(near, (2, 4)) == "4×12 px"
    near[2, 3] = False
    assert in_words(near, (2, 4)) == "4×12 px, with gaps"


# --- windows, masks, biases against what the model's attention is given ---


@pytest.mark.parametrize("case", CASES)
def test_every_token_stands_where_the_shift_puts_it(device, case):
    """Found axis by axis, without windows."""
    model = small("V1", **CASES[case])
    window = model.layers[0].blocks[0].window if case == "windows of one token" else None
    for block in window_blocks(model):
        (h, w), (M, N) = block.size, block.window
        rows, columns = (
            axis_groups(n, m, s > 0, model.config.window_rule)
            for n, m, s in zip(block.size, block.window, block.shift)
        )
        assert window is None or (block.window == window and not any(block.shift))
        for i, (y, (row, below)) in enumerate(rows):
            for j, (x, (column, right)) in enumerate(columns):
                at = row * (len(columns) // N) + column, i % M * N + j % N
                assert block.places[at] == (PADDING if None in (y, x) else y * w + x)
                if any(block.shift):
                    assert block.kinds[at] == 2 * (below and block.shift[0] > 0) + (right and block.shift[1] > 0)
        assert block.padding == (len(rows) - h, len(columns) - w)
        assert np.array_equal(block.in_place(block.places), np.arange(h * w).reshape(h, w))


class Numbers(sv.nn.Module):
    """Stands in for a block's attention: which tokens it is given, numbered from 1, 0 for padding."""

    def forward(self, tokens, mask):
        self.given = tokens.numpy()[..., 0]
        return tokens


@pytest.mark.parametrize("version", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_places_are_those_of_the_tokens_that_attention_gets(device, version, case):
    model = small(version, **CASES[case])
    for block, told in zip((b for stage in model.layers for b in stage.blocks), window_blocks(model), strict=True):
        block.attn = Numbers()
        block.attend(sv.Tensor(1 + np.arange(np.prod(told.size), dtype=np.int32).reshape(1, *told.size, 1)))
        assert np.array_equal(block.attn.given - 1, told.places)


@pytest.mark.parametrize("version", NAMES)
@pytest.mark.parametrize(
    "case", ["padded", "not square", "a window covers one axis", "padded, then rolled", "odd maps"]
)
def test_masks_and_biases_are_those_that_attention_gets(device, monkeypatch, version, case):
    model = randomised(small(version, **CASES[case]))
    given, attention = [], sv.ops.attention

    def spy(q, k, v, *, bias, mask, **options):
        given.append((bias.numpy(), None if mask is None else sv.backend.asnumpy(mask)))
        return attention(q, k, v, bias=bias, mask=mask, **options)

    monkeypatch.setattr(sv.ops, "attention", spy)
    with sv.no_grad():
        model(np.zeros((1, 3, *model.patch_embed.img_size), np.float32))
    blocks = window_blocks(model)
    assert any(mask is not None for _, mask in given)
    for block, (bias, mask) in zip(blocks, given, strict=True):
        expected = np.ones((len(block.places), *bias.shape[1:]), bool) if mask is None else mask[:, 0]
        assert np.array_equal(block.masks(), expected)
        kinds = mask_kinds(block)
        assert len(kinds) <= 4 and (np.sum([kind.windows for kind in kinds], axis=0) == 1).all()
        for kind in kinds:
            assert (expected[kind.windows] == kind.mask).all()
            assert ((block.places[kind.windows] == PADDING) == kind.padding).all()
        M, N = block.window
        table = bias_table(block)
        assert table.shape == (len(bias), 2 * M - 1, 2 * N - 1) and np.ptp(table) > 0
        y, x = np.divmod(np.arange(M * N), N)
        assert np.array_equal(table[:, y[:, None] - y + M - 1, x[:, None] - x + N - 1], bias)


# --- the command ---

SMALL = ("--img-size", "28", "--patch-size", "2", "--window-size", "4")


def said(capsys, *argv):
    """(exit code, what was printed, what was complained of)."""
    code = main(["inspect", *map(str, argv)])
    return code, *capsys.readouterr()


def assert_pictures(folder):
    """All four, and something to see in each."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(PICTURES)
    for path in folder.iterdir():
        with Image.open(path) as picture:
            assert min(picture.size) > 150 and picture.convert("RGB").getcolors(10) is None


def share_of(path, colour):
    """How much of a picture has about that colour."""
    with Image.open(path) as picture:
        return (np.abs(np.asarray(picture.convert("RGB")).astype(int) - colour).max(axis=2) <= 12).mean()


@pytest.mark.slow
def test_the_course_of_a_model_by_name(tmp_path, capsys):
    """Swin-T at 224: the numbers of the paper's figure, and the growth that follows from them."""
    code, text, error = said(capsys, NAMES["V1"], "--out", tmp_path / "new" / "folder")
    assert (code, error) == (0, "")
    assert text.startswith(f"{NAMES['V1']} with random weights; --weights loads others\n")
    rows = [line.split() for line in text.splitlines() if line[:1].isdigit()]
    assert len(rows) == 12
    assert rows[0] == ["1", "1", "56×56", "7×7", "–", "–", "49", "tokens", "28×28", "px", "1.6%"]
    assert rows[1] == ["1", "2", "56×56", "7×7", "3×3", "–", "49", "tokens", "56×56", "px", "6.2%"]
    assert [row[8] for row in rows[2:6]] == ["112×112", "168×168", "196×196", "224×224"]
    assert [row[2] for row in rows[4::6]] == ["14×14", "7×7"] and rows[-1][4] == "–"
    assert_pictures(tmp_path / "new" / "folder")
    assert text.splitlines()[-4:] == [f"wrote {tmp_path / 'new' / 'folder' / name}" for name in PICTURES]


def saved(folder, version, **options):
    """A small model's weights with the config.json of timm beside them."""
    model = small(version, **options)
    folder.mkdir()
    safetensors.numpy.save_file(model.state_dict(), folder / "model.safetensors")
    sizes = {**TINY, **options}
    config = {"architecture": NAMES[version], "num_classes": sizes.pop("num_classes"), "model_args": sizes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
def test_weights_of_any_size_a_picture_below_and_a_token_at_the_edge(tmp_path, capsys):
    weights = saved(tmp_path / "weights", "V2", img_size=[24, 40], patch_size=[2, 4], window_size=[5, 3],
                    depths=[2], num_heads=[2])
    Image.new("RGB", (60, 20), (255, 0, 255)).save(tmp_path / "magenta.png")
    plain, over = tmp_path / "plain", tmp_path / "over"
    code, text, error = said(capsys, weights, "--token", "0,9", "--out", plain)
    assert (code, error) == (0, "") and "names: timm" in text and "image 24×40 pixels" in text
    assert "the stage 1 token in row 0, column 9" in text and " of padding" in text
    code, text, _ = said(capsys, NAMES["V2"], "--weights", weights, "--token", "0,9", "--out", over, "--image",
                         tmp_path / "magenta.png")
    assert code == 0 and "image 24×40 pixels" in text
    assert_pictures(plain), assert_pictures(over)
    for name in ("windows.png", "receptive.png"):
        assert share_of(over / name, (255, 64, 255)) > 0.1 > 0.001 > share_of(plain / name, (255, 64, 255))
    for name in ("masks.png", "bias.png"):              # the same to the last bit
        assert (over / name).read_bytes() == (plain / name).read_bytes()


def test_windows_of_one_token(tmp_path, capsys):
    """Nothing is shifted, no token ever sees another, and the bias is one number."""
    weights = saved(tmp_path / "swin", "V1", window_size=1, depths=[1, 2], img_size=8)
    code, text, error = said(capsys, weights, "--out", tmp_path / "out")
    assert (code, error) == (0, "")
    rows = [line.split() for line in text.splitlines() if line[:1].isdigit()]
    assert [row[6:9:2] for row in rows] == [["1", "2×2"], ["1", "4×4"], ["1", "4×4"]]
    with Image.open(tmp_path / "out" / "masks.png") as picture:
        assert picture.height < 250                     # a sentence


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect") / "run"
    sizes = {"patch_size": 1, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 3}
    train(CONFIG.replace(model=NAMES["V1"], model_args=sizes, epochs=1), folder, log=lambda line: None)
    return folder


@pytest.mark.slow
def test_a_run_also_at_another_size(run, tmp_path, capsys, monkeypatch):
    code, text, error = said(capsys, run, "--out", tmp_path)
    assert (code, error) == (0, "") and " ".join(text.split()).startswith(f"{NAMES['V1']} from {run} image ")
    assert "8×8      3×3" in text and "adapted" not in text
    assert_pictures(tmp_path)
    trained = (tmp_path / "bias.png").read_bytes()
    for name in PICTURES.keys() - {"bias.png"}:
        monkeypatch.delitem(PICTURES, name)
    code, text, _ = said(capsys, run / "best.safetensors", "--out", tmp_path, "--img-size", 9, "--window-size", 4)
    assert code == 0 and "9×9      4×4" in text and "adapted" in text and "relative_position_bias_table" in text
    assert (tmp_path / "bias.png").read_bytes() != trained


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["swin_tiny_patch4_window7"], 1, "neither a model nor a file; did you mean swin_tiny_patch4_window7_224?"),
        (["nothing.safetensors"], 1, "neither a model nor a file, see `scratchvit models`"),
        (["resnet18", "--img-size", 32], 1, 'a ResNet, which `scratchvit inspect` cannot draw: use a Swin or Swin V2'),
        (["resnet18", "--window-size", 4], 1, "resnet18 has no option 'window_size'"),
        ([NAMES["V1"], "--weights", "no.pth"], 1, "no.pth"),
        (["swim", "--weights", "no.pth"], 1, "swim is not the name of a model, which --weights needs"),
        ([NAMES["V1"], "--img-size", 30], 1, "30×30 cannot be cut into patches of 4×4"),
        ([NAMES["V1"], *SMALL, "--token", "3,14"], 1, "no token in row 3, column 14: stage 1 has rows 0 … 13"),
        ([NAMES["V1"], *SMALL, "--token", "3"], 2, "expected a token such as 14,3 (row, column), not '3'"),
        ([NAMES["V1"], *SMALL, "--image", "no.png"], 1, "no.png: no such picture"),
        ([NAMES["V1"], *SMALL, "--imgsize", "28"], 2, "did you mean --img-size?"),
        ([], 2, "RUN|MODEL"),
    ],
)
def test_what_cannot_be_drawn_is_told(tmp_path, capsys, options, code, says):
    found, _, error = said(capsys, *options, "--out", tmp_path / "out")
    assert found == code and says in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_run_and_weights_together_are_refused(run, tmp_path, capsys):
    code, _, error = said(capsys, run, "--weights", run / "best.safetensors", "--out", tmp_path / "out")
    assert code == 1 and "not the name of a model, which --weights needs" in error and not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_failure(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("here already")
    code, _, error = said(capsys, NAMES["V1"], *SMALL, "--out", tmp_path / "file")
    assert code == 1 and f"the folder {tmp_path / 'file'} cannot be created" in error
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, error = said(capsys, NAMES["V1"], *SMALL, "--out", tmp_path / "out")
    assert code == 1 and "pip install matplotlib" in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("version", NAMES)
def test_damaged_weights_are_told(version, tmp_path, capsys):
    weights = saved(tmp_path / "weights", version)
    state = safetensors.numpy.load_file(weights / "model.safetensors")
    name = {"V1": "relative_position_bias_table", "V2": "cpb_mlp.2.weight"}[version]
    name = f"layers.1.blocks.0.attn.{name}"
    state[name][0, 0] = np.nan
    safetensors.numpy.save_file(state, weights / "model.safetensors")
    code, _, error = said(capsys, weights, "--out", tmp_path / "out")
    assert code == 1 and "the position bias of stage 2, block 1 is not finite" in error
    assert not (tmp_path / "out").exists()


def test_help_teaches(capsys):
    code, text, _ = said(capsys, "--help")
    assert code == 0 and all(name in text for name in PICTURES) and "scratchvit inspect swin_tiny" in text
    assert main(["--help"]) == 0 and "scratchvit inspect" in capsys.readouterr().out
