import marimo

__generated_with = "0.25.2"
app = marimo.App(width="compact", app_title="1. Autograd in 100 lines", css_file="course.css")


@app.cell
def _():
    import marimo as mo
    import numpy as np
    from matplotlib.figure import Figure

    import scratchvit as sv
    from scratchvit import ops, zoo
    from scratchvit.backend import Array
    from scratchvit.course import Chapter
    from scratchvit.data.digits import load_digits
    from scratchvit.gradcheck import GradientError
    from scratchvit.learn import engine

    return Array, Chapter, Figure, GradientError, engine, load_digits, mo, np, ops, sv, zoo


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
def _(load_digits, np):
    # The mean ink of the four middle pixels of zeros and ones, and the targets -1 and 1.
    train = load_digits().train
    chosen = np.flatnonzero(train.labels <= 1)
    pictures, labels = train.images(chosen)[..., 0], train.labels[chosen]
    ink = pictures[:, 3:5, 3:5].mean(axis=(1, 2)) / 255
    targets = 2.0 * labels - 1
    return ink, labels, pictures, targets


@app.cell
def _(ink, text):
    text("neuron", count=len(ink))
    return


@app.cell
def _(Figure, ink, labels, np, pictures, text):
    def digits_figure():
        figure = Figure(figsize=(6, 1.25), layout="constrained")
        shown = [*np.flatnonzero(labels == 0)[:4], *np.flatnonzero(labels == 1)[:4]]
        for ax, i in zip(figure.subplots(1, len(shown)), shown):
            ax.imshow(pictures[i], cmap="gray", vmin=0, vmax=255)
            ax.plot([2.5, 4.5, 4.5, 2.5, 2.5], [2.5, 2.5, 4.5, 4.5, 2.5], color="#ee6677")
            ax.set_title(f"{ink[i]:.2f}", fontsize=10)
            ax.set_axis_off()
        return figure

    text.figure(digits_figure(), "figure-digits")
    return


@app.cell
def _(engine, ink, np, targets):
    def loss_and_gradient(w, b):
        """The loss and its derivatives by w and b, computed by the engine of single numbers."""
        w, b = engine.Value(w), engine.Value(b)
        total = engine.Value(0.0)
        for x, t in zip(ink.tolist(), targets.tolist()):
            error = engine.tanh(w * x + b) + -t
            total = total + error * error
        loss = total * (1 / len(ink))
        loss.backward()
        return loss.data, w.grad, b.grad

    def losses(w, b):
        """The same loss by NumPy, for an array of w."""
        return ((np.tanh(w[:, None] * ink + b) - targets)**2).mean(axis=1)

    def accuracy(w, b):
        return np.mean(np.sign(w * ink + b) == targets)

    return accuracy, loss_and_gradient, losses


@app.cell
def _(mo, text):
    w = mo.ui.slider(-4, 8, 0.5, value=-1, label=text.word("w"), show_value=True)
    b = mo.ui.slider(-4, 4, 0.5, value=0, label=text.word("b"), show_value=True)
    mo.vstack([text("loss"), w, b])
    return b, w


@app.cell
def _(accuracy, b, loss_and_gradient, text, w):
    loss, dw, db = loss_and_gradient(w.value, b.value)
    text(
        "loss-now", w=float(w.value), b=float(b.value), loss=loss, dw=dw, db=db, accuracy=accuracy(w.value, b.value),
    )
    return dw, loss


@app.cell
def _(Figure, b, dw, loss, losses, np, text, w):
    def loss_figure():
        figure = Figure(figsize=(6, 2.8), layout="constrained")
        ax = figure.subplots()
        many = np.linspace(-4, 8, 200)
        ax.plot(many, losses(many, b.value), color="#4477aa")
        near = np.array([w.value - 1.5, w.value + 1.5])
        ax.plot(near, loss + dw * (near - w.value), color="#ee6677")
        ax.plot([w.value], [loss], "o", color="#ee6677")
        ax.set_ylim(-0.1, 4.1)
        ax.set_xlabel(text.word("w"))
        ax.set_ylabel(text.word("loss"))
        return figure

    text.figure(loss_figure(), "figure-loss")
    return


@app.cell
def _(mo, text):
    steps = mo.ui.slider(0, 30, value=5, label=text.word("steps"), show_value=True)
    mo.vstack([text("descent"), steps])
    return (steps,)


@app.cell
def _(accuracy, b, loss_and_gradient, steps, text, w):
    def descend():
        here = float(w.value), float(b.value)
        for _ in range(steps.value):
            _, by_w, by_b = loss_and_gradient(*here)
            here = here[0] - by_w, here[1] - by_b
        return here

    end = descend()
    text(
        "descent-now", steps=steps.value, loss=loss_and_gradient(*end)[0], w=end[0], b=end[1], accuracy=accuracy(*end),
    )
    return


@app.cell
def _(engine, mo, text):
    mo.vstack([
        text("op"), text.code(engine, "@op", "return y, lambda"),
        text("graph"), text.code(engine, "class Node", "self.backward"), text.code(engine.op),
        text("backward"), text.code(engine.Value.backward),
    ])
    return


