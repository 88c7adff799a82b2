import marimo

__generated_with = "0.25.2"
app = marimo.App(width="compact", app_title="2. An image as a set of pixels", css_file="course.css")


@app.cell
def _():
    import time

    import marimo as mo
    import numpy as np
    from matplotlib.figure import Figure

    import scratchvit as sv
    from scratchvit import ops
    from scratchvit.costs.counting import readable_bytes
    from scratchvit.course import Chapter
    from scratchvit.data.digits import load_digits
    from scratchvit.inspect import attention_maps
    from scratchvit.models.vit import Attention

    return Attention, Chapter, Figure, attention_maps, load_digits, mo, np, ops, readable_bytes, sv, time


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
    LAYERS, HEADS, WIDTH, EPOCHS, BATCH, RATE = 1, 4, 32, 12, 32, 8e-3      # of the model that is trained below
    splits = load_digits()

    def arrays(dataset):
        """The pictures uint8 (N, 8, 8), and as the model is given them: float32 (N, 1, 8, 8), about -1 … 2."""
        pictures = dataset.images(np.arange(len(dataset)))[..., 0]
        return pictures, ((pictures[:, None] / 255 - 0.3) / 0.35).astype(np.float32)

    train_images, train_labels = arrays(splits.train)[1], splits.train.labels
    (test_pictures, test_images), test_labels = arrays(splits.test), splits.test.labels
    return (
        BATCH, EPOCHS, HEADS, LAYERS, RATE, WIDTH, test_images, test_labels, test_pictures, train_images, train_labels,
    )


@app.cell
def _(WIDTH, test_pictures, text):
    text("tokens", rows=test_pictures.shape[1], count=test_pictures[0].size, width=WIDTH)
    return


@app.cell
def _(Figure, test_pictures, text):
    def digit_figure():
        figure = Figure(figsize=(4.5, 2.6), layout="constrained")
        whole, column = figure.subplots(1, 2, width_ratios=(3, 1))
        whole.imshow(test_pictures[0], cmap="gray", vmin=0, vmax=255)
        column.imshow(test_pictures[0].reshape(-1, 1), cmap="gray", vmin=0, vmax=255, aspect="auto")
        for ax in (whole, column):
            ax.set_axis_off()
        return figure

    text.figure(digit_figure(), "figure-digit", count=test_pictures[0].size)
    return


@app.cell
def _(mo, text):
    angle = mo.ui.slider(0, 180, 15, value=30, label=text.word("angle"), show_value=True)
    length = mo.ui.slider(0, 10, value=3, label=text.word("length"), show_value=True)
    mo.vstack([text("attention"), text("by-hand"), angle, length])
    return angle, length


@app.cell
def _(angle, length, mo, np, ops, text):
    direction = np.deg2rad(angle.value)
    query = length.value * np.array([[[np.cos(direction), np.sin(direction)]]])     # (1, 1, 2)
    keys = np.array([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])                        # (1, 3, 2)
    values = np.array([[[10.0], [20.0], [60.0]]])                                   # (1, 3, 1)
    products = (query @ keys.swapaxes(1, 2) / np.sqrt(2))[0, 0]

    def listed(numbers):
        return ", ".join(f"{number + 0.0:.2f}" for number in numbers)

    mo.vstack([
        text(
            "by-hand-now", scores=listed(products.round(2)), shares=listed(ops.softmax(products).numpy()),
            result=ops.attention(query, keys, values).item(),
        ),
        text("by-hand-seen"),
    ])
    return


@app.cell
def _(Attention, mo, text):
    from scratchvit.ops.attention import _plain_attention

    mo.vstack([
        text("attention-code"), text.code(_plain_attention, "s = matmul", "y = matmul"),
        text("heads"), text.code(Attention.forward), text("layer"),
    ])
    return


