"""The evidence lower bound, with the posterior as the variational distribution."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from l2m_optax._support.checks import check_count
from l2m_optax._support.trees import broadcast, total
from l2m_optax._support.types import ApplyFn, Array, ArrayLike, Likelihood, PyTree
from l2m_optax.posterior._posterior import Posterior, free_deviation, free_variance
from l2m_optax.predict._outputs import check_call
from l2m_optax.tuning._data import Dataset, check_objective
from l2m_optax.tuning._objectives import Objective


@jax.jit
def kl_divergence(posterior: Posterior) -> Array:
    r"""The Kullback-Leibler divergence of the posterior from its prior.

    $$\mathrm{KL} = \tfrac12 \sum \delta \sigma^2 + \delta (\theta^* - \theta_0)^2 - 1
      - \log(\delta \sigma^2), \qquad \sigma^2 = T / (F + \delta)$$

    Args:
      posterior: a `Posterior`.

    Returns:
      A scalar in nats, float32 at least; fixed leaves add nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.array([0.0, 1.0]))
      >>> posterior = l2m.laplace(jnp.zeros(2), moment, num_data=2, batch_size=1)
      >>> print(f"{l2m.tuning.kl_divergence(posterior):.3f}")
      0.216
    """
    variance = free_variance(posterior)
    prior = broadcast(posterior.prior_precision, variance)

    def divergence(v: Array, delta: Array, d: Array) -> Array:
        ratio = delta * v
        return 0.5 * (ratio + delta * jnp.square(d) - 1.0 - jnp.log(ratio))

    return total(jax.tree.map(divergence, variance, prior, free_deviation(posterior)))


def elbo(
    key: Array,
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree | Iterable[Any],
    targets: ArrayLike | None = None,
    *,
    kind: str = "linearized",
    likelihood: Likelihood | None = None,
    num_samples: int = 32,
    chunk_size: int | None = None,
) -> Array:
    r"""A lower bound of the log evidence, from the training data and the posterior as it is.

    $$\mathrm{ELBO} = \sum_i \mathbb E_{\theta \sim q} \log p(y_i | f(x_i, \theta)) -
      \mathrm{KL}(q \,\|\, p)$$

    Here q is the posterior at its own temperature, and f is the linearised network. It is exact for
    Gaussian noise. Unlike `log_evidence` it does not rely on F: if F is wrong, the bound is low.
    ``tune(..., objective="elbo")`` maximises it.

    Args:
      key: a key of `jax.random` for the draws; the exact bound for Gaussian noise needs none.
      apply_fn: ``apply_fn(params, inputs) -> outputs``; hashable.
      posterior: a `Posterior`.
      inputs: all training inputs, or, without `targets`, a loader of (inputs, targets) pairs.
      targets: as in `tune`.
      kind: ``"linearized"`` or ``"monte_carlo"``, as in `tune`.
      likelihood: as in `tune`.
      num_samples: number of draws.
      chunk_size: draws (without draws: inputs) worked on at a time.

    Returns:
      A scalar in nats, float32 at least; $-\infty$ at temperature 0.

    Raises:
      ValueError: as `tune`.
      TypeError: as `tune`.
      FloatingPointError: as `tune`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> key, x, f = jax.random.key(0), jnp.ones((4, 1)), lambda w, x: x @ w
      >>> moment = l2m.SecondMoment(nu=jnp.ones((1, 1)))
      >>> posterior = l2m.laplace(jnp.zeros((1, 1)), moment, num_data=4, batch_size=1)
      >>> print(f"{l2m.tuning.elbo(key, f, posterior, x, 0.0 * x):.2f}")
      -4.48

    Reference:
      Jordan et al., An introduction to variational methods for graphical models (1999).
    """
    check_call(apply_fn, posterior)
    check_count("num_samples", num_samples)
    data = Dataset(apply_fn, posterior, inputs, targets, likelihood)
    objective = Objective(
        apply_fn, "elbo", kind, data.labels, likelihood, num_samples, chunk_size
    ).resolved()
    check_objective(data, kind, likelihood)
    loss = data.sum(lambda x, y: _loss(objective, posterior, key, x, y), "ELBO")
    return -loss - kl_divergence(posterior)


@functools.partial(jax.jit, static_argnums=0)
def _loss(
    objective: Objective, posterior: Posterior, key: Array, inputs: PyTree, y: Array
) -> Array:
    return objective.loss(posterior, key, inputs, y)(jnp.log(posterior.temperature))
