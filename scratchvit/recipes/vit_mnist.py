"""The regime of `vit_fashion` on MNIST, shorter and with shifts instead of mirror images: for `--data mnist`.

command   scratchvit train --recipe vit_mnist --data-dir FOLDER
result    not measured: MNIST was not at hand
"""

from scratchvit.recipes import vit_fashion

RECIPE = vit_fashion.RECIPE.replace(data="mnist", epochs=10, flip=False, crop_padding=2)
