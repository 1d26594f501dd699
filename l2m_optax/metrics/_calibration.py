"""Whether class probabilities agree with frequencies: reliability curves, calibration errors."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import check_count
from l2m_optax._support.types import Array, ArrayLike
from l2m_optax.metrics._arguments import classified
from l2m_optax.metrics._classification import hits


class ReliabilityCurve(NamedTuple):
    """How often predictions of similar confidence are right, bin by bin.

    Attributes:
      confidence: mean confidence in each bin, shape (num_bins,); NaN in an empty one.
      accuracy: share of right predictions in each bin, shape (num_bins,); NaN in an empty one.
      size: number of examples in each bin, shape (num_bins,).
    """

    confidence: Array
    accuracy: Array
    size: Array


def reliability_curve(
    probs: ArrayLike, labels: ArrayLike, *, num_bins: int = 15
) -> ReliabilityCurve:
    """Confidence, accuracy and size of the bins of `expected_calibration_error`.

    Args:
      probs: class probabilities, shape (N, K).
      labels: integer labels, shape (N,).
      num_bins: number of bins between 0 and 1; static under `jit`.

    Returns:
      A `ReliabilityCurve`; confidence and accuracy are NaN everywhere if under `jit` a label is out
      of range or a row of `probs` is not a distribution.

    Raises:
      TypeError: if `labels` or `num_bins` are not integers.
      ValueError: if ``num_bins < 1``, or as for `negative_log_likelihood`.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> probs = jnp.array([[0.75, 0.25], [0.75, 0.25]])
      >>> curve = metrics.reliability_curve(probs, jnp.array([0, 1]), num_bins=2)
      >>> print(curve.confidence, curve.accuracy, curve.size)
      [ nan 0.75] [nan 0.5] [0 2]

    Reference:
      DeGroot & Fienberg, The comparison and evaluation of forecasters (1983).
    """
    confidence, right = _confidence(probs, labels, num_bins)
    bins = _equal_width(confidence, num_bins)
    size = jax.ops.segment_sum(jnp.ones(bins.shape, jnp.int32), bins, num_bins)
    sound = jnp.all(~jnp.isnan(confidence))

    def mean(x: Array) -> Array:
        return jnp.where(sound, jax.ops.segment_sum(x, bins, num_bins) / size, jnp.nan)

    return ReliabilityCurve(mean(confidence), mean(right), size)


def expected_calibration_error(probs: ArrayLike, labels: ArrayLike, *, num_bins: int = 15) -> Array:
    r"""$\sum_b \frac{n_b}{N} |\mathrm{accuracy}_b - \mathrm{confidence}_b|$ over bins.

    The confidence is the largest probability; bins are of equal width and closed on the right.

    Args:
      probs: class probabilities, shape (N, K).
      labels: integer labels, shape (N,).
      num_bins: number of bins between 0 and 1; static under `jit`.

    Returns:
      A scalar between 0 and 1; NaN as for `negative_log_likelihood`.

    Raises:
      TypeError: if `labels` or `num_bins` are not integers.
      ValueError: if ``num_bins < 1``, or as for `negative_log_likelihood`.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> probs = jnp.array([[0.75, 0.25], [0.75, 0.25]])
      >>> print(metrics.expected_calibration_error(probs, jnp.array([0, 1])))
      0.25

    Reference:
      Guo et al., On calibration of modern neural networks (2017).
    """
    confidence, right = _confidence(probs, labels, num_bins)
    return _mean_gap(confidence, right, _equal_width(confidence, num_bins), num_bins)


def adaptive_calibration_error(probs: ArrayLike, labels: ArrayLike, *, num_bins: int = 15) -> Array:
    r"""`expected_calibration_error` over bins that hold equally many examples.

    The edges are the $b/B$ quantiles of the confidence: the smallest confidence with at least
    $b N / B$ examples at or below it. Bins are closed on the right, so equal confidences are in the
    same bin.

    Args:
      probs: class probabilities, shape (N, K).
      labels: integer labels, shape (N,).
      num_bins: number of bins B; static under `jit`.

    Returns:
      A scalar between 0 and 1; NaN as for `negative_log_likelihood`.

    Raises:
      TypeError: if `labels` or `num_bins` are not integers.
      ValueError: if ``num_bins < 1``, or as for `negative_log_likelihood`.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> probs = jnp.array([[0.5, 0.5], [0.75, 0.25]])
      >>> print(metrics.adaptive_calibration_error(probs, jnp.array([0, 1]), num_bins=2))
      0.625

    Reference:
      Nguyen & O'Connor, Posterior calibration and exploratory analysis for natural language
      processing models (2015).
    """
    confidence, right = _confidence(probs, labels, num_bins)
    size = confidence.shape[0]
    ranks = np.array([-(-size * b // num_bins) - 1 for b in range(1, num_bins)], int)
    bins = jnp.searchsorted(jnp.sort(confidence)[ranks], confidence, side="left")
    return _mean_gap(confidence, right, bins, num_bins)


def classwise_calibration_error(
    probs: ArrayLike, labels: ArrayLike, *, num_bins: int = 15
) -> Array:
    r"""$\frac1K \sum_k \sum_b \frac{n_{bk}}{N} |\overline{[y = k]}_{bk} - \bar p_{bk}|$.

    It compares the probability of every class, not only of the most probable one, with how often
    that class occurs. Each class has the bins of `expected_calibration_error`.

    Args:
      probs: class probabilities, shape (N, K).
      labels: integer labels, shape (N,).
      num_bins: number of bins between 0 and 1; static under `jit`.

    Returns:
      A scalar between 0 and 1; NaN as for `negative_log_likelihood`.

    Raises:
      TypeError: if `labels` or `num_bins` are not integers.
      ValueError: if ``num_bins < 1``, or as for `negative_log_likelihood`.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> probs = jnp.array([[0.75, 0.25], [0.75, 0.25]])
      >>> print(metrics.classwise_calibration_error(probs, jnp.array([0, 1])))
      0.25

    Reference:
      Kull et al., Beyond temperature scaling (2019).
    """
    check_count("num_bins", num_bins)
    probs, labels = classified(probs, labels)
    truth = jax.nn.one_hot(labels, probs.shape[1], dtype=probs.dtype)

    def of_class(p: Array, y: Array) -> Array:
        return _mean_gap(p, y, _equal_width(p, num_bins), num_bins)

    return jnp.mean(jax.vmap(of_class, in_axes=1)(probs, truth))


def maximum_calibration_error(probs: ArrayLike, labels: ArrayLike, *, num_bins: int = 15) -> Array:
    r"""$\max_b |\mathrm{accuracy}_b - \mathrm{confidence}_b|$ over the bins that are not empty.

    A bin with few examples counts as much as a full one, so with many bins this is mostly noise.

    Args:
      probs: class probabilities, shape (N, K).
      labels: integer labels, shape (N,).
      num_bins: number of bins between 0 and 1; static under `jit`.

    Returns:
      A scalar between 0 and 1; NaN as for `negative_log_likelihood`.

    Raises:
      TypeError: if `labels` or `num_bins` are not integers.
      ValueError: if ``num_bins < 1``, or as for `negative_log_likelihood`.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> probs = jnp.array([[0.75, 0.25], [0.75, 0.25]])
      >>> print(metrics.maximum_calibration_error(probs, jnp.array([0, 1])))
      0.25

    Reference:
      Naeini, Cooper & Hauskrecht, Obtaining well calibrated probabilities using Bayesian binning
      (2015).
    """
    curve = reliability_curve(probs, labels, num_bins=num_bins)
    gaps = jnp.abs(curve.accuracy - curve.confidence)
    return jnp.max(jnp.where(curve.size > 0, gaps, 0.0))


def _confidence(probs: ArrayLike, labels: ArrayLike, num_bins: int) -> tuple[Array, Array]:
    """The largest probability of each example, and whether its class was right."""
    check_count("num_bins", num_bins)
    probs, labels = classified(probs, labels)
    return jnp.max(probs, axis=1), hits(probs, labels)


def _equal_width(confidence: Array, num_bins: int) -> Array:
    # Edges, not floor(confidence * num_bins): that product may round past an edge.
    edges = jnp.asarray(np.arange(1, num_bins) / num_bins, confidence.dtype)
    return jnp.searchsorted(edges, confidence, side="left")


def _mean_gap(confidence: Array, right: Array, bins: Array, num_bins: int) -> Array:
    gaps = jax.ops.segment_sum(right - confidence, bins, num_bins)
    return jnp.sum(jnp.abs(gaps)) / confidence.shape[0]
