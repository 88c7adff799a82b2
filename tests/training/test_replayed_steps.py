"""Steps that are captured and replayed on a GPU train, bit for bit, as steps of single operations do."""

from typing import Any

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import nn, ops, optim, shadow
from scratchvit.backend import asarray, asnumpy
from scratchvit.nn import evaluating
from scratchvit.precision import HALVES
from scratchvit.random import Generator
from scratchvit.replay import WARM_UP
from scratchvit.tensor import Tensor
from scratchvit.training import Means
from scratchvit.training.build import make_optimizer
from scratchvit.training.config import TrainConfig
from scratchvit.training.step import LearningStep, NotFinite
from tests.support.seeds import seeded

pytestmark = pytest.mark.usefixtures("cuda")

STEPS = 50
DROPS: dict[str, Any] = {"drop_path_rate": 0.2}
# Small models of each family, with what is drawn at random in it.
MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {
        "img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "proj_drop_rate": 0.1,
        "attn_drop_rate": 0.1, **DROPS,
    },
    "swin_tiny_patch4_window7_224": {
        "img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2), **DROPS,
    },
    "resnet18": {"img_size": 32, "layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)},
    "mvitv2_tiny": {"img_size": 32, "embed_dim": 16, "depths": (1, 1, 1, 1), **DROPS},
}


class Run:
    """A model that is trained on random images."""

    def __init__(self, name: str, replay: bool, optimizer: str = "adamw", **settings: Any):
        options = {"num_classes": 10, "seed": 0, **MODELS[name]}
        self.model: Any = sv.create_model(name, **options)
        self.model.train()
        self.model.set_generator(Generator(5))
        config = TrainConfig(replay=replay, clip_grad=1.0, optimizer=optimizer, **settings)
        self.optimizer = make_optimizer(config, optim.param_groups(self.model, 0.05))
        self.ema = optim.EMA(self.model, 0.9)
        self.meter = Means()
        self.step = self.made_by(config)
        self.side, self.rng = options["img_size"], seeded(0)
        self.losses: list[float] = []

    def made_by(self, config: TrainConfig) -> Any:
        return LearningStep(config, self.model, self.optimizer, self.ema, self.failed, self.note)

    def failed(self, line: str) -> None:
        raise AssertionError(line)

    def learn(self, number: int, images: int = 2, spoil: float = 1.0, look: bool = False) -> None:
        x = asarray(self.rng.standard_normal((images, 3, self.side, self.side), dtype=np.float32) * np.float32(spoil))
        y = asarray(self.rng.integers(10, size=images))
        noted = self.step(self.compute, (x, y), x, 1e-3 / (number + 1), look)
        self.losses += [float(loss.data) for loss in noted]

    def compute(self, x: Any, y: Any) -> tuple[Tensor, Tensor]:
        loss = ops.cross_entropy(self.model(Tensor(x)), y)
        return loss, loss

    def note(self, loss: Tensor, made: Any) -> None:
        self.meter.add({"loss": loss}, 2, made=made)

    @property
    def state(self) -> dict[str, Any]:
        """The losses, weights, averages, buffers and moments, bit for bit; what was counted and summed."""
        arrays = self.model.state_dict() | {f"average of {k}": v for k, v in self.ema.state_dict().items()}
        arrays |= {k: np.asarray(v) for k, v in self.optimizer.state_dict().items()}
        losses = [repr(loss) for loss in self.losses]
        counted = {"losses": losses, "step": self.step.state_dict(), "meter": self.meter.read()}
        return {**counted, **{name: array.tobytes() for name, array in arrays.items()}}


class DecidedByTheHost:
    """`LearningStep` as one would write it for a CPU: it reads whether a step is finite, and acts on it."""

    def __init__(self, run: Run, config: TrainConfig):
        self.run, self.config = run, config
        self.factor, self.clean_steps = config.loss_scale, 0
        self.skipped = self.in_a_row = 0

    def __call__(self, compute: Any, arrays: Any, images: Any, lr: float, look: bool) -> list[Tensor]:
        run, config = self.run, self.config
        before = {name: buffer.data.copy() for name, buffer in run.model.named_buffers()}
        run.optimizer.zero_grad()
        run.optimizer.lr = lr
        loss, noted = compute(*arrays)
        parameters = list(run.model.parameters())
        (loss * self.factor if config.loss_scale else loss).backward()
        if config.loss_scale:
            for parameter in parameters:
                parameter.grad *= np.float32(1 / self.factor)
        norm = optim.grad_norm(parameters)
        loss_is_finite = bool(np.isfinite(asnumpy(loss.data)))
        finite = loss_is_finite and bool(np.isfinite(asnumpy(norm)))
        if finite:
            run.optimizer.step(optim.clip_factor(norm, config.clip_grad))
            run.ema.update()
            run.note(noted, None)
            self.in_a_row = 0
        else:
            for name, buffer in run.model.named_buffers():
                buffer.data[...] = before[name]
            self.skipped += 1
            self.in_a_row += not (self.factor > 1 and loss_is_finite)
        self.clean_steps = self.clean_steps + 1 if finite else 0
        self.factor *= 1 if finite else 0.5
        return [noted]

    def state_dict(self) -> dict[str, Any]:
        scaler = {"factor": self.factor, "clean_steps": self.clean_steps} if self.config.loss_scale else None
        return {"skipped": self.skipped, "skipped_in_a_row": self.in_a_row, "scaler": scaler}


