"""The preprocessing that torchvision published its weights with, by the hash in the name of each file.

Weights of the same model differ: the first resnet50 was evaluated with the shorter side at 256 pixels, the second at
232. The eight digits at the end of a file's name are the beginning of its SHA-256, so a renamed file is still
recognised by its content.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from scratchvit.files import user_cache

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}    # statistics of ImageNet
KINETICS: dict[str, Any] = {"mean": (0.45, 0.45, 0.45), "std": (0.225, 0.225, 0.225)}       # used by the video models


class Published(NamedTuple):
    """A file of torchvision, our name of its model, and how pictures are resized and cropped.

    The shorter side becomes `resize` pixels, by Pillow's filter of that name; then the centre of crop × crop is cut.
    """

    file: str
    weights: str            # the name in torchvision
    model: str
    resize: int
    crop: int
    interpolation: str
    colours: dict[str, Any] = IMAGENET

    @property
    def hash(self) -> str:
        return self.file.rpartition("-")[2]


#   file                        weights                      model                           resize crop filter
_ROWS: tuple[tuple[Any, ...], ...] = (
    ("resnet18-f37072fd",        "IMAGENET1K_V1",             "resnet18",                     256, 224, "bilinear"),
    ("resnet34-b627a593",        "IMAGENET1K_V1",             "resnet34",                     256, 224, "bilinear"),
    ("resnet50-0676ba61",        "IMAGENET1K_V1",             "resnet50",                     256, 224, "bilinear"),
    ("resnet50-11ad3fa6",        "IMAGENET1K_V2",             "resnet50",                     232, 224, "bilinear"),
    ("resnet101-63fe2227",       "IMAGENET1K_V1",             "resnet101",                    256, 224, "bilinear"),
    ("resnet101-cd907fc2",       "IMAGENET1K_V2",             "resnet101",                    232, 224, "bilinear"),
    ("resnet152-394f9c45",       "IMAGENET1K_V1",             "resnet152",                    256, 224, "bilinear"),
    ("resnet152-f82ba261",       "IMAGENET1K_V2",             "resnet152",                    232, 224, "bilinear"),
    ("vit_b_16-c867db91",        "IMAGENET1K_V1",             "vit_base_patch16_224",         256, 224, "bilinear"),
    ("vit_b_16_lc_swag-4e70ced5", "IMAGENET1K_SWAG_LINEAR_V1", "vit_base_patch16_224",         224, 224, "bicubic"),
    ("vit_b_16_swag-9ac1b537",   "IMAGENET1K_SWAG_E2E_V1",    "vit_base_patch16_224",         384, 384, "bicubic"),
    ("vit_b_32-d86f8d99",        "IMAGENET1K_V1",             "vit_base_patch32_224",         256, 224, "bilinear"),
    ("vit_l_16-852ce7e3",        "IMAGENET1K_V1",             "vit_large_patch16_224",        242, 224, "bilinear"),
    ("vit_l_16_lc_swag-4d563306", "IMAGENET1K_SWAG_LINEAR_V1", "vit_large_patch16_224",        224, 224, "bicubic"),
    ("vit_l_16_swag-4f3808c9",   "IMAGENET1K_SWAG_E2E_V1",    "vit_large_patch16_224",        512, 512, "bicubic"),
    ("vit_l_32-c7638314",        "IMAGENET1K_V1",             "vit_large_patch32_224",        256, 224, "bilinear"),
    ("vit_h_14_lc_swag-c1eb923e", "IMAGENET1K_SWAG_LINEAR_V1", "vit_huge_patch14_224",         224, 224, "bicubic"),
    ("vit_h_14_swag-80465313",   "IMAGENET1K_SWAG_E2E_V1",    "vit_huge_patch14_224",         518, 518, "bicubic"),
    ("swin_t-704ceda3",          "IMAGENET1K_V1",             "swin_tiny_patch4_window7_224", 232, 224, "bicubic"),
    ("swin_s-5e29d889",          "IMAGENET1K_V1",             "swin_small_patch4_window7_224", 246, 224, "bicubic"),
    ("swin_b-68c6b09e",          "IMAGENET1K_V1",             "swin_base_patch4_window7_224", 238, 224, "bicubic"),
    ("swin_v2_t-b137f0e2",       "IMAGENET1K_V1",             "swinv2_tiny_window8_256",      260, 256, "bicubic"),
    ("swin_v2_s-637d8ceb",       "IMAGENET1K_V1",             "swinv2_small_window8_256",     260, 256, "bicubic"),
    ("swin_v2_b-781e5279",       "IMAGENET1K_V1",             "swinv2_base_window8_256",      272, 256, "bicubic"),
    ("mvit_v1_b-dbeb1030",       "KINETICS400_V1",            "mvit_v1_b",                    256, 224, "bilinear",
     KINETICS),
    ("mvit_v2_s-ae3be167",       "KINETICS400_V1",            "mvit_v2_s",                    256, 224, "bilinear",
     KINETICS),
    # Downloads of older versions, the same weights in another file.
    ("resnet18-5c106cde",        "IMAGENET1K_V1",             "resnet18",                     256, 224, "bilinear"),
    ("resnet34-333f7ec4",        "IMAGENET1K_V1",             "resnet34",                     256, 224, "bilinear"),
    ("resnet50-19c8e357",        "IMAGENET1K_V1",             "resnet50",                     256, 224, "bilinear"),
    ("resnet101-5d3b4d8f",       "IMAGENET1K_V1",             "resnet101",                    256, 224, "bilinear"),
    ("resnet152-b121ed2d",       "IMAGENET1K_V1",             "resnet152",                    256, 224, "bilinear"),
)
PUBLISHED = tuple(Published(*row) for row in _ROWS)


def published_as(model: str, path: Path) -> Published | None:
    """The row of a file for a model, by the hash in its name, or of its content; None if it is not torchvision's."""
    rows = {row.hash: row for row in PUBLISHED if row.model == model}
    named = [hash for hash in re.findall(r"[0-9a-f]{8}", path.name) if hash in rows]
    if not named and rows and path.is_file() and path.suffix in (".pth", ".pt", ".bin"):
        with path.open("rb") as file:
            named = [hashlib.file_digest(file, "sha256").hexdigest()[:8]]
    return rows.get(named[0]) if named else None


def published_for(model: str, size: tuple[int, int]) -> list[Published]:
    """The rows of a model: those for images of this size (height, width) if there are any, the earliest first."""
    rows = [row for row in PUBLISHED if row.model == model]
    return [row for row in rows if (row.crop, row.crop) == size] or rows


def downloaded_by_torchvision() -> tuple[Path, str] | None:
    """A file of weights for classification that torchvision has downloaded to this machine, and the name of its model.

    The first of the table if there are several; None if there is none.
    """
    folder = Path(os.environ.get("TORCH_HOME") or user_cache() / "torch") / "hub" / "checkpoints"
    files = ((folder / f"{row.file}.pth", row.model) for row in PUBLISHED if row.colours is IMAGENET)
    return next(((file, model) for file, model in files if file.is_file()), None)
