"""Errors, scores and coverage of Gaussian predictions and of intervals."""

from __future__ import annotations

import math
from statistics import NormalDist

import jax.numpy as jnp
from jax.scipy import special, stats

from l2m_optax._support.checks import complaint
from l2m_optax._support.types import Array, ArrayLike
from l2m_optax.metrics._arguments import (
    as_statistics,
    gaussian,
    intervals,
    require_equal_shapes,
    require_numbers,
)


def gaussian_negative_log_likelihood(
    mean: ArrayLike, variance: ArrayLike, targets: ArrayLike
) -> Array:
    r"""Mean of $\tfrac12 [\log(2\pi v) + (y - m)^2 / v]$, in nats.

    Args:
      mean: predicted means m, any shape.
      variance: predicted variances v > 0, of the same shape.
      targets: observations y, of the same shape.

    Returns:
      A scalar.

    Raises:
      ValueError: if shapes do not match, a variance is not positive, or something is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> one = jnp.ones(1)
      >>> print(f"{metrics.gaussian_negative_log_likelihood(one, one, one):.3f}")
      0.919
    """
    mean, variance, targets = gaussian(mean, variance, targets)
    return -jnp.mean(stats.norm.logpdf(targets, mean, jnp.sqrt(variance)))


def root_mean_squared_error(mean: ArrayLike, targets: ArrayLike) -> Array:
    r"""$\sqrt{\overline{(y - m)^2}}$, in the unit of the targets.

    Args:
      mean: predicted means m, any shape.
      targets: observations y, of the same shape.

    Returns:
      A scalar.

    Raises:
      ValueError: if shapes do not match, or something is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> print(metrics.root_mean_squared_error(jnp.array([1.0, 2.0]), jnp.array([1.0, 2.0])))
      0.0
    """
    mean, targets = as_statistics(mean, targets)
    require_equal_shapes(mean=mean, targets=targets)
    require_numbers(mean=mean, targets=targets)
    return jnp.sqrt(jnp.mean(jnp.square(targets - mean)))


def gaussian_crps(mean: ArrayLike, variance: ArrayLike, targets: ArrayLike) -> Array:
    r"""Mean continuous ranked probability score of Gaussian predictions.

    With $z = (y - m)/\sqrt v$ it is $\sqrt v\, [z (2\Phi(z) - 1) + 2\phi(z) - 1/\sqrt\pi]$.

    Args:
      mean: predicted means m, any shape.
      variance: predicted variances v > 0, of the same shape.
      targets: observations y, of the same shape.

    Returns:
      A scalar, in the unit of the targets; lower is better.

    Raises:
      ValueError: if shapes do not match, a variance is not positive, or something is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> one = jnp.ones(1)
      >>> print(f"{metrics.gaussian_crps(one, one, one):.3f}")
      0.234

    Reference:
      Gneiting & Raftery, Strictly proper scoring rules (2007), equation 21.
    """
    mean, variance, targets = gaussian(mean, variance, targets)
    deviation = jnp.sqrt(variance)
    z = (targets - mean) / deviation
    score = z * special.erf(z / math.sqrt(2.0)) + 2.0 * stats.norm.pdf(z) - math.pi**-0.5
    return jnp.mean(deviation * score)


def interval_coverage(
    mean: ArrayLike, variance: ArrayLike, targets: ArrayLike, *, level: float = 0.95
) -> Array:
    """Share of targets inside the central Gaussian interval of probability `level`.

    Args:
      mean: predicted means, any shape.
      variance: predicted variances, of the same shape.
      targets: observations, of the same shape.
      level: probability of the interval, above 0 and below 1; static under `jit`.

    Returns:
      A scalar between 0 and 1; near `level` if the predictions are calibrated.

    Raises:
      ValueError: if `level` is outside of (0, 1), shapes do not match, a variance is not positive,
        or something is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> mean, variance, targets = jnp.zeros(2), jnp.ones(2), jnp.array([1.0, 3.0])
      >>> print(metrics.interval_coverage(mean, variance, targets, level=0.95))
      0.5
    """
    half_width = _half_width(level)
    mean, variance, targets = gaussian(mean, variance, targets)
    z = jnp.abs(targets - mean) / jnp.sqrt(variance)
    return jnp.mean(jnp.where(jnp.isnan(z), jnp.nan, (z <= half_width).astype(z.dtype)))


def gaussian_interval(
    mean: ArrayLike, variance: ArrayLike, *, level: float = 0.95
) -> tuple[Array, Array]:
    r"""The central interval of a Gaussian, $m \pm z \sqrt v$ with $2\Phi(z) - 1$ the level.

    Args:
      mean: predicted means m, any shape.
      variance: predicted variances v > 0, of the same shape.
      level: probability of the interval, above 0 and below 1; static under `jit`.

    Returns:
      The lower and the upper ends, in the unit of the mean: arguments of `picp` and
      `mean_interval_width`.

    Raises:
      ValueError: as for `interval_coverage`.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> lower, upper = metrics.gaussian_interval(jnp.zeros(1), jnp.ones(1), level=0.95)
      >>> print(f"{lower[0]:.2f} {upper[0]:.2f}")
      -1.96 1.96
    """
    half_width = _half_width(level)
    mean, variance, _ = gaussian(mean, variance, mean)
    reach = half_width * jnp.sqrt(variance)
    return mean - reach, mean + reach


def picp(lower: ArrayLike, upper: ArrayLike, targets: ArrayLike) -> Array:
    """Prediction interval coverage probability: the share of targets inside their intervals.

    The intervals may be of any kind, such as quantiles of draws. They include their ends.

    Args:
      lower: lower ends, any shape.
      upper: upper ends, of the same shape.
      targets: observations, of the same shape.

    Returns:
      A scalar between 0 and 1; near the probability of the intervals if they are calibrated. NaN
      if under `jit` an interval is reversed or something is NaN.

    Raises:
      ValueError: if shapes do not match, an upper end is below its lower end, or something is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> print(metrics.picp(jnp.zeros(2), jnp.ones(2), jnp.array([0.5, 3.0])))
      0.5

    Reference:
      Khosravi et al., Comprehensive review of neural network-based prediction intervals (2011).
    """
    (targets,) = as_statistics(targets)
    lower, upper = intervals(lower, upper, targets=targets)
    inside = ((lower <= targets) & (targets <= upper)).astype(lower.dtype)
    return jnp.mean(jnp.where(jnp.isnan(lower) | jnp.isnan(targets), jnp.nan, inside))


def mean_interval_width(lower: ArrayLike, upper: ArrayLike) -> Array:
    """Mean of upper - lower: how narrow the intervals are. Read it next to `picp`.

    Args:
      lower: lower ends, any shape.
      upper: upper ends, of the same shape.

    Returns:
      A scalar, in the unit of the targets; NaN as for `picp`.

    Raises:
      ValueError: as for `picp`.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> print(metrics.mean_interval_width(jnp.zeros(2), jnp.array([1.0, 2.0])))
      1.5

    Reference:
      Khosravi et al., Comprehensive review of neural network-based prediction intervals (2011).
    """
    lower, upper = intervals(lower, upper)
    return jnp.mean(upper - lower)


def _half_width(level: float) -> float:
    """Half the width of the central interval, in standard deviations."""
    if not 0.0 < level < 1.0:
        raise ValueError(complaint("level", "0 < level < 1", str(level), "pass 0.95 for 95%"))
    return -NormalDist().inv_cdf(0.5 - 0.5 * float(level))  # exact for levels near 1
