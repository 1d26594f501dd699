"""The mean of a softmax over Gaussian logits, by few well-placed points in the space of outputs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import complaint
from l2m_optax._support.trees import statistics_dtype
from l2m_optax._support.types import Array, ArrayLike, PyTree
from l2m_optax.predict._logits import with_covariance
from l2m_optax.predict._summaries import Classification, softmax_and_entropy, split

Moments: TypeAlias = tuple[Array, Array]
"""Probabilities and their entropy, or sums of them."""

_PAIRS = 128
"""Mirrored pairs of points: 256 softmaxes an input."""

_ROUNDING = 32
"""Entries of a covariance are taken to be right to so many units of rounding."""

MOST_LOGITS = _PAIRS
"""With more logits than pairs of points the points no longer span the space."""


def has_exact_integral(shape: tuple[int, ...]) -> bool:
    """Whether outputs of such a shape for one input are logits that `softmax_integral` takes."""
    return len(shape) == 1 and shape[0] <= MOST_LOGITS


def softmax_integral(mean: ArrayLike, covariance: ArrayLike) -> Classification:
    r"""The predictive of logits $z \sim N(\mu, C)$: $\overline{\mathrm{softmax}(z)}$ and its parts.

    The mean is taken over 256 points $\mu \pm L u_i$ with $L L^\top = C$. The $u_i$ are a Kronecker
    lattice, $\{i \sqrt{p_k}\}$ with primes $p_k$, mapped to normal quantiles, and then scaled so
    that the points have exactly the covariance C. They are the same for every input and every
    call. A covariance of 0 gives exactly softmax(μ).

    Args:
      mean: logits μ, shape (..., K), with K from 2 to 128.
      covariance: C, shape (..., K, K), as `output_covariance` gives it.

    Returns:
      A `Classification` in float32 at least.

    Raises:
      ValueError: if the shapes do not agree, K is out of its range, or `covariance` is not one.
      FloatingPointError: if an entry is NaN or infinite. Traced values pass all checks of values.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> p = l2m.predict.softmax_integral(jnp.array([2.0, 0.0]), 4.0 * jnp.eye(2))
      >>> print([f"{x:.3f}" for x in p.probs], f"{p.epistemic:.2f}")
      ['0.726', '0.274'] 0.27

    Reference:
      Niederreiter, Random number generation and quasi-Monte Carlo methods (1992), chapter 3.
    """
    classes = jnp.shape(mean)[-1:]
    if classes and classes[0] > MOST_LOGITS:
        remedy = "pass draws of logits, as linearized makes them, to classification"
        raise ValueError(
            complaint("mean", f"at most {MOST_LOGITS} logits", str(classes[0]), remedy)
        )
    return _integral(*with_covariance(mean, covariance))


@jax.jit
def _integral(mean: Array, covariance: Array) -> Classification:
    return over_offsets(mean, *offsets_and_points(covariance))


def offsets_and_points(covariance: Array) -> tuple[Callable[[Array], Array], Array]:
    """For each of 128 points one offset of N(0, C); its mirror image is another."""
    root = _root(covariance)
    points = jnp.asarray(_points(covariance.shape[-1]), covariance.dtype)
    return lambda point: root @ point, points


def offsets(covariance: Array) -> Array:
    """All offsets, mirror images included, shape (256, ..., K)."""
    offset_of, points = offsets_and_points(covariance)
    half = jax.vmap(offset_of)(points)
    return jnp.concatenate([half, -half])


def over_offsets(mean: Array, offset_of: Callable[[Any], Array], points: PyTree) -> Classification:
    """The average of softmax(mean ± offset) over the offsets of S points, one at a time.

    Args:
      mean: logits, shape (..., K).
      offset_of: from one point to an offset in the shape of `mean`.
      points: a tree of arrays with a leading axis of S.
    """
    mean = jnp.asarray(mean, statistics_dtype(mean))
    center = softmax_and_entropy(mean)
    signs = jnp.array([1, -1], mean.dtype)

    def add(total: Moments, point: Any) -> tuple[Moments, None]:
        offset = offset_of(point).astype(mean.dtype)

        def add_one(total: Moments, sign: Array) -> tuple[Moments, None]:
            at = softmax_and_entropy(mean + sign * offset)
            # Differences from the center are added up: where there are none, nothing is rounded.
            return jax.tree.map(lambda t, a, c: t + (a - c), total, at, center), None

        return jax.lax.scan(add_one, total, signs)

    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, center), points)
    number = 2 * len(jax.tree.leaves(points)[0])
    probs, entropy = jax.tree.map(lambda c, t: c + t / number, center, total)
    return split(jnp.maximum(probs, 0.0), entropy)


def _root(covariance: Array) -> Array:
    """L with L Lᵀ = C, of covariances that need not have full rank.

    Scaled to a diagonal of 1, so that one number, a bound of the rounding, makes all of them
    positive definite.
    """
    number = covariance.shape[-1]
    identity = jnp.broadcast_to(np.eye(number, dtype=covariance.dtype), covariance.shape)
    variance = jnp.sum(jnp.where(identity > 0, covariance, 0), axis=-1, keepdims=True)
    positive = variance > 0
    safe = jnp.sqrt(jnp.where(positive, variance, 1.0))  # a root of 0 has no derivative
    scale = jnp.where(positive, safe, 0.0)
    correlation = covariance / safe / jnp.swapaxes(safe, -1, -2)
    jitter = _ROUNDING * number * np.finfo(covariance.dtype).eps
    return scale * jnp.linalg.cholesky(correlation + jitter * identity)


@functools.cache
def _points(dimensions: int) -> np.ndarray:
    """One of each mirrored pair, (128, K), with mean squares and products of exactly 0 and 1."""
    steps = np.arange(1, _PAIRS + 1)[:, None] * np.sqrt(_primes(dimensions))
    points = np.vectorize(NormalDist().inv_cdf)((steps + 0.5) % 1.0)
    values, vectors = np.linalg.eigh(points.T @ points / _PAIRS)
    return points @ (vectors / np.sqrt(values)) @ vectors.T


def _primes(number: int) -> np.ndarray:
    candidates = np.arange(2, 8 * number + 8)
    return np.array([n for n in candidates if all(n % d for d in range(2, math.isqrt(n) + 1))])[
        :number
    ]
