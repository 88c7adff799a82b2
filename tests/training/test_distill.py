"""Distillation: the paper's formulas in PyTorch, and a teacher that sees what its student sees."""

import numpy as np
import pytest
import safetensors.numpy

import scratchvit as sv
from scratchvit import Tensor, ops
from scratchvit.backend import asarray, asnumpy
from scratchvit.data import Normalize
from scratchvit.data.mixing import Mix
from scratchvit.errors import ScratchvitError
from scratchvit.training.checkpoint import Checkpoint, save_checkpoint
from scratchvit.training.classification.distill import Teacher, hard_distillation, soft_distillation
from scratchvit.weights.export import export
from scratchvit.weights.preprocess import Preprocessing
from tests.support import strict_array
from tests.support.margins import agree, assert_close, named, rounding
from tests.support.peers import import_timm
from tests.support.seeds import seeded

B, C = 6, 7


def numbers(*shape, seed=0, scale=2.0):
    return scale * seeded(seed).standard_normal(shape)


def soft_target(seed=0):
    """What MixUp makes: two classes share each row."""
    rng = seeded(seed)
    one_hot = np.eye(C)[rng.integers(0, C, B)]
    return 0.3 * one_hot + 0.7 * one_hot[::-1]


LABELS = seeded(1).integers(0, C, B)
MIXED = Mix(num_classes=C, mixup_alpha=0.8, cutmix_alpha=1.0, mode="elem", label_smoothing=0.1)(
    np.zeros((B, 1, 8, 8), np.float32), LABELS, seeded(2)
)[1]
TARGETS = {"labels": LABELS, "soft targets": soft_target(), "mixed and smoothed": MIXED}


# --- losses ---


def in_pytorch(torch, kind, Z_truth, Z_teacher, y, Z_t, weight, temperature=1.0, smoothing=0.0):
    """Eqs. 2 and 3, written out. Z_truth and Z_teacher are the same tensor for a student with one head."""

    def ψ(Z):
        return torch.exp(Z) / torch.exp(Z).sum(1, keepdim=True)

    if y.ndim == 1:
        y = torch.eye(C, dtype=Z_t.dtype)[y]
    y = (1 - smoothing) * y + smoothing / C

    def CE(p, q):
        return -(q * torch.log(p)).sum(1).mean()

    if kind == "hard":
        y_t = torch.eye(C, dtype=Z_t.dtype)[Z_t.argmax(1)]
        return (1 - weight) * CE(ψ(Z_truth), y) + weight * CE(ψ(Z_teacher), y_t)
    q, p = ψ(Z_teacher / temperature), ψ(Z_t / temperature)
    KL = (p * (torch.log(p) - torch.log(q))).sum(1).mean()
    return (1 - weight) * CE(ψ(Z_truth), y) + weight * temperature**2 * KL


@pytest.mark.parity
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("with_token", [False, True], ids=["one head", "token"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("soft", {}),
        ("soft", {"weight": 0.5, "temperature": 1.0}),
        ("soft", {"weight": 1.0, "temperature": 4.0, "label_smoothing": 0.1}),
        ("soft", {"weight": 0.7, "temperature": 0.5, "label_smoothing": 0.2}),
        ("hard", {}),
        ("hard", {"weight": 0.3, "label_smoothing": 0.1}),
    ],
)
def test_values_and_gradients_are_the_papers(kind, options, with_token, target, dtype):
    torch = pytest.importorskip("torch")
    arrays = [numbers(B, C, seed=seed).astype(dtype) for seed in range(1 + with_token)]
    y = TARGETS[target] if TARGETS[target].ndim == 1 else TARGETS[target].astype(dtype)

    teacher = Tensor(numbers(B, C, seed=9).astype(dtype), requires_grad=True)
    function = soft_distillation if kind == "soft" else hard_distillation

    def ours():
        heads = [Tensor(array, requires_grad=True) for array in arrays]
        loss = function(tuple(heads) if with_token else heads[0], y, teacher, **options)
        loss.backward()
        return {"loss": loss, "gradients": [head.grad for head in heads]}

    assert {array.dtype for array in named(ours()).values()} == {np.dtype(dtype)}
    theirs = [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in arrays]
    settings = {"weight": 0.5} if kind == "hard" else {"weight": 0.1, "temperature": 3.0}      # the paper's
    settings |= {name: value for name, value in options.items() if name != "label_smoothing"}
    expected = in_pytorch(
        torch, kind, theirs[0], theirs[-1], torch.tensor(y), torch.tensor(teacher.numpy()).double(), **settings,
        smoothing=options.get("label_smoothing", 0.0),
    )
    expected.backward()
    agree(ours, {"loss": expected, "gradients": [head.grad for head in theirs]}, dtype=dtype)
    assert teacher.grad is None


