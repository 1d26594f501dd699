"""A temperature without validation data: small, and smaller where the data are interpolated."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import complaint
from l2m_optax._support.trees import broadcast
from l2m_optax._support.types import Array, ArrayLike
from l2m_optax.moments._evidence import OVERCOUNT, determined
from l2m_optax.posterior._posterior import Posterior, are_correlated, data_precision

OF_CLASSES = 0.1
"""The temperature where the data determine as many parameters as there are numbers in them."""

OF_NUMBERS = 0.03
"""The temperature for regressions, with the noise that goes with it."""


@jax.jit
def cold_temperature(posterior: Posterior, num_classes: ArrayLike) -> Array:
    r"""$T = 0.1\, \gamma / (a N K)$: a temperature for all layers, from the state alone.

    At T = 1 a posterior of all layers is too wide: the directions that the data do not determine
    add up. γ counts the parameters that they do determine, of the N·K numbers that N observations
    of K classes can; where the data are interpolated F vanishes, and γ with it. A diagonal counts
    each of them many times, and a = 10. Leaves with correlations, in a basis, have a = 1. Each of
    the two kinds of leaves adds its part, of which γ / (N K) is taken to be 1 at most.

    The factor 0.1 is an observation: it was good for small networks and ordinary data, see the
    benchmarks. A network that is not trained to the end may be better left as it is, which only
    validation data can tell.

    Args:
      posterior: a `Posterior` whose prior precision was fitted, and that knows its `num_data`, N.
      num_classes: K.

    Returns:
      T, a scalar: at most 0.01 of a diagonal.

    Raises:
      ValueError: if the posterior does not know its `num_data`.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.ones((3, 2)))
      >>> posterior = l2m.laplace(jnp.ones((3, 2)), moment, num_data=100, batch_size=10)
      >>> print(f"{l2m.tuning.cold_temperature(posterior, 2):.6f}")
      0.000300
    """
    if posterior.num_data is None:
        remedy = "pass posterior._replace(num_data=N)"
        expected = "the number of training examples"
        raise ValueError(complaint("posterior.num_data", expected, "None", remedy))
    data = data_precision(posterior)
    prior = broadcast(posterior.prior_precision, data)
    gammas = jax.tree.map(lambda f, d: jnp.sum(determined(f, d)), data, prior)
    of_leaf, correlated = jnp.stack(jax.tree.leaves(gammas)), np.array(are_correlated(posterior))

    def share(kind: np.ndarray) -> Array:
        gamma = jnp.sum(of_leaf, where=kind)
        return jnp.minimum(gamma / (jnp.asarray(posterior.num_data) * num_classes), 1.0)

    return OF_CLASSES * (share(~correlated) / OVERCOUNT + share(correlated))
