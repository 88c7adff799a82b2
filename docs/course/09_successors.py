import marimo

__generated_with = "0.25.2"
app = marimo.App(width="compact", app_title="9. Swin V2 and MViT", css_file="course.css")


@app.cell
def _():
    import marimo as mo
    import numpy as np
    from matplotlib.figure import Figure
    from PIL import Image

    import scratchvit as sv
    from scratchvit import data, zoo
    from scratchvit.costs import cost
    from scratchvit.course import Chapter, successors
    from scratchvit.inspect import swin as inspected
    from scratchvit.models import mvit, mvit_v2, swin, swin_v2
    from scratchvit.nn import init

    return (
        Chapter, Figure, Image, cost, data, init, inspected, mo, mvit, mvit_v2, np, successors, sv, swin, swin_v2, zoo,
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
def _(mo, swin, swin_v2, text):
    mo.vstack([
        text("norms"),
        text.code(swin.Block, "def forward", "return x"),
        text.code(swin_v2.Block, "def forward", "return x"),
        text("norms-move"),
    ])
    return


@app.cell
def _(Image, data, np, successors, sv, zoo):
    trained = zoo.load("swin_digits")
    digits = data.load("digits").test
    pictures = digits.images(range(16))[..., 0]                                 # (16, 8, 8)
    images = np.stack([trained.prepare(Image.fromarray(picture)) for picture in pictures])

    def of_trained(model):
        """The amplitude before the first block and after each."""
        found, x = [], model.patch_embed(sv.Tensor(images))
        for stage in model.layers:
            x = stage.downsample(x)
            before, *after = successors.amplitudes_along(x, list(stage.blocks))
            found += after if found else [before, *after]
            x = stage.blocks(x)
        return found

    with sv.no_grad():
        trained_amplitudes = of_trained(trained.model)
    return images, pictures, trained, trained_amplitudes


@app.cell
def _(mo, text):
    scale = mo.ui.slider(steps=[0.5, 1, 1.5, 2, 3, 4], value=2, label=text.word("scale"), show_value=True)
    weight = mo.ui.slider(0, 1, step=0.1, value=1, label=text.word("weight"), show_value=True)
    return scale, weight


@app.cell
def _(Figure, images, mo, scale, successors, text, trained_amplitudes, weight):
    def amplitude_figure(pre, post):
        figure = Figure(figsize=(5, 3.1), layout="constrained")
        ax = figure.subplots()
        for values, colour, name in ((pre, "#4477aa", "Swin"), (post, "#ee6677", "Swin V2"),
                                     (trained_amplitudes, "#555555", "swin_digits")):
            ax.semilogy(values, "-o", color=colour, label=name, markersize=3)
        ax.set(xlabel=text.word("block"), ylabel=text.word("amplitude"), ylim=(0.5, 200))
        ax.legend(frameon=False)
        return figure

    _pre = successors.amplitudes(False, scale.value, weight.value, images)
    _post = successors.amplitudes(True, scale.value, weight.value, images)
    mo.vstack([
        mo.hstack([scale, weight], justify="start", wrap=True),
        text.figure(
            amplitude_figure(_pre, _post), "figure-amplitudes", depth=successors.DEPTH, scale=float(scale.value),
            pre=_pre[-1], post=_post[-1], first=trained_amplitudes[0], last=trained_amplitudes[-1],
            blocks=len(trained_amplitudes) - 1,
        ),
    ])
    return


@app.cell
def _(mo, swin_v2, text):
    mo.vstack([
        text("cosine"),
        text.code(swin_v2.WindowAttention, "scale = self.logit_scale", ")"),
        text.code(swin_v2.inverse_length, "return"),
        text("cosine-move"),
    ])
    return


@app.cell
def _(mo, text):
    key = mo.ui.slider(0, 15, value=7, label=text.word("key"), show_value=True)
    length = mo.ui.slider(steps=[0.25, 0.5, 1, 2, 4, 8, 16], value=1, label=text.word("length"), show_value=True)
    return key, length


@app.cell
def _(Figure, images, key, length, mo, np, successors, text, trained):
    def attention_figure(rows):
        figure = Figure(figsize=(5, 2.5), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for ax, probabilities, name in zip(axes, rows, ("q·k / √d", "cos(q, k) / τ")):
            colours = np.where(np.arange(len(probabilities)) == key.value, "#cc3311", "#4477aa")
            ax.bar(range(len(probabilities)), probabilities, color=colours)
            ax.set(xlabel=text.word("key"), ylim=(0, 1), title=name)
        axes[0].set_ylabel("P")
        return figure

    _q, _keys = successors.keys_and_query(trained.model, images[7], 5)
    _keys[key.value] *= length.value
    _rows = [successors.probabilities(_q, _keys, cosine) for cosine in (False, True)]
    mo.vstack([
        mo.hstack([key, length], justify="start", wrap=True),
        text.figure(
            attention_figure(_rows), "figure-cosine", key=key.value, length=float(length.value),
            dot=100 * float(_rows[0][key.value]), cosine=100 * float(_rows[1][key.value]),
        ),
    ])
    return


@app.cell
def _(mo, swin_v2, text):
    mo.vstack([
        text("offsets"),
        text.code(swin_v2.log_spaced_offsets, "axes =", "offsets = (np.sign"),
        text.code(swin_v2.WindowAttention, "def position_bias", "return"),
        text("offsets-move"),
    ])
    return


@app.cell
def _(inspected, successors, trained):
    learned = inspected.bias_table(inspected.window_blocks(trained.model)[1])   # (1, 7, 7)
    imitation = successors.imitation(learned)
    return imitation, learned


@app.cell
def _(mo, text):
    larger = mo.ui.slider(steps=[4, 6, 8, 12, 16], value=8, label=text.word("larger"), show_value=True)
    return (larger,)


@app.cell
def _(Figure, imitation, larger, learned, mo, np, successors, text):
    def bias_figure(tables):
        figure = Figure(figsize=(5, 2.6), layout="constrained")
        largest = max(np.abs(table).max() for table in tables)
        axes = figure.subplots(1, len(tables))
        for ax, table, name in zip(axes, tables, ("Swin, M = 4", "G, M = 4", f"G, M = {larger.value}")):
            edge = len(table) / 2
            drawn = ax.imshow(
                table, cmap="RdBu_r", vmin=-largest, vmax=largest, extent=(-edge, edge, edge, -edge)
            )
            ax.set_title(name, fontsize=10)
            ax.locator_params(integer=True, nbins=4)
        figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.6)
        return figure

    _tables = [learned[0], *(successors.at_window(imitation, M, 4)[0] for M in (4, larger.value))]
    _linear, _log = successors.extrapolation(4, larger.value)
    mo.vstack([
        larger,
        text.figure(
            bias_figure(_tables), "figure-bias", window=larger.value, linear=_linear, log=_log,
            error=float(np.abs(_tables[0] - _tables[1]).mean()), spread=float(learned.std()),
        ),
        text("offsets-paper", linear=successors.extrapolation(8, 16)[0], log=successors.extrapolation(8, 16)[1]),
    ])
    return


@app.cell
def _(mo, mvit, text):
    mo.vstack([
        text("pooling"),
        text.code(mvit.PoolingAttention, "qkv = self.qkv(x)", "return"),
        text("pooling-move"),
    ])
    return


@app.cell
def _(cost, init, sv):
    def costs_of(name, **options):
        """What a model costs, by its shapes alone."""
        with init.without_weights():
            return cost(sv.create_model(name, **options))

    def attentions(found):
        """(queries, keys, channels, entries) of every attention of a model."""
        rows = [row for row in found.layers if row.attention_entries]
        return [(row.inputs[0][-2], row.inputs[1][-2], row.outputs[0][-1] * row.outputs[0][1], row.attention_entries)
                for row in rows]

    return attentions, costs_of


@app.cell
def _(mo, text):
    stride = mo.ui.slider(steps=[1, 2, 4, 8], value=4, label=text.word("stride"), show_value=True)
    return (stride,)


@app.cell
def _(Figure, attentions, costs_of, mo, stride, text):
    def pyramid_figure(rows):
        figure = Figure(figsize=(5, 3.0), layout="constrained")
        ax = figure.subplots()
        blocks = range(1, len(rows) + 1)
        for column, colour, name in ((0, "#4477aa", "queries"), (1, "#ee6677", "keys"), (2, "#228833", "channels")):
            ax.step(blocks, [row[column] for row in rows], where="mid", color=colour, label=text.word(name))
        ax.set_yscale("log")
        ax.set(xlabel=text.word("block"), xticks=list(blocks))
        ax.legend(frameon=False)
        return figure

    _found = costs_of("mvitv2_tiny", stride_kv=(stride.value, stride.value))
    _others = {name: costs_of(name) for name in ("swin_tiny_patch4_window7_224", "vit_tiny_patch16_224")}
    _fine = costs_of("vit_tiny_patch16_224", patch_size=4)
    mo.vstack([
        stride,
        text.figure(pyramid_figure(attentions(_found)), "figure-pyramid", stride=stride.value),
        text(
            "pooling-costs", stride=stride.value, entries=_found.attention_entries / 1e6, macs=_found.macs / 1e9,
            swin=_others["swin_tiny_patch4_window7_224"].attention_entries / 1e6,
            vit=_others["vit_tiny_patch16_224"].attention_entries / 1e6, fine=_fine.attention_entries / 1e6,
        ),
    ])
    return


@app.cell
def _(mo, mvit_v2, text):
    mo.vstack([
        text("decomposed"),
        text.code(mvit_v2.RelativeAttention, "scores = relative_scores", "x = x + (q"),
        text("decomposed-move"),
    ])
    return


@app.cell
def _(mo, text):
    queries = mo.ui.slider(2, 8, value=4, label=text.word("queries-side"), show_value=True)
    keys = mo.ui.slider(1, 8, value=2, label=text.word("keys-side"), show_value=True)
    return keys, queries


@app.cell
def _(Figure, keys, mo, mvit_v2, np, queries, successors, text):
    def offsets_figure(index):
        figure = Figure(figsize=(3.6, 3.0), layout="constrained")
        ax = figure.subplots()
        ax.imshow(index, cmap="viridis")
        for (i, j), row in np.ndenumerate(index):
            ax.text(j, i, row, ha="center", va="center", color="black" if row > 0.7 * index.max() else "white")
        ax.set(xlabel=text.word("key"), ylabel=text.word("query"))
        ax.locator_params(integer=True)
        return figure

    _index = mvit_v2.relative_offsets(queries.value, keys.value)
    _pairs, _product = successors.two_ways(queries.value, keys.value)
    _rows = 2 * max(queries.value, keys.value) - 1
    mo.vstack([
        mo.hstack([queries, keys], justify="start", wrap=True),
        text.figure(
            offsets_figure(_index), "figure-offsets", queries=queries.value, keys=keys.value, rows=2 * _rows,
            joint=_rows**2, difference=float(np.abs(_pairs - _product).max()), scores=_pairs.size,
        ),
    ])
    return


@app.cell
def _(mo, mvit_v2, text):
    mo.vstack([
        text("residual"),
        text.code(mvit_v2.RelativeAttention, "if self.residual", "x = x + (q"),
    ])
    return


@app.cell
def _(Figure, mo, successors, text):
    def speed_figure(rows):
        figure = Figure(figsize=(5, 3.6), layout="constrained")
        ax = figure.subplots()
        places = {"MViTv2": (0, 7, "center"), "MViT": (0, -15, "center"), "Swin": (-7, -4, "right")}
        for row in rows:
            x, y = float(row["training_images_s"]), 100 * float(row["test_accuracy"])
            hierarchy = row["model"] in ("Swin", "Swin V2", "MViT", "MViTv2")
            ax.plot(x, y, "o", color="#ee6677" if hierarchy else "#4477aa")
            right, up, side = places.get(row["model"], (-7, -4, "right") if y > 87 else (0, -15, "center"))
            ax.annotate(row["model"], (x, y), (right, up), textcoords="offset points", ha=side, annotation_clip=True)
        ax.set(xlabel=text.word("speed"), ylabel=text.word("accuracy"), xlim=(150, 720), ylim=(72, 91))
        return figure

    measured = {row["model"]: row for row in successors.measured_models()}
    mo.vstack([
        text("speed"),
        text.figure(
            speed_figure(measured.values()), "figure-speed", models=len(measured),
            pixels=100 * float(measured["pixels"]["test_accuracy"]),
            pixels_speed=float(measured["pixels"]["training_images_s"]),
        ),
    ])
    return (measured,)


@app.cell
def _(costs_of, measured, text):
    _names = {
        "swin_t": "swin_tiny_patch4_window7_224", "swin_b": "swin_base_patch4_window7_224", "mvit": "mvit_v1_b_image",
        "mvit2_t": "mvitv2_tiny", "mvit2_b": "mvitv2_base", "deit_s": "deit_small_patch16_224",
    }
    _found = {short: costs_of(name).macs / 1e9 for short, name in _names.items()}
    _here = {"swin": "Swin", "v2": "Swin V2", "mvit": "MViT", "mvit2": "MViTv2", "vit": "ViT/4"}
    _ours = {f"ours_{short}": 100 * float(measured[name]["test_accuracy"]) for short, name in _here.items()}
    text("speed-papers", **_found, **_ours)
    return


@app.cell
def _(mo):
    answer_1 = mo.ui.number()
    answer_2 = mo.ui.number()
    answer_3 = mo.ui.number()
    return answer_1, answer_2, answer_3


@app.cell
def _(answer_1, answer_2, answer_3, attentions, costs_of, init, mo, successors, sv, text):
    def rows_of_positions():
        """The rows of both tables in the first block of MViTv2-T."""
        with init.without_weights():
            attention = sv.create_model("mvitv2_tiny").stages[0].blocks[0].attn
        return len(attention.rel_pos_h) + len(attention.rel_pos_w)

    solutions = (
        100 * successors.extrapolation(8, 24)[1], attentions(costs_of("mvitv2_tiny"))[0][-1], rows_of_positions()
    )
    def right(given, wanted):
        return None if given.value is None else abs(given.value - wanted) < 0.5

    mo.vstack([
        text("exercises"),
        text.exercise("exercise-1", answer_1, right(answer_1, solutions[0]), "answer-1"),
        text.exercise("exercise-2", answer_2, right(answer_2, solutions[1]), "answer-2"),
        text.exercise("exercise-3", answer_3, right(answer_3, solutions[2]), "answer-3"),
        text("big-world"),
    ])
    return (solutions,)


if __name__ == "__main__":
    app.run()
