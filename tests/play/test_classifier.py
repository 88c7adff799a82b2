"""What the page of a classifier is told is what the library computes."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

import scratchvit as sv
from scratchvit import zoo
from scratchvit.backend import asarray
from scratchvit.data import Normalize
from scratchvit.inspect import attention_maps, class_attention, rollout
from scratchvit.inspect.swin import bias_table, window_blocks
from scratchvit.play import attention, drawing
from scratchvit.play.classifier import ClassifierPage
from scratchvit.play.server import Question
from scratchvit.training.classification.classifier import Classifier
from scratchvit.weights.preprocess import Preprocessing
from scratchvit.weights.published import IMAGENET
from tests.support.seeds import seeded
from tests.support.strokes import DIGITS

MODELS = {
    "vit_tiny_patch16_224": {"img_size": 16, "patch_size": 4, "depth": 2, "embed_dim": 24},
    "deit_tiny_distilled_patch16_224": {"img_size": (8, 16), "patch_size": 4, "depth": 2, "embed_dim": 24},
    "vit_tiny_r_s16_p8_224": {"img_size": 32, "patch_size": 1, "depth": 1, "embed_dim": 24},
    "swin_tiny_patch4_window7_224": {
        "img_size": 12, "patch_size": 2, "window_size": 3, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2)
    },
    "mvit_v1_b_image": {"img_size": 16, "embed_dim": 8, "depths": (1, 2)},
    "mvitv2_tiny": {"img_size": 16, "embed_dim": 8, "depths": (1, 2)},
    "resnet18": {"img_size": 16, "layers": (1, 1, 1, 1), "channels": (4, 4, 4, 4)},
}


def page_of(name):
    """The page of a small model with random weights, for colour pictures."""
    model = sv.create_model(name, num_classes=3, **MODELS[name]).eval()
    height, width = np.broadcast_to(model.config.img_size, 2).tolist()
    normalize = Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))

    def prepare(picture):
        return normalize(np.asarray(picture.convert("RGB").resize((width, height)))[None])[0]

    return ClassifierPage(Classifier(model, name, ("a", "b", "c"), "", prepare, "resized"))


def picture():
    return Image.fromarray(seeded(0).integers(0, 256, (20, 30, 3), np.uint8))


def numbers(packed):
    return np.frombuffer(base64.b64decode(packed["float16"]), "<f2").reshape(packed["shape"]).astype(np.float32)


@pytest.mark.parametrize("name", MODELS)
def test_the_page_is_told_what_the_model_computes(name):
    page = page_of(name)
    model, seen = page.model(), page.see(picture())
    assert json.loads(json.dumps([model, seen], allow_nan=False))
    image = page.classifier.prepare(picture())
    with sv.no_grad(), sv.ops.record_attention() as recorded:
        logits = page.classifier.model(asarray(image[None])).numpy()[0]
    assert seen["logits"] == logits.tolist()
    assert np.allclose(seen["probabilities"], np.exp(logits) / np.exp(logits).sum(), atol=1e-6)
    assert len(seen["attention"]) == len(model["layers"]) == len(recorded) or name == "resnet18"
    for sent, computed, layer in zip(seen["attention"], recorded, model["layers"]):
        assert np.abs(numbers(sent) - computed.reshape(sent["shape"])).max() < 5e-4     # half a unit of float16 below 1
        if "windows" not in layer:
            queries, keys = (layer["prefix"] + np.prod(layer[grid]) for grid in ("queries", "keys"))
            assert tuple(sent["shape"]) == (layer["heads"], queries, keys)
    shown = np.frombuffer(base64.b64decode(seen["picture"]["bytes"]), np.uint8).reshape(seen["picture"]["shape"])
    height, width = np.broadcast_to(page.classifier.model.config.img_size, 2).tolist()
    assert (shown == np.asarray(picture().resize((width, height)))).all()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_the_page_is_told_the_same_on_every_device(name, device):
    page = page_of(name)
    seen = page.see(picture())
    sv.use("cpu")
    expected = page_of(name).see(picture())
    assert np.allclose(seen["logits"], expected["logits"], atol=1e-4)
    for one, other in zip([*seen["attention"], seen["tokens"]], [*expected["attention"], expected["tokens"]]):
        assert np.allclose(numbers(one), numbers(other), atol=2e-3)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_what_the_model_sees_is_shown_whatever_the_preprocessing(crop_mode):
    model = page_of("vit_tiny_patch16_224").classifier.model
    prepare = Preprocessing((16, 16), crop_pct=1.0, crop_mode=crop_mode)
    page = ClassifierPage(Classifier(model, "", ("a", "b", "c"), "", prepare, ""))
    grey = np.tile(np.linspace(0, 255, 16).round().astype(np.uint8), (16, 1))
    colours = np.stack([grey, grey.T, 255 - grey], axis=-1)
    if crop_mode == "border":       # a wide picture gets bars in the mean colour above and below
        shown = page.shown(prepare(Image.fromarray(colours[4:12])))
        assert (shown[4:12] == colours[4:12]).all() and (shown[:4] == np.round(255 * np.array(IMAGENET["mean"]))).all()
    else:
        assert (page.shown(prepare(Image.fromarray(colours))) == colours).all()


def test_a_vits_rollout_and_its_tokens():
    page = page_of("deit_tiny_distilled_patch16_224")
    assert page.model()["prefix"] == ("class token", "distillation token") and page.model()["grid"] == [2, 4]
    seen, image = page.see(picture()), page.classifier.prepare(picture())[None]
    flow = rollout(attention_maps(page.classifier.model, image))
    assert np.abs(numbers(seen["rollout"]["tokens"]) - flow[0]).max() < 5e-4
    heat = class_attention(flow, 2, (2, 4))[0]
    assert np.abs(numbers(seen["rollout"]["classifier"]) - heat).max() < 5e-4
    tokens = page.classifier.model.patch_embed(asarray(image)).numpy()[0]
    assert numbers(seen["tokens"]) == pytest.approx(tokens, abs=2e-3) and tokens.shape == (8, 24)


def test_a_swins_windows_are_those_of_inspect():
    page = page_of("swin_tiny_patch4_window7_224")
    for layer, block in zip(page.model()["layers"], window_blocks(page.classifier.model), strict=True):
        windows = layer["windows"]
        assert (np.array(windows["places"]) == block.places).all() and (np.array(windows["kinds"]) == block.kinds).all()
        assert np.abs(numbers(windows["bias"]) - bias_table(block)).max() < 1e-3
    assert page.model()["layers"][1]["windows"]["shift"] == (1, 1)
    seen = page.see(picture())
    assert seen["rollout"] is None and seen["tokens"]["shape"] == (36, 8)


def test_a_model_without_attention_says_so():
    page = page_of("resnet18")
    assert page.model()["layers"] == [] and "a ResNet, has no attention" in page.model()["without"]
    assert page.see(picture())["attention"] == []


def test_of_too_many_numbers_the_mean_over_the_heads_is_sent_or_none(monkeypatch):
    page = page_of("vit_tiny_patch16_224")
    whole = numbers(page.see(picture())["attention"][0])
    monkeypatch.setattr(attention, "MOST_SENT", 100)
    assert np.abs(numbers(page.see(picture())["attention"][0]) - whole.mean(axis=0, keepdims=True)).max() < 1e-3
    monkeypatch.setattr(attention, "MOST_RECORDED", 100)
    page = page_of("vit_tiny_patch16_224")
    assert page.layers == [] and "GiB" in page.without and page.see(picture())["attention"] == []
    assert attention.layers_of(sv.create_model("mvit_v1_b", num_frames=4, img_size=16, depths=(1, 1)))[0] == []


def test_damaged_weights_are_an_error():
    page = page_of("vit_tiny_patch16_224")
    page.classifier.model.head.bias.assign(np.full(3, np.nan, np.float32))
    with pytest.raises(sv.ScratchvitError, match="not finite"):
        page.see(picture())


def test_the_trained_vit_reads_drawings_test_digits_and_files():
    pytest.importorskip("sklearn")
    page = ClassifierPage(zoo.load("vit_digits").opened, "vit_digits")
    routes, model = page.routes(), page.model()
    assert model["about"].startswith("vit_digits: ") and model["redrawn"]

    def answer(name, body=b"", **parameters):
        return int(np.argmax(routes[name](Question(body, parameters))["logits"]))

    for digit, strokes in DIGITS.items():
        assert answer("POST strokes", json.dumps([stroke.tolist() for stroke in strokes]).encode()) == digit
    assert [one["label"] for one in model["examples"]] == [str(n // 2) for n in range(20)]
    read = [answer("GET example", number=str(number)) == number // 2 for number in range(20)]
    assert sum(read) >= 18
    with pytest.raises(sv.ScratchvitError, match="there is no example 20"):
        answer("GET example", number="20")
    # A file: the same digit as a large picture in colour; and dark on light paper, inverted.
    large = drawing.as_optdigits(DIGITS[3]).resize((400, 400)).convert("RGB")
    for shown, inverted in ((large, "0"), (Image.eval(large, lambda value: 255 - value), "1")):
        file = io.BytesIO()
        shown.save(file, "PNG")
        assert answer("POST picture", file.getvalue(), inverted=inverted) == 3


@pytest.mark.parametrize(("content", "says"), [
    (b"", "no picture of a known format"), (b"<svg onload=alert(1)>", "no picture of a known format"),
    (b"\x89PNG\r\n\x1a\n" + bytes(50), "no picture of a known format|cannot be decoded"),
])
def test_what_is_no_picture_is_a_sentence(content, says):
    with pytest.raises(sv.ScratchvitError, match=says):
        page_of("resnet18").routes()["POST picture"](Question(content))


def test_a_decompression_bomb_is_a_sentence():
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    assert len(file.getvalue()) < 100_000
    with pytest.raises(sv.ScratchvitError, match=r"cannot be decoded.*decompression bomb"):
        page_of("resnet18").routes()["POST picture"](Question(file.getvalue()))
