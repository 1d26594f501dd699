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
import numpy as np
from jax.scipy.special import logsumexp

from l2m_optax._support.checks import complaint, is_concrete
from l2m_optax._support.trees import statistics_dtype
from l2m_optax._support.types import Array, ArrayLike

_LAMBDA = math.pi / 8
"""The scale at which a probit has the slope of the logistic function at 0."""


def probit(mean: ArrayLike, variance: ArrayLike) -> Array:
    r"""MacKay's probit approximation, $\mathrm{softmax}(\mu_k / \sqrt{1 + \pi\sigma_k^2/8})$.

    The cheapest, and the most common. Each logit shrinks towards 0, so the probabilities change
    when a constant is added to all the logits, as softmax's do not; `mean_field_1` has no such
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
    mean, variance = _with_variance(mean, variance)
    return jax.nn.softmax(mean / jnp.sqrt(1 + _LAMBDA * variance), axis=-1)


def mean_field_0(mean: ArrayLike, variance: ArrayLike) -> Array:
    r"""The mean field that holds the other logits at their means.

    $$p_k \propto \Big(\sum_j e^{-(\mu_k - \mu_j) / \sqrt{1 + \pi\sigma_k^2/8}}\Big)^{-1}$$

    Scaled to sum to 1, which the right-hand sides alone do not. Memory grows as K².

    Args:
      mean: logits, shape (..., K), K at least 2.
      variance: their variances, same shape; `output_variance` gives them.

    Returns:
      Probabilities, shape (..., K), in float32 at least; the same when a constant is added to all
      the logits.

    Raises:
      ValueError: if the shapes differ, K is 1, or a variance is negative.
      FloatingPointError: if an entry is NaN or infinite. Traced values pass both checks of values.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> print(f"{l2m.predict.mean_field_0(jnp.array([2.0, 0.0]), jnp.array([9.0, 9.0]))[0]:.2f}")
      0.72

    Reference:
      Lu, Ie and Sha, Mean-field approximation to Gaussian-softmax integral (2020), "mf0".
    """
    mean, variance = _with_variance(mean, variance)
    return _mean_field(mean, variance[..., :, None])


def mean_field_1(mean: ArrayLike, variance: ArrayLike) -> Array:
    r"""The mean field of independent logits: each difference has variance σ_k² + σ_j².

    $$p_k \propto \Big(\sum_j e^{-(\mu_k - \mu_j)
    / \sqrt{1 + \pi(\sigma_k^2 + \sigma_j^2)/8}}\Big)^{-1}$$

    Scaled to sum to 1, which the right-hand sides alone do not. Memory grows as K².

    Args:
      mean: logits, shape (..., K), K at least 2.
      variance: their variances, same shape; `output_variance` gives them.

    Returns:
      Probabilities, shape (..., K), in float32 at least; the same when a constant is added to all
      the logits.

    Raises:
      ValueError: if the shapes differ, K is 1, or a variance is negative.
      FloatingPointError: if an entry is NaN or infinite. Traced values pass both checks of values.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> print(f"{l2m.predict.mean_field_1(jnp.array([2.0, 0.0]), jnp.array([9.0, 9.0]))[0]:.2f}")
      0.67

    Reference:
      Lu, Ie and Sha, Mean-field approximation to Gaussian-softmax integral (2020), "mf1".
    """
    mean, variance = _with_variance(mean, variance)
    return _mean_field(mean, variance[..., :, None] + variance[..., None, :])


def mean_field_2(mean: ArrayLike, covariance: ArrayLike) -> Array:
    r"""The mean field of correlated logits: each difference has variance σ_k² + σ_j² - 2 σ_kj.

    $$p_k \propto \Big(\sum_j e^{-(\mu_k - \mu_j)
    / \sqrt{1 + \pi(\sigma_k^2 + \sigma_j^2 - 2\sigma_{kj})/8}}\Big)^{-1}$$

    Scaled to sum to 1; for two classes it does so by itself, and is the sigmoid-probit of their
    difference. With a diagonal covariance it is `mean_field_1`.

    Args:
      mean: logits, shape (..., K), K at least 2.
      covariance: their covariances, shape (..., K, K); `output_covariance` gives them.

    Returns:
      Probabilities, shape (..., K), in float32 at least; the same when a constant, random or not,
      is added to all the logits.

    Raises:
      ValueError: if the shapes do not agree, K is 1, or `covariance` is not one: not symmetric, a
        negative variance, or a covariance larger than its variances allow.
      FloatingPointError: if an entry is NaN or infinite. Traced values pass all checks of values.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moving_together = jnp.full((2, 2), 9.0)
      >>> print(f"{l2m.predict.mean_field_2(jnp.array([2.0, 0.0]), moving_together)[0]:.2f}")
      0.88

    Reference:
      Lu, Ie and Sha, Mean-field approximation to Gaussian-softmax integral (2020), "mf2".
    """
    mean, covariance = _with_covariance(mean, covariance)
    variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
    difference = variance[..., :, None] + variance[..., None, :] - 2 * covariance
    # Rounding may leave a little less than 0 where two logits move together.
    return _mean_field(mean, jnp.maximum(difference, 0))


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
        mean, variance = _with_variance(mean, covariance)
        _check_above_zero(variance)
        return _bridge_of_independent(mean, variance)
    mean, covariance = _with_covariance(mean, covariance)
    _check_above_zero(jnp.diagonal(covariance, axis1=-2, axis2=-1))
    return _bridge_of_correlated(mean, covariance)


def _mean_field(mean: Array, difference_variance: Array) -> Array:
    """1 / Σ_j exp(-(μ_k - μ_j) / scale_kj), scaled to sum to 1 over k."""
    difference = mean[..., :, None] - mean[..., None, :]
    scaled = difference / jnp.sqrt(1 + _LAMBDA * difference_variance)
    return jax.nn.softmax(-logsumexp(-scaled, axis=-1), axis=-1)


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


def _with_variance(mean: ArrayLike, variance: ArrayLike) -> tuple[Array, Array]:
    """Both as arrays of one dtype, once they are known to be logits and their variances."""
    _check_classes(mean)
    if jnp.shape(variance) != jnp.shape(mean):
        remedy = "pass one variance for each logit, as output_variance returns"
        expected, got = f"shape {jnp.shape(mean)}, that of mean", str(jnp.shape(variance))
        raise ValueError(complaint("variance", expected, got, remedy))
    _check_finite("mean", mean)
    _check_finite("variance", variance)
    _check_not_negative("variance", variance)
    dtype = statistics_dtype(mean, variance)
    return jnp.asarray(mean, dtype), jnp.asarray(variance, dtype)


def _with_covariance(mean: ArrayLike, covariance: ArrayLike) -> tuple[Array, Array]:
    """Both as arrays of one dtype, once they are known to be logits and their covariances."""
    _check_classes(mean)
    wanted = (*jnp.shape(mean), jnp.shape(mean)[-1])
    if jnp.shape(covariance) != wanted:
        remedy = "pass one K × K matrix for each row of logits, as output_covariance returns"
        got = str(jnp.shape(covariance))
        raise ValueError(complaint("covariance", f"shape {wanted}", got, remedy))
    _check_finite("mean", mean)
    _check_finite("covariance", covariance)
    _check_covariance(covariance)
    dtype = statistics_dtype(mean, covariance)
    return jnp.asarray(mean, dtype), jnp.asarray(covariance, dtype)


def _check_classes(mean: ArrayLike) -> None:
    shape = jnp.shape(mean)
    if not shape or shape[-1] < 2:
        remedy = "for one binary logit z of variance v pass [0, z] and [0, v]"
        raise ValueError(complaint("mean", "logits of shape (..., K), K > 1", str(shape), remedy))


def _check_finite(name: str, values: ArrayLike) -> None:
    if not is_concrete(values):
        return
    numbers = np.asarray(values, np.float64)
    bad = numbers.size - np.count_nonzero(np.isfinite(numbers))
    if bad:
        got = f"{bad} NaN or infinite of {numbers.size}"
        raise FloatingPointError(
            complaint(name, "finite values", got, "look at the parameters and the inputs")
        )


def _check_not_negative(name: str, variance: ArrayLike) -> None:
    if not is_concrete(variance):
        return
    least = np.min(np.asarray(variance, np.float64), initial=0.0)
    if least < 0:
        remedy = "pass variances, not their logarithms"
        raise ValueError(complaint(name, "nothing below 0", f"{least:.3g}", remedy))


def _check_above_zero(variance: ArrayLike) -> None:
    if is_concrete(variance) and np.any(np.asarray(variance) == 0):
        remedy = "a logit without variance has an infinite concentration; use mean_field_1"
        raise ValueError(complaint("variance", "positive variances", "a zero", remedy))


def _check_covariance(covariance: ArrayLike) -> None:
    """Refuse what is not symmetric, or larger off the diagonal than Cauchy and Schwarz allow."""
    if not is_concrete(covariance):
        return
    matrix = np.asarray(covariance, np.float64)
    variance = np.diagonal(matrix, axis1=-2, axis2=-1)
    _check_not_negative("covariance", variance)
    bound = np.sqrt(variance[..., :, None] * variance[..., None, :])
    remedy = "pass the covariance matrix, J Σ Jᵀ, itself"
    tolerance = 1e-3 * np.max(variance, axis=-1, initial=0.0)[..., None, None]
    if np.any(np.abs(matrix - np.swapaxes(matrix, -1, -2)) > tolerance):
        raise ValueError(complaint("covariance", "a symmetric matrix", "another", remedy))
    if np.any(np.abs(matrix) > bound + tolerance):
        got = "a covariance larger than its two variances allow"
        raise ValueError(complaint("covariance", "a covariance matrix", got, remedy))
