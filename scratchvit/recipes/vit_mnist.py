"""The settings of `vit_fashion` on MNIST, with fewer epochs and shifts instead of flips: the default for MNIST.

command   scratchvit train --recipe vit_mnist --data-dir FOLDER
result    not measured: MNIST was not available
"""

from scratchvit.recipes import vit_fashion

RECIPE = vit_fashion.RECIPE.replace(data="mnist", epochs=10, flip=False, crop_padding=2)
