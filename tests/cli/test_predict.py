"""`scratchvit predict` and the names of classes, with runs and weights that are made here."""

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import scratchvit as sv
from scratchvit.cli import main, predict
from scratchvit.errors import ScratchvitError
from scratchvit.models import create_model
from scratchvit.training.checkpoint import Checkpoint, save_checkpoint
from scratchvit.weights.labels import class_names, read_labels
from tests.support.data_samples import write_picture
from tests.support.peers import import_timm, import_torchvision
from tests.support.seeds import moved, seeded

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 4}
ANIMALS = ["ant", "bee", "cat", "dog"]
NAME = "vit_tiny_patch16_224"


@pytest.fixture
def run(tmp_path):
    return save_run(tmp_path / "run")


def save_run(folder, classes=ANIMALS):
    """The folder of a run whose weights are as they were drawn."""
    options = TINY | {"in_chans": 1}
    about = {"name": "zoo", "classes": classes, "image_shape": [16, 16, 1], "mean": [0.4], "std": [0.2]}
    weights = create_model(NAME, **options, seed=3).state_dict()
    folder.mkdir()
    save_checkpoint(folder / "best.safetensors", Checkpoint({}, NAME, options, about, {}, weights))
    return folder


@pytest.fixture
def weights(tmp_path):
    """A folder as timm saves it: weights and what pictures they want."""
    return save_as_timm(tmp_path / "timm", create_model(NAME, **TINY, seed=3))


def save_as_timm(folder, model, **more):
    folder.mkdir()
    safetensors.numpy.save_file(model.state_dict(), folder / "model.safetensors")
    cfg = {"input_size": [3, 16, 16], "crop_pct": 0.5, "crop_mode": "squash", "interpolation": "nearest",
           "mean": [0.5] * 3, "std": [0.25] * 3}
    config = {"architecture": NAME, "num_classes": 4, "model_args": TINY, "pretrained_cfg": cfg, "label_names": ANIMALS}
    (folder / "config.json").write_text(json.dumps(config | more))
    return folder / "model.safetensors"