@app.cell
def _(mo, text):
    x = mo.ui.slider(-3, 3, 0.5, value=2, label=text.word("x"), show_value=True)
    y = mo.ui.slider(-3, 3, 0.5, value=3, label=text.word("y"), show_value=True)
    mo.vstack([text("example"), x, y])
    return x, y


@app.cell
def _(engine, text, x, y):
    left, right = engine.Value(x.value), engine.Value(y.value)
    result = left * right + left
    result.backward()
    text("example-now", z=result.data, dx=left.grad, dy=right.grad)
    return left, result, right


@app.cell
def _(Figure, left, result, right, text):
    def graph_figure():
        figure = Figure(figsize=(6, 2.9), layout="constrained")
        ax = figure.subplots()
        product = left.data * right.data
        nodes = {        # name: place, value, gradient
            "x": ((0, 1), left.data, left.grad), "y": ((0, -1), right.data, right.grad),
            text.word("product"): ((1.5, -0.4), product, 1.0), text.word("sum"): ((3, 0.4), result.data, 1.0),
        }
        places = [place for place, _, _ in nodes.values()]
        shares = {(0, 2): right.data, (1, 2): left.data, (0, 3): 1.0, (2, 3): 1.0}
        for (start, end), share in shares.items():
            (x0, y0), (x1, y1) = places[start], places[end]
            ax.annotate("", (x1, y1), (x0, y0), arrowprops={"arrowstyle": "->", "color": "#888888", "shrinkA": 28,
                                                            "shrinkB": 28})
            ax.text((x0 + x1) / 2, (y0 + y1) / 2 + 0.1, f"{share:.2g}", color="#ee6677", ha="center")
        for name, ((x0, y0), value, gradient) in nodes.items():
            ax.plot([x0], [y0], "o", markersize=46, color="#dde6f2", markeredgecolor="#4477aa")
            ax.text(x0, y0, name, ha="center", va="center", fontsize=9)
            ax.text(x0, y0 + 0.52, f"{value:.2f}", ha="center", va="bottom", color="#4477aa")
            ax.text(x0, y0 - 0.52, f"{gradient:.2f}", ha="center", va="top", color="#ee6677")
        ax.set_xlim(-0.5, 3.5)
        ax.set_ylim(-1.9, 1.9)
        ax.set_axis_off()
        return figure

    text.figure(graph_figure(), "figure-graph")
    return


@app.cell
def _(text, zoo):
    parameters = sum(p.data.size for p in zoo.load("vit_digits").model.parameters())
    text("cost", parameters=parameters, passes=2 * parameters)
    return


@app.cell
def _(np):
    def differences(kind, h, x=0.7):
        """The two-sided difference of tanh at x with a step h; `both` combines two of them."""
        if kind == "both":
            return (4 * differences("float64", h / 2, x) - differences("float64", h, x)) / 3
        x, h = np.dtype(kind).type(x), np.dtype(kind).type(h)
        return (np.tanh(x + h) - np.tanh(x - h)) / (2 * h)

    return (differences,)


@app.cell
def _(mo, text):
    exponent = mo.ui.slider(-13, 0, value=-2, label=text.word("exponent"), show_value=True)
    kind = mo.ui.radio(
        {text.word(name): name for name in ("float32", "float64", "both")}, value=text.word("float64"), inline=True
    )
    mo.vstack([text("check"), exponent, kind])
    return exponent, kind


@app.cell
def _(differences, engine, exponent, kind, text):
    at = engine.Value(0.7)
    engine.tanh(at).backward()
    slope = at.grad
    estimate = float(differences(kind.value, 10.0**exponent.value))
    text(
        "check-now", exponent=exponent.value, estimate=f"{estimate:.12f}", exact=f"{slope:.12f}",
        error=abs(estimate - slope),
    )
    return estimate, slope


@app.cell
def _(Figure, differences, estimate, exponent, np, slope, text):
    def steps_figure():
        figure = Figure(figsize=(6, 3), layout="constrained")
        ax = figure.subplots()
        many = 10.0**np.arange(-13, 0.01, 0.1)
        for name, colour in (("float32", "#ccbb44"), ("float64", "#4477aa"), ("both", "#228833")):
            wrong = [abs(float(differences(name, h)) - slope) for h in many]
            ax.loglog(many, np.maximum(wrong, 1e-16), color=colour, linewidth=1.2, label=text.word(name))
        ax.plot([10.0**exponent.value], [max(abs(estimate - slope), 1e-16)], "o", color="#ee6677")
        ax.set_xlabel(text.word("step"))
        ax.set_ylabel(text.word("error"))
        ax.legend(frameon=False)
        return figure

    text.figure(steps_figure(), "figure-steps")
    return


@app.cell
def _(mo, ops, text):
    mo.vstack([text("richardson"), text("arrays"), text.code(ops.softmax, "p = xp.exp", "return p, lambda")])
    return


