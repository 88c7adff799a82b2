"""The windows of a Swin, block by block: their positions, attention masks, and the receptive field of a token.

A map of numbered tokens is rolled, padded (or padded, rolled) and partitioned as in `swin.Block.attend`, so the numbers
in the windows say where each token came from. Windows, shifts and regions are those of the blocks themselves, and a
test compares the result with the input of their attention. So if the model differs from the figure in the paper, as
with timm's padding, the drawings show it.

Receptive fields are found without running the model. Block by block, backwards from a token: it depends on all tokens
that the mask of its window lets it attend to, on itself (the residual), and by patch merging on 2×2 tokens of the map
before. These are the pixels where the gradient can be non-zero, for any weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scratchvit import ops
from scratchvit.backend import asnumpy
from scratchvit.errors import ScratchvitError
from scratchvit.models import swin_v2
from scratchvit.models.swin import SwinTransformer
from scratchvit.models.windows import padding_of, relative_position_index, same_region
from scratchvit.nn import Module
from scratchvit.recording import no_grad
from scratchvit.tensor import Tensor

PADDING = -1        # stands for padding, in place of the number of a token


@dataclass(frozen=True)
class BlockWindows:
    """The windows of one block, nW of N = M·M' tokens, on its map of h·w tokens.

    stage, number   from 1; the number counts within the stage
    size            (h, w) of the map
    window, shift   (M, M'), and the shift of the windows down and to the right, in tokens
    places          (nW, N): the number of the token at each position, row by row, or PADDING
    kinds           int8 (nW, N): 1 if the token re-entered at the right, 2 at the bottom, 3 both, 0 neither
    pads_first      whether padding is added before the map is rolled
    attention       the attention layer of the block
    """

    stage: int
    number: int
    size: tuple[int, int]
    window: tuple[int, int]
    shift: tuple[int, int]
    places: NDArray[np.int32]
    kinds: NDArray[np.int8]
    pads_first: bool
    attention: Module

    @property
    def padding(self) -> tuple[int, int]:
        """The padding (rows, columns) that is added to the map so that it can be divided into windows."""
        return padding_of(self.size, self.window)

    def masks(self, windows: NDArray[np.intp] | slice = slice(None)) -> NDArray[np.bool_]:
        """The attention masks of windows, bool (windows, N, N): whether the row's token attends to the column's."""
        return asnumpy(same_region(Tensor(self.kinds[windows]), 1))[:, 0]

    def side_by_side(self, values: NDArray) -> NDArray:
        """Arrange the values of the tokens in windows (nW, N) as the rolled and padded map."""
        (h, w), (below, right) = self.size, self.padding
        return ops.window_reverse(Tensor(values[..., None]), self.window, (h + below, w + right)).numpy()[0, ..., 0]

    def in_place(self, values: NDArray) -> NDArray:
        """Arrange the values of the tokens in windows (nW, N) at their original positions: (h, w)."""
        on_map = np.zeros(self.size, values.dtype)
        inside = self.places != PADDING
        on_map.flat[self.places[inside]] = values[inside]
        return on_map

    def looked_at(self, tokens: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """All tokens that the given tokens attend to, including themselves: bool (h, w) → bool (h, w)."""
        queries = (self.places != PADDING) & tokens.reshape(-1)[self.places]
        windows = np.flatnonzero(queries.any(axis=1))
        seen = np.zeros(self.places.shape, bool)
        seen[windows] = (self.masks(windows) & queries[windows, :, None]).any(axis=1)
        return self.in_place(seen)

    def tokens_looked_at(self, token: tuple[int, int]) -> tuple[int, int]:
        """The number of tokens that a token attends to, including itself, and the number of padding tokens.

        Swin attends to the padding of its windows.
        """
        [window], [place] = np.nonzero(self.places == np.ravel_multi_index(token, self.size))
        mask, padding = self.masks(np.array([window]))[0, place], self.places[window] == PADDING
        return int((mask & ~padding).sum()), int((mask & padding).sum())


def window_blocks(model: SwinTransformer) -> list[BlockWindows]:
    """The windows of all blocks of a Swin or Swin V2, from the image to the head."""
    blocks, size = [], model.patch_embed.grid_size
    for stage, layer in enumerate(model.layers, start=1):
        for number, block in enumerate(layer.blocks, start=1):
            places = places_in_windows(size, block.window, block.shift, block.pads_first)
            kinds = np.zeros(places.shape, np.int8) if block.regions is None else block.regions.numpy()
            blocks.append(BlockWindows(
                stage, number, size, block.window, block.shift, places, kinds, block.pads_first, block.attn
            ))
        size = (size[0] + 1) // 2, (size[1] + 1) // 2
    return blocks


def places_in_windows(
    size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], pads_first: bool = False
) -> NDArray[np.int32]:
    """The number of the token at each position of every window, (nW, N), for a map (h, w); PADDING for padding.

    pads_first: whether the padding is added before the roll, as with `window_rule` huggingface and torchvision.
    """
    below, right = padding_of(size, window)
    added = ((0, below), (0, right))
    numbers = np.arange(size[0] * size[1], dtype=np.int32).reshape(size)                # (h, w)
    if pads_first:
        numbers = np.pad(numbers, added, constant_values=PADDING)
    numbers = np.roll(numbers, (-shift[0], -shift[1]), (0, 1))
    if not pads_first:
        numbers = np.pad(numbers, added, constant_values=PADDING)                       # (h + below, w + right)
    return ops.window_partition(Tensor(numbers[None, :, :, None]), window).numpy()[..., 0]  # (nW, N)


@dataclass(frozen=True)
class MaskKind:
    """The windows of a block that have the same attention mask.

    windows   (nW,): whether a window has this mask
    mask      bool (N, N): whether the token of the row attends to that of the column
    padding   (N,): whether a token is padding
    """

    windows: NDArray[np.bool_]
    mask: NDArray[np.bool_]
    padding: NDArray[np.bool_]


def mask_kinds(block: BlockWindows) -> list[MaskKind]:
    """The distinct masks of a block's windows, at most four: inside, at the right edge, the lower one, the corner."""
    padding = block.places == PADDING
    _, first, kind = np.unique(2 * block.kinds + padding, axis=0, return_index=True, return_inverse=True)
    masks = block.masks(first)
    return [MaskKind(kind == i, masks[i], padding[first[i]]) for i in np.argsort(first)]


def bias_table(block: BlockWindows) -> NDArray:
    """The relative position bias B̂ of every head, (heads, 2M-1, 2M'-1), by offset (Δy, Δx), query minus key.

    In Swin it is a parameter; Swin V2 computes it, 16 σ(G(Δy, Δx)), and it is read from the input of attention.
    Raises ScratchvitError if an entry is not finite.
    """
    attention, (height, width) = block.attention, block.window
    if isinstance(attention, swin_v2.WindowAttention):
        _, a_pair = np.unique(relative_position_index(block.window), return_index=True)
        with no_grad():
            pairs = attention.position_bias().numpy()                           # (heads, N, N)
        table = pairs.reshape(len(pairs), -1)[:, a_pair]
    else:
        table = attention.relative_position_bias_table.numpy().T                # type: ignore[attr-defined]
    if not np.isfinite(table).all():
        raise ScratchvitError(
            f"the position bias of stage {block.stage}, block {block.number} is not finite: the weights are damaged, "
            "use others"
        )
    return table.reshape(-1, 2 * height - 1, 2 * width - 1)


def merged_into(token: tuple[int, int], stage: int) -> tuple[int, int]:
    """The position in a later stage of the token that a token of stage 1 has been merged into."""
    return token[0] >> (stage - 1), token[1] >> (stage - 1)


def reach(blocks: Sequence[BlockWindows], token: tuple[int, int]) -> NDArray[np.bool_]:
    """The receptive field of a token after the last of these blocks: patches of the image, bool (h, w).

    blocks: the first blocks of a model. token: row and column in the map of the last of them.
    """
    reached = np.zeros(blocks[-1].size, bool)
    reached[token] = True
    for i in reversed(range(len(blocks))):
        reached |= blocks[i].looked_at(reached)
        if i and blocks[i].stage != blocks[i - 1].stage:            # merging read 2×2 tokens, at the edge maybe padding
            h, w = blocks[i - 1].size
            reached = reached.repeat(2, axis=0).repeat(2, axis=1)[:h, :w]
    return reached


def reach_after_every_block(blocks: Sequence[BlockWindows], token: tuple[int, int]) -> list[NDArray[np.bool_]]:
    """The receptive field after each block, for a token of stage 1 and the tokens that it is merged into."""
    return [reach(blocks[: i + 1], merged_into(token, block.stage)) for i, block in enumerate(blocks)]


def pixels(patches: NDArray[np.bool_], patch_size: tuple[int, int]) -> NDArray[np.bool_]:
    """Enlarge a mask of patches (h, w) to pixels (H, W)."""
    return patches.repeat(patch_size[0], axis=0).repeat(patch_size[1], axis=1)


def extent(reached: NDArray[np.bool_]) -> tuple[int, int]:
    """The size (height, width) of the smallest box around a receptive field."""
    spans = []
    for axis in (1, 0):
        along = np.flatnonzero(reached.any(axis=axis))
        spans.append(int(along[-1] - along[0] + 1))
    return spans[0], spans[1]
