"""Quantities with units as options have them: "25GB/s", "100Gbit/s", "2us", "300TFLOP/s"."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping

SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0}
_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
BYTES_PER_SECOND = {
    **{f"{prefix}B/s": factor for prefix, factor in _DECIMAL.items()},
    **{f"{prefix}iB/s": 1024.0 ** (i + 1) for i, prefix in enumerate("KMGT")},
    **{f"{prefix}bit/s": factor / 8 for prefix, factor in _DECIMAL.items()},
}
FLOPS = {f"{prefix}FLOP/s": factor for prefix, factor in {**_DECIMAL, "P": 1e15}.items()}


def seconds(text: str) -> float:
    """Parse a time: "2us", "0.3s"."""
    return _quantity(text, SECONDS, "a time such as 2us, 0.5ms or 0.3s")


def bandwidth(text: str) -> float:
    """Parse a bandwidth, in bytes per second: "25GB/s", "100Gbit/s"."""
    if re.fullmatch(r"[\d.]+ *[kKMGT]?b(/s|ps)", text):
        raise argparse.ArgumentTypeError(f"{text!r} can mean bits or bytes: write Gbit/s or GB/s")
    return _quantity(text, BYTES_PER_SECOND, "a bandwidth such as 25GB/s or 100Gbit/s")


def flops(text: str) -> float:
    """Parse a speed of computing, in floating-point operations per second: "60TFLOP/s"."""
    return _quantity(text, FLOPS, "a speed such as 200GFLOP/s or 60TFLOP/s")


def _quantity(text: str, units: Mapping[str, float], what: str) -> float:
    found = re.fullmatch(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?) *([^\d\s.].*)?", text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"expected {what}, not {text!r}")
    if found[2] not in units:
        reason = f"{found[2]!r} is no unit of it" if found[2] else "the unit is missing"
        raise argparse.ArgumentTypeError(f"expected {what}, not {text!r}: {reason}")
    value = float(found[1]) * units[found[2]]
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f"must be greater than 0, not {text}")
    return value
