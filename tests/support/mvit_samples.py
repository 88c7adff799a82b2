"""What the tests of MViT and MViTv2 share."""

import scratchvit as sv
from scratchvit import nn
from tests.support.model_parity import in_float64
from tests.support.peers import import_torchvision
from tests.support.seeds import seeded


def without_weights(name, **options):
    with nn.init.without_weights():
        return sv.create_model(name, **options)


def randomised(module, seed=0):
    """The module in float64 with random numbers everywhere."""
    rng = seeded(seed)
    for parameter in module.parameters():
        parameter.assign(rng.standard_normal(parameter.shape))
    return in_float64(module)


def check_gradients(module, x):
    """Finite differences with respect to x and every parameter of a module in float64."""
    places = [(owner, name) for owner in module.modules() for name, value in vars(owner).items()
              if isinstance(value, nn.Parameter)]
    values = [getattr(owner, name).data for owner, name in places]

    def run(x, *parameters):
        for (owner, name), parameter in zip(places, parameters):
            vars(owner)[name] = parameter       # a Tensor where the model has a Parameter
        return module(x)

    sv.gradcheck(run, x, *values)


def torchvisions(monkeypatch, name, **options):
    """A function that makes torchvision's model with some arguments of its class replaced, which it keeps to itself."""
    video = import_torchvision().models.video.mvit

    def make(**weights):
        with monkeypatch.context() as patch:
            cls = video.MViT
            patch.setattr(video, "MViT", lambda **kwargs: cls(**{**kwargs, **options}))
            return getattr(video, name)(**weights)

    return make
