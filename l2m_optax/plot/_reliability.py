"""Accuracy against confidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np

from l2m_optax import metrics
from l2m_optax._support.types import ArrayLike
from l2m_optax.plot._arguments import require_untraced
from l2m_optax.plot._figure import BLUE, GREY, INK, VERMILLION, axes, legend_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def reliability_diagram(
    probabilities: ArrayLike, labels: ArrayLike, *, ax: Axes | None = None
) -> Axes:
    """Accuracy against confidence in 15 bins, from `metrics.reliability_curve`.

    Calibrated predictions lie on the diagonal, overconfident ones below it. The grey bars show the
    share of examples in each bin.

    Args:
      probabilities: class probabilities, shape (N, K).
      labels: integer labels, shape (N,).
      ax: where to draw; a new figure by default.

    Returns:
      The axes.

    Raises:
      ImportError: if a figure is wanted and Matplotlib is missing.
      TypeError: if `labels` are not integers.
      ValueError: as for `metrics.negative_log_likelihood`.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import plot
      >>> ax = plot.reliability_diagram(jnp.array([[0.7, 0.3]]), jnp.array([0]))
      >>> ax.get_xlabel()
      'confidence'

    Reference:
      DeGroot & Fienberg (1983); Guo et al., On calibration of modern neural networks (2017).
    """
    require_untraced(probabilities=probabilities, labels=labels)
    curve = jax.device_get(metrics.reliability_curve(probabilities, labels))
    error = metrics.expected_calibration_error(probabilities, labels)
    ax = axes(ax)
    width = 1.0 / curve.size.size
    left = width * np.arange(curve.size.size)
    share = curve.size / curve.size.sum()
    ax.bar(left, share, width, align="edge", color=GREY, alpha=0.5, label="share of examples")
    ax.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1, label="calibrated")
    confidence, accuracy = curve.confidence[curve.size > 0], curve.accuracy[curve.size > 0]
    ax.vlines(confidence, confidence, accuracy, color=VERMILLION, linewidth=2)
    label = f"accuracy (ECE {error:.3f})"
    ax.plot(curve.confidence, curve.accuracy, "o-", color=BLUE, markersize=5, label=label)
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
    legend_above(ax)
    return ax
