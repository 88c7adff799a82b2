"""Denoising and group queries: what they are, who sees whom, that nobody can cheat, and what is learned from them."""

import functools
import itertools

import numpy as np
import pytest

import scratchvit as sv
from scratchvit.backend import asarray, asnumpy
from scratchvit.detection import HungarianMatcher, SetCriterion
from scratchvit.detection.criterion import FocalCriterion
from scratchvit.detection.losses import Output
from scratchvit.models.detr import DETR
from scratchvit.models.detr_extended import ExtendedDETR
from scratchvit.models.detr_queries import SMALLEST_SIDE, NoisedObjects, noised_objects, self_attention_mask
from tests.support.detr_samples import answers
from tests.support.margins import agree, ulps
from tests.support.model_parity import images
from tests.support.seeds import moved, seeded
from tests.support.set_prediction import KINDS, as_outputs, cost_of, decoder, leaves, random_layers, random_targets
from tests.support.small_detr import CLASSES, N, random_head, small
from tests.support.strict_array import no_transfers

MODELS = ("detr_tiny", "dab_detr_tiny")


def queries_of(model):
    return model.refpoint_embed if hasattr(model, "refpoint_embed") else model.query_embed


def noisy(counts, copies=3, seed=0, box_noise=0.4, label_noise=0.2, classes=CLASSES):
    targets = random_targets(counts, seed, classes)
    return targets, noised_objects(targets, copies, classes, box_noise, label_noise, seeded(seed).spawn(len(counts)))


def as_numbers(outputs):
    return [asnumpy(y.data) for y in answers(outputs)]


# --- the noise ------------------------------------------------------------------------------------------------------


def test_every_copy_is_of_an_object_and_the_rest_fills_up():
    targets, noised = noisy((2, 0, 3), copies=2, box_noise=0.0, label_noise=0.0)
    assert noised.copies == 2 and noised.labels.shape == (3, 6) and noised.boxes.shape == (3, 6, 4)
    assert (noised.labels.dtype, noised.boxes.dtype) == (np.int64, np.float32)
    assert noised.objects.tolist() == [[0, 1, -1, 0, 1, -1], [-1] * 6, [0, 1, 2, 0, 1, 2]]
    for image, target in enumerate(targets):        # without noise they are the objects themselves
        real = noised.objects[image] >= 0
        np.testing.assert_array_equal(noised.labels[image, real], np.tile(target["labels"], 2))
        np.testing.assert_array_equal(noised.boxes[image, real], np.tile(target["boxes"], (2, 1)))


@pytest.mark.parametrize("noise", [0.1, 0.4, 1.0])
def test_boxes_move_and_grow_as_far_as_is_promised(noise):
    """Uniformly up to λ halves of a side, and by a factor from 1 - λ to 1 + λ, each number by itself."""
    rng = seeded(0)
    true = np.concatenate([rng.uniform(0.45, 0.55, (50, 2)), rng.uniform(0.1, 0.4, (50, 2))], axis=1).astype(np.float32)
    targets = [{"labels": np.zeros(50, np.int64), "boxes": true}]
    noised = noised_objects(targets, 200, CLASSES, noise, 0.0, [rng])
    boxes = noised.boxes.reshape(200, 50, 4)
    shares = (boxes[..., :2] - true[:, :2]) / (true[:, 2:] / 2), boxes[..., 2:] / true[:, 2:] - 1
    rounded = ulps(1, 2) / 0.05                     # of places in 0 … 1, in halves of a side, at least 0.05
    for share in shares:                            # nothing is at a border here, but for sides that vanish
        share = share.reshape(-1, 2)
        assert np.abs(share).max() <= noise + rounded + (SMALLEST_SIDE / 0.1 if noise == 1 else 0)
        for axis in (0, 1):                         # a uniform distribution, by its quantiles
            np.testing.assert_allclose(
                np.quantile(share[:, axis], (0.05, 0.25, 0.5, 0.75, 0.95)),
                noise * np.array([-0.9, -0.5, 0, 0.5, 0.9]), atol=0.05 * noise,
            )
    independent = np.corrcoef([part for share in shares for part in share.reshape(-1, 2).T])
    assert np.abs(independent - np.eye(4)).max() < 0.05
    assert np.array_equal(noised.labels, np.zeros((1, 10_000)))


