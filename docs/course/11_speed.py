import marimo

__generated_with = "0.25.2"
app = marimo.App(width="compact", app_title="11. How it is made fast", css_file="course.css")


@app.cell
def _():
    import marimo as mo
    import numpy as np
    from matplotlib.figure import Figure
    from PIL import Image

    import scratchvit as sv
    from scratchvit import data, ops, threads, zoo
    from scratchvit.costs.counting import readable_bytes
    from scratchvit.costs.machine import Machine, measure
    from scratchvit.costs.profiling import profile
    from scratchvit.course import Chapter, speed
    from scratchvit.kernels import attention_blocks
    from scratchvit.kernels import layer_norm as on_cpu
    from scratchvit.kernels.cuda import layer_norm as on_gpu
    from scratchvit.kernels.cuda import warps

    return (
        Chapter, Figure, Image, Machine, attention_blocks, data, measure, mo, np, on_cpu, on_gpu, ops, profile,
        readable_bytes, speed, sv, threads, warps, zoo,
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
def _(mo, text):
    again = mo.ui.button(label=text.word("again"))
    mo.vstack([text("memory"), again])
    return (again,)


@app.cell
def _(Figure, again, speed, text):
    again
    SIZES = (0.25, 1, 4, 16, 64)        # MiB of an array
    added = speed.additions(SIZES)

    def additions_figure(found):
        figure = Figure(figsize=(4.8, 2.8), layout="constrained")
        ax = figure.subplots()
        for column, colour, name in ((0, "#ee6677", "fresh"), (1, "#4477aa", "kept")):
            ax.plot(SIZES, [row[column] for row in found], "-o", color=colour, label=text.word(name))
        ax.set(xlabel=text.word("size"), ylabel=text.word("per-entry"), yscale="log")
        ax.set_xscale("log", base=2)
        ax.set_xticks(SIZES, [f"{size:g}" for size in SIZES])
        ax.legend(frameon=False)
        return figure

    text.figure(
        additions_figure(added), "figure-memory", small=added[0][1], large=added[-1][1], fresh=added[-1][0],
        largest=SIZES[-1],
    )
    return


@app.cell
def _(mo, text, threads):
    mo.vstack([text("blocks"), text.code(threads.parallel_rows, "rows = len", "return deal"), text("blocks-move")])
    return


@app.cell
def _(Figure, again, speed, text, threads):
    again
    BLOCKS = tuple(1024 * kibibytes for kibibytes in (4, 16, 64, 256, 1024, 2048))
    in_blocks, whole = speed.updates(BLOCKS)

    def updates_figure(times, of_whole):
        figure = Figure(figsize=(4.8, 2.8), layout="constrained")
        ax = figure.subplots()
        ax.plot(BLOCKS, [1000 * one for one in times], "-o", color="#4477aa")
        ax.axhline(1000 * of_whole, color="#ee6677", linestyle="--", label=text.word("whole"))
        ax.set(xlabel=text.word("block"), ylabel=text.word("milliseconds"), yscale="log")
        ax.set_xscale("log", base=2)
        ax.set_xticks(BLOCKS, [size // 1024 for size in BLOCKS])
        ax.legend(frameon=False)
        return figure

    _best = min(in_blocks)
    text.figure(
        updates_figure(in_blocks, whole), "figure-blocks", whole=1000 * whole, best=1000 * _best,
        at=BLOCKS[in_blocks.index(_best)] // 1024, smallest=1000 * in_blocks[0], threads=threads.cpu_threads(),
    )
    return


@app.cell
def _(mo, on_cpu, text):
    mo.vstack([text("plain"), text.code(on_cpu.normalise_rows, "def forward", "parallel_rows")])
    return


@app.cell
def _(again, speed, text):
    again
    compared = {one.name: one for one in speed.plain_and_fast()}
    text("plain-times", **{
        f"{short}_{what}": value
        for short, one in (("g", compared["gelu"]), ("n", compared["layer_norm"]), ("a", compared["attention"]))
        for what, value in (
            ("plain", 1000 * one.plain), ("fast", 1000 * one.fast), ("ratio", one.plain / one.fast),
            ("off", one.difference),
        )
    })
    return


@app.cell
def _(attention_blocks, mo, text):
    mo.vstack([
        text("online"),
        text.code(attention_blocks.attention_in_blocks, "for j in _slices(M, columns)", "y[at]"),
        text("online-move"),
    ])
    return


@app.cell
def _(Image, data, np, ops, sv, zoo):
    trained = zoo.load("vit_digits")
    digit = data.load("digits").test.images([7])[0, :, :, 0]
    with sv.no_grad(), ops.record_attention() as _maps:
        trained.model(trained.prepare(Image.fromarray(digit))[None])
    _last = _maps[-1][0, 0]                                     # (N, N), of the first head
    scores = np.log(_last[0])                                   # of the first token, up to a constant
    values = np.eye(len(scores), dtype=np.float32)              # so that the result is the probabilities
    return scores, trained, values


@app.cell
def _(mo, scores, text):
    block = mo.ui.slider(1, len(scores), value=4, label=text.word("keys-of-a-block"), show_value=True)
    seen = mo.ui.slider(1, len(scores), value=2, label=text.word("blocks-seen"), show_value=True)
    return block, seen


@app.cell
def _(Figure, block, mo, np, scores, seen, speed, text, values):
    def online_figure(steps, shown):
        figure = Figure(figsize=(5, 4.2), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        number = len(scores)
        read = np.arange(number) < shown.end
        above.bar(range(number), scores - scores.min(), color=np.where(read, "#4477aa", "#dddddd"))
        above.axhline(shown.m - scores.min(), color="#ee6677", label="m")
        below.bar(range(number), shown.y / shown.l, color="#4477aa", label="y / l")
        below.plot(range(number), softmax, "_", color="black", markersize=10, label="softmax")
        for ax in (above, below):
            for step in steps[:-1]:
                ax.axvline(step.end - 0.5, color="#aaaaaa", linewidth=0.8)
            ax.legend(frameon=False)
        above.set_ylabel(text.word("score"))
        below.set(xlabel=text.word("key"), ylabel="P")
        return figure

    softmax = np.exp(scores) / np.exp(scores).sum()
    _steps = speed.online(scores, values, block.value)
    _shown = _steps[min(seen.value, len(_steps)) - 1]
    online_error = float(np.abs(_steps[-1].y / _steps[-1].l - softmax).max())
    mo.vstack([
        mo.hstack([block, seen], justify="start", wrap=True),
        text.figure(
            online_figure(_steps, _shown), "figure-online", blocks=len(_steps), shown=min(seen.value, len(_steps)),
            m=_shown.m, l=_shown.l, error=online_error,
        ),
    ])
    return (online_error,)


@app.cell
def _(mo, text):
    tokens = mo.ui.slider(steps=[256, 512, 1024, 2048], value=1024, label=text.word("tokens"), show_value=True)
    return (tokens,)


@app.cell
def _(mo, readable_bytes, speed, text, tokens):
    _matrix, _numbers = speed.attention_bytes(tokens.value)
    mo.vstack([
        tokens,
        text(
            "online-memory", tokens=tokens.value, matrix=readable_bytes(_matrix), numbers=readable_bytes(_numbers),
            difference=speed.in_blocks_and_whole(tokens.value),
        ),
    ])
    return


@app.cell
def _(mo, on_gpu, text, warps):
    mo.vstack([
        text("kernel"),
        text.code(on_gpu, 'extern "C" __global__ void layer_norm(', "r[row] = scale"),
        text("warp"),
        text.code(warps, "template <class S> __device__ inline S warp_sum", "return value"),
    ])
    return


@app.cell
def _(mo, text):
    exchanges = mo.ui.slider(0, 5, value=2, label=text.word("exchanges"), show_value=True)
    return (exchanges,)


@app.cell
def _(Figure, Image, data, exchanges, mo, np, speed, sv, text, trained):
    def warp_figure(values):
        figure = Figure(figsize=(5, 2.4), layout="constrained")
        ax = figure.subplots()
        ax.bar(range(speed.LANES), values, color="#4477aa")
        ax.axhline(token.sum(), color="#ee6677", linestyle="--")
        ax.set(xlabel=text.word("lane"), ylabel=text.word("register"))
        return figure

    _picture = Image.fromarray(data.load("digits").test.images([7])[0, :, :, 0])
    with sv.no_grad():
        _tokens = trained.model.patch_embed(sv.Tensor(trained.prepare(_picture)[None])).numpy()
    token = _tokens[0, 5, : speed.LANES]                        # half of the channels of a patch
    warp = speed.warp_steps(token)
    mo.vstack([
        exchanges,
        text.figure(
            warp_figure(warp[exchanges.value]), "figure-warp", exchanges=exchanges.value,
            different=len(np.unique(warp[exchanges.value].round(4))), total=float(token.sum()),
        ),
    ])
    return (warp,)


@app.cell
def _(mo, text):
    gigaflops = mo.ui.slider(steps=[50, 100, 200, 500, 1000, 10_000, 100_000], value=100, label="GFLOP/s",
                             show_value=True)
    bandwidth = mo.ui.slider(steps=[5, 10, 20, 50, 100, 1000, 3000], value=10, label="GB/s", show_value=True)
    own = mo.ui.run_button(label=text.word("own"))
    mo.vstack([text("roofline"), mo.hstack([gigaflops, bandwidth, own], justify="start", wrap=True)])
    return bandwidth, gigaflops, own


@app.cell
def _(again, profile, trained):
    again
    profiled = profile(trained.model, batch_size=32, steps=2)
    return (profiled,)


@app.cell
def _(Figure, Machine, bandwidth, gigaflops, measure, mo, np, own, profiled, speed, text):
    machine = measure() if own.value else Machine(1e9 * gigaflops.value, 1e9 * bandwidth.value)

    def roofline_figure(rows):
        figure = Figure(figsize=(5, 5.4), layout="constrained")
        roof, bars = figure.subplots(2, 1)
        intensities = np.geomspace(0.5, 2000, 50)
        roof.loglog(intensities, np.minimum(machine.flops, intensities * machine.bandwidth) / 1e9, color="black")
        computing = [row for row in rows if row.macs]
        for number, row in enumerate(computing):
            x = 2 * row.macs / row.nbytes
            roof.plot(x, row.flops / 1e9, "os^vD"[number % 5], color=f"C{number}", label=f"{row.op} {row.direction}")
        roof.set(xlabel=text.word("intensity"), ylabel="GFLOP/s")
        roof.legend(frameon=False, fontsize=9, loc="lower right")
        places = np.arange(len(rows))
        bars.barh(places - 0.2, [1000 * row.seconds for row in rows], 0.4, color="#4477aa", label=text.word("measured"))
        bars.barh(places + 0.2, [1000 * row.at_best for row in rows], 0.4, color="#ee6677", label=text.word("at-best"))
        bars.set_yticks(places, [f"{row.op} {row.direction}" for row in rows])
        bars.invert_yaxis()
        bars.set(xlabel=text.word("milliseconds"), xscale="log")
        bars.legend(frameon=False, fontsize=9, ncols=2, loc="lower center", bbox_to_anchor=(0.4, 1))
        return figure

    _rows = speed.busiest(profiled.rows(machine))
    _bound = [row for row in _rows if 2 * row.macs / machine.flops < row.nbytes / machine.bandwidth]
    mo.vstack([
        text.figure(
            roofline_figure(_rows), "figure-roofline", flops=machine.flops / 1e9, bandwidth=machine.bandwidth / 1e9,
            ridge=machine.flops / machine.bandwidth, ops=len(_rows), bound=len(_bound),
            step=1000 * profiled.plain_seconds,
        ),
        text("roofline-reading"),
    ])
    return


@app.cell
def _(mo):
    answer_1 = mo.ui.number()
    answer_2 = mo.ui.number(step=0.01)
    answer_3 = mo.ui.number()
    return answer_1, answer_2, answer_3


@app.cell
def _(Machine, answer_1, answer_2, answer_3, mo, speed, text):
    solutions = (
        speed.attention_bytes(4096, heads=8)[0] / speed.MEBIBYTE, speed.joined((2.0, 3.0), (4.0, 1.0))[1],
        100 * speed.share_of_peak(Machine(100e9, 10e9), 1.0),
    )

    def right(given, wanted):
        return None if given.value is None else abs(given.value - wanted) < 0.01

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
