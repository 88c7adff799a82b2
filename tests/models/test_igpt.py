"""iGPT and the pixel Transformer: sizes, that no pixel sees a later one, sampling, training."""

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import nn, ops
from scratchvit.backend import asarray, asnumpy
from scratchvit.costs import cost
from scratchvit.data.palette import histogram_bits
from scratchvit.errors import ScratchvitError
from scratchvit.models.igpt import even_palette, nearest_colors
from scratchvit.models.igpt_sample import sample
from scratchvit.training import TrainConfig, load_checkpoint, train
from scratchvit.training.classification import prepare
from scratchvit.training.classification.evaluate import evaluate, truth
from scratchvit.training.interrupt import Interrupted
from tests.support.margins import agree, assert_close, rounding, ulps
from tests.support.model_parity import assert_learns, images
from tests.support.runs import assert_same_run, stop_at
from tests.support.seeds import moved, seeded
from tests.support.strict_array import no_transfers

SIZES = {"img_size": (4, 5), "in_chans": 3, "num_colors": 7, "embed_dim": 16, "depth": 3, "num_heads": 2}
N, K = 20, 7


def igpt(seed=0, **options):
    """A small iGPT, every matrix of which has effect: fresh ones have a head of zeros."""
    model = sv.create_model("igpt_tiny", **{**SIZES, **options})
    rng = seeded(seed)
    for parameter in model.parameters():
        noise = rng.standard_normal(parameter.shape, dtype=np.float32)
        parameter.assign(noise / len(parameter) ** 0.5 if parameter.ndim == 2 else 1 + 0.1 * noise)
    return model.eval()


def some_tokens(count=2, seed=0, n=N):
    return seeded(seed).integers(0, K, (count, n))


# --- sizes ---


@pytest.mark.parametrize(
    ("name", "millions", "layers", "dim"),
    [("igpt_small", 76, 24, 512), ("igpt_medium", 455, 36, 1024), ("igpt_large", 1362, 48, 1536)],
)
def test_the_papers_sizes(name, millions, layers, dim):
    """§3.3 of the paper: 76 M, 455 M and 1.36 B parameters."""
    with nn.init.without_weights():
        model = sv.create_model(name)
    assert int(model.num_parameters() / 1e6) == millions
    assert (len(model.transformer.h), model.config.embed_dim, model.num_tokens) == (layers, dim, 1024)


def test_attention_to_pixels_takes_768_gib():
    """The course's figure: 48 layers, 16 heads, an image of 128×128."""
    with nn.init.without_weights():
        model = sv.create_model("igpt_large", img_size=128, num_colors=2)
    found = cost(model)
    assert (found.attention_bytes, found.tokens) == (768 * 2**30, 128 * 128)


def test_the_pixel_transformer_is_a_vit_of_patches_of_one_pixel():
    with nn.init.without_weights():
        found = cost(sv.create_model("pixel_transformer_tiny"))
    assert found.attention_bytes == 12 * 3 * 1025**2 * 4
    small = {"img_size": 5, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 4}
    model = sv.create_model("pixel_transformer_tiny", **small)
    vit = sv.create_model("vit_tiny_patch16_224", patch_size=1, **small)
    vit.load_state_dict(model.state_dict())
    x = images(3, 3, 5, 5)
    assert model.patch_embed.proj.weight.shape == (12, 3, 1, 1) and model.num_tokens == 26
    np.testing.assert_array_equal(model.eval()(x).numpy(), vit.eval()(x).numpy())
    assert_learns(model, x, np.array([0, 1, 3]))
    with pytest.raises(ScratchvitError, match=r"patch_size .* must be 1, not 2: use a vit_"):
        sv.create_model("pixel_transformer_tiny", patch_size=2)


# --- pixels ---


def test_a_pixel_gets_its_nearest_color(device):
    rng = seeded(0)
    palette, pixels = rng.standard_normal((7, 3), np.float32), rng.standard_normal((2, 500, 3), np.float32)
    expected = ((pixels[:, :, None] - palette) ** 2).sum(-1).argmin(-1)
    found = nearest_colors(asarray(pixels), asarray(palette))
    assert found.dtype == np.int64
    np.testing.assert_array_equal(asnumpy(found), expected)