def test_boxes_stay_in_the_image_and_do_not_vanish():
    edges = np.array([[0, 1, 0.8, 0.8], [0.5, 0.5, 0, 0], [1, 0, 1, 1]], np.float32)
    targets = [{"labels": np.zeros(3, np.int64), "boxes": edges}]
    boxes = noised_objects(targets, 500, CLASSES, 1.0, 0.0, [seeded(0)]).boxes
    assert boxes.min() >= 0 and boxes.max() <= 1 and boxes[..., 2:].min() >= SMALLEST_SIDE


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_classes_are_drawn_anew_as_often_as_is_promised(share):
    targets = [{"labels": np.full(20, 3), "boxes": np.full((20, 4), 0.5, np.float32)}]
    labels = noised_objects(targets, 1000, CLASSES, 0.0, share, [seeded(1)]).labels
    assert labels.min() >= 0 and labels.max() < CLASSES
    shares = np.bincount(labels.ravel(), minlength=CLASSES) / labels.size
    expected = np.full(CLASSES, share / CLASSES) + (1 - share) * (np.arange(CLASSES) == 3)
    np.testing.assert_allclose(shares, expected, atol=0.01 if share else 0)


def test_the_same_generator_draws_the_same_noise():
    (_, first), (_, again), (_, other) = noisy((2, 3)), noisy((2, 3)), noisy((2, 3), box_noise=0.2)
    assert np.array_equal(first.boxes, again.boxes) and np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.boxes, other.boxes) and np.array_equal(first.labels, other.labels)


def test_a_batch_without_objects_has_no_noised_ones():
    for counts in ((0, 0), ()):
        _, noised = noisy(counts)
        assert noised.labels.shape == noised.objects.shape == (len(counts), 0)
        assert noised.boxes.shape == (len(counts), 0, 4)


# --- who sees whom --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("counts", "copies", "groups"), [
    ((2, 0, 3), 2, 1), ((2, 0, 3), 3, 3), ((1,), 1, 2), ((0, 0), 2, 2), ((4, 4), 1, 1),
], ids=str)
def test_who_sees_whom_query_by_query(device, counts, copies, groups):
    _, noised = noisy(counts, copies)
    most = max(counts)
    sees = asnumpy(self_attention_mask(noised, N, groups))
    Q = copies * most + groups * N
    assert sees.dtype == bool and sees.shape == (len(counts), 1, Q, Q)

    def kind(query):
        """("copy", which of them, its object) or ("group", which of them, its query)."""
        if query < copies * most:
            return "copy", query // most, query % most
        return "group", (query - copies * most) // N, (query - copies * most) % N

    for image, count in enumerate(counts):
        for row in range(Q):
            for column in range(Q):
                (what, which, _), (others, other, number) = kind(row), kind(column)
                same = what == others and which == other
                expected = same or (what == "copy" and (others, other) == ("group", 0))
                if others == "copy" and number >= count:        # only fills up: seen by nobody, itself included
                    expected = False
                assert sees[image, 0, row, column] == expected, (image, kind(row), kind(column))
    assert sees.any(axis=-1).all()                              # nobody sees nothing: a softmax over nobody is NaN


def test_groups_without_noise_need_one_mask_and_one_group_none(device):
    assert self_attention_mask(None, N, 1) is None
    sees = asnumpy(self_attention_mask(None, 2, 3))
    np.testing.assert_array_equal(sees, np.kron(np.eye(3, dtype=bool), np.ones((2, 2), bool)))


