"""ViT against ResNet as data grows, at equal training compute (ViT, arXiv 2010.11929, §4.3 and Figures 3 and 4).

The paper's claim: a ResNet's inductive bias wins on little data, and a ViT overtakes it when there is enough. Here both
are small, and see from 1 % to all of the training images of Fashion-MNIST. Every run makes the same number of
multiply-adds, whatever its model and its data: with less data it sees the same images more often.

    python scripts/figures/data_growth.py --data-dir FOLDER         # docs/figures/data_growth.csv and .png
    python scripts/figures/data_growth.py --quick                   # digits, half a minute: does the script work?
"""

from __future__ import annotations

from experiment import RESNET, RESNET_10, VIT, VIT_D64, Run, carry_out, growth, macs, main, parse, write_csv

from scratchvit.data import load
from scratchvit.inspect.figures import INK, sheet
from scratchvit.training import TrainConfig

# The ViT without a class token, as it does best on little data. Learning rates: of 1, 2 and 4e-3, what did best on the
# validation images after 7e11 multiply-adds on a tenth of the data (ViT 80.3, 80.9, 80.0 %; ResNet 86.2, 86.3, 86.7 %).
MODELS = {
    "ViT": (VIT, {**VIT_D64, "class_token": False, "global_pool": "avg"}, 2e-3),
    "ResNet": (RESNET, RESNET_10, 4e-3),
}
FRACTIONS = (0.01, 0.03, 0.1, 0.3, 1.0)
COMPUTE, EPOCHS = 1.0e12, 10        # multiply-adds of all forward passes of a run, in so many pieces
QUICK = {"fractions": (0.3, 1.0), "compute": 1.6e10, "epochs": 2}


def runs(data: str, data_dir: str | None, seeds: int, quick: bool) -> list[Run]:
    """Every model on every share of the data; images seen: what the compute allows."""
    fractions, compute, epochs = QUICK.values() if quick else (FRACTIONS, COMPUTE, EPOCHS)
    splits = load(data, data_dir=data_dir, img_size=16 if quick else None, val_fraction=0.05)
    made = []
    for fraction in fractions:
        for name, (model, sizes, lr) in MODELS.items():
            for seed in range(seeds):
                config = TrainConfig(
                    data=data, data_dir=data_dir, train_fraction=fraction, val_fraction=0.05, model=model,
                    model_args={**sizes, "img_size": splits.train.image_shape[0]}, epochs=epochs, batch_size=64,
                    lr=lr, weight_decay=0.05, warmup_epochs=1, flip=not quick, crop_padding=1, label_smoothing=0.1,
                    ema_decay=0.9 if quick else 0.99, seed=seed,
                )
                per_image = macs(config, splits.train.image_shape, len(splits.train.classes))
                images = round(compute / per_image / epochs)        # of an epoch
                columns = {
                    "model": name, "fraction": fraction, "images": round(fraction * len(splits.train)), "seed": seed,
                    "macs_per_image": per_image, "images_seen": images * epochs,
                }
                made.append(Run(config.replace(epoch_images=images), columns))
    return made


def figure() -> None:
    """Make the runs, then CSV and picture."""
    args = parse(__doc__)
    rows = carry_out(
        runs(args.data, args.data_dir, args.seeds, args.quick), args.runs / f"data_growth-{args.data}", args.jobs
    )
    write_csv(rows, args.out / "data_growth.csv")
    with sheet(args.out / "data_growth.png", 1, 1, size=(6, 4)) as axes:
        growth(axes[0, 0], rows, MODELS)
        axes[0, 0].set_xlabel("training images, each seen as often as the same compute allows", color=INK)
    print(args.out / "data_growth.png")


if __name__ == "__main__":
    main(figure)
