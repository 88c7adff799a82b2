"""MixUp and CutMix: pixels and targets as timm's on the same draws, the draws as they should be distributed."""

import numpy as np
import pytest
import scipy.stats

from scratchvit import ops
from scratchvit.backend import array_module, asarray, asnumpy
from scratchvit.data.mixing import Mix
from scratchvit.errors import ScratchvitError
from tests.support import strict_array
from tests.support.augment_samples import CHANCE
from tests.support.margins import assert_close, ulps
from tests.support.peers import import_timm
from tests.support.seeds import seeded

MODES = ("batch", "pair", "elem")
SETTINGS = [
    {"mixup_alpha": 0.8},
    {"cutmix_alpha": 1.0},
    {"mixup_alpha": 0.8, "cutmix_alpha": 1.0},
    {"mixup_alpha": 0.2, "cutmix_alpha": 1.5, "prob": 0.6, "switch_prob": 0.3, "label_smoothing": 0.1},
]


def batch(size, classes=5, shape=(3, 9, 12), seed=0):
    rng = seeded(seed)
    return rng.standard_normal((size, *shape), dtype=np.float32), rng.integers(0, classes, size)


def mixed(mix, images, labels, seed=0):
    """On the device in use, and back."""
    x, targets = mix(asarray(images), asarray(labels), seeded(seed))
    return asnumpy(x), asnumpy(targets)


class Recorded:
    """A generator that keeps what it gave, in timm's precision, to be given again under the names of np.random."""

    def __init__(self, seed):
        self._rng = seeded(seed)

    def random(self, n):
        numbers = self._rng.random(n)
        if hasattr(self, "switch"):
            self.prob = numbers
        else:
            self.switch = numbers
        return numbers

    def beta(self, a, b):
        assert np.array_equal(a, b)
        self.alpha = a
        self.lam = self._rng.beta(a, b).astype(np.float32).astype(np.float64)
        return self.lam

    def integers(self, low, high, size):
        self.centres = self._rng.integers(low, high, size)
        return self.centres

    def replay(self, monkeypatch, mix):
        """Let timm draw the same. It asks for the centres of boxes only where there is one."""
        of_batch = mix.mode == "batch"
        both = mix.mixup_alpha > 0 and mix.cutmix_alpha > 0
        order = [self.prob, self.switch] if of_batch else [self.switch, self.prob]
        numbers = iter(order if both else [self.prob])
        is_cut = self.switch < mix.switch_prob if both else np.full(len(self.lam), mix.cutmix_alpha > 0)
        centres = iter(self.centres[is_cut & (self.prob < mix.prob)].ravel().tolist())
        monkeypatch.setattr(np.random, "rand", lambda n=None: next(numbers)[0 if n is None else slice(n)])
        monkeypatch.setattr(np.random, "beta", lambda a, b, size=None: self.lam[0 if size is None else slice(size)])
        monkeypatch.setattr(np.random, "randint", lambda low, high, size=None: next(centres))
        return centres


def by_timm(torch, timm_mixup, theirs, images, labels):
    """Mixup.__call__ without its check that the batch is even, which only its pairs need."""
    x = torch.tensor(images)
    if theirs.mode == "pair" or len(x) % 2 == 0:
        return theirs(x, torch.tensor(labels))
    share = theirs._mix_elem(x) if theirs.mode == "elem" else theirs._mix_batch(x)
    return x, timm_mixup.mixup_target(torch.tensor(labels), theirs.num_classes, share, theirs.label_smoothing)


@pytest.mark.parity
@pytest.mark.parametrize("settings", SETTINGS, ids=["mixup", "cutmix", "both", "all options"])
@pytest.mark.parametrize(("mode", "size"), [(mode, 8) for mode in MODES] + [("batch", 7), ("elem", 7), ("elem", 1)])
def test_as_in_timm(monkeypatch, mode, size, settings):
    import_timm()
    torch, timm_mixup = pytest.importorskip("torch"), pytest.importorskip("timm.data.mixup")
    mix = Mix(num_classes=5, mode=mode, **settings)
    theirs = timm_mixup.Mixup(**{"label_smoothing": 0.0, "mixup_alpha": 0.0, **settings}, mode=mode, num_classes=5)
    changed = 0
    for seed in range(20):
        images, labels = batch(size, seed=seed)
        draws = Recorded(seed)
        x, targets = mix(images, labels, draws)
        with monkeypatch.context() as patch:
            centres = draws.replay(patch, mix)
            expected, expected_targets = by_timm(torch, timm_mixup, theirs, images, labels)
        assert next(centres, None) is None          # all of them were asked for
        if size == 1:       # timm mixes a picture with itself, λx + (1 - λ)x, and so do we: both round
            assert_close(x, expected, ulps(expected, 2))
        else:
            np.testing.assert_array_equal(x, expected.numpy())
        assert_close(targets, expected_targets, ulps(1.0, 4))
        changed += not np.array_equal(x, images)
    assert changed >= 8 or size == 1