def test_an_even_palette_reaches_from_black_to_white():
    assert even_palette(5, 1).ravel().tolist() == [-1, -0.5, 0, 0.5, 1]
    cube = even_palette(512, 3)
    assert cube.shape == (512, 3) and len(np.unique(cube, axis=0)) == 512 and set(np.unique(cube[:, 0])) == set(
        even_palette(8, 1).ravel()
    )
    odd = even_palette(7, 3)
    assert len(np.unique(odd, axis=0)) == 7 and odd[0].tolist() == [-1, -1, -1] and odd[-1].tolist() == [1, 1, 1]


def test_tokens_are_pixels_row_by_row(device):
    model = igpt()
    rows = some_tokens(3)
    pictures = asnumpy(model.palette.data)[rows].reshape(3, 4, 5, 3).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(asnumpy(model.tokens(pictures)), rows)
    np.testing.assert_array_equal(asnumpy(truth(model, pictures, np.zeros(3, int))), rows)


def test_a_pixel_is_guessed_from_those_before_it(device):
    model = igpt()
    tokens = some_tokens(1)
    logits = model.pixel_logits(tokens).numpy()
    assert logits.shape == (1, N, K) and logits.dtype == np.float32
    for changed in (0, 7, N - 1):
        other = tokens.copy()
        other[0, changed] = (other[0, changed] + 1) % K
        differs = np.abs(model.pixel_logits(other).numpy() - logits).max(axis=-1)[0] > 0
        assert differs.tolist() == [i > changed for i in range(N)]


def test_images_give_the_logits_of_their_tokens(device):
    model = igpt()
    x = images(2, 3, 4, 5)
    logits = model(x)
    assert logits.shape == (2, K, N)
    expected = model.pixel_logits(model.tokens(x)).numpy().transpose(0, 2, 1)
    np.testing.assert_array_equal(logits.numpy(), expected)


