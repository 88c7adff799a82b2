"""Weights of Swin and Swin V2: everybody's names, other windows, configurations, and what is exported."""

import json

import numpy as np
import pytest
import safetensors.numpy

import scratchvit as sv
from scratchvit.errors import ScratchvitError
from scratchvit.weights import model_from_weights
from scratchvit.weights.describe import describe
from scratchvit.weights.export import export
from scratchvit.weights.fit import resize_offsets
from scratchvit.weights.names import TIMM, huggingface, microsoft, recognise, torchvision
from scratchvit.weights.preprocess import preprocessing_for
from tests.support import peers
from tests.support.margins import assert_close, ulps
from tests.support.model_parity import assert_same_model, full_size, images
from tests.support.window_blocks import randomised

FIRST, SECOND = "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"
TINY = {
    "img_size": 32, "patch_size": 4, "embed_dim": 8, "depths": (2, 1), "num_heads": (2, 4), "window_size": 3,
    "num_classes": 5,
}


def renamed(*names):
    """{theirs: ours} for a file of such names; joined pieces of q, k and v have one."""
    weights = {name: np.full((1, 1), i) for i, name in enumerate(names)}
    by_number = {int(n): name for name, value in recognise(weights).rename(weights).weights.items() for n in value.flat}
    return {name: by_number.get(i) for i, name in enumerate(names)}


# --- names ---

_BLOCK = "encoder.layers.0.blocks.0."


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (["layers.0.blocks.0.attn.qkv.weight", "layers.1.downsample.reduction.weight"], TIMM),
        (["layers.0.downsample.reduction.weight"], microsoft.SWIN),
        (["features.1.0.attn.qkv.weight"], torchvision.SWIN),
        ([f"swin.{_BLOCK}layernorm_before.weight"], huggingface.SWIN),
        ([f"{_BLOCK}layernorm_before.weight"], huggingface.SWIN),
        ([f"{_BLOCK}layernorm_before.weight", f"{_BLOCK}attention.self.logit_scale"], huggingface.SWIN_V2),
    ],
)
def test_a_layout_is_recognised_by_its_names(names, layout):
    assert recognise(names) is layout


def test_microsoft_merges_at_the_end_of_a_stage():
    names = ("layers.0.downsample.reduction.weight", "layers.2.downsample.norm.bias", "head.weight",
             "layers.1.blocks.0.attn.qkv.weight", "layers.0.blocks.1.attn_mask",
             "layers.0.blocks.0.attn.relative_position_index")
    assert list(renamed(*names).values()) == [
        "layers.1.downsample.reduction.weight", "layers.3.downsample.norm.bias", "head.fc.weight",
        "layers.1.blocks.0.attn.qkv.weight", None, None,
    ]


def test_torchvisions_stages_and_mergings_follow_each_other():
    names = ("features.0.0.weight", "features.0.2.bias", "features.1.0.attn.qkv.weight", "features.2.reduction.weight",
             "features.3.1.mlp.0.weight", "features.3.1.mlp.3.bias", "features.6.norm.weight", "head.bias",
             "features.7.0.attn.relative_position_bias_table", "features.1.0.attn.relative_position_index")
    assert list(renamed(*names).values()) == [
        "patch_embed.proj.weight", "patch_embed.norm.bias", "layers.0.blocks.0.attn.qkv.weight",
        "layers.1.downsample.reduction.weight", "layers.1.blocks.1.mlp.fc1.weight", "layers.1.blocks.1.mlp.fc2.bias",
        "layers.3.downsample.norm.weight", "head.fc.bias", "layers.3.blocks.0.attn.relative_position_bias_table", None,
    ]


