"""`SecondMoment`: a running mean of squared gradients, and the arithmetic that undoes its bias."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._checks import is_concrete
from l2m_optax._tree import align, broadcast, statistics_dtype
from l2m_optax._types import Array, ArrayLike, PyTree


class SecondMoment(NamedTuple):
    """A running mean of squared gradients, as the optimizer holds it, and what undoes its bias.

    Attributes:
      nu: the optimizer's own arrays, in the structure of the parameters; `None` at a leaf that has
        no second moment.
      weight: what the weights of the mean sum to, a scalar or a prefix tree of `nu` (an array has
        the leading axes of an ensemble):
        ``1 - decay**count`` for a mean that started from zero, 1 for one that is unbiased.
      count: number of updates the mean has seen, int32 of shape (), or `None` where unknown.
      decay: decay of the mean, float of shape (), or `None` where unknown.
      mu: the running mean of the gradients themselves, or `None`.
      mu_weight: what the weights of `mu` sum to.
      mu_decay: decay of `mu`, or `None` where unknown.
      offset: what `nu` holds besides the weighted mean, a scalar or a prefix tree of `nu`: the
        initial value of adagrad.
      micro_steps: batches whose gradients are averaged before they are squared, as
        `optax.MultiSteps` does; `laplace` multiplies the batch size by it.
    """

    nu: PyTree
    weight: ArrayLike | PyTree = 1.0
    count: ArrayLike | None = None  # type: ignore[assignment]  # hides tuple.count, as in optax
    decay: ArrayLike | None = None
    mu: PyTree | None = None
    mu_weight: ArrayLike = 1.0
    mu_decay: ArrayLike | None = None
    offset: ArrayLike | PyTree = 0.0
    micro_steps: ArrayLike = 1


def debiased(moment: SecondMoment) -> PyTree:
    r"""The mean of squared gradients, $(\nu - \text{offset}) / \text{weight}$, in float32 at least.

    Args:
      moment: a `SecondMoment`.

    Returns:
      A tree like ``moment.nu``.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> print(l2m.debiased(l2m.SecondMoment(nu=jnp.array([0.1, 0.2]), weight=0.1)))
      [1. 2.]
    """
    weights = broadcast(moment.weight, moment.nu)
    offsets = broadcast(moment.offset, moment.nu)
    return jax.tree.map(_debias_leaf, moment.nu, weights, offsets)


def _debias_leaf(nu: Array, weight: ArrayLike, offset: ArrayLike) -> Array:
    held = jnp.asarray(nu, statistics_dtype(nu))
    if not isinstance(offset, int | float) or offset != 0:
        # Rounding may leave less than the offset where no gradient ever came.
        held = jnp.maximum(held - leading(offset, held), 0.0)
    return held / leading(weight, held)


def leading(value: ArrayLike, like: Array) -> Array:
    """`value` with axes of 1 behind its own: one number for each member of an ensemble."""
    value = jnp.asarray(value)
    return jnp.reshape(value, value.shape + (1,) * (like.ndim - value.ndim))


def bias_weight(decay: ArrayLike, count: ArrayLike) -> Array:
    """``1 - decay**count`` without cancellation, for decays near 1 and small counts too."""
    if not is_concrete(decay):
        return -jnp.expm1(jnp.asarray(count, jnp.float32) * jnp.log1p(jnp.asarray(decay) - 1.0))
    log_decay = np.log1p(np.asarray(decay, np.float64) - 1.0)
    if not is_concrete(count):
        return -jnp.expm1(jnp.asarray(count, jnp.float32) * log_decay.astype(np.float32))
    return jnp.asarray(-np.expm1(np.asarray(count, np.float64) * log_decay), jnp.float32)


def align_moment(moment: SecondMoment, params: PyTree) -> SecondMoment:
    """`moment` in the tree structure of `params`; see `align` for what is refused."""
    mu = None if moment.mu is None else align(moment.mu, params, "mu")
    return moment._replace(nu=align(moment.nu, params, "nu"), mu=mu)


def mean_variance_ratio(decay: Any) -> Any:
    r"""The variance of a running mean over that of what it averages: $(1-b)/(1+b)$.

    A mean $m_t = b\, m_{t-1} + (1-b)\, g_t$ of independent $g_t$ of variance $\sigma^2$ has, once
    it has settled, the variance $(1-b)^2 \sigma^2 \sum_k b^{2k} = \sigma^2 (1-b)/(1+b)$.

    Args:
      decay: $b$, a number or an array.

    Returns:
      The ratio, of the same type.
    """
    return (1 - decay) / (1 + decay)
