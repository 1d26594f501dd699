"""When F can be trusted: `benchmarks/results/curvature.json`."""

import re

import numpy as np
from matplotlib.figure import Figure

from drawing import records, style

SERIES = {"F / GGN": (style.VERMILLION, "D"), "F / EF": (style.BLUE, "o")}
EPOCHS, BATCHES = "trained, all of the rate's way", "batch size"


def pictures() -> dict[str, Figure]:
    return {"curvature-epochs": epochs(), "curvature-batch": batches()}


def epochs() -> Figure:
    found = _ratios(EPOCHS)
    longest = max(found["F / EF"])
    title = records.claim(
        "F follows the empirical Fisher; of data learned by heart both fall below the curvature",
        found["F / GGN"][longest][0] < 0.5 < found["F / EF"][longest][0] < 1.5,
    )
    return _plot(title, found, "epochs of training")


def batches() -> Figure:
    found = _ratios(BATCHES)
    ratios = [value for value, _ in found["F / EF"].values()]
    title = records.claim("The smaller the batch, the closer is F", ratios == sorted(ratios))
    return _plot(title, found, "batch size, of 5,000 examples")


def _ratios(heading: str):
    return {
        column: {
            int(re.match(r"\d+", name)[0]): pair
            for name, pair in records.means("curvature", heading, column).items()
        }
        for column in SERIES
    }


def _plot(title, found, axis) -> Figure:
    made = style.figure(title, 4.4)
    ax = made.subplots()
    ax.axhline(1, color=style.GREY, linestyle=":")
    for column, points in found.items():
        colour, marker = SERIES[column]
        values, deviations = np.transpose(list(points.values()))
        ax.errorbar(list(points), values, deviations, **style.shape(marker, colour), label=column)
    ax.set(xscale="log", yscale="log", xlabel=axis, ylabel="ratio of sums, 1 is right")
    ticks = list(next(iter(found.values())))
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    low, high = ax.get_ylim()
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 1.5, 2, 3) if low < tick < high]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.legend(reverse=True)
    return made