def test_torchvisions_bias_of_k_is_left_out():
    weights = {"features.1.0.attn.qkv.weight": np.zeros((6, 2)), "features.1.0.attn.qkv.bias": np.arange(6.0),
               "features.1.0.attn.logit_scale": np.zeros((1, 1, 1))}
    found = recognise(weights).rename(weights).weights
    assert found["layers.0.blocks.0.attn.q_bias"].tolist() == [0, 1]
    assert found["layers.0.blocks.0.attn.v_bias"].tolist() == [4, 5]
    assert "layers.0.blocks.0.attn.qkv.bias" not in found
    for broken in (np.zeros(()), np.zeros(0), np.zeros((2, 2)), np.zeros(5)):
        recognise(weights).rename(weights | {"features.1.0.attn.qkv.bias": broken})


@pytest.mark.parametrize("v5", [False, True])
def test_hugging_faces_names_of_version_4_and_5(v5):
    old, new = "swin.encoder.layers.3.blocks.1.", "layers.3.blocks.1."
    names = {
        "attention.self.relative_position_bias_table": "attention.relative_position_bias.relative_position_bias_table",
        "attention.output.dense.bias": "attention.o_proj.bias", "intermediate.dense.bias": "mlp.fc1.bias",
        "output.dense.bias": "mlp.fc2.bias", "layernorm_after.bias": "layernorm_after.bias",
    }
    theirs = [old + (newer if v5 else older) for older, newer in names.items()]
    merging = "swin.encoder.layers.0.downsample.norm.weight"
    found = renamed(f"swin.{_BLOCK}layernorm_before.weight", *theirs, merging, "swin.layernorm.bias", "classifier.bias")
    assert [found[name] for name in theirs] == [
        f"{new}attn.relative_position_bias_table", f"{new}attn.proj.bias", f"{new}mlp.fc1.bias", f"{new}mlp.fc2.bias",
        f"{new}norm2.bias",
    ]
    assert found[merging] == "layers.1.downsample.norm.weight"
    assert (found["swin.layernorm.bias"], found["classifier.bias"]) == ("norm.bias", "head.fc.bias")


# --- other windows ---


@pytest.mark.parametrize(("before", "after"), [((3, 3), (5, 5)), ((7, 7), (3, 12)), ((2, 4), (2, 6)), ((3, 3), (1, 1))])
def test_near_offsets_keep_their_entries(before, after):
    table = images(2 * before[0] - 1, 2 * before[1] - 1, 2)
    found = resize_offsets(table.reshape(-1, 2), before, after).reshape(2 * after[0] - 1, 2 * after[1] - 1, 2)
    near = [slice(m - 1 - min(1, m - 1, n - 1), m + min(1, m - 1, n - 1)) for m, n in zip(after, before)]
    were = [slice(m - 1 - min(1, m - 1, n - 1), m + min(1, m - 1, n - 1)) for m, n in zip(before, after)]
    assert_close(found[near[0], near[1]], table[were[0], were[1]], ulps(table, 1))
    if after[0] > before[0]:            # a larger window ends where the smaller did, but for q, which is found to 1e-6
        far = 1e-6 * sum(i * 1.5 ** (i - 1) for i in range(before[0] - 1))      # d/dq of 1 + q + q² + …
        assert_close(found[-1, after[1] - 1], table[-1, before[1] - 1], ulps(table, 1) + far * np.ptp(table))


def test_weights_of_another_window_are_brought_to_the_models(tmp_path):
    donor = sv.create_model(FIRST, **TINY, seed=1)
    safetensors.numpy.save_file(donor.state_dict(), tmp_path / "model.safetensors")
    model = sv.create_model(FIRST, **{**TINY, "window_size": (4, 2), "img_size": (32, 64)})
    report = sv.load_weights(model, tmp_path / "model.safetensors")
    assert len(report.adapted) == 3 and "a window of 3×3 → 4×2" in report.adapted[0]
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    expected = resize_offsets(donor.state_dict()[table], (3, 3), (4, 2))
    assert np.array_equal(model.state_dict()[table], expected)
    assert np.array_equal(model.state_dict()["layers.1.blocks.0.mlp.fc1.weight"],
                          donor.state_dict()["layers.1.blocks.0.mlp.fc1.weight"])


