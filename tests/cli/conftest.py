"""Every command runs in a folder of its own; the pictures and the detector that commands of detection are tried on."""

import pytest

from tests.support.detector_samples import write_animals, write_trained


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def animals(tmp_path):
    return write_animals(tmp_path)


@pytest.fixture
def trained(tmp_path, animals):
    return write_trained(tmp_path / "best.safetensors", animals)
