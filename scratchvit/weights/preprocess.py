"""From a picture to what a model was trained to see: size, crop, filter, mean and deviation come with the weights.

A model that sees pictures cut or coloured otherwise than in its training still answers, only worse. So the numbers are
read from the file that stands beside the weights (timm's config.json, Hugging Face's preprocessor_config.json), or
follow the convention of the family, and pixels come out equal to theirs: Pillow does the resizing in all three, and
what is left to get right is how sizes and offsets are rounded.
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
from scratchvit.models import list_models, model_config
from scratchvit.models.vit import pair
from scratchvit.weights.files import read_weights
from scratchvit.weights.names import recognise

FILTERS = {filter.name.lower(): filter for filter in Image.Resampling}
CROP_MODES = ("center", "squash", "border")
LARGEST_SIDE = 1 << 13
LARGE = 1 << 26     # pixels of a resized picture beyond which only the part that is seen is computed

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}    # of ImageNet's pixels
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}                    # 0 … 255 to -1 … 1, as Google trains
KINETICS = {"mean": (0.45, 0.45, 0.45), "std": (0.225, 0.225, 0.225)}       # as the video models are trained
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop, scale, normalise. Defaults are timm's, for a configuration that leaves them out.

    With crop_pct the picture is first resized to floor(side / crop_pct): in the mode "center" its shorter side, whose
    proportion it keeps; in "squash" both sides, each to its own; in "border" its longer side, the rest filled with the
    mean. Then the centre is cut out, and what is missing is black. Fields that only Hugging Face has come last.
    Raises ScratchvitError for values that make no sense.
    """

    input_size: tuple[int, int] = (224, 224)    # (height, width) of what the model sees
    crop_pct: float = 0.875                     # the side that is kept of the resized picture's
    crop_mode: str = "center"
    interpolation: str = "bicubic"              # a filter of Pillow's
    mean: tuple[float, ...] = IMAGENET["mean"]  # one for each channel: 3 (RGB) or 1 (grey)
    std: tuple[float, ...] = IMAGENET["std"]
    rescale: float = 1 / 255                    # what pixels 0 … 255 are multiplied with before mean and std
    resize: bool = True                         # False: only the crop
    crop_rounding: str = "even"                 # half a pixel of offset: to "even", as torchvision, or "floor"
    source: str = field(default="", compare=False)      # where the numbers come from, in words

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
        check(1e-6 <= self.rescale <= 1e6, "rescale", "a positive number of a moderate size")
        check(self.crop_rounding in ("even", "floor"), "crop_rounding", "even or floor")
        check(len(self.mean) in MODES, "mean", "3 numbers (RGB) or 1 (grey)")
        check(all(abs(m) <= 1e6 for m in self.mean), "mean", "numbers of a moderate size")
        positive = len(self.std) == len(self.mean) and all(1e-6 <= s <= 1e6 for s in self.std)
        check(positive, "std", "a positive number a channel, of a moderate size")

    @classmethod
    def from_timm(cls, config: Mapping[str, Any], source: str = "") -> Self:
        """From timm's config.json, or the pretrained_cfg in it.

        As in timm, input_size counts and not test_input_size, the larger size that some ResNets do better at.
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
        """From a preprocessor_config.json of transformers' processors for ViT, DeiT, ConvNeXt (ResNet too) and BiT.

        processor: its class, for old files that do not name it. The class decides what left-out keys mean.
        Raises ScratchvitError for another processor, and for settings that give pictures of no one size.
        """
        named = config.get("image_processor_type") or config.get("feature_extractor_type") or processor or "ViT"
        family = named.removesuffix("Fast").removesuffix("Pil").removesuffix("ImageProcessor")
        family = family.removesuffix("FeatureExtractor")
        if family not in _HUGGINGFACE:
            raise ScratchvitError(f"the preprocessing of {named} is not known; known are {', '.join(_HUGGINGFACE)}")
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
        """The keys of timm's pretrained_cfg. What timm has no key for is folded into mean and std (another factor than
        1/255), or lost (`resize`, and `crop_rounding`, which moves the crop by one pixel at most)."""
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
        """The same at a model's own size and number of channels (the mean over the channels, if they differ)."""
        size = self.input_size if img_size is None else pair(img_size)
        channels = len(self.mean) if in_chans is None else in_chans
        mean, std = _per_channel(self.mean, channels), _per_channel(self.std, channels)
        return dataclasses.replace(self, input_size=size, mean=mean, std=std)

    def __call__(self, picture: Image.Image) -> NDArray[np.float32]:
        """A picture of any size and mode → (C, H, W), as the model wants it."""
        scaled = (self.pixels(picture) * self.rescale).astype(np.float32)       # in float64 first, as Hugging Face
        normalised = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(normalised.transpose(2, 0, 1))

    def pixels(self, picture: Image.Image) -> NDArray[np.uint8]:
        """The picture resized and cropped, (H, W, C), before it is normalised. Turn it upright before."""
        picture = eight_bit(picture, len(self.mean))
        (height, width), (H, W) = self._resized_size(picture.height, picture.width), self.input_size
        top, left = self._offset(height - H), self._offset(width - W)           # negative where it is too small
        seen = (max(left, 0), max(top, 0), min(left + W, width), min(top + H, height))
        filter = FILTERS[self.interpolation]
        if height * width <= LARGE:
            part = picture.resize((width, height), filter).crop(seen)
        else:   # A sliver of 1 × 60,000 would grow to 248 × 14,880,000. To the rounding of its box, the same pixels.
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
        """What a picture of that size is resized to. timm uses torchvision's resize, or its own, which rounds."""
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
        return max(round(height / ratio), 1), max(round(width / ratio), 1)      # a sliver keeps a pixel

    def _offset(self, excess: int) -> int:
        """Where the crop begins in a side that is longer by `excess` (negative: where the padding begins)."""
        if self.crop_rounding == "floor":
            return excess // 2
        return round(excess / 2) if excess >= 0 else -(-excess // 2)


#  Hugging Face's processors: what a key means that their file leaves out
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

#  model                   crop_pct  filter      mean, std      as timm's weights of that name were trained
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
#  as torchvision's weights were trained: the shorter side before the crop is 256, in Swins another for every size
_TORCHVISION: tuple[tuple[str, float, str, dict[str, Any]], ...] = (
    ("swin_tiny_*",        224 / 232, "bicubic", IMAGENET),
    ("swin_small_*",       224 / 246, "bicubic", IMAGENET),
    ("swin_*",             224 / 238, "bicubic", IMAGENET),
    ("swinv2_base_*",      256 / 272, "bicubic", IMAGENET),
    ("swinv2_*",           256 / 260, "bicubic", IMAGENET),
    ("mvit_*",             0.875,    "bilinear", KINETICS),
    ("*",                  0.875,    "bilinear", IMAGENET),
)
_TORCHVISION_FILE = re.compile(     # its downloads
    r"(resnet\d+|vit_[blh]_\d+|swin_(v2_)?[tsb]|mvit_v[12]_[bs])-[0-9a-f]{8}\.pth"
)


def preprocessing_for(
    model_name: str,
    weights_path: str | Path | None = None,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int | None = None,
    owner: str | None = None,
) -> Preprocessing:
    """What the files beside the weights say or, without any, the convention of the model's family; `source` tells.

    weights_path: a file of weights, or the folder that holds it. img_size, in_chans: the model's own, which win.
    owner: whose names the weights have (`LoadReport.owner`); without it, the file is read for that where it matters.
    Raises ScratchvitError, naming the file, for one that makes no sense.
    """
    path = Path(weights_path) if weights_path is not None else None
    found = _beside(path, model_name) if path else None
    if found is None:
        at_its_size = re.sub(r"_\d+$", f"_{img_size}", model_name) if isinstance(img_size, int) else model_name
        source = f"the convention for {at_its_size}"
        table = _CONVENTIONS
        if path and _is_torchvisions(path, owner):
            source, table = "the convention of torchvision", _TORCHVISION
        crop_pct, interpolation, colours = next(row[1:] for row in table if fnmatch.fnmatchcase(at_its_size, row[0]))
        size = pair(model_config(model_name).img_size) if model_name in list_models() else (224, 224)
        found = Preprocessing(size, crop_pct, interpolation=interpolation, **colours, source=source)
    return found.fitted(img_size, in_chans)


def read_config(path: Path) -> dict[str, Any] | None:
    """The dictionary in a JSON file; None when there is no such file. Raises ScratchvitError when it is none."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ScratchvitError(f"{path} is no JSON that can be read ({error}): mend it or move it away") from error
    if not isinstance(config, dict):
        raise ScratchvitError(f"{path} holds a {type(config).__name__}, expected a configuration in braces")
    return config


def folder_of(weights_path: Path) -> Path:
    """Where the files that come with the weights are."""
    return weights_path if weights_path.is_dir() else weights_path.parent


def _is_torchvisions(path: Path, owner: str | None) -> bool:
    """Whether the weights are torchvision's, by the file's name or by theirs. (Its ResNets have timm's names.)"""
    if _TORCHVISION_FILE.fullmatch(path.name):
        return True
    if owner is None and path.is_file():
        owner = recognise(read_weights(path)).owner
    return owner == "torchvision"


def _beside(weights_path: Path, model_name: str) -> Preprocessing | None:
    folder = folder_of(weights_path)
    config = read_config(path := folder / "config.json") or {}
    try:
        if "pretrained_cfg" in config or "architecture" in config:
            architecture = str(config.get("architecture", model_name)).partition(".")[0]    # without the weights' tag
            # In a folder of many weights, it may be another model's. The size at the end of a name is none of it.
            same = re.sub(r"_\d+$", "", architecture) == re.sub(r"_\d+$", "", model_name)
            return Preprocessing.from_timm(config, str(path)) if same else None
        processor = _PROCESSORS.get(str(config.get("model_type")))
        config = read_config(path := folder / "preprocessor_config.json") or {}
        return Preprocessing.from_huggingface(config, processor, str(path)) if config else None
    except (ScratchvitError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ScratchvitError(f"{path} cannot be followed ({error}): mend it or move it away") from error


def _huggingface_sizes(
    family: str, given: Mapping[str, Any], size: int | tuple[int, int], crop: tuple[int, int] | None
) -> dict[str, Any]:
    """input_size, crop_pct, crop_mode and resize, from a size (an int: of the shorter side) and a crop or None."""
    if not given["do_resize"]:
        return {"input_size": crop or pair(size), "resize": False}
    if family == "ConvNext" and isinstance(size, int):      # its own rule: from 384 on, no crop but a squash
        if crop not in (None, (size, size)):
            raise ScratchvitError(f"a crop of {crop} after one of {size} is not done here: leave out do_center_crop")
        if size < 384:
            return {"input_size": (size, size), "crop_pct": given["crop_pct"]}
        return {"input_size": (size, size), "crop_pct": 1.0, "crop_mode": "squash"}
    if crop is None:
        if isinstance(size, int):
            raise ScratchvitError("shortest_edge without do_center_crop makes pictures of many sizes: set a crop_size")
        return {"input_size": size, "crop_pct": 1.0, "crop_mode": "squash"}
    target = pair(size)
    crop_pct = _crop_pct(crop[0], target[0])
    if math.floor(crop[1] / crop_pct) != target[1]:
        raise ScratchvitError(f"a resize to {target} and a crop of {crop} differ in proportion, which is not done here")
    return {"input_size": crop, "crop_pct": crop_pct, "crop_mode": "center" if isinstance(size, int) else "squash"}


def _crop_pct(crop: int, size: int) -> float:
    """crop / size, such that floor(crop / crop_pct) gives the size again in spite of rounding."""
    crop_pct = crop / size
    return crop_pct if math.floor(crop / crop_pct) == size else math.nextafter(crop_pct, 0)


def _sides(size: Any, square: bool) -> int | tuple[int, int]:
    """Hugging Face's ways to write a size → (height, width), or an int: the length of the shorter side."""
    if isinstance(size, int):
        return (size, size) if square else size
    if not isinstance(size, Mapping):
        height, width = size
        return height, width
    if set(size) == {"shortest_edge"}:
        return size["shortest_edge"]
    if set(size) == {"height", "width"}:
        return size["height"], size["width"]
    raise ScratchvitError(f"a size with {', '.join(map(str, size))} is not known; height and width, or shortest_edge")


def _per_channel(values: float | Sequence[float], channels: int = 3) -> tuple[float, ...]:
    """One number a channel; where there are more or fewer, their mean, as timm does."""
    values = tuple(map(float, values)) if isinstance(values, Sequence) else (float(values),)
    return values if len(values) == channels else (sum(values) / len(values),) * channels
