import marimo

__generated_with = "0.25.2"
app = marimo.App(width="compact", app_title="7. Hierarchy and windows", css_file="course.css")


@app.cell
def _():
    import csv
    from pathlib import Path

    import marimo as mo
    import numpy as np
    from matplotlib.figure import Figure

    import scratchvit as sv
    from scratchvit import data, ops, zoo
    from scratchvit.costs.counting import cost, readable_bytes
    from scratchvit.course import Chapter
    from scratchvit.data.images import to_picture
    from scratchvit.inspect.figures import first_of_each_class
    from scratchvit.inspect.swin import extent, pixels, places_in_windows, reach_after_every_block, window_blocks
    from scratchvit.models import swin
    from scratchvit.nn import evaluating, init
    from scratchvit.ops import windows as window_ops

    return (
        Chapter, Figure, Path, cost, csv, data, evaluating, extent, first_of_each_class, init, mo, np, ops, pixels,
        places_in_windows, reach_after_every_block, readable_bytes, sv, swin, to_picture, window_blocks, window_ops,
        zoo,
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
def _(places_in_windows):
    def entries_of_windows(side, window):
        """nW · N², on a map of side × side tokens."""
        windows, tokens = places_in_windows((side, side), (window, window), (0, 0)).shape
        return windows * tokens**2

    def entries_of_all(side):
        """The same without windows."""
        return (side * side) ** 2

    return entries_of_all, entries_of_windows


@app.cell
def _(cost, entries_of_all, entries_of_windows, init, sv, swin):
    patches = swin.PatchEmbed(swin.SwinConfig()).num_patches                # of 4×4 pixels, in 224×224
    lecture_all, lecture_windows = entries_of_all(56), entries_of_windows(56, 7)
    with init.without_weights():
        counted = cost(sv.create_model("swin_tiny_patch4_window7_224"))
    return counted, lecture_all, lecture_windows, patches


@app.cell
def _(counted, lecture_all, lecture_windows, patches, readable_bytes, text):
    text(
        "count", patches=patches, all=lecture_all, all_bytes=readable_bytes(4 * lecture_all),
        windows=lecture_windows, windows_bytes=readable_bytes(4 * lecture_windows),
        factor=lecture_all // lecture_windows, gigamacs=counted.macs / 1e9,
    )


@app.cell
def _(mo, text):
    side = mo.ui.slider(steps=[28, 56, 84, 112, 140, 168, 196, 224], value=56, label=text.word("side"), show_value=True)
    window = mo.ui.slider(steps=[2, 4, 7, 14, 28], value=7, label=text.word("window"), show_value=True)
    mo.vstack([text("choose"), side, window])
    return side, window


@app.cell
def _(entries_of_all, entries_of_windows, side, text, window):
    H, M = side.value, window.value
    in_windows, among_all = entries_of_windows(H, M), entries_of_all(H)
    text(
        "sliders", side=H, window=M, tokens=H * H, number=(H // M) ** 2, of_one=M**4, windows=in_windows,
        product=M * M * H * H, all=among_all, factor=among_all // in_windows,
    )
    return H, M, among_all, in_windows


@app.cell
def _(Figure, H, M, among_all, entries_of_all, entries_of_windows, in_windows, side, text):
    def entries_figure():
        figure = Figure(figsize=(4.8, 3.5), layout="constrained")
        ax = figure.subplots()
        sides = list(side.steps)
        ax.loglog(sides, [entries_of_all(s) for s in sides], color="#ee6677", label=text.word("all"))
        ax.loglog(sides, [entries_of_windows(s, M) for s in sides], color="#4477aa", label=f"{text.word('in')} M = {M}")
        ax.plot([H, H], [among_all, in_windows], "o", color="#222222")
        ax.set_xlabel(text.word("side"))
        ax.set_ylabel(text.word("entries"))
        ax.set_xticks([28, 56, 112, 224], [28, 56, 112, 224])
        ax.minorticks_off()
        ax.legend(frameon=False)
        return figure

    text.figure(entries_figure(), "figure-entries")


@app.cell
def _(text, window_ops):
    text.code(window_ops._cut)


@app.cell
def _(mo, swin, text):
    mo.vstack([text("equations"), text.code(swin.Block.attend, "x = pad_below", "return crop")])


@app.cell
def _(H, M, mo, text):
    width = mo.ui.slider(steps=[32, 64, 96, 128, 192], value=96, label=text.word("width"), show_value=True)

    def macs(h, w, C):
        """Equations 1 and 2: attention among all tokens, in windows."""
        linear = 4 * h * w * C**2
        return linear + 2 * (h * w) ** 2 * C, linear + 2 * M**2 * h * w * C

    def shown(C):
        everywhere, local = macs(H, H, C)
        return text(
            "cost", side=H, window=M, width=C, all=everywhere / 1e9, windows=local / 1e9, ratio=everywhere / local
        )

    return macs, shown, width


@app.cell
def _(mo, shown, text, width):
    mo.vstack([text("equations-cost"), width, shown(width.value)])


@app.cell
def _(Path, csv, text):
    def rows_of(name):
        with (Path(__file__).resolve().parents[1] / "figures" / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    slopes = {
        (row["model"], row["attention"], row["quantity"]): float(row["fitted"])
        for row in rows_of("attention_cost_exponents.csv")
    }
    races = {row["model"]: row for row in rows_of("throughput_accuracy.csv")}
    vit, windowed = races["ViT/4"], races["Swin"]
    text(
        "measured",
        vit_time=slopes["ViT-Ti/16", "matrix", "attention_ms"], swin_time=slopes["Swin-T", "matrix", "attention_ms"],
        vit_memory=slopes["ViT-Ti/16", "matrix", "attention_MiB"],
        swin_memory=slopes["Swin-T", "matrix", "attention_MiB"],
        blocks_time=slopes["ViT-Ti/16", "blocks", "attention_ms"],
        blocks_memory=slopes["ViT-Ti/16", "blocks", "attention_MiB"],
        vit_speed=float(vit["inference_images_s"]), swin_speed=float(windowed["inference_images_s"]),
        vit_right=100 * float(vit["test_accuracy"]), swin_right=100 * float(windowed["test_accuracy"]),
    )
    return (slopes,)


@app.cell
def _(mo, swin, text):
    mo.vstack([
        text("merging"),
        text.code(swin.neighbours, "x = x.reshape", "return"),
        text.code(swin.PatchMerging),
    ])


@app.cell
def _(np, ops, swin, sv):
    def merged_numbers(side):
        """The four tokens that are merged into each: (side/2, side/2, 4)."""
        numbers = sv.Tensor(np.arange(side * side, dtype=np.float32).reshape(1, side, side, 1))
        return swin.neighbours(numbers).numpy()[0].astype(int)

    def merging_weights(C):
        """Entries of the matrix 4C → 2C."""
        return swin.PatchMerging(C).reduction.weight.size

    return merged_numbers, merging_weights


@app.cell
def _(Figure, merged_numbers, np, text):
    def merging_figure():
        figure = Figure(figsize=(4.8, 3.1), layout="constrained")
        left, right = figure.subplots(1, 2)
        colours = np.array([["#4477aa", "#66ccee"], ["#228833", "#ccbb44"]])
        for ax, n in ((left, 4), (right, 2)):
            ax.set(xlim=(0, n), ylim=(n, 0), aspect="equal", xticks=[], yticks=[])
        for y in range(4):
            for x in range(4):
                left.add_patch(_box(x, y, 1, 1, colours[y % 2, x % 2]))
                left.text(x + 0.5, y + 0.5, f"{4 * y + x}", ha="center", va="center", fontsize=12)
        for (y, x), four in ((at, merged_numbers(4)[at]) for at in np.ndindex(2, 2)):
            for i, number in enumerate(four):
                colour = colours[number // 4 % 2, number % 4 % 2]
                right.add_patch(_box(x + i / 4, y + 0.3, 0.25, 0.4, colour))
                right.text(x + i / 4 + 0.125, y + 0.5, f"{number}", ha="center", va="center", fontsize=11)
            right.add_patch(_box(x, y, 1, 1, "none"))
        left.set_title(text.word("before"), fontsize=11)
        right.set_title(text.word("after"), fontsize=11)
        return figure

    def _box(x, y, width, height, colour):
        from matplotlib.patches import Rectangle

        return Rectangle((x, y), width, height, facecolor=colour, edgecolor="#222222", linewidth=1)

    text.figure(merging_figure(), "figure-merging")


@app.cell
def _(merging_weights, mo, swin, text, width):
    def stages():
        """The rows of the table, for 224×224 pixels."""
        rows, n = [], swin.SwinConfig().img_size // swin.SwinConfig().patch_size
        for stage in range(4):
            C = width.value * 2**stage
            merging = merging_weights(C // 2) if stage else 0
            rows.append(f"| {stage + 1} | {n}×{n} | {C:,} | {n * n * C:,} | {merging:,} |")
            n //= 2
        return "\n".join(rows)

    mo.vstack([width, text("stages", rows=stages(), width=width.value, weights=merging_weights(width.value))])


@app.cell
def _(data, first_of_each_class, np, to_picture, window_blocks, zoo):
    trained = zoo.load("swin_digits")
    blocks = window_blocks(trained.model)
    test = data.load("digits").test
    pictures = test.images(first_of_each_class(test.labels, 10))            # (10, 8, 8, 1)
    images = np.stack([trained.prepare(to_picture(picture)) for picture in pictures])       # (10, 1, 16, 16)
    return blocks, images, pictures, trained


@app.cell
def _(mo, text):
    digit = mo.ui.slider(0, 9, value=3, label=text.word("digit"), show_value=True)
    where = mo.ui.slider(0, 5, value=0, label=text.word("block"), show_value=True)
    row = mo.ui.slider(0, 7, value=3, label=text.word("row"), show_value=True)
    column = mo.ui.slider(0, 7, value=4, label=text.word("column"), show_value=True)
    mo.vstack([text("trained"), digit, where, row, column])
    return column, digit, row, where


@app.cell
def _(blocks, column, digit, evaluating, images, np, ops, row, trained, where):
    def attention_of(token, block, recorded):
        """Mean over heads (h, w), 0 outside the window of the token."""
        [window], [place] = np.nonzero(block.places == np.ravel_multi_index(token, block.size))
        shares = np.zeros(block.places.shape, np.float32)                   # (nW, N)
        shares[window] = recorded[window].mean(axis=0)[place]               # recorded (nW, heads, N, N)
        return block.in_place(shares)

    block = blocks[where.value]
    with evaluating(trained.model), ops.record_attention() as recorded:
        answer = int(trained.model(images[digit.value : digit.value + 1]).numpy().argmax())
    token = row.value >> (block.stage - 1), column.value >> (block.stage - 1)       # what it was merged into
    looks = attention_of(token, block, recorded[where.value])
    return answer, attention_of, block, looks, token


@app.cell
def _(Figure, block, digit, looks, np, pictures, text, token):
    def windows_figure():
        figure = Figure(figsize=(4.8, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        (h, w), ids = block.size, np.arange(len(block.places))[:, None] * 4 + block.kinds
        ids = block.in_place(ids)
        left.imshow(pictures[digit.value][..., 0], cmap="gray_r", extent=(0, w, h, 0), alpha=0.75)
        shown = right.imshow(looks, cmap="inferno", vmin=0, extent=(0, w, h, 0))
        for ax, colour in ((left, "#4477aa"), (right, "#66ccee")):
            for y, x in np.ndindex(h, w):                                   # a line where two windows meet
                if x and ids[y, x] != ids[y, x - 1]:
                    ax.plot([x, x], [y, y + 1], color=colour, linewidth=3)
                if y and ids[y, x] != ids[y - 1, x]:
                    ax.plot([x, x + 1], [y, y], color=colour, linewidth=3)
            y, x = token
            ax.plot([x, x + 1, x + 1, x, x], [y, y, y + 1, y + 1, y], color="#ee6677", linewidth=2.5)
            ax.set(xticks=range(w + 1), yticks=range(h + 1), xticklabels=[], yticklabels=[])
            ax.grid(color="#888888", linewidth=0.4)
            ax.tick_params(length=0)
        figure.colorbar(shown, ax=right, shrink=0.62)
        left.set_title(text.word("windows"), fontsize=11)
        right.set_title(text.word("looks"), fontsize=11)
        return figure

    text.figure(windows_figure(), "figure-windows")


@app.cell
def _(answer, block, blocks, digit, extent, np, pixels, reach_after_every_block, text, token, trained):
    grown = [
        extent(pixels(reached, (2, 2)))[0] for reached in reach_after_every_block(blocks, (3, 4))
    ]
    text(
        "seen", digit=digit.value, answer=answer, stage=block.stage, number=block.number, rows=block.size[0],
        tokens=int(np.prod(block.window)), all=int(np.prod(block.size)), token=f"({token[0]}, {token[1]})",
        windows=len(block.places), accuracy=100 * trained.card.figures["accuracy"], first=grown[0], second=grown[1],
        third=grown[2],
    )
    return (grown,)


@app.cell
def _(mo):
    saved = mo.ui.number()
    merged = mo.ui.number()
    equal = mo.ui.number()
    return equal, merged, saved


@app.cell
def _(entries_of_all, entries_of_windows, saved, text):
    def is_factor(number):
        return number * entries_of_windows(160, 8) == entries_of_all(160)

    text.exercise("exercise-1", saved, None if saved.value is None else is_factor(saved.value), "answer-1")
    return (is_factor,)


@app.cell
def _(merged, merging_weights, text):
    text.exercise(
        "exercise-2", merged, None if merged.value is None else merged.value == merging_weights(2 * 128), "answer-2"
    )


@app.cell
def _(entries_of_all, entries_of_windows, equal, text):
    def is_global(M):
        return 1 <= M <= 56 and 56 % M == 0 and entries_of_windows(56, int(M)) == entries_of_all(56)

    text.exercise("exercise-3", equal, None if equal.value is None else is_global(equal.value), "answer-3")
    return (is_global,)


@app.cell
def _(text):
    text("big-world")


if __name__ == "__main__":
    app.run()
