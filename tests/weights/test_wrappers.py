"""Which of the sets of weights in a file is taken: by the names of dictionaries and prefixes, or as it is asked for."""

import json

import numpy as np
import pytest
import safetensors.numpy

import scratchvit as sv
from scratchvit.cli import main
from scratchvit.errors import ScratchvitError
from scratchvit.weights.files import read_chosen, read_weights
from scratchvit.weights.load import open_model
from scratchvit.weights.wrappers import MOST_NAMED, Choice
from tests.support.data_samples import write_picture
from tests.support.peers import import_timm, import_torchvision, import_transformers, randomise
from tests.support.seeds import seeded
from tests.support.weight_samples import tensors, torch_zip

NAME = "vit_tiny_patch16_224"
TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 4}


def drawn(seed):
    rng, state = seeded(seed), sv.create_model(NAME, **TINY).state_dict()
    return {name: rng.standard_normal(value.shape).astype(np.float32) for name, value in state.items()}


STUDENT, TEACHER = drawn(1), drawn(2)


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def compiled(state):
    """Names as torch.compile leaves them if parts of a model are compiled."""
    return {name.replace(".attn.", "._orig_mod.attn._orig_mod."): value for name, value in state.items()}


def one(*shape):
    return np.full(shape, 3, np.float32)


def write(path, tree):
    """A file as torch.save writes it: dictionaries of arrays, numbers and texts."""
    arrays = {}

    def numbered(value):
        if isinstance(value, np.ndarray):
            arrays[key := str(len(arrays))] = value
            return key
        return {name: numbered(part) for name, part in value.items()} if isinstance(value, dict) else value

    keyed = numbered(tree)
    stored = tensors(arrays)

    def instructions(value, original):
        if isinstance(original, np.ndarray):
            return stored[value]
        if isinstance(original, dict):
            return {name: instructions(value[name], part) for name, part in original.items()}
        return value

    path.write_bytes(torch_zip(instructions(keyed, tree), {key: array.tobytes() for key, array in arrays.items()}))
    return path


def same(found, expected):
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


S, T = STUDENT, TEACHER
STATISTICS = {"criterion.pos_weight": one(4), "val_acc.total": one(), "loss.center": one(1, 4)}

