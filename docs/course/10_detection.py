import marimo

__generated_with = "0.25.2"
app = marimo.App(width="compact", app_title="10. Detection as a set of boxes", css_file="course.css")


@app.cell
def _():
    import marimo as mo
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from scipy.optimize import linear_sum_assignment

    import scratchvit as sv
    from scratchvit import zoo
    from scratchvit.course import Chapter, sets
    from scratchvit.detection import boxes as of_boxes
    from scratchvit.detection.criterion import SetCriterion
    from scratchvit.detection.data.scenes import load_scenes
    from scratchvit.detection.evaluation import can_evaluate, evaluate_boxes, results_of
    from scratchvit.detection.matcher import HungarianMatcher
    from scratchvit.inspect.detection import cross_attention
    from scratchvit.inspect.figures import overlay
    from scratchvit.models import detr, detr_transformer

    return (
        Chapter, Figure, HungarianMatcher, Rectangle, SetCriterion, can_evaluate, cross_attention, detr,
        detr_transformer, evaluate_boxes, linear_sum_assignment, load_scenes, mo, np, of_boxes, overlay, results_of,
        sets, sv, zoo,
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
def _(mo, of_boxes, text):
    mo.vstack([
        text("boxes"),
        text.code(of_boxes, "def _generalized_iou", "return"),
        text("boxes-move"),
    ])
    return


@app.cell
def _(mo, text):
    def share(name, value):
        return mo.ui.slider(0.05, 0.95, step=0.05, value=value, label=text.word(name), show_value=True)

    cx, cy, width, height = share("cx", 0.3), share("cy", 0.35), share("width", 0.3), share("height", 0.2)
    return cx, cy, height, width


@app.cell
def _(Figure, Rectangle, cx, cy, height, mo, sets, text, width):
    TRUE = (0.6, 0.55, 0.3, 0.4)

    def outline(ax, box, scale=1.0, **style):
        """Draw a box (cx, cy, w, h)."""
        x, y, w, h = (scale * number for number in box)
        ax.add_patch(Rectangle((x - w / 2, y - h / 2), w, h, **style))

    def boxes_figure(predicted, terms):
        figure = Figure(figsize=(3.6, 3.6), layout="constrained")
        ax = figure.subplots()
        outline(ax, TRUE, facecolor="#4477aa44", edgecolor="#4477aa", linewidth=2)
        outline(ax, predicted, facecolor="#ee667744", edgecolor="#ee6677", linewidth=2)
        pull = terms.pull[:2] / max(1e-6, abs(terms.pull[:2]).max()) * 0.15
        ax.annotate(
            "", (predicted[0] + pull[0], predicted[1] + pull[1]), predicted[:2],
            arrowprops={"arrowstyle": "->", "color": "black", "linewidth": 2},
        )
        ax.set(xlim=(0, 1), ylim=(1, 0), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        return figure

    _predicted = (cx.value, cy.value, width.value, height.value)
    _terms = sets.box_terms(_predicted, TRUE)
    mo.vstack([
        mo.hstack([cx, cy, width, height], justify="start", wrap=True),
        text.figure(
            boxes_figure(_predicted, _terms), "figure-boxes", l1=_terms.l1, iou=_terms.iou, giou=_terms.giou,
            loss=_terms.loss,
        ),
    ])
    return (outline,)


@app.cell
def _(load_scenes, np, sv, zoo):
    SCENES = 60
    trained = zoo.load("detr_scenes")
    scenes = load_scenes(test=SCENES).test
    truths = [scenes.annotations(i) for i in range(SCENES)]
    with sv.no_grad():
        outputs = trained.model(np.stack([trained.prepare(scenes.picture(i)) for i in range(SCENES)]))
    logits, boxes = outputs["pred_logits"].numpy(), outputs["pred_boxes"].numpy()
    found = trained.opened.in_pictures([scenes.picture(i) for i in range(SCENES)])
    return SCENES, boxes, found, logits, scenes, trained, truths


@app.cell
def _(HungarianMatcher, mo, text):
    mo.vstack([
        text("matching"),
        text.code(HungarianMatcher, "starts = objects.starts", "]"),
        text("matching-move"),
    ])
    return


@app.cell
def _(SCENES, mo, text):
    scene = mo.ui.slider(0, SCENES - 1, value=1, label=text.word("scene"), show_value=True)
    jitter = mo.ui.slider(0, 0.3, step=0.02, value=0.1, label=text.word("jitter"), show_value=True)
    of_class = mo.ui.slider(0.5, 5, step=0.5, value=2, label=text.word("of-class"), show_value=True)
    of_l1 = mo.ui.slider(0, 10, step=1, value=5, label=text.word("of-l1"), show_value=True)
    of_giou = mo.ui.slider(0, 5, step=0.5, value=2, label=text.word("of-giou"), show_value=True)
    return jitter, of_class, of_giou, of_l1, scene


@app.cell
def _(
    Figure, HungarianMatcher, boxes, jitter, logits, mo, np, of_class, of_giou, of_l1, outline, scene, scenes, sets,
    text, truths,
):
    def matching_figure(picture, target, predicted, matched):
        figure = Figure(figsize=(5, 5.4), layout="constrained")
        axes = figure.subplot_mosaic([["scene"], ["costs"]], height_ratios=[3, 2])
        axes["scene"].imshow(picture, extent=(0, 1, 1, 0))
        axes["scene"].set(xlim=(0, 1), ylim=(1, 0))
        axes["scene"].set_axis_off()
        for number, (true, query) in enumerate(zip(target["boxes"], matched.queries)):
            colour = f"C{number}"
            outline(axes["scene"], true, fill=False, edgecolor=colour, linestyle="--", linewidth=1.5)
            outline(axes["scene"], predicted[query], fill=False, edgecolor=colour, linewidth=2)
            axes["scene"].plot(*np.stack([true[:2], predicted[query][:2]]).T, color=colour, linewidth=1)
        axes["costs"].imshow(matched.costs, cmap="viridis_r", aspect="auto")
        rows = range(len(matched.queries))
        axes["costs"].plot(matched.queries, rows, "s", markersize=9, markerfacecolor="none", markeredgecolor="#cc3311")
        axes["costs"].plot(matched.cheapest, rows, ".", color="white", markersize=6)
        axes["costs"].set(
            xlabel=text.word("query"), ylabel=text.word("object"), yticks=list(rows), yticklabels=target["labels"]
        )
        return figure

    _matcher = HungarianMatcher(of_class.value, of_l1.value, of_giou.value, focal=True)
    _target = sets.target_of(truths[scene.value])
    _boxes = sets.jittered(boxes[scene.value], jitter.value)
    matched = sets.match(_matcher, logits[scene.value], _boxes, _target)
    mo.vstack([
        mo.hstack([scene, jitter, of_class, of_l1, of_giou], justify="start", wrap=True),
        text.figure(
            matching_figure(scenes.picture(scene.value), _target, _boxes, matched), "figure-matching",
            objects=len(matched.queries), queries=len(_boxes), total=matched.total, disputed=matched.disputed,
        ),
    ])
    return (matched,)


@app.cell
def _(SetCriterion, mo, text):
    certainty = mo.ui.slider(0.55, 0.95, step=0.05, value=0.9, label=text.word("certainty"), show_value=True)
    mo.vstack([
        text("set-loss"),
        text.code(SetCriterion, "which = np.full", "of_image[queries]"),
        text("set-loss-move"),
        certainty,
    ])
    return (certainty,)


@app.cell
def _(Figure, certainty, np, sets, text):
    def loss_figure(losses):
        figure = Figure(figsize=(4.6, 2.6), layout="constrained")
        ax = figure.subplots()
        best = int(np.argmin(losses))
        ax.bar(range(len(losses)), losses, color=["#ee6677" if i == best else "#4477aa" for i in range(len(losses))])
        ax.set(xlabel=text.word("claiming"), ylabel=text.word("loss"), yscale="log")
        return figure

    _losses = sets.set_losses(5, certainty.value)
    text.figure(
        loss_figure(_losses), "figure-set-loss", none=_losses[0], one=_losses[1], two=_losses[2],
        certainty=float(certainty.value),
    )
    return


@app.cell
def _(can_evaluate, evaluate_boxes, found, np, of_boxes, results_of, scenes, sets, truths):
    def copies(detections, threshold):
        """How many confident detections each true object has, over all scenes."""
        counts = []
        for of_image, truth in zip(detections, truths):
            sure = of_image["boxes"][of_image["scores"] >= threshold]
            overlaps, _ = of_boxes.box_iou(truth.boxes.astype(np.float32), sure)
            counts += (overlaps >= 0.5).sum(axis=1).tolist()
        return np.array(counts)

    def coco(detections):
        """AP and AP50 by pycocotools, or by our curves."""
        if can_evaluate():
            results = results_of(detections, [truth.image_id for truth in truths], scenes.category_ids)
            figures = evaluate_boxes(scenes.ground_truth(), results)
            return figures.AP, figures.AP50
        by_threshold = [sets.mean_AP(sets.curves(detections, truths, 10, t)) for t in np.arange(0.5, 0.96, 0.05)]
        return float(np.mean(by_threshold)), by_threshold[0]

    counts = copies(found, 0.5)
    official, suppressed = coco(found), coco([sets.suppressed(of_image, 0.5) for of_image in found])
    return counts, official, suppressed


@app.cell
def _(counts, official, suppressed, text):
    text(
        "no-nms", objects=len(counts), once=int((counts == 1).sum()), twice=int((counts > 1).sum()),
        missed=int((counts == 0).sum()), ap=official[0], ap50=official[1], nms=suppressed[0], nms50=suppressed[1],
    )
    return


@app.cell
def _(detr, detr_transformer, mo, text):
    mo.vstack([
        text("decoder"),
        text.code(detr.DETR, "features, visible =", "layers ="),
        text("queries"),
        text.code(detr_transformer.DecoderLayer, "def self_attention", "return self.residual(x, self.norm3"),
        text("queries-ours"),
    ])
    return


@app.cell
def _(scene, scenes, mo, sets, text):
    _count = len(scenes.digits(scene.value))
    moved = mo.ui.slider(1, _count, value=1, label=text.word("moved"), show_value=True)
    _x, _y = sets.centre_of(scenes, scene.value, 0)
    to_x = mo.ui.slider(0, 1, step=0.05, value=round(20 * _x) / 20, label=text.word("to-x"), show_value=True)
    to_y = mo.ui.slider(0, 1, step=0.05, value=round(20 * _y) / 20, label=text.word("to-y"), show_value=True)
    layer = mo.ui.slider(1, 3, value=3, label=text.word("layer"), show_value=True)
    return layer, moved, to_x, to_y


@app.cell
def _(
    Figure, cross_attention, layer, mo, moved, np, of_boxes, overlay, outline, scene, scenes, sets, text, to_x, to_y,
    trained,
):
    def look(number, centre, depth):
        """The changed scene, its detections, and what the moved digit's query sees."""
        changed = sets.MovedScenes(scenes, scene.value, number, centre)
        picture, truth = changed.example(scene.value)
        (seen,) = trained.opened.in_pictures([picture])
        overlaps, _ = of_boxes.box_iou(truth.boxes[number : number + 1].astype(np.float32), seen["boxes"])
        near = overlaps[0] > 0.3
        best = int(np.argmax(np.where(near, seen["scores"], 0) if near.any() else overlaps[0]))
        maps = cross_attention(trained.model, trained.prepare(picture), layer=depth - 1)
        return picture, truth, seen, best, float(overlaps[0, best]), maps[:, seen["queries"][best]].mean(axis=0)

    def attention_figure(picture, truth, seen, best, heat):
        figure = Figure(figsize=(5, 2.7), layout="constrained")
        left, right = figure.subplots(1, 2)
        size = picture.height
        for ax, shown in ((left, np.asarray(picture)), (right, overlay(np.asarray(picture), heat))):
            ax.imshow(shown, extent=(0, size, size, 0))
            ax.set_axis_off()
        for corners in seen["boxes"][seen["scores"] >= 0.4]:
            outline(left, of_boxes.box_xyxy_to_cxcywh(corners), fill=False, edgecolor="white", linewidth=1.5)
        outline(right, of_boxes.box_xyxy_to_cxcywh(seen["boxes"][best]), fill=False, edgecolor="white", linewidth=1.5)
        return figure

    _picture, _truth, _seen, _best, _overlap, _heat = look(moved.value - 1, (to_x.value, to_y.value), layer.value)
    _box = _truth.boxes[moved.value - 1]
    _area = float(np.prod(_box[2:] - _box[:2])) / _picture.height**2
    mo.vstack([
        text("attention"),
        mo.hstack([moved, to_x, to_y, layer], justify="start", wrap=True),
        text.figure(
            attention_figure(_picture, _truth, _seen, _best, _heat), "figure-attention", scene=scene.value,
            digit=trained.classes[_truth.labels[moved.value - 1]], query=int(_seen["queries"][_best]),
            answer=trained.classes[_seen["labels"][_best]], score=100 * float(_seen["scores"][_best]), iou=_overlap,
            layer=layer.value, inside=100 * sets.share_inside(_heat, _box / _picture.height), area=100 * _area,
        ),
    ])
    return


@app.cell
def _(mo, sets, text):
    threshold = mo.ui.slider(0.5, 0.95, step=0.05, value=0.5, label=text.word("threshold"), show_value=True)
    label = mo.ui.slider(0, 9, value=1, label=text.word("label"), show_value=True)
    mo.vstack([text("ap"), text.code(sets.curve_of, "order =", "envelope ="), text("ap-move")])
    return label, threshold


@app.cell
def _(Figure, found, label, mo, official, sets, text, threshold, truths):
    def curve_figure(curve):
        figure = Figure(figsize=(4.6, 3.2), layout="constrained")
        ax = figure.subplots()
        ax.step(sets.RECALLS, curve.envelope, where="pre", color="#ee6677", linewidth=2)
        ax.plot(curve.recall, curve.precision, ".", color="#4477aa")
        ax.set(xlabel=text.word("recall"), ylabel=text.word("precision"), xlim=(0, 1.02), ylim=(0, 1.05))
        return figure

    of_classes = sets.curves(found, truths, 10, threshold.value)
    _curve = of_classes[label.value]
    mo.vstack([
        mo.hstack([threshold, label], justify="start", wrap=True),
        text.figure(
            curve_figure(_curve), "figure-ap", digit=label.value, threshold=float(threshold.value), ap=_curve.AP,
            mean=sets.mean_AP(of_classes), detections=len(_curve.hits), hits=int(_curve.hits.sum()),
        ),
        text("ap-coco", scenes=len(truths), ap=official[0], ap50=official[1]),
    ])
    return (of_classes,)


@app.cell
def _(mo):
    answer_1 = mo.ui.number(step=0.001)
    answer_2 = mo.ui.number()
    answer_3 = mo.ui.number(step=0.001)
    return answer_1, answer_2, answer_3


@app.cell
def _(answer_1, answer_2, answer_3, linear_sum_assignment, mo, np, sets, text):
    def lowest(costs):
        """The lowest total cost of an assignment."""
        return float(np.array(costs)[linear_sum_assignment(costs)].sum())

    solutions = (
        sets.giou_of((0, 0, 4, 4), (2, 2, 6, 6)), lowest([[1, 2, 9], [2, 6, 9], [9, 9, 3]]),
        sets.curve_of(np.array([True, False, True]), np.array([0.9, 0.8, 0.7], np.float32), 2).AP,
    )

    def right(given, wanted):
        return None if given.value is None else abs(given.value - wanted) < 0.005

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