def test_a_table_that_is_no_window_is_refused(tmp_path):
    state = sv.create_model(FIRST, **TINY).state_dict()
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    for shape in ((24, 2), (16, 2), (9, 3), (25,), (0, 2)):
        safetensors.numpy.save_file({**state, name: np.zeros(shape, np.float32)}, tmp_path / "a.safetensors")
        with pytest.raises(ScratchvitError, match=r"mis-shaped: .*relative_position_bias_table"):
            sv.load_weights(sv.create_model(FIRST, **TINY), tmp_path / "a.safetensors")


def test_another_size_is_told(tmp_path):
    with sv.nn.init.without_weights():
        small = sv.create_model("swin_small_patch4_window7_224")
    state = {name: np.zeros(tensor.shape, np.float16) for name, tensor in small.named_parameters()}
    safetensors.numpy.save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ScratchvitError, match="this file looks like swin_small_patch4_window7_224"):
        sv.load_weights(sv.create_model(FIRST), tmp_path / "a.safetensors")


# --- configurations ---


@pytest.mark.parametrize(
    ("config", "name", "options"),
    [
        ({"model_type": "swin"}, FIRST, {"img_size": 224, "window_size": 7}),
        ({"model_type": "swin", "image_size": 384, "window_size": 12, "embed_dim": 128, "depths": [2, 2, 18, 2],
          "num_heads": [4, 8, 16, 32]}, "swin_base_patch4_window12_384", {"embed_dim": 128}),
        ({"model_type": "swinv2", "image_size": 256, "window_size": 16}, "swinv2_tiny_window16_256",
         {"pretrained_window_sizes": ()}),
        ({"model_type": "swinv2", "image_size": 384, "window_size": 24, "embed_dim": 192, "depths": [2, 2, 18, 2],
          "num_heads": [6, 12, 24, 48], "pretrained_window_sizes": [12, 12, 12, 6]},
         "swinv2_large_window12to24_192to384", {"window_size": 24, "pretrained_window_sizes": (12, 12, 12, 6)}),
        ({"architecture": "swin_tiny_patch4_window7_224.ms_in1k", "model_args": {"window_size": [4, 6], "depths": [1]}},
         FIRST, {"window_size": (4, 6), "depths": (1,)}),
        ({"architecture": "swinv2_base_window12to16_192to256.ms_in22k_ft_in1k"}, "swinv2_base_window12to16_192to256",
         {}),
    ],
    ids=str,
)
def test_a_configuration_says_which_model_it_is(tmp_path, config, name, options):
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = describe(tmp_path / "model.safetensors")
    assert found.name == name and options.items() <= found.options.items()


@pytest.mark.parametrize(
    ("config", "text"),
    [({"model_type": "swin", "use_absolute_embeddings": True}, "use_absolute_embeddings is True"),
     ({"model_type": "swin", "depths": [2, 10**9]}, "its depths is"),
     ({"model_type": "swin", "window_size": 0}, "its window_size is '0'"),
     ({"model_type": "swinv2", "num_heads": 3}, "its num_heads is '3'")],
)
def test_a_configuration_beyond_all_measure_is_refused(tmp_path, config, text):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ScratchvitError, match=text):
        describe(tmp_path / "model.safetensors")