#  what is in the file; the entry that is taken, the others, and the tensors that are not used
TREES = {
    "a teacher first": ({"teacher": T, "model": S}, "model", ["teacher"], []),
    "a teacher last": ({"model": S, "teacher": T, "epoch": 3}, "model", ["teacher"], []),
    "a state dict and a teacher": ({"state_dict": S, "teacher": T}, "state_dict", ["teacher"], []),
    "a teacher model": ({"model": S, "teacher_model": T}, "model", ["teacher_model"], []),
    "two in one": ({"model": {"student": T, "teacher": S}}, "model.teacher", ["model.student"], []),
    "DINO": ({"student": under("module.backbone.", T), "teacher": under("backbone.", S), "loss": {"center": one(4)}},
             "teacher.backbone", ["student.module.backbone"], []),
    "a teacher beside a name of its own": ({"teacher": T, "small_vit": S}, "small_vit", ["teacher"], []),
    "a teacher of another family": ({"teacher": {"conv.weight": one(2)}, "model": S}, "model", ["teacher"], []),
    "an average": ({"model": T, "model_ema": S}, "model_ema", ["model"], []),
    "an average of torchvision": ({"model": T, "model_ema": {"n_averaged": one(), **under("module.", S)}},
                                  "model_ema.module", ["model"], ["n_averaged"]),
    "an average under another name": ({"state_dict": T, "ema_state_dict": S}, "ema_state_dict", ["state_dict"], []),
    "an average of a library": ({"model": T, "ema": {"decay": 0.9, "module": S}}, "ema.module", ["model"], []),
    "stochastic weight averaging": ({"net": T, "swa_model": {"n_averaged": one(), **under("module.", S)}},
                                    "swa_model.module", ["net"], ["n_averaged"]),
    "an averaged model": ({"n_averaged": one(), **under("module.", S)}, "module", [], ["n_averaged"]),
    "any name": ({"model_state": S, "optimizer": {"state": {0: {"exp_avg": one(2)}}}}, "model_state", [], []),
    "a name of its own": ({"my_best_weights": S, "epoch": 3, "best": {"metrics": {"acc": one()}}},
                          "my_best_weights", [], []),
    "a number beside it": ({"n_steps": one(), "my_best_weights": S}, "my_best_weights", [], []),
    "deeper": ({"checkpoint": {"payload": {"weights": S}}}, "checkpoint.payload.weights", [], []),
    "an optimiser by name": ({"model": S, "optimizer": {"state": {name: {"exp_avg": S[name]} for name in S}}},
                             "model", [], []),
    "Lightning": ({"state_dict": under("model.", S) | STATISTICS}, "state_dict.model", [], list(STATISTICS)),
    "Lightning, net": ({"state_dict": STATISTICS | under("net.", S)}, "state_dict.net", [], list(STATISTICS)),
    "Lightning, a name of its own": ({"state_dict": STATISTICS | under("my_vit.", S)}, "state_dict.my_vit", [],
                                     list(STATISTICS)),
    "Lightning, compiled": ({"state_dict": under("model._orig_mod.", S) | STATISTICS}, "state_dict.model", [],
                            list(STATISTICS)),
    "Lightning with a teacher": ({"state_dict": under("teacher.", T) | under("model.", S)}, "state_dict.model",
                                 ["state_dict.teacher"], []),
    "Lightning with an average": ({"state_dict": under("model.", T) | under("ema_model.module.", S)},
                                  "state_dict.ema_model.module", ["state_dict.model"], []),
    "a teacher in the model": ({"state_dict": S | under("teacher.", T)}, "state_dict", ["state_dict.teacher"], []),
    "an encoder": ({"model": under("encoder.", S) | {"decoder.weight": one(2), "mask_token": one(1)}}, "model.encoder",
                   [], ["decoder.weight", "mask_token"]),
    "a loss with a network": ({"state_dict": under("model.", S) | under("criterion.lpips.", T)}, "state_dict.model",
                              ["state_dict.criterion.lpips"], []),
    "compiled anywhere": ({"model": compiled(S)}, "model", [], []),
    "compiled, with a teacher": ({"state_dict": under("model._orig_mod.", S) | under("teacher._orig_mod.", T)},
                                 "state_dict.model", ["state_dict.teacher"], []),
    "an average of Lightning": ({"state_dict": under("model.", T) | under("ema.module.", S)},
                                "state_dict.ema.module", ["state_dict.model"], []),
    "numbers under a usual name": ({"model": {"mean": one(3)}, "weights": S}, "weights", [], []),
    "FSDP": ({"model": under("_fsdp_wrapped_module._orig_mod.module.", S)}, "model.module", [], []),
}


@pytest.mark.parametrize("case", TREES)
def test_which_entry_is_taken(tmp_path, case):
    tree, taken, others, unused = TREES[case]
    choice = Choice()
    found = read_chosen(write(tmp_path / "w.pth", tree), choice)
    assert same(found, S)
    assert (choice.taken, choice.others, choice.unused) == (taken, others, unused)
    report = sv.load_weights(sv.create_model(NAME, **TINY), tmp_path / "w.pth")
    also = f" (also in the file: {', '.join(others)}; --entry NAME, entry=NAME, takes another)" if others else ""
    assert str(report).splitlines()[1] == f"entry: {taken}{also}"
    assert ("not used" in str(report)) == bool(unused) and report.left_out == unused


