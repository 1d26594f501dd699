"""Proper scores of predictions that are given as draws.

Both are "fair" estimators: their expectation is the score of infinitely many draws. So scores of
few and of many draws can be compared; a single score may be below 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from l2m_optax._support.types import Array, ArrayLike
from l2m_optax.metrics._arguments import ensemble, require


def sample_crps(samples: ArrayLike, targets: ArrayLike) -> Array:
    r"""Mean continuous ranked probability score of draws, the fair estimator.

    $\frac1S \sum_i |x_i - y| - \frac{1}{2 S (S-1)} \sum_{ij} |x_i - x_j|$, an unbiased estimate
    of $E|X - y| - \frac12 E|X - X'|$. The draws must be of observations, so they include the noise.

    Args:
      samples: S draws, shape (S, ...), with S at least 2.
      targets: observations y, shape (...).

    Returns:
      A scalar, in the unit of the targets, lower is better; NaN if under `jit` something is NaN.

    Raises:
      ValueError: if shapes do not match, there are fewer than two draws, or something is not
        finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> print(metrics.sample_crps(jnp.array([[0.0], [2.0]]), jnp.array([3.0])))
      1.0

    Reference:
      Ferro, Fair scores for ensemble forecasts (2014); Gneiting & Raftery (2007), equation 20.
    """
    draws, targets = ensemble(samples, targets)
    size = draws.shape[0]
    errors = jnp.sort(draws - targets, axis=0)
    # Among sorted draws the k-th is the larger one of k - 1 pairs, the smaller one of S - k.
    weights = (2 * jnp.arange(1, size + 1) - size - 1).astype(errors.dtype) / size
    spread = jnp.tensordot(weights, errors, axes=1, precision="highest") / (size - 1)
    return jnp.mean(jnp.mean(jnp.abs(errors), axis=0) - spread)


def energy_score(samples: ArrayLike, targets: ArrayLike) -> Array:
    r"""Mean energy score of draws of vectors, the fair estimator.

    $\frac1S \sum_i \|x_i - y\| - \frac{1}{2 S (S-1)} \sum_{ij} \|x_i - x_j\|$: `sample_crps`
    for vectors; both are equal for D = 1. It computes S² differences, S at a time.

    Args:
      samples: S draws, shape (S, ..., D), with S at least 2.
      targets: observations y, shape (..., D); the D outputs in one unit.

    Returns:
      A scalar, in the unit of the targets, lower is better; NaN if under `jit` something is NaN.

    Raises:
      ValueError: as for `sample_crps`, or if the targets have no axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import metrics
      >>> samples = jnp.array([[[3.0, 4.0]], [[0.0, 0.0]]])
      >>> print(metrics.energy_score(samples, jnp.array([[0.0, 0.0]])))
      0.0

    Reference:
      Gneiting & Raftery, Strictly proper scoring rules (2007), equation 22.
    """
    remedy = "pass vectors, or use sample_crps"
    require(jnp.ndim(targets), "targets", "shape (..., D)", jnp.shape(targets), remedy)
    draws, targets = ensemble(samples, targets)
    size = draws.shape[0]

    def distance(shift: Array) -> Array:
        """Mean distance of each draw to another one; the norm has no gradient at distance 0."""
        return jnp.mean(jnp.linalg.norm(draws - jnp.roll(draws, shift, axis=0), axis=-1))

    spread = jnp.mean(jax.lax.map(distance, jnp.arange(1, size)))
    return jnp.mean(jnp.linalg.norm(draws - targets, axis=-1)) - 0.5 * spread
