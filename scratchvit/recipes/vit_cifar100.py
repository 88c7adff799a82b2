"""The settings of `vit_cifar10` on CIFAR-100: the default for `--data cifar100`.

command   scratchvit train --recipe vit_cifar100 --data-dir FOLDER
result    not measured: CIFAR-100 was not available
"""

from scratchvit.recipes import vit_cifar10

RECIPE = vit_cifar10.RECIPE.replace(data="cifar100")