@pytest.mark.parametrize(("case", "entry"), [
    ("a teacher first", "teacher"), ("a teacher model", "teacher_model"), ("DINO", "student"), ("an average", "model"),
    ("an average of torchvision", "model"), ("Lightning with a teacher", "teacher"),
    ("Lightning with a teacher", "state_dict.teacher"), ("a teacher in the model", "teacher"),
    ("Lightning with an average", "state_dict.model"), ("a loss with a network", "criterion"),
    ("two in one", "model.student"), ("a teacher beside a name of its own", "teacher"),
])
def test_the_entry_that_is_asked_for(tmp_path, case, entry):
    """Of the two in the file, the one that is not the usual one."""
    path = write(tmp_path / "w.pth", TREES[case][0])
    assert same(read_weights(path, entry=entry), T)
    model = sv.create_model(NAME, **TINY)
    sv.load_weights(model, path, entry=entry)
    assert same(model.state_dict(), T)


def test_an_error_says_what_was_taken_and_what_was_not(tmp_path):
    """A head under another name, and another model in the file."""
    state = under("backbone.", {name: value for name, value in S.items() if not name.startswith("head.")})
    path = write(tmp_path / "w.pth", {"state_dict": state | {"classifier.weight": one(4, 16)}, "teacher": T})
    with pytest.raises(ScratchvitError) as caught:
        sv.load_weights(sv.create_model(NAME, **TINY), path)
    first, *lines = str(caught.value).splitlines()
    assert "the file has no head: new_head=True" in first
    assert lines[:2] == ["  missing: head.weight, head.bias", "  not used: classifier.weight"]
    assert lines[2].startswith("  entry: state_dict.backbone (also in the file: teacher; ")


def test_an_entry_that_is_not_there(tmp_path):
    path = write(tmp_path / "w.pth", {"model": S, "teacher": T})
    with pytest.raises(ScratchvitError, match=r"w\.pth: it has no entry 'ema'; it has model, teacher: choose one of"):
        read_weights(path, entry="ema")
    with pytest.raises(ScratchvitError, match="it has no entry 'model'; it has no entries with a name"):
        read_weights(write(tmp_path / "v.pth", S), entry="model")


def test_several_sets_of_weights_of_which_none_is_the_usual_one(tmp_path):
    for tree in ({"query": S, "key": T}, {"model": under("query.", S) | under("key.", T)}):
        path = write(tmp_path / "w.pth", tree)
        with pytest.raises(ScratchvitError, match=r"it has several sets of weights, .*query, .*key: choose one with"):
            read_weights(path)
        assert same(read_weights(path, entry="key"), T)


