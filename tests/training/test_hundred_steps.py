"""A hundred steps on real digits: rates, lengths of gradients, losses, weights and averages as timm and PyTorch's.

Each part of a step alone, so that a fault is pinned to it, for forty of the steps, and all together as in a run: timm's
groups with their `lr_scale`, timm's schedulers, PyTorch's optimisers and clipping, timm's and PyTorch's averages.

One thing is told otherwise by theirs, and translated in `their_time`: during a warm-up of W steps, timm's step t learns
with t/W of the rate, so that the first learns nothing; ours with (t + 1)/W. After it both are the same.
"""

import numpy as np
import pytest

from scratchvit import Tensor, create_model, nn, ops, optim
from scratchvit.data import Loader, Normalize, load
from scratchvit.training import ClassificationTask, TrainConfig
from scratchvit.training.build import make_optimizer, make_schedule
from scratchvit.training.step import LearningStep
from tests.support.margins import assert_all_close, assert_close, named, rounding, ulps
from tests.support.peers import import_timm, randomise
from tests.support.seeds import seeded

pytestmark = pytest.mark.parity

STEPS, BATCH = 100, 16
STEPS_ALONE = 40        # of a part of a step alone
SIZES = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 10} | {
    "embed_dim": 16, "depth": 3, "num_heads": 2,
}
WEIGHT_DECAY, EMA_DECAY = 0.05, 0.97
TOGETHER = {"warmup": 10, "layer_decay": 0.75, "max_norm": 2.0}
ADAMW = ("AdamW", 5e-3, {})
ADAM = ("Adam", 5e-3, {})
SGD = ("SGD", 0.05, {"momentum": 0.9})

RECIPES = {
    "AdamW": {},
    "Adam": {"optimizer": ADAM},
    "SGD": {"optimizer": SGD},
    "Nesterov": {"optimizer": ("SGD", 0.05, {"momentum": 0.9, "nesterov": True})},
    "layer decay": {"layer_decay": 0.75},
    "clipping": {"max_norm": 2.0},
    "cosine": {"schedule": "cosine", "warmup": 10},
    "all, AdamW, cosine": {**TOGETHER, "schedule": "cosine"},
    "all, AdamW, step": {**TOGETHER, "schedule": "step"},
    "all, Adam, linear": {**TOGETHER, "schedule": "linear", "optimizer": ADAM},
    "all, SGD, cosine": {**TOGETHER, "schedule": "cosine", "optimizer": SGD},
}


@pytest.fixture(scope="module")
def digits():
    """100 batches of pictures (16, 1, 8, 8) and labels (16,)."""
    pytest.importorskip("sklearn")
    loader = Loader(load("digits").train, BATCH, Normalize((0.3,), (0.37,)), shuffle=True)
    batches = [batch[:2] for _ in range(2) for batch in loader if len(batch.labels) == BATCH]
    return batches[:STEPS]


def their_schedule(kind, optimizer, warmup=0, min_lr=0.0):
    """timm's scheduler of the same law. It sets the groups' rates, each with its lr_scale."""
    scheduler = pytest.importorskip("timm.scheduler")
    common = {"warmup_t": warmup, "warmup_prefix": True, "t_in_epochs": False}
    length = STEPS - warmup
    if kind == "cosine":
        return scheduler.CosineLRScheduler(optimizer, t_initial=length, lr_min=min_lr, **common)
    if kind == "linear":
        return scheduler.PolyLRScheduler(optimizer, t_initial=length, power=1.0, lr_min=min_lr, **common)
    if kind == "step":
        return scheduler.StepLRScheduler(optimizer, decay_t=length / 3, decay_rate=0.1, **common)
    return scheduler.StepLRScheduler(optimizer, decay_t=length, decay_rate=1.0, **common)


def their_time(step, warmup):
    return step + 1 if step < warmup else step


