"""Preprocessing of pictures for pretrained weights: size, crop, interpolation, mean and standard deviation.

With a preprocessing other than in training, a model still gives answers, but worse ones. So the settings are read from
the file in the folder of the weights (timm's config.json, Hugging Face's preprocessor_config.json), or follow the
convention of the model family. The pixels are equal to those of timm and Hugging Face: all three resize with Pillow,
and sizes and offsets are rounded in the same way.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scratchvit.data.images import MODES, eight_bit
from scratchvit.errors import ScratchvitError
from scratchvit.files import read_text
from scratchvit.models import list_models, model_config
from scratchvit.models.vit import pair
from scratchvit.weights.files import read_weights
from scratchvit.weights.names import recognise
from scratchvit.weights.published import IMAGENET, KINETICS, Published, published_as, published_for

FILTERS = {filter.name.lower(): filter for filter in Image.Resampling}
CROP_MODES = ("center", "squash", "border")
LARGEST_SIDE = 1 << 13
LARGE = 1 << 26     # pixels of a resized picture, above which only the cropped part is computed

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}                    # 0 … 255 to -1 … 1, as Google trains
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


@dataclass(frozen=True)
class Preprocessing:
    """Resizing, cropping, rescaling and normalisation of a picture. Defaults are those of timm's configuration.

    The picture is first resized to floor(side / crop_pct): in the mode "center" the shorter side, keeping the aspect
    ratio; in "squash" both sides, ignoring the aspect ratio; in "border" the longer side, with the rest filled with the
    mean. Then the centre is cropped; missing pixels are black. The last fields exist only in Hugging Face's format.
    Raises ScratchvitError for values out of range.
    """

    input_size: tuple[int, int] = (224, 224)    # (height, width) of the model's input
    crop_pct: float = 0.875                     # side of the crop / side of the resized picture
    crop_mode: str = "center"
    interpolation: str = "bicubic"              # name of a Pillow filter
    mean: tuple[float, ...] = IMAGENET["mean"]  # one for each channel: 3 (RGB) or 1 (grey)
    std: tuple[float, ...] = IMAGENET["std"]
    rescale: float = 1 / 255                    # factor of the pixels 0 … 255 before mean and std
    resize: bool = True                         # False: only crop
    crop_rounding: str = "even"                 # offsets of half a pixel: round to "even", as torchvision, or "floor"
    source: str = field(default="", compare=False)      # where the settings come from, as text

    def __post_init__(self) -> None:
        def check(fits: bool, name: str, expected: str) -> None:
            if not fits:
                raise ScratchvitError(f"preprocessing: {name} is {getattr(self, name)!r}, expected {expected}")

        sides = self.input_size
        whole = len(sides) == 2 and all(isinstance(n, int) and 0 < n <= LARGEST_SIDE for n in sides)
        check(whole, "input_size", f"two positive sides, of at most {LARGEST_SIDE} pixels")
        check(0.001 <= self.crop_pct <= min(sides), "crop_pct", "a positive fraction")
        check(self.crop_mode in CROP_MODES, "crop_mode", f"one of {', '.join(CROP_MODES)}")
        check(self.interpolation in FILTERS, "interpolation", f"one of {', '.join(FILTERS)}")
        check(1e-6 <= self.rescale <= 1e6, "rescale", "a positive number of moderate size")
        check(self.crop_rounding in ("even", "floor"), "crop_rounding", "even or floor")
        check(len(self.mean) in MODES, "mean", "3 numbers (RGB) or 1 (grey)")
        check(all(abs(m) <= 1e6 for m in self.mean), "mean", "numbers of moderate size")
        positive = len(self.std) == len(self.mean) and all(1e-6 <= s <= 1e6 for s in self.std)
        check(positive, "std", "a positive number of moderate size for each channel")

    @classmethod
    def from_timm(cls, config: Mapping[str, Any], source: str = "") -> Self:
        """Create from timm's config.json, or the pretrained_cfg in it.

        As in timm, input_size is used, not test_input_size, a larger size at which some ResNets are more accurate.
        """
        given = config.get("pretrained_cfg") or config
        channels, height, width = given.get("input_size") or (3, 224, 224)
        if channels not in MODES:
            raise ScratchvitError(f"input_size has {channels} channels, pictures have 3 (RGB) or 1 (grey)")
        known = {name: given[name] for name in ("crop_pct", "crop_mode", "interpolation") if given.get(name)}
        for name in ("mean", "std"):
            known[name] = _per_channel(IMAGENET[name] if given.get(name) is None else given[name], channels)
        return cls((height, width), **known, source=source)

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any], processor: str | None = None, source: str = "") -> Self:
        """Create from a preprocessor_config.json of transformers' processors for ViT, DeiT, ConvNeXt (and ResNet), BiT.

        processor: its class, for old files that do not name it. Defaults of missing keys depend on the class.
        Raises ScratchvitError for another processor, and for settings that do not give pictures of one size.
        """
        named = config.get("image_processor_type") or config.get("feature_extractor_type") or processor or "ViT"
        family = named.removesuffix("Fast").removesuffix("Pil").removesuffix("ImageProcessor")
        family = family.removesuffix("FeatureExtractor")
        if family not in _HUGGINGFACE:
            raise ScratchvitError(
                f"the preprocessing of {named} is not supported; supported are {', '.join(_HUGGINGFACE)}"
            )
        given = _HUGGINGFACE[family] | {name: value for name, value in config.items() if value is not None}
        size = _sides(given["size"], square=family in ("ViT", "DeiT"))
        crop = pair(_sides(given["crop_size"], square=True)) if given["do_center_crop"] else None
        return cls(
            **_huggingface_sizes(family, given, size, crop),
            interpolation=Image.Resampling(given["resample"]).name.lower(),
            mean=_per_channel(given["image_mean"] if given["do_normalize"] else 0.0),
            std=_per_channel(given["image_std"] if given["do_normalize"] else 1.0),
            rescale=given["rescale_factor"] if given["do_rescale"] else 1.0,
            crop_rounding="floor",
            source=source,
        )

    def to_timm(self) -> dict[str, Any]:
        """The keys of timm's pretrained_cfg.

        Settings without a key in timm are folded into mean and std (a factor other than 1/255), or lost (`resize`, and
        `crop_rounding`, which moves the crop by at most one pixel).
        """
        unit = 255 * self.rescale
        return {
            "input_size": [len(self.mean), *self.input_size],
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
            "mean": [m / unit for m in self.mean],
            "std": [s / unit for s in self.std],
        }

    def fitted(self, img_size: int | tuple[int, int] | None = None, in_chans: int | None = None) -> Self:
        """A copy for another image size and number of channels (if that differs, with the mean over the channels)."""
        size = self.input_size if img_size is None else pair(img_size)
        channels = len(self.mean) if in_chans is None else in_chans
        mean, std = _per_channel(self.mean, channels), _per_channel(self.std, channels)
        return dataclasses.replace(self, input_size=size, mean=mean, std=std)

    def __call__(self, picture: Image.Image) -> NDArray[np.float32]:
        """Convert a picture of any size and mode to the model's input, float32 (C, H, W)."""
        scaled = (self.pixels(picture) * self.rescale).astype(np.float32)       # in float64 first, as Hugging Face does
        normalised = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(normalised.transpose(2, 0, 1))

    def pixels(self, picture: Image.Image) -> NDArray[np.uint8]:
        """The resized and cropped picture, uint8 (H, W, C), before normalisation. Apply its EXIF orientation before."""
        picture = eight_bit(picture, len(self.mean))
        (height, width), (H, W) = self._resized_size(picture.height, picture.width), self.input_size
        top, left = self._offset(height - H), self._offset(width - W)           # negative if it is too small
        seen = (max(left, 0), max(top, 0), min(left + W, width), min(top + H, height))
        filter = FILTERS[self.interpolation]
        if height * width <= LARGE:
            part = picture.resize((width, height), filter).crop(seen)
        else:   # 1 × 60,000 would become 248 × 14,880,000: resize only the crop; the same up to rounding of the box.
            x, y = picture.width / width, picture.height / height
            box = (seen[0] * x, seen[1] * y, seen[2] * x, seen[3] * y)
            part = picture.resize((seen[2] - seen[0], seen[3] - seen[1]), filter, box)
        fill = tuple(round(255 * m) for m in self.mean) if self.crop_mode == "border" else (0,) * len(self.mean)
        canvas = Image.new(picture.mode, (W, H), fill if len(fill) > 1 else fill[0])
        canvas.paste(part, (seen[0] - left, seen[1] - top))
        return np.asarray(canvas).reshape(H, W, len(self.mean))

    def __str__(self) -> str:
        def sides(size: Sequence[int]) -> str:
            return f"{size[0]}×{size[1]}"

        def numbers(values: Sequence[float]) -> str:
            return " ".join(f"{value:.4g}" for value in (values if len(set(values)) > 1 else values[:1]))

        scale = self._scale_size()
        how = {
            "center": f"shorter side to {sides(scale) if len(set(scale)) > 1 else scale[0]}",
            "squash": f"squashed to {sides(scale)}",
            "border": f"longer side to {sides(scale) if len(set(scale)) > 1 else scale[0]}, padded",
        }[self.crop_mode]
        steps = [f"{how} ({self.interpolation})" if self.resize else "not resized"]
        if not (self.resize and self.crop_mode == "squash" and scale == self.input_size):
            steps.append(f"centre {sides(self.input_size)}")
        if len(self.mean) == 1:
            steps.append("grey")
        if self.rescale != 1 / 255:
            steps.append(f"pixels × {self.rescale:.4g}")
        return ", ".join((*steps, f"mean {numbers(self.mean)}, std {numbers(self.std)}"))

    def _scale_size(self) -> tuple[int, int]:
        return math.floor(self.input_size[0] / self.crop_pct), math.floor(self.input_size[1] / self.crop_pct)

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        """The size after resizing. timm uses torchvision's resize, or in other modes its own, which rounds."""
        if not self.resize:
            return height, width
        scale = self._scale_size()
        if self.crop_mode == "squash":
            return scale
        if self.crop_mode == "center" and scale[0] == scale[1]:
            long = int(scale[0] * max(height, width) / min(height, width))
            return (long, scale[0]) if width <= height else (scale[0], long)
        ratios = height / scale[0], width / scale[1]
        ratio = min(ratios) if self.crop_mode == "center" else max(ratios)
        return max(round(height / ratio), 1), max(round(width / ratio), 1)      # at least one pixel

    def _offset(self, excess: int) -> int:
        """The offset of the crop in a side that is longer by `excess` (negative: minus the padding)."""
        if self.crop_rounding == "floor":
            return excess // 2
        return round(excess / 2) if excess >= 0 else -(-excess // 2)


#  Hugging Face's processors: defaults of keys that are missing in the file
_HUGGINGFACE: dict[str, dict[str, Any]] = {
    family: {
        "size": size, "crop_size": 224, "do_center_crop": crops, "resample": resample, "crop_pct": 224 / 256,
        "image_mean": colours["mean"], "image_std": colours["std"], "rescale_factor": 1 / 255,
        "do_resize": True, "do_rescale": True, "do_normalize": True,
    }
    for family, size, crops, resample, colours in (
        ("ViT", 224, False, Image.Resampling.BILINEAR, HALF),
        ("DeiT", 256, True, Image.Resampling.BICUBIC, HALF),
        ("ConvNext", 384, False, Image.Resampling.BICUBIC, HALF),
        ("Bit", 224, True, Image.Resampling.BICUBIC, CLIP),
    )
}

_PROCESSORS = {
    "vit": "ViT", "deit": "DeiT", "resnet": "ConvNext", "convnext": "ConvNext", "bit": "Bit", "swin": "ViT",
    "swinv2": "ViT",
}

#  model                   crop_pct  filter      mean, std      used for timm's weights of that name
_CONVENTIONS: tuple[tuple[str, float, str, dict[str, Any]], ...] = (
    ("deit*_384",          1.0,      "bicubic",  IMAGENET),
    ("deit*",              0.9,      "bicubic",  IMAGENET),
    ("vit_*_384",          1.0,      "bicubic",  HALF),
    ("vit_*",              0.9,      "bicubic",  HALF),
    ("resnetv2_50x1_bit",  0.875,    "bicubic",  HALF),        # distilled at 224; the others fine-tuned, larger
    ("resnetv2_152x2_bit", 0.875,    "bicubic",  HALF),
    ("resnetv2_*_bit",     1.0,      "bilinear", HALF),
    ("resnet*",            0.95,     "bicubic",  IMAGENET),
    ("swin*_384",          1.0,      "bicubic",  IMAGENET),
    ("swin*to384",         1.0,      "bicubic",  IMAGENET),
    ("swin*",              0.9,      "bicubic",  IMAGENET),
    ("mvitv2_*",           0.9,      "bicubic",  IMAGENET),
    ("mvit_v?_?",          0.875,    "bilinear", KINETICS),    # clips: torchvision's
    ("*",                  0.875,    "bicubic",  IMAGENET),
)


def preprocessing_for(
    model_name: str,
    weights_path: str | Path | None = None,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int | None = None,
    owner: str | None = None,
    entry: str | None = None,
) -> Preprocessing:
    """The preprocessing for a model: from the files in the folder of its weights, or the convention of its family.

    `source` says which. weights_path: a file of weights, or its folder; a file of torchvision is known by its hash.
    img_size, in_chans: those of the model, which take precedence. owner: library that the weights are from
    (`LoadReport.owner`); by default it is found by reading the file, or this entry of it, if necessary. Raises
    ScratchvitError, which names the file, for an invalid configuration.
    """
    path = Path(weights_path) if weights_path is not None else None
    found = _beside(path, model_name) if path else None
    if found is None and path and (row := published_as(model_name, path)):
        found = _as_published(row, f"as published for torchvision's {row.file}.pth, {row.weights}")
    if found is None and path and _is_torchvisions(path, owner, entry):
        found = _torchvisions(model_name, img_size)
    if found is None:
        at_its_size = re.sub(r"_\d+$", f"_{img_size}", model_name) if isinstance(img_size, int) else model_name
        crop_pct, interpolation, colours = next(
            row[1:] for row in _CONVENTIONS if fnmatch.fnmatchcase(at_its_size, row[0])
        )
        found = Preprocessing(
            _size_of(model_name), crop_pct, interpolation=interpolation, **colours,
            source=f"the convention for {at_its_size}",
        )
    return found.fitted(img_size, in_chans)


def read_config(path: Path) -> dict[str, Any] | None:
    """The dictionary in a JSON file; None if there is no such file. Raises ScratchvitError for other content."""
    if not path.exists():
        return None
    text = read_text(path, "configuration")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ScratchvitError(f"{path} is not valid JSON ({error}): correct it or move it away") from error
    if not isinstance(config, dict):
        raise ScratchvitError(f"{path} contains a {type(config).__name__}, expected a JSON object")
    return config


def folder_of(weights_path: Path) -> Path:
    """The folder of a file of weights; the path itself if it is a folder."""
    return weights_path if weights_path.is_dir() else weights_path.parent


def _is_torchvisions(path: Path, owner: str | None, entry: str | None) -> bool:
    """Whether the names of the weights are torchvision's (those of its ResNets are timm's)."""
    if owner is None and path.is_file():
        owner = recognise(read_weights(path, entry)).owner
    return owner == "torchvision"


def _torchvisions(model_name: str, img_size: int | tuple[int, int] | None) -> Preprocessing:
    """What torchvision first published for this model and size, for a file of which nothing more is known."""
    rows = published_for(model_name, _size_of(model_name) if img_size is None else pair(img_size))
    if not rows:
        return Preprocessing(
            _size_of(model_name), 0.875, interpolation="bilinear", **IMAGENET, source="the convention of torchvision"
        )
    first, *more = rows
    others = "".join(f"; {row.file}.pth has another" for row in more if row[3:] != first[3:])
    return _as_published(first, f"the convention of torchvision, that of {first.file}.pth{others}")


def _as_published(row: Published, source: str) -> Preprocessing:
    return Preprocessing(
        pair(row.crop), _crop_pct(row.crop, row.resize), interpolation=row.interpolation, **row.colours, source=source
    )


def _size_of(model_name: str) -> tuple[int, int]:
    return pair(model_config(model_name).img_size) if model_name in list_models() else (224, 224)


def _beside(weights_path: Path, model_name: str) -> Preprocessing | None:
    folder = folder_of(weights_path)
    config = read_config(path := folder / "config.json") or {}
    try:
        if "pretrained_cfg" in config or "architecture" in config:
            architecture = str(config.get("architecture", model_name)).partition(".")[0]    # without the weights' tag
            # In a folder with several weights, it may be for another model. The size at the end of a name is ignored.
            same = re.sub(r"_\d+$", "", architecture) == re.sub(r"_\d+$", "", model_name)
            return Preprocessing.from_timm(config, str(path)) if same else None
        processor = _PROCESSORS.get(str(config.get("model_type")))
        config = read_config(path := folder / "preprocessor_config.json") or {}
        return Preprocessing.from_huggingface(config, processor, str(path)) if config else None
    except (ScratchvitError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ScratchvitError(f"{path} cannot be used ({error}): correct it or move it away") from error


def _huggingface_sizes(
    family: str, given: Mapping[str, Any], size: int | tuple[int, int], crop: tuple[int, int] | None
) -> dict[str, Any]:
    """input_size, crop_pct, crop_mode and resize, from a size (int: shorter side) and a crop size or None."""
    if not given["do_resize"]:
        return {"input_size": crop or pair(size), "resize": False}
    if family == "ConvNext" and isinstance(size, int):      # a rule of its own: from 384 on, squash instead of crop
        if crop not in (None, (size, size)):
            raise ScratchvitError(f"a crop of {crop} after one of {size} is not supported: leave out do_center_crop")
        if size < 384:
            return {"input_size": (size, size), "crop_pct": given["crop_pct"]}
        return {"input_size": (size, size), "crop_pct": 1.0, "crop_mode": "squash"}
    if crop is None:
        if isinstance(size, int):
            raise ScratchvitError("shortest_edge without do_center_crop gives pictures of many sizes: set a crop_size")
        return {"input_size": size, "crop_pct": 1.0, "crop_mode": "squash"}
    target = pair(size)
    crop_pct = _crop_pct(crop[0], target[0])
    if math.floor(crop[1] / crop_pct) != target[1]:
        raise ScratchvitError(f"a resize to {target} and a crop of {crop} with another aspect ratio is not supported")
    return {"input_size": crop, "crop_pct": crop_pct, "crop_mode": "center" if isinstance(size, int) else "squash"}


def _crop_pct(crop: int, size: int) -> float:
    """crop / size, adjusted so that floor(crop / crop_pct) is exactly size despite rounding."""
    crop_pct = crop / size
    return crop_pct if math.floor(crop / crop_pct) == size else math.nextafter(crop_pct, 0)


def _sides(size: Any, square: bool) -> int | tuple[int, int]:
    """Convert a size of Hugging Face's format to (height, width), or to an int, the length of the shorter side."""
    if isinstance(size, int):
        return (size, size) if square else size
    if not isinstance(size, Mapping):
        height, width = size
        return height, width
    if set(size) == {"shortest_edge"}:
        return size["shortest_edge"]
    if set(size) == {"height", "width"}:
        return size["height"], size["width"]
    raise ScratchvitError(
        f"a size with {', '.join(map(str, size))} is not supported; height and width, or shortest_edge, are"
    )


def _per_channel(values: float | Sequence[float], channels: int = 3) -> tuple[float, ...]:
    """One number per channel; if their number differs, their mean is used for all channels, as in timm."""
    values = tuple(map(float, values)) if isinstance(values, Sequence) else (float(values),)
    return values if len(values) == channels else (sum(values) / len(values),) * channels
