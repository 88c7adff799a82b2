"""summary.md: what failed, the targets, the tables. Made from the rows, so that it can be made at any time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.gpu_parts.part import Row, Setting

FASTEST = "fastest"


@dataclass(frozen=True)
class Target:
    """The largest ratio of our step's time to that of PyTorch's eager step in the same precision.

    way: of ours, "eager" or "replay"; FASTEST: whichever is faster.
    """

    case: str
    precision: str
    way: str
    most: float


# "What must be reached on an H200-class device": issue 17.
TARGETS = (
    Target("ViT D192 L6, 32²", "float32", "replay", 0.4), Target("ViT D192 L6, 32²", "float32", "eager", 1.2),
    Target("ViT-Ti/16, 224²", "float32", FASTEST, 0.95), Target("ViT-Ti/16, 224²", "TF32", FASTEST, 0.8),
    Target("ViT-Ti/16, 224²", "bf16", FASTEST, 0.7),
    Target("ViT-B/16, 224²", "TF32", FASTEST, 1.1), Target("ViT-B/16, 224²", "bf16", FASTEST, 1.2),
    Target("Swin-T, 224²", "float32", FASTEST, 1.0), Target("DETR-R18, 256²", "float32", FASTEST, 1.5),
    Target("ResNet-18, 224²", "float32", FASTEST, 2.0),
)
PYTORCH = (
    "PyTorch is in eager mode with models written in its own layers (scripts/gpu_parts/peers.py), "
    "scaled_dot_product_attention, AdamW as it comes, and its TF32 switches set as the precision says."
)
MOST_MEMORY = 1.1           # ours ÷ PyTorch's, at the peak of a step in float32


def summary(rows: Sequence[Row], setting: Setting) -> str:
    """The page, in Markdown."""
    sections = [head(rows, setting), failures(rows)]
    if any("side" in row for row in rows):
        sections += [steps(rows)] if setting.small else [targets(rows), steps(rows)]
    tables = [row for row in rows if "table" in row]
    return "\n".join([*sections, *map(micro_table, tables), everything(rows)])


def head(rows: Sequence[Row], setting: Setting) -> str:
    facts = {row["item"]: row for row in rows if row["part"] == "facts"}
    name = facts.get("device", {}).get("name", "no device")
    lines = [f"# {name}", ""]
    if setting.small:
        lines += ["**A rehearsal with the smallest sizes: it shows that everything runs. Its times mean nothing.**", "",
                  "So there is no table of targets.", ""]
    lines += [f"- {facts[item]['result']}" for item in ("versions", "nvidia-smi") if item in facts]
    return "\n".join([*lines, ""])


def failures(rows: Sequence[Row]) -> str:
    failed = [row for row in rows if row["ok"] is False]
    lines = [f"- {row['part']}, {row['item']}: {row['result']}" for row in failed] or ["Nothing."]
    return "\n".join(["## What failed", "", *lines, ""])


# --- training steps -------------------------------------------------------------------------------------------------


def targets(rows: Sequence[Row]) -> str:
    """Every target, what was found, and the verdict."""
    lines = ["| step | precision | ours | ratio to PyTorch eager | at most | |", "|---|---|---|---|---|---|"]
    for target in TARGETS:
        ours, theirs = found(rows, target), one(rows, "PyTorch", target.case, target.precision, "eager")
        ratio = ours["ms"] / theirs["ms"] if ours and theirs else None
        way = ours["way"] if ours else target.way
        lines.append(
            f"| {target.case} | {target.precision} | {way} | {number(ratio)} | {target.most} | "
            f"{verdict(ratio, target.most, missing(rows, target, theirs))} |"
        )
    cases = dict.fromkeys(target.case for target in TARGETS)
    for case in cases:
        sides = [one(rows, side, case, "float32", "eager") for side in ("ours", "PyTorch")]
        peaks = [row["peak_bytes"] for row in sides if row and row["peak_bytes"]]
        ratio = peaks[0] / peaks[1] if len(peaks) == 2 else None
        lines.append(f"| {case}, peak memory | float32 | eager | {number(ratio)} | {MOST_MEMORY} | "
                     f"{verdict(ratio, MOST_MEMORY, 'not measured')} |")
    return "\n".join(["## Targets", "", PYTORCH, "", *lines, ""])


def one(rows: Sequence[Row], side: str, case: str, precision: str, way: str) -> Row | None:
    """The measurement of a side, if there is one."""
    wanted = {"side": side, "case": case, "precision": precision, "way": way}
    return next((row for row in rows if "ms" in row and all(row.get(key) == of for key, of in wanted.items())), None)


def found(rows: Sequence[Row], target: Target) -> Row | None:
    """Our measurement that a target is about."""
    ways = ("eager", "replay") if target.way == FASTEST else (target.way,)
    measured = [row for way in ways if (row := one(rows, "ours", target.case, target.precision, way))]
    return min(measured, key=lambda row: row["ms"], default=None)


def missing(rows: Sequence[Row], target: Target, theirs: Row | None) -> str:
    """Why there is no ratio."""
    if not found(rows, target):
        return "not measured"
    return "" if theirs else "PyTorch was not measured"


def verdict(ratio: float | None, most: float, why_not: str) -> str:
    if ratio is None:
        return why_not
    return "reached" if ratio <= most else "**missed**"


def steps(rows: Sequence[Row]) -> str:
    """All measured steps. The host's time beside the step's says which of the two limits the speed."""
    lines = ["| | precision | way | ms a step | issued in ms | GiB |", "|---|---|---|---|---|---|"]
    for row in rows:
        if "side" in row and "ms" in row:
            memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.2f}"
            lines.append(f"| {row['case']}, {row['side']} | {row['precision']} | {row['way']} | {row['ms']:.3f} | "
                         f"{row['host_ms']:.3f} | {memory} |")
    return "\n".join(["## Training steps", "", *lines, ""])


# --- the rest -------------------------------------------------------------------------------------------------------


def micro_table(row: Row) -> str:
    """Microseconds by size and variant."""
    variants = list(dict.fromkeys(variant for of_size in row["table"].values() for variant in of_size))
    lines = [f"| µs | {' | '.join(variants)} |", "|---" * (len(variants) + 1) + "|"]
    for size, of_size in row["table"].items():
        lines.append(f"| {size} | {' | '.join(cells(of_size, variants))} |")
    return "\n".join([f"## {row['part']}: {row['item']}", "", *lines, ""])


def cells(of_size: dict[str, Any], variants: Iterable[str]) -> Iterator[str]:
    for variant in variants:
        times = of_size.get(variant, "")
        yield f"{times['us']:.1f}" if isinstance(times, dict) else str(times).replace("|", "/")


def everything(rows: Sequence[Row]) -> str:
    verdicts = {True: "passed", False: "**FAILED**", None: ""}
    lines = [f"| {row['part']} | {row['item']} | {verdicts[row['ok']]} | {row['result'].replace('|', '/')} |"
             for row in rows]
    return "\n".join(["## Everything", "", "| part | item | | |", "|---|---|---|---|", *lines, ""])


def number(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"
