"""Palettes of K colours, found by k-means, by which iGPT codes pixels (Chen et al., ICML 2020, §3.2).

Colours are float32 (K, C) from -1 to 1, the range of iGPT's images and of the authors' clusters.npy. An encoded picture
is a sequence of integers: the index of the nearest colour of each pixel, row by row.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from scratchvit.data.datasets import Dataset
from scratchvit.errors import ScratchvitError
from scratchvit.models.igpt import nearest_colors

PICTURES, PIXELS = 2048, 1 << 17    # largest sample for k-means
FIRST_COLORS = 1 << 13              # colours that k-means++ chooses from: SciPy's stores K distances for each
ITERATIONS = 20
_CHUNK = 256                        # pictures in memory at a time

Tokens = NDArray[np.int64]
Palette = NDArray[np.float32]


def fit_palette(dataset: Dataset, num_colors: int, seed: int = 0) -> Palette:
    """The palette of a data set (K, C), sorted from dark to bright, by k-means over a sample of its pixels.

    If the pictures have at most K colours (the digits have 17 greys), these are the palette, and the brightest is
    repeated to fill it. Raises ScratchvitError for an empty data set.
    """
    if len(dataset) == 0:
        raise ScratchvitError(f"{dataset.name}: no pictures to compute a palette from")
    rng = np.random.default_rng(seed)
    pixels = _some_pixels(dataset, rng).astype(np.float64)
    colors = np.unique(pixels, axis=0)
    if len(colors) > num_colors:
        colors = _k_means(pixels, colors, num_colors, rng)
    colors = colors[np.argsort(colors.mean(axis=1), kind="stable")]
    colors = np.concatenate([colors, np.repeat(colors[-1:], num_colors - len(colors), axis=0)])
    return _to_units(colors)


def encode(images: NDArray[np.uint8], palette: Palette) -> Tokens:
    """Encode pictures uint8 (B, H, W, C) as indices of the nearest colours, int64 (B, H·W).

    Raises ScratchvitError for pictures with another number of channels than the palette.
    """
    if images.shape[-1] != palette.shape[1]:
        channels = f"the pictures have {images.shape[-1]} channels, the palette {palette.shape[1]}"
        raise ScratchvitError(f"{channels}: use pictures like those that it was made from")
    return nearest_colors(_to_units(images), palette).reshape(len(images), -1)


def decode(tokens: Tokens, palette: Palette, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode tokens (B, H·W) to pictures uint8 (B, H, W, C); size is (H, W).

    Raises ScratchvitError for tokens that are not indices of the palette, or whose number does not match the size.
    """
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < len(palette):
        raise ScratchvitError(f"tokens {tokens.min()} … {tokens.max()}: the palette has {len(palette)} colours")
    if tokens.ndim != 2 or tokens.shape[1] != math.prod(size):
        wanted = f"(B, {math.prod(size)})"
        raise ScratchvitError(f"tokens of {size[0]}×{size[1]} pixels have the shape {wanted}, not {tokens.shape}")
    colors = np.rint((palette + 1) * 127.5).clip(0, 255).astype(np.uint8)
    return colors[tokens].reshape(len(tokens), *size, palette.shape[1])


def encoded(dataset: Dataset, palette: Palette) -> Iterator[Tokens]:
    """Yield the encoded pictures of a data set in chunks, int64 (≤ 256, H·W)."""
    for start in range(0, len(dataset), _CHUNK):
        yield encode(dataset.images(np.arange(start, min(start + _CHUNK, len(dataset)))), palette)


def histogram_bits(train: Dataset, test: Dataset, palette: Palette) -> float:
    """Bits per pixel of `test` under a baseline: for each position, the frequencies of the colours in `train`.

    A generative model must do better. One is added to every count (Laplace smoothing), so no probability is 0.
    """
    seen, asked = (_counts_by_position(dataset, palette) for dataset in (train, test))    # (H·W, K)
    shares = (seen + 1) / (seen + 1).sum(axis=1, keepdims=True)
    return float(-(asked * np.log2(shares)).sum() / asked.sum())


def _counts_by_position(dataset: Dataset, palette: Palette) -> NDArray[np.int64]:
    """Counts of each colour at each position: (H·W, K)."""
    positions, K = math.prod(dataset.image_shape[:2]), len(palette)
    counts = np.zeros(positions * K, np.int64)
    for tokens in encoded(dataset, palette):
        counts += np.bincount((np.arange(positions) * K + tokens).ravel(), minlength=len(counts))
    return counts.reshape(positions, K)


def _some_pixels(dataset: Dataset, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random sample of at most PIXELS pixels (n, C) from at most PICTURES pictures."""
    pictures = rng.permutation(len(dataset))[:PICTURES]
    channels = dataset.image_shape[2]
    parts = []
    for start in range(0, len(pictures), _CHUNK):
        chosen = np.sort(pictures[start : start + _CHUNK])
        pixels = dataset.images(chosen).reshape(-1, channels)
        share = PIXELS * len(chosen) // len(pictures)
        parts.append(pixels if len(pixels) <= share else pixels[rng.choice(len(pixels), share, replace=False)])
    return np.concatenate(parts)


def _k_means(
    pixels: NDArray[np.float64], colors: NDArray[np.float64], num_colors: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """K centres (K, C) of pixels (n, C): k-means++ among their colours (more than K), then Lloyd's algorithm."""
    from scipy.cluster.vq import kmeans2  # slow to import

    few = colors[rng.choice(len(colors), min(FIRST_COLORS, len(colors)), replace=False)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)        # a centre without pixels stays where it is
        centres, _ = kmeans2(few, num_colors, iter=1, minit="++", seed=rng)
        centres, _ = kmeans2(pixels, centres, iter=ITERATIONS, minit="matrix")
    return centres


def _to_units(values: NDArray) -> NDArray[np.float32]:
    """Scale 0 … 255 to -1 … 1."""
    return values.astype(np.float32) / np.float32(127.5) - 1
