"""Class probabilities from Gaussian logits in closed form: no draws, and no noise of draws.

Each function approximates the mean of softmax(z) over z ~ N(mean, covariance), which has no closed
form. They differ in what they use of the covariance and in how far off they are; `classification`
of many draws is the reference. In the tests `probit` and the mean fields are within 0.01 of it
where the logits have a standard deviation of 0.3; within 0.06 for two to four classes at 1 and 2,
where softmax(mean) is up to 0.2 off. With more classes they flatten too much, since the sum over
classes averages independent logits out and none of them sees that: ten classes at 1 are up to 0.06
off, where softmax(mean) is 0.03 off.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from l2m_optax._support.types import Array, ArrayLike
from l2m_optax.predict._logits import with_covariance, with_variance

_LAMBDA = math.pi / 8
"""The scale at which a probit has the slope of the logistic function at 0."""


def probit(mean: ArrayLike, variance: ArrayLike) -> Array:
    r"""MacKay's probit approximation, $\mathrm{softmax}(\mu_k / \sqrt{1 + \pi\sigma_k^2/8})$.

    The cheapest, and the most common. Each logit shrinks towards 0, so the probabilities change
    when a constant is added to all the logits, as softmax's do not; `mean_field` has no such
    dependence.

    Args:
      mean: logits, shape (..., K), K at least 2. For a single binary logit pass ``[0, z]`` and
        the variance ``[0, v]``: the second probability is the usual sigmoid-probit.
      variance: their variances, same shape; `output_variance` gives them.

    Returns:
      Probabilities, shape (..., K), in float32 at least.

    Raises:
      ValueError: if the shapes differ, K is 1, or a variance is negative.
      FloatingPointError: if an entry is NaN or infinite. Traced values pass both checks of values.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> print(f"{l2m.predict.probit(jnp.array([2.0, 0.0]), jnp.array([0.0, 0.0]))[0]:.2f}")
      0.88
      >>> print(f"{l2m.predict.probit(jnp.array([2.0, 0.0]), jnp.array([9.0, 9.0]))[0]:.2f}")
      0.72

    Reference:
      MacKay, The evidence framework applied to classification networks (1992); the form for many
      classes is that of Gibbs, Bayesian Gaussian processes for regression and classification
      (1997).
    """
    mean, variance = with_variance(mean, variance)
    return jax.nn.softmax(mean / jnp.sqrt(1 + _LAMBDA * variance), axis=-1)


def mean_field(mean: ArrayLike, covariance: ArrayLike) -> Array:
    r"""The mean field: logits are compared in pairs, with the variances of their differences.

    $$p_k \propto \Big(\sum_j e^{-(\mu_k - \mu_j)
    / \sqrt{1 + \pi(\sigma_k^2 + \sigma_j^2 - 2\sigma_{kj})/8}}\Big)^{-1}$$

    Scaled to sum to 1, which the right-hand sides alone do not; for two classes they do, and are
    the sigmoid-probit of the difference. Independent logits have $\sigma_{kj} = 0$. Memory grows as
    K².

    Args:
      mean: logits, shape (..., K), K at least 2. For a single binary logit pass ``[0, z]`` and
        the variance ``[0, v]``.
      covariance: their covariances, shape (..., K, K), as `output_covariance` gives them, or their
        variances, shape (..., K), where they are independent, as `output_variance` does.

    Returns:
      Probabilities, shape (..., K), in float32 at least; the same when a constant is added to all
      the logits, or with covariances a random one.

    Raises:
      ValueError: if the shapes do not agree, K is 1, a variance is negative, or `covariance` is not
        one: not symmetric, or a covariance larger than its variances allow.
      FloatingPointError: if an entry is NaN or infinite. Traced values pass all checks of values.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> logits, variance = jnp.array([2.0, 0.0]), jnp.array([9.0, 9.0])
      >>> print(f"{l2m.predict.mean_field(logits, variance)[0]:.2f}")
      0.67
      >>> moving_together = jnp.full((2, 2), 9.0)
      >>> print(f"{l2m.predict.mean_field(logits, moving_together)[0]:.2f}")
      0.88

    Reference:
      Lu, Ie and Sha, Mean-field approximation to Gaussian-softmax integral (2020): "mf1" for
      variances, "mf2" for covariances.
    """
    if jnp.ndim(covariance) == jnp.ndim(mean):
        mean, variance = with_variance(mean, covariance)
        return _of_pairs(mean, variance[..., :, None] + variance[..., None, :])
    mean, covariance = with_covariance(mean, covariance)
    variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
    difference = variance[..., :, None] + variance[..., None, :] - 2 * covariance
    # Rounding may leave a little less than 0 where two logits move together.
    return _of_pairs(mean, jnp.maximum(difference, 0))


def _of_pairs(mean: Array, difference_variance: Array) -> Array:
    """1 / Σ_j exp(-(μ_k - μ_j) / scale_kj), scaled to sum to 1 over k."""
    difference = mean[..., :, None] - mean[..., None, :]
    scaled = difference / jnp.sqrt(1 + _LAMBDA * difference_variance)
    return jax.nn.softmax(-logsumexp(-scaled, axis=-1), axis=-1)
