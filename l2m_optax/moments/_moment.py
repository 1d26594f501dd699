"""`SecondMoment`: a running mean of squared gradients, and the arithmetic that undoes its bias."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import complaint, is_concrete, is_not_negative
from l2m_optax._support.trees import align, broadcast, statistics_dtype
from l2m_optax._support.types import Array, ArrayLike, PyTree
from l2m_optax.moments._basis import Basis, align_basis

NEGLIGIBLE = 0.01
"""The largest relative error of a moment that is ignored."""


class SecondMoment(NamedTuple):
    """A running mean of squared gradients, as the optimizer holds it, and how to undo its bias.

    Numbers have shape (), or the leading axes of an ensemble where `nu` has them too.

    Attributes:
      nu: the optimizer's own arrays, in the structure of the parameters and of their shapes; `None`
        at a leaf that has no second moment.
      weight: the sum of the weights of the mean, a number or a prefix tree of `nu`:
        ``1 - decay**count`` for a mean that started from zero, 1 for one that is unbiased.
      count: number of updates the mean has seen, int32, or `None` where unknown.
      decay: decay of the mean, float, or `None` where unknown.
      mu: the running mean of the gradients themselves, like `nu`, or `None`.
      mu_weight: the sum of the weights of `mu`.
      mu_decay: decay of `mu`, float, or `None` where unknown.
      offset: what was added to the weighted mean, a number or a prefix tree of `nu`: the initial
        value of adagrad.
      micro_steps: batches whose gradients are averaged before they are squared, as
        `optax.MultiSteps` does, a whole number; `laplace` multiplies the batch size by it.
      basis: a prefix tree of `nu` of `Basis` and `None`. Where it has a `Basis`, `nu` is the mean
        of the squares of the gradient in that basis, in the shape of the leaf.
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
    basis: Basis | PyTree | None = None


def debiased(moment: SecondMoment) -> PyTree:
    r"""The mean of squared gradients, $(\nu - \text{offset}) / \text{weight}$, in float32 at least.

    Where the moment has a basis, it is the mean of squares in that basis.

    Args:
      moment: a `SecondMoment`.

    Returns:
      A tree like ``moment.nu``. A negative, infinite or NaN entry gives NaN, because under `jit` it
      cannot be refused.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> print(l2m.moments.debiased(l2m.SecondMoment(nu=jnp.array([0.1, 0.2]), weight=0.1)))
      [1. 2.]
    """
    weights = broadcast(moment.weight, moment.nu)
    offsets = broadcast(moment.offset, moment.nu)
    return jax.tree.map(_debias_leaf, moment.nu, weights, offsets)


@jax.jit
def _debias_leaf(nu: Array, weight: ArrayLike, offset: ArrayLike) -> Array:
    held = jnp.asarray(nu, statistics_dtype(nu))
    held = jnp.where(is_not_negative(held), held, jnp.nan)
    # Where no gradient came, rounding may leave a little less than the offset.
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
    with np.errstate(divide="ignore"):  # log(0) is right for a decay of 0
        log_decay = np.log1p(np.asarray(decay, np.float64) - 1.0)
    if not is_concrete(count):
        return -jnp.expm1(jnp.asarray(count, jnp.float32) * log_decay.astype(np.float32))
    return jnp.asarray(-np.expm1(np.asarray(count, np.float64) * log_decay), jnp.float32)


def mean_variance_ratio(decay: ArrayLike) -> Any:
    r"""The variance of a running mean over the variance of what it averages: $(1-b)/(1+b)$.

    A mean that started long ago, $m_t = (1-b) \sum_s b^{t-s} x_s$, of independent $x_s$ with the
    variance $\sigma^2$ has the variance $\sigma^2 (1-b)^2 / (1 - b^2)$.

    Args:
      decay: b.
    """
    b: Any = decay
    return (1.0 - b) / (1.0 + b)


def check_updated(path: str, count: ArrayLike | None) -> None:
    """Refuse a state that has seen no gradient.

    Raises:
      ValueError: if `count` is known and 0 or less.
    """
    if count is not None and is_concrete(count) and np.any(np.asarray(count) <= 0):
        remedy = "train first: pass the state that the last update returned"
        raise ValueError(complaint(f"{path}.count", "at least one update", str(count), remedy))


def updated_weight(weight: ArrayLike | PyTree, count: ArrayLike | None) -> ArrayLike | PyTree:
    """`weight`; NaN for a traced state that has seen no gradient, which cannot be refused."""
    if count is None or is_concrete(count):
        return weight
    updated = jnp.asarray(count) > 0
    return jax.tree.map(lambda w: jnp.where(updated, w, jnp.nan), weight)


def align_moment(moment: SecondMoment, params: PyTree) -> SecondMoment:
    """`moment` in the tree structure of `params`; see `align` for what is refused."""
    mu = None if moment.mu is None else align(moment.mu, params, "mu")
    basis = align_basis(moment.basis, params)
    return moment._replace(nu=align(moment.nu, params, "nu"), mu=mu, basis=basis)
