"""The random numbers of a batch of which a process has some images only.

Several processes that train one model divide every batch. An image shall be augmented as it would be in one process, so
each of them draws the numbers of the whole batch, of which an image has a few, and uses the rows of its own images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scratchvit.errors import ScratchvitError

_SIZE = {       # method of a generator → the place of `size` among its arguments
    "random": 0, "standard_normal": 0, "choice": 1, "integers": 2, "uniform": 2, "normal": 2, "beta": 2,
}


class ShareOfDraws:
    """What a transform gets in place of the `np.random.Generator` of a batch, if it is called with some rows of it.

    generator   the generator of the whole batch
    rows        which rows of the batch the transform is called with
    indices     the samples of the whole batch (B,)

    A draw for n images, rng.random(n) or rng.integers(0, 9, size=(n, 2)), is made for all images of the batch, and
    returns the rows of these n. Raises ScratchvitError for a draw whose first axis is not n long, and for other methods
    of a generator: it would be unclear which of the numbers belong to which image.
    """

    def __init__(self, generator: np.random.Generator, rows: slice, indices: NDArray[np.intp]):
        self.generator, self.rows, self.indices = generator, rows, indices

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_") or not hasattr(np.random.Generator, name):
            raise AttributeError(name)
        own = self.rows.stop - self.rows.start
        wanted = (
            f"draw for all of its {own} images at once, as rng.random(len(images)) or rng.random((len(images), …)), or "
            "use one process"
        )
        if name not in _SIZE:
            raise ScratchvitError(
                f"a transform calls rng.{name}, of which it is not known what belongs to which image, and the images "
                f"of a batch are divided among processes: {wanted}"
            )

        def draw(*arguments: Any, **named: Any) -> Any:
            place = _SIZE[name]
            size = arguments[place] if len(arguments) > place else named.get("size")
            shape = (size,) if isinstance(size, int | np.integer) else tuple(size or ())
            if shape[:1] != (own,):
                raise ScratchvitError(
                    f"a transform draws rng.{name} with size {size}, and the images of a batch are divided among "
                    f"processes: {wanted}"
                )
            shape = (len(self.indices), *shape[1:])
            if len(arguments) > place:
                arguments = (*arguments[:place], shape, *arguments[place + 1 :])
            else:
                named["size"] = shape
            return getattr(self.generator, name)(*arguments, **named)[self.rows]

        return draw


def whole_batch(rng: np.random.Generator | ShareOfDraws, count: int) -> tuple[np.random.Generator, slice, int]:
    """The generator of a whole batch, the rows in it of the `count` images of a transform, and its number of images.

    For a transform that draws other than one row for each image.
    """
    if isinstance(rng, ShareOfDraws):
        return rng.generator, rng.rows, len(rng.indices)
    return rng, slice(0, count), count
