"""Preprocessing: sizes, offsets and numbers by hand, configurations, and pixels equal to timm's and transformers'."""

import hashlib
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from scratchvit.data.images import open_image
from scratchvit.errors import ScratchvitError
from scratchvit.models import list_models, model_config
from scratchvit.weights import preprocess, published
from scratchvit.weights.preprocess import CLIP, HALF, IMAGENET, Preprocessing, preprocessing_for
from tests.support.margins import assert_close, ulps
from tests.support.peers import import_timm, import_torchvision
from tests.support.seeds import seeded

PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "rescale": 1.0}     # the pixels themselves come out


def picture(height, width, seed=0, mode="RGB"):
    """Noise over a gradient: every pixel tells where it was."""
    rng = seeded(seed)
    ramp = np.linspace(0, 80, height)[:, None] + np.linspace(0, 75, width)
    bands = [rng.integers(0, 100, (height, width)) + ramp for _ in Image.new(mode, (1, 1)).getbands()]
    return Image.merge(mode, [Image.fromarray(band.astype(np.uint8)) for band in bands])


# --- sizes and offsets by hand ---


@pytest.mark.parametrize(("fields", "height", "width", "resized", "offsets"), [
    # 224 / 0.875 = 256; the long side is cut, not rounded: 256 · 500 / 333 = 384.38…
    ({}, 333, 500, (256, 384), (16, 80)),
    ({}, 500, 333, (384, 256), (80, 16)),
    ({"crop_pct": 0.9}, 100, 100, (248, 248), (12, 12)),                        # 224 / 0.9 = 248.9
    ({"crop_pct": 1.0}, 224, 227, (224, 227), (0, 2)),                          # 1.5 goes to the even 2
    ({"crop_pct": 1.0}, 224, 225, (224, 225), (0, 0)),                          # 0.5 to the even 0
    ({"crop_pct": 1.0, "crop_rounding": "floor"}, 224, 227, (224, 227), (0, 1)),
    ({"input_size": (90, 30), "crop_pct": 0.5}, 100, 200, (180, 360), (45, 165)),   # not square: what fills both
    ({"crop_mode": "squash"}, 333, 500, (256, 256), (16, 16)),
    ({"crop_mode": "border", "crop_pct": 1.0}, 100, 300, (75, 224), (-74, 0)),  # 75 of 224: 74 above, 75 below
    ({"crop_mode": "border", "crop_pct": 1.0, "crop_rounding": "floor"}, 100, 300, (75, 224), (-75, 0)),
    ({"crop_mode": "border", "crop_pct": 1.0}, 1, 1000, (1, 224), (-111, 0)),   # 0.2 of a pixel is one
    ({"resize": False}, 10, 300, (10, 300), (-107, 38)),
])
def test_sizes_and_offsets(fields, height, width, resized, offsets):
    prepare = Preprocessing(**fields)
    assert prepare._resized_size(height, width) == resized
    assert tuple(prepare._offset(size - side) for size, side in zip(resized, prepare.input_size)) == offsets


def test_what_is_cut_out_and_what_is_filled():
    original = picture(4, 7)
    pixels = np.asarray(original)
    cut = Preprocessing((2, 2), crop_pct=0.5)           # 4 × 7 stays as it is; rows 1, 2; 2.5 goes to the even 2
    assert np.array_equal(cut.pixels(original), pixels[1:3, 2:4])
    padded = Preprocessing((7, 7), resize=False).pixels(original)
    assert np.array_equal(padded[1:5], pixels) and not padded[0].any() and not padded[5:].any()
    bordered = Preprocessing((7, 7), crop_pct=1.0, crop_mode="border", **HALF).pixels(original)
    assert np.array_equal(bordered[1:5], pixels) and (bordered[0] == 128).all() and (bordered[5:] == 128).all()


