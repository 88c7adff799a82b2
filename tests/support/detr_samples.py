"""What the tests of DETR and its successors compare: outputs, gradients, and those of the model in PyTorch."""

import contextlib

import numpy as np

import scratchvit as sv
from scratchvit import nn


def padding(*shown, size=(64, 96)):
    """A mask (B, *size), True outside the upper left (height, width) of each image."""
    mask = np.ones((len(shown), *size), bool)
    for image, (height, width) in zip(mask, shown):
        image[:height, :width] = False
    return mask


def answers(outputs):
    """All logits and boxes in a list, those of the first decoder layer first."""
    layers = [*outputs["aux_outputs"], outputs]
    return [layer[key] for layer in layers for key in ("pred_logits", "pred_boxes")]


def values(model, x, mask=None):
    with nn.module.evaluating(model):
        return [y.numpy() for y in answers(model(x, mask=mask))]


def module_of(name):
    """The module of a parameter. The embedding of queries, which say where attention looks, counts as a part of it."""
    return "transformer.decoder.layers.0.multihead_attn" if name == "query_embed.weight" else name.rpartition(".")[0]


def by_module(gradients, module_of=module_of):
    """{module: the gradients of its parameters in a row}.

    They are judged together, as some are nothing but noise beside the others: those of keys' biases, and those of the
    first decoder layer's queries and keys, where all values are alike. Where attention is nearly certain, gradients of
    queries and keys are small differences of large numbers, as a softmax's backward subtracts a mean.
    """
    rows = {}
    for name in sorted(gradients):
        rows.setdefault(module_of(name), []).append(np.ravel(gradients[name]))
    return {module: np.concatenate(row) for module, row in rows.items()}


def everything(model, x, mask, cotangents=None, module_of=module_of):
    """A detector's answers, and its running statistics, which are set back, or with cotangents its gradients."""
    before = {buffer: np.array(buffer.data) for _, buffer in model.named_buffers()}
    model.zero_grad()
    with contextlib.nullcontext() if cotangents else sv.no_grad():
        given = answers(model(x, mask=mask))
    statistics = {name: np.array(buffer.data) for name, buffer in model.named_buffers()}
    for buffer, data in before.items():
        buffer.data = data
    if not cotangents:
        return {"answers": given, "statistics": statistics}
    sum((y * v).sum() for y, v in zip(given, cotangents, strict=True)).backward()
    gradients = by_module({name: p.grad for name, p in model.named_parameters()}, module_of)
    return {"answers": given, "gradients": gradients}


def peers_gradients(peer, given, cotangents):
    """{name: gradient} of a peer that has given these answers."""
    sum((y * y.new_tensor(v)).sum() for y, v in zip(given, cotangents, strict=True)).backward()
    return {name: p.grad.numpy() for name, p in peer.named_parameters() if p.grad is not None}
