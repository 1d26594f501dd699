"""The Laplace bridge: a Dirichlet distribution over class probabilities from Gaussian logits."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from l2m_optax._support.types import Array, ArrayLike
from l2m_optax.predict._logits import check_above_zero, with_covariance, with_variance


def laplace_bridge(mean: ArrayLike, covariance: ArrayLike) -> Array:
    r"""The Dirichlet distribution whose Laplace approximation, in logits, is the Gaussian.

    The Gaussian is first conditioned on logits that sum to 0, $s = \mathbf 1^\top \Sigma
    \mathbf 1$:

    $$\mu' = \mu - \Sigma \mathbf 1\, \mathbf 1^\top \mu / s, \qquad
    \Sigma' = \Sigma - \Sigma \mathbf 1\, \mathbf 1^\top \Sigma / s, \qquad
    \alpha_k = \frac{1}{\Sigma'_{kk}} \Big(1 - \frac 2K
    + \frac{e^{\mu'_k}}{K^2} \sum_j e^{-\mu'_j}\Big)$$

    ``probs = alpha / alpha.sum(-1, keepdims=True)`` are the mean probabilities, and
    ``probs * (1 - probs) / (1 + alpha.sum(-1, keepdims=True))`` their variances. It is a match of
    shapes, exact for the Gaussian of a Dirichlet, and the coarsest of the functions here for any
    other: as the variances shrink the probabilities do not tend to softmax(mean).

    The condition is that of the paper and of laplace-torch. It is not what the logits say of their
    differences where the rows of Σ have unequal sums: a constant added to all the logits then
    changes the result, and correlated logits can end far from the mean of softmax. With
    $P = I - \mathbf 1 \mathbf 1^\top / K$, pass $P\mu$ and $P \Sigma P$ for a result without
    such a dependence; logits that sum to a constant are not conditioned again.

    Where a concentration is beyond what floats hold, all of a row are divided by one factor so
    that the probabilities stay right.

    Args:
      mean: logits, shape (..., K), K at least 2.
      covariance: their covariances, shape (..., K, K), or their variances, shape (..., K), where
        they are independent. Variances are positive.

    Returns:
      Concentrations α > 0, shape (..., K), in float32 at least.

    Raises:
      ValueError: if the shapes do not agree, K is 1, a variance is not positive, or `covariance`
        is not one.
      FloatingPointError: if an entry is NaN or infinite. Traced values pass all checks of values.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> alpha = l2m.predict.laplace_bridge(jnp.array([1.0, 0.0, -1.0]), jnp.full(3, 0.3))
      >>> print(f"{alpha[0] / alpha.sum():.2f}")
      0.55

    Reference:
      Hobbhahn, Kristiadi and Hennig, Fast predictive uncertainty for classification with Bayesian
      deep networks (2022); the condition on the sum is that of their appendix.
    """
    if jnp.ndim(covariance) == jnp.ndim(mean):
        mean, variance = with_variance(mean, covariance)
        check_above_zero(variance)
        return _bridge_of_independent(mean, variance)
    mean, covariance = with_covariance(mean, covariance)
    check_above_zero(jnp.diagonal(covariance, axis1=-2, axis2=-1))
    return _bridge_of_correlated(mean, covariance)


def _bridge_of_independent(mean: Array, variance: Array) -> Array:
    """Σ'_kk = σ²_k - σ⁴_k / s is σ²_k times the share of the others, where nothing cancels."""
    itself = jnp.eye(mean.shape[-1], dtype=bool)
    others = jnp.sum(jnp.where(itself, 0, variance[..., None, :]), axis=-1)
    share = variance / (variance + others)
    conditioned = others * share
    return _concentrations(mean - share * jnp.sum(mean, axis=-1, keepdims=True), conditioned)


def _bridge_of_correlated(mean: Array, covariance: Array) -> Array:
    """Σ'_kk as (σ²_k s - (σ²_k + r)²) / s or as (σ²_k R - r²) / s, whichever cancels less."""
    # r: the sum of Σ_kj over the other logits j; R: the sum of Σ_ij over all pairs of others,
    # in which no entry of row or column k takes part.
    classes, eps = mean.shape[-1], np.finfo(mean.dtype).eps
    itself = jnp.eye(classes, dtype=bool)
    variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
    with_others = jnp.sum(jnp.where(itself, 0, covariance), axis=-1)
    with_sum = variance + with_others
    of_sum = jnp.sum(with_sum, axis=-1, keepdims=True)
    other = jnp.asarray(~itself, mean.dtype)
    of_others = jnp.einsum("ki,...ij,kj->...k", other, covariance, other, precision="highest")
    # Logits that sum to a constant already (a Dirichlet's own) are moved, and not conditioned.
    constant_sum = of_sum <= classes * eps * jnp.sum(variance, axis=-1, keepdims=True)
    divisor = jnp.where(constant_sum, 1, of_sum)
    by_others = jnp.abs(with_others) < jnp.abs(with_sum)
    kept = jnp.where(by_others, variance * (of_others / divisor), variance)
    covaried = jnp.where(by_others, with_others, with_sum)
    removed = covaried * (covaried / divisor)
    conditioned = jnp.where(constant_sum, variance, jnp.maximum(kept - removed, eps * kept))
    per_variance = jnp.where(constant_sum, 1 / classes, with_sum / divisor)
    return _concentrations(mean - per_variance * jnp.sum(mean, axis=-1, keepdims=True), conditioned)


def _concentrations(mean: Array, variance: Array) -> Array:
    """The concentrations, from the moments of logits whose sum is 0."""
    classes, limits = mean.shape[-1], np.finfo(mean.dtype)
    flat = math.log(1 - 2 / classes) if classes > 2 else -math.inf
    peaked = mean + logsumexp(-mean, axis=-1, keepdims=True) - 2 * math.log(classes)
    log_alpha = jnp.logaddexp(flat, peaked) - jnp.log(jnp.maximum(variance, limits.tiny))
    highest = math.log(float(limits.max)) - math.log(classes) - 1  # their sum is finite too
    excess = jnp.maximum(jnp.max(log_alpha, axis=-1, keepdims=True) - highest, 0)
    return jnp.maximum(jnp.exp(log_alpha - excess), limits.tiny)
