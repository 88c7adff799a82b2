"""What the windows of a Swin do, block by block: where they lie, who may look at whom, and how far a token reaches.

Nothing here is drawn from memory of the paper. A map of numbered places is sent through `in_windows`, the function that
cuts, rolls and pads in every block; what arrives in the windows tells where each token came from. Masks are those of
`same_region`. So where the model differs from the paper's figure, as timm's padding does, it shows.

Receptive growth needs no running of the model. Block by block, backwards from the token that is asked about: a token
depends on all that its window's mask lets it look at, on itself (the residual), and in merging on 2×2 tokens of the
map before. These are the pixels where the gradient need not be zero, whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scratchvit.backend import Array, asnumpy
from scratchvit.errors import ScratchvitError
from scratchvit.models import swin_v2
from scratchvit.models.swin import SwinTransformer
from scratchvit.models.windows import in_windows, padding_of, relative_position_index, same_region, window_reverse
from scratchvit.nn import Module
from scratchvit.recording import no_grad
from scratchvit.tensor import Tensor

PADDING = -1        # instead of a place: a token that is none of the map's


@dataclass(frozen=True)
class BlockWindows:
    """The windows of one block, nW of N = M·M' tokens, on its map of h·w tokens.

    stage, number   from 1; the number counts within the stage
    size            (h, w) of the map
    window, shift   (M, M') and how many tokens the windows are moved down and to the right
    places          (nW, N): which token of the map stands there, row by row, or PADDING
    kinds           int8 (nW, N): 0 where the token was, 1 carried over from the left, 2 from above, 3 from both
    attention       the block's layer of attention
    """

    stage: int
    number: int
    size: tuple[int, int]
    window: tuple[int, int]
    shift: tuple[int, int]
    places: NDArray[np.int32]
    kinds: NDArray[np.int8]
    attention: Module

    @property
    def padding(self) -> tuple[int, int]:
        """(rows, columns) that the map lacks to be whole windows."""
        return padding_of(self.size, self.window)

    def masks(self, windows: NDArray[np.intp] | slice = slice(None)) -> NDArray[np.bool_]:
        """The masks of attention in these windows, bool (windows, N, N): whether a token (row) may look at another."""
        return asnumpy(same_region(Tensor(self.kinds[windows]), 1))[:, 0]

    def side_by_side(self, values: NDArray) -> NDArray:
        """Values of the windows' tokens (nW, N) as the rolled and padded map that the windows are cut from."""
        (h, w), (below, right) = self.size, self.padding
        return window_reverse(Tensor(values[..., None]), self.window, (h + below, w + right)).numpy()[0, ..., 0]

    def in_place(self, values: NDArray) -> NDArray:
        """Values of the windows' tokens (nW, N) at the tokens' own places: (h, w)."""
        on_map = np.zeros(self.size, values.dtype)
        inside = self.places != PADDING
        on_map.flat[self.places[inside]] = values[inside]
        return on_map

    def looked_at(self, tokens: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """All that these tokens of the map may look at, themselves included: bool (h, w) → bool (h, w)."""
        asking = (self.places != PADDING) & tokens.reshape(-1)[self.places]
        windows = np.flatnonzero(asking.any(axis=1))
        seen = np.zeros(self.places.shape, bool)
        seen[windows] = (self.masks(windows) & asking[windows, :, None]).any(axis=1)
        return self.in_place(seen)

    def tokens_looked_at(self, token: tuple[int, int]) -> tuple[int, int]:
        """How many tokens of the map a token attends to, itself included, and how many of padding: as timm's, Swin
        attends to what its windows are filled up with."""
        [window], [place] = np.nonzero(self.places == np.ravel_multi_index(token, self.size))
        mask, padding = self.masks(np.array([window]))[0, place], self.places[window] == PADDING
        return int((mask & ~padding).sum()), int((mask & padding).sum())


def window_blocks(model: SwinTransformer) -> list[BlockWindows]:
    """The windows of all blocks of a Swin or Swin V2, from the image to the head."""
    blocks, size = [], model.patch_embed.grid_size
    for stage, layer in enumerate(model.layers, start=1):
        for number, block in enumerate(layer.blocks, start=1):
            places = places_in_windows(size, block.window, block.shift, block.regions)
            kinds = np.zeros(places.shape, np.int8) if block.regions is None else block.regions.numpy()
            blocks.append(BlockWindows(stage, number, size, block.window, block.shift, places, kinds, block.attn))
        size = (size[0] + 1) // 2, (size[1] + 1) // 2
    return blocks


def places_in_windows(
    size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], regions: Tensor | None
) -> NDArray[np.int32]:
    """Which token of the map (h, w) stands where in every window, (nW, N): its number row by row, or PADDING."""
    arrived: list[Tensor] = []

    def remember(tokens: Tensor, mask: Array | None) -> Tensor:
        arrived.append(tokens)
        return tokens

    numbers = np.arange(1, 1 + size[0] * size[1], dtype=np.int32).reshape(1, *size, 1)      # padding is 0
    with no_grad():
        in_windows(remember, Tensor(numbers), window, shift, regions)
    return arrived[0].numpy()[..., 0] - 1


@dataclass(frozen=True)
class MaskKind:
    """Windows of a block that are masked alike.

    windows   (nW,): whether a window is one of them
    mask      bool (N, N), whether the token of the row may look at that of the column
    padding   (N,): whether the token is padding
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
    """The relative position bias B̂ of every head, (heads, 2M-1, 2M'-1), by offset (Δy, Δx) of query and key.

    Swin learned it; Swin V2 computes it, 16 σ(G(Δy, Δx)): there it is read from the pairs that attention is given.
    Raises ScratchvitError for what is no finite number.
    """
    attention, (M, N) = block.attention, block.window
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
            "take others"
        )
    return table.reshape(-1, 2 * M - 1, 2 * N - 1)


def follow(token: tuple[int, int], stage: int) -> tuple[int, int]:
    """Where a token of the first stage's map is in a later stage's: what it has been merged into."""
    return token[0] >> (stage - 1), token[1] >> (stage - 1)


def reach(blocks: Sequence[BlockWindows], token: tuple[int, int]) -> NDArray[np.bool_]:
    """The patches of the image that a token can depend on after the last of these blocks, bool, the first map's (h, w).

    blocks: the first ones of a model. token: its row and column in the last one's map.
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
    """`reach` after each block, for a token of the first stage's map and what it is merged into later."""
    return [reach(blocks[: i + 1], follow(token, block.stage)) for i, block in enumerate(blocks)]


def pixels(patches: NDArray[np.bool_], patch_size: tuple[int, int]) -> NDArray[np.bool_]:
    """Patches (h, w) → the pixels that they are made of, (H, W)."""
    return patches.repeat(patch_size[0], axis=0).repeat(patch_size[1], axis=1)


def extent(reached: NDArray[np.bool_]) -> tuple[int, int]:
    """(height, width) of the smallest box around what is reached."""
    spans = []
    for axis in (1, 0):
        along = np.flatnonzero(reached.any(axis=axis))
        spans.append(int(along[-1] - along[0] + 1))
    return spans[0], spans[1]