def test_a_flat_file_has_entries_too(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file(under("teacher.", T) | under("student.", S) | {"step": one()}, path)
    choice = Choice()
    assert same(read_chosen(path, choice), T) and choice.others == ["student"] and choice.unused == ["step"]
    assert same(read_weights(path, entry="student"), S)


def test_a_prefix_of_all_names_is_not_worth_a_line(tmp_path):
    path = write(tmp_path / "w.pth", under("module.model.", S))
    assert str(sv.load_weights(sv.create_model(NAME, **TINY), path)) == "names: timm"


def test_a_checkpoint_of_a_run_has_entries(tmp_path):
    path = tmp_path / "last.safetensors"
    safetensors.numpy.save_file(under("model.", T) | under("ema.", S) | {"optimizer.m.head.bias": one(4)}, path)
    model = sv.create_model(NAME, **TINY)
    assert str(sv.load_weights(model, path)) == "names: scratchvit train" and same(model.state_dict(), S)
    sv.load_weights(model, path, entry="model")
    assert same(model.state_dict(), T)


def test_a_name_with_and_without_an_insertion_is_refused(tmp_path):
    path = write(tmp_path / "w.pth", S | {"_orig_mod.head.bias": one(4)})
    with pytest.raises(ScratchvitError, match=r"head\.bias is there with and without"):
        read_weights(path)


def test_thousands_of_models_are_refused_at_once(tmp_path):
    """Each is compared with each, and with every name."""
    stored = tensors({"w": one(1)})["w"]
    many = {f"net{i}.patch_embed.proj.weight": stored for i in range(20_000)}
    (tmp_path / "w.pth").write_bytes(torch_zip(many, {"0": one(1).tobytes()}))
    with pytest.raises(ScratchvitError, match="it has 20,000 models, more than any known checkpoint"):
        read_weights(tmp_path / "w.pth")


def test_many_entries_and_names_make_short_lines(tmp_path):
    many = {f"copy_{i}": T for i in range(40)} | {"model": S}
    path = write(tmp_path / "w.pth", many)
    report = sv.load_weights(sv.create_model(NAME, **TINY), path)
    assert f"and {40 - MOST_NAMED} more" in str(report) and len(str(report)) < 400
    beside = {f"decoder.part{chr(97 + i)}.weight": one(1) for i in range(26)} | {"scale": one()}
    path = write(tmp_path / "w.pth", under("encoder.", S) | beside)
    report = sv.load_weights(sv.create_model(NAME, **TINY), path)
    assert "not used: decoder.… (26 tensors), scale" in str(report) and len(report.left_out) == 27


@pytest.mark.slow
@pytest.mark.parametrize("words", [["predict", "a.png", "--checkpoint", "w.pth"], ["export", "--weights", "w.pth"],
                                   ["train", "--init", "w.pth"]], ids=lambda words: words[0])
def test_every_command_that_opens_weights_takes_an_entry(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    write_picture(tmp_path / "a.png")
    write(tmp_path / "w.pth", {"model": S, "teacher": T})
    (tmp_path / "config.json").write_text(json.dumps({"architecture": NAME, "model_args": TINY}))
    if words[0] == "train":
        (tmp_path / "config.json").unlink()
        options = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
        words = [*words, "--model", NAME, *(f"--{name.replace('_', '-')}={n}" for name, n in options.items()),
                 "--new-head", "--epochs=1", "--train-fraction=0.1"]
    out = ["--out", "x"] if words[0] != "predict" else []
    assert main([*words, *out]) == 0
    assert "entry: model (also in the file: teacher" in capsys.readouterr().out
    assert main([*words, "--entry", "teacher", *([*out[:1], "y"] if out else [])]) == 0
    assert "entry: teacher (also in the file: model" in capsys.readouterr().out
    assert main([*words, "--entry", "ema", *([*out[:1], "z"] if out else [])]) == 1
    assert "it has no entry 'ema'; it has model, teacher" in capsys.readouterr().err
    write(tmp_path / "w.pth", {"first": S, "second": T})
    assert main([*words, *([*out[:1], "u"] if out else [])]) == 1
    assert "several sets of weights, first, second: choose one with --entry NAME" in capsys.readouterr().err
    assert main([*words, "--entry", "second", *([*out[:1], "v"] if out else [])]) == 0


def test_sizes_are_given_to_predict(tmp_path, monkeypatch, capsys):
    """The tensors do not say how many heads there are, and an image size may be another."""
    monkeypatch.chdir(tmp_path)
    write_picture(tmp_path / "a.png")
    write(tmp_path / "w.pth", S)
    words = ["predict", "a.png", "--checkpoint", "w.pth", "--model", NAME, "--embed-dim", "16", "--depth", "2"]

    def shares(*more):
        assert main([*words, *more]) == 0
        return capsys.readouterr().out

    two, four = shares("--num-heads", "2"), shares("--num-heads=4")
    assert "centre 16×16" in two and two.split("\n\n")[1] != four.split("\n\n")[1]
    assert "a grid of 2×2 → 4×4" in shares("--num-heads=2", "--img-size=32")
    assert main([*words, "--num-heads=3"]) == 1 and "3 heads: choose a multiple" in capsys.readouterr().err
    assert main(["predict", "a.png", "--checkpoint", "w.pth", "--img-size", "32"]) == 1
    assert "name the model" in capsys.readouterr().err
    for option in ("--num-heads=3", "--norm_eps=1e-6"):     # these there are for some models
        assert main(["predict", "a.png", "--checkpoint", "w.pth", option]) == 2
        name = option.split("=")[0].replace("_", "-")
        assert f"{name} is an option of the model: for third-party weights, name the model too, with --model NAME" in (
            capsys.readouterr().err
        )
    # With a config.json, the model is known before the options are read; the file comes first.
    (tmp_path / "config.json").write_text(json.dumps({"architecture": NAME, "model_args": TINY}))
    said = []
    for heads in ("2", "4"):
        assert main(["predict", "--num-heads", heads, "w.pth", "a.png"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] != said[1]
    assert main(["predict", "--model", NAME, "--help"]) == 0
    text = capsys.readouterr().out
    assert "RUN IMAGE" in text and "--num-heads" in text
    assert "--drop-path-rate" not in text and "--num-classes" not in text


# --- as PyTorch writes them ---


@pytest.mark.slow
@pytest.mark.parity
def test_wrappers_of_pytorch(tmp_path):
    """AveragedModel, DataParallel, torch.compile of a part, and a module with a criterion: the model's own weights."""
    timm = import_timm()
    import torch

    def vit(seed):
        return randomise(timm.create_model(NAME, **TINY), seed)

    student, teacher = vit(1), vit(2)
    averaged = torch.optim.swa_utils.AveragedModel(student)
    partly = vit(1)
    partly.blocks[0].attn = torch.compile(partly.blocks[0].attn)

    class Lit(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.criterion = student, torch.nn.BCEWithLogitsLoss(pos_weight=torch.ones(4))
            self.teacher = teacher
            self.register_buffer("center", torch.zeros(1, 4))

    saved = {
        "averaged": averaged.state_dict(),
        "reference": {"model": teacher.state_dict(), "model_ema": averaged.state_dict()},
        "parallel": torch.nn.DataParallel(student).state_dict(), "partly": {"model": partly.state_dict()},
        "lightning": {"state_dict": Lit().state_dict(), "pytorch-lightning_version": "2.1"},
        "compiled": {"model": torch.compile(student).state_dict(), "teacher": teacher.state_dict()},
    }
    expected = student.state_dict()
    for name, tree in saved.items():
        torch.save(tree, tmp_path / f"{name}.pth")
        found = read_weights(tmp_path / f"{name}.pth")
        assert found.keys() == expected.keys(), name
        assert all(np.array_equal(found[key], expected[key]) for key in expected), name


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("prefix", ["", "model.", "net.backbone.", "module."])
def test_other_libraries_names_under_a_prefix(tmp_path, prefix):
    """The prefix comes before the library's own."""
    transformers = import_transformers()
    import torch

    models = import_torchvision().models
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                                    image_size=16, patch_size=8, num_labels=4)
    theirs = {
        "vit": models.VisionTransformer(16, 8, 1, 2, 16, 64, num_classes=4), "resnet": models.resnet18(num_classes=4),
        "swin": models.swin_t(num_classes=4), "hf": transformers.ViTForImageClassification(config),
        "hf resnet": transformers.ResNetForImageClassification(transformers.ResNetConfig(
            hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=4)),
    }
    names = {"vit": (NAME, {"embed_dim": 16, "depth": 1, "num_heads": 2}), "hf": (NAME, {"embed_dim": 16, "depth": 1,
             "num_heads": 2}), "resnet": ("resnet18", {}), "hf resnet": ("resnet18", {}),
             "swin": ("swin_tiny_patch4_window7_224", {})}
    for kind, peer in theirs.items():
        state = randomise(peer).state_dict()
        torch.save(state, tmp_path / "plain.pth")
        beside = {"criterion.weight": torch.ones(4)} if prefix else {}
        torch.save({"state_dict": under(prefix, state) | beside}, tmp_path / "wrapped.pth")
        name, options = names[kind]
        expected = open_model(tmp_path / "plain.pth", name, **options).model.state_dict()
        assert same(open_model(tmp_path / "wrapped.pth", name, **options).model.state_dict(), expected), kind
