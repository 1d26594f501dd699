"""The mean loss of the predictions that are kept, by how many are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from l2m_optax import metrics
from l2m_optax._support.types import ArrayLike
from l2m_optax.plot._arguments import require_untraced
from l2m_optax.plot._figure import BLUE, INK, axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def risk_coverage(uncertainty: ArrayLike, losses: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """Mean loss of the least uncertain predictions, from `metrics.risk_coverage_curve`.

    A useful uncertainty gives a curve that rises: the predictions that are kept first have small
    losses. The dashed curve is the lowest possible one; it ranks predictions by their true losses.

    Args:
      uncertainty: any score that is higher where the prediction is less certain, shape (N,).
      losses: the loss of each prediction, shape (N,): 0 and 1 for right and wrong, say.
      ax: where to draw; a new figure by default.

    Returns:
      The axes.

    Raises:
      ImportError: if a figure is wanted and Matplotlib is missing.
      ValueError: as for `metrics.risk_coverage_curve`.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import plot
      >>> ax = plot.risk_coverage(jnp.array([0.1, 0.9]), jnp.array([0.0, 1.0]))
      >>> ax.get_ylabel()
      'risk (mean loss)'

    Reference:
      El-Yaniv & Wiener, On the foundations of noise-free selective classification (2010).
    """
    require_untraced(uncertainty=uncertainty, losses=losses)
    curve = metrics.risk_coverage_curve(uncertainty, losses)
    best = metrics.risk_coverage_curve(losses, losses)
    area = metrics.aurc(uncertainty, losses)
    ax = axes(ax)
    ax.plot(curve.coverage, curve.risk, color=BLUE, label=f"by uncertainty (AURC {area:.3g})")
    ax.plot(
        best.coverage, best.risk, color=INK, linestyle="--", linewidth=1, label="lowest possible"
    )
    ax.set(xlabel="coverage (share kept)", ylabel="risk (mean loss)", xlim=(0, 1))
    ax.legend(loc="upper left", frameon=False)
    return ax