def test_it_learns(device):
    model = sv.create_model("igpt_tiny", **SIZES, proj_drop_rate=0.1, attn_drop_rate=0.1, pos_drop_rate=0.1)
    x = images(8, 3, 4, 5)
    optimizer = sv.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        model.set_generator(sv.random.Generator(moved(3)))
        optimizer.zero_grad()
        loss = ops.cross_entropy(model(x), truth(model, x, None))
        loss.backward()
        assert all(p.grad is not None and p.grad.dtype == np.float32 for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert_close(losses[0], np.log(K), ulps(np.log(K), 4))          # a head of zeros finds all colours alike
    assert losses[-1] < losses[0] - 0.01
    assert [name for name, p in model.named_parameters() if not asnumpy(p.grad).any()] == []


def test_a_classifier_looks_at_the_mean_of_all_pixels(device):
    model = igpt(num_classes=4)
    x = images(3, 3, 4, 5)
    features = model.layer_features(x)
    assert [f.shape for f in features] == [(3, 16)] * 4             # f^0 … f^3
    agree(lambda: model(x), ops.linear(features[-1], model.score.weight))
    assert_learns(model, x, np.array([0, 1, 3]))


def test_features_are_means_of_what_the_next_block_sees():
    model = igpt()
    x = images(2, 3, 4, 5)
    tokens = model.after_start(model.tokens(x))[:, :-1]
    states = [state.numpy() for state in model.transformer.states(tokens)]
    norms = [*(block.ln_1 for block in model.transformer.h), model.transformer.ln_f]
    expected = []
    for state, norm in zip(states, norms, strict=True):
        scale = norm.weight.numpy() / np.sqrt((state.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5)
        expected.append((state * scale).mean(axis=1))
    agree(lambda: model.layer_features(x), expected)


# --- sampling ---


@pytest.mark.parametrize("steps", [(1,) * N, (9, *(1,) * 11), (4, 1, 6, 9)], ids=str)
def test_the_cache_gives_the_logits_of_a_full_forward(device, steps):
    """Pixel by pixel, after a given half, and by several at a time."""
    model = igpt()
    tokens = some_tokens(3)
    expected, bound = model.pixel_logits(tokens).numpy(), rounding(lambda: model.pixel_logits(tokens))[""]
    inputs, caches, begin = model.after_start(tokens), model.key_value_caches(3), 0
    with sv.no_grad():
        for n in steps:
            found = model.lm_head(model.transformer(inputs[:, begin : begin + n], caches))
            assert_close(found, expected[:, begin : begin + n], bound)
            begin += n
    assert begin == N


def test_a_sample_without_chance_takes_the_likeliest(device):
    model = igpt()
    given = some_tokens(2, n=9)
    drawn = asnumpy(sample(model.train(), given, temperature=0))
    assert model.training and drawn.dtype == np.int64
    tokens = given
    for _ in range(9, N):       # each pixel by a forward over all before it
        longer = np.concatenate([tokens, np.zeros((2, 1), int)], axis=1)
        likeliest = model.eval().pixel_logits(longer).numpy()[:, -1].argmax(axis=-1)
        tokens = np.concatenate([tokens, likeliest[:, None]], axis=1)
    np.testing.assert_array_equal(drawn, tokens)


def test_a_sample_follows_its_seed_and_waits_for_nothing(device):
    model = igpt()
    given = asarray(some_tokens(4, n=6))
    with no_transfers():
        first = sample(model, given, rng=seeded(1))
    again, other = (asnumpy(sample(model, given, rng=seeded(seed))) for seed in (1, 2))
    first = asnumpy(first)
    np.testing.assert_array_equal(first, again)
    assert (first[:, :6] == asnumpy(given)).all() and (first != other).any() and 0 <= first.min() <= first.max() < K


def test_colors_are_drawn_as_often_as_the_model_says():
    model = igpt(img_size=(1, 2))
    model.lm_head.weight.assign(0.4 * model.lm_head.weight.numpy())         # so that no colour is too rare to be drawn
    count = 40_000
    nothing = np.zeros((count, 0), int)
    logits = model.pixel_logits(np.zeros((1, 1), int)).numpy()[0, 0].astype(np.float64)
    for temperature, top_k in ((1.0, None), (0.5, None), (1.0, 3)):
        kept = np.sort(logits)[-(top_k or K)]
        p = np.where(logits >= kept, np.exp(logits / temperature), 0)
        p /= p.sum()
        drawn = sample(model, nothing, temperature, top_k, seeded(0))[:, 0]
        shares = np.bincount(drawn, minlength=K) / count
        assert (np.abs(shares - p) <= 4.5 * np.sqrt(p * (1 - p) / count)).all()
        assert p.max() < 0.9 and (shares > 0).sum() == (p > 0).sum()


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda m: m(images(1, 3, 5, 4)), r"shape \(B, 3, 4, 5\), it was given \(1, 3, 5, 4\)"),
        (lambda m: m.pixel_logits(some_tokens(1, n=21)), "21 pixels is too long: this model's images have 20"),
        (lambda m: m.pixel_logits(np.array([[0, 7]])), r"0 … 6, not 0 … 7: encode the images with this model's own"),
        (lambda m: m.pixel_logits(np.array([[-1, 0]])), r"not -1 … 0"),
        (lambda m: sample(m, some_tokens(1, n=21)), "21 pixels is too long"),
        (lambda m: sample(m, np.array([[7]])), "0 … 6, not 7 … 7"),
        (lambda m: sample(m, some_tokens(1, n=2), temperature=-1), "temperature must be finite and at least 0, not -1"),
        (lambda m: sample(m, some_tokens(1, n=2), temperature=float("nan")), "temperature .* not nan"),
        (lambda m: sample(m, some_tokens(1, n=2), top_k=8), r"top_k must be from 1 to 7, the number of colours, not 8"),
        (lambda m: sample(igpt(num_classes=2), some_tokens(1, n=2)), "is a classifier and generates no pixels"),
        (lambda m: igpt(num_colors=1), "num_colors must be at least 2, not 1"),
        (lambda m: igpt(num_heads=3), "embed_dim 16 is not divisible by 3 heads"),
        (lambda m: igpt(proj_drop_rate=1.0), "proj_drop_rate is a probability"),
    ],
)
def test_what_does_not_fit_is_told(ask, says):
    with pytest.raises(ScratchvitError, match=says):
        ask(igpt())


# --- training ---

