"""Draws from a posterior, its log-density and its entropy; leaf by leaf, statistics in float32."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from l2m_optax._support.checks import check_positive, is_positive
from l2m_optax._support.trees import align, free, statistics_dtype, subtrees, total
from l2m_optax._support.types import Array, PyTree
from l2m_optax.moments._basis import over_leaves, rotate_into
from l2m_optax.posterior._drawing import draws
from l2m_optax.posterior._posterior import Posterior, check_posterior, free_mean, free_precision


def sample(
    key: Array, posterior: Posterior, num_samples: int, *, antithetic: bool = False
) -> PyTree:
    r"""Draws $\theta_s = \theta^* + Q \sqrt{T / (F + \delta)}\, \epsilon_s$.

    Q is the basis of the second moment; without one it is the identity.

    Outside of `jax.jit` each shape of leaf is compiled once, however many leaves there are.

    Args:
      key: a key of `jax.random`.
      posterior: a `Posterior`.
      num_samples: S, number of draws.
      antithetic: draw the second half as mirror images of the first, which makes the mean of the
        draws exact (for an even S) and lowers the variance of odd functions of them.

    Returns:
      A tree like the mean with a leading axis of size S, in the parameters' own dtype; fixed
      leaves are repeated.

    Raises:
      TypeError: if the arguments are in another order, or `num_samples` is no integer.
      ValueError: if `num_samples` is below 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.ones(4))
      >>> posterior = l2m.laplace(jnp.zeros(4), moment, num_data=100, batch_size=10)
      >>> l2m.sample(jax.random.key(0), posterior, 8).shape
      (8, 4)
    """
    check_posterior(posterior, "pass (key, posterior, num_samples) in this order")
    leaves, treedef = jax.tree.flatten(posterior.mean)
    moved = subtrees(draws(key, posterior, num_samples, antithetic), posterior.mean)
    pairs = zip(leaves, moved, strict=True)
    filled = [_repeated(m, num_samples) if d is None else d for m, d in pairs]
    return jax.tree.unflatten(treedef, filled)


def log_prob(posterior: Posterior, params: PyTree) -> Array:
    r"""Log-density, $\tfrac12 \sum [\log(p / 2\pi) - p (\theta - \theta^*)^2]$; p is the precision.

    Where the second moment has a basis, p and $\theta - \theta^*$ are along that basis.

    Args:
      posterior: a `Posterior`.
      params: θ, like the mean; its values at fixed leaves are not used.

    Returns:
      A scalar, float32 at least; NaN at a temperature of 0 that is traced.

    Raises:
      ValueError: if `params` does not match the mean in structure or shapes, or the temperature is
        0, at which the posterior is the mode itself and has no density.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.ones(1))
      >>> posterior = l2m.laplace(jnp.zeros(1), moment, num_data=100, batch_size=10)
      >>> bool(l2m.log_prob(posterior, jnp.zeros(1)) > l2m.log_prob(posterior, jnp.ones(1)))
      True
    """
    _check_width(posterior)
    return _log_prob(posterior, params)


@jax.jit
def _log_prob(posterior: Posterior, params: PyTree) -> Array:
    mean = free_mean(posterior)
    theta = free(align(params, posterior.mean, "params"), mean)

    def subtract(t: Array, m: Array) -> Array:
        dtype = statistics_dtype(m)
        return jnp.asarray(t, dtype) - jnp.asarray(m, dtype)

    def density(d: Array, p: Array) -> Array:
        return -0.5 * (p * jnp.square(d) - jnp.log(p) + math.log(2.0 * math.pi))

    deviation = jax.tree.map(subtract, theta, mean)
    deviation = over_leaves(rotate_into, posterior.second_moment.basis, deviation)
    found = total(jax.tree.map(density, deviation, free_precision(posterior)))
    return jnp.where(is_positive(posterior.temperature), found, jnp.nan)


def entropy(posterior: Posterior) -> Array:
    r"""Differential entropy, $\tfrac12 \sum \log(2 \pi e / p)$ with $p$ the precision, in nats.

    Args:
      posterior: a `Posterior`.

    Returns:
      A scalar, float32 at least; fixed leaves add nothing. NaN at a temperature of 0 that is
      traced.

    Raises:
      ValueError: if the temperature is 0, at which the posterior is the mode itself.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.ones(1))
      >>> posterior = l2m.laplace(jnp.zeros(1), moment, num_data=2, batch_size=1)
      >>> wider = posterior._replace(temperature=2.0)
      >>> bool(l2m.posterior.entropy(wider) > l2m.posterior.entropy(posterior))
      True
    """
    _check_width(posterior)
    return _entropy(posterior)


@jax.jit
def _entropy(posterior: Posterior) -> Array:
    constant = 0.5 * (1.0 + math.log(2.0 * math.pi))
    found = total(jax.tree.map(lambda p: constant - 0.5 * jnp.log(p), free_precision(posterior)))
    return jnp.where(is_positive(posterior.temperature), found, jnp.nan)


def _check_width(posterior: Posterior) -> None:
    """Refuse T = 0: the mode alone has no density."""
    remedy = "the mode itself, T = 0, has no density: use the posterior before it was cooled"
    check_positive("posterior.temperature", posterior.temperature, remedy)


@functools.partial(jax.jit, static_argnums=1)
def _repeated(leaf: Array, number: int) -> Array:
    return jax.vmap(lambda _: leaf)(jnp.arange(number))
