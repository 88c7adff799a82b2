"""What the tests of models share: images, a few steps of training, and the comparison with a peer.

Is a model of ours the same function as a peer's? Weights, outputs, gradients and running statistics, name by name.
"""

import contextlib

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import nn
from tests.support.margins import SAMPLES, assert_close, named, rounding
from tests.support.peers import import_timm, randomise
from tests.support.seeds import moved, seeded


def images(*shape, seed=0):
    return seeded(seed).standard_normal(shape, dtype=np.float32)


def assert_learns(model, x, y, lr=0.02):
    """Three steps lower the loss; every parameter has a float32 gradient, in the end one that is not zero."""
    optimizer = sv.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for _ in range(3):
        model.set_generator(sv.random.Generator(moved(3)))             # the same masks, so that losses can be compared
        optimizer.zero_grad()
        logits = model(x)
        assert logits.shape == (len(x), model.config.num_classes) and logits.dtype == np.float32
        loss = sv.ops.cross_entropy(logits, y)
        loss.backward()
        assert all(p.grad is not None and p.grad.dtype == np.float32 for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    # Not from the first step on: a block passes no gradient to its convolutions while its last norm is zero. And not
    # under all masks: where every sample skips a block, that block gets no gradient.
    unreached = dict(model.named_parameters())
    for seed in range(4, 24):
        unreached = {name: p for name, p in unreached.items() if not sv.backend.asnumpy(p.grad).any()}
        if not unreached:
            break
        model.set_generator(sv.random.Generator(moved(seed)))
        model.zero_grad()
        sv.ops.cross_entropy(model(x), y).backward()
    assert list(unreached) == []


# --- a model and its peer -------------------------------------------------------------------------------------------


def full_size(*values):
    """Parameters of a test for which a model is so large that it runs with the slow ones."""
    return pytest.param(*values, marks=pytest.mark.slow)


def timms(name, **options):
    """A model of timm's, for `pair`."""
    timm = import_timm()
    return lambda: timm.create_model(name, **options)


def pair(make_peer, name, **options):
    """(ours, the peer), in evaluation mode: all tensors random, made there and loaded here with nothing missing.

    Neither draws initial weights first: of ViT-B alone that takes seconds. A ResNet's blocks add little each, as those
    of a trained one do: where 33 blocks added as much as was there, float32 differed by 2e-4 in training.
    """
    peer = random_peer(make_peer)
    with nn.init.without_weights():
        model = sv.create_model(name, **options)
    for _, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor.data = np.array(tensor.data)                     # room for what is loaded
    take(peer, model)
    for norm in last_norms(model):
        norm.weight.data *= np.float32(0.2)
    give(model, peer)
    return model.eval(), peer


def random_peer(make_peer):
    """A peer whose tensors are all random; it draws no initial weights first."""
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        peer = make_peer()
    return randomise(filled_tables(peer.to_empty(device="cpu")))


def filled_tables(peer):
    """The peer with what follows from its sizes and is in no state dict computed (timm's Swin), nothing left unset."""
    unset = {key for key, _ in peer.named_buffers()} - set(peer.state_dict())
    for path, module in peer.named_modules():
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
            unset -= {f"{path}.{key}" for key, _ in module.named_buffers()}
    assert unset == set()
    return peer


def take(peer, model):
    """The peer's state into ours, strictly."""
    assert model.load_state_dict({name: value.numpy() for name, value in peer.state_dict().items()}) == ([], [])


def give(model, peer):
    """Our state into the peer, strictly."""
    torch = pytest.importorskip("torch")
    peer.load_state_dict({name: torch.from_numpy(value) for name, value in model.state_dict().items()}, strict=True)


def last_norms(model):
    """Of the blocks of a ResNet (not of ResNetV2, whose last layer is a convolution)."""
    return [module.last_norm() for module in model.modules() if hasattr(module, "last_norm")]


def in_float64(model):
    """The model with its parameters and statistics in float64."""
    for _, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.dtype == np.float32:
            tensor.data = tensor.data.astype(np.float64)
    return model


# --- do they agree? -------------------------------------------------------------------------------------------------


def assert_same_model(model, peer, x, train=False, gradients=True, renamed=dict, idle=()):
    """Run both on images x, and compare what comes out, the gradient of every parameter, and running statistics.

    How far ours may be off, in float32 or in the float64 of `in_float64`, is computed for each array
    (support/margins.py). The peer runs in float64 in any case: where PyTorch adds thousands of terms in float32, it
    loses more digits than we do. Its statistics in float64 are such sums, so that they are compared with ours in
    float32 only; afterwards both have the peer's, so that what follows has one beginning.

    What goes back is random.
    gradients=False: only forward.
    renamed: {the peer's name: array} → {our name: array}
    idle: ends of names of parameters that change nothing, such as a number added to all keys. Of their gradients,
        which are zero, rounding inside of an op leaves more than that of its operands: their layer's bound counts.
    """
    torch = pytest.importorskip("torch")
    dtype = next(model.parameters()).dtype.type
    x = x.astype(dtype)
    model.train(train), peer.double().train(train).zero_grad()
    buffers = {name: buffer.data.copy() for name, buffer in model.named_buffers()}
    with torch.set_grad_enabled(gradients):
        theirs = as_list(peer(torch.from_numpy(x).double()))
    assert all(np.ptp(y.detach().numpy()) > 0 for y in theirs)  # or nothing would be compared
    rng = seeded(3)
    cotangents = [rng.standard_normal(tuple(y.shape)).astype(dtype) for y in theirs]

    def ours():
        put_back(model, buffers)
        model.zero_grad()
        with contextlib.nullcontext() if gradients else sv.no_grad():
            outputs = as_list(model(x))
        found = {f"output {number}": y for number, y in enumerate(outputs)}
        if dtype == np.float32:
            found |= {name: buffer.data for name, buffer in model.named_buffers()}
        if gradients:
            sum((y * v).sum() for y, v in zip(outputs, cotangents, strict=True)).backward()
            found |= {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
        return found

    expected = {f"output {number}": y for number, y in enumerate(theirs)}
    after = buffers | {name: b.numpy().copy() for name, b in peer.named_buffers() if name in buffers}
    if dtype == np.float32:
        expected |= after
    if gradients:
        sum((y * torch.from_numpy(v)).sum() for y, v in zip(theirs, cotangents)).backward()
        of_theirs = renamed({name: p.grad.numpy() for name, p in peer.named_parameters() if p.grad is not None})
        assert of_theirs.keys() == {name for name, _ in model.named_parameters()}
        expected |= {f"gradient of {name}": gradient for name, gradient in of_theirs.items()}
    few = model.num_parameters() < 10e6                         # a sample of a whole gradient takes time
    found, bounds = named(ours()), rounding(ours, dtype=dtype, samples=SAMPLES if few else 1)
    expected = named(expected)
    assert found.keys() == bounds.keys() == expected.keys()
    for name, bound in bounds.items():
        if name.endswith(idle):
            layer = name.rpartition(".")[0] + "."
            bound = max(bounds[other] for other in bounds if other.startswith(layer))
        assert_close(found[name], expected[name], bound, f"train={train}: {name}")
    put_back(model, {name: value.astype(buffers[name].dtype) for name, value in after.items()})
    model.zero_grad(), peer.zero_grad()                         # which frees half of the memory before the next run


def assert_same_cnn(model, peer, x, modes=(True, False)):
    """The same where there are ReLUs: outputs and statistics in float32, then everything in float64, train or not.

    A ReLU whose input is within rounding of 0 may be open in one and shut in the other, and its whole gradient comes
    or goes: PyTorch's own float32 gradients of ResNet-50 are up to 9% off its float64 ones, of R50x1 17%, and so are
    ours. In float64 there is no such input.
    """
    for train in modes:
        assert_same_model(model, peer, x, train, gradients=False)
    give(in_float64(model), peer.double())                      # so that both begin with the same statistics
    for train in modes:
        assert_same_model(model, peer, x, train)


def put_back(model, buffers):
    """Give the model's buffers the values that they had."""
    for name, buffer in model.named_buffers():
        buffer.data = buffers[name].copy()


def open_relus(model, peer):
    """Shift what goes into the ReLUs of both above 0, so that gradients can be compared in float32.

    Not that of a last norm, which is small beside a sum that is positive already. Statistics become those of the last
    batch, as another mean would shift activations back.
    """
    last = {id(norm) for norm in last_norms(model)}
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm) and id(module) not in last:
            module.bias.assign(8 + module.bias.numpy())
    for module in (*model.modules(), *peer.modules()):
        if hasattr(module, "momentum"):
            module.momentum = 1.0
    give(model, peer)
    return model, peer


def as_list(outputs):
    outputs = getattr(outputs, "logits", outputs)               # Hugging Face's
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]
