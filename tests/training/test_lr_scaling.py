"""The learning rate for another batch size: lr_scaling and lr_base_batch."""

import pytest

from scratchvit.cli._run_command import describe_steps
from scratchvit.errors import ScratchvitError
from scratchvit.recipes import list_recipes, load_recipe
from scratchvit.training import ClassificationTask, TrainConfig, TrainingLoop
from scratchvit.training.build import check_run, make_schedule, scaled_lr
from tests.support.runs import CONFIG


@pytest.mark.parametrize(("settings", "expected"), [
    ({"lr": 0.1, "lr_scaling": "linear", "batch_size": 8192}, 3.2),         # Goyal et al., for ResNet-50 on ImageNet
    ({"lr": 0.1, "lr_scaling": "linear", "batch_size": 64}, 0.025),
    ({"lr": 0.1, "lr_scaling": "sqrt", "batch_size": 1024}, 0.2),
    ({"lr": 5e-4, "lr_scaling": "linear", "batch_size": 1024, "lr_base_batch": 512}, 1e-3),     # DeiT
    ({"lr": 5e-4, "lr_scaling": "sqrt", "batch_size": 64, "accumulate": 4}, 2.5e-4),    # parts of a batch do not matter
    ({"lr": 0.1, "batch_size": 8192}, 0.1),
])
def test_the_rate_after_the_warm_up(settings, expected):
    config = TrainConfig(epochs=4, warmup_epochs=1, **settings)
    check_run(config)
    schedule = make_schedule(config, steps_per_epoch=10)
    assert max(schedule.at(step) for step in range(40)) == schedule.at(9) == pytest.approx(expected, rel=1e-15)
    assert schedule.at(0) == pytest.approx(expected / 10, rel=1e-15)
    assert schedule.at(40) == config.min_lr         # which is not scaled


def test_unscaled_rates_are_the_settings_own_bit_for_bit():
    for name in list_recipes(TrainConfig):
        config = load_recipe(name, TrainConfig)
        assert config.lr_scaling == "none" and scaled_lr(config) == config.lr
    assert scaled_lr(TrainConfig(lr=0.3, batch_size=256, lr_scaling="linear")) == 0.3


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"lr_scaling": "square"}, "lr_scaling is one of none, linear, sqrt, not 'square'"),
    ({"lr_scaling": "sqrt", "lr_base_batch": 0}, "lr_base_batch must be at least 1, not 0"),
    ({"lr_base_batch": 512}, "lr_base_batch 512 needs lr_scaling linear or sqrt: set it, or leave lr_base_batch out"),
    ({"lr": 1e-4, "lr_scaling": "linear", "batch_size": 16},
     "lr_scaling linear makes lr 6.25e-06, which is below min_lr, 1e-05: use a lower min_lr or a larger lr"),
])
def test_settings_that_are_refused(settings, sentence):
    with pytest.raises(ScratchvitError) as error:
        check_run(TrainConfig(**settings))
    assert str(error.value) == sentence


def test_a_run_says_its_rate_and_trains_with_it(tmp_path):
    config = CONFIG.replace(epochs=1, warmup_epochs=0, schedule="constant", lr=1e-3, batch_size=1024, lr_scaling="sqrt")
    assert describe_steps(config, 2) == (
        "1 epoch of 2 steps, 1,024 images per step; adamw, lr 0.002 (0.001 for 256 images, sqrt scaling), constant "
        "schedule"
    )
    with (loop := TrainingLoop(ClassificationTask(config), config, tmp_path / "run", log=lambda line: None)).folder:
        loop.run()
    assert loop.history[0]["lr"] == loop.optimizer.lr == 2e-3
