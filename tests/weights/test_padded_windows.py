"""Swins whose token maps windows do not divide: nine sizes by the rule of each library, and what follows from it."""

import json

import numpy as np
import pytest
import safetensors.numpy

import scratchvit as sv
from scratchvit.cli import main
from scratchvit.costs import cost
from scratchvit.errors import ScratchvitError
from scratchvit.models.swin import Block, SwinConfig
from scratchvit.models.swin_v2 import Block as BlockV2
from scratchvit.models.swin_v2 import SwinV2Config
from scratchvit.models.windows import window_and_shift
from scratchvit.training import load_checkpoint, train
from scratchvit.training.classification import prepare
from scratchvit.weights.export import export
from scratchvit.weights.load import open_model, unseen_options
from scratchvit.weights.preprocess import preprocessing_for
from tests.support import peers
from tests.support.formula_weights import as_theirs, formula
from tests.support.margins import agree
from tests.support.model_parity import images, in_float64
from tests.support.runs import CONFIG
from tests.support.seeds import seeded
from tests.support.window_blocks import dense_block, randomised

FIRST, SECOND = "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"
SMALL = {"embed_dim": 8, "depths": (2, 2, 2), "num_heads": (1, 2, 4), "num_classes": 2}

# Logits of the libraries themselves, with the weights of `formula` and the picture of `picture`: by library, model and
# (image size, window). `test_the_numbers_are_the_libraries` computes them again.
LOGITS = {
    ("huggingface", FIRST, 64, 3): [0.18524935, -1.36096438],
    ("huggingface", FIRST, 128, 7): [0.226261945, -1.41780266],
    ("huggingface", FIRST, 36, 3): [0.23772045, -1.43098184],
    ("huggingface", FIRST, 100, 7): [0.248787564, -1.45921208],
    ("huggingface", FIRST, 112, 5): [0.208607516, -1.39540313],
    ("huggingface", FIRST, 88, 5): [0.222296662, -1.41186962],
    ("huggingface", FIRST, 60, 3): [0.12021089, -1.27823],
    ("huggingface", FIRST, 136, 8): [0.253670906, -1.45524687],
    ("huggingface", FIRST, (72, 104), 4): [0.240045703, -1.43696693],
    ("huggingface", SECOND, 56, 8): [-0.612267373, -0.665053914],
    ("huggingface", SECOND, 60, 8): [-0.629990022, -0.650729735],
    ("huggingface", SECOND, 72, 8): [-0.612991883, -0.665518031],
    ("huggingface", SECOND, 80, 8): [-0.62106735, -0.666654518],
    ("huggingface", SECOND, 88, 8): [-0.616865127, -0.663531082],
    ("huggingface", SECOND, 64, 7): [-0.625963244, -0.662947928],
    ("huggingface", SECOND, 100, 3): [-0.613853254, -0.66767649],
    ("huggingface", SECOND, (28, 64), 7): [-0.618320625, -0.668552844],
    ("huggingface", SECOND, (64, 28), 7): [-0.634228399, -0.639084112],
    ("torchvision", FIRST, 64, 7): [0.108042973, -1.23281056],
    ("torchvision", FIRST, 128, 7): [0.226261945, -1.41780266],
    ("torchvision", FIRST, 36, 3): [0.23772045, -1.43098184],
    ("torchvision", FIRST, 100, 7): [0.248787564, -1.45921208],
    ("torchvision", FIRST, 48, 5): [0.104050156, -1.22612315],
    ("torchvision", FIRST, 56, 7): [0.0925922602, -1.20731419],
    ("torchvision", FIRST, 32, 8): [0.0533358122, -1.14369711],
    ("torchvision", FIRST, (28, 64), 7): [0.068774296, -1.17460282],
    ("torchvision", FIRST, (64, 28), 7): [0.0603585442, -1.15790591],
    ("torchvision", SECOND, 56, 8): [-0.624850507, -0.642140335],
    ("torchvision", SECOND, 60, 8): [-0.631182822, -0.63731641],
    ("torchvision", SECOND, 72, 8): [-0.620021449, -0.648599459],
    ("torchvision", SECOND, 80, 8): [-0.633766198, -0.637585288],
    ("torchvision", SECOND, 88, 8): [-0.6235627, -0.648713786],
    ("torchvision", SECOND, 64, 7): [-0.64019961, -0.630872156],
    ("torchvision", SECOND, 32, 8): [-0.641003612, -0.625384938],
    ("torchvision", SECOND, (28, 64), 7): [-0.639654951, -0.628872381],
    ("torchvision", SECOND, (64, 28), 7): [-0.64051851, -0.62742599],
}
SIZES = {
    ("huggingface", FIRST): [
        (64, 3), (128, 7), (36, 3), (100, 7), (112, 5), (88, 5), (60, 3), (136, 8), ((72, 104), 4),
    ],
    ("huggingface", SECOND): [
        (56, 8), (60, 8), (72, 8), (80, 8), (88, 8), (64, 7), (100, 3), ((28, 64), 7), ((64, 28), 7),
    ],
    ("torchvision", FIRST): [
        (64, 7), (128, 7), (36, 3), (100, 7), (48, 5), (56, 7), (32, 8), ((28, 64), 7), ((64, 28), 7),
    ],
    ("torchvision", SECOND): [
        (56, 8), (60, 8), (72, 8), (80, 8), (88, 8), (64, 7), (32, 8), ((28, 64), 7), ((64, 28), 7),
    ],
}
CASES = [(library, name, size, window) for (library, name), sizes in SIZES.items() for size, window in sizes]


