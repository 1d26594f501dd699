"""How all pictures look: a conclusion as title, few colours, text that a phone can show."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

WIDTH = 5.5  # inches; 390 pixels of a phone show 13 points of it as 12 pixels
BLUE, ORANGE, GREEN, PINK, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"
SKY, GREY, PALE, INK = "#56B4E9", "#6b6b6b", "#d9d9d9", "#222222"
LETTERS = 44  # of a title that a line has room for

SETTINGS = {
    "font.size": 12.5,
    "axes.titlesize": 12.5,
    "axes.labelsize": 12.5,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "legend.fontsize": 12,
    "figure.titlesize": 14,
    "figure.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "svg.hashsalt": "l2m_optax",  # the same file from the same data
}


def figure(title: str, height: float, width: float = WIDTH) -> Figure:
    """An empty figure; `title` is broken into lines."""
    mpl.rcParams.update(SETTINGS)
    made = Figure(figsize=(width, height), layout="constrained")
    lines = textwrap.fill(title, round(LETTERS * width / WIDTH))
    made.suptitle(lines, x=0.01, ha="left")
    return made


def shape(marker: str, colour: str) -> dict[str, Any]:
    """Squares are hollow and strokes are long, so that no dot hides another."""
    size = {"|": 14, "s": 9}.get(marker, 8)
    inside = "white" if marker == "s" else colour
    return {"marker": marker, "color": colour, "ms": size, "mew": 2, "mfc": inside}


def legend(made: Figure, entries: Mapping[str, tuple[str, str]]) -> None:
    """Below the axes: a colour and a marker for each name; a marker of "" is a patch of colour."""
    handles = [
        Line2D([], [], ls="", label=name, **shape(marker, colour))
        if marker
        else Patch(color=colour, label=name)
        for name, (colour, marker) in entries.items()
    ]
    columns = 2 if max(map(len, entries)) < 25 else 1
    made.legend(
        handles=handles,
        loc="outside lower left",
        ncols=columns,
        handletextpad=0.6,
        handlelength=0.9,
        columnspacing=1,
    )


def save(made: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    made.savefig(path, dpi=150, metadata=kept)
