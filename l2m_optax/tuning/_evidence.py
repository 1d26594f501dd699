"""The marginal likelihood of a diagonal Laplace posterior, in closed form and without data."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from l2m_optax._support.trees import broadcast, total
from l2m_optax._support.types import Array, ArrayLike
from l2m_optax.moments._evidence import determined, penalty
from l2m_optax.posterior._posterior import Posterior, data_precision, free_deviation


@jax.jit
def log_evidence(posterior: Posterior, log_likelihood: ArrayLike = 0.0) -> Array:
    r"""Laplace's approximation of the log marginal likelihood.

    $$\log p(D|\delta) = \log p(D|\theta^*) - \tfrac12 \sum \delta (\theta^* - \theta_0)^2
      - \tfrac12 \sum \log\frac{F + \delta}{\delta}$$

    It is the evidence of the posterior at temperature 1, whatever its temperature.

    Args:
      posterior: a `Posterior`.
      log_likelihood: summed over the data at θ*, in nats; without it the result is right up to a
        constant in δ, which is enough to compare priors.

    Returns:
      A scalar, float32 at least; fixed leaves add nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.ones(2))
      >>> posterior = l2m.laplace(jnp.zeros(2), moment, num_data=4, batch_size=1)
      >>> print(f"{l2m.tuning.log_evidence(posterior):.4f}")
      -1.6094

    Reference:
      MacKay, A practical Bayesian framework for backpropagation networks (1992); Immer et al.,
      Scalable marginal likelihood estimation (2021).
    """
    data = data_precision(posterior)
    prior = broadcast(posterior.prior_precision, data)
    penalties = jax.tree.map(penalty, data, prior, free_deviation(posterior))
    return jnp.asarray(log_likelihood) - total(penalties)


@jax.jit
def effective_parameters(posterior: Posterior) -> Array:
    r"""How many parameters the data determine, $\gamma = \sum F / (F + \delta)$.

    Args:
      posterior: a `Posterior`.

    Returns:
      A scalar between 0 and the number of free parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.array([0.0, 1.0]))
      >>> posterior = l2m.laplace(jnp.zeros(2), moment, num_data=2, batch_size=1)
      >>> print(f"{l2m.tuning.effective_parameters(posterior):.3f}")
      0.667
    """
    data = data_precision(posterior)
    prior = broadcast(posterior.prior_precision, data)
    return total(jax.tree.map(determined, data, prior))
