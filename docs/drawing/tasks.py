"""Networks of ordinary users: `benchmarks/results/tasks.json`."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drawing import dots, records, style

MODE, FIT, TUNED, PEER = "mode", "L2M, fit", "L2M, fit (v)", "laplace-torch, default"
SCALED, NOISE = "mode, temperature scaling (v)", "mode, noise of validation (v)"
COLOURS = {
    MODE: style.GREY,
    SCALED: style.GREEN,
    NOISE: style.GREEN,
    PEER: style.ORANGE,
    FIT: style.BLUE,
    TUNED: style.GREEN,
}
MARKERS = {MODE: "|", SCALED: "s", NOISE: "s", PEER: "D", FIT: "o", TUNED: "o"}
RIGHT = 0.86, 0.94


def pictures() -> dict[str, Figure]:
    return {
        "tasks-classifiers": classifiers(),
        "tasks-regressions": regressions(),
        "tasks-coverage": coverage(),
    }


def classifiers() -> Figure:
    wins = {
        m: records.text("tasks", "classifiers, NLL", m, "less than the mode") for m in (FIT, PEER)
    }
    title = (
        f"Without validation data fit predicts better than the network on {wins[FIT]} classifiers, "
        f"laplace-torch's default on {wins[PEER]}"
    )
    found = _overview("NLL of classifiers", (SCALED, PEER, FIT, TUNED))
    alone = _overview("NLL of classifiers", (MODE,))
    ratios = {
        task: {m: v / alone[task][MODE] for m, v in row.items()} for task, row in found.items()
    }
    made, ax = _plot(title, ratios, "NLL over that of the network alone, less is better", "log")
    ax.axvline(1, color=style.GREY, linestyle=":")
    _decimals(ax, (0.5, 0.7, 1, 2, 4, 8))
    return made


def regressions() -> Figure:
    wins = records.text("tasks", "regressions, NLL", FIT, "less than the mode")
    title = f"Without validation data fit predicts better than the network on {wins} regressions"
    found = _overview("NLL of regressions", (MODE, NOISE, PEER, FIT, TUNED))
    made, ax = _plot(title, found, "NLL on test data, less is better", "symlog")
    ax.set_xscale("symlog", linthresh=1)
    _decimals(ax, (0, 0.5, 1, 3, 10, 50))
    return made


def coverage() -> Figure:
    spans = {m: records.text("tasks", "regressions, NLL", m, "covered") for m in (MODE, TUNED)}
    title = (
        f"90% intervals of fit with validation data hold {spans[TUNED]} of the targets, "
        f"those of the network alone {spans[MODE]}"
    )
    found = _overview("90% intervals' coverage", (MODE, PEER, FIT, TUNED))
    made, ax = _plot(title, found, "share of test targets in the 90% interval", "linear")
    ax.axvspan(*RIGHT, color=style.GREEN, alpha=0.12)
    return made


def _overview(heading: str, methods) -> dict[str, dict[str, float]]:
    """For each task the means of these methods, without those that did not run."""
    rows = {task: row[0] for task, row in records.record("tasks")["tables"][heading].items()}
    return {
        task: {m: row[m] for m in methods if not np.isnan(row.get(m, np.nan))}
        for task, row in rows.items()
    }


def _plot(title, found, axis, scale) -> tuple[Figure, Axes]:
    methods = list(dict.fromkeys(method for row in found.values() for method in row))
    rows = [
        dots.Row(task, {m: (v, 0.0, COLOURS[m]) for m, v in row.items()})
        for task, row in found.items()
    ]
    return dots.series(
        title, rows, axis, {m: (COLOURS[m], MARKERS[m]) for m in methods}, scale=scale
    )


def _decimals(ax: Axes, ticks) -> None:
    low, high = ax.get_xlim()
    inside = [tick for tick in ticks if low <= tick <= high]
    ax.set_xticks(inside, [f"{tick:g}" for tick in inside])
    ax.minorticks_off()
