"""Entropies of two kinds of inputs, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from l2m_optax import metrics
from l2m_optax._support.types import ArrayLike
from l2m_optax.metrics._arguments import require
from l2m_optax.plot._arguments import finite
from l2m_optax.plot._figure import BLUE, ORANGE, axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def entropy_histogram(
    in_distribution: ArrayLike, out_of_distribution: ArrayLike, *, ax: Axes | None = None
) -> Axes:
    """Entropies of two kinds of inputs, in the same 30 bins, each as shares of its own examples.

    Args:
      in_distribution: predictive entropies, such as ``classification(...).total``, in nats, shape
        (N,).
      out_of_distribution: entropies of inputs that are unlike the training data, shape (M,).
      ax: where to draw; a new figure by default.

    Returns:
      The axes.

    Raises:
      ImportError: if a figure is wanted and Matplotlib is missing.
      ValueError: if either is not a vector, empty, negative, or not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import plot
      >>> ax = plot.entropy_histogram(jnp.array([0.1, 0.2]), jnp.array([1.0, 0.9]))
      >>> ax.get_xlabel()
      'predictive entropy (nats)'
    """
    inside = _entropies("in_distribution", in_distribution)
    outside = _entropies("out_of_distribution", out_of_distribution)
    both = np.concatenate([inside, outside])
    area = metrics.auroc(both, np.arange(len(both)) >= len(inside))
    ax = axes(ax)
    edges = np.linspace(0.0, max(both.max(), np.finfo(np.float32).tiny), 31)
    for values, color, label in [
        (inside, BLUE, "in distribution"),
        (outside, ORANGE, f"out of distribution (AUROC {area:.3f})"),
    ]:
        share = np.histogram(values, edges)[0] / len(values)
        ax.stairs(share, edges, color=color, fill=True, alpha=0.35)
        ax.stairs(share, edges, color=color, linewidth=1.5, label=label)
    ax.set(xlabel="predictive entropy (nats)", ylabel="share of examples", ylim=(0, None))
    ax.set_xlim(0.0, edges[-1])
    ax.legend(frameon=False)
    return ax


def _entropies(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """A vector of entropies. Rounding may leave one slightly below 0; it becomes 0."""
    array = finite(name, values)
    filled = array.ndim == 1 and array.size
    require(filled, name, "shape (N,), not empty", array.shape, "pass one number an input")
    remedy = "pass entropies, not log-probabilities"
    require(array.min() >= -1e-5, name, "nothing below 0", f"{array.min():.4g}", remedy)
    return np.maximum(array, 0.0)