def picture(size):
    H, W = size if isinstance(size, tuple) else (size, size)
    return np.cos(np.arange(3 * H * W) * 0.7).reshape(1, 3, H, W)


def ours(name, size, window, rule):
    model = sv.create_model(name, **SMALL, img_size=size, window_size=window, window_rule=rule).eval()
    model.load_state_dict(formula(model.state_dict()))
    return in_float64(model)


def theirs(library, name, size, window):
    """The library's model with the weights of `ours`."""
    import torch

    second = name == SECOND
    if library == "huggingface":
        transformers = peers.import_transformers()
        config = getattr(transformers, "Swinv2Config" if second else "SwinConfig")(
            image_size=list(size) if isinstance(size, tuple) else size, window_size=window, embed_dim=8,
            depths=[2, 2, 2], num_heads=[1, 2, 4], num_labels=2,
        )
        kind = "Swinv2ForImageClassification" if second else "SwinForImageClassification"
        peer = getattr(transformers, kind)(config)
    else:
        peers.import_torchvision()
        from torchvision.models import swin_transformer as swin

        kind = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2} if second else {}
        peer = swin.SwinTransformer(
            [4, 4], 8, [2, 2, 2], [1, 2, 4], [window, window], num_classes=2, **kind
        )
    state = {key: value for key, value in peer.state_dict().items() if "relative_position_index" not in key}
    state = {key: value.numpy() for key, value in state.items() if "relative_coords_table" not in key}
    made = as_theirs(state, ours(name, size, window, library).state_dict())
    peer.load_state_dict({key: torch.from_numpy(value) for key, value in made.items()}, strict=False)
    return peer.double().eval()


def close(found, expected):
    return np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


# --- the libraries' numbers ---


@pytest.mark.parametrize(("library", "name", "size", "window"), CASES)
def test_logits_are_the_librarys(library, name, size, window):
    expected = np.array(LOGITS[library, name, size, window])
    x = picture(size)
    assert close(ours(name, size, window, library)(x).numpy()[0], expected)


@pytest.mark.parity
@pytest.mark.parametrize(("library", "name", "size", "window"), CASES)
def test_the_numbers_are_the_librarys(library, name, size, window):
    """And a file that the library wrote, opened by its names or configuration alone, gives them too."""
    peer = theirs(library, name, size, window)
    import torch

    with torch.no_grad():
        found = peer(torch.from_numpy(picture(size)))
    assert close(getattr(found, "logits", found).numpy()[0], np.array(LOGITS[library, name, size, window]))


@pytest.mark.parity
@pytest.mark.parametrize(("library", "name", "size", "window"), CASES[::4])
def test_a_file_of_the_librarys_own_says_it(library, name, size, window, tmp_path):
    """By its names alone, or, with a configuration beside it, without a name."""
    peer = theirs(library, name, size, window)
    import torch

    path = tmp_path / "model.pth"
    torch.save(peer.state_dict(), path)
    sizes = {key: value for key, value in SMALL.items() if key != "num_classes"}
    model, _, report = open_model(path, name, **sizes, img_size=size, window_size=window)
    assert f"the file's window_rule {library} ({name} has timm)" in str(report)
    assert close(in_float64(model)(picture(size)).numpy()[0], np.array(LOGITS[library, name, size, window]))
    if library == "huggingface":
        peer.float().save_pretrained(tmp_path / "saved")
        model, found, _ = open_model(tmp_path / "saved")
        assert found == name and model.config.window_rule == library
        assert close(in_float64(model)(picture(size)).numpy()[0], np.array(LOGITS[library, name, size, window]))