RUN = TrainConfig(
    data="digits", model="igpt_tiny", model_args={"num_colors": 17, "embed_dim": 16, "depth": 1, "num_heads": 2},
    epochs=2, batch_size=256, lr=0.02, warmup_epochs=0, save_every=2,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, and what came of it."""
    folder = tmp_path_factory.mktemp("igpt") / "run"
    return folder, train(RUN, folder, log=lambda line: None)


def test_training_is_about_pixels(run):
    folder, result = run
    saved = load_checkpoint(folder)
    assert saved.model_args == {**RUN.model_args, "img_size": 8, "in_chans": 1}
    greys = np.rint((saved.model["palette"].ravel() + 1) * 127.5)
    assert greys.tolist() == np.rint(np.arange(17) * (255 / 16)).tolist()   # what the digits have, from dark to bright
    assert saved.data["mean"] == [0.5] and saved.data["std"] == [0.5]

    history = saved.progress["history"]
    assert history[0]["val_loss"] < np.log(17) and history[-1]["val_loss"] < history[0]["val_loss"]
    assert 0.3 < result.test_accuracy < 1 and result.test_loss < 2.3
    assert result.test_predictions.labels.size == 0     # an answer to every pixel is not kept


def test_the_loss_of_a_run_is_that_of_a_pixel(run):
    folder, result = run
    model, saved = sv.training.checkpoint.model_from_checkpoint(folder)
    test = sv.data.load("digits").test
    x = sv.data.Normalize(saved.data["mean"], saved.data["std"])(test.images(np.arange(360)))
    tokens = asnumpy(model.tokens(x))
    np.testing.assert_array_equal(tokens, np.rint(test.images(np.arange(360)).reshape(360, 64) / (255 / 16)))

    def answers():
        logits = model.pixel_logits(tokens)
        return {"logits": logits, "loss": ops.cross_entropy(logits.transpose(1, 2), tokens)}

    with sv.no_grad():
        log_p = answers()["logits"].numpy().astype(np.float64)
        bounds = rounding(answers, samples=1)
    first, second = np.sort(log_p)[..., [-1, -2]].transpose(2, 0, 1)
    ties = (first - second < 2 * bounds["logits"]).mean()           # may be told either way
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    loss = -np.take_along_axis(log_p, tokens[..., None], -1).mean()
    assert_close(result.test_loss, loss, bounds["loss"])
    accuracy = (log_p.argmax(-1) == tokens).mean()
    assert_close(result.test_accuracy, accuracy, ties + ulps(1, 1))
    meter = evaluate(model, [(x[:100], None), (x[100:], None)])
    assert meter.images == 360
    assert_close(meter.loss, loss, bounds["loss"])


@pytest.mark.slow
def test_bits_per_pixel_fall_below_the_histograms(tmp_path):
    """Of held-out digits, after five epochs of a model of one block: it uses what stands beside and above a pixel."""
    config = RUN.replace(
        model_args={"num_colors": 17, "embed_dim": 32, "depth": 1, "num_heads": 4}, epochs=5, batch_size=64, lr=0.01,
        warmup_epochs=1, save_every=0,
    )
    result = train(config, tmp_path / "run", log=lambda line: None)
    splits = sv.data.load("digits")
    baseline = histogram_bits(splits.train, splits.test, load_checkpoint(result.checkpoint).model["palette"])
    assert result.test_loss / np.log(2) < baseline - 0.1


def test_the_best_epoch_is_the_one_of_the_least_loss(tmp_path):
    loop = prepare(RUN, tmp_path / "run")
    sure, careful = ({"val_loss": loss, "val_accuracy": share} for loss, share in ((2.0, 0.9), (1.9, 0.1)))
    assert loop.task.merit(careful) > loop.task.merit(sure)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(Interrupted):
            train(RUN, tmp_path / "run", log=lambda line: None)
    train(RUN, tmp_path / "run", resume=True, log=lambda line: None)
    assert_same_run(tmp_path / "run", run[0])


@pytest.mark.parametrize("settings", [{"mixup": 0.2}, {"cutmix": 1.0}, {"augment": "heavy1"}, {"teacher": "some"}])
def test_what_is_for_classes_is_refused(settings, tmp_path):
    with pytest.raises(ScratchvitError, match="igpt_tiny predicts pixels, not classes"):
        prepare(RUN.replace(**settings), tmp_path / "run")


def test_what_was_learned_from_pixels_is_fine_tuned_for_classes(run, tmp_path):
    """As §2.3: the same stack, with a new head on the mean of its last layer."""
    before = load_checkpoint(run[0]).model
    config = RUN.replace(
        model_args={**RUN.model_args, "num_classes": 10}, init=str(run[0] / "best.safetensors"), new_head=True
    )
    loop = prepare(config, tmp_path / "run")
    assert set(loop.loaded.left_out) == {"lm_head.weight"} and loop.loaded.as_drawn == ["score.weight"]
    found = loop.model.state_dict()
    assert all(np.array_equal(found[name], before[name]) for name in found if name != "score.weight")
    result = loop.run()
    assert result.test_loss < np.log(10) and result.test_predictions.labels.shape == (360,)
