"""Draw the main table of ``store.py``, whole runs with 64 at once, from the JSON file that ``--json`` wrote, as SVG.

The same figures give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS, PEER, LIMIT, INK = "#0072b2", "#b8b8b8", "#e69f00", "#222222"  # of Okabe and Ito, told apart by anyone
MAIN = re.compile(r'64 at once, durability "(?P<durability>\w+)", (?P<place>.*)')


def draw(tables: list[dict[str, Any]], made_at: str, machine: dict[str, Any]) -> Figure:
    """Return the picture: a panel for each place and durability, a bar for each way."""
    panels = [(found, table["rows"]) for table in tables if (found := MAIN.search(table["title"]))]
    heights = [len(rows) + 1.6 for _, rows in panels]
    figure = Figure(figsize=(8.6, 0.27 * sum(heights) + 1.3), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (found, rows) in zip(axes, panels, strict=True):
        panel(axis, f'durability "{found["durability"]}", {found["place"]}', rows)
    axes[-1].set_xlabel("milliseconds of the clock for a run of 11 operations, log scale: less is better", color=INK)
    figure.suptitle("Whole runs, 64 at once", x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
    told = f"{made_at[:10]}, {machine['processors']} processors. Behind x: how many times as fast threadloom is."
    figure.supxlabel(
        f"Medians of rounds in turn, with their extremes. {told}", x=0.012, ha="left", fontsize=8, color=INK
    )
    return figure


def panel(axis: Axes, title: str, rows: list[dict[str, Any]]) -> None:
    """Draw the ways of one table, the first on top."""
    for place, row in enumerate(rows):
        milliseconds = row["each"] * 1e3
        colour = OURS if row["name"].startswith("threadloom") else LIMIT if is_limit(row["name"]) else PEER
        axis.barh(place, milliseconds, height=0.72, color=colour)
        ratio = f"   x {row['ratio']['median']:.2g}" if "ratio" in row else ""
        axis.annotate(
            f"{milliseconds:.2g} ms{ratio}",
            (milliseconds, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=INK,
        )
    axis.set_title(title, loc="left", fontsize=10, color=INK)
    axis.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=9, color=INK)
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axis.margins(x=0.12)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)


def is_limit(name: str) -> bool:
    """Whether a way is the bare calls of the system, which keep no promise of ours."""
    return name.startswith(("os calls", "the same in C"))


def main() -> None:
    """Read the figures and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, help="what --json wrote")
    parser.add_argument("picture", type=Path, help="the SVG file to write")
    options = parser.parse_args()
    store = json.loads(options.figures.read_text())["store"]
    # Text stays text, ids come from a salt and not from chance, and no date is noted.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "threadloom", "font.family": "sans-serif"})
    figure = draw(store["tables"], store["made_at"], store["machine"])
    figure.savefig(options.picture, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
