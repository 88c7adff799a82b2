"""What a step learns from: mixed pictures, a teacher, regularisation by one number; and a run that uses all of it."""

import pytest

import scratchvit as sv
from scratchvit.backend import asnumpy
from scratchvit.data.randaugment import LEVELS
from scratchvit.training import train
from scratchvit.training.classification import prepare
from scratchvit.training.classification.distill import Teacher, hard_distillation, soft_distillation
from scratchvit.training.classification.objective import Objective
from tests.support.margins import agree
from tests.support.runs import CONFIG, EVERYTHING, assert_same_run

DISTILLED = CONFIG.replace(model="deit_tiny_distilled_patch16_224")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A finished run whose model is another than the student's."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    train(CONFIG.replace(epochs=2, model_args={**CONFIG.model_args, "global_pool": "avg"}), folder)
    return folder


def a_batch(loop):
    return next(iter(loop.loader))


def test_without_anything_it_is_cross_entropy(tmp_path):
    loop = prepare(CONFIG.replace(label_smoothing=0.1), tmp_path / "run")
    images, labels, indices = a_batch(loop)
    loss, logits = loop.task.objective(loop.model, images, labels, indices, 0)
    assert loss.item() == sv.ops.cross_entropy(loop.model(images), labels, label_smoothing=0.1).item()
    assert logits.shape == (256, 10)


@pytest.mark.parametrize("settings", [{"mixup": 0.8}, {"cutmix": 1.0}, {"augment": "heavy2"}], ids=str)
def test_mixing_follows_the_seed_and_the_step(settings, tmp_path):
    config = CONFIG.replace(**settings)
    loop = prepare(config, tmp_path / "run")
    batch = a_batch(loop)
    same, again, later = (loop.task.objective(loop.model, *batch, step)[0].item() for step in (3, 3, 4))
    assert same == again != later
    other = Objective(config.replace(seed=1), loop.model, loop.about)
    assert other(loop.model, *batch, 3)[0].item() != same


def test_a_level_brings_its_own_mixup_and_an_option_another(tmp_path):
    loop = prepare(CONFIG.replace(augment="heavy2"), tmp_path / "run")
    assert loop.task.objective.mix.mixup_alpha == LEVELS["heavy2"].mixup_alpha == 0.8
    assert Objective(CONFIG.replace(augment="heavy2", mixup=0.3), loop.model, loop.about).mix.mixup_alpha == 0.3
    assert Objective(CONFIG.replace(augment="light1"), loop.model, loop.about).mix is None


@pytest.mark.parametrize("distill", ["hard", "soft"])
def test_the_distillation_token_answers_to_the_teacher(distill, teacher, tmp_path):
    config = DISTILLED.replace(teacher=str(teacher), distill=distill, flip=True)
    loop = prepare(config, tmp_path / "run")
    images, labels, indices = a_batch(loop)
    loop.model.train()
    loss, logits = loop.task.objective(loop.model, images, labels, indices, 0)

    said = Teacher.load(teacher, loop.about)(images)
    formula = hard_distillation if distill == "hard" else soft_distillation

    def expected():
        pair = loop.model(images)
        return {"loss": formula(pair, labels, said), "logits": (pair[0] + pair[1]) / 2}

    agree(expected, {"loss": loss, "logits": logits}, samples=1)


def test_pictures_that_stay_the_same_are_shown_to_the_teacher_once(teacher, tmp_path, monkeypatch):
    asked = []
    answer = Teacher.__call__
    monkeypatch.setattr(Teacher, "__call__", lambda self, images: asked.append(len(images)) or answer(self, images))
    loop = prepare(CONFIG.replace(teacher=str(teacher)), tmp_path / "same")
    loop.task.before_training(iter)
    assert sum(asked) == len(loop.task.data.splits.train)
    images, labels, indices = a_batch(loop)
    loss, _ = loop.task.objective(loop.model, images, labels, indices, 0)
    assert sum(asked) == len(loop.task.data.splits.train)     # not asked again
    said = asnumpy(answer(loop.task.objective.teacher, images))
    agree(lambda: hard_distillation(loop.model(images), labels, said), loss, samples=1)

    asked.clear()
    loop = prepare(CONFIG.replace(teacher=str(teacher), crop_padding=1), tmp_path / "other")
    loop.task.before_training(iter)
    assert not asked
    loop.task.objective(loop.model, *a_batch(loop), 0)
    assert asked == [256]


@pytest.mark.slow
def test_a_run_with_all_of_it_goes_on_bit_for_bit(teacher, tmp_path):
    config = EVERYTHING.replace(
        model=DISTILLED.model, model_args=CONFIG.model_args, teacher=str(teacher), distill="soft", augment="light2",
        crop_padding=0, crop_scale=0.5, color_jitter=0.2, random_erasing=0.3, cutmix=1.0, mix_mode="elem",
        regularisation=0.1, layer_decay=0.8, schedule="constant", warmup_epochs=0,
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config.replace(epochs=3), whole)
    train(config.replace(epochs=1), parts)
    train(config.replace(epochs=3), parts, resume=True)
    assert_same_run(parts, whole)


@pytest.mark.parametrize(
    ("model", "rates"),
    [("vit_tiny_patch16_224", {"pos_drop_rate", "proj_drop_rate", "drop_path_rate"}),
     ("resnet18", {"drop_rate", "drop_path_rate"})],
)
def test_regularisation_is_dropout_and_stochastic_depth(model, rates, tmp_path):
    sizes = CONFIG.model_args if model.startswith("vit") else {"small_stem": True}
    config = CONFIG.replace(model=model, model_args=sizes, regularisation=0.1)
    options = vars(prepare(config, tmp_path / "run").model.config)
    assert {name for name, value in options.items() if name.endswith("_rate") and value == 0.1} == rates


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"teacher_model": "resnet18"}, "name the file with teacher"),
     ({"teacher_entry": "ema"}, "teacher_entry chooses"), ({"distill_weight": 1.5}, "distill_weight"),
     ({"regularisation": 1.0}, "regularisation"), ({"mixup": -1.0}, "mixup"), ({"cutmix": float("nan")}, "cutmix"),
     ({"layer_decay": 0.0}, "layer_decay"), ({"mix_mode": "all"}, "mix_mode"), ({"augment": "medium"}, "augment"),
     ({"crop_scale": 2.0}, "RandomResizedCrop"), ({"random_erasing": 2.0}, "RandomErasing")],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings, text, tmp_path):
    with pytest.raises(sv.ScratchvitError, match=text):
        prepare(CONFIG.replace(**settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_entry_of_the_teacher_is_a_setting(teacher, tmp_path):
    prepare(CONFIG.replace(teacher=str(teacher), teacher_entry="model"), tmp_path / "run")
    with pytest.raises(sv.ScratchvitError, match="has no entry 'ema'; it has model"):
        prepare(CONFIG.replace(teacher=str(teacher), teacher_entry="ema"), tmp_path / "other")


def test_a_teacher_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(sv.ScratchvitError, match="nowhere"):
        prepare(CONFIG.replace(teacher=str(tmp_path / "nowhere.safetensors")), tmp_path / "run")
