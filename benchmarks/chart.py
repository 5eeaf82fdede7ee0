"""Draw the main tables of ``store.py``, whole runs with 64 at once, as SVG, from the JSON file that ``--json`` wrote.

The same figures give the same bytes. "power" on tmpfs is left out, for nothing there outlives a power cut.
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
from matplotlib.lines import Line2D

MAIN = re.compile(r'64 at once, durability "(\w+)", (.*)')
INK, FAINT = "#222222", "#d8d8d8"
# A colour (of Okabe and Ito, whom anyone can tell apart) and a shape for each kind of way.
KINDS = {
    "threadloom": ("#0072b2", "o"),
    "bare calls of the system: no locks, no events, no queue": ("#d55e00", "D"),
    "what one would take instead": ("#767676", "s"),
}


def kind(way: str) -> tuple[str, str]:
    """Return the colour and the shape of a way."""
    ours, bare, peers = KINDS.values()
    if way.startswith("threadloom"):
        return ours
    return bare if way.startswith(("os calls", "the same in C")) else peers


def draw(store: dict[str, Any]) -> Figure:
    """Return the picture: a panel for each place and durability, and a line in it for each way."""
    panels = [(*found.groups(), table["rows"]) for table in store["tables"] if (found := MAIN.search(table["title"]))]
    panels = [panel for panel in panels if panel[:2] != ("power", "tmpfs")]
    heights = [len(rows) + 1 for _, _, rows in panels]
    figure = Figure(figsize=(9, 0.26 * sum(heights) + 1.9), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (durability, place, rows) in zip(axes, panels, strict=True):
        axis.set_title(f'"{durability}", {place}', loc="left", fontsize=10, fontweight="bold", color=INK)
        panel(axis, rows)
    axes[0].text(1.02, 1.04, "threadloom: times as fast", transform=axes[0].transAxes, fontsize=8.5, color=INK)
    axes[-1].set_xlabel("milliseconds a run of 11 operations, 64 runs at once (log scale: left is faster)", color=INK)
    shapes = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=name)
        for name, (colour, marker) in KINDS.items()
    ]
    figure.legend(handles=shapes, loc="outside upper left", ncols=3, frameon=False, fontsize=8.5, labelcolor=INK)
    system = f"{store['machine']['processors']} processors, Python {store['versions']['python']}"
    figure.supxlabel(f"{store['made_at'][:10]}, {system}", x=0.99, ha="right", fontsize=7.5, color=INK)
    return figure


def panel(axis: Axes, rows: list[dict[str, Any]]) -> None:
    """Draw the ways of one table, the first on top."""
    for place, row in enumerate(rows):
        colour, marker = kind(row["name"])
        milliseconds = row["each"] * 1e3
        axis.plot(milliseconds, place, color=colour, marker=marker, markersize=7, linestyle="")
        told = f"{milliseconds:.2g}"
        axis.annotate(told, (milliseconds, place), (7, 0), textcoords="offset points", va="center", fontsize=8.5)
        if ratio := row.get("ratio"):
            spread = f"{ratio['median']:.2g}  ({ratio['least']:.2g} to {ratio['most']:.2g})"
            axis.text(1.02, place, spread, transform=axis.get_yaxis_transform(), va="center", fontsize=8.5, color=INK)
    axis.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=9, color=INK)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xscale("log")
    axis.margins(x=0.1)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.tick_params(length=0)
    axis.tick_params(which="minor", length=0)
    axis.grid(color=FAINT, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[:].set_visible(False)


def main() -> None:
    """Read the figures and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, help="what --json wrote")
    parser.add_argument("picture", type=Path, help="the SVG file to write")
    options = parser.parse_args()
    store = json.loads(options.figures.read_text())["store"]
    # Text stays text, and names within the file come from the salt and not from chance.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "threadloom"})
    draw(store).savefig(options.picture, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