def in_the_authors_code(kind, Z_truth, Z_teacher, y, Z_t, alpha, tau, smoothing):
    """DistillationLoss of facebookresearch/deit: (1 - α) · base + α · distillation, whose base loss is timm's."""
    torch, timm_loss = pytest.importorskip("torch"), pytest.importorskip("timm.loss")
    F = torch.nn.functional
    base = timm_loss.LabelSmoothingCrossEntropy(smoothing) if y.ndim == 1 else timm_loss.SoftTargetCrossEntropy()
    if kind == "hard":
        distillation = F.cross_entropy(Z_teacher, Z_t.argmax(dim=1))
    else:
        log_q, log_p = F.log_softmax(Z_teacher / tau, dim=1), F.log_softmax(Z_t / tau, dim=1)
        distillation = F.kl_div(log_q, log_p, reduction="sum", log_target=True) * tau**2 / Z_teacher.numel()
    return (1 - alpha) * base(Z_truth, y) + alpha * distillation


@pytest.mark.parity
@pytest.mark.parametrize("target", ["labels", "mixed and smoothed"])
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_as_in_the_authors_code_but_for_the_reduction(kind, target):
    """Its KL is ours by C. So its α = λC / (1 - λ + λC) is our λ, and its loss ours by 1 - λ + λC, as are gradients."""
    import_timm()
    torch = pytest.importorskip("torch")
    share, tau, y = 0.3, 3.0, TARGETS[target]
    smoothing = 0.1 if y.ndim == 1 else 0.0         # of mixed targets, it is in them
    arrays, Z_t = [numbers(B, C, seed=seed) for seed in range(2)], numbers(B, C, seed=9)
    total = 1 - share + share * C if kind == "soft" else 1.0
    alpha = share * C / total if kind == "soft" else share

    def ours():
        heads = [Tensor(array, requires_grad=True) for array in arrays]
        options = {"weight": share, "label_smoothing": smoothing}
        if kind == "soft":
            loss = soft_distillation(tuple(heads), y, Z_t, temperature=tau, **options)
        else:
            loss = hard_distillation(tuple(heads), y, Z_t, **options)
        loss.backward()
        return {"loss": loss, "gradients": [head.grad for head in heads]}

    theirs = [torch.tensor(array, requires_grad=True) for array in arrays]
    expected = total * in_the_authors_code(kind, *theirs, torch.tensor(y), torch.tensor(Z_t), alpha, tau, smoothing)
    expected.backward()
    agree(ours, {"loss": expected, "gradients": [head.grad for head in theirs]}, dtype=np.float64)


