"""A ViT that learns from a CNN (DeiT, Touvron et al., arXiv 2012.12877, §4 and Table 3).

The paper's claims: with a CNN as its teacher a ViT gets better than alone; hard labels teach better than soft ones; a
distillation token helps further. Here teacher and students see the same tenth of Fashion-MNIST's training images, so
that a student gains nothing but the teacher's way of seeing them. Every seed has another tenth, and its own teacher.

    python scripts/figures/distillation.py --data-dir FOLDER --seeds 3      # docs/figures/distillation.csv and .png
    python scripts/figures/distillation.py --quick                          # digits, half a minute
"""

from __future__ import annotations

from pathlib import Path

from experiment import COLOURS, RESNET, RESNET_10, VIT, VIT_D64, Run, carry_out, grouped, main, parse, write_csv

from scratchvit.inspect.figures import INK, sheet
from scratchvit.training import TrainConfig

TEACHER = "ResNet, the teacher"
STUDENTS = {        # model, how it is taught
    "ViT alone": (VIT, None),
    "soft labels": (VIT, "soft"),
    "hard labels": (VIT, "hard"),
    "hard labels, with token": ("deit_tiny_distilled_patch16_224", "hard"),
}


REGIME = TrainConfig(
    val_fraction=0.05, train_fraction=0.1, epoch_images=9_000, epochs=10, batch_size=64, lr=2e-3, weight_decay=0.05,
    warmup_epochs=1, flip=True, crop_padding=1, ema_decay=0.99,
)
QUICK = REGIME.replace(train_fraction=1.0, epoch_images=2_400, epochs=2, flip=False, ema_decay=0.9)


def runs(data: str, data_dir: str | None, seeds: int, quick: bool, folder: Path) -> tuple[list[Run], list[Run]]:
    """Teachers, then students. A student's teacher is the run in `folder` of its seed."""
    regime = (QUICK if quick else REGIME).replace(data=data, data_dir=data_dir)
    size = {"img_size": 16} if quick else {}
    teachers, students = [], []
    for seed in range(seeds):
        config = regime.replace(model=RESNET, model_args={**RESNET_10, **size}, seed=seed)
        teachers.append(Run(config, {"model": TEACHER, "seed": seed}))
        for name, (model, how) in STUDENTS.items():
            config = regime.replace(model=model, model_args={**VIT_D64, **size}, seed=seed)
            if how:
                config = config.replace(teacher=str(folder / teachers[-1].name), distill=how)
            students.append(Run(config, {"model": name, "seed": seed}))
    return teachers, students


def draw(accuracy: dict[str, list[float]], path: Path, seeds: int) -> None:
    """A row for each kind of model, teachers in another colour: the test accuracies in per cent, and their mean."""
    with sheet(path, 1, 1, size=(7, 0.6 + 0.4 * len(accuracy))) as axes:
        ax = axes[0, 0]
        for place, (name, values) in enumerate(accuracy.items()):
            colour = COLOURS[1 if name == TEACHER else 0]
            ax.plot(values, [place] * len(values), "o", color=colour, alpha=0.5, markersize=6)
            mean = sum(values) / len(values)
            ax.plot(mean, place, "|", color=colour, markersize=22, markeredgewidth=2.5)
            ax.annotate(f"{mean:.1f}", (max(values), place), (8, 0), textcoords="offset points", va="center", color=INK)
        ax.set_yticks(range(len(accuracy)), accuracy)
        ax.invert_yaxis()
        ax.margins(x=0.12, y=0.15)
        ax.set_xlabel(f"test accuracy, %: {seeds} seeds and their mean", color=INK)
        ax.grid(axis="x", color="#dddddd", linewidth=0.7)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(colors=INK, length=0)


def figure() -> None:
    """Make the runs, then CSV and picture."""
    args = parse(__doc__)
    folder = args.runs / f"distillation-{args.data}"
    teachers, students = runs(args.data, args.data_dir, args.seeds, args.quick, folder)
    rows = carry_out(teachers, folder, args.jobs) + carry_out(students, folder, args.jobs)
    write_csv(rows, args.out / "distillation.csv")
    draw(grouped(rows, "model"), args.out / "distillation.png", args.seeds)
    print(args.out / "distillation.png")


if __name__ == "__main__":
    main(figure)
