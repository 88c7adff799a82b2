import marimo

__generated_with = "0.25.2"
app = marimo.App(width="compact", app_title="6. Distillation", css_file="course.css")


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
    from scratchvit.inspect.figures import first_of_each_class
    from scratchvit.models.deit import DistilledVisionTransformer
    from scratchvit.nn import init
    from scratchvit.training.classification.distill import hard_distillation, soft_distillation

    return (
        Chapter, DistilledVisionTransformer, Figure, Path, csv, data, first_of_each_class, hard_distillation, init, mo,
        np, ops, soft_distillation, sv, to_picture, zoo,
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
def _(data, first_of_each_class, np, sv, to_picture, zoo):
    splits = data.load("digits")
    trained = zoo.load("vit_digits")
    ten = splits.test.images(first_of_each_class(splits.test.labels, 10))
    shown_images = np.stack([trained.prepare(to_picture(picture)) for picture in ten])      # (10, 1, 16, 16)
    with sv.no_grad():
        teacher_logits = trained.model(shown_images).numpy()                                # (10, 10)
        beginner = sv.create_model(
            "vit_tiny_patch16_224", img_size=16, in_chans=1, num_classes=10, patch_size=4, embed_dim=64, depth=4,
            num_heads=4, weight_init="xavier",
        )
        beginner_logits = beginner.eval()(shown_images).numpy()
    return beginner_logits, splits, teacher_logits, ten


@app.cell
def _(mo, text):
    digit = mo.ui.slider(0, 9, value=8, label=text.word("digit"), show_value=True)
    temperature = mo.ui.slider(
        steps=[0.5, 1, 2, 3, 5, 10, 20], value=3, label=text.word("temperature"), show_value=True
    )
    mo.vstack([text("softmax"), digit, temperature])
    return digit, temperature


@app.cell
def _(np, ops):
    def softened(logits, temperature):
        """softmax(Z / τ) of logits (classes,)."""
        return ops.softmax((np.asarray(logits, np.float32) / temperature)[None], dim=-1).numpy()[0]

    def entropy(p):
        """In nats."""
        return float(-(p * np.log(np.maximum(p, 1e-30))).sum())

    return entropy, softened


@app.cell
def _(Figure, digit, np, softened, teacher_logits, temperature, ten, text):
    def softmax_figure():
        figure = Figure(figsize=(4.8, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 2.2))
        left.imshow(ten[digit.value][..., 0], cmap="gray_r")
        left.set_axis_off()
        for shift, tau, colour in ((-0.2, 1, "#4477aa"), (0.2, temperature.value, "#ee6677")):
            heights = softened(teacher_logits[digit.value], tau)
            right.bar(np.arange(10) + shift, heights, width=0.4, color=colour, label=f"τ = {tau:g}")
        right.set_xticks(range(10))
        right.set_xlabel(text.word("class"))
        right.set_ylabel(text.word("probability"))
        right.legend(frameon=False)
        return figure

    text.figure(softmax_figure(), "figure-softmax")


@app.cell
def _(digit, entropy, np, softened, teacher_logits, temperature, text):
    plain, soft = (softened(teacher_logits[digit.value], tau) for tau in (1, temperature.value))
    first, second = np.argsort(-plain)[:2].tolist()
    text(
        "softened", first=first, second=second, plain=100 * float(plain[second]), soft=100 * float(soft[second]),
        plain_first=100 * float(plain[first]), tau=temperature.value, entropy=entropy(plain),
        soft_entropy=entropy(soft),
    )


@app.cell
def _(mo, soft_distillation, text):
    mo.vstack([text("kl"), text.code(soft_distillation, "log_p =", "return")])


@app.cell
def _(beginner_logits, np, soft_distillation, sv, teacher_logits):
    def gradient_size(temperature, squared=True):
        """Length of the KL term's gradient at the untrained student's logits."""
        z = sv.Tensor(beginner_logits, requires_grad=True)
        soft_distillation(z, np.arange(10), teacher_logits, weight=1.0, temperature=temperature).backward()
        return float(np.linalg.norm(z.grad)) / (1 if squared else temperature**2)

    temperatures = [0.5, 1, 2, 3, 5, 10, 20]
    with_square = [gradient_size(tau) for tau in temperatures]
    without = [gradient_size(tau, squared=False) for tau in temperatures]
    return temperatures, with_square, without


@app.cell
def _(Figure, temperatures, text, with_square, without):
    def gradient_figure():
        figure = Figure(figsize=(4.8, 3), layout="constrained")
        ax = figure.subplots()
        ax.loglog(temperatures, without, "o-", color="#4477aa", label=text.word("without"))
        ax.loglog(temperatures, with_square, "o-", color="#ee6677", label=text.word("with"))
        ax.set_xticks(temperatures, [f"{tau:g}" for tau in temperatures])
        ax.minorticks_off()
        ax.set_xlabel("τ")
        ax.set_ylabel(text.word("gradient"))
        ax.legend(frameon=False)
        return figure

    text.figure(gradient_figure(), "figure-gradient")


@app.cell
def _(init, sv):
    with init.without_weights():
        with_token, without_token = (sv.create_model(f"deit_tiny_{name}patch16_224") for name in ("distilled_", ""))
    counts = [sum(p.data.size for p in model.parameters()) for model in (with_token, without_token)]
    return counts, with_token


@app.cell
def _(DistilledVisionTransformer, counts, hard_distillation, mo, text, with_token):
    mo.vstack([
        text("hard"),
        text.code(hard_distillation, "label_loss", "return"),
        text("token", tokens=with_token.num_tokens, more=counts[0] - counts[1]),
        text.code(DistilledVisionTransformer.forward_head, "class_logits", "return (class_logits + "),
    ])


@app.cell
def _(data, hard_distillation, np, ops, soft_distillation, splits, sv):
    normalize = data.Normalize(*data.channel_stats(splits.train))
    images, test_images = (normalize(part.images(np.arange(len(part)))) for part in (splits.train, splits.test))
    labels, everything = splits.train.labels, np.arange(len(splits.train))
    few = np.sort(np.random.default_rng(0).permutation(everything)[:100])       # those that come with labels

    CNN = {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 64), "small_stem": True}
    VIT = {
        "patch_size": 2, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "pos_embed": "sincos",
        "weight_init": "xavier",
    }

    def fit(model, chosen, loss_of, steps, lr):
        """Train on the chosen images; accuracy on the test ones, %."""
        optimizer, rng = sv.optim.AdamW(model.parameters(), lr=lr), np.random.default_rng(0)
        for step in range(steps):
            batch = chosen[rng.integers(0, len(chosen), 32)]
            optimizer.lr = lr * min(1, (step + 1) / 20) * (1 + np.cos(np.pi * step / steps)) / 2
            loss = loss_of(model.train()(images[batch]), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return accuracy(logits_of(model, test_images), splits.test.labels)

    def logits_of(model, inputs):
        with sv.no_grad():
            return model.eval()(inputs).numpy()

    def accuracy(logits, labels):
        return 100 * float((logits.argmax(axis=1) == labels).mean())

    def created(name, **sizes):
        return sv.create_model(name, img_size=8, in_chans=1, num_classes=10, **sizes)

    def of_labels(logits, batch):
        return ops.cross_entropy(logits, labels[batch])

    teacher = created("resnet18", **CNN)
    scores = {"teacher": fit(teacher, few, of_labels, 100, 5e-3)}
    taught = logits_of(teacher, images)                                         # (1257, 10)
    ways = {
        "alone": (few, of_labels),
        "hard": (few, lambda z, batch: hard_distillation(z, labels[batch], taught[batch])),
        "soft": (few, lambda z, batch: soft_distillation(z, labels[batch], taught[batch], weight=0.9)),
        "more": (everything, lambda z, batch: ops.cross_entropy(z, taught[batch].argmax(axis=1))),
    }
    for way, (chosen, loss_of) in ways.items():
        scores[way] = fit(created("vit_tiny_patch16_224", **VIT), chosen, loss_of, 300, 3e-3)
    agrees = int((taught[few].argmax(axis=1) == labels[few]).sum())
    elsewhere = accuracy(np.delete(taught, few, axis=0), np.delete(labels, few))
    return agrees, elsewhere, everything, few, scores


@app.cell
def _(agrees, elsewhere, everything, few, scores, text):
    text("live", **scores, agrees=agrees, few=len(few), rest=len(everything) - len(few), elsewhere=elsewhere)


@app.cell
def _(Path, csv, np):
    def rows_of(name):
        with (Path(__file__).resolve().parents[1] / "figures" / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    measured = {}                                       # way → test accuracies in %, by seed
    for row in rows_of("distillation.csv"):
        measured.setdefault(row["model"], []).append(100 * float(row["test_accuracy"]))
    names = dict(zip(("teacher", "alone", "soft", "hard", "token"), measured))
    means = {short: float(np.mean(measured[name])) for short, name in names.items()}
    return means, measured, names


@app.cell
def _(Figure, means, measured, names, text):
    def own_figure():
        figure = Figure(figsize=(4.8, 2.8), layout="constrained")
        ax = figure.subplots()
        for place, (short, name) in enumerate(names.items()):
            colour = "#ee6677" if short == "teacher" else "#4477aa"
            ax.plot(measured[name], [place] * len(measured[name]), "o", color=colour, alpha=0.55)
            ax.plot(means[short], place, "|", color=colour, markersize=22, markeredgewidth=2.5)
        ax.set_yticks(range(len(names)), [text.word(short) for short in names])
        ax.invert_yaxis()
        ax.set_xlabel(text.word("test"))
        ax.grid(axis="x", color="#dddddd", linewidth=0.7)
        return figure

    text("own")
    return (own_figure,)


@app.cell
def _(means, mo, own_figure, text):
    mo.vstack([
        text.figure(own_figure(), "figure-own"),
        text(
            "own-found", teacher=means["teacher"], alone=means["alone"],
            **{short: means[short] - means["alone"] for short in ("soft", "hard", "token")},
            extra=means["token"] - means["hard"],
        ),
    ])


@app.cell
def _(mo):
    warm = mo.ui.number(step=0.1)
    slope = mo.ui.number(step=0.01)
    length = mo.ui.number()
    return length, slope, warm


@app.cell
def _(softened, text, warm):
    def is_temperature(tau):
        return tau > 0 and abs(float(softened([4.0, 0.0], tau)[1]) - float(softened([1.0, 0.0], 1)[1])) < 1e-3

    text.exercise("exercise-1", warm, None if warm.value is None else is_temperature(warm.value), "answer-1")
    return (is_temperature,)


@app.cell
def _(np, slope, soft_distillation, sv, text):
    def is_slope(value):
        z = sv.Tensor(np.zeros((1, 3), np.float32), requires_grad=True)         # q is 1/3 for each class
        target = 3.0 * np.log(np.array([[0.7, 0.2, 0.1]], np.float32))          # p at τ = 3
        soft_distillation(z, np.array([0]), target, weight=1.0, temperature=3.0).backward()
        return abs(value - float(z.grad[0, 0])) < 0.01

    text.exercise("exercise-2", slope, None if slope.value is None else is_slope(slope.value), "answer-2")
    return (is_slope,)


@app.cell
def _(length, sv, text):
    def is_length(tokens):
        return tokens == sv.create_model(
            "deit_base_distilled_patch16_384", embed_dim=12, depth=1, num_heads=1
        ).num_tokens

    text.exercise("exercise-3", length, None if length.value is None else is_length(length.value), "answer-3")
    return (is_length,)


@app.cell
def _(text):
    text("big-world")


if __name__ == "__main__":
    app.run()
