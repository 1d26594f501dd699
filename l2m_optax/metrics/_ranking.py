"""How well scores separate two kinds of examples, as in out-of-distribution detection.

Examples with equal scores share one threshold, so the order of the examples does not matter.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from l2m_optax._support.types import Array, ArrayLike
from l2m_optax.metrics._arguments import detection


def auroc(scores: ArrayLike, positives: ArrayLike) -> Array:
    r"""Probability that a positive scores higher than a negative, ties counted half.

    This is the area under the receiver operating characteristic. For out-of-distribution detection
    the scores are uncertainties and the positives are the inputs of another kind.

    Args:
      scores: real scores, shape (N,).
      positives: whether each example is a positive, booleans or 0 and 1, shape (N,).

    Returns:
      A scalar between 0 and 1; NaN if under `jit` there is one class only, a score is NaN, or a
      flag is neither 0 nor 1.

    Raises:
      ValueError: if shapes do not match, scores are NaN, flags are neither 0 nor 1, or there is
        one class only.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> print(metrics.auroc(jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1])))
      0.75

    Reference:
      Mann & Whitney (1947); Fawcett, An introduction to ROC analysis (2006).
    """
    return _auroc(*detection(scores, positives))


def aupr(scores: ArrayLike, positives: ArrayLike) -> Array:
    r"""Area under the precision-recall curve as a sum of steps, also called average precision.

    $\sum_t (R_t - R_{t-1}) P_t$ over the thresholds t from high to low. An example is called
    positive if its score is at least t; P is the precision of this rule and R its recall. It equals
    the mean, over positives, of the precision at their own score. A score without information
    gives the share of positives.

    Args:
      scores: real scores, shape (N,).
      positives: whether each example is a positive, booleans or 0 and 1, shape (N,).

    Returns:
      A scalar above 0, at most 1; NaN as for `auroc`.

    Raises:
      ValueError: as for `auroc`.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> print(metrics.aupr(jnp.array([0.1, 0.4, 0.8, 0.2]), jnp.array([0, 1, 1, 0])))
      1.0

    Reference:
      Davis & Goadrich, The relationship between precision-recall and ROC curves (2006).
    """
    return _aupr(*detection(scores, positives))


def fpr_at_95_tpr(scores: ArrayLike, positives: ArrayLike) -> Array:
    r"""Share of negatives called positive by the highest threshold that finds 95% of positives.

    An example is called positive if its score is at least the threshold. Some authors call the
    in-distribution examples positive: pass the negated uncertainties for that.

    Args:
      scores: real scores, shape (N,).
      positives: whether each example is a positive, booleans or 0 and 1, shape (N,).

    Returns:
      A scalar between 0 and 1; NaN as for `auroc`.

    Raises:
      ValueError: as for `auroc`.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> print(metrics.fpr_at_95_tpr(jnp.array([0.1, 0.4, 0.8, 0.2]), jnp.array([0, 0, 1, 1])))
      0.5

    Reference:
      Liang, Li & Srikant, Enhancing the reliability of out-of-distribution image detection (2018).
    """
    return _fpr_at_95_tpr(*detection(scores, positives))


@jax.jit
def _auroc(scores: Array, positives: Array) -> Array:
    """The share of pairs in which the positive scores higher; a tie is half a win."""
    negatives = jnp.sort(jnp.where(positives, jnp.inf, scores))
    num_negatives = jnp.sum(~positives)
    below = jnp.minimum(jnp.searchsorted(negatives, scores, side="left"), num_negatives)
    at_most = jnp.minimum(jnp.searchsorted(negatives, scores, side="right"), num_negatives)
    # A mean of shares, not a sum of ranks: such a sum loses digits in float32 above 2**24.
    share = 0.5 * (below + at_most).astype(scores.dtype) / num_negatives
    area = jnp.sum(jnp.where(positives, share, 0.0)) / jnp.sum(positives)
    return _of_sound(area, scores, positives)


@jax.jit
def _aupr(scores: Array, positives: Array) -> Array:
    """The mean over positives of the precision at their score."""
    num_positives = jnp.sum(positives)
    # Negatives become inf and are sorted to the end, so that they are never counted.
    only_positives = jnp.sort(jnp.where(positives, scores, jnp.inf))
    found = num_positives - jnp.searchsorted(only_positives, scores, side="left")
    called = scores.size - jnp.searchsorted(jnp.sort(scores), scores, side="left")
    precision = found.astype(scores.dtype) / called
    area = jnp.sum(jnp.where(positives, precision, 0.0)) / num_positives
    return _of_sound(area, scores, positives)


@jax.jit
def _fpr_at_95_tpr(scores: Array, positives: Array) -> Array:
    """The threshold is the score of the positive with which 95% of positives are found."""
    num_positives = jnp.sum(positives)
    enough = num_positives - num_positives // 20  # 95% rounded up, exactly
    ascending = jnp.sort(jnp.where(positives, scores, -jnp.inf))
    threshold = ascending[scores.size - enough]
    called = jnp.sum(~positives & (scores >= threshold)).astype(scores.dtype)
    return _of_sound(called / jnp.sum(~positives), scores, positives)


def _of_sound(value: Array, scores: Array, positives: Array) -> Array:
    """The value, or NaN if a score is NaN or one kind is missing."""
    sound = jnp.all(~jnp.isnan(scores)) & jnp.any(positives) & jnp.any(~positives)
    return jnp.where(sound, value, jnp.nan)