class HostRun(Run):
    """The run whose steps the host decides about."""

    def made_by(self, config: TrainConfig) -> Any:
        return DecidedByTheHost(self, config)


@pytest.mark.parametrize("name", MODELS)
def test_fifty_steps(name):
    eager, replayed = Run(name, False), Run(name, True)
    for number in range(STEPS):
        for run in (eager, replayed):
            run.learn(number, look=number % 20 == 19)
    assert replayed.step._whole.was_replayed
    assert replayed.state == eager.state


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_steps_in_16_bits(name, dtype):
    """Also where the weights are exchanged between steps: a shadow is cast again before the replay."""
    eager, replayed = Run(name, False), Run(name, True)
    for number in range(16):
        for run in (eager, replayed):
            with sv.autocast(dtype):
                run.learn(number, look=number == 9)
                if number == 5:         # as in validation: the averages in the place of the weights
                    with run.ema.applied(), evaluating(run.model):
                        run.model(np.zeros((1, 3, run.side, run.side), np.float32))
            if number == 7:
                run.model.load_state_dict({k: v + v // 8 for k, v in run.model.state_dict().items()})
            if number == 11:            # another precision is another graph
                run.learn(number)
    assert replayed.step._whole.was_replayed
    assert replayed.state == eager.state
    for parameter in replayed.model.parameters():
        if parameter.shadows is not None:
            shadow = asnumpy(parameter.shadows.get(parameter, HALVES[dtype]))
            assert shadow.tobytes() == parameter.numpy().astype(shadow.dtype).tobytes()


def test_a_step_in_16_bits_casts_no_parameter(monkeypatch):
    """The optimiser's kernel writes the shadows, where they are."""
    run, half = Run("vit_tiny_patch16_224", False), HALVES["bfloat16"]
    casts: list[Any] = []
    cast = shadow.store_into
    monkeypatch.setattr(shadow, "store_into", lambda *args: casts.append(args) or cast(*args))
    with sv.autocast("bfloat16"):
        run.learn(0)
        used = [p for p in run.model.parameters() if p.shadows is not None]
        places = [p.shadow(half).data.ptr for p in used]
        run.learn(1)
        assert len(used) > 10 and not casts
        with sv.no_grad():
            used[0] *= 2.0
        run.learn(2)
    assert len(casts) == 1 and [p.shadow(half).data.ptr for p in used] == places


@pytest.mark.parametrize(("name", "more"), [("vit_tiny_patch16_224", 5), ("resnet18", 5)])
def test_a_step_in_16_bits_launches_hardly_more_kernels(name, more):
    """The images are cast, and the answers; no weight, and nothing between the layers."""
    from fakegpu import device

    launches = {}
    for dtype in ("float32", "bfloat16"):
        run = Run(name, False)
        with sv.autocast(dtype):
            for number in range(2):
                run.learn(number)
            before = device.counts()["launches"]
            run.learn(2)
        launches[dtype] = device.counts()["launches"] - before
    assert launches["bfloat16"] <= launches["float32"] + more


def test_a_step_in_which_the_shapes_change():
    eager, replayed = (Run("vit_tiny_patch16_224", replay) for replay in (False, True))
    for number in range(12):
        for run in (eager, replayed):
            run.learn(number, images=3 if number % 4 == 3 else 2)
    assert replayed.state == eager.state


@pytest.mark.parametrize("replay", [False, True], ids=["eager", "replayed"])
@pytest.mark.parametrize(("name", "optimizer", "settings"), [
    ("resnet18", "adamw", {}), ("resnet18", "sgd", {"loss_scale": 2.0**127}),
    ("vit_tiny_patch16_224", "adamw", {"loss_scale": 2.0**127}), ("vit_tiny_patch16_224", "sgd", {}),
], ids=lambda value: str(value))
def test_steps_that_are_skipped(name, optimizer, settings, replay):
    """Weights, moments, averages and running statistics stay as they were; the scale of the loss changes, and steps
    are counted, on the device, as if the host had read every flag and had called the optimiser or not."""
    decided, ours = (make(name, replay, optimizer, non_finite="skip", **settings) for make in (HostRun, Run))
    head = next(p for n, p in ours.model.named_parameters() if n.split(".")[0] in ("fc", "head") and p.ndim == 2)
    for run in (decided, ours):         # steep: the first factors overflow
        dict(run.model.named_parameters())[next(n for n, p in ours.model.named_parameters() if p is head)].data *= 50
    for number in range(STEPS if replay else 12):
        for run in (decided, ours):
            run.learn(number, spoil=np.inf if number in (1, 6, 7, 30) else 1.0, look=number % 20 == 19)
    assert ours.step._whole is None or ours.step._whole.was_replayed
    assert decided.step.skipped > (4 if settings else 2)
    assert ours.state == decided.state


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_gradients_that_are_added_over_parts_of_the_batch(name):
    """All parts are in one graph. Each draws its own dropout, and one that is not finite skips the step."""
    settings = {"accumulate": 2, "batch_size": 4, "non_finite": "skip", "loss_scale": 8.0}
    eager, replayed = (Run(name, replay, **settings) for replay in (False, True))
    for number in range(12):
        for run in (eager, replayed):
            run.learn(number, images=4, spoil=np.inf if number == 7 else 1.0, look=number == 8)
    assert replayed.step._whole.was_replayed and len(replayed.losses) == 24
    assert replayed.state == eager.state
    assert replayed.step.skipped == 1 and replayed.meter.read().images == 44


@pytest.mark.parametrize("settings", [{}, {"non_finite": "skip"}, {"loss_scale": 2.0**127}], ids=str)
def test_a_step_that_may_be_skipped_is_one_launch_and_reads_nothing(settings):
    from fakegpu import device

    run = Run("resnet18", True, **settings)
    x, y = asarray(np.zeros((2, 3, 32, 32), np.float32)), asarray(np.zeros(2, np.int64))
    for _ in range(WARM_UP + 1):
        run.step(run.compute, (x, y), x, 1e-3, False)
    before = device.counts()
    seen: list[str] = []
    device.trace(lambda what, name, a, b: seen.append(what))
    for _ in range(10):
        run.step(run.compute, (x, y), x, 1e-3, False)
    device.trace(None)
    after = device.counts()
    assert seen.count("graph launch") == 10 and len(seen) == 40       # with two arguments and the numbers of each
    assert after["d2h"] == before["d2h"] and after["syncs"] == before["syncs"]
    run.step(run.compute, (x, y), x, 1e-3, True)
    assert device.counts()["d2h"] == before["d2h"] + 1


@pytest.mark.parametrize("replay", [False, True], ids=["eager", "replayed"])
def test_a_step_that_ends_the_run_is_found_at_the_look(replay):
    """Its weights are as they were, and the layer is named if the step is the last one."""
    run = Run("resnet18", replay)
    for number in range(6):
        run.learn(number)
    before = {name: value.tobytes() for name, value in run.model.state_dict().items() if "running" not in name}
    with pytest.raises(NotFinite, match="the loss is not finite; the images of the batch are not finite"):
        run.learn(6, spoil=np.inf, look=True)
    after = run.model.state_dict()
    assert all(after[name].tobytes() == value for name, value in before.items() if "tracked" not in name)
    with pytest.raises(NotFinite, match="the loss was not finite; that step is past"):
        run.learn(7, look=True)


def test_ten_skipped_steps_between_two_looks_end_the_run():
    run = Run("resnet18", True, non_finite="skip")
    for number in range(19):
        run.learn(number, spoil=np.inf if 5 <= number < 15 else 1.0)
    with pytest.raises(NotFinite, match="10 steps in a row were skipped; in the last of them the loss was not finite"):
        run.learn(19, look=True)


def test_parameters_that_take_part_in_some_steps_only():
    """What was skipped is taken back from those that had counted it."""

    def weights(decides: bool) -> list[Any]:
        rng = seeded(1)
        parameters = [nn.Parameter(rng.standard_normal(7).astype(np.float32)) for _ in range(3)]
        optimizer, decision = optim.AdamW(parameters, 0.1), optim.Decision()
        for number in range(12):
            finite = number % 3 != 1
            for i, parameter in enumerate(parameters):
                g = rng.standard_normal(7).astype(np.float32)
                parameter.grad = asarray(g) if i == 0 or number % (i + 2) else None
            if decides:
                one = asarray(np.float32(1.0 if finite else np.nan))
                decision.judge(one, one)
                optimizer.step(decision=decision)
            elif finite:
                optimizer.step()
        state = optimizer.state_dict()
        return [*(p.numpy().tobytes() for p in parameters), *(np.asarray(value).tobytes() for value in state.values())]

    assert weights(True) == weights(False)


def test_a_replayed_step_is_one_launch():
    from fakegpu import device

    run = Run("vit_tiny_patch16_224", True)
    for number in range(WARM_UP + 1):
        run.learn(number)
    seen: list[str] = []
    x, y = asarray(np.zeros((2, 3, 16, 16), np.float32)), asarray(np.zeros(2, np.int64))
    device.trace(lambda what, name, a, b: seen.append(f"{what} {name}" if what.startswith("memcpy") else what))
    run.step(run.compute, (x, y), x, 1e-3, False)
    device.trace(None)
    # Its arguments are copied, and the numbers of the step: learning rates and random keys.
    assert sorted(seen) == ["graph launch", "memcpyAsync d2d", "memcpyAsync d2d", "memcpyAsync h2d"]