def by_a_loop(mix, images, labels, draws):
    """The papers' formulas, a picture and a pixel at a time: (mixed images, targets) in float64."""
    size, (H, W) = len(images), images.shape[2:]
    x, y = images.astype(np.float64), np.eye(mix.num_classes)[labels]
    y = (1 - mix.label_smoothing) * y + mix.label_smoothing / mix.num_classes
    out, targets = x.copy(), y.copy()
    for i in range(size):
        j = size - 1 - i
        k = {"batch": 0, "pair": min(i, j), "elem": i}[mix.mode]        # the draws that count for it
        if draws.prob[k] >= mix.prob:
            continue
        cut = draws.switch[k] < mix.switch_prob if mix.mixup_alpha and mix.cutmix_alpha else mix.cutmix_alpha > 0
        assert draws.alpha[k] == (mix.cutmix_alpha if cut else mix.mixup_alpha)
        lam = draws.lam[k]
        if cut:
            (y0, x0), height, width = draws.centres[k], int(H * (1 - lam) ** 0.5), int(W * (1 - lam) ** 0.5)
            inside = [
                (r, c)
                for r in range(H)
                for c in range(W)
                if -(height // 2) <= r - y0 < height - height // 2 and -(width // 2) <= c - x0 < width - width // 2
            ]
            for r, c in inside:
                out[i, :, r, c] = x[j, :, r, c]
            lam = 1 - len(inside) / (H * W)
        else:
            out[i] = lam * x[i] + (1 - lam) * x[j]
        targets[i] = lam * y[i] + (1 - lam) * y[j]
    return out, targets


@pytest.mark.parametrize("settings", SETTINGS, ids=["mixup", "cutmix", "both", "all options"])
@pytest.mark.parametrize("size", [1, 6, 7])
@pytest.mark.parametrize("mode", MODES)
def test_as_a_loop_over_pixels(device, mode, size, settings):
    mix = Mix(num_classes=5, mode=mode, **settings)
    for seed in range(8):
        images, labels = batch(size, seed=seed)
        draws = Recorded(seed)
        x, targets = (asnumpy(array) for array in mix(asarray(images), asarray(labels), draws))
        expected, expected_targets = by_a_loop(mix, images, labels, draws)
        assert len(draws.lam) == {"batch": 1, "pair": (size + 1) // 2, "elem": size}[mode]
        assert_close(x, expected, ulps(images, 3), "images")       # λ, 1 - λ, two products and their sum are rounded
        assert_close(targets, expected_targets, ulps(1.0, 4), "targets")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1, 2, 7])
def test_every_pixel_and_every_target_is_a_share_of_two(device, mode, size):
    """Pictures that are 1 where they are their own and 0 elsewhere: what is left of a picture is its mean."""
    mix = Mix(num_classes=2 * size, mixup_alpha=1.0, cutmix_alpha=1.0, mode=mode)
    for seed in range(10):
        own = np.arange(size)
        images = np.broadcast_to((own[:, None] == own)[:, :, None, None], (size, size, 6, 8)).astype(np.float32)
        x, targets = mixed(mix, images, own, seed)
        assert x.dtype == targets.dtype == np.float32
        shares = x.mean(axis=(2, 3))                # (size, size): of picture j in picture i
        assert_close(shares, targets[:, :size], ulps(1.0, 4))
        assert_close(targets.sum(axis=1), np.ones(size), ulps(1.0, 2))
        assert not targets[:, size:].any()
        mirrored = own != own[::-1]
        elsewhere = (own[:, None] != own) & (own[:, None] != own[::-1])
        assert not shares[elsewhere].any()
        assert_close(shares[~mirrored, ~mirrored], np.ones(size % 2), ulps(1.0, 4))
        if mode == "pair":
            np.testing.assert_array_equal(shares, shares[::-1, ::-1])
        if mode == "batch":
            assert len(set(shares.diagonal()[mirrored])) <= 1


def test_smoothed_targets_sum_to_one(device):
    mix = Mix(num_classes=5, mixup_alpha=0.4, cutmix_alpha=1.0, mode="elem", label_smoothing=0.1)
    _, targets = mixed(mix, *batch(64))
    assert_close(targets.sum(axis=1), np.ones(64), ulps(1.0, 8))
    assert_close(targets.min(), 0.1 / 5, ulps(0.1 / 5, 4))


def test_nothing_is_read_back_and_the_images_stay(device):
    images, labels = batch(6)
    x, y = asarray(images), asarray(labels)
    mix = Mix(num_classes=5, mixup_alpha=0.8, cutmix_alpha=1.0, mode="elem", prob=0.5)
    with strict_array.no_transfers():
        out, targets = mix(x, y, seeded(0))
        loss = ops.cross_entropy(out.sum(axis=(2, 3)) @ array_module(x).ones((3, 5), dtype=np.float32), targets)
    assert np.isfinite(loss.item()) and not np.array_equal(asnumpy(out), images)
    np.testing.assert_array_equal(asnumpy(x), images)


