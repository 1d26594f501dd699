"""Scores of class probabilities: log-likelihood, accuracy, Brier score."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from l2m_optax._support.types import Array, ArrayLike
from l2m_optax.metrics._arguments import classified


def negative_log_likelihood(probs: ArrayLike, labels: ArrayLike) -> Array:
    r"""Mean of $-\log p_{n, y_n}$, in nats; infinite if a true label was given probability 0.

    Args:
      probs: class probabilities, shape (N, K).
      labels: integer labels, shape (N,).

    Returns:
      A scalar. Under `jit` it is NaN if a label is out of range or a row of `probs` is not a
      distribution.

    Raises:
      TypeError: if `labels` are not integers.
      ValueError: if shapes do not match, labels are out of range, or rows of `probs` are not
        probabilities.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> print(f"{metrics.negative_log_likelihood(jnp.array([[0.5, 0.5]]), jnp.array([0])):.3f}")
      0.693
    """
    probs, labels = classified(probs, labels)
    chosen = jnp.take_along_axis(probs, labels[:, None], axis=1, mode="clip")
    return -jnp.mean(jnp.log(chosen[:, 0]))


def accuracy(probs: ArrayLike, labels: ArrayLike) -> Array:
    """Share of examples whose most probable class is the label.

    Args:
      probs: class probabilities, shape (N, K).
      labels: integer labels, shape (N,).

    Returns:
      A scalar between 0 and 1; NaN as for `negative_log_likelihood`.

    Raises:
      TypeError: if `labels` are not integers.
      ValueError: as for `negative_log_likelihood`.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> print(metrics.accuracy(jnp.array([[0.9, 0.1], [0.8, 0.2]]), jnp.array([0, 1])))
      0.5
    """
    probs, labels = classified(probs, labels)
    return jnp.mean(hits(probs, labels))


def brier_score(probs: ArrayLike, labels: ArrayLike) -> Array:
    r"""Mean over examples of $\sum_k (p_{nk} - [y_n = k])^2$.

    Args:
      probs: class probabilities, shape (N, K).
      labels: integer labels, shape (N,).

    Returns:
      A scalar between 0 and 2; NaN as for `negative_log_likelihood`.

    Raises:
      TypeError: if `labels` are not integers.
      ValueError: as for `negative_log_likelihood`.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> print(metrics.brier_score(jnp.array([[0.5, 0.5]]), jnp.array([0])))
      0.5

    Reference:
      Brier, Verification of forecasts expressed in terms of probability (1950).
    """
    probs, labels = classified(probs, labels)
    truth = jax.nn.one_hot(labels, probs.shape[1], dtype=probs.dtype)
    return jnp.mean(jnp.sum(jnp.square(probs - truth), axis=1))


def hits(probs: Array, labels: Array) -> Array:
    """1 where the most probable class is the label, 0 elsewhere; NaN where the row is NaN."""
    right = (jnp.argmax(probs, axis=1) == labels).astype(probs.dtype)
    return jnp.where(jnp.isnan(probs[:, 0]), jnp.nan, right)
