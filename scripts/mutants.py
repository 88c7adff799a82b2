"""The small errors that mutation_check.py puts into the package."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """An error: in `file` of the package, `instead` in place of `text`, which stands there exactly once.

    tests: the modules in tests/ that are most likely to catch it.
    on_gpu: whether they run with --device gpu on tests/fakegpu; the quick part, which runs no CUDA, is then left out.
    """

    name: str
    kind: str
    file: str
    text: str
    instead: str
    tests: tuple[str, ...]
    on_gpu: bool = False


def kernel_mutant(name: str, kind: str, file: str, text: str, instead: str, test: str = "") -> Mutant:
    """An error in kernels/cuda/`file`.py, for the tests of that file, or of another one."""
    tests = (f"kernels/cuda/test_{test or file}.py",)
    return Mutant(f"CUDA: {name}", kind, f"kernels/cuda/{file}.py", text, instead, tests, on_gpu=True)


OPS = ("ops/test_op_values.py", "ops/test_ops.py")
NORMS, BATCH_NORM = ("ops/test_row_norms.py", "ops/test_ops.py"), ("ops/test_batch_norm.py", "ops/test_ops.py")
OPTIM, SWIN = ("optim/test_optim.py",), ("models/test_swin.py",)
BOXES, CRITERION = ("detection/test_boxes.py",), ("detection/test_criterion.py",)
STEPS, PARTS = ("training/test_non_finite.py",), ("training/test_accumulate.py",)
RANKS = ("detection/test_ranks.py", "detection/test_ranks_evaluate.py", "training/test_ranks_evaluate.py")
SUMS, ONE, RUNS = (
    (f"parallel/test_{name}.py",) for name in ("buckets", "equal_to_one_process", "runs_of_ranks")
)
PLAIN, PRODUCTS = ("kernels/test_plain.py",), ("kernels/test_products.py",)

MUTANTS = [
    # --- norms
    Mutant(
        "layer_norm: dx without x̂ mean(g x̂)", "a term dropped", "kernels/layer_norm.py",
        "            dx -= centred\n            dx *= r\n", "            dx *= r\n", NORMS,
    ),
    Mutant(
        "layer_norm and group_norm: eps outside the root", "eps misplaced", "kernels/layer_norm.py",
        "out += eps\n    xp.sqrt(out, out=out)\n", "xp.sqrt(out, out=out)\n    out += eps\n", NORMS,
    ),
    Mutant(
        "layer_norm: dx times 1 + 1e-4", "a factor 1 + 1e-4", "kernels/layer_norm.py",
        "dx -= mean_g\n            dx -= centred\n            dx *= r\n",
        "dx -= mean_g\n            dx -= centred\n            dx *= r * (1 + 1e-4)\n", NORMS,
    ),
    Mutant(
        "group_norm: dx with r² for r³", "a power", "kernels/group_norm.py",
        "* r * r * r / (c * S)", "* r * r / (c * S)", NORMS,
    ),
    Mutant(
        "batch_norm: running variance biased", "a term dropped", "kernels/batch_norm.py",
        "(running_var, var * (n / (n - 1)))", "(running_var, var)", BATCH_NORM,
    ),
    Mutant(
        "batch_norm: dx without mean(g)", "a term dropped", "kernels/batch_norm.py",
        "            dx -= average\n", "", BATCH_NORM,
    ),
    Mutant(
        "frozen_batch_norm: eps outside the root", "eps misplaced", "kernels/batch_norm.py",
        "array_module(planes).sqrt(running_var + eps)", "(array_module(planes).sqrt(running_var) + eps)", BATCH_NORM,
    ),
    Mutant(
        "plain norms: dx without mean(g)", "a term dropped", "ops/norm.py",
        "r * (g - average(g) - x_hat * average(g * x_hat))", "r * (g - x_hat * average(g * x_hat))", PLAIN,
    ),
    # --- reductions, products, activations
    Mutant(
        "var: a degree of freedom too many", "a factor dropped", "ops/reduce.py",
        "share = 1 / degrees if", "share = 1 / (degrees + 1) if", OPS,
    ),
    Mutant(
        "mean: over the first axis only", "a wrong axis", "ops/reduce.py",
        "y = total(x, axes, keepdim) / n", "y = total(x, axes[:1], keepdim) / n", OPS,
    ),
    Mutant(
        "sums: the rows after the last whole block left out", "a term dropped", "kernels/sums.py",
        "    if rest:\n", "    if False:\n", ("ops/test_op_edges.py",),
    ),
    Mutant(
        "clip: the gradient of a limit goes to x too", "a term dropped", "ops/elementwise.py",
        "~(below | above)), x_shape)", "~above if max is not None else ~below), x_shape)",
        ("test_engine_edges.py", *OPS),
    ),
    Mutant(
        "max: equal entries get the whole gradient each", "a term dropped", "ops/reduce.py",
        " / chosen.sum(axis=axes, keepdims=True).astype(x.dtype)", "", OPS,
    ),
    Mutant(
        "linear: dx times 1 + 1e-4", "a factor 1 + 1e-4", "ops/linear.py",
        "product(dy, weight).reshape(x.shape)", "product(dy, weight * (1 + 1e-4)).reshape(x.shape)", OPS,
    ),
    Mutant(
        "products: the last part of a long inner axis left out", "a term dropped", "kernels/products.py",
        "for part in _parts(k)]))", "for part in list(_parts(k))[:-1]]))", PRODUCTS,
    ),
    Mutant(
        "products: a bias of columns from the first block", "a wrong axis", "kernels/products.py",
        "else bias[part]) for", "else bias[: part.stop - part.start]) for", PRODUCTS,
    ),
    Mutant(
        "gelu: leading coefficient times 1 + 1e-4", "a factor 1 + 1e-4", "kernels/gelu.py",
        "0.7978845308604411,", "0.7979643193135271,", OPS,
    ),
    Mutant(
        "gelu: √(2/π) of the tanh form times 1 + 1e-4", "a factor 1 + 1e-4", "kernels/gelu.py",
        "    s += -2 * _SQRT_2_PI\n", "    s += -2 * _SQRT_2_PI * (1 + 1e-4)\n", OPS,
    ),
    # --- attention
    Mutant(
        "softmax: dx without Σ p dy", "a term dropped", "ops/attention.py",
        "p * (dy - _sum_along(p * dy, dim))", "p * dy", OPS,
    ),
    Mutant(
        "log_softmax: dx sums the last axis", "a wrong axis", "ops/attention.py",
        "xp.exp(y) * _sum_along(dy, dim)", "xp.exp(y) * _sum_along(dy, -1)", OPS,
    ),
    Mutant(
        "attention: scale of d + 1", "off by one", "ops/attention.py",
        "scale = 1 / math.sqrt(q.shape[-1] or 1) if", "scale = 1 / math.sqrt(q.shape[-1] + 1) if", OPS,
    ),
    Mutant(
        "attention: scale times 1 + 1e-4", "a factor 1 + 1e-4", "ops/attention.py",
        "scale = 1 / math.sqrt(q.shape[-1] or 1) if", "scale = (1 + 1e-4) / math.sqrt(q.shape[-1]) if", OPS,
    ),
    Mutant(
        "attention: dk without the scale", "a factor dropped", "kernels/attention.py",
        "ds.swapaxes(-1, -2), scaled_q, out=dk", "ds.swapaxes(-1, -2), q, out=dk", OPS,
    ),
    Mutant(
        "attention in blocks: the previous result is not rescaled", "a term dropped", "kernels/attention_blocks.py",
        "                    out *= rescale\n", "", ("kernels/test_attention_blocks.py",),
    ),
    Mutant(
        "attention in blocks: probabilities not divided by their sum", "a factor dropped",
        "kernels/attention_blocks.py",
        "                        p /= total[at][..., i, :]\n", "", ("kernels/test_attention_blocks.py",),
    ),
    Mutant(
        "dropout: what is kept is not scaled", "a factor dropped", "kernels/dropout.py",
        "    values *= 1 / probability\n", "", OPS,
    ),
    Mutant(
        "drop_path: entries dropped instead of samples", "a wrong axis", "ops/attention.py",
        "(len(x), *(1,) * (x.ndim - 1))", "x.shape", OPS,
    ),
    Mutant(
        "plain attention: the row sums of P dP of one query", "a wrong axis", "ops/attention.py",
        "(y * dy).sum(axis=-1, keepdims=True)", "(y * dy).sum(axis=-2, keepdims=True)[..., :1]", PLAIN,
    ),
    # --- losses
    Mutant(
        "cross_entropy: smoothing over C - 1 classes", "off by one", "ops/loss.py",
        "b = row_weight * (smoothing / x.shape[1])", "b = row_weight * (smoothing / (x.shape[1] - 1))", OPS,
    ),
    Mutant(
        "cross_entropy: dx without the smoothing", "a term dropped", "ops/loss.py",
        "return one_hot + b if smoothing else one_hot", "return one_hot", OPS,
    ),
    Mutant(
        "cross_entropy: mean over rows, not weights", "a wrong divisor", "ops/loss.py",
        "rows[:, 0], 0), mass, q, row_weight.sum()", "rows[:, 0], 0), mass, q, counts.sum().astype(x.dtype)", OPS,
    ),
    Mutant(
        "smooth_l1_loss: β for β/2", "a factor", "ops/loss.py",
        "size - 0.5 * beta)", "size - beta)", OPS,
    ),
    # --- convolution, pooling, resizing
    Mutant(
        "conv2d: dbias of the first image", "a wrong axis", "ops/conv.py",
        "return total(dy, (0, *range(2, dy.ndim)), dtype=dtype)",
        "return total(dy, tuple(range(2, dy.ndim)), dtype=dtype)[0]", OPS,
    ),
    Mutant(
        "sliding windows: strides of the axes swapped", "a wrong axis", "kernels/sliding.py",
        "zip(starts, position, self.dilation, places, self.stride)",
        "zip(starts, position, self.dilation, places, self.stride[::-1])", OPS,
    ),
    Mutant(
        'padding="same": the greater half before', "off by one", "ops/sliding.py",
        "before.append(total // 2)\n        after.append(total - total // 2)",
        "before.append(total - total // 2)\n        after.append(total // 2)", OPS,
    ),
    Mutant(
        "depthwise: dx with the kernel not flipped", "a direction", "kernels/depthwise.py",
        "return depthwise(dy, flipped, None, back, groups)", "return depthwise(dy, weight, None, back, groups)", OPS,
    ),
    Mutant(
        "max_pool2d: of equal entries the last wins", "a comparison", "ops/pool.py",
        "better = candidate > y", "better = candidate >= y", OPS,
    ),
    Mutant(
        "avg_pool2d: padding after the image not counted", "off by one", "ops/pool.py",
        "(-padding, n + padding) if count_include_pad", "(-padding, n) if count_include_pad", OPS,
    ),
    Mutant(
        "interpolate: no half pixel", "a term dropped", "ops/resize.py",
        "step * (place + 0.5) - 0.5 ", "step * place ", OPS,
    ),
    Mutant(
        "interpolate: float64 out of float32", "a wrong dtype", "ops/resize.py",
        "y = xp.empty((len(planes), *size), dtype=x.dtype)", "y = xp.empty((len(planes), *size))", OPS,
    ),
    # --- initial weights, optimisers, schedules
    Mutant(
        "kaiming_uniform: without the slope", "a term dropped", "nn/init.py",
        "math.sqrt(6 / ((1 + a * a) * fans(shape)[0]))", "math.sqrt(6 / fans(shape)[0])", ("nn/test_nn.py",),
    ),
    Mutant(
        "Adam: second moment corrected a step late", "off by one", "kernels/updates.py",
        "math.sqrt(1 - n.beta2**steps)", "math.sqrt(1 - n.beta2 ** (steps + 1))", OPTIM,
    ),
    Mutant(
        "Adam: eps inside the root", "eps misplaced", "kernels/updates.py",
        "        xp.sqrt(v, out=scratch)\n        scratch += eps\n",
        "        xp.sqrt(v + eps, out=scratch)\n", OPTIM,
    ),
    Mutant(
        "AdamW: decay through the gradient", "a wrong branch", "optim/optimizers.py",
        "    decoupled = True\n", "    decoupled = False\n", OPTIM,
    ),
    Mutant(
        "SGD: Nesterov without the momentum", "a factor dropped", "kernels/updates.py",
        "direction += b * n.momentum", "direction += b", OPTIM,
    ),
    Mutant(
        "cosine schedule: ends a step early", "off by one", "optim/schedule.py",
        "max(1, self.total_steps - self.warmup_steps))", "max(1, self.total_steps - self.warmup_steps - 1))", OPTIM,
    ),
    Mutant(
        "EMA: share and decay exchanged", "a complement", "optim/ema.py",
        "share=1 - self.decay", "share=self.decay", OPTIM,
    ),
    # --- training steps
    Mutant(
        "step: buffers of a skipped step are not restored", "a wrong branch", "training/step.py",
        "updates.copy(rows, when=self.decision.skipped)", "updates.copy(rows, when=self.decision.made)", STEPS,
    ),
    Mutant(
        "step: a skipped one is in the sums of the epoch", "a term dropped", "training/loop.py",
        "self.meter.add(*noted, made=made)", "self.meter.add(*noted)", STEPS,
    ),
    Mutant(
        "optimiser: skipped steps stay counted", "a term dropped", "optim/optimizers.py",
        "slot.steps -= unmade - but", "slot.steps -= but", STEPS,
    ),
    Mutant(
        "run: saved without a look at its steps", "a term dropped", "training/loop.py",
        "            self.learn.look()\n", "            pass\n", STEPS,
    ),
    Mutant(
        "accumulate: parts count alike, whatever their size", "a wrong divisor", "training/step.py",
        "share = (part.stop - part.start) / self.whole", "share = 1 / len(self.parts)", PARTS,
    ),
    Mutant(
        "parts of a batch: divided by the objects of a part", "a wrong divisor", "detection/criterion.py",
        "copies * max(1, sum(objects.whole))", "copies * max(1, sum(objects.counts))", PARTS,
    ),
    Mutant(
        "parts of a batch: divided by the noised objects of a part", "a wrong divisor", "detection/criterion.py",
        "times * sum(objects.whole), 0, times", "times * sum(objects.counts), 0, times", PARTS,
    ),
    Mutant(
        "parts of a batch: a part counts as the whole", "a factor dropped", "detection/criterion.py",
        "np.array(x)[:, None] * share", "np.array(x)[:, None]", PARTS,
    ),
    # --- several processes
    Mutant(
        "ranks: images are padded to a rank's own", "a term dropped", "detection/data/batches.py",
        "self.pad_to, others", "self.pad_to", RANKS,
    ),
    Mutant(
        "ranks: a detector is evaluated by a rank's own objects", "a wrong divisor", "detection/task.py",
        "self.criterion.of_objects(outputs, objects)", "self.criterion(outputs, batch.targets)", RANKS,
    ),
    Mutant(
        "ranks: noised objects fill up to a rank's own", "a wrong branch", "detection/task.py",
        "max(objects.whole)", "max(objects.counts)", RANKS,
    ),
    Mutant(
        "ranks: an image has the noise of another", "an exchanged index", "random.py",
        "range(first, first + count)", "range(count)", RANKS,
    ),
    Mutant(
        "ranks: predictions in another order", "an exchanged index", "training/classification/task.py",
        "share_of(len(split), rank, size)", "share_of(len(split), size - 1 - rank, size)", RANKS,
    ),
    Mutant(
        "ranks: a leaf in a checkpoint is told too early", "a term dropped", "graph.py",
        "            leaves.extend(edge[0].inner_leaves)\n", "", ("test_complete_gradients.py",),
    ),
    Mutant(
        "ranks: sums begin in each rank's own order", "a wrong branch", "parallel/buckets.py",
        "for bucket in self._complete])[0]", "for bucket in self._complete])[self.ranks.rank]", SUMS,
    ),
    Mutant(
        "ranks: a missing gradient is that of the last step", "a term dropped", "parallel/buckets.py",
        "                view.fill(0)\n", "                pass\n", SUMS,
    ),
    Mutant(
        "ranks: sums begin with the first part of a batch", "an exchanged index", "training/step.py",
        "part is self.parts[-1] else", "part is self.parts[0] else", ONE,
    ),
    Mutant(
        "ranks: a loss counts 1 / N, however many images", "a wrong divisor", "training/step.py",
        "(part.stop - part.start) / self.whole", "(part.stop - part.start) / (self.parts[-1].stop * self.ranks.size)",
        ONE,
    ),
    Mutant(
        "ranks: dropout of the first rank for all", "an exchanged index", "training/step.py",
        "slice(start + part.start, start + part.stop)", "slice(part.start, part.stop)", ONE,
    ),
    Mutant(
        "ranks: a batch that was read but not used is lost", "a term dropped", "training/batches.py",
        "                loader.load_state_dict(place)\n", "", RUNS,
    ),
    Mutant(
        "ranks: a resumed meter has its sums on all of them", "a wrong branch", "training/state.py",
        "elif run.ranks.rank == 0:", "else:", RUNS,
    ),
    Mutant(
        "ranks: running statistics are summed", "a factor dropped", "training/agreement.py",
        "            buffer.data /= ranks.size\n", "", RUNS,
    ),
    # --- windows and boxes
    Mutant(
        "shifted windows: mask a row short", "off by one", "models/windows.py",
        "np.arange(n) >= n - s for", "np.arange(n) > n - s for", SWIN,
    ),
    Mutant(
        "shifted windows: rolled the other way", "a sign", "kernels/token_windows.py",
        "(-shift[0], -shift[1]), (0, 1)", "(shift[0], -shift[1]), (0, 1)", SWIN,
    ),
    Mutant(
        "relative position index: transposed", "a wrong axis", "models/windows.py",
        "index = number[:, None] - number + number[-1]", "index = number - number[:, None] + number[-1]", SWIN,
    ),
    Mutant(
        "GIoU: the box around is the common part", "a comparison", "detection/boxes.py",
        "around = _area(ops.minimum(a[..., :2], b[..., :2])", "around = _area(ops.maximum(a[..., :2], b[..., :2])",
        BOXES,
    ),
    Mutant(
        "GIoU's gradient: the union without its part of the common area", "a lost term", "detection/set_losses.py",
        "dI = one_by_U - dU", "dI = one_by_U", ("detection/test_set_losses.py",),
    ),
    Mutant(
        "box losses: queries without an object too", "a lost term", "detection/set_losses.py",
        "return masked(dboxes, matched[..., None])", "return dboxes", ("detection/test_set_losses.py",),
    ),
    Mutant(
        "DETR's criterion: no-object counts like an object", "a wrong divisor", "detection/criterion.py",
        "matched + self.eos_coef * others or 1", "matched + others or 1", CRITERION,
    ),
    Mutant(
        "DETR's criterion: GIoU loss per pair, not per object", "a wrong divisor", "detection/criterion.py",
        "num_boxes, num_boxes]", "num_boxes, max(1, pairs)]", CRITERION,
    ),
]
