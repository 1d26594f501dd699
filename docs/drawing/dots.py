"""Dot plots: each row has its name above the dots, so that a narrow screen has room for both."""

from collections.abc import Mapping
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drawing import style

ROW, MARGIN = 0.46, 1.0  # inches
MARKERS = ("o", "D", "^", "s")


class Row(NamedTuple):
    """A name, and for each marker a value, its deviation and its colour."""

    name: str
    dots: Mapping[str, tuple[float, float, str]]


def plot(
    title: str,
    rows: list[Row],
    axis: str,
    colours: Mapping[str, str],
    markers: Mapping[str, str],
    *,
    scale: str = "linear",
) -> tuple[Figure, Axes]:
    """Rows from top to bottom; a legend says what colours mean, and below what markers mean."""
    made, ax = _axes(title, rows, axis, len(colours) + len(markers), scale)
    for number, row in enumerate(rows):
        _draw(ax, -number, row, markers)
    squares = {name: (colour, "") for name, colour in colours.items()}
    style.legend(made, squares | {name: (style.GREY, marker) for name, marker in markers.items()})
    return made, ax


def series(
    title: str,
    rows: list[Row],
    axis: str,
    methods: Mapping[str, tuple[str, str]],
    *,
    scale: str = "linear",
) -> tuple[Figure, Axes]:
    """Rows whose dots are methods, each of a colour and a marker of its own."""
    made, ax = _axes(title, rows, axis, len(methods), scale)
    for number, row in enumerate(rows):
        _draw(ax, -number, row, {name: marker for name, (_, marker) in methods.items()})
    style.legend(made, methods)
    return made, ax


def _axes(title, rows, axis, entries, scale) -> tuple[Figure, Axes]:
    lines = len(title) / style.LETTERS + entries
    made = style.figure(title, MARGIN + 0.25 * lines + ROW * len(rows))
    ax = made.subplots()
    ax.set_xscale(scale)
    ax.set(ylim=(0.4 - len(rows), 0.8), yticks=[], xlabel=axis)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x", color=style.PALE, linewidth=0.6)
    ax.set_axisbelow(True)
    return made, ax


def _draw(ax: Axes, y: float, row: Row, markers: Mapping[str, str]) -> None:
    across = ax.get_yaxis_transform()
    ax.plot([0, 1], [y, y], color=style.PALE, linewidth=1, transform=across, zorder=0)
    ax.text(0, y + 0.18, row.name, transform=across, va="bottom", fontsize=11.5)
    for name, (value, deviation, colour) in row.dots.items():
        shape = style.shape(markers[name], colour)
        ax.errorbar(value, y, xerr=deviation or None, ls="", elinewidth=1.5, **shape)
