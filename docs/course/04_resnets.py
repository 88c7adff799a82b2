import marimo

__generated_with = "0.25.2"
app = marimo.App(width="compact", app_title="4. ViT against ResNet", css_file="course.css")


@app.cell
def _():
    import csv
    from pathlib import Path

    import marimo as mo
    import numpy as np
    from matplotlib.figure import Figure

    import scratchvit as sv
    from scratchvit import data, ops, zoo
    from scratchvit.course import Chapter
    from scratchvit.data.images import to_picture
    from scratchvit.inspect.attention import attention_distance, attention_maps
    from scratchvit.inspect.figures import first_of_each_class
    from scratchvit.models import hybrid
    from scratchvit.ops import conv

    return (
        Chapter, Figure, Path, attention_distance, attention_maps, conv, csv, data, first_of_each_class, hybrid, mo, np,
        ops, sv, to_picture, zoo,
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
    windowed = zoo.load("swin_digits")
    test = data.load("digits").test
    pictures = test.images(np.arange(len(test)))                                            # (360, 8, 8, 1)
    images = np.stack([trained.prepare(to_picture(picture)) for picture in pictures])       # (360, 1, 16, 16)
    classes = first_of_each_class(test.labels, 10)
    return classes, images, pictures, test, trained, windowed


@app.cell
def _(conv, mo, text):
    kernel = mo.ui.slider(1, 7, 2, value=3, label=text.word("kernel"), show_value=True)
    digit = mo.ui.slider(0, 9, value=5, label=text.word("digit"), show_value=True)
    layer = mo.ui.slider(1, 4, value=1, label=text.word("layer"), show_value=True)
    mo.vstack([text("product"), text.code(conv._plain_conv, "columns = xp.stack", "y = xp.matmul"), text("matrices"),
               kernel, digit, layer])
    return digit, kernel, layer


@app.cell
def _(np, ops, sv):
    def blur(k):
        """A kernel (1, 1, k, k) of a Gaussian bell."""
        x = np.arange(k) - k // 2
        bell = np.exp(-2 * (x / max(1, k // 2)) ** 2)
        return (np.outer(bell, bell) / bell.sum() ** 2).astype(np.float32)[None, None]

    def matrix_of(weight, side):
        """The matrix (side², side²) that a convolution multiplies an image by."""
        each_pixel = np.eye(side * side, dtype=np.float32).reshape(-1, 1, side, side)
        return ops.conv2d(each_pixel, weight, padding=weight.shape[-1] // 2).numpy().reshape(side * side, -1).T

    def both_ways(picture, weight):
        """The largest difference between the fast convolution and that by columns."""
        x = picture.astype(np.float32)[None, None] / 255
        fast = ops.conv2d(x, weight, padding=weight.shape[-1] // 2).numpy()
        with sv.plain_forms():
            by_columns = ops.conv2d(x, weight, padding=weight.shape[-1] // 2).numpy()
        return float(np.abs(fast - by_columns).max())

    return blur, both_ways, matrix_of


@app.cell
def _(attention_maps, blur, classes, digit, images, kernel, layer, matrix_of, trained):
    weight = blur(kernel.value)
    of_conv = matrix_of(weight, 8)                                                      # (64, 64)
    maps = attention_maps(trained.model, images[classes[digit.value]][None])            # (4, 1, 4, 16, 16)
    of_attention = maps[layer.value - 1, 0, 0]
    return of_attention, of_conv, weight


@app.cell
def _(Figure, of_attention, of_conv, text):
    def matrices_figure():
        figure = Figure(figsize=(4.8, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.imshow(of_conv, cmap="inferno", vmin=0)
        right.imshow(of_attention, cmap="inferno", vmin=0)
        left.set_title(text.word("of-conv"), fontsize=11)
        right.set_title(text.word("of-attention"), fontsize=11)
        for ax in (left, right):
            ax.set_xlabel(text.word("from"))
            ax.set_ylabel(text.word("to"))
        return figure

    text.figure(matrices_figure(), "figure-matrices")


@app.cell
def _(both_ways, classes, digit, kernel, np, of_attention, of_conv, pictures, text, weight):
    text(
        "shared", kernel=kernel.value, weights=kernel.value**2, entries=of_conv.size,
        zeros=100 * float(np.mean(of_conv == 0)), least=100 * float(of_attention.min()),
        difference=f"{both_ways(pictures[classes[digit.value]][..., 0], weight):.1g}",
    )


@app.cell
def _(mo, text):
    shift = mo.ui.slider(0, 8, value=3, label=text.word("shift"), show_value=True)
    mo.vstack([text("equivariance"), shift])
    return (shift,)


@app.cell
def _(np, ops):
    def shifted(images, pixels):
        """Images (B, 1, H, W) moved to the right, background behind them."""
        moved = np.full_like(images, images.min())
        moved[..., pixels:] = images[..., : images.shape[-1] - pixels]
        return moved

    def moves_along(stride, pixels, kernel=3):
        """Whether a convolution of a moved image is its moved output, inside."""
        rng = np.random.default_rng(0)
        weight = rng.standard_normal((1, 1, kernel, kernel)).astype(np.float32)
        x = rng.standard_normal((1, 1, 96, 96)).astype(np.float32)
        before = ops.conv2d(x, weight, stride=stride).numpy()[0, 0]
        after = ops.conv2d(np.roll(x, pixels, axis=3), weight, stride=stride).numpy()[0, 0]
        by = round(pixels / stride)                         # places by which the output should have moved
        return bool(np.allclose(after[:, by + 1 :], before[:, 1 : before.shape[1] - by], atol=1e-3))

    return moves_along, shifted


@app.cell
def _(images, moves_along, shift, shifted, test, text, trained, windowed):
    def right(opened):
        """Accuracy on the moved test digits, in per cent."""
        predicted = opened.probabilities(shifted(images, shift.value)).argmax(axis=1)
        return 100 * float((predicted == test.labels).mean())

    yes_or_no = {True: text.word("yes"), False: text.word("no")}
    moved_right = {"vit": right(trained.opened), "swin": right(windowed.opened)}
    text(
        "moved", shift=shift.value, conv=yes_or_no[moves_along(1, shift.value)],
        patches=yes_or_no[moves_along(4, shift.value, kernel=4)], **moved_right,
    )
    return (moved_right,)


@app.cell
def _(attention_distance, mo, text):
    depth = mo.ui.slider(1, 12, value=4, label=text.word("depth"), show_value=True)
    mo.vstack([text("distance"), text.code(attention_distance, "cells =", "return"), depth])
    return (depth,)


@app.cell
def _(np, ops, sv):
    def field(layers, kernel=3, stride=1):
        """The receptive field of so many convolutions, in pixels."""
        size, step = 1, 1
        for _ in range(layers):
            size, step = size + (kernel - 1) * step, step * stride
        return size

    def field_by_gradient(layers):
        """The same, 3×3: pixels on which the middle of the output depends."""
        x = sv.Tensor(np.ones((1, 1, 5, 33), np.float32), requires_grad=True)
        y = x
        for _ in range(layers):
            y = ops.conv2d(y, np.ones((1, 1, 3, 3), np.float32), padding=1) / 9
        y[0, 0, 2, 16].backward()
        return int((x.grad[0, 0, 2] != 0).sum())

    return field, field_by_gradient


@app.cell
def _(attention_distance, attention_maps, images, np, trained):
    seen = attention_maps(trained.model, images[:64])                                   # (4, 64, 4, 16, 16)
    of_heads = attention_distance(seen, 0, (4, 4), (4, 4))                              # (4, 4): layers, heads
    uniform = float(attention_distance(np.ones_like(seen[:1]), 0, (4, 4), (4, 4)).mean())
    return of_heads, uniform


@app.cell
def _(Figure, depth, field, np, of_heads, text, uniform):
    def distance_figure():
        figure = Figure(figsize=(4.8, 3.4), layout="constrained")
        ax = figure.subplots()
        layers = np.arange(1, 13)
        ax.plot(layers, [field(n) // 2 for n in layers], color="#4477aa", label=text.word("reach"))
        ax.plot([depth.value], [field(depth.value) // 2], "o", color="#4477aa", markersize=9)
        for head in range(of_heads.shape[1]):
            ax.plot(layers[:4], of_heads[:, head], "x", color="#ee6677", label=text.word("heads") if not head else None)
        ax.axhline(uniform, color="#555555", linestyle="--", linewidth=1, label=text.word("uniform"))
        ax.set_xlabel(text.word("at-layer"))
        ax.set_ylabel(text.word("pixels"))
        ax.set_xticks(layers)
        ax.legend(frameon=False, fontsize=10)
        return figure

    text.figure(distance_figure(), "figure-distance")


@app.cell
def _(depth, field, field_by_gradient, of_heads, text, uniform):
    text(
        "found", depth=depth.value, field=field(depth.value), gradient=field_by_gradient(depth.value),
        nearest=float(of_heads.min()), farthest=float(of_heads.max()), uniform=uniform,
        first=float(of_heads[0].mean()), last=float(of_heads[-1].mean()),
    )


@app.cell
def _(Figure, text):
    # Top-1 on ImageNet after pretraining on 1.3 M, 14 M and 303 M images: Table 5 of 2010.11929; 1912.11370.
    published = {"ViT-B/16": (77.91, 83.97, 84.15), "ViT-L/16": (76.53, 85.15, 87.12), "BiT": (81.30, 85.39, 87.54)}

    def paper_figure():
        figure = Figure(figsize=(4.8, 3.2), layout="constrained")
        ax = figure.subplots()
        for (name, values), colour in zip(published.items(), ("#66ccee", "#4477aa", "#ee6677")):
            ax.plot([1.3, 14, 303], values, "o-", color=colour, label=name)
        ax.set_xscale("log")
        ax.set_xticks([1.3, 14, 303], ["ImageNet-1k\n1.3 M", "ImageNet-21k\n14 M", "JFT\n303 M"])
        ax.minorticks_off()
        ax.set_ylabel(text.word("top-1"))
        ax.legend(frameon=False)
        return figure

    text("paper")
    return paper_figure, published


@app.cell
def _(paper_figure, text):
    text.figure(paper_figure(), "figure-paper")


@app.cell
def _(Path, csv):
    def rows_of(name):
        with (Path(__file__).resolve().parents[1] / "figures" / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    grown = {"ViT": {}, "ResNet": {}}                                   # model → images → test accuracy in %
    for measured in rows_of("data_growth.csv"):
        grown[measured["model"]][int(measured["images"])] = 100 * float(measured["test_accuracy"])
    races = {raced["model"]: 100 * float(raced["test_accuracy"]) for raced in rows_of("throughput_accuracy.csv")}
    return grown, races


@app.cell
def _(Figure, grown, text):
    def own_figure():
        figure = Figure(figsize=(4.8, 3.2), layout="constrained")
        ax = figure.subplots()
        for name, colour in (("ViT", "#4477aa"), ("ResNet", "#ee6677")):
            ax.plot(grown[name].keys(), grown[name].values(), "o-", color=colour, label=name)
        ax.set_xscale("log")
        ax.set_xticks(list(grown["ViT"]), [f"{images:,}" for images in grown["ViT"]])
        ax.minorticks_off()
        ax.set_xlabel(text.word("images"))
        ax.set_ylabel(text.word("test"))
        ax.legend(frameon=False)
        return figure

    text("own")
    return (own_figure,)


@app.cell
def _(grown, mo, own_figure, text):
    fewest, most = min(grown["ViT"]), max(grown["ViT"])
    gaps = [grown["ResNet"][images] - grown["ViT"][images] for images in grown["ViT"]]
    own_found = text(
        "own-found", fewest=fewest, most=most, vit_fewest=grown["ViT"][fewest], resnet_fewest=grown["ResNet"][fewest],
        vit_most=grown["ViT"][most], resnet_most=grown["ResNet"][most], least_gap=min(gaps), most_gap=max(gaps),
    )
    mo.vstack([text.figure(own_figure(), "figure-own"), own_found])


@app.cell
def _(hybrid, mo, races, text):
    mo.vstack([
        text("hybrids", hybrid=races["hybrid R+ViT/4"], vit=races["ViT/4"], resnet=races["ResNet-10"]),
        text.code(hybrid.HybridEmbed, "def forward", "return"),
    ])


@app.cell
def _(mo):
    layers_needed = mo.ui.number()
    whole_shift = mo.ui.number()
    enough = mo.ui.number()
    return enough, layers_needed, whole_shift


@app.cell
def _(field, layers_needed, text):
    def is_just_enough(layers):
        return layers >= 1 and field(int(layers)) >= 224 > field(int(layers) - 1)

    text.exercise(
        "exercise-1", layers_needed, None if layers_needed.value is None else is_just_enough(layers_needed.value),
        "answer-1",
    )
    return (is_just_enough,)


@app.cell
def _(moves_along, text, whole_shift):
    def is_smallest_shift(pixels):
        return pixels == next(s for s in range(1, 33) if moves_along(16, s, kernel=16))

    text.exercise(
        "exercise-2", whole_shift, None if whole_shift.value is None else is_smallest_shift(whole_shift.value),
        "answer-2",
    )
    return (is_smallest_shift,)


@app.cell
def _(enough, grown, text):
    def is_first_to_reach(images):
        reached = [n for n, accuracy in grown["ViT"].items() if accuracy >= min(grown["ResNet"].items())[1]]
        return images == min(reached)

    text.exercise("exercise-3", enough, None if enough.value is None else is_first_to_reach(enough.value), "answer-3")
    return (is_first_to_reach,)


@app.cell
def _(text):
    text("big-world")


if __name__ == "__main__":
    app.run()