def test_pixels_become_numbers():
    original = picture(8, 8)
    pixels = np.asarray(original)
    channels_first = pixels.transpose(2, 0, 1)
    eight = {"input_size": (8, 8), "crop_pct": 1.0}
    x = Preprocessing(**eight)(original)
    assert x.shape == (3, 8, 8) and x.dtype == np.float32 and x.flags.c_contiguous
    by_hand = (np.float32(pixels[2, 3, 1]) / np.float32(255) - np.float32(0.456)) / np.float32(0.224)
    assert x[1, 2, 3] == by_hand
    assert np.array_equal(Preprocessing(**eight, **PLAIN)(original), channels_first)


def test_any_mode_becomes_the_channels_of_the_model():
    grey = picture(8, 8, mode="L")
    eight = {"input_size": (8, 8), "crop_pct": 1.0}
    assert np.array_equal(Preprocessing(**eight).pixels(grey), np.repeat(np.asarray(grey)[..., None], 3, axis=2))
    one = Preprocessing(**eight, mean=(0.5,), std=(0.5,))
    assert one(picture(8, 8)).shape == (1, 8, 8)
    assert np.array_equal(one.pixels(grey)[..., 0], np.asarray(grey))
    with pytest.raises(ScratchvitError, match="floating-point pixels"):
        one(Image.new("F", (8, 8)))


def test_a_picture_in_memory_is_read_like_a_file():
    """`__call__` takes what Pillow opened, whatever its mode."""
    buffer = io.BytesIO()
    picture(30, 40, mode="CMYK").save(buffer, "JPEG")
    with Image.open(buffer) as opened:
        assert np.array_equal(Preprocessing().pixels(opened), Preprocessing().pixels(opened.convert("RGB")))


def test_a_sliver_costs_no_memory_and_changes_no_pixel(monkeypatch):
    assert Preprocessing()(picture(60_000, 1)).shape == (3, 224, 224)           # 15 million rows, were it resized whole
    for fields in ({}, {"crop_mode": "squash"}, {"crop_pct": 1.5}, {"interpolation": "nearest"}):
        prepare, original = Preprocessing((20, 20), **fields), picture(30, 200)
        whole = prepare.pixels(original)
        monkeypatch.setattr(preprocess, "LARGE", 1)
        assert np.abs(prepare.pixels(original).astype(int) - whole).max() <= 1
        monkeypatch.undo()


# --- configurations ---


