"""The proof: one ViT, one set of weights, the same batches and AdamW, in PyTorch (timm) and here."""

import numpy as np
import pytest

from scratchvit import Tensor, ops, optim
from scratchvit.data import Loader, Normalize, load
from scratchvit.models import create_model
from tests.support.data_samples import SHARED
from tests.support.margins import agree, assert_all_close, rounding
from tests.support.peers import import_timm
from tests.support.seeds import moved

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not (SHARED / "fashion-mnist").is_dir(), reason="no Fashion-MNIST in ../shared/data"),
]
SIZES = {"img_size": 28, "patch_size": 7, "in_chans": 1, "num_classes": 10} | {
    "embed_dim": 128, "depth": 4, "num_heads": 4,
}
STEPS, BATCH = 50, 16
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
    x, y, _ = batches[0]
    logits = theirs.double()(torch.tensor(x).double())
    torch.nn.functional.cross_entropy(logits, torch.tensor(y)).backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}

    def step():
        ours.zero_grad()
        logits = ours(Tensor(x))
        ops.cross_entropy(logits, y).backward()
        return {"logits": logits, **{name: p.grad for name, p in ours.named_parameters()}}

    assert all(value.dtype == np.float32 for value in step().values())
    agree(step, {"logits": logits, **expected})


def test_fifty_losses(pair, batches):
    torch = pytest.importorskip("torch")
    theirs, ours = pair
    first = ours.state_dict()
    theirs.double()
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
    expected = []
    for x, y, _ in batches:
        reference.zero_grad()
        loss = torch.nn.functional.cross_entropy(theirs(torch.tensor(x).double()), torch.tensor(y))
        loss.backward()
        reference.step()
        expected.append(loss.item())

    def steps():
        ours.train().load_state_dict(first)
        optimizer = optim.AdamW(optim.param_groups(ours, DECAY), lr=LR)
        losses = []
        for x, y, _ in batches:
            optimizer.zero_grad()
            loss = ops.cross_entropy(ours(Tensor(x)), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    def in_tens(losses):
        """Roundings add up, so that later steps may differ by more."""
        return {f"from step {i}": np.array(losses[i : i + 10]) for i in range(0, STEPS, 10)}

    found = steps()
    assert len(found) == STEPS and found[-1] < 0.7 * found[0]
    assert_all_close(in_tens(found), in_tens(expected), rounding(lambda: in_tens(steps()), samples=1), "losses")
