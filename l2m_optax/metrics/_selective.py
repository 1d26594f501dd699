"""Risk against coverage: how far dropping uncertain predictions lowers the mean loss."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from l2m_optax._support.types import Array, ArrayLike
from l2m_optax.metrics._arguments import (
    as_statistics,
    require,
    require_equal_shapes,
    require_numbers,
)


class RiskCoverageCurve(NamedTuple):
    """The mean loss of the least uncertain predictions, by how many of them are kept.

    Attributes:
      coverage: shares kept, 1/N to 1, shape (N,).
      risk: mean loss of those kept, in the unit of the losses, shape (N,).
    """

    coverage: Array
    risk: Array


def risk_coverage_curve(uncertainty: ArrayLike, losses: ArrayLike) -> RiskCoverageCurve:
    r"""Mean loss of the n least uncertain predictions, for n from 1 to N.

    Predictions of equal uncertainty have no order; the risk is the mean over all their orders.

    Args:
      uncertainty: any score that is higher where the prediction is less certain, shape (N,).
      losses: the loss of each prediction, shape (N,): 1 where a class is wrong and 0 where it is
        right, a squared error, a negative log-likelihood.

    Returns:
      A `RiskCoverageCurve`; the risk is NaN everywhere if under `jit` something is NaN.

    Raises:
      ValueError: if shapes do not match, or something is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> curve = metrics.risk_coverage_curve(jnp.array([0.9, 0.1]), jnp.array([1.0, 0.0]))
      >>> print(curve.coverage, curve.risk)
      [0.5 1. ] [0.  0.5]

    Reference:
      El-Yaniv & Wiener, On the foundations of noise-free selective classification (2010).
    """
    doubts, values = as_statistics(uncertainty, losses)
    remedy = "pass one number an example"
    require(doubts.ndim == 1, "uncertainty", "shape (N,)", doubts.shape, remedy)
    require_equal_shapes(uncertainty=doubts, losses=values)
    require_numbers(uncertainty=doubts, losses=values)
    return _risk_coverage_curve(doubts, values)


def aurc(uncertainty: ArrayLike, losses: ArrayLike) -> Array:
    r"""Area under the risk-coverage curve, $\frac1N \sum_n \mathrm{risk}(n / N)$.

    Args:
      uncertainty: any score that is higher where the prediction is less certain, shape (N,).
      losses: the loss of each prediction, shape (N,), as for `risk_coverage_curve`.

    Returns:
      A scalar in the unit of the losses, lower is better; NaN as for `risk_coverage_curve`.

    Raises:
      ValueError: as for `risk_coverage_curve`.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> print(metrics.aurc(jnp.array([0.9, 0.1]), jnp.array([1.0, 0.0])))
      0.25

    Reference:
      Geifman, Uziel & El-Yaniv, Bias-reduced uncertainty estimation for deep neural classifiers
      (2019).
    """
    return jnp.mean(risk_coverage_curve(uncertainty, losses).risk)


@jax.jit
def _risk_coverage_curve(uncertainty: Array, losses: Array) -> RiskCoverageCurve:
    size = uncertainty.size
    ascending = jnp.sort(uncertainty)
    # Examples of equal uncertainty share a group: the index where their value first occurs.
    group = jnp.searchsorted(ascending, uncertainty, side="left")
    sums = jax.ops.segment_sum(losses, group, size)
    counts = jax.ops.segment_sum(jnp.ones_like(losses), group, size)
    means = (sums / counts)[jnp.searchsorted(ascending, ascending, side="left")]
    number = jnp.arange(1, size + 1).astype(losses.dtype)
    risk = jnp.cumsum(means) / number
    sound = ~jnp.any(jnp.isnan(uncertainty) | jnp.isnan(losses))
    return RiskCoverageCurve(number / size, jnp.where(sound, risk, jnp.nan))