def pictures(folder, count):
    folder.mkdir(exist_ok=True)
    for i in range(count):
        pixels = seeded(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return folder


def blocks(out):
    """The header, not as it is wrapped, and {path: [(share, class), …]}, without the summary of several pictures."""
    header, _, rest = out.partition("\n\n")
    header = " ".join(header.split())
    rest = rest.partition("\n\nclass ")[0]
    found, path = {}, ""
    for line in rest.splitlines():
        if line.startswith("  "):
            share, name = line.split("%  ")
            found[path].append((float(share), name))
        else:
            path = line
            found[path] = []
    return header, found


def refused(capsys, *argv):
    code = main([str(word) for word in argv])
    error = capsys.readouterr().err
    assert "Traceback" not in error and error.count("\n") == 1, error
    return error, code


# --- predict ---


def test_a_run_prepares_pictures_as_its_training_did(run, capsys):
    pictures(run, 1)
    for checkpoint in (run, run / "best.safetensors"):
        assert main(["predict", str(run / "00.png"), "--checkpoint", str(checkpoint)]) == 0
        header, found = blocks(capsys.readouterr().out)
        assert f"model {NAME} from {checkpoint}" in header and "centre square to 16×16" in header
        assert "classes 4, names from zoo" in header
        model = create_model(NAME, **TINY, in_chans=1, seed=3).eval()
        x = sv.data.Normalize([0.4], [0.2])(sv.data.load_image(run / "00.png", 16, 1)[None])
        expected = model(x).softmax(-1).numpy()[0]
        shares = {name: share for share, name in found[str(run / "00.png")]}
        assert shares == {name: pytest.approx(100 * p, abs=0.006) for name, p in zip(ANIMALS, expected)}


def test_the_run_comes_before_the_pictures(run, capsys):
    """Or is named by --checkpoint, in any place."""
    pictures(run, 2)
    images = [str(run / "00.png"), str(run / "01.png")]
    assert main(["predict", str(run), *images]) == 0
    out = capsys.readouterr().out
    assert len(blocks(out)[1]) == 2
    for words in ([*images, "--checkpoint", str(run)], ["--checkpoint", str(run), *images], [str(run), str(run)]):
        assert main(["predict", *words]) == 0 and capsys.readouterr().out == out
    error, code = refused(capsys, "predict", images[0], run)
    assert "is a picture, and the run comes first" in error and code == 2
    error, code = refused(capsys, "predict", run)
    assert "name pictures too" in error and code == 2


def test_results_for_programs(run, capsys):
    pictures(run, 2)
    (run / "bad.png").write_bytes(b"no picture")
    words = ["predict", str(run), str(run), "--skip-bad", "--top-k", "2", "--json"]
    assert main(words) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert (result["model"], result["left_out"], result["checkpoint"]) == (NAME, 1, str(run))
    found = blocks("\n".join(lines[:-1]))[1]
    assert [one["file_name"] for one in result["pictures"]] == [Path(path).as_posix() for path in found]
    for one, said in zip(result["pictures"], found.values()):
        assert [(each["class"], pytest.approx(share, abs=0.006)) for each, (share, _) in zip(one["classes"], said)] == [
            (name, 100 * each["probability"]) for each, (_, name) in zip(one["classes"], said)
        ]
    assert main([*words, "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out) == result


def test_a_head_larger_than_the_data_of_the_run(tmp_path, capsys):
    write_picture(tmp_path / "a.png")
    run = save_run(tmp_path / "run", ANIMALS[:2])
    assert main(["predict", "a.png", "--checkpoint", str(run)]) == 0
    header, found = blocks(capsys.readouterr().out)
    assert "no names" in header and {name for _, name in found["a.png"]} == {f"class {i}" for i in range(4)}


def test_weights_prepare_pictures_as_their_file_says(weights, capsys):
    """Blocks of four colours, of 8 pixels; squashed to 32 × 32 and cut, the middle of each corner remains."""
    corners = np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 0]]], np.uint8)
    Image.fromarray(corners.repeat(8, 0).repeat(8, 1)).save("corners.png")
    assert main(["predict", "corners.png", "--checkpoint", str(weights), "--top-k", "2"]) == 0
    header, found = blocks(capsys.readouterr().out)
    assert "squashed to 32×32 (nearest), centre 16×16, mean 0.5, std 0.25" in header
    assert f"({weights.with_name('config.json')})" in header and "classes 4, names from" in header
    x = (corners.repeat(8, 0).repeat(8, 1).transpose(2, 0, 1)[None] / 255 - 0.5) / 0.25
    expected = create_model(NAME, **TINY, seed=3).eval()(x.astype(np.float32)).softmax(-1).numpy()[0]
    first, second = np.argsort(-expected)[:2]
    assert [name for _, name in found["corners.png"]] == [ANIMALS[first], ANIMALS[second]]
    assert [share for share, _ in found["corners.png"]] == pytest.approx(100 * expected[[first, second]], abs=0.006)


def test_a_folder_is_all_its_pictures_in_batches(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict, "BATCH", 3)
    folder = pictures(tmp_path / "photos", 7)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture")
    assert main(["predict", str(folder), "--checkpoint", str(weights)]) == 0
    _, together = blocks(capsys.readouterr().out)
    assert list(together) == [str(folder / f"{i:02}.png") for i in range(7)]
    for path, shares in together.items():
        assert len(shares) == 4 and shares == sorted(shares, reverse=True)          # as many as there are classes
        assert main(["predict", path, "--checkpoint", str(weights)]) == 0
        alone = blocks(capsys.readouterr().out)[1][path]
        assert [name for _, name in alone] == [name for _, name in shares]
        assert [share for share, _ in alone] == pytest.approx([share for share, _ in shares], abs=0.011)
    assert len({tuple(shares) for shares in together.values()}) == 7
    assert main(["predict", path, path, "--checkpoint", str(weights)]) == 0
    assert capsys.readouterr().out.count(f"{path}\n") == 2