def test_the_preprocessing_of_each_publisher(tmp_path):
    assert preprocessing_for("swinv2_base_window12to24_192to384").crop_pct == 1.0
    assert preprocessing_for("swin_base_patch4_window12_384").crop_pct == 1.0
    assert preprocessing_for("swinv2_tiny_window16_256").crop_pct == 0.9
    for file, name, shorter, side in (
        ("swin_t-704ceda3.pth", FIRST, 232, 224), ("swin_s-5e29d889.pth", "swin_small_patch4_window7_224", 246, 224),
        ("swin_v2_b-781e5279.pth", "swinv2_base_window8_256", 272, 256),
    ):
        found = preprocessing_for(name, tmp_path / file)
        assert found.source.startswith(f"as published for torchvision's {file}") and found.interpolation == "bicubic"
        assert found.input_size == (side, side) and found._scale_size() == (shorter, shorter)
    (tmp_path / "config.json").write_text('{"model_type": "swin"}')
    (tmp_path / "preprocessor_config.json").write_text('{"size": 224, "resample": 3, "image_mean": [0.5, 0.4, 0.3]}')
    found = preprocessing_for(FIRST, tmp_path)
    assert (found.mean, found.interpolation, found.crop_mode) == ((0.5, 0.4, 0.3), "bicubic", "squash")


@pytest.mark.parametrize(
    ("name", "options"),
    [(FIRST, TINY), (FIRST, {**TINY, "img_size": (32, 48), "window_size": (2, 4), "num_classes": 0}),
     (SECOND, TINY)],
    ids=str,
)
def test_what_is_exported_loads_here_again(tmp_path, name, options):
    model = randomised(sv.create_model(name, **options))
    export(model, name, tmp_path, preprocessing_for(name, None, model.config.img_size))
    loaded, found = model_from_weights(tmp_path)
    x = images(1, 3, *model.patch_embed.img_size)
    assert found == name and loaded.config == model.config and np.array_equal(loaded(x).numpy(), model(x).numpy())


# --- the libraries themselves ---


def assert_same_function(model, peer, x, owner):
    """Logits, and the gradients of all of the peer's parameters under our names."""

    def renamed(gradients):
        found = recognise(gradients).rename(gradients)
        assert found.owner == owner
        return found.weights

    assert_same_model(model, peer, x, renamed=renamed)


def randomised_but_for_its_tables(peer):
    """torchvision saves what follows from the sizes among the weights."""
    tables = {name: buffer.clone() for name, buffer in peer.named_buffers()}
    peers.randomise(peer)
    for name, buffer in peer.named_buffers():
        buffer.copy_(tables[name])
    return peer


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("theirs", "ours", "options"),
    [("swin_t", FIRST, {}), ("swin_v2_t", SECOND, {}), ("swin_t", FIRST, {"img_size": (224, 448)}),
     ("swin_v2_t", SECOND, {"img_size": (512, 256)})],
)
def test_torchvisions_files(theirs, ours, options, tmp_path):
    """Where windows divide every map; where not, see test_padded_windows.py."""
    models = peers.import_torchvision().models
    import torch

    peer = randomised_but_for_its_tables(models.get_model(theirs))
    torch.save(peer.state_dict(), tmp_path / "model.pth")
    model, _ = model_from_weights(tmp_path / "model.pth", ours, **options)
    assert_same_function(model, peer, images(1, 3, *model.patch_embed.img_size), "torchvision")


