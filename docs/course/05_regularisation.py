import marimo

__generated_with = "0.25.2"
app = marimo.App(width="compact", app_title="5. Augmentation and regularisation", css_file="course.css")


@app.cell
def _():
    import csv
    from importlib.resources import files
    from pathlib import Path

    import marimo as mo
    import numpy as np
    from matplotlib.figure import Figure

    import scratchvit as sv
    from scratchvit import data, ops, random, zoo
    from scratchvit.course import Chapter
    from scratchvit.data import LEVELS, Mix, RandAugment
    from scratchvit.data.images import to_picture
    from scratchvit.inspect.figures import first_of_each_class
    from scratchvit.kernels import dropout as dropout_kernel
    from scratchvit.kernels import updates
    from scratchvit.models import vit

    return (
        LEVELS, Chapter, Figure, Mix, Path, RandAugment, csv, data, dropout_kernel, files, first_of_each_class, mo, np,
        ops, random, sv, to_picture, updates, vit, zoo,
    )


@app.cell
def _(Chapter):
    chapter = Chapter(__file__)
    language = chapter.language()
    language
    return chapter, language


@app.cell
def _(chapter, language):
    text = chapter.in_language(language.value)
    text("claim")
    return (text,)


@app.cell
def _(data, first_of_each_class, np, to_picture, zoo):
    trained = zoo.load("vit_digits")
    test = data.load("digits").test
    pictures = np.stack([                                                   # (360, 16, 16, 1), as the model sees them
        np.asarray(to_picture(picture).resize((16, 16)))[..., None] for picture in test.images(np.arange(len(test)))
    ])
    classes = first_of_each_class(test.labels, 10)

    def prepared(pictures):
        """Pictures (B, 16, 16, 1) as the model takes them."""
        return np.stack([trained.prepare(to_picture(picture)) for picture in pictures])

    return classes, pictures, prepared, test, trained


@app.cell
def _(mo, text, updates):
    decay = mo.ui.slider(steps=[0.0, 0.01, 0.05, 0.1, 0.3], value=0.05, label=text.word("decay"), show_value=True)
    rate = mo.ui.slider(steps=[0.001, 0.01, 0.1], value=0.01, label=text.word("rate"), show_value=True)
    mo.vstack([text("decay"), text.code(updates.adam, "p *= n.shrink", "p -= scratch"), decay, rate])
    return decay, rate


@app.cell
def _(np, sv):
    def after_steps(lr, weight_decay, steps=200):
        """What AdamW leaves of a weight of 1 without gradient."""
        weight = sv.nn.Parameter(np.ones(1, np.float32))
        optimizer = sv.optim.AdamW([weight], lr=lr, weight_decay=weight_decay)
        for _ in range(steps):
            weight.grad = np.zeros(1, np.float32)
            optimizer.step()
        return float(weight.data[0])

    def rates_of(drop_path_rate):
        """The rates of the 12 blocks of our ViT."""
        model = sv.create_model(
            "vit_tiny_patch16_224", img_size=16, embed_dim=12, num_heads=1, drop_path_rate=drop_path_rate
        )
        return np.array([block.drop_path1.p for block in model.blocks])

    return after_steps, rates_of


@app.cell
def _(after_steps, decay, rate, text):
    text(
        "shrunk", left=after_steps(rate.value, decay.value), formula=(1 - rate.value * decay.value) ** 200,
        rate=rate.value, decay=decay.value,
    )


@app.cell
def _(dropout_kernel, mo, text):
    dropped = mo.ui.slider(0.0, 0.9, 0.1, value=0.5, label=text.word("dropped"), show_value=True)
    mo.vstack([text("dropout"), text.code(dropout_kernel.drop, "values = values", "return"), dropped])
    return (dropped,)


@app.cell
def _(Figure, classes, dropped, np, ops, pictures, random, text):
    whole = pictures[classes[8]][..., 0].astype(np.float32) / 255
    generator = random.Generator(0)
    draws = np.stack([ops.dropout(whole, dropped.value, generator=generator).numpy() for _ in range(200)])

    def dropout_figure():
        figure = Figure(figsize=(4.8, 2.3), layout="constrained")
        shown = {"all": whole, "one": draws[0], "mean": draws.mean(axis=0)}
        for ax, (name, image) in zip(figure.subplots(1, 3), shown.items()):
            ax.imshow(image, cmap="gray_r", vmin=0, vmax=1.2)
            ax.set_title(text.word(name), fontsize=11)
            ax.set_axis_off()
        return figure

    text.figure(dropout_figure(), "figure-dropout")


@app.cell
def _(mo, text, vit):
    deep = mo.ui.slider(0.0, 0.5, 0.1, value=0.1, label=text.word("deep"), show_value=True)
    mo.vstack([text("depth"), text.code(vit.Block, "x = x + self.drop_path1", "x = x + self.drop_path2"), deep])
    return (deep,)


