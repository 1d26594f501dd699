"""What all pictures share: colours, axes, a legend outside of the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from l2m_optax._support.checks import complaint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito, Color universal design (2008): told apart with any colour vision.
BLUE, ORANGE, VERMILLION = "#0072B2", "#E69F00", "#D55E00"
PALE_ORANGE, PALE_SKY = "#F7DDA8", "#A5D6F3"  # for areas
INK, GREY = "#333333", "#BBBBBB"


def axes(ax: Axes | None, height: float = 3.6) -> Axes:
    """The given axes, or those of a new figure of this height in inches.

    Raises:
      ImportError: if a new figure is needed and Matplotlib is missing.
    """
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        remedy = "pip install 'l2m-optax[plot]'"
        message = complaint("matplotlib", "an installed package", "none", remedy)
        raise ImportError(message) from error
    return plt.subplots(figsize=(5.0, height), layout="constrained")[1]


def legend_above(ax: Axes) -> None:
    """Put the legend above pictures in which no corner is empty."""
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, fontsize="small", frameon=False)
