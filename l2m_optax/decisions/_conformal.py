"""Intervals and sets that contain the truth with a stated probability.

`prediction_interval` relies on the model's variances. Split conformal prediction does not. It
computes a score for each held-out example, which is high where the error is large for the stated
uncertainty, and takes a quantile of these scores. A new score is below it with the wanted
probability, for any model, if held-out and new data are exchangeable. A better uncertainty gives
smaller sets.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import complaint, is_concrete
from l2m_optax._support.trees import statistics_dtype
from l2m_optax._support.types import Array, ArrayLike
from l2m_optax.metrics._arguments import (
    as_statistics,
    classified,
    gaussian,
    require,
    require_numbers,
)
from l2m_optax.predict._summaries import Regression


class Interval(NamedTuple):
    """Where an observation is expected.

    Attributes:
      lower: lower ends.
      upper: upper ends.
    """

    lower: Array
    upper: Array


def prediction_interval(prediction: Regression, *, level: float = 0.95) -> Interval:
    r"""The central interval of a Gaussian observation, $\mu \pm z \sqrt{\mathrm{total}}$.

    Args:
      prediction: a `Regression`.
      level: the probability of the interval if the variances are right, above 0 and below 1.

    Returns:
      An `Interval` in the shape of the prediction.

    Raises:
      ValueError: if `level` is outside of (0, 1), a variance is not positive, or something is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> prediction = l2m.regression(jnp.array([[0.0], [2.0]]), noise_variance=2.0)
      >>> lower, upper = l2m.decisions.prediction_interval(prediction)
      >>> print(f"{lower[0]:.2f} {upper[0]:.2f}")
      -2.92 4.92
    """
    return Interval(*prediction.interval(level))


def residual_scores(prediction: Regression, targets: ArrayLike) -> Array:
    r"""Errors in units of the predicted deviation, $|y - \mu| / \sqrt{\mathrm{total}}$.

    Args:
      prediction: a `Regression` of held-out inputs.
      targets: the observations at these inputs, in the shape of the prediction.

    Returns:
      Scores for `conformal_quantile`, in the same shape.

    Raises:
      ValueError: if shapes do not match, a variance is not positive, or something is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> prediction = l2m.regression(jnp.array([[0.0], [2.0]]), noise_variance=2.0)
      >>> print(l2m.decisions.residual_scores(prediction, jnp.array([5.0])))
      [2.]

    Reference:
      Lei et al., Distribution-free predictive inference for regression (2018).
    """
    mean, variance, y = gaussian(prediction.mean, prediction.total, targets)
    return jnp.abs(y - mean) / jnp.sqrt(variance)


def label_scores(probs: ArrayLike, labels: ArrayLike) -> Array:
    """One minus the probability of the true class, $1 - p_y$.

    Args:
      probs: class probabilities of held-out inputs, shape (N, K).
      labels: the true classes, integers of shape (N,).

    Returns:
      Scores for `conformal_quantile`, shape (N,).

    Raises:
      ValueError: if shapes do not match, rows do not sum to one, labels are out of range, or
        something is NaN.
      TypeError: if `labels` are not integers.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import decisions
      >>> print(decisions.label_scores(jnp.array([[0.75, 0.25]]), jnp.array([1])))
      [0.75]

    Reference:
      Sadinle, Lei & Wasserman, Least ambiguous set-valued classifiers (2019).
    """
    table, truth = classified(probs, labels)
    return 1 - jnp.take_along_axis(table, truth[:, None], axis=1)[:, 0]


def conformal_quantile(scores: ArrayLike, *, level: float = 0.9) -> Array:
    r"""The score that a new one exceeds with probability at most 1 - `level`.

    It is the $\lceil (n + 1) \cdot \mathrm{level} \rceil$-th smallest of n scores. If held-out and
    new data are exchangeable, a new score is at most this with a probability between `level` and
    `level` + 1/(n + 1) (ties aside), over both the held-out data and the new input.

    Args:
      scores: n scores, in any shape, of held-out data that neither training nor tuning has seen.
      level: the wanted probability, above 0 and below 1; static under `jit`.

    Returns:
      A scalar.

    Raises:
      ValueError: if `level` is outside of (0, 1), there are too few scores for it, or one is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import decisions
      >>> print(decisions.conformal_quantile(jnp.arange(9.0), level=0.8))
      7.0

    Reference:
      Vovk, Gammerman & Shafer, Algorithmic learning in a random world (2005); Papadopoulos et al.,
      Inductive confidence machines for regression (2002).
    """
    (values,) = as_statistics(scores)
    _check_level(level)
    require_numbers(scores=values)
    # Where (n + 1) * level is a whole number, a rounding error must not raise it to the next one.
    rank = math.ceil((values.size + 1) * level - 1e-9)
    least = math.ceil(level / (1 - level) - 1e-9)
    remedy = "hold out more data, or lower the level"
    require(rank <= values.size, "scores", f"at least {least}", values.size, remedy)
    quantile = jnp.sort(values.ravel())[rank - 1]
    return jnp.where(jnp.any(jnp.isnan(values)), jnp.nan, quantile)


def conformal_interval(prediction: Regression, quantile: ArrayLike) -> Interval:
    r"""$\mu \pm q \sqrt{\mathrm{total}}$, with q the `conformal_quantile` of `residual_scores`.

    Args:
      prediction: a `Regression` of new inputs.
      quantile: q, a scalar.

    Returns:
      An `Interval` in the shape of the prediction. On average over inputs it contains the
      observation with the probability of the quantile's level, even if the variances are wrong.
      With better variances this holds more evenly over inputs.

    Raises:
      ValueError: if `quantile` is negative, NaN, or not a single number.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> prediction = l2m.regression(jnp.array([[0.0], [2.0]]), noise_variance=2.0)
      >>> print(l2m.decisions.conformal_interval(prediction, 2.0))
      Interval(lower=Array([-3.], dtype=float32), upper=Array([5.], dtype=float32))
    """
    _check_quantile(quantile)
    half = jnp.asarray(quantile, statistics_dtype(prediction.mean)) * jnp.sqrt(prediction.total)
    return Interval(prediction.mean - half, prediction.mean + half)


def conformal_set(probs: ArrayLike, quantile: ArrayLike) -> Array:
    """The classes that are probable enough, by the `conformal_quantile` of `label_scores`.

    A set holds every class with a probability of at least 1 - q. It contains the true class with
    the probability of the quantile's level, on average over inputs, for any model.

    Args:
      probs: class probabilities of new inputs, shape (N, K).
      quantile: q, a scalar.

    Returns:
      Booleans of shape (N, K): whether a class belongs to the set. An empty set says that no
      class is probable enough: the input differs from the held-out ones.

    Raises:
      ValueError: if `probs` hold NaN, or `quantile` is negative, NaN, or not a single number.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import decisions
      >>> print(decisions.conformal_set(jnp.array([[0.75, 0.25], [0.5, 0.5]]), 0.5))
      [[ True False]
       [ True  True]]
    """
    _check_quantile(quantile)
    (table,) = as_statistics(probs)
    require_numbers(probs=table)
    return 1 - table <= jnp.asarray(quantile, table.dtype)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        remedy = "pass 0.9 for nine times in ten"
        raise ValueError(complaint("level", "above 0 and below 1", str(level), remedy))


def _check_quantile(quantile: ArrayLike) -> None:
    remedy = "pass what conformal_quantile returned"
    shape = jnp.shape(quantile)
    require(shape == (), "quantile", "a single number", f"shape {shape}", remedy)
    if is_concrete(quantile):
        number = float(np.asarray(quantile))
        require(number >= 0, "quantile", "a number of at least 0", f"{number:.4g}", remedy)