@app.cell
def _(BATCH, EPOCHS, HEADS, LAYERS, RATE, WIDTH, np, ops, sv, time, train_images, train_labels):
    def trained():
        """A pixel Transformer for 8×8 digits, and the seconds of training."""
        model = sv.create_model(
            "pixel_transformer_tiny", img_size=8, in_chans=1, num_classes=10, embed_dim=WIDTH, depth=LAYERS,
            num_heads=HEADS, mlp_ratio=2.0, class_token=False, global_pool="avg", pos_embed="sincos",
            weight_init="xavier",
        )
        optimizer = sv.optim.AdamW(model.parameters(), lr=RATE)
        rng, begin = np.random.default_rng(0), time.perf_counter()
        batches = len(train_images) // BATCH
        for step in range(EPOCHS * batches):
            if step % batches == 0:
                order = rng.permutation(len(train_images))
            chosen = order[step % batches * BATCH :][:BATCH]
            optimizer.lr = RATE * min(1, step / (2 * batches)) * (1 + np.cos(np.pi * step / EPOCHS / batches)) / 2
            loss = ops.cross_entropy(model(train_images[chosen]), train_labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model.eval(), time.perf_counter() - begin

    model, seconds = trained()
    return model, seconds


@app.cell
def _(model, np, sv, test_images, test_labels):
    def scores(images):
        with sv.no_grad():
            return model(images).numpy()

    def accuracy(images):
        return np.mean(scores(images).argmax(axis=1) == test_labels)

    right = accuracy(test_images)
    return accuracy, right, scores


@app.cell
def _(EPOCHS, HEADS, LAYERS, mo, model, right, seconds, test_images, text, train_images):
    picture = mo.ui.slider(0, len(test_images) - 1, value=4, label=text.word("picture"), show_value=True)
    row = mo.ui.slider(0, 7, value=3, label=text.word("row"), show_value=True)
    column = mo.ui.slider(0, 7, value=4, label=text.word("column"), show_value=True)
    mo.vstack([
        text(
            "training", train=len(train_images), layers=LAYERS, heads=HEADS, epochs=EPOCHS, seconds=seconds,
            parameters=sum(p.data.size for p in model.parameters()), test=len(test_images), accuracy=right,
        ),
        picture, row, column,
    ])
    return column, picture, row


@app.cell
def _(attention_maps, model, picture, test_images):
    image = test_images[picture.value : picture.value + 1]
    maps = attention_maps(model, image)         # (layers, 1, heads, 64, 64)
    return image, maps


@app.cell
def _(Figure, column, image, maps, np, picture, row, scores, test_labels, test_pictures, text):
    def attention_figure():
        heads = maps[0, 0, :, 8 * row.value + column.value].reshape(-1, 8, 8)
        figure = Figure(figsize=(6, 1.6), layout="constrained")
        first, *others = figure.subplots(1, 1 + len(heads))
        first.imshow(test_pictures[picture.value], cmap="gray", vmin=0, vmax=255)
        for number, (ax, head) in enumerate(zip(others, heads), 1):
            ax.imshow(head, cmap="inferno", vmin=0)
            ax.set_title(f"{text.word('head')} {number}", fontsize=10)
        for ax in (first, *others):
            ax.plot([column.value], [row.value], "s", markersize=9, fillstyle="none", color="#66ccee")
            ax.set_axis_off()
        return figure

    chances = np.exp(scores(image)[0])
    chances /= chances.sum()
    text.figure(
        attention_figure(), "figure-attention", predicted=int(chances.argmax()), chance=chances.max(),
        label=int(test_labels[picture.value]),
    )
    return


@app.cell
def _(HEADS, image, maps, model, np, sv, text):
    def by_numpy():
        """softmax(Q Kᵀ / √d) of the first layer, (heads, 64, 64)."""
        block = model.blocks[0]
        with sv.no_grad():
            tokens = block.norm1(model.patch_embed(sv.Tensor(image)) + model.pos_embed)
            q, k, _ = np.split(block.attn.qkv(tokens).numpy()[0], 3, axis=1)        # (64, D) each
        q, k = (x.reshape(len(x), HEADS, -1).transpose(1, 0, 2) for x in (q, k))    # (heads, 64, d)
        powers = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]))
        return powers / powers.sum(axis=-1, keepdims=True)

    text("compare", difference=float(np.abs(by_numpy() - maps[0, 0]).max()), row=float(maps[0, 0, 0, 0].sum()))
    return


