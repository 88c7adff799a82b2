"""A small ViT from scratch on your own pictures: the default of `scratchvit train --data FOLDER` if there are many.

paper     as in vit_cifar10, whose settings these are
command   scratchvit train --recipe vit_pictures --data FOLDER
result    on CIFAR-10 in an image folder, those of vit_cifar10: 79.4 % after 30 epochs

Without --recipe, the size of the pictures follows the folder, see `_own_pictures`.
"""

from scratchvit.recipes.vit_cifar10 import RECIPE as CIFAR10

RECIPE = CIFAR10.replace(data="FOLDER")
