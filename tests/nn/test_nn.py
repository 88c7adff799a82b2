"""Module, layers, initialisers."""

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import nn
from scratchvit.nn import init
from tests.support.seeds import moved, seeded


class Net(nn.Module):
    def __init__(self):
        self.first = nn.Linear(3, 4)
        self.scale = nn.Parameter(np.ones(4, np.float32))
        self.blocks = nn.ModuleList(nn.LayerNorm(4) for _ in range(3))
        self.norm = nn.BatchNorm2d(4)
        self.tied = self.first

    def forward(self, x):
        x = self.first(x) * self.scale
        for block in self.blocks:
            x = block(x)
        return x


def test_names_are_paths_in_order_of_assignment_and_shared_parameters_count_once():
    names = [name for name, _ in Net().named_parameters()]
    assert names == ["scale", "first.weight", "first.bias", "blocks.0.weight", "blocks.0.bias", "blocks.1.weight",
                     "blocks.1.bias", "blocks.2.weight", "blocks.2.bias", "norm.weight", "norm.bias"]
    assert [name for name, _ in Net().named_buffers()] == [
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
    assert Net().num_parameters() == 3 * 4 + 4 + 4 + 3 * 8 + 8


def test_state_dict_is_a_copy_and_goes_back():
    a, b = Net(), Net()
    state = a.state_dict()
    assert b.load_state_dict(state) == ([], [])
    assert all(np.array_equal(value, b.state_dict()[name]) for name, value in state.items())
    a.scale.data += 1
    assert state["scale"][0] == 1


def test_state_that_does_not_fit_is_refused_whole():
    model = Net()
    before = model.state_dict()
    state = {**before, "scale": np.zeros(5, np.float32), "extra": np.zeros(1), "first.bias": np.full(4, 9, np.float32)}
    del state["first.weight"]
    with pytest.raises(sv.ScratchvitError) as error:
        model.load_state_dict(state)
    for text in ("scale (given (5,), the model has (4,))", "1 missing: first.weight", "1 unexpected: extra"):
        assert text in str(error.value)
    assert all(np.array_equal(value, before[name]) for name, value in model.state_dict().items())


def test_state_not_strict_says_what_is_left():
    state = Net().state_dict()
    del state["scale"]
    assert Net().load_state_dict({**state, "extra": np.zeros(1)}, strict=False) == (["scale"], ["extra"])


def test_train_and_eval_reach_every_module():
    model = Net()
    assert all(not module.training for module in model.eval().modules())
    assert all(module.training for module in model.train().modules())


def test_repr_merges_equal_blocks_and_counts_parameters():
    text = repr(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.LayerNorm(4)))
    assert text.split("\n") == [
        "Sequential()  32 parameters", "  0: Linear(3 → 4)  16 parameters", "  1…2: LayerNorm(4)  8 parameters"
    ]


def test_one_generator_serves_the_whole_model():
    model = nn.Sequential(nn.Dropout(0.5), nn.Mlp(4, 8, drop=0.5), nn.DropPath(0.5))
    x = np.ones((16, 4), np.float32)
    outputs = []
    for _ in range(2):
        model.set_generator(sv.random.Generator(moved(3)))
        outputs.append(model(x).numpy())
    assert np.array_equal(*outputs)
    assert np.array_equal(model.eval()(x).numpy(), model(x).numpy())


def test_layers_on_every_device(device):
    x = sv.Tensor(seeded(0).standard_normal((2, 4, 6, 6)).astype(np.float32))
    layers = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.Dropout(0.1), nn.Identity()
    )
    y = layers(x)
    y.sum().backward()
    assert y.shape == (2, 8, 6, 6) and y.dtype == np.float32
    assert all(p.grad is not None and p.grad.dtype == np.float32 for p in layers.parameters())
    assert layers[1].num_batches_tracked.item() == 1
    assert nn.Conv3d(2, 3, (1, 2, 2))(sv.Tensor(np.zeros((1, 2, 3, 4, 4), np.float32))).shape == (1, 3, 3, 3, 3)
    assert nn.Embedding(5, 3)(np.array([[0, 4]])).shape == (1, 2, 3)


@pytest.mark.parametrize(
    ("draw", "std"),
    [
        (lambda shape, rng: init.trunc_normal(shape, rng, std=0.02), 0.02),
        (lambda shape, rng: init.kaiming_uniform(shape, rng), (2 / (64 * 9)) ** 0.5),
        (lambda shape, rng: init.kaiming_normal(shape, rng), (2 / (128 * 9)) ** 0.5),
        (lambda shape, rng: init.kaiming_normal(shape, rng, mode="fan_in"), (2 / (64 * 9)) ** 0.5),
        (lambda shape, rng: init.xavier_uniform(shape, rng), (2 / (192 * 9)) ** 0.5),
        (lambda shape, rng: init.xavier_normal(shape, rng), (2 / (192 * 9)) ** 0.5),
    ],
)
def test_initial_deviations(draw, std):
    values = draw((128, 64, 3, 3), seeded(0))
    assert values.dtype == np.float32
    assert values.std() == pytest.approx(std, rel=0.01) and abs(values.mean()) < std / 50


def test_truncation_draws_again():
    values = init.trunc_normal((100_000,), seeded(0), std=1.0, limit=1.0)
    assert abs(values).max() <= 1 and (abs(values) == 1).sum() < 5


def test_a_module_without_forward_says_so():
    with pytest.raises(TypeError, match="ModuleList has no forward"):
        nn.ModuleList()(1)


@pytest.mark.parametrize("make", [lambda rng: nn.Linear(64, 500, rng=rng), lambda rng: nn.Conv2d(16, 500, 2, rng=rng)])
def test_initial_weights_and_biases_lie_within_one_over_the_root_of_the_inputs(make):
    """As in PyTorch: both draw from ±1/√64, which is where the slope √5 of its `kaiming_uniform_` comes from."""
    layer = make(seeded(0))
    for parameter in (layer.weight, layer.bias):
        assert 0.97 / 8 < abs(parameter.numpy()).max() <= 1 / 8
