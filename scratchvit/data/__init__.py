"""Data sets, transforms and the loader: from picture files to batches on the device in use.

Example:

    splits = load("fashion-mnist", download=True)
    augment = Compose(RandomCrop(4), RandomHorizontalFlip(), Normalize(*channel_stats(splits.train)))
    for batch in Loader(splits.train, 128, augment, shuffle=True, workers=2):
        batch.images, batch.labels, batch.indices   # float32 (B, C, H, W); NumPy: int64 (B,) and (B,)
"""

from scratchvit.data.augment import ColorJitter, RandomErasing, RandomResizedCrop
from scratchvit.data.datasets import ArrayDataset, Dataset, Resized, Splits, stratified_share, stratified_split
from scratchvit.data.folder import ImageFolder
from scratchvit.data.idx import read_idx
from scratchvit.data.images import load_image, resize_image
from scratchvit.data.loader import Batch, Loader
from scratchvit.data.mixing import Mix
from scratchvit.data.randaugment import LEVELS, RandAugment
from scratchvit.data.registry import list_datasets, load
from scratchvit.data.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, channel_stats

__all__ = [
    "LEVELS",
    "ArrayDataset",
    "Batch",
    "ColorJitter",
    "Compose",
    "Dataset",
    "ImageFolder",
    "Loader",
    "Mix",
    "Normalize",
    "RandAugment",
    "RandomCrop",
    "RandomErasing",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "Resized",
    "Splits",
    "channel_stats",
    "list_datasets",
    "load",
    "load_image",
    "read_idx",
    "resize_image",
    "stratified_share",
    "stratified_split",
]