@app.cell
def _(deep, rates_of, text):
    rates = rates_of(deep.value)
    text(
        "depth-found", first=float(rates[0]), middle=float(rates[6]), last=float(rates[-1]),
        blocks=float((1 - rates).sum()),
    )


@app.cell
def _(Mix, mo, text):
    share = mo.ui.slider(0.0, 1.0, 0.05, value=0.6, label=text.word("share"), show_value=True)
    one = mo.ui.slider(0, 9, value=3, label=text.word("first"), show_value=True)
    other = mo.ui.slider(0, 9, value=7, label=text.word("second"), show_value=True)
    cut = mo.ui.switch(label=text.word("cut"))
    mo.vstack([text("mixup"), text.code(Mix, "weight = asarray", "mixed += x"), share, one, other, cut])
    return cut, one, other, share


@app.cell
def _(Mix, np):
    class Chosen:
        """Draws what a slider chose, in place of random numbers."""

        def __init__(self, lam):
            self.lam = lam

        def random(self, shape):
            return np.zeros(shape)

        def beta(self, a, b):
            return np.full(np.shape(a), self.lam)

        def integers(self, low, high, shape):
            return np.broadcast_to(np.asarray(high) // 2, shape)

    def mixed(pair, labels, lam, cutmix=False):
        """Our Mix of two images (2, C, H, W), and the targets."""
        mix = Mix(10, cutmix_alpha=1.0) if cutmix else Mix(10, mixup_alpha=1.0)
        images, targets = mix(pair, np.asarray(labels), Chosen(lam))
        return images[0], targets[0]

    return (mixed,)


@app.cell
def _(classes, cut, mixed, np, one, other, pictures, prepared, share, trained):
    pair = prepared(pictures[classes[[one.value, other.value]]])
    image, target = mixed(pair, (one.value, other.value), share.value, cut.value)
    steps = np.linspace(0, 1, 41)
    path = np.stack([mixed(pair, (one.value, other.value), lam, cut.value)[0] for lam in steps])
    found = trained.opened.probabilities(path.astype(np.float32))           # (41, 10)
    now = trained.opened.probabilities(image[None].astype(np.float32))[0]
    return found, image, now, steps, target


@app.cell
def _(Figure, found, image, one, other, share, steps, text):
    def mixup_figure():
        figure = Figure(figsize=(4.8, 3.1), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
        left.imshow(image[0], cmap="gray_r")
        left.set_axis_off()
        for label, colour in ((one.value, "#4477aa"), (other.value, "#ee6677")):
            right.plot(steps, found[:, label], color=colour, label=f"{text.word('answer')} {label}")
        right.plot(steps, steps, "--", color="#555555", linewidth=1, label=text.word("target"))
        right.axvline(share.value, color="#555555", linewidth=0.8)
        right.set_xlabel("λ")
        right.set_ylabel(text.word("probability"))
        right.legend(frameon=False, fontsize=10)
        return figure

    text.figure(mixup_figure(), "figure-mixup")


@app.cell
def _(now, one, other, share, target, text):
    text(
        "mixup-found", share=share.value, first=one.value, second=other.value,
        first_target=float(target[one.value]), second_target=float(target[other.value]),
        first_now=float(now[one.value]), second_now=float(now[other.value]),
    )


@app.cell
def _(LEVELS, mo, text):
    level = mo.ui.dropdown(list(LEVELS), value="medium1", label=text.word("level"))
    seed = mo.ui.slider(0, 20, value=0, label=text.word("seed"), show_value=True)
    mo.vstack([text("randaugment"), level, seed])
    return level, seed


@app.cell
def _(LEVELS, RandAugment, data, files, np):
    photo = data.load_image(files("sklearn") / "datasets" / "images" / "china.jpg", 128, 3)     # the centre square
    photos = np.repeat(photo[None], 5, axis=0)                                                  # (5, 128, 128, 3)

    def augmented(pictures, level, seed):
        """Pictures (B, H, W, C) at a level of the paper."""
        chosen = LEVELS[level]
        return RandAugment(chosen.num_layers, chosen.magnitude)(pictures, np.random.default_rng(seed))

    return augmented, photos


@app.cell
def _(Figure, augmented, classes, level, photos, pictures, seed, text):
    def augmented_figure():
        figure = Figure(figsize=(4.8, 2.6), layout="constrained")
        digits = pictures[classes[[0, 2, 3, 5, 7]]]
        for row, shown in zip(figure.subplots(2, 5), (photos, digits)):
            for ax, picture in zip(row, augmented(shown, level.value, seed.value)):
                ax.imshow(picture if picture.shape[-1] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=255)
                ax.set_axis_off()
        return figure

    text.figure(augmented_figure(), "figure-augmented")


@app.cell
def _(LEVELS, augmented, np, pictures, prepared, test, trained):
    def readable(level):
        """Accuracy on test digits at a level, in %."""
        chances = trained.opened.probabilities(prepared(augmented(pictures, level, 0)))
        return 100 * float(np.mean(chances.argmax(axis=1) == test.labels))

    still_read = {name: readable(name) for name in LEVELS}
    return (still_read,)


@app.cell
def _(LEVELS, still_read, text):
    lines = (
        f"| {name} | {n.num_layers} | {n.magnitude} | {n.mixup_alpha} | {still_read[name]:.1f} % |"
        for name, n in LEVELS.items()
    )
    text("levels", rows="\n".join(lines))


@app.cell
def _(LEVELS, Path, csv, np):
    here = Path(__file__).resolve().parent

    def rows_of(path):
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    paper = {}                                          # data set and epochs → (models, 14): without, then with 0.1
    for line in rows_of(here / "data" / "augreg_figure4.csv"):
        paper.setdefault(line["data"], {}).setdefault(line["model"], []).extend(float(line[n]) for n in LEVELS)
    own, losses = {}, {}                                # the same of our measurement
    for line in rows_of(here.parent / "figures" / "augreg_grid.csv"):
        own.setdefault(line["model"], []).append(100 * float(line["test_accuracy"]))
        losses.setdefault(line["model"], []).append(float(line["test_loss"]))

    def helped(grid):
        """Models that regularisation, light1 and the best level help, each alone."""
        values = np.array(list(grid.values()))
        return [int((gain > values[:, 0]).sum()) for gain in (values[:, 7], values[:, 1], values[:, 1:7].max(axis=1))]

    return helped, losses, own, paper


@app.cell
def _(mo, paper, text):
    panel = mo.ui.dropdown(list(paper), value=next(iter(paper)), label=text.word("panel"))
    mo.vstack([text("paper"), panel])
    return (panel,)


@app.cell
def _(Figure, LEVELS, np, text):
    def heat_map(grid, height, form, better=1):
        """A row for each model, coloured by the change."""
        figure = Figure(figsize=(6, height), layout="constrained")
        ax = figure.subplots()
        values = np.array(list(grid.values()))
        change = better * (values - values[:, :1])
        most = np.abs(change).max()
        ax.imshow(change, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if abs(change[row, column]) > 0.6 * most else "black"
            ax.text(column, row, form.format(value), ha="center", va="center", fontsize=10, color=colour)
        ax.axvline(6.5, color="black", linewidth=2)
        ax.set_xticks(range(14), [*LEVELS, *LEVELS], rotation=60, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(len(grid)), list(grid))
        ax.set_title(text.word("halves"), fontsize=11)
        ax.tick_params(length=0)
        return figure

    return (heat_map,)


@app.cell
def _(heat_map, helped, mo, panel, paper, text):
    regularised, light, best = helped(paper[panel.value])
    mo.vstack([
        text.figure(heat_map(paper[panel.value], 4.0, "{:.0f}"), "figure-paper"),
        text(
            "paper-found", data=panel.value, models=len(paper[panel.value]), regularised=regularised, light=light,
            best=best,
        ),
    ])


@app.cell
def _(heat_map, losses, mo, own, text):
    small, large = (name for name in own)

    def renamed(grid):
        return {"D 32": grid[small], "D 64": grid[large]}

    mo.vstack([
        text("own"),
        text.figure(heat_map(renamed(own), 2.3, "{:.0f}"), "figure-own"),
        text.figure(heat_map(renamed(losses), 2.3, "{:.2f}", better=-1), "figure-losses"),
        text(
            "own-found", small_plain=own[small][0], small_regularised=own[small][7], large_plain=own[large][0],
            large_regularised=own[large][7], small_light=own[small][1], large_light=own[large][1],
            large_loss=losses[large][0], large_loss_regularised=losses[large][7], large_loss_light=losses[large][1],
        ),
    ])
    return large, small


@app.cell
def _(LEVELS, losses, large, mo):
    settings = [f"{name}, {rate}" for rate in ("0", "0.1") for name in LEVELS]
    box = mo.ui.number()
    through = mo.ui.number(step=0.1)
    lowest = mo.ui.dropdown(settings)
    smallest_loss = settings[min(range(14), key=losses[large].__getitem__)]
    return box, lowest, smallest_loss, through


@app.cell
def _(box, mixed, np, text):
    def side_of_box(lam):
        """The side of CutMix's box in 224, from what it replaced."""
        pair = np.stack([np.zeros((1, 224, 224), np.float32), np.ones((1, 224, 224), np.float32)])
        return round(float(np.sqrt(mixed(pair, (0, 1), lam, cutmix=True)[0].sum())))

    text.exercise("exercise-1", box, None if box.value is None else box.value == side_of_box(0.75), "answer-1")
    return (side_of_box,)


@app.cell
def _(rates_of, text, through):
    def is_expected(blocks):
        return abs(blocks - float((1 - rates_of(0.2)).sum())) < 0.01

    text.exercise("exercise-2", through, None if through.value is None else is_expected(through.value), "answer-2")
    return (is_expected,)


@app.cell
def _(lowest, smallest_loss, text):
    text.exercise("exercise-3", lowest, None if lowest.value is None else lowest.value == smallest_loss, "answer-3")


@app.cell
def _(text):
    text("big-world")


if __name__ == "__main__":
    app.run()