@app.cell
def _(HEADS, LAYERS, maps, mo, readable_bytes, text):
    def attention_bytes(side, layers, heads):
        return 4 * side**4 * layers * heads

    SIDES = (8, 16, 32, 64, 128, 224)
    side = mo.ui.slider(steps=SIDES, value=32, label=text.word("side"), show_value=True)
    layers = mo.ui.slider(1, 48, value=48, label=text.word("layers"), show_value=True)
    heads = mo.ui.slider(1, 16, value=16, label=text.word("heads"), show_value=True)
    mo.vstack([
        text("memory", formula=readable_bytes(attention_bytes(8, LAYERS, HEADS)), measured=readable_bytes(maps.nbytes)),
        side, layers, heads,
    ])
    return SIDES, attention_bytes, heads, layers, side


@app.cell
def _(attention_bytes, heads, layers, readable_bytes, side, text):
    text(
        "memory-now", side=side.value, tokens=side.value**2, entries=side.value**4, layers=layers.value,
        heads=heads.value, matrix=readable_bytes(attention_bytes(side.value, 1, 1)),
        all=readable_bytes(attention_bytes(side.value, layers.value, heads.value)),
    )
    return


@app.cell
def _(Figure, SIDES, attention_bytes, heads, layers, side, text):
    def memory_figure():
        figure = Figure(figsize=(6, 3), layout="constrained")
        ax = figure.subplots()
        memory = [attention_bytes(R, layers.value, heads.value) / 2**30 for R in SIDES]
        ax.loglog(SIDES, memory, color="#4477aa")
        ax.plot([side.value], [memory[SIDES.index(side.value)]], "o", color="#ee6677")
        ax.axhline(80, color="#555555", linestyle="--", linewidth=1)
        ax.set_xlabel(text.word("side"))
        ax.set_ylabel(text.word("memory"))
        ax.set_xticks(SIDES, SIDES)
        ax.minorticks_off()
        return figure

    text.figure(memory_figure(), "figure-memory")
    return


@app.cell
def _(attention_bytes, readable_bytes, text):
    text(
        "lecture", side=128, tokens=128**2, matrix=readable_bytes(attention_bytes(128, 1, 1)),
        all=readable_bytes(attention_bytes(128, 48, 16)), photo=readable_bytes(attention_bytes(224, 1, 1)),
    )
    return


@app.cell
def _(mo):
    answer_1 = mo.ui.number()
    return (answer_1,)


@app.cell
def _(answer_1, attention_bytes, text):
    solution_1 = attention_bytes(96, 1, 1) // attention_bytes(32, 1, 1)
    text.exercise(
        "exercise-1", answer_1, None if answer_1.value is None else answer_1.value == solution_1, "answer-1",
        solution=solution_1,
    )
    return


@app.cell
def _(mo):
    answer_2 = mo.ui.number()
    return (answer_2,)


@app.cell
def _(answer_2, attention_bytes, text):
    exact = (80 * 2**30 / attention_bytes(1, 48, 16))**0.25
    solution_2 = max(R for R in range(1, 129) if attention_bytes(R, 48, 16) <= 80 * 2**30)
    text.exercise(
        "exercise-2", answer_2, None if answer_2.value is None else answer_2.value == solution_2, "answer-2",
        solution=solution_2, exact=exact,
    )
    return


@app.cell
def _(accuracy, model, np, scores, test_images):
    # The scores of shuffled images, with and without positions.
    order = np.random.default_rng(0).permutation(64)
    shuffled_images = test_images.reshape(len(test_images), 1, 64)[..., order].reshape(test_images.shape)
    shuffled = accuracy(shuffled_images)
    positions = model.pos_embed.numpy().copy()
    model.pos_embed.overwrite(0)
    change = float(np.abs(scores(shuffled_images) - scores(test_images)).max())
    blind = accuracy(test_images)
    model.pos_embed.overwrite(positions)
    return blind, change, shuffled


@app.cell
def _(mo, text):
    answer_3 = mo.ui.radio({text.word(name): name for name in ("lost", "little", "unchanged")})
    return (answer_3,)


@app.cell
def _(answer_3, blind, change, right, shuffled, text):
    outcome = "unchanged" if change < 1e-3 else "little" if change < 0.1 else "lost"
    text.exercise(
        "exercise-3", answer_3, None if answer_3.value is None else answer_3.value == outcome, "answer-3",
        without=change, blind=blind, accuracy=right, shuffled=shuffled,
    )
    return


@app.cell
def _(text):
    text("big")
    return


if __name__ == "__main__":
    app.run()