_SMALL = {"embed_dim": 16, "depths": [2, 2, 2], "num_heads": [1, 2, 4], "num_labels": 5}
# Not square: with maps larger than windows both ways, since Hugging Face's shifts along both axes or along none.
_FLAT = {**_SMALL, "depths": [2, 2], "num_heads": [1, 2]}
HUGGING_FACE = [
    full_size("Swin", {"image_size": 224}, FIRST), ("Swin", {**_FLAT, "image_size": (112, 168)}, FIRST),
    full_size("Swinv2", {"image_size": 256, "window_size": 8}, SECOND),
    ("Swinv2", {**_FLAT, "image_size": (192, 128), "window_size": 8}, SECOND),
    ("Swin", {**_SMALL, "image_size": 112}, FIRST), ("Swin", {**_SMALL, "image_size": 112, "qkv_bias": False}, FIRST),
    ("Swinv2", {**_SMALL, "image_size": 128, "window_size": 8, "pretrained_window_sizes": [6, 6, 3]}, SECOND),
    ("Swinv2", {**_SMALL, "image_size": 64, "window_size": 16, "num_channels": 1, "pretrained_window_sizes": [0] * 3},
     "swinv2_tiny_window16_256"),
]


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(("kind", "options", "name"), HUGGING_FACE, ids=str)
@pytest.mark.parametrize("saved_by", ["save_pretrained", "torch.save"])
def test_hugging_faces_files_say_which_model_they_are(kind, options, name, saved_by, tmp_path):
    transformers = peers.import_transformers()
    import torch

    config = getattr(transformers, f"{kind}Config")(**options)
    peer = peers.randomise(getattr(transformers, f"{kind}ForImageClassification")(config))
    peer.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    if saved_by == "torch.save":        # the names of transformers 5, which its own files do not have
        path = tmp_path / "pytorch_model.bin"
        torch.save(peer.state_dict(), path)
    model, found = model_from_weights(path)
    assert found == name
    if kind == "Swinv2":
        sizes = options.get("pretrained_window_sizes", ())
        assert model.config.pretrained_window_sizes == (tuple(sizes) if any(sizes) else ())
    owner = {"Swin": "Hugging Face (Swin)", "Swinv2": "Hugging Face (Swin V2)"}[kind]
    assert_same_function(model, peer, images(1, model.config.in_chans, *model.patch_embed.img_size), owner)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::UserWarning")          # PyTorch 2.13 has some of what timm does there
@pytest.mark.parametrize(
    ("before", "after"), [((7, 7), (12, 12)), ((7, 7), (4, 4)), ((7, 7), (7, 5)), ((1, 1), (3, 3)), ((3, 3), (40, 9))]
)
def test_tables_are_resized_as_in_timm(before, after):
    peers.import_timm()
    import torch
    from timm.layers import resize_rel_pos_bias_table

    table = images((2 * before[0] - 1) * (2 * before[1] - 1), 3)
    shape = ((2 * after[0] - 1) * (2 * after[1] - 1), 3)
    theirs = resize_rel_pos_bias_table(torch.from_numpy(table), after, shape).numpy()
    assert_close(resize_offsets(table, before, after), theirs, ulps(theirs, 8))    # theirs in float32


@pytest.mark.parity
@pytest.mark.parametrize(("name", "options"), [(FIRST, TINY), (SECOND, TINY)], ids=str)
def test_timm_builds_what_is_exported(tmp_path, name, options):
    timm = peers.import_timm()
    model = randomised(sv.create_model(name, **options))
    export(model, name, tmp_path, preprocessing_for(name, None, model.config.img_size))
    peer = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert_same_model(model, peer, images(1, 3, 32, 32), gradients=False)


@pytest.mark.parity
@pytest.mark.parametrize(("name", "options"), [(FIRST, TINY), (SECOND, TINY)], ids=str)
def test_timm_and_we_read_microsofts_names_alike(tmp_path, name, options):
    """The same state under the authors' names goes through timm's own filter and through ours."""
    timm = peers.import_timm()
    import torch

    peer = peers.randomise(timm.create_model(name, **options))
    theirs_of = {FIRST: timm.models.swin_transformer, SECOND: timm.models.swin_transformer_v2}[name]
    theirs = {key.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head."): value
              for key, value in peer.state_dict().items()}
    theirs |= {f"layers.0.blocks.1.{table}": torch.zeros(1) for table in ("attn_mask", "attn.relative_position_index")}
    peer.load_state_dict(theirs_of.checkpoint_filter_fn({"model": theirs}, peer), strict=True)
    torch.save({"model": theirs}, tmp_path / "model.pth")
    model = sv.create_model(name, **options, seed=1)
    assert sv.load_weights(model, tmp_path / "model.pth").owner == "Microsoft (Swin)"
    assert_same_model(model, peer, images(1, 3, 32, 32), gradients=False)