def test_values_worked_out_by_hand(device):
    """Two classes and two pictures; to the second the student answers as its teacher, and so KL is the first's by two.

    ψ(Z_s / 2) = (1/4, 3/4) and ψ(Z_t / 2) = (3/4, 1/4): KL = 3/4 ln 3 - 1/4 ln 3 = ½ ln 3, τ² KL / 2 = ln 3.
    ψ(Z_s) = (1/10, 9/10), (49/50, 1/50): for labels 1 and 0, CE = (ln 10/9 + ln 50/49) / 2.
    A label smoothed by ε = 0.2 is 0.9 and 0.1.  y_t = 0, 0: CE = (ln 10 + ln 50/49) / 2.
    """
    ln = np.log
    Z_s, Z_t = 2 * ln([[1.0, 3.0], [7.0, 1.0]]), 2 * ln([[3.0, 1.0], [7.0, 1.0]])
    y = asarray(np.array([1, 0]))
    right, wrong = (ln(10 / 9) + ln(50 / 49)) / 2, (ln(10) + ln(50)) / 2
    hard = (ln(10) + ln(50 / 49)) / 2
    for loss, options, expected in (
        (soft_distillation, {"weight": 1.0, "temperature": 2.0}, ln(3)),
        (soft_distillation, {"weight": 0.25, "temperature": 2.0}, 0.75 * right + 0.25 * ln(3)),
        (soft_distillation, {"weight": 0.0}, right),
        (soft_distillation, {"weight": 0.0, "label_smoothing": 0.2}, 0.9 * right + 0.1 * wrong),
        (hard_distillation, {}, 0.5 * right + 0.5 * hard),
        (hard_distillation, {"weight": 0.0, "label_smoothing": 0.2}, 0.9 * right + 0.1 * wrong),
        (hard_distillation, {"weight": 1.0, "label_smoothing": 0.2}, hard),     # of the truth only
    ):
        found = loss(Tensor(Z_s), y, asarray(Z_t), **options).item()
        assert found == pytest.approx(expected, rel=1e-12), (loss.__name__, options)
    standard = [soft_distillation(Tensor(Z_s), y, asarray(Z_t), *given).item() for given in ((), (0.1, 3.0))]
    assert standard[0] == standard[1]       # the paper's λ and τ


@pytest.mark.parametrize("target", TARGETS)
def test_gradients_by_differences(device, target):
    Z_t, y = asarray(numbers(B, C, seed=9)), asarray(TARGETS[target])
    points = numbers(B, C), numbers(B, C, seed=1)
    for loss in (
        lambda Z: soft_distillation(Z, y, Z_t, weight=0.4, temperature=2.5),
        lambda Z: hard_distillation(Z, y, Z_t, label_smoothing=0.1),
    ):
        sv.gradcheck(loss, points[0])
        sv.gradcheck(lambda Z, Z_dist, loss=loss: loss((Z, Z_dist)), *points)


def test_each_head_learns_from_its_own_teacher(device):
    for loss in (soft_distillation, hard_distillation):
        truth, teacher = (Tensor(numbers(B, C).astype(np.float32), requires_grad=True) for _ in range(2))
        loss((truth, teacher), asarray(LABELS), asarray(numbers(B, C, seed=9)), weight=1.0).backward()
        assert not asnumpy(truth.grad).any() and asnumpy(teacher.grad).any()
        truth, teacher = (Tensor(numbers(B, C).astype(np.float32), requires_grad=True) for _ in range(2))
        loss((truth, teacher), asarray(LABELS), asarray(numbers(B, C, seed=9)), weight=0.0).backward()
        assert asnumpy(truth.grad).any() and not asnumpy(teacher.grad).any()


def test_a_student_that_answers_as_its_teacher_has_nothing_left_to_learn(device):
    Z = numbers(B, C).astype(np.float32)

    def ours():
        student = Tensor(Z, requires_grad=True)
        loss = soft_distillation(student, asarray(LABELS), Tensor(Z, requires_grad=True), weight=1.0)
        loss.backward()
        return [loss, student.grad]

    agree(ours, [np.zeros(()), np.zeros_like(Z)])


def test_the_teacher_is_a_constant_and_nothing_is_read_back(device):
    for loss in (soft_distillation, hard_distillation):
        teacher, student = (Tensor(numbers(B, C, seed=s).astype(np.float32), requires_grad=True) for s in range(2))
        y = asarray(LABELS)
        with strict_array.no_transfers():
            loss(student, y, teacher).backward()
        assert teacher.grad is None and student.grad.dtype == np.float32


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda Z: soft_distillation(Z, LABELS, Z, weight=1.5), r"λ in \[0, 1\].*not 1.5 and 3.0"),
        (lambda Z: soft_distillation(Z, LABELS, Z, temperature=0), "τ > 0, not 0.1 and 0"),
        (lambda Z: hard_distillation(Z, LABELS, Z, weight=-1), r"weight in \[0, 1\], not -1"),
        (lambda Z: hard_distillation(Z, LABELS, Z[:, 1:]), r"\(6, 6\), the student's \(6, 7\)"),
    ],
)
def test_what_makes_no_sense_is_refused(call, says):
    with pytest.raises(ScratchvitError, match=says):
        call(Tensor(numbers(B, C)))


