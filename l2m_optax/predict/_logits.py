"""What is asked of the mean and the covariance of logits before they are used."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import complaint, is_concrete
from l2m_optax._support.trees import statistics_dtype
from l2m_optax._support.types import Array, ArrayLike


def with_variance(mean: ArrayLike, variance: ArrayLike) -> tuple[Array, Array]:
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


def with_covariance(mean: ArrayLike, covariance: ArrayLike) -> tuple[Array, Array]:
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


def check_above_zero(variance: ArrayLike) -> None:
    """Refuse a variance of 0; traced ones pass.

    Raises:
      ValueError: if there is one.
    """
    if is_concrete(variance) and np.any(np.asarray(variance) == 0):
        remedy = "a logit without variance has an infinite concentration; use mean_field"
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