def test_the_seed_decides(device):
    mix = Mix(num_classes=5, mixup_alpha=0.8, cutmix_alpha=1.0, mode="elem")
    first, again, other = (mixed(mix, *batch(6), seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first[0], other[0])


# --- distributions ---

N = 4000


def own_shares(**settings):
    """λ of each of N pictures of 64×64, as their targets tell it."""
    mix = Mix(num_classes=2, mode="elem", **settings)
    images, labels = np.zeros((N, 1, 64, 64), np.float32), np.arange(N) >= N // 2     # a picture's mirror is the other
    _, targets = mix(images, labels.astype(int), seeded(0))
    return np.where(labels, targets[:, 1], targets[:, 0])


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_mixup_draws_from_beta(alpha):
    shares = own_shares(mixup_alpha=alpha)
    assert scipy.stats.kstest(shares, scipy.stats.beta(alpha, alpha).cdf).pvalue > CHANCE
    assert scipy.stats.kstest(shares, scipy.stats.beta(1.5 * alpha, 1.5 * alpha).cdf).pvalue < CHANCE


def test_cutmix_boxes_have_their_place_anywhere():
    """λ uniform gives sides s = √(1 - λ) the density 2s. With its centre anywhere in 0 … 1, a side of length s has
    s - s²/4 of it inside on average, so the mean share cut out is ∫ 2s (s - s²/4)² ds."""
    s = np.linspace(0, 1, 100_001)
    left = 1 - np.trapezoid(2 * s * (s - s * s / 4) ** 2, s)
    shares = own_shares(cutmix_alpha=1.0)
    error = 5 * shares.std() / np.sqrt(N)
    # A side is rounded down, half a pixel of 64 on average, which leaves a picture up to 0.012 more.
    assert left - error < shares.mean() < left + 0.012 + error


def test_boxes_fall_everywhere_alike():
    """A corner is in a box of sides s with probability (s/2)², the middle with s²: with density 2s, 1/8 and 1/2."""
    mix = Mix(num_classes=2, mode="elem", cutmix_alpha=1.0)
    images = np.broadcast_to((np.arange(N) < N // 2)[:, None, None, None], (N, 1, 16, 64)).astype(np.float32)
    x, _ = mix(images, np.zeros(N, int), seeded(0))
    often = (x != images).mean(axis=(0, 1))         # (16, 64)
    np.testing.assert_allclose(often[::15, ::63], 1 / 8, atol=0.03)     # five standard deviations
    np.testing.assert_allclose(often[7:9, 31:33], 1 / 2, atol=0.05)     # sides are rounded down


def test_as_often_as_asked():
    untouched = own_shares(mixup_alpha=1.0, prob=0.3) == 1
    assert scipy.stats.binomtest(int(untouched.sum()), N, 0.7).pvalue > CHANCE

    mix = Mix(num_classes=2, mode="elem", mixup_alpha=1.0, cutmix_alpha=1.0, switch_prob=0.2)
    images = np.concatenate([np.zeros((N // 2, 1, 16, 16)), np.ones((N // 2, 1, 16, 16))]).astype(np.float32)
    x, _ = mix(images, np.zeros(N, int), seeded(0))
    is_cut = ((x == 0) | (x == 1)).all(axis=(1, 2, 3))
    assert scipy.stats.binomtest(int(is_cut.sum()), N, 0.2).pvalue > CHANCE


@pytest.mark.parametrize("label", [-1, 5])
def test_labels_of_no_class_are_refused(label):
    images, labels = batch(4)
    labels[2] = label
    with pytest.raises(ScratchvitError, match=rf"labels .*{label}.* are not all among the 5 classes 0…4"):
        Mix(num_classes=5, mixup_alpha=1.0)(images, labels, seeded(0))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "one of them positive, not 0.0 and 0.0"),
        ({"mixup_alpha": -1.0, "cutmix_alpha": 1.0}, "must not be negative"),
        ({"mixup_alpha": float("nan")}, "not nan"),
        ({"mixup_alpha": 1.0, "prob": 1.5}, "prob is a probability"),
        ({"mixup_alpha": 1.0, "switch_prob": -0.5}, "switch_prob is a probability"),
        ({"mixup_alpha": 1.0, "label_smoothing": 1.0}, r"\[0, 1\), not 1.0"),
        ({"mixup_alpha": 1.0, "mode": "half"}, '"batch", "pair" or "elem", not \'half\''),
        ({"mixup_alpha": 1.0, "num_classes": 0}, "num_classes must be positive"),
    ],
)
def test_settings_that_make_no_sense(settings, says):
    with pytest.raises(ScratchvitError, match=says):
        Mix(**{"num_classes": 5, **settings})
