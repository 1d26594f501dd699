"""What all pictures share: colours, axes, a legend outside of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from l2m_optax._support.checks import complaint
from l2m_optax.metrics._arguments import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito, Color universal design (2008): told apart with any colour vision.
BLUE, ORANGE, VERMILLION = "#0072B2", "#E69F00", "#D55E00"
PALE_ORANGE, PALE_SKY = "#F7DDA8", "#A5D6F3"  # for areas
INK, GREY = "#333333", "#BBBBBB"
CYCLE = (BLUE, ORANGE, "#009E73", VERMILLION, "#CC79A7", "#56B4E9", INK)  # for any number of lines


def axes(ax: Axes | None, height: float = 3.6) -> Axes:
    """The given axes, or those of a new figure of this height in inches.

    Raises:
      ImportError: if a new figure is needed and Matplotlib is missing.
    """
    return _subplots(1, 1, (5.0, height))[0] if ax is None else ax


def four_axes(given: Sequence[Axes] | None) -> tuple[Axes, ...]:
    """The given axes, or those of a new figure, two beside two.

    Raises:
      ImportError: if a new figure is needed and Matplotlib is missing.
      ValueError: if others than four are given.
    """
    if given is None:
        return _subplots(2, 2, (9.0, 6.0))
    found = tuple(np.ravel(np.asarray(given, object)))
    require(len(found) == 4, "axes", "four of them", len(found), "plt.subplots(2, 2)[1]")
    return found


def _subplots(rows: int, columns: int, size: tuple[float, float]) -> tuple[Axes, ...]:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        remedy = "pip install 'l2m-optax[plot]'"
        message = complaint("matplotlib", "an installed package", "none", remedy)
        raise ImportError(message) from error
    found = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)[1]
    return tuple(found.ravel())


def legend_above(ax: Axes) -> None:
    """Put the legend above pictures in which no corner is empty."""
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, fontsize="small", frameon=False)