class Theirs:
    """timm's ViT, trained by timm's and PyTorch's parts alone."""

    def __init__(self, dtype, optimizer=ADAMW, layer_decay=1.0, max_norm=None, schedule="constant", warmup=0):
        timm, torch = import_timm(), pytest.importorskip("torch")
        groups = pytest.importorskip("timm.optim").param_groups_layer_decay
        averages, ema = torch.optim.swa_utils, pytest.importorskip("timm.utils").ModelEmaV3
        name, lr, options = optimizer
        self.torch, self.max_norm, self.warmup = torch, max_norm, warmup
        # As freshly made, a model as small as this stays on its plateau for longer than a hundred steps.
        self.model = randomise(timm.models.vision_transformer.VisionTransformer(**SIZES)).train()
        self.model.to(getattr(torch, dtype.__name__))
        own = groups(self.model, WEIGHT_DECAY, self.model.no_weight_decay(), layer_decay=layer_decay)
        self.optimizer = getattr(torch.optim, name)(own, lr=lr, **options)
        self.schedule = their_schedule(schedule, self.optimizer, warmup)
        self.ema = ema(self.model, decay=EMA_DECAY)
        self.averaged = averages.AveragedModel(self.model, multi_avg_fn=averages.get_ema_multi_avg_fn(EMA_DECAY))
        self.averaged.update_parameters(self.model)     # whose first update only copies, as ours does when it is made

    def step(self, number, images, labels):
        torch = self.torch
        self.optimizer.zero_grad()
        dtype = next(self.model.parameters()).dtype
        loss = torch.nn.functional.cross_entropy(self.model(torch.tensor(images, dtype=dtype)), torch.tensor(labels))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm or float("inf"))
        self.schedule.step_update(their_time(number, self.warmup))
        self.optimizer.step()
        self.ema.update(self.model)
        self.averaged.update_parameters(self.model)
        return loss.item(), norm.item()

    def weights(self):
        """{name: (weight, timm's average, PyTorch's average)}"""
        models = self.model, self.ema.module, self.averaged.module
        first, *rest = (model.state_dict() for model in models)
        return {name: [value.numpy()] + [other[name].numpy() for other in rest] for name, value in first.items()}


class Ours:
    """Our ViT with the weights that theirs began with, and the parts of `optim`."""

    def __init__(self, weights, dtype, optimizer=ADAMW, layer_decay=1.0, max_norm=None, schedule="constant", warmup=0):
        name, lr, options = optimizer
        self.dtype, self.max_norm = dtype, max_norm
        self.model = create_model("vit_tiny_patch16_224", **SIZES)
        for path, parameter in self.model.named_parameters():
            parameter.data = weights[path].astype(dtype)
        groups = optim.param_groups(self.model, WEIGHT_DECAY, layer_decay)
        self.optimizer = getattr(optim, name)(groups, lr=lr, **options)
        self.schedule = optim.Schedule(schedule, lr, total_steps=STEPS, warmup_steps=warmup)
        self.ema = optim.EMA(self.model, EMA_DECAY)

    def step(self, number, images, labels):
        self.optimizer.zero_grad()
        loss = ops.cross_entropy(self.model(Tensor(images.astype(self.dtype))), labels)
        loss.backward()
        norm = optim.clip_grad_norm(self.model.parameters(), self.max_norm or float("inf"))
        self.optimizer.lr = self.schedule.at(number)
        self.optimizer.step()
        self.ema.update()
        return loss.item(), float(norm)