def test_timm_configurations():
    cfg = {"input_size": [3, 384, 256], "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear",
           "mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}
    expected = Preprocessing((384, 256), 1.0, "squash", "bilinear", (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert Preprocessing.from_timm(cfg) == Preprocessing.from_timm({"pretrained_cfg": cfg}) == expected
    assert expected.to_timm() == cfg
    assert Preprocessing.from_timm({}) == Preprocessing((224, 224), 0.875, "center", "bicubic", **IMAGENET)
    grey = Preprocessing.from_timm({"input_size": [1, 28, 28], "mean": [0.1, 0.2, 0.3], "std": 0.5})
    assert grey.mean == pytest.approx((0.2,), rel=1e-14) and grey.std == (0.5,)     # as timm: the mean of the channels


VIT = {"do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 224}


@pytest.mark.parametrize(("config", "expected"), [
    (VIT, Preprocessing((224, 224), 1.0, "squash", "bilinear", **HALF)),        # google/vit-base-patch16-224's file
    ({"image_processor_type": "ViTImageProcessorFast", "size": {"height": 384, "width": 256}, "resample": 3},
     Preprocessing((384, 256), 1.0, "squash", "bicubic", **HALF)),
    ({"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 248}, "do_center_crop": True},
     Preprocessing((224, 224), 224 / 248, "center", "bilinear", **HALF)),
    ({"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224, "do_center_crop": True,
      "image_mean": list(IMAGENET["mean"]), "image_std": list(IMAGENET["std"])},
     Preprocessing((224, 224), 0.875, "squash", "bicubic", **IMAGENET)),
    ({"image_processor_type": "DeiTImageProcessor", "do_center_crop": False, "size": 224},
     Preprocessing((224, 224), 1.0, "squash", "bicubic", **HALF)),
    ({"image_processor_type": "ConvNextImageProcessor", "size": 224, "crop_pct": 0.95, "resample": 2},
     Preprocessing((224, 224), 0.95, "center", "bilinear", **HALF)),
    ({"image_processor_type": "ConvNextImageProcessor", "crop_pct": None},      # 384 and larger is not cropped
     Preprocessing((384, 384), 1.0, "squash", "bicubic", **HALF)),
    ({"image_processor_type": "BitImageProcessor"}, Preprocessing((224, 224), 1.0, "center", "bicubic", **CLIP)),
    ({"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 480}, "crop_size": {"height": 448,
      "width": 448}, "resample": 0}, Preprocessing((448, 448), 448 / 480, "center", "nearest", **CLIP)),
    ({**VIT, "do_resize": False}, Preprocessing((224, 224), resize=False, interpolation="bilinear", **HALF)),
    ({**VIT, "do_rescale": False, "image_mean": 127.5, "image_std": 127.5, "size": [32, 48]},
     Preprocessing((32, 48), 1.0, "squash", "bilinear", (127.5,) * 3, (127.5,) * 3, 1.0)),
    ({**VIT, "rescale_factor": 1 / 128, "do_normalize": False},
     Preprocessing((224, 224), 1.0, "squash", "bilinear", (0.0,) * 3, (1.0,) * 3, 1 / 128)),
])
def test_hugging_face_configurations(config, expected):
    found = Preprocessing.from_huggingface(config)
    for name in ("input_size", "crop_mode", "interpolation", "mean", "std", "rescale", "resize"):
        assert getattr(found, name) == getattr(expected, name), name
    assert not found.resize or found._scale_size() == expected._scale_size()
    assert found.crop_rounding == "floor"


def test_the_processor_that_an_old_file_leaves_out():
    assert Preprocessing.from_huggingface({"size": 224}, "ConvNext").crop_mode == "center"
    assert Preprocessing.from_huggingface({"size": 224}, "ViT").crop_mode == "squash"


def test_the_crop_fraction_gives_the_size_again():
    for crop in (1, 7, 49, 224, 299, 384):
        for size in range(1, 600):
            assert math.floor(crop / preprocess._crop_pct(crop, size)) == size


def test_other_pixel_units_are_folded_into_timms_numbers():
    ours = Preprocessing((8, 8), 1.0, mean=(127.5,) * 3, std=(64.0,) * 3, rescale=1.0)
    theirs = Preprocessing.from_timm(ours.to_timm())
    assert theirs.mean == pytest.approx((0.5,) * 3, rel=1e-14) and theirs.rescale == 1 / 255
    found, expected = theirs(picture(8, 8)), ours(picture(8, 8))
    assert_close(found, expected, ulps(expected, 4))        # each has a product and a sum
    json.dumps(ours.to_timm())


@pytest.mark.parametrize(("fields", "sentence"), [
    ({"input_size": (224, 0)}, "input_size is .* two positive sides"),
    ({"input_size": (3, 224, 224)}, "input_size is .* two positive sides"),
    ({"input_size": (2.5, 3)}, "input_size is .* two positive sides"),
    ({"input_size": (10**9, 16)}, "input_size is .* at most 8192 pixels"),
    ({"crop_pct": 1e-320}, "crop_pct is 1e-320"),               # would resize to infinity
    ({"mean": (0.5, float("nan"), 0.5)}, "mean is .* moderate"),
    ({"std": (0.5, 1e-50, 0.5)}, "std is .* moderate"),         # zero in float32
    ({"rescale": 1e300}, "rescale is 1e.300"),
    ({"crop_pct": 0.0}, "crop_pct is 0.0, expected a positive fraction"),
    ({"crop_pct": float("nan")}, "crop_pct is nan"),
    ({"crop_pct": 225.0}, "crop_pct is 225.0"),                 # would resize to nothing
    ({"crop_mode": "middle"}, "crop_mode is 'middle', expected one of center, squash, border"),
    ({"interpolation": "random"}, "interpolation is 'random', expected one of nearest"),
    ({"crop_rounding": "up"}, "crop_rounding"),
    ({"mean": (0.5,) * 4}, "mean is .* 3 numbers"),
    ({"std": (0.5,)}, "std is .* for each channel"),
    ({"std": (0.5, 0.0, 0.5)}, "std is .* positive"),
])
def test_values_that_make_no_sense(fields, sentence):
    with pytest.raises(ScratchvitError, match=sentence):
        Preprocessing(**fields)


@pytest.mark.parametrize(("config", "sentence"), [
    ({"image_processor_type": "DetrImageProcessor"}, "DetrImageProcessor is not supported; supported are ViT"),
    ({"size": {"shortest_edge": 224}}, "shortest_edge without do_center_crop"),
    ({"size": {"shortest_edge": 8, "longest_edge": 9}}, "a size with shortest_edge, longest_edge is not supported"),
    ({"size": [256, 300], "crop_size": 224, "do_center_crop": True}, "with another aspect ratio is not supported"),
    ({"size": {"shortest_edge": 256}, "crop_size": [224, 200], "do_center_crop": True}, "another aspect ratio"),
    ({"image_processor_type": "ConvNextImageProcessor", "do_center_crop": True, "crop_size": 9}, "a crop of"),
])
def test_hugging_face_settings_that_are_refused(config, sentence):
    with pytest.raises(ScratchvitError, match=sentence):
        Preprocessing.from_huggingface(config)


# --- where the numbers come from ---


def write(path, config):
    path.write_text(config if isinstance(config, str) else json.dumps(config))


def test_the_convention_of_the_family():
    for name, crop_pct, colours in (("vit_tiny_patch16_224", 0.9, HALF), ("vit_base_r50_s16_384", 1.0, HALF),
                                    ("deit_tiny_patch16_224", 0.9, IMAGENET), ("resnet50", 0.95, IMAGENET),
                                    ("resnetv2_50x1_bit", 0.875, HALF)):
        found = preprocessing_for(name)
        assert (found.crop_pct, found.mean, found.interpolation) == (crop_pct, colours["mean"], "bicubic")
        assert found.source == f"the convention for {name}"
    assert preprocessing_for("vit_tiny_patch16_224", img_size=(32, 48), in_chans=1).input_size == (32, 48)
    assert preprocessing_for("resnet50", in_chans=1).mean == pytest.approx((0.449,), abs=1e-3)


def test_torchvisions_files_are_known_by_their_hash(tmp_path):
    """Whatever else is in the name, and by their content where the name has none."""
    first, second = Preprocessing(crop_pct=0.875, interpolation="bilinear"), Preprocessing(
        crop_pct=224 / 232, interpolation="bilinear"
    )
    for name in ("resnet50-0676ba61.pth", "my_resnet50-0676ba61 (1).pth", "resnet50-19c8e357.pth"):
        assert preprocessing_for("resnet50", f"weights/{name}") == first
    found = preprocessing_for("resnet50", "resnet50-11ad3fa6.pth")
    assert found == second and found.source == "as published for torchvision's resnet50-11ad3fa6.pth, IMAGENET1K_V2"
    for name in ("resnet50_a1_0-14fe96d1.pth", "vit_b_16-c867db91.pth"):        # timm's; another model's
        assert preprocessing_for("resnet50", name) == preprocessing_for("resnet50")


def test_a_renamed_file_is_known_by_its_content(tmp_path, monkeypatch):
    path = tmp_path / "net.pth"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()[:8]
    row = next(row for row in published.PUBLISHED if row.file == "resnet50-11ad3fa6")
    monkeypatch.setattr(published, "PUBLISHED", (row._replace(file=f"resnet50-{digest}"),))
    assert preprocessing_for("resnet50", path, owner="timm").crop_pct == 224 / 232
    assert preprocessing_for("resnet18", path, owner="timm") == preprocessing_for("resnet18")
    path.write_bytes(b"other weights")
    assert preprocessing_for("resnet50", path, owner="timm") == preprocessing_for("resnet50")


def test_other_files_of_torchvision_are_prepared_as_its_first_ones(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **{"encoder.pos_embedding": np.zeros((1, 5, 8), np.float32)})        # its ViT's name
    found = preprocessing_for("vit_base_patch16_224", path)
    assert found == Preprocessing(crop_pct=0.875, interpolation="bilinear")
    assert found.source == (
        "the convention of torchvision, that of vit_b_16-c867db91.pth; vit_b_16_lc_swag-4e70ced5.pth has another"
    )
    found = preprocessing_for("vit_base_patch16_224", path, img_size=384)
    assert found == Preprocessing((384, 384), 1.0, interpolation="bicubic") and "swag-9ac1b537" in found.source
    found = preprocessing_for("vit_base_patch14_224", path)                     # torchvision has none
    assert (found.crop_pct, found.interpolation, found.source) == (0.875, "bilinear", "the convention of torchvision")


@pytest.mark.slow
@pytest.mark.parity
def test_pictures_are_prepared_as_torchvision_published_each_file(pictures):
    """Every file of the families that load here; clips apart, pixel for pixel."""
    models = import_torchvision().models
    compared = 0
    for name in models.list_models():
        if not re.fullmatch(r"resnet\d+|vit_.+|swin_.+|mvit_.+", name):
            continue
        for weights in models.get_model_weights(name):
            file, transform = Path(weights.url), weights.transforms()
            (row,) = [row for row in published.PUBLISHED if f"{row.file}.pth" == file.name]
            found = preprocessing_for(row.model, file.name, transform.crop_size[0])
            assert row.weights == weights.name and weights.name in found.source
            assert found.input_size == (transform.crop_size[0],) * 2
            assert list(found.mean) == list(transform.mean) and list(found.std) == list(transform.std)
            assert found.interpolation == transform.interpolation.value
            assert math.floor(found.input_size[0] / found.crop_pct) == transform.resize_size[0]
            if "mvit" not in name:
                for image, source in pictures[:3]:
                    assert np.array_equal(found(image), transform(image).numpy()), (weights, source)
            compared += 1
    assert compared == 26 <= len(published.PUBLISHED)


def test_files_beside_the_weights_come_first(tmp_path):
    weights = tmp_path / "model.safetensors"
    name = "vit_tiny_patch16_224"
    assert preprocessing_for(name, weights) == preprocessing_for(name)          # nothing there
    write(tmp_path / "config.json", {"model_type": "resnet"})
    assert preprocessing_for(name, weights) == preprocessing_for(name)          # nothing about pictures in it
    write(tmp_path / "preprocessor_config.json", {"size": 224, "crop_pct": 0.5})
    found = preprocessing_for(name, weights)
    assert found.crop_pct == 0.5 and found.crop_mode == "center"                # of a ResNet: ConvNeXt's processor
    assert found.source == str(tmp_path / "preprocessor_config.json")
    cfg = {"crop_pct": 0.7, "input_size": [3, 9, 9]}
    write(tmp_path / "config.json", {"architecture": name, "pretrained_cfg": cfg})
    assert preprocessing_for("vit_tiny_patch16_384", weights).crop_pct == 0.7   # the same model at another size
    assert preprocessing_for("vit_tiny_patch32_224", weights).crop_pct == 0.9   # another model: the file is not its own
    for path in (weights, str(weights), tmp_path):
        found = preprocessing_for(name, path)
        assert found.crop_pct == 0.7 and found.input_size == (9, 9) and found.source == str(tmp_path / "config.json")
    found = preprocessing_for(name, weights, img_size=32, in_chans=1)           # the model's own win
    assert found.crop_pct == 0.7 and found.input_size == (32, 32) and len(found.mean) == 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_configuration_in_the_encodings_that_editors_write(tmp_path, encoding):
    config = {"architecture": "resnet50", "pretrained_cfg": {"crop_pct": 0.7}, "author": "Jürgen"}
    (tmp_path / "config.json").write_text(json.dumps(config, ensure_ascii=False), encoding=encoding)
    assert preprocessing_for("resnet50", tmp_path).crop_pct == 0.7


@pytest.mark.parametrize("content", ["{cut", "[1]", "\x00", "[" * 100_000, {"pretrained_cfg": [3]}])
def test_a_file_that_is_no_configuration_is_named(tmp_path, content):
    write(tmp_path / "config.json", content)
    with pytest.raises(ScratchvitError, match=re.escape(str(tmp_path / "config.json"))):
        preprocessing_for("resnet50", tmp_path)


@pytest.mark.parametrize("cfg", [
    {"input_size": 224}, {"input_size": [3, "a", 4]}, {"input_size": [4, 224, 224]}, {"mean": ["a"]},
    {"mean": {"a": 1}}, {"crop_pct": "wide"}, {"crop_pct": -1}, {"interpolation": ["bicubic"]}, {"std": [0.5, 0.5, 0]},
])
def test_a_configuration_that_makes_no_sense_is_named(tmp_path, cfg):
    write(tmp_path / "config.json", {"architecture": "resnet50", **cfg})
    with pytest.raises(ScratchvitError, match=re.escape(str(tmp_path / "config.json"))):
        preprocessing_for("resnet50", tmp_path)


@pytest.mark.parametrize("config", [
    {"size": "big"}, {"size": [1, 2, 3]}, {"size": {}}, {"resample": 17}, {"image_mean": "x"},
    {"image_processor_type": 3}, {"size": 0}, {"size": {"height": 0, "width": 3}}, {"do_center_crop": True, "size": 0},
    {"rescale_factor": "x"}, {"rescale_factor": 0}, {"do_center_crop": True, "crop_size": 0},
    {"image_processor_type": "ConvNextImageProcessor", "size": 224, "crop_pct": 0},
])
def test_a_processor_that_makes_no_sense_is_named(tmp_path, config):
    write(tmp_path / "preprocessor_config.json", config)
    with pytest.raises(ScratchvitError, match=re.escape(str(tmp_path / "preprocessor_config.json"))):
        preprocessing_for("resnet50", tmp_path / "model.bin")


@pytest.mark.parametrize(("prepare", "text"), [
    (Preprocessing(), "shorter side to 256 (bicubic), centre 224×224, mean 0.485 0.456 0.406, std 0.229 0.224 0.225"),
    (Preprocessing((224, 112), **HALF), "shorter side to 256×128 (bicubic), centre 224×112, mean 0.5, std 0.5"),
    (Preprocessing(crop_pct=1.0, crop_mode="squash", **HALF), "squashed to 224×224 (bicubic), mean 0.5, std 0.5"),
    (Preprocessing(crop_mode="border", mean=(0.5,), std=(0.5,)),
     "longer side to 256, padded (bicubic), centre 224×224, grey, mean 0.5, std 0.5"),
    (Preprocessing(resize=False, **PLAIN), "not resized, centre 224×224, pixels × 1, mean 0, std 1"),
])
def test_it_says_what_it_does(prepare, text):
    assert str(prepare) == text


# --- equal to theirs, pixel for pixel ---

SIZES = (
    (1, 1), (17, 300), (300, 17), (224, 224), (256, 256), (248, 248), (225, 224), (224, 227), (1000, 700), (700, 1000),
    (333, 500), (500, 333), (231, 1001), (40, 40), (97, 113), (223, 447), (449, 449), (3, 2), (250, 248),
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """(what was read here, the file) of pictures of many sizes, modes and formats."""
    folder = tmp_path_factory.mktemp("pictures")
    files = []

    def save(image, name, **options):
        image.save(folder / name, **options)
        files.append(folder / name)

    for seed, (height, width) in enumerate(SIZES):
        save(picture(height, width, seed), f"{height}x{width}.png")
    save(picture(120, 90, mode="L"), "grey.png")
    save(picture(120, 90, mode="LA"), "grey-alpha.png")
    save(picture(90, 120, mode="RGBA"), "alpha.png")
    save(picture(130, 120).quantize(32), "palette.png")
    save(picture(130, 120).quantize(32), "clear.png", transparency=3)
    save(picture(260, 300, mode="L").convert("1"), "bits.png")
    save(picture(300, 260, mode="CMYK"), "cmyk.jpg")
    save(picture(300, 260), "picture.jpg", quality=60)
    save(picture(260, 100), "picture.webp", lossless=True)
    save(picture(30, 31).quantize(8), "picture.gif")
    turned = Image.Exif()
    turned[0x0112] = 6
    save(picture(300, 200), "turned.jpg", exif=turned)
    return [(open_image(file), file) for file in files]


def test_a_file_of_any_mode_is_read_upright_and_opaque(pictures):
    for read, file in pictures:
        with Image.open(file) as opened:
            by_pillow = ImageOps.exif_transpose(opened).convert("RGBA").convert("RGB")
        assert np.array_equal(read, by_pillow), file.name
    assert next(read.size for read, file in pictures if file.name == "turned.jpg") == (300, 200)    # stored 200 × 300


TIMM = [
    {"crop_pct": 0.9, "interpolation": "bicubic", **HALF}, {"crop_pct": 0.9, "interpolation": "bicubic"},
    {"crop_pct": 0.95, "interpolation": "bicubic"}, {"crop_pct": 0.875, "interpolation": "bicubic", **HALF},
    {"crop_pct": 0.875, "interpolation": "bilinear"}, {"crop_pct": 1.0, "interpolation": "bicubic", **HALF},
    {"crop_pct": 1.0, "interpolation": "bilinear", "input_size": (3, 448, 448), **HALF},
    {"crop_pct": 1.0, "interpolation": "bicubic", "input_size": (3, 384, 384)},
    {"crop_pct": 0.9, "crop_mode": "squash", "interpolation": "bicubic"},
    {"crop_pct": 0.9, "crop_mode": "border", "interpolation": "bicubic"},
    {"crop_pct": 1.0, "crop_mode": "border", "interpolation": "bilinear", "mean": (0.3, 0.999, 0.1)},
    {"crop_pct": 0.9, "interpolation": "bicubic", "input_size": (3, 97, 160)},
    {"crop_pct": 0.8, "crop_mode": "border", "interpolation": "nearest", "input_size": (3, 97, 160)},
    {"crop_pct": 0.8, "crop_mode": "squash", "interpolation": "lanczos", "input_size": (3, 33, 97)},
    {"crop_pct": 0.97, "interpolation": "lanczos", "input_size": (3, 225, 225)},
    {"crop_pct": 0.9, "interpolation": "nearest", "input_size": (3, 31, 31)},
    {"crop_pct": 1.25, "interpolation": "hamming"}, {"crop_pct": 0.6, "interpolation": "box"}, {"num_classes": 1000},
]


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("cfg", TIMM, ids=str)
def test_pixels_are_timms(pictures, cfg):
    timm = import_timm()
    config = timm.data.resolve_data_config({}, pretrained_cfg=cfg)
    ours = Preprocessing.from_timm(cfg)
    pixels = timm.data.create_transform(**config, is_training=False, normalize=False)
    numbers = timm.data.create_transform(**config, is_training=False)
    for image, file in pictures:
        if ours.crop_mode == "border" and 0 in round_as_timm(image, ours):
            continue        # timm asks Pillow for a picture without pixels
        assert np.array_equal(ours.pixels(image).transpose(2, 0, 1), pixels(image).numpy()), file.name
        assert np.array_equal(ours(image), numbers(image).numpy()), file.name


def round_as_timm(image, prepare):
    scale = prepare._scale_size()
    ratio = max(image.height / scale[0], image.width / scale[1])
    return round(image.height / ratio), round(image.width / ratio)


@pytest.mark.parity
def test_grey_pixels_are_timms(pictures):
    timm = import_timm()
    cfg = {"input_size": (1, 56, 56), "mean": (0.3,), "std": (0.2,), "crop_pct": 0.9, "crop_mode": "border"}
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=cfg), is_training=False)
    for image, file in pictures:
        assert np.array_equal(Preprocessing.from_timm(cfg)(image), transform(image.convert("L")).numpy()), file.name


def test_the_convention_is_that_of_the_models_size():
    """Google's files of 384 have no configuration, and no preset of that name."""
    assert preprocessing_for("vit_base_patch16_224", img_size=384).crop_pct == 1.0
    assert preprocessing_for("vit_base_patch16_224", img_size=224).crop_pct == 0.9


def test_a_file_whose_owner_is_known_is_not_read_again(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"no weights")
    found = preprocessing_for("vit_base_patch16_224", tmp_path / "a.pth", owner="torchvision")
    assert found.source.startswith("the convention of torchvision")
    assert preprocessing_for("vit_base_patch16_224", tmp_path / "a.pth", owner="timm").mean == (0.5, 0.5, 0.5)


def test_a_configuration_of_a_thousand_million_channels_costs_nothing():
    with pytest.raises(ScratchvitError, match="input_size has 1000000000 channels"):
        Preprocessing.from_timm({"input_size": [10**9, 16, 16]})


@pytest.mark.parity
def test_conventions_are_those_of_timm():
    timm = import_timm()
    compared = 0
    for name in list_models():
        if not timm.is_model(name):
            continue
        theirs = timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        ours = preprocessing_for(name)
        size = model_config(name).img_size
        assert ours.input_size == (size if isinstance(size, tuple) else (size, size))
        found = {key: theirs[key] for key in ("crop_pct", "crop_mode", "interpolation", "mean", "std")}
        assert {key: getattr(ours, key) for key in found} == found, name
        compared += 1
    assert compared >= 30


HUGGINGFACE = [
    ("ViT", {}), ("ViT", {"size": {"height": 97, "width": 160}, "resample": 3, "image_mean": [0.485, 0.456, 0.406]}),
    ("ViT", {"do_rescale": False, "image_mean": [100.0, 110.0, 120.0], "image_std": [50.0, 60.0, 70.0]}),
    ("ViT", {"do_normalize": False, "rescale_factor": 1 / 127.5}),
    ("ViT", {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 61, "width": 80}}),
    ("DeiT", {}), ("DeiT", {"size": 251, "crop_size": {"height": 224, "width": 224}, "resample": 2}),
    ("DeiT", {"size": {"height": 99, "width": 198}, "crop_size": {"height": 128, "width": 256}}),     # padded
    ("ConvNext", {"size": {"shortest_edge": 224}}), ("ConvNext", {}),
    ("ConvNext", {"size": {"shortest_edge": 97}, "crop_pct": 0.91, "resample": 1}),
    ("Bit", {}), ("Bit", {"size": {"shortest_edge": 229}, "resample": 2}),
    ("Bit", {"size": {"shortest_edge": 64}, "crop_size": 97, "resample": 0}),
]


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(("family", "changes"), HUGGINGFACE, ids=str)
def test_pixels_are_those_of_transformers(pictures, family, changes, tmp_path):
    import_timm()
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, f"{family}ImageProcessorPil")(**changes)
    processor.save_pretrained(tmp_path)
    ours = preprocessing_for("resnet50", tmp_path)
    assert ours.source == str(tmp_path / "preprocessor_config.json")
    for image, file in pictures:
        theirs = processor(image, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
        assert np.array_equal(ours(image), theirs), file.name
