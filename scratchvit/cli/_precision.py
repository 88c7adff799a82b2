"""The option --precision of commands that run a trained model, and what all commands print about a precision."""

from __future__ import annotations

import argparse

from scratchvit.precision import OF_A_RUN


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add --precision, with the choices of `scratchvit train`."""
    parser.add_argument(
        "--precision", choices=tuple(OF_A_RUN), default="float32",
        help="numbers of the model: float32; tf32, for products on GPUs; bf16 or fp16, activations in 16 bits "
        "(default: float32)",
    )


def precision_text(precision: str, device: str, scaling: str = "") -> str:
    """A precision that is not float32, as text; "" for float32. scaling: about loss scaling, for a run in fp16."""
    text = {
        "float32": "",
        "tf32": "tf32: float32, whose products are rounded to TF32",
        "bf16": "bf16: activations and products in bfloat16, weights in float32",
        "fp16": "fp16: activations and products in float16, weights in float32" + scaling,
    }[precision]
    is_rounded = device == "cpu" and precision in ("bf16", "fp16")
    return f"{text}; on a CPU, float32 is rounded to it, which is not faster but slower" if is_rounded else text
