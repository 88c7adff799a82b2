import marimo

__generated_with = "0.25.2"
app = marimo.App(width="compact", app_title="8. Shifted windows and relative positions", css_file="course.css")


@app.cell
def _():
    import marimo as mo
    import numpy as np
    from matplotlib.figure import Figure
    from PIL import Image

    import scratchvit as sv
    from scratchvit import data, ops, zoo
    from scratchvit.course import Chapter, shifts
    from scratchvit.inspect import swin as inspected
    from scratchvit.models import swin
    from scratchvit.models import windows as parts

    return (
        Chapter, Figure, Image, data, inspected, mo, np, ops, parts, shifts, sv, swin, zoo,
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
def _(shifts):
    SIDE, TOKEN = 12, 16        # tokens along a side of the map, pixels along a side of a token
    photo = shifts.photograph(SIDE * TOKEN)
    return SIDE, TOKEN, photo


@app.cell
def _(mo, text):
    window = mo.ui.slider(steps=[2, 3, 4, 6], value=4, label=text.word("window"), show_value=True)
    return (window,)


@app.cell
def _(SIDE, mo, text, window):
    shift = mo.ui.slider(0, window.value - 1, value=window.value // 2, label=text.word("shift"), show_value=True)
    _count = (SIDE // window.value) ** 2
    shown = mo.ui.slider(1, _count, value=_count, label=text.word("number"), show_value=True)
    return shift, shown


@app.cell
def _(SIDE, mo, shift, shifts, shown, text, window):
    block = shifts.block_of(SIDE, window.value, shift.value)
    _pieces = shifts.pieces_without_roll(SIDE, window.value, shift.value)
    _shares = shifts.shares_allowed(block)
    mo.vstack([
        text("roll"),
        mo.hstack([window, shift, shown], justify="start", wrap=True),
        text(
            "roll-numbers", side=SIDE, window=window.value, shift=shift.value, windows=len(block.places),
            pieces=_pieces, more=100 * (_pieces / len(block.places) - 1), shown=shown.value,
            allowed=100 * float(_shares.mean()), here=100 * float(_shares[shown.value - 1]),
        ),
    ])
    return (block,)


@app.cell
def _(Figure, block, photo, shifts, shown, text):
    def windows_figure(number):
        figure = Figure(figsize=(5, 5.2), layout="constrained")
        axes = list(figure.subplot_mosaic([["left", "right"], ["mask", "mask"]]).values())
        shifts.draw_windows(axes, photo, block, number)
        axes[2].set(xlabel=text.word("key"), ylabel=text.word("query"))
        for ax, title in zip(axes, ("$z$", "roll$(z, -s)$", f"$w = {number + 1}$")):
            ax.set_title(title, fontsize=11)
        return figure

    text.figure(windows_figure(shown.value - 1), "figure-windows", shown=shown.value)
    return


@app.cell
def _(mo, ops, parts, swin, text):
    mo.vstack([
        text("equations"),
        text.code(swin.Block, "def forward", "return x"),
        text("steps"),
        text.code(swin.Block, "x = pad_below_and_right", "return crop"),
        text("kinds"),
        text.code(parts.shifted_regions, "padded =", "return ops"),
        text.code(parts.same_region, "kinds =", "return kinds"),
    ])
    return


@app.cell
def _(mo, text):
    token_row = mo.ui.slider(0, 11, value=5, label=text.word("row"), show_value=True)
    token_column = mo.ui.slider(0, 11, value=5, label=text.word("column"), show_value=True)
    depth = mo.ui.slider(1, 6, value=2, label=text.word("blocks"), show_value=True)
    return depth, token_column, token_row


@app.cell
def _(Figure, SIDE, TOKEN, depth, inspected, mo, np, photo, shifts, text, token_column, token_row, window):
    def reached(window, shift, depth, token):
        """What a token depends on after some blocks, bool (h, w)."""
        blocks = [shifts.block_of(SIDE, window, shift if i % 2 else 0) for i in range(depth)]
        return inspected.reach(blocks, token)

    def draw_reach(fields, token):
        figure = Figure(figsize=(5, 2.7), layout="constrained")
        for ax, (title, field) in zip(figure.subplots(1, 2), fields.items()):
            large = field.repeat(TOKEN, axis=0).repeat(TOKEN, axis=1)[..., None]
            ax.imshow(np.where(large, photo, photo // 4 + 180))
            ax.plot((token[1] + 0.5) * TOKEN, (token[0] + 0.5) * TOKEN, "o", color="#cc3311", markeredgecolor="white")
            ax.set_title(title, fontsize=11)
            ax.set_axis_off()
        return figure

    _token = (token_row.value, token_column.value)
    _half = window.value // 2
    _fields = {
        "$s = 0$": reached(window.value, 0, depth.value, _token),
        f"$s = {_half}$": reached(window.value, _half, depth.value, _token),
    }
    _seen = [int(field.sum()) for field in _fields.values()]
    mo.vstack([
        text("reach"),
        mo.hstack([token_row, token_column, depth], justify="start", wrap=True),
        text.figure(
            draw_reach(_fields, _token), "figure-reach", window=window.value, depth=depth.value, fixed=_seen[0],
            shifted=_seen[1], tokens=SIDE * SIDE,
        ),
    ])
    return (reached,)


@app.cell
def _(Image, data, np, sv, zoo):
    trained = zoo.load("swin_digits")
    digits = data.load("digits").test
    pictures = digits.images(range(len(digits)))[..., 0]                        # (360, 8, 8)
    images = np.stack([trained.prepare(Image.fromarray(picture)) for picture in pictures])

    def right_answers():
        """The number of test digits that are read correctly now."""
        with sv.no_grad():
            logits = trained.model(images).numpy()
        return int((logits.argmax(axis=1) == digits.labels).sum())

    shifted_block = trained.model.layers[0].blocks[1]       # the only one: later maps are one window
    return digits, images, pictures, right_answers, shifted_block, trained


@app.cell
def _(images, np, ops, parts, right_answers, shifted_block, shifts, sv, trained):
    def shifted_attention(pictures, masked):
        """The attention of the shifted block, (B, nW, N, N)."""
        regions = shifted_block.regions if masked else None
        with shifts.changed(shifted_block, regions=regions), sv.no_grad(), ops.record_attention() as maps:
            trained.model(pictures)
        return maps[1].reshape(len(pictures), -1, *maps[1].shape[-2:])

    def share_across(pictures):
        """The share of attention that crosses the edges of the map, unmasked."""
        allowed = parts.same_region(shifted_block.regions, 1)[:, 0]             # (nW, N, N)
        return float(np.mean((shifted_attention(pictures, False) * ~allowed).sum(axis=-1)))

    intact = right_answers()
    with shifts.changed(shifted_block, regions=None):
        unmasked = right_answers()
    with shifts.changed(shifted_block, regions=None, shift=(0, 0)):
        unshifted = right_answers()
    across = share_across(images[:50])
    return across, intact, shifted_attention, unmasked, unshifted


@app.cell
def _(digits, mo, text):
    which = mo.ui.slider(0, len(digits) - 1, value=7, label=text.word("digit"), show_value=True)
    return (which,)


@app.cell
def _(
    Figure, across, digits, images, intact, mo, pictures, shifted_attention, text, unmasked, unshifted, which,
):
    def draw_leak(picture, with_mask, without):
        """A digit, and the attention of the corner window."""
        figure = Figure(figsize=(5, 2.0), layout="constrained")
        axes = figure.subplots(1, 3)
        axes[0].imshow(picture, cmap="gray_r")
        axes[0].set_title(f"$i = {which.value}$", fontsize=11)
        for ax, attention, title in zip(axes[1:], (with_mask, without), ("masked", "unmasked")):
            ax.imshow(attention[-1], cmap="magma", vmin=0, vmax=0.5)
            ax.set_title(text.word(title), fontsize=11)
        for ax in axes:
            ax.set(xticks=[], yticks=[])
        return figure

    _maps = [shifted_attention(images[which.value : which.value + 1], masked)[0] for masked in (True, False)]
    mo.vstack([
        text(
            "without-mask", tests=len(digits), intact=100 * intact / len(digits),
            unmasked=100 * unmasked / len(digits), unshifted=100 * unshifted / len(digits),
            across=100 * across,
        ),
        which,
        text.figure(draw_leak(pictures[which.value], *_maps), "figure-leak", digit=int(digits.labels[which.value])),
    ])
    return


@app.cell
def _(mo, parts, swin, text):
    mo.vstack([
        text("bias"),
        text.code(swin.WindowAttention, "x = ops.attention(", ")"),
        text("table"),
        text.code(parts.relative_position_index, "y, x = np.meshgrid", "index = "),
        text("table-move"),
    ])
    return


@app.cell
def _(mo, text):
    side = mo.ui.slider(2, 7, value=3, label=text.word("window"), show_value=True)
    return (side,)


@app.cell
def _(mo, side, text):
    query = mo.ui.slider(0, side.value**2 - 1, value=0, label=text.word("query"), show_value=True)
    key = mo.ui.slider(0, side.value**2 - 1, value=side.value**2 - 1, label=text.word("key"), show_value=True)
    return key, query


@app.cell
def _(Figure, key, mo, np, parts, query, shifts, side, text):
    def index_figure(M, query, key):
        figure = Figure(figsize=(5, 2.8), layout="constrained")
        pairs, table = figure.subplots(1, 2)
        shifts.draw_index(pairs, table, M, query, key)
        pairs.set(xlabel=text.word("key"), ylabel=text.word("query"), title=f"$N \\times N$, $N = {M * M}$")
        table.set(xlabel="Δx", ylabel="Δy", title=f"$(2M-1)^2 = {(2 * M - 1) ** 2}$")
        return figure

    _index = parts.relative_position_index((side.value, side.value))
    _down, _right = np.subtract(divmod(query.value, side.value), divmod(key.value, side.value)).tolist()
    mo.vstack([
        mo.hstack([side, query, key], justify="start", wrap=True),
        text.figure(
            index_figure(side.value, query.value, key.value), "figure-index", query=query.value, key=key.value,
            row=int(_index[query.value, key.value]), pairs=side.value**4, rows=(2 * side.value - 1) ** 2,
            down=_down, right=_right,
        ),
    ])
    return


@app.cell
def _(mo, text, trained):
    number = mo.ui.slider(1, sum(trained.model.config.depths), value=2, label=text.word("block"), show_value=True)
    factor = mo.ui.slider(steps=[0, 0.5, 1, 2, 4, 8, 16, 32], value=1, label=text.word("factor"), show_value=True)
    return factor, number


@app.cell
def _(inspected, right_answers, shifts, trained):
    trained_blocks = inspected.window_blocks(trained.model)
    with shifts.biases_times(trained_blocks, 0):
        without_bias = right_answers()
    return trained_blocks, without_bias


@app.cell
def _(
    Figure, digits, factor, inspected, intact, mo, np, number, right_answers, shifts, text, trained_blocks,
    without_bias,
):
    def draw_tables(heads):
        M = (heads.shape[1] + 1) // 2
        figure = Figure(figsize=(1.2 * len(heads) + 1.2, 2.2), layout="constrained")
        largest = np.abs(heads).max()
        for h, (ax, table) in enumerate(zip(figure.subplots(1, len(heads), squeeze=False)[0], heads), start=1):
            drawn = ax.imshow(
                table, cmap="RdBu_r", vmin=-largest, vmax=largest, extent=(-M + 0.5, M - 0.5, M - 0.5, -M + 0.5)
            )
            ax.set(xlabel="Δx", ylabel="Δy" if h == 1 else "", title=f"$h = {h}$")
            ax.locator_params(integer=True, nbins=4)
        figure.colorbar(drawn, ax=ax, shrink=0.8)
        return figure

    with shifts.biases_times(trained_blocks, factor.value):
        _right = right_answers()
    _chosen = trained_blocks[number.value - 1]
    _table = inspected.bias_table(_chosen)
    mo.vstack([
        text(
            "trained-bias", without=100 * without_bias / len(digits), intact=100 * intact / len(digits),
            fewer=intact - without_bias, tests=len(digits),
        ),
        mo.hstack([number, factor], justify="start", wrap=True),
        text.figure(
            draw_tables(_table), "figure-bias", block=number.value, window=_chosen.window[0],
            heads=len(_table), factor=float(factor.value), right=_right, tests=len(digits),
        ),
    ])
    return


@app.cell
def _(mo):
    answer_1 = mo.ui.number()
    answer_2 = mo.ui.number()
    answer_3 = mo.ui.number()
    return answer_1, answer_2, answer_3


@app.cell
def _(answer_1, answer_2, answer_3, mo, parts, shifts, text):
    solutions = (
        shifts.pieces_without_roll(56, 7, 3),
        int(parts.relative_position_index((4, 4))[2 * 4 + 1, 0 * 4 + 3]),
        100 * float(shifts.shares_allowed(shifts.block_of(8, 4, 2))[-1]),
    )
    def right(given, wanted):
        return None if given.value is None else given.value == wanted

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