@app.cell
def _(Array, np, sv):
    def softmax_with(backward):
        """An op with the value of softmax and the backward of that name."""
        formulas = {
            "right": lambda p, dy: p * (dy - (p * dy).sum(-1, keepdims=True)),
            "nosum": lambda p, dy: p * dy,
            "nofactor": lambda p, dy: dy - (p * dy).sum(-1, keepdims=True),
            "twice": lambda p, dy: 2 * p * (dy - (p * dy).sum(-1, keepdims=True)),
        }

        @sv.tensor.op
        def softmax(x: Array):
            p = np.exp(x - x.max(axis=-1, keepdims=True))
            p /= p.sum(axis=-1, keepdims=True)
            return p, lambda dy: formulas[backward](p, dy)

        return softmax

    return (softmax_with,)


@app.cell
def _(GradientError, sv):
    def checked(function, *arrays):
        """What gradcheck says about a function: its complaint, or None."""
        try:
            sv.gradcheck(function, *arrays)
        except GradientError as error:
            return str(error)
        return None

    return (checked,)


@app.cell
def _(mo, text):
    backward = mo.ui.dropdown(
        {text.word(name): name for name in ("right", "nosum", "nofactor", "twice")}, value=text.word("nofactor"),
        label=text.word("backward"),
    )
    cotangent = mo.ui.radio(
        {text.word(name): name for name in ("ones", "random")}, value=text.word("ones"), inline=True,
        label=text.word("cotangent"),
    )
    mo.vstack([text("vjp"), backward, cotangent])
    return backward, cotangent


@app.cell
def _(backward, checked, cotangent, mo, np, softmax_with, sv, text):
    rng = np.random.default_rng(0)
    scores, u, v = (rng.standard_normal((3, 5)) for _ in range(3))
    v = np.ones_like(v) if cotangent.value == "ones" else v
    function = softmax_with(backward.value)
    by_differences = float((v * (function(scores + 1e-5 * u) - function(scores - 1e-5 * u)).data).sum() / 2e-5)
    tensor = sv.Tensor(scores, requires_grad=True)
    function(tensor).backward(v)
    by_backward = float((tensor.grad * u).sum())
    agree = abs(by_differences - by_backward) < 1e-7
    mo.vstack([
        text("vjp-now", differences=by_differences + 0.0, backward=by_backward + 0.0,
             verdict=text.word("agree" if agree else "differ")),
        text.output(checked(function, scores) or text.word("passes")), text("ones"),
    ])
    return


@app.cell
def _(engine):
    doubled = engine.Value(2.0)
    (doubled * engine.Value(3.0) + doubled * doubled).backward()
    solution_1 = doubled.grad
    return (solution_1,)


@app.cell
def _(mo):
    answer_1 = mo.ui.number()
    return (answer_1,)


@app.cell
def _(answer_1, solution_1, text):
    text.exercise(
        "exercise-1", answer_1, None if answer_1.value is None else answer_1.value == solution_1, "answer-1",
        solution=solution_1,
    )
    return


@app.cell
def _(np):
    # The errors of one-sided differences of tanh at many points, and the power of ten with the smallest median.
    points = np.random.default_rng(0).uniform(-2, 2, 200)
    exponents = np.arange(-14, 0)
    errors = [
        np.median(np.abs((np.tanh(points + 10.0**k) - np.tanh(points)) / 10.0**k - (1 - np.tanh(points)**2)))
        for k in exponents
    ]
    solution_2 = int(exponents[np.argmin(errors)])
    return (solution_2,)


@app.cell
def _(mo):
    answer_2 = mo.ui.number()
    return (answer_2,)


@app.cell
def _(answer_2, solution_2, text):
    text.exercise(
        "exercise-2", answer_2, None if answer_2.value is None else answer_2.value == solution_2, "answer-2",
        solution=solution_2,
    )
    return


@app.cell
def _(mo):
    answer_3 = mo.ui.radio(["dy * (1 - y * y)", "dy * y", "dy * y * (1 - y)", "dy * x * (1 - x)"])
    return (answer_3,)


@app.cell
def _(Array, answer_3, checked, np, sv, text):
    def sigmoid_with(chosen):
        formulas = {
            "dy * (1 - y * y)": lambda x, y, dy: dy * (1 - y * y), "dy * y": lambda x, y, dy: dy * y,
            "dy * y * (1 - y)": lambda x, y, dy: dy * y * (1 - y),
            "dy * x * (1 - x)": lambda x, y, dy: dy * x * (1 - x),
        }

        @sv.tensor.op
        def sigmoid(x: Array):
            y = 1 / (1 + np.exp(-x))
            return y, lambda dy: formulas[chosen](x, y, dy)

        return sigmoid

    def is_right():
        if answer_3.value is None:
            return None
        return checked(sigmoid_with(answer_3.value), np.random.default_rng(1).standard_normal((2, 3))) is None

    text.exercise("exercise-3", answer_3, is_right(), "answer-3")
    return


@app.cell
def _(text):
    text("big")
    return


if __name__ == "__main__":
    app.run()
