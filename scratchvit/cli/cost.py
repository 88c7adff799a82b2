"""`scratchvit cost`: parameters, multiply-adds and memory of a model, layer by layer, without running it."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence

from scratchvit import backend
from scratchvit.cli._options import Parser, add_device, add_model, positive
from scratchvit.cli._precision import add_precision
from scratchvit.cli._scaling import OPTIONS, add_scaling, is_asked, scaling_text
from scratchvit.cli._text import table
from scratchvit.costs.counting import Cost, OpCost, configured_shape, cost, readable_bytes
from scratchvit.costs.measured import MeasuredMemory, measured_memory
from scratchvit.costs.memory import PeakMemory, peak_memory
from scratchvit.files import counted
from scratchvit.models import create_model
from scratchvit.nn import Module, init
from scratchvit.precision import use_device

Row = tuple[str, ...]
DESCRIPTION = """\
Parameters, multiply-adds and memory of a model, from shapes alone. The model is not run, so this is quick for any size.
Only the memory that a batch needs on a GPU is measured, by running it there.

  scratchvit cost vit_tiny_patch16_224
  scratchvit cost vit_tiny_patch16_224 --batch-size 256 --device gpu
  scratchvit cost swin_tiny_patch4_window7_224 --img-size 448 --batch-size 16
  scratchvit cost pixel_transformer_tiny --img-size 128 --depth 48
  scratchvit cost vit_base_patch16_224 --bandwidth 25GB/s --latency 5us

multiply-adds: those of matrix products and convolutions. attention: number of entries of softmax(q kᵀ) over all heads
and windows, and their memory in float32. kept: memory of the activations that a training step saves for the backward of
this layer. The table is for one image, the text below it for a batch. Attention with more than 2²⁰ entries per head is
computed block by block and its matrix is never stored as a whole; then less is kept than the matrices would take.
With --precision bf16 or fp16, what is kept, and the memory of a batch, are those of a GPU that stores 16 bits; a CPU
stores float32 all the same.

