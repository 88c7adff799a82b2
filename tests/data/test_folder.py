"""The user's own pictures: what Pillow makes of them, how a folder is read, and what is said of a bad one."""

import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from scratchvit.data import ImageFolder, Loader, Normalize, load, load_image
from scratchvit.data.images import SUFFIXES
from scratchvit.errors import ScratchvitError
from tests.support.data_samples import SHARED, write_image_folder, write_picture
from tests.support.seeds import seeded


def save(path, array):
    Image.fromarray(np.asarray(array, np.uint8)).save(path)
    return path


def halves(height, width):
    """Left half red, right half blue."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, : width // 2, 0] = 255
    picture[:, width // 2 :, 2] = 255
    return picture


def test_a_picture_of_the_right_size_is_left_alone(tmp_path):
    pixels = seeded(0).integers(0, 256, (9, 9, 3), np.uint8)
    image = load_image(save(tmp_path / "a.png", pixels), 9)
    assert image.dtype == np.uint8
    assert np.array_equal(image, pixels)


@pytest.mark.parametrize("shape", [(20, 60), (60, 20)])
def test_shorter_side_is_resized_and_the_centre_kept(tmp_path, shape):
    pixels = seeded(0).integers(0, 256, (*shape, 3), np.uint8)
    height, width = (side // 2 for side in shape)
    whole = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - 10) // 2, (width - 10) // 2
    assert np.array_equal(
        load_image(save(tmp_path / "a.png", pixels), 10), whole[top : top + 10, left : left + 10]
    )


def test_shrinking_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64, 3))
    stripes[:, ::2] = 255
    assert np.abs(load_image(save(tmp_path / "a.png", stripes), 8).astype(int) - 127).max() < 12


def test_exif_orientation_is_honoured(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: turn clockwise to see it upright
    Image.fromarray(halves(16, 16)).save(tmp_path / "turned.png", exif=exif)
    image = load_image(tmp_path / "turned.png", 16)
    assert np.array_equal(image, np.rot90(halves(16, 16), -1))


def test_every_kind_of_picture_becomes_rgb_or_grey(tmp_path):
    grey = np.arange(64).reshape(8, 8)
    colour = np.stack([grey] * 3, axis=-1)
    assert np.array_equal(load_image(save(tmp_path / "grey.png", grey), 8), colour)
    assert np.array_equal(load_image(save(tmp_path / "rgb.png", colour), 8, channels=1), grey[..., None])

    Image.fromarray((grey * 1024).astype(np.uint16)).save(tmp_path / "deep.png")  # 16 bits are scaled, not cut
    assert np.array_equal(load_image(tmp_path / "deep.png", 8), colour * 4)

    clear = np.concatenate([colour, np.full((8, 8, 1), 7)], axis=-1)
    assert np.array_equal(load_image(save(tmp_path / "alpha.png", clear), 8), colour)

    palette = Image.fromarray(colour.astype(np.uint8)).quantize(64)
    palette.save(tmp_path / "palette.png", transparency=bytes(range(64)))
    assert load_image(tmp_path / "palette.png", 8).shape == (8, 8, 3)

    with pytest.raises(ScratchvitError, match="channels=4"):
        load_image(tmp_path / "rgb.png", 8, channels=4)


@pytest.mark.parametrize("suffix", [".tif", ".png"])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_grey_values_are_divided_by_the_range_that_they_use(tmp_path, suffix, bits):
    grey = np.arange(256).reshape(16, 16)
    values = (grey << (bits - 8)) + seeded(bits).integers(0, 1 << (bits - 8), grey.shape)
    kinds = [np.uint16, np.int32] if suffix == ".tif" else [np.uint16]
    for kind in kinds:
        Image.fromarray(values.astype(kind)).save(tmp_path / f"grey{suffix}")
        assert np.array_equal(load_image(tmp_path / f"grey{suffix}", 16, channels=1)[..., 0], grey)


@pytest.mark.parametrize("values", [(0, 1 << 16), (-1, 255), (0, 2**31 - 1)])
def test_integers_without_a_defined_range_are_refused(tmp_path, values):
    Image.fromarray(np.array([values], np.int32)).save(tmp_path / "grey.tif")
    with pytest.raises(ScratchvitError, match=rf"its integers go from {values[0]} to {values[1]}, a range that is not"):
        load_image(tmp_path / "grey.tif", 8)


@pytest.mark.parametrize("highest", [255, 4095, 65535])
def test_a_pgm_says_its_range(tmp_path, highest):
    grey = np.arange(256).reshape(16, 16) * 16 // 16     # dark: a 16th of the range is used at most
    content = (grey if highest == 65535 else grey * highest // 65535).astype(">u2" if highest > 255 else "u1")
    (tmp_path / "grey.pgm").write_bytes(b"P5 16 16 %d\n" % highest + content.tobytes())
    assert load_image(tmp_path / "grey.pgm", 16).max() <= 1


def deep_png(path, values):
    """An RGB PNG of 16 bits a channel, which Pillow cannot write. values (H, W, 3)."""
    height, width, _ = values.shape

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def test_colours_of_12_bits_in_16_are_not_taken_for_black(tmp_path):
    values = seeded(0).integers(1 << 10, 1 << 12, (8, 8, 3))
    assert np.array_equal(load_image(deep_png(tmp_path / "full.png", values << 4), 8), values >> 4)
    with pytest.raises(ScratchvitError, match="its 16-bit colours use 12 bits or fewer"):
        load_image(deep_png(tmp_path / "low.png", values), 8)
    assert load_image(deep_png(tmp_path / "black.png", values * 0), 8).max() == 0


def test_the_endings_of_pictures_are_those_that_pillow_decodes():
    endings = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    only_recognised = {".bufr", ".grib", ".h5", ".hdf", ".iim", ".mpg", ".mpeg"}
    by_another_program = {".eps", ".ps", ".wmf", ".emf"}
    no_grey_values = {".fit", ".fits"}
    assert endings - SUFFIXES == only_recognised | by_another_program | no_grey_values
    of_newer_versions = {".avif", ".avifs"}     # since Pillow 11.3; an older one says that it cannot decode them
    assert SUFFIXES - endings - of_newer_versions == {".mpo"}       # opened as JPEG


def test_a_sliver_costs_no_memory(tmp_path):
    assert load_image(save(tmp_path / "sliver.png", np.zeros((1, 60000))), 224).shape == (224, 224, 3)


def png_of_size(width, height):
    """A PNG that announces a size and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\x00" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def bad_pictures(folder):
    """Files that are no pictures, each in its own way."""
    jpeg = write_picture(folder / "whole.jpg", size=(64, 64)).read_bytes()
    return {
        "text.jpg": b"hello",
        "empty.png": b"",
        "cut.jpg": jpeg[: len(jpeg) * 2 // 3],
        "bomb.png": png_of_size(60000, 60000),
        "hollow.png": png_of_size(100, 100),
        "broken.png": png_of_size(100, 100)[:40] + b"\x00" * 30,
        "float.tif": _float_tiff(folder / "float.tif"),
    }


def _float_tiff(path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(path)
    return path.read_bytes()


def test_a_bad_picture_is_named(tmp_path):
    for name, content in bad_pictures(tmp_path).items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ScratchvitError, match="this picture cannot be decoded") as caught:
            load_image(tmp_path / name, 8)
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(ScratchvitError, match=r"absent\.png: no such picture"):
        load_image(tmp_path / "absent.png", 8)


def test_folder_with_train_val_and_test(tmp_path):
    root = write_image_folder(tmp_path / "insects", ("train", "val", "test"))
    (root / "train" / "ant" / ".hidden.png").write_bytes(b"no picture")
    (root / "train" / "ant" / "notes.txt").write_text("no picture")
    splits = load(root, img_size=8)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [20, 20, 20]
    assert (splits.train.classes, splits.train.name) == (("ant", "bee"), "insects")
    assert splits.train.image_shape == (8, 8, 3)
    assert splits.train.labels.tolist() == [0] * 10 + [1] * 10
    assert all("are also in" in note for note in splits.notes)      # the same colours in all three
    assert splits.train.images([3, 12])[:, 0, 0].tolist() == [[60, 0, 7], [40, 100, 7]]


def test_folder_without_val_and_test_draws_both_and_says_so(tmp_path):
    root = write_image_folder(tmp_path, ("train",))
    splits = load(root, img_size=4, val_fraction=0.25, seed=5)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [12, 4, 4]
    assert [note.split(":")[0] for note in splits.notes] == ["test", "val"]
    assert all("seed 5" in note for note in splits.notes)
    paths = [set(part.paths) for part in (splits.train, splits.val, splits.test)]
    assert len(set.union(*paths)) == 20
    assert load(root, img_size=4, val_fraction=0.25, seed=5).test.paths == splits.test.paths
    assert load(root, img_size=4, val_fraction=0.25, seed=6).test.paths != splits.test.paths


def test_pictures_are_decoded_once_when_they_fit(tmp_path, monkeypatch):
    root = write_image_folder(tmp_path, ("train", "test"))
    dataset = load(root, img_size=8).test
    first = dataset.images(range(20))
    for path in dataset.paths:
        path.unlink()
    assert np.array_equal(dataset.images(range(20)), first)
    assert np.array_equal(dataset.subset([7]).images([0]), first[7:8])

    monkeypatch.setattr("scratchvit.data.folder.CACHE_BYTES", 0)
    lean = load(write_image_folder(tmp_path, ("test",)), img_size=8).test
    lean.images([0])
    lean.paths[0].unlink()
    with pytest.raises(ScratchvitError, match="no such picture"):
        lean.images([0])


def test_folders_that_do_not_hold_together(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(ScratchvitError, match="no folder train"):
        load(root, img_size=8)
    (root / "train").mkdir()
    with pytest.raises(ScratchvitError, match="train: no class folders"):
        load(root, img_size=8)
    write_image_folder(root)
    with pytest.raises(ScratchvitError, match="img_size="):
        load(root)
    write_picture(root / "test" / "wasp" / "0.png")
    with pytest.raises(ScratchvitError, match=r"test: its classes differ from those of .*: wasp"):
        load(root, img_size=8)
    (root / "train" / "wasp").mkdir()
    with pytest.raises(ScratchvitError, match="wasp: no pictures in this class folder"):
        load(root, img_size=8)


def test_bad_pictures_stop_a_run_or_are_left_out(tmp_path):
    root = write_image_folder(tmp_path / "root")
    bad = bad_pictures(tmp_path)
    for name, content in bad.items():
        (root / "train" / "bee" / name).write_bytes(content)

    train = load(root, img_size=8, val_fraction=0).train
    loader = Loader(train, 4, Normalize((0.5,) * 3, (0.5,) * 3))
    with pytest.raises(ScratchvitError, match=r"bee[/\\]bomb\.png: this picture cannot be decoded"):
        list(loader)

    splits = load(root, img_size=8, val_fraction=0, skip_bad=True)
    assert len(splits.train) == 20
    assert sorted(text.split(":")[0] for text in splits.skipped) == sorted(
        str(root / "train" / "bee" / name) for name in bad
    )
    assert len(list(Loader(splits.train, 4, loader.transform))) == 5


def test_a_class_without_one_good_picture_is_named(tmp_path):
    root = write_image_folder(tmp_path, per_class=2)
    for path in (root / "test" / "bee").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(ScratchvitError, match=r"test[/\\]bee: no picture of this class can be decoded"):
        load(root, img_size=8, skip_bad=True)


CIFAR_JPEG = SHARED / "cifar10-jpeg" / "cifar10_jpeg.tar.xz"


@pytest.mark.skipif(not CIFAR_JPEG.is_file(), reason="../shared/data/cifar10-jpeg is not here")
def test_real_pictures(tmp_path):
    with tarfile.open(CIFAR_JPEG) as archive:
        for count, member in enumerate(archive):
            if count > 60:
                break
            archive.extract(member, tmp_path, filter="data")
    birds = ImageFolder.scan(tmp_path / "train", 32)
    assert birds.classes == ("bird",)
    images = birds.images(range(len(birds)))
    assert images.shape == (len(birds), 32, 32, 3)
    assert 60 < images.mean() < 190
    assert images.std() > 30
