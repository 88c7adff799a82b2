"""The proof: one ViT, one set of weights, the same batches and AdamW, in PyTorch (timm) and here."""

import numpy as np
import pytest

from scratchvit import Tensor, ops, optim
from scratchvit.data import Loader, Normalize, load
from scratchvit.models import create_model
from tests.support.data_samples import SHARED
from tests.support.peers import import_timm
from tests.support.seeds import moved

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not (SHARED / "fashion-mnist").is_dir(), reason="no Fashion-MNIST in ../shared/data"),
]
SIZES = {"img_size": 28, "patch_size": 7, "in_chans": 1, "num_classes": 10} | {
    "embed_dim": 128, "depth": 6, "num_heads": 4,
}  # fmt: skip
STEPS, BATCH = 50, 32
DECAY, LR = 0.05, 1e-3


@pytest.fixture
def pair():
    """timm's model and ours with its weights."""
    timm, torch = import_timm(), pytest.importorskip("torch")
    torch.manual_seed(moved(0))
    theirs = timm.models.vision_transformer.VisionTransformer(**SIZES)
    ours = create_model("vit_tiny_patch16_224", **SIZES)
    ours.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    return theirs, ours


@pytest.fixture(scope="module")
def batches():
    train = load("fashion-mnist", data_dir=SHARED / "fashion-mnist").train
    loader = Loader(train.subset(range(STEPS * BATCH)), BATCH, Normalize((0.286,), (0.353,)), shuffle=True)
    return list(loader)


def test_logits_and_every_gradient_of_one_step(pair, batches):
    torch = pytest.importorskip("torch")
    theirs, ours = pair
    x, y = batches[0]
    expected = theirs(torch.tensor(x))
    torch.nn.functional.cross_entropy(expected, torch.tensor(y)).backward()
    logits = ours(Tensor(x))
    ops.cross_entropy(logits, y).backward()

    assert largest_difference(logits.numpy(), expected.detach().numpy()) < 1e-5
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        assert gradients[name].dtype == np.float32
        assert largest_difference(gradients.pop(name), parameter.grad.numpy()) < 1e-5, name
    assert not gradients


def test_fifty_losses(pair, batches):
    torch = pytest.importorskip("torch")
    theirs, ours = pair
    optimizer = optim.AdamW(optim.param_groups(ours, DECAY), lr=LR)
    exempt = theirs.no_weight_decay()
    parameters = dict(theirs.named_parameters())
    decayed = {name for name, p in parameters.items() if p.ndim > 1 and name not in exempt}
    reference = torch.optim.AdamW(
        [
            {"params": [parameters[name] for name in decayed], "weight_decay": DECAY},
            {"params": [p for name, p in parameters.items() if name not in decayed], "weight_decay": 0.0},
        ],
        lr=LR,
    )
    ours.train()
    losses = []
    for x, y in batches:
        reference.zero_grad()
        expected = torch.nn.functional.cross_entropy(theirs(torch.tensor(x)), torch.tensor(y))
        expected.backward()
        reference.step()

        optimizer.zero_grad()
        loss = ops.cross_entropy(ours(Tensor(x)), y)
        loss.backward()
        optimizer.step()
        losses.append((loss.item(), expected.item()))

    found, expected = np.array(losses).T
    assert len(losses) == STEPS and found[-1] < 0.7 * found[0]
    worst = np.abs(found / expected - 1)
    print(f"largest relative difference of a loss: {worst.max():.1e}")
    assert (worst < 1e-4).all(), f"step {worst.argmax()}: {found[worst.argmax()]} against {expected[worst.argmax()]}"


def largest_difference(found, expected):
    """Of any entry, relative to the largest entry."""
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()