# --- the teacher ---

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
CLASSES = ["ant", "bee", "cat", "dog", "elk"]
OWN = {"mean": [0.2, 0.5, 0.7], "std": [0.1, 0.2, 0.3]}
STUDENT = {"name": "photos", "classes": CLASSES, "image_shape": [16, 16, 3]} | {
    "mean": [0.4, 0.45, 0.5], "std": [0.25, 0.2, 0.15],
}


def pictures(count=4, size=16, channels=3):
    return seeded(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def as_the_student_sees(images):
    return asarray(Normalize(STUDENT["mean"], STUDENT["std"])(images))


def as_the_teacher_sees(images):
    return asarray(Normalize(OWN["mean"], OWN["std"])(images))


def model(name="vit_tiny_patch16_224", seed=1, **options):
    return sv.create_model(name, seed=seed, **{**TINY, **options})


def run_of(net, path, ema=None, **about):
    """The checkpoint of a run whose pictures were normalised otherwise than the student's."""
    checkpoint = Checkpoint(
        config={}, model_name="vit_tiny_patch16_224", model_args=TINY, data={**STUDENT, **OWN, **about}, progress={},
        model=net.state_dict(), ema=ema.state_dict() if ema else {},
    )
    save_checkpoint(path, checkpoint)
    return path


def test_a_runs_model_answers_as_on_pictures_of_its_own(device, tmp_path):
    net, images = model(), pictures()
    teacher = Teacher.load(run_of(net, tmp_path / "best.safetensors"), STUDENT)
    expected = net.eval()(as_the_teacher_sees(images)).numpy()
    bound = rounding(lambda: net(as_the_teacher_sees(images)))[""]
    for asked in (teacher, Teacher.load(tmp_path, STUDENT)):
        answer = asked(as_the_student_sees(images))
        assert answer.shape == (4, 5) and answer.dtype == np.float32
        assert_close(answer, expected, bound)
    wrongly_normalised = net(as_the_student_sees(images)).numpy()
    assert np.abs(wrongly_normalised - expected).max() > 0.01


def test_averaged_weights_teach_where_there_are_any(tmp_path):
    net, average, images = model(), model(seed=2), pictures()
    teacher = Teacher.load(run_of(net, tmp_path / "last.safetensors", ema=average), STUDENT)
    average.eval()
    agree(lambda: average(as_the_teacher_sees(images)), teacher(as_the_student_sees(images)))


def test_anybodys_weights_answer_by_the_preprocessing_beside_them(device, tmp_path):
    net, images = model(), pictures()
    preprocessing = Preprocessing((16, 16), 1.0, mean=tuple(OWN["mean"]), std=tuple(OWN["std"]))
    export(net, "vit_tiny_patch16_224", tmp_path, preprocessing, CLASSES)
    answer = Teacher.load(tmp_path / "model.safetensors", STUDENT)(Tensor(as_the_student_sees(images)))
    net.eval()
    agree(lambda: net(as_the_teacher_sees(images)), answer)


def test_the_teacher_in_a_file_of_several_is_chosen(tmp_path):
    nets = {"student": model(), "teacher": model(seed=2)}
    weights = {f"{entry}.{name}": value for entry, net in nets.items() for name, value in net.state_dict().items()}
    safetensors.numpy.save_file(weights, tmp_path / "both.safetensors")
    export(model(), "vit_tiny_patch16_224", tmp_path, Preprocessing((16, 16), 1.0, **OWN), CLASSES)   # config.json
    images = pictures()
    for entry, net in nets.items():
        net.eval()
        teacher = Teacher.load(tmp_path / "both.safetensors", STUDENT, entry=entry)
        assert teacher.report.entry.startswith(f"entry: {entry}")
        agree(lambda net=net: net(as_the_teacher_sees(images)), teacher(as_the_student_sees(images)))
    with pytest.raises(ScratchvitError, match="it has no entry 'ema'; it has student, teacher"):
        Teacher.load(tmp_path / "both.safetensors", STUDENT, entry="ema")


def test_the_weights_of_a_run_without_averaging_can_teach(tmp_path):
    net, images = model(), pictures()
    path = run_of(net, tmp_path / "last.safetensors", ema=model(seed=2))
    teacher = Teacher.load(path, STUDENT, entry="model")
    net.eval()
    agree(lambda: net(as_the_teacher_sees(images)), teacher(as_the_student_sees(images)))


@pytest.mark.parametrize("size", [8, 32])
def test_pictures_of_another_size_are_resized_for_it(device, size):
    net, images = model().eval(), pictures(size=size)
    teacher = Teacher(net, **OWN, student_mean=STUDENT["mean"], student_std=STUDENT["std"])

    def expected():
        return net(ops.interpolate(as_the_teacher_sees(images), 16, mode="bicubic", antialias=True))

    agree(expected, teacher(as_the_student_sees(images)))


def test_it_is_only_asked(device, monkeypatch):
    """Dropout and batch statistics are off, no graph is built, nothing is read back, and its state stays."""
    monkeypatch.setattr("scratchvit.tensor.Node", None)
    net = sv.create_model("resnet18", num_classes=5, layers=(1, 1, 1, 1), img_size=16, small_stem=True, drop_rate=0.5)
    teacher = Teacher(net.train(), **OWN, student_mean=STUDENT["mean"], student_std=STUDENT["std"])
    before, x = net.state_dict(), Tensor(as_the_student_sees(pictures()), requires_grad=True)
    with strict_array.no_transfers():
        first, second = teacher(x), teacher(x)
    np.testing.assert_array_equal(asnumpy(first), asnumpy(second))
    assert sv.backend.is_array(first) and not net.training
    assert all(np.array_equal(before[name], value) for name, value in net.state_dict().items())


def test_a_table_holds_the_answers_to_a_whole_data_set(device):
    teacher = Teacher(model(), **OWN, student_mean=STUDENT["mean"], student_std=STUDENT["std"])
    x = asnumpy(as_the_student_sees(pictures(10)))
    table = teacher.table((x[i : i + 4], None) for i in range(0, 10, 4))
    assert type(table) is np.ndarray and table.shape == (10, 5) and table.dtype == np.float32
    agree(lambda: teacher(asarray(x)), table)


def test_a_student_with_a_distillation_token_learns_from_both(device):
    student = model("deit_tiny_distilled_patch16_224", seed=3).train()
    student.distilled_training = True
    teacher = Teacher(model(), **OWN, student_mean=STUDENT["mean"], student_std=STUDENT["std"])
    x, y = as_the_student_sees(pictures()), asarray(np.arange(4))
    optimizer = sv.optim.AdamW(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = hard_distillation(student(x), y, teacher(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    to_truth, to_teacher = student(x)
    np.testing.assert_array_equal(asnumpy(to_truth.data.argmax(axis=1)), np.arange(4))
    np.testing.assert_array_equal(asnumpy(to_teacher.data.argmax(axis=1)), asnumpy(teacher(x).argmax(axis=1)))


def test_a_teacher_of_something_else_is_refused(tmp_path):
    net = model()
    path = run_of(net, tmp_path / "best.safetensors", classes=CLASSES[::-1])
    with pytest.raises(ScratchvitError, match=r"was trained on the classes elk, .*ant, the student has ant"):
        Teacher.load(path, STUDENT)
    path = run_of(net, tmp_path / "best.safetensors", classes=["red\n", *"abcdef"])
    with pytest.raises(ScratchvitError, match=r"the classes red\\n, a, b, c, d and 2 more, the student has ant"):
        Teacher.load(path, STUDENT)
    path = run_of(net, tmp_path / "best.safetensors")
    with pytest.raises(ScratchvitError, match="is a checkpoint and says which model it is"):
        Teacher.load(path, STUDENT, model="vit_tiny_patch16_224")
    with pytest.raises(ScratchvitError, match=r"3 channels, .* 3 means; the student's have 1"):
        Teacher.load(path, {**STUDENT, "mean": [0.5], "std": [0.5]})
    export(net, "vit_tiny_patch16_224", tmp_path, Preprocessing((16, 16)), CLASSES)
    with pytest.raises(ScratchvitError, match="has 5 classes, the student's data have 4"):
        Teacher.load(tmp_path / "model.safetensors", {**STUDENT, "classes": CLASSES[:4]})
    with pytest.raises(ScratchvitError, match="there is no"):
        Teacher.load(tmp_path / "nothing.safetensors", STUDENT)