# --- windows by rule ---


@pytest.mark.parametrize(
    ("rule", "size", "window", "expected"),
    [("huggingface", (8, 8), (7, 7), ((7, 7), (3, 3))), ("huggingface", (7, 14), (7, 7), ((7, 7), (0, 0))),
     ("huggingface", (14, 5), (7, 7), ((5, 5), (0, 0))), ("torchvision", (4, 14), (7, 7), ((7, 7), (0, 3))),
     ("torchvision", (4, 4), (7, 5), ((7, 5), (0, 0))), ("torchvision", (9, 6), (4, 6), ((4, 6), (2, 0)))],
)
def test_windows_and_shifts_by_rule(rule, size, window, expected):
    assert window_and_shift(size, window, True, rule) == expected
    assert window_and_shift(size, window, False, rule) == (expected[0], (0, 0))


def test_hugging_faces_second_swin_goes_by_the_height_in_halves_rounded_down():
    model = sv.create_model(SECOND, **SMALL, img_size=(60, 92), window_size=8, window_rule="huggingface")
    found = [(block.window, block.shift) for stage in model.layers for block in stage.blocks]
    # Maps of 15×23, 8×12 and 4×6.
    assert found == [((8, 8), (0, 0)), ((8, 8), (4, 4)), ((7, 7), (0, 0)), ((7, 7), (0, 0)), ((3, 3), (0, 0)),
                     ((3, 3), (0, 0))]


def test_another_rule_is_refused():
    with pytest.raises(ScratchvitError, match="window_rule is one of timm, huggingface, torchvision, not 'paper'"):
        sv.create_model(FIRST, **SMALL, img_size=32, window_rule="paper")


@pytest.mark.parametrize("rule", ["huggingface", "torchvision"])
@pytest.mark.parametrize(("size", "window"), [((5, 5), (3, 3)), ((7, 7), (4, 4)), ((6, 6), (3, 3))], ids=str)
@pytest.mark.parametrize(("block", "config"), [(Block, SwinConfig), (BlockV2, SwinV2Config)])
def test_a_block_equals_dense_attention_with_a_mask(device, rule, size, window, block, config):
    """Padding stands between the end of the map and what was rolled there."""
    options = {"img_size": size, "patch_size": 1, "window_size": window, "window_rule": rule}
    made = randomised(block(config(embed_dim=32, num_heads=(2,), depths=(2,), **options), 0, size, True, 0.0))
    x = images(2, *size, 32)
    agree(lambda: made(sv.Tensor(x)), dense_block(made, x, window, True, rule))


def test_torchvisions_windows_are_larger_than_the_map(device):
    config = SwinConfig(embed_dim=32, num_heads=(2,), depths=(2,), window_size=(4, 5), window_rule="torchvision")
    block = randomised(Block(config, 0, (3, 6), True, 0.0))
    x = images(2, 3, 6, 32)
    assert block.window == (4, 5) and block.shift == (0, 2)
    agree(lambda: block(sv.Tensor(x)), dense_block(block, x, (4, 5), True, "torchvision"))


# --- a run keeps the rule of the weights that it began with ---

SWIN = {"img_size": 20, "patch_size": 4, "embed_dim": 8, "depths": (2,), "num_heads": (2,), "window_size": 4}
NAMES = {"img_size": 8, "patch_size": 1, "in_chans": 1, "embed_dim": 8, "depths": (2,), "num_heads": (2,),
         "window_size": 3}


def write_as_torchvision(model, path):
    """The model's weights under torchvision's names."""
    names = {
        "patch_embed.proj.": "features.0.0.", "patch_embed.norm.": "features.0.2.", "layers.0.blocks.": "features.1.",
        "head.fc.": "head.", "mlp.fc1.": "mlp.0.", "mlp.fc2.": "mlp.3.",
    }
    state = {}
    for name, value in model.state_dict().items():
        for before, after in names.items():
            name = name.replace(before, after)
        state[name] = value
    safetensors.numpy.save_file(state, path)
    return path


@pytest.fixture
def initial(tmp_path):
    model = sv.create_model(FIRST, **NAMES, num_classes=10, window_rule="torchvision", seed=3)
    return write_as_torchvision(model, tmp_path / "swin.safetensors"), model


