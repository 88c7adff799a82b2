import marimo

__generated_with = "0.25.2"
app = marimo.App(width="compact", app_title="3. Patches: the vision Transformer", css_file="course.css")


@app.cell
def _():
    import marimo as mo
    import numpy as np
    from matplotlib.figure import Figure
    from PIL import Image

    import scratchvit as sv
    from scratchvit import ops, zoo
    from scratchvit.costs.counting import cost, readable_bytes
    from scratchvit.course import Chapter
    from scratchvit.course.patches import patch_rows
    from scratchvit.course.shifts import photograph
    from scratchvit.data.digits import load_digits
    from scratchvit.inspect import attention_maps, class_attention, rollout
    from scratchvit.models import vit
    from scratchvit.nn import init

    return (
        Chapter, Figure, Image, attention_maps, class_attention, cost, init, load_digits, mo, np, ops, patch_rows,
        photograph, readable_bytes, rollout, sv, vit, zoo,
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
    return (text,)


@app.cell
def _(readable_bytes):
    def tokens_of(side, patch):
        return (side // patch)**2

    def matrix_bytes(side, patch):
        """Bytes of one attention matrix in float32, readable."""
        return readable_bytes(4 * tokens_of(side, patch)**2)

    return matrix_bytes, tokens_of


@app.cell
def _(matrix_bytes, text, tokens_of):
    text(
        "claim", tokens=tokens_of(224, 16), entries=tokens_of(224, 16)**2, matrix=matrix_bytes(224, 16),
        pixel_entries=tokens_of(224, 1)**2, pixel_matrix=matrix_bytes(224, 1),
    )
    return


@app.cell
def _(mo, text):
    side = mo.ui.slider(steps=[64, 128, 224, 384], value=224, label=text.word("side"), show_value=True)
    patch = mo.ui.slider(steps=[1, 2, 4, 8, 16, 32], value=16, label=text.word("patch"), show_value=True)
    mo.vstack([text("cut"), side, patch])
    return patch, side


@app.cell
def _(matrix_bytes, patch, readable_bytes, side, text, tokens_of):
    count = tokens_of(side.value, patch.value)
    text(
        "cut-now", side=side.value, patch=patch.value, tokens=count, entries=count**2,
        matrix=matrix_bytes(side.value, patch.value), all=readable_bytes(4 * count**2 * 12 * 12),
    )
    return (count,)


@app.cell
def _(Figure, count, np, patch, photograph, side, text):
    def cut_figure():
        figure = Figure(figsize=(4.2, 4.2), layout="constrained")
        ax = figure.subplots()
        ax.imshow(photograph(side.value))
        if patch.value >= 4:        # finer lines would hide the picture
            for at in np.arange(0, side.value + 1, patch.value) - 0.5:
                ax.axhline(at, color="white", linewidth=0.6)
                ax.axvline(at, color="white", linewidth=0.6)
        ax.set_axis_off()
        return figure

    text.figure(cut_figure(), "figure-cut", side=side.value, patch=patch.value, tokens=count)
    return


@app.cell
def _(mo, patch_rows, text, vit):
    mo.vstack([
        text("embed"), text.code(vit.PatchEmbed, "self.proj", "self.proj"), text.code(vit.PatchEmbed.forward),
        text("convolution"), text.code(patch_rows),
    ])
    return


@app.cell
def _(Image, load_digits, np, zoo):
    trained = zoo.load("vit_digits")
    model = trained.model
    train_count, test = len(load_digits().train), load_digits().test
    test_pictures, test_labels = test.images(np.arange(len(test)))[..., 0], test.labels
    test_images = np.stack([trained.prepare(Image.fromarray(picture)) for picture in test_pictures])  # (N, 1, 16, 16)
    return model, test_images, test_labels, train_count, trained


@app.cell
def _(model, np, ops, patch_rows, sv, test_images, text):
    def both_ways(images):
        """The tokens of images (B, C, H, W) by a convolution and by one matrix product, both (B, N, D)."""
        weight, bias = (parameter.numpy() for parameter in (model.patch_embed.proj.weight, model.patch_embed.proj.bias))
        D, _, P, _ = weight.shape
        with sv.no_grad():
            convolved = ops.conv2d(images, weight, bias, stride=P).numpy()      # (B, D, H/P, W/P)
        multiplied = patch_rows(images, P) @ weight.reshape(D, -1).T + bias
        return convolved.reshape(len(images), D, -1).transpose(0, 2, 1), multiplied

    convolved, multiplied = both_ways(test_images[:1])
    text(
        "convolution-now", difference=float(np.abs(convolved - multiplied).max()), size=float(np.abs(convolved).max()),
    )
    return


@app.cell
def _(Figure, model, np, text, train_count):
    def filters_figure():
        filters = model.patch_embed.proj.weight.numpy()[:, 0]
        figure = Figure(figsize=(6, 1.8), layout="constrained")
        for ax, one in zip(figure.subplots(4, 16).flat, filters):
            ax.imshow(one, cmap="gray", vmin=-np.abs(one).max(), vmax=np.abs(one).max())
            ax.set_axis_off()
        return figure

    text.figure(filters_figure(), "figure-filters", width=len(model.patch_embed.proj.weight), train=train_count)
    return


@app.cell
def _(mo, model, text, vit):
    token = mo.ui.slider(0, model.num_tokens - 1, value=5, label=text.word("token"), show_value=True)
    mo.vstack([
        text("positions", frequencies=model.config.embed_dim // 4),
        text.code(vit.sincos_positions, "y, x = ", "table = np.concatenate([f(angle)"),
        text("positions-now"), token,
    ])
    return (token,)


@app.cell
def _(Figure, model, np, text, token):
    def positions_figure():
        vectors = model.pos_embed.numpy()[0]
        vectors = vectors - vectors.mean(axis=0)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        figure = Figure(figsize=(3.4, 2.6), layout="constrained")
        ax = figure.subplots()
        shown = ax.imshow((vectors @ vectors[token.value]).reshape(model.patch_embed.grid_size), cmap="viridis",
                          vmin=-1, vmax=1)
        figure.colorbar(shown)
        ax.set_axis_off()
        return figure

    text.figure(positions_figure(), "figure-positions")
    return


@app.cell
def _(mo, text, vit):
    mo.vstack([
        text("encoder"), text.code(vit.Block.forward), text("head"), text.code(vit.VisionTransformer.forward_head),
    ])
    return


@app.cell
def _(model, np, sv, test_images, test_labels):
    def scores(images):
        with sv.no_grad():
            return model(images).numpy()

    right = np.mean(scores(test_images).argmax(axis=1) == test_labels)
    return right, scores


@app.cell
def _(mo, model, right, test_images, text, trained):
    picture = mo.ui.slider(0, len(test_images) - 1, value=4, label=text.word("picture"), show_value=True)
    layer = mo.ui.slider(1, model.config.depth, value=1, label=text.word("layer"), show_value=True)
    query = mo.ui.slider(0, model.num_tokens - 1, value=6, label=text.word("token"), show_value=True)
    mo.vstack([
        text(
            "trained", command=trained.card.command, parameters=sum(p.data.size for p in model.parameters()),
            test=len(test_images), accuracy=right,
        ),
        picture, layer, query,
    ])
    return layer, picture, query


@app.cell
def _(attention_maps, model, picture, test_images):
    image = test_images[picture.value : picture.value + 1]
    maps = attention_maps(model, image)         # (layers, 1, heads, N, N)
    return image, maps


@app.cell
def _(Figure, image, layer, maps, model, np, picture, query, scores, test_labels, text):
    def attention_figure():
        rows, columns = model.patch_embed.grid_size
        P = model.patch_embed.patch_size[0]
        heads = maps[layer.value - 1, 0, :, query.value].reshape(-1, rows, columns)
        y, x = divmod(query.value, columns)
        figure = Figure(figsize=(6, 1.6), layout="constrained")
        first, *others = figure.subplots(1, 1 + len(heads))
        first.imshow(image[0, 0], cmap="gray")
        for at in np.arange(P, P * rows, P) - 0.5:
            first.axhline(at, color="#888888", linewidth=0.6)
            first.axvline(at, color="#888888", linewidth=0.6)
        first.plot([P * x + P / 2 - 0.5], [P * y + P / 2 - 0.5], "s", markersize=14, fillstyle="none", color="#66ccee")
        first.set_axis_off()
        for number, (ax, head) in enumerate(zip(others, heads), 1):
            ax.imshow(head, cmap="inferno", vmin=0)
            ax.plot([x], [y], "s", markersize=14, fillstyle="none", color="#66ccee")
            ax.set_title(f"{text.word('head')} {number}", fontsize=10)
            ax.set_axis_off()
        return figure

    chances = np.exp(scores(image)[0])
    chances /= chances.sum()
    text.figure(
        attention_figure(), "figure-attention", layer=layer.value, predicted=int(chances.argmax()),
        chance=chances.max(), label=int(test_labels[picture.value]),
    )
    return


@app.cell
def _(mo, rollout, text):
    mo.vstack([text("rollout"), text.code(rollout, "layers = ", "return flow")])
    return


@app.cell
def _(Figure, class_attention, image, maps, model, rollout, text):
    def rollout_figure():
        grid, side = model.patch_embed.grid_size, image.shape[-1]
        figure = Figure(figsize=(5, 2.4), layout="constrained")
        flows = {"last": maps[-1].mean(axis=1), "rollout": rollout(maps)}       # (1, N, N) each
        for ax, (name, flow) in zip(figure.subplots(1, 2), flows.items()):
            ax.imshow(image[0, 0], cmap="gray", extent=(0, side, side, 0))
            ax.imshow(class_attention(flow, model.num_prefix_tokens, grid)[0], cmap="inferno", alpha=0.6,
                      extent=(0, side, side, 0))
            ax.set_title(text.word(name), fontsize=10)
            ax.set_axis_off()
        return figure

    text.figure(rollout_figure(), "figure-rollout")
    return


@app.cell
def _(model, np, scores):
    def chances_of(images):
        """The chance of each class, (B, classes)."""
        powers = np.exp(scores(images))
        return powers / powers.sum(axis=1, keepdims=True)

    def covered(image):
        """An image (1, C, H, W) with one patch after the other set to its darkest value, (N, C, H, W)."""
        rows, columns = model.patch_embed.grid_size
        P, Q = model.patch_embed.patch_size
        images = np.repeat(image, rows * columns, axis=0)
        for i in range(rows * columns):
            y, x = divmod(i, columns)
            images[i, :, P * y : P * (y + 1), Q * x : Q * (x + 1)] = image.min()
        return images

    def falls(image):
        """By how much the chance of the answer falls without each patch (N,), and the chances without it."""
        before, after = chances_of(image)[0], chances_of(covered(image))
        return before.max() - after[:, before.argmax()], after

    return chances_of, falls


@app.cell
def _(attention_maps, class_attention, falls, model, np, rollout, test_images):
    def correlation(image):
        """Of the rollout with what covering a patch does."""
        flow, grid = rollout(attention_maps(model, image)), model.patch_embed.grid_size
        seen = class_attention(flow, model.num_prefix_tokens, grid)
        return float(np.corrcoef(seen.ravel(), falls(image)[0])[0, 1])

    correlations = [correlation(one[None]) for one in test_images[:40]]
    return correlation, correlations


@app.cell
def _(Figure, chances_of, correlation, correlations, falls, image, mo, model, np, text):
    def cover_figure():
        figure = Figure(figsize=(5, 2.4), layout="constrained")
        digit, ax = figure.subplots(1, 2)
        digit.imshow(image[0, 0], cmap="gray")
        grid = 100 * fall.reshape(model.patch_embed.grid_size)
        ax.imshow(grid, cmap="RdBu_r", vmin=-100, vmax=100)
        for (y, x), value in np.ndenumerate(grid):
            ink = "white" if abs(value) > 60 else "black"
            ax.text(x, y, f"{round(value)}", ha="center", va="center", color=ink)
        for one in (digit, ax):
            one.set_axis_off()
        return figure

    fall, after = falls(image)
    worst = int(fall.argmax())
    mo.vstack([
        text("careful"),
        text.figure(
            cover_figure(), "figure-cover", predicted=int(chances_of(image).argmax()), worst=worst,
            instead=int(after[worst].argmax()), chance=float(after[worst].max()),
        ),
        text(
            "cover-seen", correlation=correlation(image), mean=float(np.mean(correlations)), count=len(correlations),
        ),
    ])
    return


@app.cell
def _(mo):
    answer_1 = mo.ui.number()
    return (answer_1,)


@app.cell
def _(answer_1, text, tokens_of):
    solution_1 = tokens_of(384, 16)
    text.exercise(
        "exercise-1", answer_1, None if answer_1.value is None else answer_1.value == solution_1, "answer-1",
        solution=solution_1, before=tokens_of(224, 16), factor=(solution_1 / tokens_of(224, 16))**2,
    )
    return


@app.cell
def _(mo):
    answer_2 = mo.ui.number()
    return (answer_2,)


@app.cell
def _(answer_2, cost, init, sv, text):
    # Its weights are not made: it has 86 million.
    with init.without_weights():
        base = sv.create_model("vit_base_patch16_224")
    base_cost, solution_2 = cost(base), base.patch_embed.proj.weight.size
    text.exercise(
        "exercise-2", answer_2, None if answer_2.value is None else answer_2.value == solution_2, "answer-2",
        solution=solution_2, parameters=base_cost.parameters,
    )
    return (base_cost,)


@app.cell
def _(mo, text):
    answer_3 = mo.ui.radio({text.word(name): name for name in ("lost", "little", "unchanged")})
    return (answer_3,)


@app.cell
def _(model, np, scores, test_images, test_labels):
    def shuffled_patches(images, order):
        """The images with their patches in another order."""
        B, C, H, W = images.shape
        rows, columns = model.patch_embed.grid_size
        patches = images.reshape(B, C, rows, H // rows, columns, W // columns).transpose(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(B, rows * columns, C, H // rows, W // columns)[:, order]
        patches = patches.reshape(B, rows, columns, C, H // rows, W // columns).transpose(0, 3, 1, 4, 2, 5)
        return patches.reshape(images.shape)

    def with_positions(positions, images):
        before = model.pos_embed.numpy().copy()
        model.pos_embed.overwrite(positions)
        try:
            return scores(images)
        finally:
            model.pos_embed.overwrite(before)

    order = np.random.default_rng(0).permutation(model.num_tokens)
    shuffled_images = shuffled_patches(test_images, order)
    moved = with_positions(model.pos_embed.numpy()[:, order], shuffled_images)
    change = float(np.abs(moved - scores(test_images)).max())
    shuffled = np.mean(scores(shuffled_images).argmax(axis=1) == test_labels)
    return change, shuffled


@app.cell
def _(answer_3, change, right, shuffled, text):
    outcome = "unchanged" if change < 1e-3 else "little" if change < 0.1 else "lost"
    text.exercise(
        "exercise-3", answer_3, None if answer_3.value is None else answer_3.value == outcome, "answer-3",
        change=change, shuffled=shuffled, accuracy=right,
    )
    return


@app.cell
def _(base_cost, text):
    text("big", macs=base_cost.macs / 1e9)
    return


if __name__ == "__main__":
    app.run()