def test_labels_of_the_user_come_first(weights, run, capsys):
    pictures(run, 1)
    (run / "names.txt").write_text("eins\nzwei\ndrei\nvier\n")
    for checkpoint in (weights, run):
        words = [run / "00.png", "--checkpoint", checkpoint, "--labels", run / "names.txt"]
        assert main(["predict", *map(str, words)]) == 0
        header, found = blocks(capsys.readouterr().out)
        assert "names from" in header and "names.txt" in header
        assert {name for _, name in found[str(run / "00.png")]} == {"eins", "zwei", "drei", "vier"}
    (run / "names.txt").write_text("one\ntwo\n")
    for checkpoint in (weights, run):
        error, code = refused(
            capsys, "predict", run / "00.png", "--checkpoint", checkpoint, "--labels", run / "names.txt"
        )
        assert "names.txt names 2 classes, the model has 4" in error and code == 1


def test_without_names_there_are_numbers(tmp_path, capsys):
    weights = save_as_timm(tmp_path / "timm", create_model(NAME, **TINY), label_names=None)
    write_picture(tmp_path / "a.png")
    assert main(["predict", "a.png", "--checkpoint", str(weights), "--top-k", "1"]) == 0
    header, found = blocks(capsys.readouterr().out)
    assert "no names: give them with --labels FILE" in header
    assert found["a.png"][0][1] in {f"class {i}" for i in range(4)}


def test_a_model_for_grey_pictures(tmp_path, capsys):
    model = create_model(NAME, **TINY, in_chans=1)
    weights = save_as_timm(tmp_path / "timm", model, model_args=TINY | {"in_chans": 1})
    write_picture(tmp_path / "a.png")
    assert main(["predict", "a.png", "--checkpoint", str(weights)]) == 0
    assert "grey, mean 0.5, std 0.25" in blocks(capsys.readouterr().out)[0]


