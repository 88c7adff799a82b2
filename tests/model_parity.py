"""Is a model of ours the same function as a peer's? Weights, logits, gradients and running statistics, name by name."""

import numpy as np
import pytest

import scratchvit as sv

LOGITS, GRADIENTS = 1e-4, 1e-3      # largest difference, as a share of the largest entry


def assert_same_model(model, peer, x, logits=LOGITS, gradients=GRADIENTS):
    """Give the peer our weights (strict), run both on images x (B, C, H, W), and compare all that comes out.

    The mode, train or eval, is the model's; the loss is cross-entropy against the classes 0, 1, …
    """
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(value) for name, value in model.state_dict().items()}
    peer.load_state_dict(state, strict=True)
    peer.train(model.training)
    y = np.arange(len(x))

    ours, theirs = model(x), peer(torch.from_numpy(x))
    sv.ops.cross_entropy(ours, y).backward()
    torch.nn.functional.cross_entropy(theirs, torch.from_numpy(y)).backward()
    assert_close(ours.numpy(), theirs.detach().numpy(), logits, "logits")
    their_gradients = {name: p.grad.numpy() for name, p in peer.named_parameters() if p.grad is not None}
    assert their_gradients.keys() == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, their_gradients[name], gradients, f"gradient of {name}")
    their_buffers = dict(peer.named_buffers())
    for name, buffer in model.named_buffers():
        assert_close(buffer.numpy(), their_buffers[name].numpy(), logits, name)
    for name, value in peer.state_dict().items():           # and back: theirs loads here with nothing missing
        state[name] = value.numpy()
    model.load_state_dict(state, strict=True)


def assert_close(ours, theirs, tolerance, what):
    """The largest difference is at most `tolerance` of the largest entry."""
    scale = np.abs(theirs).max() or 1
    difference = np.abs(ours - theirs).max() / scale
    assert difference <= tolerance, f"{what}: {difference:.1e} of the largest entry"