def test_names_alone_set_the_rule(initial):
    path, donor = initial
    model, _, report = open_model(path, FIRST, **NAMES)
    assert model.config.window_rule == "torchvision" and "the file's window_rule torchvision" in str(report)
    x = seeded(0).standard_normal((1, 1, 8, 8), dtype=np.float32)
    assert np.array_equal(model(x).numpy(), donor.eval()(x).numpy())
    assert open_model(path, FIRST, **NAMES, window_rule="timm")[0].config.window_rule == "timm"
    assert unseen_options(path, FIRST) == {"window_rule": "torchvision"}
    assert unseen_options(path, "resnet18") == {}


def test_a_model_that_exists_already_is_told_how_it_differs(initial):
    report = sv.load_weights(sv.create_model(FIRST, **NAMES, num_classes=10), initial[0])
    assert report.notes == [
        "window_rule is timm in this model and torchvision in the file's, so their outputs differ: for the file's, "
        "create the model with window_rule='torchvision'"
    ]
    assert report.notes[0] in str(report)
    assert not sv.load_weights(initial[1], initial[0]).notes


def test_a_run_takes_the_rule_keeps_it_and_goes_on_with_it(initial, tmp_path):
    args = {name: value for name, value in NAMES.items() if name not in ("img_size", "in_chans")}
    config = CONFIG.replace(model=FIRST, model_args=args, init=str(initial[0]), epochs=1, schedule="constant")
    run = tmp_path / "run"
    loop = prepare(config, run)
    assert loop.model.config.window_rule == "torchvision"
    assert "the file's window_rule torchvision" in str(loop.loaded) and not loop.loaded.notes
    with loop.folder:
        loop.run()
    assert load_checkpoint(run / "best.safetensors").model_args["window_rule"] == "torchvision"
    initial[0].unlink()
    train(config.replace(epochs=2), run, resume=True)
    assert load_checkpoint(run / "last.safetensors").model_args["window_rule"] == "torchvision"
    # Another run that begins with this one, and one that wants the other rule.
    more = prepare(config.replace(init=str(run)), tmp_path / "more")
    more.folder.release()
    assert more.model.config.window_rule == "torchvision"
    other = prepare(config.replace(init=str(run), model_args=args | {"window_rule": "timm"}), tmp_path / "other")
    other.folder.release()
    assert other.model.config.window_rule == "timm" and "window_rule is timm in this model" in str(other.loaded)


# --- export ---


def test_what_timm_would_compute_otherwise_is_not_exported(tmp_path):
    for size, divided in ((20, False), (32, True)):
        model = sv.create_model(FIRST, **SWIN | {"img_size": size}, window_rule="huggingface", num_classes=2)
        folder = tmp_path / str(size)
        if divided:
            export(model, FIRST, folder, preprocessing_for(FIRST, None, size))
            assert json.loads((folder / "config.json").read_text())["scratchvit"] == {"window_rule": "huggingface"}
            assert open_model(folder)[0].config == model.config
        else:
            with pytest.raises(ScratchvitError, match=r"timm would use other windows .* on a map of 5×5 tokens"):
                export(model, FIRST, folder, preprocessing_for(FIRST, None, size))
            assert not folder.exists()


@pytest.mark.parametrize("rule", ["timm", "huggingface", "torchvision"])
def test_inspect_draws_it(rule, tmp_path, capsys):
    model = sv.create_model(FIRST, **SWIN, window_rule=rule, num_classes=2)
    safetensors.numpy.save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": FIRST, "model_args": SWIN,
              "scratchvit": {"window_rule": rule}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["inspect", str(tmp_path), "--out", str(tmp_path / "drawn")]) == 0
    printed = capsys.readouterr().out
    assert "5×5" in printed and "3×3" in printed and (tmp_path / "drawn" / "windows.png").exists()


# --- what it costs ---


@pytest.mark.parametrize(("library", "name", "size", "window"), [*CASES[::3], ("timm", FIRST, 100, 7)])
def test_the_cost_is_that_of_the_windows_that_there_are(library, name, size, window):
    """Counted from shapes alone, it is that of the windows which attention is given when the model runs."""
    model = sv.create_model(name, **SMALL, img_size=size, window_size=window, window_rule=library).eval()
    predicted, given = cost(model), []
    for stage in model.layers:
        for block in stage.blocks:
            block.attn.forward = noting(block.attn, given)
    with sv.no_grad():
        model(np.zeros((1, 3, *model.patch_embed.img_size), np.float32))
    assert predicted.attention_entries == sum(windows * tokens * tokens * heads for windows, tokens, heads in given)


def noting(attention, given):
    forward = attention.forward

    def forward_noted(x, mask):
        given.append((*x.shape[:2], attention.num_heads))
        return forward(x, mask)

    return forward_noted
