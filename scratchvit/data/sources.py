"""Finding and downloading the files of a published data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scratchvit.errors import ScratchvitError, missing
from scratchvit.files import user_cache


@dataclass(frozen=True)
class Remote:
    """A published file: its URL and the MD5 sum given by its publishers or by torchvision."""

    url: str
    md5: str

    @property
    def filename(self) -> str:
        return self.url.rsplit("/", 1)[-1]


def cache_dir() -> Path:
    """The cache folder of scratchvit: $XDG_CACHE_HOME/scratchvit, or ~/.cache/scratchvit."""
    return user_cache() / "scratchvit"


def find(names: Sequence[str], folders: Sequence[Path]) -> Path | None:
    """The first existing file FOLDER/NAME, folder by folder; None if there is none."""
    candidates = (folder / name for folder in folders for name in names)
    return next((path for path in candidates if path.is_file()), None)


def not_found(dataset: str, what: str, folders: Sequence[Path]) -> ScratchvitError:
    """An error that says where the file `what` was searched and how to get it."""
    places = ", ".join(map(str, folders))
    return ScratchvitError(
        f"{dataset}: {what} not found in {places}; name its folder (--data-dir, data_dir), "
        "or download it (--download, download=True)"
    )


def fetch(remote: Remote, folder: Path) -> Path:
    """Download a file into a folder and return its path.

    Raises ScratchvitError if the download fails or the MD5 sum is wrong; no file is left then.
    """
    try:
        import pooch
    except ImportError as error:
        raise missing("downloading needs pooch", "pooch") from error
    try:
        return Path(
            pooch.retrieve(
                remote.url, f"md5:{remote.md5}", fname=remote.filename, path=folder, progressbar=True
            )
        )
    except (OSError, ValueError) as error:  # no network, no space; a wrong sum is a ValueError
        raise ScratchvitError(
            f"{remote.url}: the download into {folder} failed ({error}); try again later, "
            "or download the file yourself and name its folder with data_dir"
        ) from error