@pytest.mark.parametrize("name", MODELS)
def test_group_0_does_not_change_by_a_bit_when_others_do(name, device):
    model = random_head(small(name, query_groups=3, denoising=2)).train()
    x = images(2, 3, 64, 64)

    def run(targets, changed=()):
        model.set_generator(sv.random.Generator(moved(7)))
        weight = queries_of(model).weight
        before = weight.numpy().copy()
        other = before.copy()
        for group in changed:
            other[group * N : (group + 1) * N] += 1
        weight.assign(other)
        with sv.no_grad():
            outputs = model(x, targets=targets)
        weight.assign(before)
        parts = {"group 0": outputs, "group 1": outputs["group_outputs"][0], "group 2": outputs["group_outputs"][1],
                 "noised": outputs["denoising"]}
        return {part: as_numbers(values) for part, values in parts.items()}

    def changes(given, other):
        return {part for part in given if not all(map(np.array_equal, given[part], other[part]))}

    targets, others = random_targets((2, 3), 0, CLASSES), random_targets((2, 3), 1, CLASSES)
    given = run(targets)
    assert changes(given, run(targets)) == set()
    assert changes(given, run(others)) == {"noised"}
    assert changes(given, run(targets, changed=[1])) == {"group 1"}
    assert changes(given, run(targets, changed=[2])) == {"group 2"}
    assert changes(given, run(targets, changed=[0])) == {"group 0", "noised"}


@pytest.mark.parametrize("name", MODELS)
def test_images_do_not_see_each_others_objects_and_nobody_sees_what_fills_up(name):
    model = random_head(small(name, denoising=2)).train()
    x = images(2, 3, 64, 64)
    few, many = random_targets((1,), 0, CLASSES), random_targets((3, 3), 1, CLASSES)

    def noised_part(targets):
        """Of the first image's first copy of its first object, in every layer."""
        noised = noised_objects(targets, 2, CLASSES, 0.0, 0.0, seeded(0).spawn(len(targets)))
        model.draw_noise = lambda *_: noised
        with sv.no_grad():
            return [y[0, 0] for y in as_numbers(model(x[: len(targets)], targets=targets)["denoising"])]

    # Two that fill up, or none.
    agree(lambda: noised_part([few[0], many[1]]), noised_part(few), "beside an image with more objects")