class FromConfig(Ours):
    """The same, put together from a run's configuration and stepped as its loop does it."""

    def __init__(self, weights, dtype, optimizer, layer_decay, max_norm, schedule, warmup, loss_scale=0.0):
        super().__init__(weights, dtype)
        name, lr, options = optimizer
        config = TrainConfig(
            optimizer=name.lower(), lr=lr, min_lr=0.0, weight_decay=WEIGHT_DECAY, layer_decay=layer_decay,
            clip_grad=max_norm, schedule=schedule, epochs=10, warmup_epochs=warmup / 10, loss_scale=loss_scale,
            **options,
        )
        self.optimizer = make_optimizer(config, ClassificationTask(config).param_groups(self.model))
        self.schedule = make_schedule(config, steps_per_epoch=STEPS // 10)
        self.learn = LearningStep(config, self.model, self.optimizer, self.ema)

    def step(self, number, images, labels):
        x = images.astype(self.dtype)

        def compute():
            loss = ops.cross_entropy(self.model(Tensor(x)), labels)
            return loss, loss

        return self.learn(compute, (), x, self.schedule.at(number), look=True)[0].item(), None


def without_key_bias(name, weight):
    """A bias of the keys adds the same to all scores of a query, which softmax ignores: its gradient is rounding error
    alone, and Adam, which divides by the gradient's size, makes whole steps of it."""
    return np.delete(weight, np.s_[len(weight) // 3 : 2 * len(weight) // 3]) if name.endswith("qkv.bias") else weight


def results(told, weights, averages):
    losses, norms = zip(*told)
    found = {"losses": np.array(losses), "norms": None if None in norms else np.array(norms)}
    for part, values in (("weight", weights), ("average", averages)):
        found[part] = {name: without_key_bias(name, value) for name, value in values.items()}
    return found


def our_steps(mine, first, batches, dtype, recipe, **options):
    ours = mine(first, dtype, **recipe, **options)
    told = [ours.step(number, *batch) for number, batch in enumerate(batches)]
    return results(told, ours.model.state_dict(), ours.ema.state_dict())


def assert_same_steps(batches, dtype, recipe, mine=Ours, samples=2):
    """Losses and norms, weights and their averages are theirs in float64. Returns the losses and norms (steps, 2)."""
    theirs = Theirs(np.float64, **recipe)
    first = {name: weight.copy() for name, (weight, *_) in theirs.weights().items()}

    def steps():
        return our_steps(mine, first, batches, dtype, recipe)

    found, bounds = steps(), rounding(steps, dtype=dtype, samples=samples)
    for part in ("weight", "average"):      # which each step rounds once more: a hundred times, up or down, is as ten
        for name, value in found[part].items():
            bounds[f"{part}.{name}"] += ulps(value, 10, dtype)
    told = [theirs.step(number, *batch) for number, batch in enumerate(batches)]
    if found["norms"] is None:
        told = [(loss, None) for loss, _ in told]
    after = theirs.weights()
    weights, *averages = ({name: each[i] for name, each in after.items()} for i in range(3))
    for each, program in zip(averages, ("timm", "PyTorch")):
        assert_all_close(found, results(told, weights, each), bounds, program)
    for name, value in found["weight"].items():
        average, bound = found["average"][name], bounds[f"weight.{name}"]
        assert value.dtype == average.dtype == dtype
        assert np.abs(value - without_key_bias(name, first[name])).max() > 100 * bound, f"{name} did not move"
        assert np.abs(value - average).max() > 100 * bound, f"the average of {name} did not stay behind"
    return np.array(told)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_in_float64(digits, recipe):
    """The same but for rounding."""
    steps = STEPS if recipe.items() >= TOGETHER.items() else STEPS_ALONE
    losses, norms = assert_same_steps(digits[:steps], np.float64, recipe).T
    assert losses[-10:].mean() < (0.7 if steps == STEPS else 0.9) * losses[:10].mean()
    if "max_norm" in recipe:            # some steps were clipped, and some were not
        assert 5 < (norms > recipe["max_norm"]).sum() < steps - 5


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["all, AdamW, cosine", "all, Adam, linear", "all, SGD, cosine"])
def test_the_steps_of_a_run(digits, recipe):
    """A scaled loss gives the same bits: a power of two costs no digit."""
    recipe = {"optimizer": ADAMW, **RECIPES[recipe]}
    assert_same_steps(digits, np.float64, recipe, FromConfig)
    first = {name: weight.copy() for name, (weight, *_) in Theirs(np.float64, **recipe).weights().items()}
    plain, scaled = (
        named(our_steps(FromConfig, first, digits[:STEPS_ALONE], np.float64, recipe, loss_scale=loss_scale))
        for loss_scale in (0.0, 1024.0)
    )
    assert plain.keys() == scaled.keys() and all(np.array_equal(plain[name], scaled[name]) for name in plain)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["all, AdamW, cosine", "all, SGD, cosine"])
def test_in_float32(digits, recipe):
    """As it is trained: rounding errors grow with the steps."""
    assert_same_steps(digits, np.float32, RECIPES[recipe], samples=3)


# --- each part alone, value by value ---


@pytest.mark.parametrize("kind", ["cosine", "linear", "step", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 10, 40])
@pytest.mark.parametrize("min_lr", [0.0, 1e-3])
def test_rates_are_timms(kind, warmup, min_lr):
    """100 steps and some beyond the end, at a group's own scale. timm's `step` and `constant` have no lowest rate."""
    import_timm()
    torch = pytest.importorskip("torch")
    scaled = {"params": [torch.nn.Parameter(torch.zeros(1))], "lr_scale": 0.25}
    optimizer = torch.optim.SGD([scaled, {"params": [torch.nn.Parameter(torch.zeros(1))]}], lr=0.3)
    theirs = their_schedule(kind, optimizer, warmup, min_lr)
    ours = optim.Schedule(kind, 0.3, total_steps=STEPS, warmup_steps=warmup, min_lr=min_lr)
    for step in range(STEPS if kind == "step" else STEPS + 5):
        theirs.step_update(their_time(step, warmup))
        assert [0.25 * ours.at(step), ours.at(step)] == pytest.approx(
            [group["lr"] for group in optimizer.param_groups], rel=1e-12, abs=1e-17
        ), step


@pytest.mark.parametrize("kind", ["cosine", "linear", "step", "constant"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_rates_are_pytorchs(kind, warmup):
    """Its own laws after a `LinearLR`, joined by `SequentialLR`: there, a warm-up ends a step earlier, as ours does."""
    torch = pytest.importorskip("torch")
    laws = torch.optim.lr_scheduler
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    n = STEPS - warmup
    law = {
        "cosine": lambda: laws.CosineAnnealingLR(optimizer, n, eta_min=0.01),
        "linear": lambda: laws.LinearLR(optimizer, 1.0, end_factor=0.01 / 0.3, total_iters=n),
        "step": lambda: laws.MultiStepLR(optimizer, [-(-n // 3), -(-2 * n // 3)], gamma=0.1),
        "constant": lambda: laws.LambdaLR(optimizer, lambda step: 1.0),
    }[kind]
    if warmup:
        rise = laws.LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1)
        scheduler = laws.SequentialLR(optimizer, [rise, law()], [warmup])
    else:
        scheduler = law()
    ours = optim.Schedule(kind, 0.3, STEPS, warmup, min_lr=0.0 if kind == "step" else 0.01)
    for step in range(STEPS):
        assert ours.at(step) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12), step
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_averages_are_timms_and_pytorchs(decay):
    """Over 100 updates; statistics, which are averages already, are copied, as theirs are with these options."""
    import_timm()
    torch, utils = pytest.importorskip("torch"), pytest.importorskip("timm.utils")
    averages = torch.optim.swa_utils
    theirs = torch.nn.BatchNorm2d(5).double()
    ours = nn.BatchNorm2d(5)
    for name, tensor in (*ours.named_parameters(), *ours.named_buffers()):
        tensor.data = theirs.state_dict()[name].numpy().copy()
    found = optim.EMA(ours, decay)
    timms = utils.ModelEmaV3(theirs, decay=decay, exclude_buffers=True)
    pytorchs = averages.AveragedModel(theirs, multi_avg_fn=averages.get_ema_multi_avg_fn(decay), use_buffers=False)
    pytorchs.update_parameters(theirs)      # the first only copies
    rng = seeded(0)
    for _ in range(STEPS):
        for name, tensor in (*ours.named_parameters(), *ours.named_buffers()):
            value = rng.standard_normal(tensor.shape).astype(tensor.data.dtype)
            tensor.data[...] = value
            theirs.state_dict()[name].copy_(torch.tensor(value))
        found.update()
        timms.update(theirs)
        pytorchs.update_parameters(theirs)
    for reference in (timms.module, pytorchs.module):
        expected = reference.state_dict()
        assert found.averages.keys() <= expected.keys()
        for name, value in found.averages.items():
            assert_close(value, expected[name], ulps(1.0, 16, np.float64), name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clipping_is_pytorchs(dtype):
    """Gradients of 100 steps, from far below the largest norm to far above, nothing and not-a-number among them."""
    torch = pytest.importorskip("torch")
    rng = seeded(0)
    shapes = [(3,), (70, 80), (4, 1, 5)]
    for step in range(STEPS):
        size = 0.0 if step == 50 else np.inf if step == 51 else 10 ** rng.uniform(-4, 2)
        ours = [nn.Parameter(np.zeros(shape, dtype)) for shape in shapes]
        theirs = [torch.nn.Parameter(torch.tensor(p.numpy()).double()) for p in ours]
        for mine, other in zip(ours, theirs):
            mine.grad = (size * np.abs(rng.standard_normal(mine.shape))).astype(dtype)
            other.grad = torch.tensor(mine.grad).double()
        with np.errstate(invalid="ignore"):
            norm = optim.clip_grad_norm(ours, 1.0)
        expected = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        assert_close(norm, expected, ulps(expected, 16, dtype), "norm")             # of the sum of 5,623 squares
        for mine, other in zip(ours, theirs):
            assert_close(mine.grad, other.grad, ulps(other.grad, 16, dtype))