def test_weights_that_cannot_tell_classes(tmp_path, capsys):
    write_picture(tmp_path / "a.png")
    bare = save_as_timm(tmp_path / "bare", create_model(NAME, **TINY | {"num_classes": 0}))
    error, code = refused(capsys, "predict", "a.png", "--checkpoint", bare)
    assert "has no classification head" in error and code == 1
    four = create_model(NAME, **TINY, in_chans=4)
    error, code = refused(capsys, "predict", "a.png", "--checkpoint", save_as_timm(tmp_path / "four", four))
    assert "takes images of 4 channels: picture files have 3 (RGB) or 1 (grey)" in error and code == 1
    broken = create_model(NAME, **TINY)
    broken.head.bias.assign(np.nan)
    error, code = refused(capsys, "predict", "a.png", "--checkpoint", save_as_timm(tmp_path / "broken", broken))
    assert f"a.png: the outputs of {NAME} are not finite" in error and code == 1


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_results_in_a_file_and_in_sum(run, tmp_path, capsys, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    folder = pictures(tmp_path / "many", 5)
    (folder / "00.png").rename(folder / "a,b;\u732b.png")
    assert main(["predict", str(run), "many", "--top-k", "2", "--out", f"found.{suffix}", "--json"]) == 0
    out = capsys.readouterr().out
    expected = json.loads(out.splitlines()[-1])["pictures"]
    if suffix == "json":
        assert json.loads(Path("found.json").read_text("utf-8")) == expected
    else:
        with Path("found.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["file_name"] for row in rows] == [one["file_name"] for one in expected]
        for row, one in zip(rows, expected):
            assert [row["class_1"], row["class_2"]] == [each["class"] for each in one["classes"]]
            assert float(row["probability_2"]) == pytest.approx(one["classes"][1]["probability"], rel=1e-5)
    summary = out.partition("\nclass ")[2].splitlines()
    counts = dict(line.split() for line in summary[1:] if line and not line.startswith(("wrote", "{")))
    assert counts.pop("all") == "5" and sum(map(int, counts.values())) == 5
    best = [one["classes"][0]["class"] for one in expected]
    assert {name: int(count) for name, count in counts.items()} == {name: best.count(name) for name in best}


def test_one_picture_has_no_summary(run, tmp_path, capsys):
    assert main(["predict", str(run), str(pictures(tmp_path / "one", 1))]) == 0
    assert "pictures" not in capsys.readouterr().out


@pytest.mark.parametrize(("words", "sentence"), [
    ("run a.png --out absent/found.csv", "absent/found.csv cannot be written: there is no folder absent"),
    ("a.png --checkpoint run --model resnet50", "run is a checkpoint and says which model it is: leave out --model"),
    ("a.png --checkpoint absent.pth", "absent.pth: there is no such file"),
    ("a.png --checkpoint other.safetensors", "there is no config.json that says which model"),
    ("a.png --checkpoint other.safetensors --model vit_tiny_patch16_225", "did you mean"),
    ("a.png --checkpoint cut.safetensors --model resnet50", "cut.safetensors"),
    ("a.png --checkpoint empty", "empty: this folder has none of model.safetensors"),
    ("empty --checkpoint run", "empty: no pictures in this folder"),
    ("absent.png --checkpoint run", "absent.png: no such picture"),
    ("a.png --checkpoint run --labels absent.txt", "absent.txt: no such file of class names"),
])
def test_bad_input_is_one_sentence_and_exit_1(run, capsys, tmp_path, words, sentence):
    write_picture(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    content = safetensors.numpy.save(create_model(NAME, **TINY).state_dict())
    (tmp_path / "other.safetensors").write_bytes(content)
    (tmp_path / "cut.safetensors").write_bytes(content[:3000])
    error, code = refused(capsys, "predict", *words.split())
    assert error.startswith("scratchvit: ") and sentence in error and code == 1


def test_pictures_that_do_not_decode(run, capsys, tmp_path):
    write_picture(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    words = ["predict", "bad.png", "good.png", "--checkpoint", str(run)]
    error, code = refused(capsys, *words)
    assert "bad.png" in error and "cannot be decoded" in error and code == 1
    assert main([*words, "--skip-bad"]) == 0
    captured = capsys.readouterr()
    assert "--skip-bad" not in captured.err     # which was just done
    assert "left out: bad.png" in captured.err and "\ngood.png\n" in captured.out
    assert captured.out.endswith("1 of 2 pictures left out\n")
    assert main(["predict", "bad.png", "--checkpoint", str(run), "--skip-bad"]) == 1
    assert "none of the pictures can be decoded" in capsys.readouterr().err


def test_what_was_done_to_the_weights_is_said(tmp_path, capsys):
    write_picture(tmp_path / "a.png")
    model = create_model(NAME, **TINY | {"img_size": 32})       # its configuration says 16
    assert main(["predict", "a.png", "--checkpoint", str(save_as_timm(tmp_path / "timm", model))]) == 0
    header, _ = blocks(capsys.readouterr().out)
    assert f"adapted: the model, to the file's img_size 32 ({NAME} has 16)" in header
    assert "squashed to 64×64 (nearest), centre 32×32" in header


def test_names_cannot_steer_or_break_the_terminal(tmp_path, capsys):
    names = ["\x1b[2J", "two\nlines", "\ud800", "Füße 犬"]
    weights = save_as_timm(tmp_path / "timm", create_model(NAME, **TINY), label_names=names)
    # As Linux gives a name that is not in UTF-8; elsewhere there are none.
    picture, shown = (os.fsdecode(b"caf\xe9.png"), r"caf\udce9.png") if sys.platform == "linux" else ("café.png",) * 2
    write_picture(tmp_path / "a.png").rename(tmp_path / picture)
    assert main(["predict", picture, "--checkpoint", str(weights)]) == 0
    out = capsys.readouterr().out
    out.encode()                                # as it is, a surrogate cannot be
    _, found = blocks(out)
    assert {name for _, name in found[shown]} == {r"\x1b[2J", r"two\nlines", r"\ud800", "Füße 犬"}


def test_a_folder_that_cannot_be_read(run, capsys, monkeypatch, tmp_path):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    monkeypatch.setattr("os.scandir", refuse)
    error, code = refused(capsys, "predict", tmp_path, "--checkpoint", run)
    assert "the folder cannot be read (Permission denied)" in error and code == 1
    with pytest.raises(ScratchvitError, match="the folder cannot be read"):
        read_labels(tmp_path)


# --- names of classes ---


@pytest.mark.parametrize(("file", "content", "expected"), [
    ("a.txt", "ant\nbee cat\n\n", ["ant", "bee cat"]),
    ("bom.txt", "\ufeffant\r\nbée\r\n", ["ant", "bée"]),
    ("LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca\nn01443537 cod\n", ["tench, Tinca tinca", "cod"]),
    ("synsets.txt", "n01440764\nn01443537\n", ["n01440764", "n01443537"]),
    ("a.json", '["ant", "bee"]', ["ant", "bee"]),
    ("a.json", '{"1": "bee", "0": "ant"}', ["ant", "bee"]),
    ("a.json", json.dumps({str(i): f"c{i}" for i in (10, *range(10))}), [f"c{i}" for i in range(11)]),
    ("imagenet_class_index.json", '{"0": ["n01440764", "tench"], "1": ["n01443537", "cod"]}', ["tench", "cod"]),
    ("class_to_idx.json", '{"bee": 1, "ant": 0}', ["ant", "bee"]),
    ("config.json", '{"model_type": "vit", "id2label": {"0": "tench", "1": "cod"}}', ["tench", "cod"]),
    ("config.json", '{"label_names": ["n1", "n2"], "label_descriptions": {"n2": "two"}}', ["n1", "two"]),
    ("config.json", '{"pretrained_cfg": {"label_names": {"0": "a", "1": "b"}}}', ["a", "b"]),
])
def test_files_of_class_names(tmp_path, file, content, expected):
    (tmp_path / file).write_text(content, encoding="utf-8", newline="")
    assert read_labels(tmp_path / file) == expected
    assert class_names(len(expected), tmp_path / file) == (expected, f"names from {tmp_path / file}")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_class_names_in_the_encodings_that_editors_write(tmp_path, encoding):
    (tmp_path / "a.txt").write_text("Käfer\n蜂\n", encoding=encoding)
    (tmp_path / "a.json").write_text('["Käfer", "蜂"]', encoding=encoding)
    (tmp_path / "config.json").write_text('{"id2label": {"0": "Käfer", "1": "蜂"}}', encoding=encoding)
    assert all(read_labels(tmp_path / name) == ["Käfer", "蜂"] for name in ("a.txt", "a.json", "config.json"))
    assert class_names(2, None, tmp_path / "w.pth")[0] == ["Käfer", "蜂"]


def test_a_folder_of_class_folders_names_them_sorted(tmp_path):
    for name in ("dog", "cat", "ant", ".cache"):
        (tmp_path / "photos" / "train" / name).mkdir(parents=True)
    (tmp_path / "photos" / "train" / "list.txt").write_text("no class")
    assert read_labels(tmp_path / "photos" / "train") == read_labels(tmp_path / "photos") == ["ant", "cat", "dog"]
    (tmp_path / "bare").mkdir()
    with pytest.raises(ScratchvitError, match="bare has no class folders"):
        read_labels(tmp_path / "bare")


FOLDERS = [
    (("10", "2", "1"), ["1", "10", "2"], ["1", "2", "10"]),
    (("dog", "Cat", "ant"), ["Cat", "ant", "dog"], ["ant", "Cat", "dog"]),
    (("class_9", "class_10", "Class_1"), ["Class_1", "class_10", "class_9"], ["Class_1", "class_9", "class_10"]),
    (("1a", "01", "b"), ["01", "1a", "b"], ["01", "1a", "b"]),
    (("n02", "n1", "n10"), ["n02", "n1", "n10"], ["n1", "n02", "n10"]),
    (("Émile", "zoo", "Zebra"), ["Zebra", "zoo", "Émile"], ["Zebra", "zoo", "Émile"]),
]


@pytest.mark.parametrize(("names", "torchvisions", "timms"), FOLDERS, ids=str)
def test_the_order_of_class_folders_is_asked_for_where_libraries_differ(tmp_path, names, torchvisions, timms):
    for name in names:
        (tmp_path / name).mkdir()
    assert read_labels(tmp_path, "torchvision") == torchvisions and read_labels(tmp_path, "timm") == timms
    if torchvisions == timms:
        assert read_labels(tmp_path) == timms
        return
    first = next(i for i, (a, b) in enumerate(zip(torchvisions, timms)) if a != b)
    with pytest.raises(ScratchvitError) as caught:
        read_labels(tmp_path)
    assert f"class {first} is {torchvisions[first]!r} in the order of torchvision" in str(caught.value)
    assert f"{timms[first]!r} in that of timm: " in str(caught.value) and "--label-order" in str(caught.value)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names that differ by case only")
@pytest.mark.parametrize("names", [("cat", "Cat", "dog"), ("n1", "n01", "n2")])
def test_classes_that_timm_orders_at_random(tmp_path, names):
    for name in names:
        (tmp_path / name).mkdir()
    assert read_labels(tmp_path, "torchvision") == sorted(names)
    for order in (None, "timm"):
        with pytest.raises(ScratchvitError, match=f"timm has no fixed order for '{names[1]}' and '{names[0]}'"):
            read_labels(tmp_path, order)


@pytest.mark.parity
@pytest.mark.parametrize(("names", "torchvisions", "timms"), FOLDERS, ids=str)
def test_the_orders_are_those_of_torchvision_and_timm(tmp_path, names, torchvisions, timms):
    for name in names:
        write_picture(tmp_path / name / "a.png")
    timm = import_timm()
    found = import_torchvision().datasets.ImageFolder(tmp_path).class_to_idx
    assert sorted(found, key=found.get) == torchvisions
    found = timm.data.readers.reader_image_folder.find_images_and_targets(str(tmp_path))[1]
    assert sorted(found, key=found.get) == timms


def test_predict_asks_for_the_order_of_class_folders(weights, run, tmp_path, capsys):
    write_picture(tmp_path / "a.png")
    for name in ("10", "9", "8", "7"):
        (tmp_path / "classes" / name).mkdir(parents=True)
    words = ["predict", "a.png", "--checkpoint", str(weights), "--labels", "classes"]
    error, code = refused(capsys, *words)
    assert "class 0 is '10' in the order of torchvision" in error and code == 1
    assert main([*words, "--label-order", "timm"]) == 0
    assert "names from classes in the order of timm" in capsys.readouterr().out
    words[3] = str(run)                 # was trained here, in an order that is known
    assert main(words) == 0
    assert "names from classes in the order of torchvision" in capsys.readouterr().out


@pytest.mark.parametrize(("file", "content", "sentence"), [
    ("a.txt", b"", "it is empty"), ("a.txt", b"\n\n", "it is empty"), ("a.txt", b"ant\n\nbee\n", "line 2 is empty"),
    ("a.txt", b"\xff\xfe\x00", "file of class names is not in UTF-16"), ("a.json", b"{", "cannot be read"),
    ("a.txt", b"caf\xe9\n", "file of class names is not in UTF-8"),
    ("a.json", b"3", "expected a list of names"), ("a.json", b"[]", "expected a list of names"),
    ("a.json", b"{}", "expected a list of names"), ("a.json", b'["a", 3]', "a name is not a string"),
    ("a.json", b'["a", []]', "a name is not a string"), ("a.json", b'["a", ""]', "a name is not a string"),
    ("a.json", b'{"0": "a", "2": "b"}', "its numbers must be 0 to 1"), ("a.json", b'{"a": "b"}', "cannot be read"),
    ("a.json", b'{"0": "a", "00": "b"}', "its numbers must be 0 to 1"), ("a.json", b"[" * 100_000, "cannot be read"),
    ("a.json", b'{"label_names": ["a"], "label_descriptions": {"a": 3}}', "a name is not a string"),
    ("a.json", b'{"id2label": 3}', "cannot be read"), ("a.json", b'{"label_names": "ab"}', "cannot be read"),
])
def test_files_of_no_class_names(tmp_path, file, content, sentence):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ScratchvitError, match=sentence) as caught:
        read_labels(tmp_path / file)
    assert str(tmp_path / file) in str(caught.value)


def test_names_beside_the_weights(tmp_path):
    numbered = ["class 0", "class 1"]
    weights = tmp_path / "model.bin"
    assert class_names(2, weights_path=weights) == (numbered, "no names: give them with --labels FILE")
    for config, expected in (
        ({"id2label": {"0": "a", "1": "b"}}, ["a", "b"]),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, numbered),         # transformers' placeholders
        ({"model_type": "vit"}, numbered),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, numbered),           # of another head
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert class_names(2, weights_path=weights)[0] == class_names(2, weights_path=tmp_path)[0] == expected
    assert "has 3 for 2 classes; --labels FILE" in class_names(2, weights_path=weights)[1]
    (tmp_path / "config.json").write_text('{"id2label": {"x": "a"}}')
    with pytest.raises(ScratchvitError, match=r"config\.json: its class names cannot be read"):
        class_names(2, weights_path=weights)


# --- the same answers as theirs ---


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("name", [
    "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_tiny_r_s16_p8_224", "resnet18",
])
def test_the_answers_are_timms(name, tmp_path, capsys):
    timm = import_timm()
    torch = pytest.importorskip("torch")
    from timm.models._hub import save_for_hf

    torch.manual_seed(moved(1))
    model = timm.create_model(name, num_classes=9).eval()
    save_for_hf(model, tmp_path, model_config={"label_names": [f"n{i}" for i in range(9)]}, safe_serialization="both")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    folder = pictures(tmp_path / "photos", 2)
    Image.fromarray(seeded(9).integers(0, 256, (400, 301, 3), np.uint8)).save(folder / "large.jpg")
    for file in ("model.safetensors", "pytorch_model.bin"):
        assert main(["predict", str(folder), "--checkpoint", str(tmp_path / file)]) == 0
        header, found = blocks(capsys.readouterr().out)
        assert header.startswith(f"model {name} from")
        for path, shares in found.items():
            with Image.open(path) as opened, torch.no_grad():
                theirs = model(transform(opened)[None]).softmax(-1)[0]
            top = theirs.topk(5)
            assert [share for share, _ in shares] == pytest.approx(100 * top.values.numpy(), abs=0.006)
            for share, label in shares:
                assert share == pytest.approx(100 * theirs[int(label[1:])].item(), abs=0.006)


@pytest.mark.parity
def test_the_answers_are_those_of_transformers(tmp_path, capsys):
    import_timm()
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(moved(1))
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64,
        id2label={i: f"n{i}" for i in range(6)}, label2id={f"n{i}": i for i in range(6)}, initializer_range=0.3,
    )
    model = transformers.ViTForImageClassification(config).eval()
    processor = transformers.ViTImageProcessorPil(size={"height": 64, "width": 64}, image_mean=[0.4, 0.5, 0.6])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    folder = pictures(tmp_path / "photos", 3)
    assert main(["predict", str(folder), "--checkpoint", str(tmp_path), "--top-k", "6"]) == 0
    header, found = blocks(capsys.readouterr().out)
    assert "squashed to 64×64 (bilinear), mean 0.4 0.5 0.6, std 0.5" in header and "preprocessor_config.json" in header
    for path, shares in found.items():
        with Image.open(path) as opened, torch.no_grad():
            theirs = model(**processor(opened, return_tensors="pt")).logits.softmax(-1)[0]
        assert len(shares) == 6
        for share, label in shares:
            assert share == pytest.approx(100 * theirs[int(label[1:])].item(), abs=0.006)
