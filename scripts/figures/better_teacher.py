"""A ViT that learns from a CNN which knows far more than it can see itself (DeiT, arXiv 2012.12877, §4 and Table 3).

The lecture's claims: soft labels help, and so does the distillation token. distillation.py, where teacher and students
see the same 5,700 grey pictures, shows neither. Here the teacher, a ResNet, is trained on all of 45,000 photographs of
CIFAR-10, and the students see 2,000 of them, a hundred times over.

Hypothesis, written before the first run (1 December 2026). Soft labels gain 3 points or more, hard ones 2 or more. The
token adds half a point or more to each.

    python scripts/figures/better_teacher.py --data FOLDER --seeds 3 --jobs 2   # CIFAR-10 as FOLDER/train/<class>/*.jpg
    python scripts/figures/better_teacher.py --quick                            # digits, half a minute
"""

from __future__ import annotations

from pathlib import Path

from distillation import TEACHER, draw
from experiment import RESNET, RESNET_10, VIT, VIT_D64, Run, carry_on, carry_out, grouped, main, parse, recorded

from scratchvit.training import TrainConfig

DEIT = "deit_tiny_distilled_patch16_224"
STUDENTS = {        # model; how it is taught; the weight of the teacher in the loss, where it is not the usual one
    "ViT alone": (VIT, {}),
    "soft labels": (VIT, {"distill": "soft", "distill_weight": 0.9}),
    "soft labels, with token": (DEIT, {"distill": "soft", "distill_weight": 0.9}),
    "hard labels": (VIT, {"distill": "hard"}),
    "hard labels, with token": (DEIT, {"distill": "hard"}),
}
IMAGES, PASSES = 2_000, 100             # of a student
TEACHER_PASSES = 8                      # of 45,000
REGIME = TrainConfig(
    val_fraction=0.1, epochs=10, batch_size=64, weight_decay=0.05, warmup_epochs=1, flip=True, crop_padding=4,
    ema_decay=0.99,
)
QUICK = REGIME.replace(epochs=2, flip=False, crop_padding=1, ema_decay=0.9)


def runs(data: str, data_dir: str | None, seeds: int, quick: bool, folder: Path) -> tuple[Run, list[Run]]:
    """The teacher, then the students, all kinds with one seed before the next. A seed chooses a student's pictures."""
    regime = (QUICK if quick else REGIME).replace(data=data, data_dir=data_dir)
    size, seen, share = ({"img_size": 16}, 1_257, 0.5) if quick else ({"img_size": 32}, 45_000, IMAGES / 45_000)
    shown, passes = (2_400, 1) if quick else (IMAGES, PASSES)
    stem = {} if quick else {"small_stem": True}
    teacher = Run(
        regime.replace(
            model=RESNET, model_args={**RESNET_10, **stem, **size}, lr=4e-3,
            epoch_images=(2 if quick else TEACHER_PASSES) * seen // regime.epochs,
        ),
        {"model": TEACHER, "seed": 0},
    )
    students = [
        Run(
            regime.replace(
                model=model, model_args={**VIT_D64, **size}, lr=1e-3, train_fraction=share, seed=seed,
                epoch_images=passes * shown // regime.epochs, teacher=str(folder / teacher.name) if taught else None,
                **taught,
            ),
            {"model": name, "seed": seed},
        )
        for seed in range(seeds)
        for name, (model, taught) in STUDENTS.items()
    ]
    return teacher, students


def figure() -> None:
    """Make the runs, then the picture."""
    args = parse(__doc__, data="cifar10")
    folder, path = args.runs / "better_teacher", args.out / "better_teacher.csv"
    teacher, students = runs(args.data, args.data_dir, args.seeds, args.quick, folder)
    if any("test_accuracy" not in row for row in recorded(students, path)):
        carry_out([teacher], folder)        # on another machine too: its weights are not in the CSV
    rows = carry_on([teacher, *students], folder, args.jobs, path)
    draw(grouped(rows, "model"), args.out / "better_teacher.png", args.seeds)
    print(args.out / "better_teacher.png")


if __name__ == "__main__":
    main(figure)
