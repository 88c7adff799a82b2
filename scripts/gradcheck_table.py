"""What gradcheck sees, and what PyTorch's sees: the table of docs/gradcheck.md.

    pip install torch==2.13.0
    python scripts/gradcheck_table.py                           # prints it: a few seconds
    python scripts/gradcheck_table.py --out docs/gradcheck.md   # puts it into the page, between its two marks

The ops are those of tests/support/backwards.py. Each runs from one source under `sv.gradcheck` and, as a
`torch.autograd.Function`, under `torch.autograd.gradcheck`, by default and with fast_mode=True.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.records import put_between  # noqa: E402
from tests.support.backwards import BROKEN, CAUGHT, MISSED, SOUND, verdict, verdict_of_torch  # noqa: E402

BEGIN, END = "<!-- made by scripts/gradcheck_table.py -->\n", "<!-- to here -->\n"
SEEDS = 200         # for each sound op


def make() -> str:
    """The table, in Markdown, with what it was made with."""
    rows = [
        (row, verdict(row)[0], verdict_of_torch(torch, row), verdict_of_torch(torch, row, fast_mode=True))
        for row in BROKEN
    ]
    lines = [
        f"On {datetime.date.today()}, with NumPy {np.__version__} and PyTorch {torch.__version__.split('+')[0]}, "
        "by `python scripts/gradcheck_table.py --out docs/gradcheck.md`.\n",
        "| a backward that is wrong by | `sv.gradcheck` | `torch.autograd.gradcheck` | its fast mode |",
        "|---|---|---|---|",
    ]
    for kind, group in itertools.groupby(rows, lambda row: row[0].kind):
        lines.append(f"| **{kind}** | | | |")
        lines += [f"| {row.name} | {' | '.join(verdicts)} |" for row, *verdicts in group]
    counts = [Counter(row[i] for row in rows)[CAUGHT] for i in (1, 2, 3)]
    lines.append(f"| **caught, of {len(rows)}** | {' | '.join(f'**{n}**' for n in counts)} |\n")
    alarms = sum(verdict(row, seed)[0] != MISSED for row in SOUND for seed in range(SEEDS))
    theirs = sum(verdict_of_torch(torch, row) != MISSED for row in SOUND)
    lines.append(
        f"Of {len(SOUND)} sound ops, `sv.gradcheck` refuses or warns of {alarms} in {len(SOUND) * SEEDS:,} runs "
        f"({SEEDS} seeds each), `torch.autograd.gradcheck` of {theirs} in {len(SOUND)}.\n"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the page to put the table into")
    args = parser.parse_args()
    table = make()
    if args.out is None:
        print(table)
        return
    page = put_between(args.out.read_text(encoding="utf-8"), BEGIN, END, table)
    args.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
