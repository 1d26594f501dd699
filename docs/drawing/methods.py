"""Methods beside each other: a row for each, its colour says what it needs, a marker what data."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drawing import dots, records

Means = Mapping[str, tuple[float, float]]


def plot(
    title: str,
    found: Mapping[str, Means],
    axis: str,
    order: Means,
    *,
    most: bool = False,
    scale: str = "linear",
) -> tuple[Figure, Axes]:
    """Means and deviations of `found`, by data and method; the best of `order` is on top."""

    def worth(method: str) -> float:
        return -order[method][0] if most else order[method][0]

    rows = [
        dots.Row(
            method,
            {
                data: (*table[method], records.NEEDS[records.needs(method)])
                for data, table in found.items()
            },
        )
        for method in sorted(order, key=worth)
    ]
    markers = dict(zip(found, dots.MARKERS, strict=False))
    return dots.plot(title, rows, axis, records.colours(order), markers, scale=scale)
