import marimo

__generated_with = "0.25.2"
app = marimo.App(width="compact", app_title="2. An image as a set of pixels", css_file="course.css")


@app.cell
def _():
    import marimo as mo
    import numpy as np
    from matplotlib.figure import Figure

    from scratchvit.costs.counting import readable_bytes
    from scratchvit.course import Chapter

    return Chapter, Figure, mo, np, readable_bytes


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
    side = mo.ui.slider(steps=[8, 16, 32, 64, 128, 224], value=128, label=text.word("side"), show_value=True)
    layers = mo.ui.slider(1, 48, value=48, label=text.word("layers"), show_value=True)
    heads = mo.ui.slider(1, 16, value=16, label=text.word("heads"), show_value=True)
    mo.vstack([side, layers, heads])
    return heads, layers, side


@app.cell
def _(heads, layers, readable_bytes, side, text):
    tokens = side.value**2
    matrix = 4 * tokens**2
    text(
        "memory", side=side.value, tokens=tokens, entries=tokens**2, matrix=readable_bytes(matrix),
        all=readable_bytes(matrix * layers.value * heads.value), layers=layers.value, heads=heads.value,
    )
    return


@app.cell
def _(Figure, heads, layers, np, side, text):
    def memory_figure(chosen, matrices):
        figure = Figure(figsize=(6, 3.2), layout="constrained")
        ax = figure.subplots()
        sides = np.array([8, 16, 32, 64, 128, 224])
        ax.loglog(sides, matrices * 4 * sides.astype(float)**4 / 2**30, base=2, color="#4477aa")
        ax.plot([chosen], [matrices * 4 * chosen**4 / 2**30], "o", color="#ee6677")
        ax.axhline(80, color="#555555", linestyle="--", linewidth=1)
        ax.set_xlabel(text.word("side"))
        ax.set_ylabel(text.word("memory"))
        ax.set_xticks(sides, sides)
        return figure

    text.figure(memory_figure(side.value, layers.value * heads.value), "figure-memory")
    return


@app.cell
def _(text):
    from scratchvit.ops.attention import _plain_attention

    text.code(_plain_attention, "s = matmul", "y = matmul")
    return


@app.cell
def _(mo):
    factor = mo.ui.number()          # without a start it is empty at first
    factor
    return (factor,)


@app.cell
def _(factor, text):
    text.exercise("exercise-1", factor, None if factor.value is None else factor.value == 16, "answer-1")
    return


if __name__ == "__main__":
    app.run()
