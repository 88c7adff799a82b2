"""Downloads, against a server on this machine: the right sum, the wrong sum, no server, no pooch."""

import dataclasses
import functools
import hashlib
import http.server
import sys
import threading

import pytest

from scratchvit.data import cifar, idx, load
from scratchvit.data.sources import Remote, fetch
from scratchvit.errors import ScratchvitError
from tests.support.data_samples import pack, write_cifar, write_mnist


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def served(tmp_path):
    """A folder and the address under which its files can be fetched."""
    pytest.importorskip("pooch", reason="downloads need pooch")
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_a_file_with_the_right_sum_arrives(served, tmp_path):
    folder, url = served
    (folder / "file.bin").write_bytes(b"content")
    path = fetch(Remote(url + "file.bin", md5(folder / "file.bin")), tmp_path / "new" / "cache")
    assert path == tmp_path / "new" / "cache" / "file.bin"
    assert path.read_bytes() == b"content"


@pytest.mark.parametrize("file", ["file.bin", "absent.bin"])
def test_a_wrong_sum_or_a_missing_file_leaves_nothing(served, tmp_path, file):
    folder, url = served
    (folder / "file.bin").write_bytes(b"something else")
    with pytest.raises(ScratchvitError, match=f"{file}: the download into .* failed"):
        fetch(Remote(url + file, "0" * 32), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_server_is_one_sentence(tmp_path):
    pytest.importorskip("pooch", reason="downloads need pooch")
    with pytest.raises(ScratchvitError, match=r"the download into .* failed"):
        fetch(Remote("http://127.0.0.1:9/file.bin", "0" * 32), tmp_path)


def test_no_pooch_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ScratchvitError, match="pip install pooch"):
        fetch(Remote("http://127.0.0.1:9/file.bin", "0" * 32), tmp_path)


def test_only_what_is_missing_is_fetched_and_then_found(served, tmp_path, monkeypatch):
    folder, url = served
    write_mnist(folder)

    def remote(name):
        return Remote(f"{url}{name}.gz", md5(folder / f"{name}.gz"))

    source = dataclasses.replace(
        idx.DATASETS["mnist"],
        train_images=remote("train-images-idx3-ubyte"),
        train_labels=remote("train-labels-idx1-ubyte"),
        test_images=remote("t10k-images-idx3-ubyte"),
        test_labels=remote("t10k-labels-idx1-ubyte"),
    )
    monkeypatch.setitem(idx.DATASETS, "mnist", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # A file that the user has is used as it is, whatever its sum: Debian packs Fashion-MNIST anew.
    own = tmp_path / "cache" / "scratchvit" / "mnist"
    write_mnist(own, zipped=False)
    (own / "train-images-idx3-ubyte").unlink()

    assert len(load("mnist", download=True).test) == 10
    assert (own / "train-images-idx3-ubyte.gz").is_file()
    assert not (own / "train-labels-idx1-ubyte.gz").exists()
    load("mnist")  # now from the cache


def test_cifar_archive_is_fetched_into_data_dir(served, tmp_path, monkeypatch):
    folder, url = served
    write_cifar(tmp_path / "cifar-10-batches-bin", per_file=2)
    archive = folder / "cifar-10-binary.tar.gz"
    pack(tmp_path / "cifar-10-batches-bin", archive)
    binary, python = cifar.DATASETS["cifar10"].versions
    binary = dataclasses.replace(binary, archive=Remote(url + archive.name, md5(archive)))
    source = dataclasses.replace(cifar.DATASETS["cifar10"], versions=(binary, python))
    monkeypatch.setitem(cifar.DATASETS, "cifar10", source)
    assert len(load("cifar10", data_dir=tmp_path / "data", download=True).test) == 2
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar-10-binary.tar.gz"]
