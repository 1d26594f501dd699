"""Draws from a posterior, its log-density and its entropy; leaf by leaf, statistics in float32."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from l2m_optax._support.trees import align, free, subtrees, total
from l2m_optax._support.types import Array, PyTree
from l2m_optax.posterior._drawing import draws
from l2m_optax.posterior._posterior import Posterior, free_mean, free_precision


def sample(
    key: Array, posterior: Posterior, num_samples: int, *, antithetic: bool = False
) -> PyTree:
    r"""Draws $\theta_s = \theta^* + \sqrt{T / (F + \delta)}\, \epsilon_s$.

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
      TypeError: if `num_samples` is no integer.
      ValueError: if it is below 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.ones(4))
      >>> posterior = l2m.laplace(jnp.zeros(4), moment, num_data=100, batch_size=10)
      >>> l2m.sample(jax.random.key(0), posterior, 8).shape
      (8, 4)
    """
    leaves, treedef = jax.tree.flatten(posterior.mean)
    moved = subtrees(draws(key, posterior, num_samples, antithetic), posterior.mean)
    pairs = zip(leaves, moved, strict=True)
    filled = [_repeated(m, num_samples) if d is None else d for m, d in pairs]
    return jax.tree.unflatten(treedef, filled)


@jax.jit
def log_prob(posterior: Posterior, params: PyTree) -> Array:
    r"""Log-density, $\tfrac12 \sum [\log(p / 2\pi) - p (\theta - \theta^*)^2]$; p is the precision.

    Args:
      posterior: a `Posterior`.
      params: θ, like the mean; its values at fixed leaves play no part.

    Returns:
      A scalar, float32 at least.

    Raises:
      ValueError: if `params` does not match the mean in structure or shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.ones(1))
      >>> posterior = l2m.laplace(jnp.zeros(1), moment, num_data=100, batch_size=10)
      >>> bool(l2m.log_prob(posterior, jnp.zeros(1)) > l2m.log_prob(posterior, jnp.ones(1)))
      True
    """
    mean = free_mean(posterior)
    theta = free(align(params, posterior.mean, "params"), mean)

    def density(m: Array, t: Array, p: Array) -> Array:
        deviation = jnp.asarray(t, p.dtype) - jnp.asarray(m, p.dtype)
        return -0.5 * (p * jnp.square(deviation) - jnp.log(p) + math.log(2.0 * math.pi))

    return total(jax.tree.map(density, mean, theta, free_precision(posterior)))


@jax.jit
def entropy(posterior: Posterior) -> Array:
    r"""Differential entropy, $\tfrac12 \sum \log(2 \pi e / p)$ with $p$ the precision, in nats.

    Args:
      posterior: a `Posterior`.

    Returns:
      A scalar, float32 at least; fixed leaves add nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.ones(1))
      >>> posterior = l2m.laplace(jnp.zeros(1), moment, num_data=2, batch_size=1)
      >>> wider = posterior._replace(temperature=2.0)
      >>> bool(l2m.posterior.entropy(wider) > l2m.posterior.entropy(posterior))
      True
    """
    constant = 0.5 * (1.0 + math.log(2.0 * math.pi))
    return total(jax.tree.map(lambda p: constant - 0.5 * jnp.log(p), free_precision(posterior)))


@functools.partial(jax.jit, static_argnums=1)
def _repeated(leaf: Array, number: int) -> Array:
    return jax.vmap(lambda _: leaf)(jnp.arange(number))