With --bandwidth and --latency: how long a training step takes on several ranks instead, and what is lost by exchanging
gradients (docs/scaling.md has the formulas).
"""


def cost_table(argv: Sequence[str]) -> int:
    """Print the cost of each layer, and the memory that a batch needs."""
    parser = Parser(prog="scratchvit cost", usage="scratchvit cost MODEL [options]", description=DESCRIPTION)
    parser.add_argument("--batch-size", type=positive, default=1, metavar="SIZE", help="images per batch (default: 1)")
    parser.add_argument("--ops", action="store_true", help="a row for each op instead of each layer")
    add_device(parser)
    add_precision(parser)
    add_scaling(parser)
    add_model(parser, argv)
    options = parser.parse_strictly(argv)
    of_ranks = is_asked(parser, options)
    given = {key: value for key, value in vars(options).items() if key not in OPTIONS}
    name, device, batch_size, every_op, precision = (
        given.pop(each) for each in ("model", "device", "batch_size", "ops", "precision")
    )

    backend.use("cpu")                  # the weights are placeholders: NumPy arrays of stride 0
    with init.without_weights():
        model = create_model(name, **given)
    if of_ranks:
        backend.use(device)             # whose speed may be measured
        print(scaling_text(name, model, options))
        return 0
    found, peak = cost(model), peak_memory(model, batch_size=batch_size, precision=precision)
    print(f"{name}, an image of {'×'.join(map(str, configured_shape(model)))}\n")
    print(table(_ops(found) if every_op else _layers(model, found, peak)))
    if device == "cpu":
        print(f"\n{_batch(peak, precision)}\n{_of_the_cpu(peak)}")
        return 0
    use_device(device, precision)
    measured = measured_memory(create_model(name, **given), batch_size=batch_size, precision=precision)
    print(f"\n{_batch(measured, precision)}\n{_of_the_gpu(measured, peak)}")
    return 0


def _layers(model: Module, found: Cost, peak: PeakMemory) -> list[Row]:
    """A row for each layer of the model, in forward order; consecutive equal layers share one row."""
    sizes: Counter[str] = Counter()
    for path, parameter in model.named_parameters():
        sizes[layer_of(path)] += parameter.size
    kept: Counter[str] = Counter()
    for path, size in peak.kept.items():
        kept[layer_of(path)] += size // peak.batch_size
    rows: list[tuple[str, Row]] = []
    for layer in dict.fromkeys([*(layer_of(op.module) for op in found.layers), *sizes]):
        ops = [op for op in found.layers if layer_of(op.module) == layer]
        shape = "×".join(map(str, ops[-1].outputs[0][1:])) if ops else ""
        rows.append((layer or "between layers", (shape, *_figures(sizes[layer], ops, kept[layer]))))
    lines: list[Row] = [("layer", "out", "parameters", "multiply-adds", "attention", "", "kept")]
    for figures, alike in itertools.groupby(rows, key=lambda row: row[1]):
        first, *others = (layer for layer, _ in alike)
        lines.append((f"{first} … {others[-1].rpartition('.')[2]}, each" if others else first, *figures))
    return [*lines, ("total", "", *_figures(found.parameters, found.layers, sum(kept.values())))]


def layer_of(path: str) -> str:
    """The layer that a module belongs to: "blocks.0" for "blocks.0.attn.qkv", "patch_embed" for "patch_embed.proj".

    In a DETR's backbone the block number comes after another number: "backbone.0.body.layer1.0".
    """
    numbered = re.match(r"(?:backbone\.0\.body\.)?(?:[^.]+\.)*?\d+(?:\.blocks\.\d+)?(?=\.|$)", path)
    return numbered[0] if numbered else path.partition(".")[0]


def _figures(parameters: int, ops: Sequence[OpCost], kept: int) -> Row:
    macs, entries = (sum(getattr(op, what) for op in ops) for what in ("macs", "attention_entries"))
    return (
        f"{parameters:,}" if parameters else "",
        f"{macs / 1e6:,.1f} M" if macs else "",
        f"{entries:,}" if entries else "",
        readable_bytes(4 * entries) if entries else "",
        readable_bytes(kept) if kept else "",
    )


def _ops(found: Cost) -> list[Row]:
    """A row for each op, in forward order."""
    rows: list[Row] = [("module", "op", "in", "out", "multiply-adds", "attention")]
    for row in found.layers:
        shapes = (", ".join("×".join(map(str, shape)) for shape in some) for some in (row.inputs, row.outputs))
        entries = f"{row.attention_entries:,}" if row.attention_entries else ""
        rows.append((row.module, row.op, *shapes, f"{row.macs:,}" if row.macs else "", entries))
    return rows


def _batch(peak: PeakMemory | MeasuredMemory, precision: str) -> str:
    """The peak memory of a batch in inference and in training, as text."""
    size, measured = readable_bytes, ", measured on the GPU" if isinstance(peak, MeasuredMemory) else ""
    if peak.shadows and not measured:
        measured = ", as a GPU would store it"
    shadows = f"             {size(peak.shadows):>9}   of it: 16-bit copies of weights\n" if peak.shadows else ""
    return (
        f"memory for a batch of {counted(peak.batch_size, 'image')}, in {precision}{measured}\n"
        f"  weights    {size(peak.weights):>9}\n"
        f"  inference  {size(peak.inference):>9}   at its peak, weights included\n"
        f"  training   {size(peak.training):>9}   at its peak, weights included\n"
        f"             {size(peak.moments):>9}   of it: AdamW's moments\n{shadows}"
        f"             {size(peak.activations):>9}   of it: activations and gradients"
    )


def _of_the_cpu(peak: PeakMemory) -> str:
    return (
        f"The peak of training is in {peak.worst}.\n"
        "The process itself, Python and its libraries, needs about 100 MiB more."
    )


def _of_the_gpu(measured: MeasuredMemory, predicted: PeakMemory) -> str:
    return (
        f"  held       {readable_bytes(measured.held):>9}   by CuPy, which keeps freed memory for later arrays\n"
        "CUDA itself, its context and libraries, needs some hundred MiB more.\n"
        f"From shapes alone, as in the table, a step would need {readable_bytes(predicted.training)} at its peak."
    )