@pytest.mark.parametrize("name", MODELS)
def test_no_gradient_goes_where_nobody_looks(name, device):
    model = random_head(small(name, query_groups=2, denoising=2, label_noise=0.0)).train()
    x, targets = images(1, 3, 64, 64), [{"labels": np.array([1, 3]), "boxes": np.full((2, 4), 0.5, np.float32)}]

    def touched(part):
        """Which rows of queries and of classes a part of the answers depends on."""
        model.zero_grad()
        outputs = model(x, targets=targets)
        parts = {"group 0": outputs, "group 1": outputs["group_outputs"][0], "noised": outputs["denoising"]}
        sum((y * y).sum() for y in answers(parts[part])).backward()
        queries, classes = (
            np.flatnonzero(asnumpy(table.weight.grad).any(axis=-1)) for table in (queries_of(model), model.label_enc)
        )
        return [set((queries // N).tolist()), set(classes.tolist())]

    unknown = CLASSES
    assert touched("group 0") == [{0}, {unknown}]
    assert touched("group 1") == [{1}, {unknown}]
    assert touched("noised") == [{0}, {1, 3, unknown}]


# --- the same model, with less to do --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_group_answers_as_a_model_of_its_queries_alone(name, device):
    model, x = random_head(small(name, query_groups=3)).train(), images(2, 3, 64, 96)
    outputs = model(x)
    alone = small(name)
    state = model.state_dict()
    table = next(key for key in ("query_embed.weight", "refpoint_embed.weight") if key in state)
    for group, ours in enumerate([outputs, *outputs["group_outputs"]]):
        alone.load_state_dict(state | {table: state[table][group * N : (group + 1) * N]})
        agree(lambda: as_numbers(alone.eval()(x)), as_numbers(ours), f"group {group}")


@pytest.mark.parametrize("name", MODELS)
def test_in_use_there_is_the_first_group_alone(name, device):
    model, x = random_head(small(name, query_groups=3, denoising=2)), images(2, 3, 64, 64)
    targets = random_targets((1, 2), 0, CLASSES)
    trained, used = model.train()(x, targets=targets), model.eval()(x, targets=targets)
    assert list(used) == ["pred_logits", "pred_boxes", "aux_outputs"]
    assert set(trained) - set(used) == {"group_outputs", "denoising"} and len(trained["group_outputs"]) == 2
    agree(lambda: as_numbers(model(x)), as_numbers(trained), "in use")


@pytest.mark.parametrize(
    "option", [{"focal": True}, {"query_groups": 2}, {"denoising": 1}], ids=lambda option: next(iter(option))
)
def test_the_papers_model_is_built_unless_an_option_asks_for_more(option):
    assert type(small("detr_tiny")) is type(small("detr_tiny", box_noise=0.1)) is DETR
    assert type(small("detr_tiny", **option)) is ExtendedDETR


def test_extended_without_options_is_the_papers_model():
    """Of the same weights, and with the same outputs and draws in training."""
    config, x = sv.models.model_config("detr_tiny", enc_layers=1, dropout=0.1), images(2, 3, 64, 64)
    models = [make(config, seed=3).train() for make in (DETR, ExtendedDETR)]
    plain, extended = (model.state_dict() for model in models)
    assert list(plain) == list(extended) and all(np.array_equal(plain[name], extended[name]) for name in plain)
    for model in models:
        model.set_generator(sv.random.Generator(moved(1)))
    assert all(map(np.array_equal, *(as_numbers(model(x, targets=random_targets((1, 2), 0))) for model in models)))


@pytest.mark.parametrize("name", MODELS)
def test_without_groups_and_noise_training_is_as_before(name):
    model, x = random_head(small(name)).train(), images(2, 3, 64, 64)
    generator = sv.random.Generator(moved(1))
    model.set_generator(generator)
    given, plain = model(x, targets=random_targets((1, 2), 0, CLASSES)), model.eval()(x)
    assert list(given) == list(plain) == ["pred_logits", "pred_boxes", "aux_outputs"]
    assert all(map(np.array_equal, as_numbers(given), as_numbers(plain)))
    assert generator.draws == 0
    assert list(small(name, denoising=2).train()(x)) == list(plain)         # nobody said what there is to find


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_without_objects_trains(name, device):
    model = small(name, query_groups=2, denoising=2).train()
    outputs = model(images(2, 3, 64, 64), targets=random_targets((0, 0), 0, CLASSES))
    criterion = criterion_for(model)
    losses = criterion(outputs, random_targets((0, 0), 0, CLASSES))
    of_noised = [losses[Output("denoising", layer)][kind] for layer in range(3) for kind in KINDS]
    for loss in (*of_noised, losses[decoder(2)]["bbox"], losses[decoder(2)]["giou"]):
        assert float(loss.item()) == 0
    criterion.total(losses).backward()
    assert np.isfinite(asnumpy(model.class_embed.weight.grad)).all() and asnumpy(model.class_embed.weight.grad).any()


@pytest.mark.parametrize("name", MODELS)
def test_two_runs_from_the_same_state_meet_the_same_noise(name):
    """The noise is drawn by the model's generator, whose state a checkpoint holds."""
    targets, x = random_targets((2, 3), 0, CLASSES), images(2, 3, 64, 64)
    model = small(name, denoising=2).train()
    generator = sv.random.Generator(moved(5))
    model.set_generator(generator)

    def step():
        return as_numbers(model(x, targets=targets)["denoising"])

    first = step()
    saved = generator.state_dict()
    second, third = step(), step()
    resumed = sv.random.Generator(0)
    resumed.load_state_dict(saved)
    model.set_generator(resumed)
    assert all(map(np.array_equal, second, step())) and all(map(np.array_equal, third, step()))
    assert not np.array_equal(first[0], second[0])


@pytest.mark.parametrize("name", MODELS)
def test_nothing_waits_for_the_device(name):
    from tests.support.strict_array import STRICT

    sv.use(STRICT)
    try:
        model = small(name, query_groups=2, denoising=2).train()
        x, targets = asarray(images(2, 3, 64, 64)), random_targets((2, 1), 0, CLASSES)
        with no_transfers():
            model(x, targets=targets)
    finally:
        sv.use("cpu")


@pytest.mark.parametrize(
    ("options", "text"),
    [({"query_groups": 0}, "query_groups must be at least 1"), ({"denoising": -1}, "denoising must be at least 0"),
     ({"box_noise": 1.5}, "box_noise is a fraction"), ({"label_noise": -0.1}, "label_noise is a fraction")],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options, text):
    with pytest.raises(sv.ScratchvitError, match=text):
        small("detr_tiny", **options)


# --- what is learned ------------------------------------------------------------------------------------------------


def criterion_for(model):
    if model.config.focal:
        return FocalCriterion(CLASSES, HungarianMatcher(cost_class=2, focal=True))
    return SetCriterion(CLASSES, HungarianMatcher())


CRITERIA = {
    "softmax": lambda: SetCriterion(CLASSES, HungarianMatcher()),
    "focal": lambda: FocalCriterion(CLASSES, HungarianMatcher(cost_class=2, focal=True)),
}


@pytest.mark.parametrize("kind", CRITERIA)
def test_losses_of_groups_are_the_mean_over_groups(kind, device):
    criterion, targets = CRITERIA[kind](), random_targets((2, 0, 5), 3, CLASSES)
    groups = [leaves(*random_layers(3, 3, N, seed, CLASSES - (kind == "focal"))) for seed in range(3)]

    def compute():
        """The losses, and the gradients of each group."""
        for leaf in itertools.chain(*groups):
            leaf.grad = None
        first, *others = (as_outputs(*group) for group in groups)
        losses = criterion({**first, "group_outputs": others}, targets)
        criterion.total(losses).backward()
        return {**losses, "gradients": [[leaf.grad for leaf in group] for group in groups]}

    together = compute()
    del together["gradients"]
    each = [criterion(as_outputs(*group), targets) for group in groups]
    assert together.keys() == each[0].keys()
    expected = {output: dict(of_layer) for output, of_layer in together.items()}
    for output, of_layer in expected.items():
        assert of_layer.keys() == each[0][output].keys()
        for kind, value in of_layer.items():
            if kind in KINDS:
                of_layer[kind] = np.mean([float(losses[output][kind].item()) for losses in each])
            else:                                   # counts are of the group that is used
                assert float(value) == float(each[0][output][kind]), kind
    expected["gradients"] = []                      # a third of those that each group has alone
    for group in groups:
        for leaf in group:
            leaf.grad = None
        criterion.total(criterion(as_outputs(*group), targets)).backward()
        expected["gradients"].append([asnumpy(leaf.grad) / 3 for leaf in group])
    agree(compute, expected)


def by_hand(kind, logits, boxes, targets, objects):
    """(ce, bbox, giou) of noised objects in one layer, copy by copy, in Python's float."""
    ce = l1 = giou = copies = 0.0
    for image, target in enumerate(targets):
        for query, which in enumerate(objects[image]):
            if which < 0:
                continue
            copies += 1
            z, box = logits[image, query].astype(float), boxes[image, query]
            label, true = target["labels"][which], target["boxes"][which].astype(float)
            if kind == "softmax":
                ce += np.log(np.exp(z).sum()) - z[label]
            else:
                for c, p in enumerate(1 / (1 + np.exp(-z))):
                    ce += -0.25 * (1 - p) ** 2 * np.log(p) if c == label else -0.75 * p**2 * np.log(1 - p)
            l1 += cost_of(z, box, 0, true, (0, 1, 0))
            giou += 1 + cost_of(z, box, 0, true, (0, 0, 1))
    return ce / copies, l1 / copies, giou / copies


@pytest.mark.parametrize("whole", [None, [2, 0, 3, 4]], ids=["of the batch", "of a part"])
@pytest.mark.parametrize("kind", CRITERIA)
def test_denoising_losses_by_hand(kind, whole, device):
    criterion = CRITERIA[kind]()
    targets, noised = noisy((2, 0, 3), copies=3)
    classes = CLASSES - (kind == "focal")
    outputs = as_outputs(*leaves(*random_layers(2, 3, N, 0, classes)))
    logits, boxes = random_layers(2, 3, noised.objects.shape[1], 1, classes)
    leaf = leaves(logits, boxes)
    plain = criterion(outputs, targets, whole)

    def compute():
        denoising = {**as_outputs(*leaf), "objects": noised.objects}
        return criterion({**outputs, "denoising": denoising}, targets, whole)

    losses = compute()
    of_noised = {Output("denoising", layer) for layer in range(2)}
    assert losses.keys() == plain.keys() | of_noised
    for output, of_layer in plain.items():                                                      # matched as before
        assert {kind: float(loss.item()) for kind, loss in losses[output].items()} == {
            kind: float(loss.item()) for kind, loss in of_layer.items()
        }
    expected = {}
    for layer in range(2):
        values = by_hand(kind, logits[layer], boxes[layer], targets, noised.objects)
        share = 1 if whole is None else 3 / 4 * sum(whole) / 5      # of a part: its images, and its objects
        expected[Output("denoising", layer)] = {kind: value / share for kind, value in zip(KINDS, values)}
    agree(lambda: {output: of_layer for output, of_layer in compute().items() if output in of_noised}, expected)
    weighted = sum(criterion.weights[kind] * losses[output][kind].item() for output in of_noised for kind in KINDS)
    agree(lambda: criterion.total(losses), criterion.total(plain).item() + weighted, "the total")
    criterion.total(losses).backward()
    for tensor in leaf:
        gradient = np.abs(asnumpy(tensor.grad)).sum(-1)
        assert (gradient[:, noised.objects >= 0] > 0).all() and not gradient[:, noised.objects < 0].any()


def test_more_copies_count_as_much_as_one(device):
    """Each copy says the same: whether one or four of them, the losses are the same."""
    targets, objects = random_targets((2, 3), 0, CLASSES), np.array([[0, 1, -1], [0, 1, 2]])
    for kind, make in CRITERIA.items():
        logits, boxes = random_layers(1, 2, 3, 1, CLASSES - (kind == "focal"))
        outputs = as_outputs(*leaves(*random_layers(1, 2, N, 0, CLASSES - (kind == "focal"))))

        def of_copies(copies, make=make, outputs=outputs, given=(logits, boxes)):
            noised = as_outputs(*leaves(*(np.tile(x, (1, 1, copies, 1)) for x in given)))
            losses = make()({**outputs, "denoising": {**noised, "objects": np.tile(objects, copies)}}, targets)
            return losses[Output("denoising", 0)]

        agree(functools.partial(of_copies, 4), of_copies(1), kind)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_training_with_both_learns(name, device):
    model = small(name, query_groups=2, denoising=2).train()
    x, targets = images(2, 3, 64, 64), random_targets((2, 1), 0, CLASSES)
    criterion, optimizer, totals = criterion_for(model), sv.optim.AdamW(model.parameters(), lr=2e-3), []
    for _ in range(6):
        model.set_generator(sv.random.Generator(moved(1)))
        optimizer.zero_grad()
        total = criterion.total(criterion(model(x, targets=targets), targets))
        total.backward()
        optimizer.step()
        totals.append(float(total.item()))
    assert totals[-1] < 0.9 * totals[0]
    assert [key for key, p in model.named_parameters() if not asnumpy(p.grad).any()] == []


def test_noised_objects_are_on_the_host_and_frozen():
    _, noised = noisy((1,))
    assert isinstance(noised, NoisedObjects)
    assert all(type(x) is np.ndarray for x in (noised.labels, noised.boxes, noised.objects))
    with pytest.raises(AttributeError):
        noised.copies = 1
