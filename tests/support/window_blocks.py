"""What the tests of Swin and Swin V2 share: a block computed without windows, and its gradients by differences."""

import numpy as np
import scipy.special

import scratchvit as sv
from tests.support.margins import assert_close, rounding
from tests.support.model_parity import in_float64
from tests.support.seeds import seeded


def randomised(module, seed=0):
    """The module with parameters that leave none without effect, in evaluation mode.

    A matrix gives its inputs' average magnitude back: larger ones make sharp softmaxes, which magnify roundings.
    """
    rng = seeded(seed)
    for name, parameter in module.named_parameters():
        noise = rng.standard_normal(parameter.shape, dtype=np.float32)
        noise *= parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5
        parameter.assign(noise + (1 if "norm" in name and name.endswith("weight") else 0))
    return module.eval()


def axis_groups(n, m, shifted, rule="timm"):
    """For each place of an axis of n tokens and its padding: (window, side of the picture's end), without windows.

    A shifted axis begins at its token m // 2; what stands before comes after its end, and padding after that, or, where
    it is added before the shift, between the two. A token looks only at those of its window that do not stand beyond
    the place where all libraries draw the line: the last m // 2.
    """
    m, shift = m if rule == "torchvision" else min(n, m), m // 2 if shifted and n > m else 0
    padding = [None] * (-n % m)
    if rule == "timm":
        places = [*range(shift, n), *range(shift), *padding]
    else:
        places = [*range(shift, n), *padding, *range(shift)]
    return [(place, (i // m, i >= len(places) - shift)) for i, place in enumerate(places)]


def dense_block(block, x, window, shifted, rule="timm"):
    """The same block on maps x (B, H, W, D) with attention among all tokens at once, masked; computed in float64."""
    B, H, W, D = x.shape
    p = {name: value.astype(np.float64) for name, value in block.state_dict().items()}
    rows, columns = axis_groups(H, window[0], shifted, rule), axis_groups(W, window[1], shifted, rule)
    places = [(y, x_) for y, _ in rows for x_, _ in columns]
    groups = np.array([(*a, *b) for _, a in rows for _, b in columns])
    mask = (groups[:, None] == groups[None]).all(axis=-1)                   # (T, T), T tokens and padding
    offsets = np.array([[i, j] for i in range(len(rows)) for j in range(len(columns))])
    offsets = offsets[:, None] - offsets[None]                              # between places after the shift

    second = "attn.logit_scale" in p
    z = x.astype(np.float64)
    read = z if second else layer_norm(z, p, "norm1")
    tokens = np.stack([
        np.zeros((B, D)) if None in place else read[:, place[0], place[1]] for place in places
    ], axis=1)
    heads = block.attn.num_heads
    zero_k = {"attn.qkv.bias": np.concatenate([p["attn.q_bias"], np.zeros(D), p["attn.v_bias"]])} if second else {}
    qkv = linear(tokens, p | zero_k, "attn.qkv").reshape(B, len(places), 3, heads, D // heads)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)                                  # each (B, heads, T, d)
    if second:
        q, k = (a / np.maximum(np.linalg.norm(a, axis=-1, keepdims=True), 1e-12) for a in (q, k))
        scores = q @ k.swapaxes(-1, -2) * np.minimum(np.exp(p["attn.logit_scale"]), 100)
    else:
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(D // heads)
    scores = np.where(mask, scores + offset_bias(p, offsets, mask, block.window, second), -np.inf)
    attention = np.exp(scores - scores.max(axis=-1, keepdims=True))
    attention /= attention.sum(axis=-1, keepdims=True)
    mixed = linear((attention @ v).swapaxes(1, 2).reshape(B, len(places), D), p, "attn.proj")
    added = np.zeros_like(z)
    for i, place in enumerate(places):
        if None not in place:
            added[:, place[0], place[1]] = mixed[:, i]
    z = z + (layer_norm(added, p, "norm1") if second else added)
    hidden = linear(z if second else layer_norm(z, p, "norm2"), p, "mlp.fc1")
    hidden = hidden * scipy.special.ndtr(hidden)            # GELU
    out = linear(hidden, p, "mlp.fc2")
    return z + (layer_norm(out, p, "norm2") if second else out)


def offset_bias(p, offsets, mask, window, second):
    """(heads, T, T): the bias of every pair that may look at each other, from its offset."""
    m = np.array(window)
    near = np.where(mask[..., None], offsets, 0)
    if not second:
        row = (near[..., 0] + m[0] - 1) * (2 * m[1] - 1) + near[..., 1] + m[1] - 1
        return p["attn.relative_position_bias_table"][row].transpose(2, 0, 1)
    x = 8 * near / np.maximum(m - 1, 1)
    x = np.sign(x) * np.log2(1 + np.abs(x)) / np.log2(8)
    hidden = np.maximum(linear(x, p, "attn.cpb_mlp.0"), 0)
    return (16 / (1 + np.exp(-hidden @ p["attn.cpb_mlp.2.weight"].T))).transpose(2, 0, 1)


def linear(x, p, name):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def layer_norm(x, p, name):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def on_device(x):
    return sv.Tensor(x).data


def assert_gradients(module, x, step=1e-5):
    """Gradients of the input and of all parameters, along random directions, are those of central differences.

    A difference errs by the value's rounding over the step, and by less than what twice the step makes of it.
    """
    in_float64(module)
    rng = seeded(5)
    x = sv.Tensor(x.astype(np.float64), requires_grad=True)
    cotangent = on_device(rng.standard_normal(x.shape))

    def value():
        return (module(x) * cotangent).sum()

    module.zero_grad()
    value().backward()
    rounded = rounding(value, dtype=np.float64)[""] / step
    for name, tensor in (("x", x), *module.named_parameters()):
        direction = on_device(rng.standard_normal(tensor.shape))
        gradient = (sv.Tensor(tensor.grad) * direction).sum().item()
        start, ends = tensor.data, []
        for multiple in (1, -1, 2, -2):
            tensor.data = start + multiple * step * direction
            ends.append(value().item())
        tensor.data = start
        narrow, wide = (ends[0] - ends[1]) / (2 * step), (ends[2] - ends[3]) / (4 * step)
        assert_close(gradient, narrow, rounded + abs(wide - narrow), f"gradient of {name}")
