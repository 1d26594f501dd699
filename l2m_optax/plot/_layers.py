"""What the data say about each leaf of the parameters, next to the prior."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from l2m_optax._support.trees import broadcast
from l2m_optax.metrics._arguments import require
from l2m_optax.plot._arguments import finite
from l2m_optax.plot._figure import BLUE, INK, VERMILLION, axes, legend_above
from l2m_optax.posterior._posterior import Posterior, data_precision

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def posterior_layers(posterior: Posterior, *, ax: Axes | None = None) -> Axes:
    """What the data say about each leaf, next to what its prior says.

    Each leaf has a row: the median of the data's precision F, its middle 50% (thick) and 90%
    (thin), and the prior precision δ as a bar. Where F is below δ the posterior is mostly prior;
    the percentage on the right is the share of such entries. An entry that never had a gradient has
    F = 0, which a logarithmic axis cannot show. Fixed leaves, which have no posterior, and empty
    leaves are left out.

    Args:
      posterior: a `Posterior`.
      ax: where to draw; a new figure, as high as there are leaves, by default.

    Returns:
      The axes.

    Raises:
      ImportError: if a figure is wanted and Matplotlib is missing.
      ValueError: if the posterior is traced.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu={"w": jnp.array([0.1, 1.0])})
      >>> params = {"w": jnp.zeros(2)}
      >>> posterior = l2m.laplace(params, moment, num_data=100, batch_size=10)
      >>> [label.get_text() for label in l2m.plot.posterior_layers(posterior).get_yticklabels()]
      ['w (2)']
    """
    leaves = _leaves(posterior)
    expected, remedy = "a leaf with a second moment", "release some"
    require(leaves, "posterior", expected, "fixed leaves only", remedy)
    ax = axes(ax, height=1.5 + 0.32 * len(leaves))
    ax.set_xscale("log")
    _draw_precisions(ax, leaves)
    _annotate_shares(ax, leaves)
    sizes = [f"{leaf.name} ({leaf.precision.size})" for leaf in leaves]
    ax.set_yticks(np.arange(len(leaves)), sizes)
    ax.set(xlabel="precision (1 / parameter²)", ylim=(len(leaves) - 0.5, -0.5))
    legend_above(ax)
    return ax


class _Leaf(NamedTuple):
    """What is drawn of a leaf: its name, the data's precision F, and the prior's δ."""

    name: str
    precision: NDArray[np.float64]
    prior: float


def _leaves(posterior: Posterior) -> list[_Leaf]:
    """The leaves that are neither fixed nor empty."""
    data = data_precision(posterior)
    priors = jax.tree.leaves(broadcast(posterior.prior_precision, data))
    leaves = []
    for (path, f), prior in zip(jax.tree_util.tree_leaves_with_path(data), priors, strict=True):
        if f.size:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            delta = float(finite(f"δ of {name}", prior))
            leaves.append(_Leaf(name, finite(f"F of {name}", f), delta))
    return leaves


def _draw_precisions(ax: Axes, leaves: list[_Leaf]) -> None:
    """A row a leaf: quantiles of F, and a bar for δ."""
    rows = np.arange(len(leaves))
    shares = [0.05, 0.25, 0.5, 0.75, 0.95]
    low, quarter, median, three_quarters, high = np.transpose(
        [np.quantile(leaf.precision, shares) for leaf in leaves]
    )
    ax.hlines(rows, low, high, color=BLUE, linewidth=1, label="90% of F")
    ax.hlines(rows, quarter, three_quarters, color=BLUE, linewidth=5, alpha=0.5, label="50% of F")
    ax.plot(median, rows, "o", color=BLUE, label="median of F")
    priors = [leaf.prior for leaf in leaves]
    ax.plot(
        priors, rows, "|", color=VERMILLION, markersize=14, markeredgewidth=2.5, label="prior δ"
    )


def _annotate_shares(ax: Axes, leaves: list[_Leaf]) -> None:
    """On the right of each row, the share of entries whose F is below δ."""
    right = ax.get_yaxis_transform()
    for row, (_, f, prior) in enumerate(leaves):
        share = f"{np.mean(f < prior):.0%}"
        ax.annotate(share, (1.02, row), xycoords=right, va="center", color=INK)
    ax.annotate("F < δ", (1.02, 1.02), xycoords="axes fraction", color=INK)
