"""iGPT is the same function as Hugging Face's ImageGPT, and its files load here by name."""

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.errors import ScratchvitError
from scratchvit.weights import load_weights, model_from_weights
from scratchvit.weights.names import recognise
from tests.support import peers
from tests.support.margins import agree
from tests.support.seeds import seeded

K = 7


def theirs(kind="ImageGPTForCausalImageModeling", **options):
    transformers = peers.import_transformers()
    config = transformers.ImageGPTConfig(
        vocab_size=K + 1, n_positions=25, n_embd=32, n_layer=3, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        **options,
    )
    return peers.randomise(getattr(transformers, kind)(config))


OURS = {"img_size": 5, "num_colors": K, "embed_dim": 32, "depth": 3, "num_heads": 4}


def assert_same_igpt(model, peer):
    """Logits and the gradient of every parameter for the same pixels; theirs are given the start token themselves."""
    import torch

    assert model.load_state_dict({name: value.numpy() for name, value in peer.state_dict().items()}) == ([], [])
    back = {name: torch.from_numpy(value) for name, value in model.state_dict().items() if name != "palette"}
    peer.load_state_dict(back, strict=True)
    tokens = seeded(0).integers(0, K, (2, 25))
    pictures = model.palette.numpy()[tokens].reshape(2, 5, 5, 3).transpose(0, 3, 1, 2)
    shifted = np.concatenate([np.full((2, 1), K), tokens[:, :-1]], axis=1)
    expected = peer(torch.from_numpy(shifted)).logits
    weights = seeded(3).standard_normal(tuple(expected.shape), dtype=np.float32)
    (expected * torch.from_numpy(weights)).sum().backward()

    def ours():
        model.zero_grad()
        logits = model(pictures)
        if model.generative:
            logits = logits.transpose(1, 2)
        (logits * weights).sum().backward()
        return {"logits": logits} | {f"gradient of {name}": p.grad for name, p in model.named_parameters()}

    agree(ours, {"logits": expected} | {f"gradient of {name}": p.grad for name, p in peer.named_parameters()})


@pytest.mark.parity
def test_it_is_the_same_function_as_hugging_faces():
    assert_same_igpt(sv.create_model("igpt_tiny", **OURS), theirs())


@pytest.mark.parity
def test_the_classifier_is_the_same_function_as_hugging_faces():
    peer = theirs("ImageGPTForImageClassification", num_labels=4)
    assert_same_igpt(sv.create_model("igpt_tiny", num_classes=4, **OURS), peer)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("kind", "classes"), [("ImageGPTForCausalImageModeling", 0), ("ImageGPTForImageClassification", 4)]
)
def test_hugging_faces_files_load_by_name(kind, classes, tmp_path):
    peer = theirs(kind, num_labels=4)
    peer.save_pretrained(tmp_path)
    model, name = model_from_weights(tmp_path / "model.safetensors")
    assert name == "igpt_tiny" and model.config.num_classes == classes and model.num_tokens == 25
    for key, value in peer.state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[key], value.numpy(), err_msg=key)
    again = sv.create_model("igpt_tiny", num_classes=classes, **OURS)
    report = load_weights(again, tmp_path / "model.safetensors")
    assert report.owner == "Hugging Face (ImageGPT)" and report.as_drawn == ["palette"]

    clusters = seeded(0).uniform(-1, 1, (K, 3)).astype(np.float32)
    peers.import_transformers().ImageGPTImageProcessorPil(clusters=clusters).save_pretrained(tmp_path)
    report = load_weights(again, tmp_path / "model.safetensors")
    assert report.as_drawn == []
    np.testing.assert_array_equal(again.palette.numpy(), clusters)
    for wrong, says in (("[[1, 2], [3]]", "clusters are not a table"), ("[[1, 2, 3]]", r"palette \(file \(1, 3\) →")):
        (tmp_path / "preprocessor_config.json").write_text(f'{{"clusters": {wrong}}}')
        with pytest.raises(ScratchvitError, match=says):
            load_weights(again, tmp_path / "model.safetensors")


def test_older_files_carry_their_masks():
    model = sv.create_model("igpt_tiny", **OURS)
    weights = {name: value for name, value in model.state_dict().items() if name != "palette"}
    masks = {f"transformer.h.0.attn.{name}": np.ones((1, 1, 2, 2)) for name in ("bias", "masked_bias")}
    renamed = recognise(weights | masks).rename(weights | masks)
    assert set(renamed.left_out) == set(masks) and renamed.weights.keys() == weights.keys()
    bare = {name.removeprefix("transformer."): value for name, value in weights.items() if name != "lm_head.weight"}
    assert set(recognise(bare).rename(bare).weights) == {name for name in weights if name != "lm_head.weight"}
