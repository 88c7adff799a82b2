"""The recipe of the scenes learns: a version of less than a minute, of which a lower bar is asked."""

from scratchvit.detection.config import DetectConfig
from scratchvit.detection.trainer import train_detector
from scratchvit.recipes import load_recipe

BAR = 0.1       # of AP50 on the test scenes, where the whole recipe, six times as long, gets 0.97


def test_a_small_detr_learns_digits_in_a_minute(tmp_path):
    """One pass over 4,000 scenes with a single decoder layer and without noised objects."""
    recipe = load_recipe("detect_scenes", DetectConfig)
    config = recipe.replace(
        model_args={"two_stage": True, "dec_layers": 1}, epochs=1, epoch_images=4000, warmup_epochs=0.1, weight_ce=10.0,
    )  # fmt: skip
    result = train_detector(config, tmp_path / "run", log=print)
    print(f"test AP50 {result.test.AP50:.3f}, AP {result.test.AP:.3f}, {result.seconds:.0f} s")
    assert result.test.AP50 > BAR
