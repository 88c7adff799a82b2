"""One step of every rank as a picture: phases, ops, and when sums of gradients overlap with the backward pass.

    mpiexec -n 2 scratchvit train --timeline --out runs/two --epochs 1
    python scripts/figures/timeline.py runs/two/timeline.json docs/figures/timeline.png

A row of bars for each track of a trace that `--timeline` has written (scratchvit/training/timeline.py).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from experiment import COLOURS, main

from scratchvit.errors import ScratchvitError
from scratchvit.inspect.figures import INK, sheet

IDLE = "#dddddd"
COLOUR_OF = {
    "next batch": IDLE, "forward": COLOURS[0], "backward": COLOURS[1], "update": COLOURS[2], "network": COLOURS[3],
    "wait for sums": IDLE, "wait for parameters": IDLE,
}
NARROW = 0.04           # of the width: a bar that is narrower has no room for its name


def draw() -> None:
    """Read the trace and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path, help="timeline.json of a run")
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    events, names = read(args.trace)
    tracks = sorted({(event["pid"], event["tid"]) for event in events})
    with sheet(args.picture, 1, 1, (10, 0.8 + 0.4 * len(tracks))) as axes:
        ax = axes[0, 0]
        width = max(event["ts"] + event["dur"] for event in events) / 1000
        for event in events:
            row = -tracks.index((event["pid"], event["tid"]))
            start, length = event["ts"] / 1000, event["dur"] / 1000
            colour = COLOUR_OF.get(event["name"]) or COLOUR_OF[event["cat"]]
            ax.barh(row, length, left=start, height=0.8, color=colour, linewidth=0)
            if event["cat"] != "forward" and event["cat"] != "backward" and length > NARROW * width:
                ax.text(start + length / 2, row, event["name"], ha="center", va="center", fontsize=8, color=INK)
        ax.set_yticks([-i for i in range(len(tracks))], [names[track] for track in tracks])
        ax.set_xlabel("ms")


def read(path: Path) -> tuple[list[dict[str, Any]], dict[tuple[int, int], str]]:
    """The bars of a trace, and the names of its tracks. Raises ScratchvitError for a file that is none."""
    try:
        events = json.loads(path.read_text("utf-8"))["traceEvents"]
        names = {
            (event["pid"], event["tid"]): f"rank {event['pid']}, {event['args']['name']}"
            for event in events if event["name"] == "thread_name"
        }
        return [event for event in events if event["ph"] == "X"], names
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ScratchvitError(f"{path} is no timeline of a run ({error!r}): train it with --timeline") from error


if __name__ == "__main__":
    main(draw)
