"""A temperature without validation data: small, and smaller where the data are interpolated."""

from __future__ import annotations

import jax.numpy as jnp

from l2m_optax._support.types import Array, ArrayLike
from l2m_optax.posterior._posterior import Posterior
from l2m_optax.tuning._evidence import effective_parameters

OF_CLASSES = 0.01
"""The temperature of a classifier whose γ is N·K, the most that its data can determine."""

OF_NUMBERS = 0.03
"""The temperature for regressions; `fit` finds the noise that belongs to it."""


def cold_temperature(posterior: Posterior, num_classes: ArrayLike) -> Array:
    r"""$T = 0.01\, \gamma / (N K)$: a temperature for all layers, from the state alone.

    At T = 1 a diagonal of all layers is too wide: the directions that the data do not determine
    add up. γ is the number of parameters that the data do determine; N observations of K classes
    can determine N·K at most. If the network interpolates the data, F vanishes, and γ with it. The
    factor 0.01 is an observation: it was the best for small networks and ordinary data, see the
    benchmarks. For a network that is not trained to the end the mode, T = 0, may be better. Only
    validation data can show that.

    Args:
      posterior: a `Posterior` whose prior precision was fitted, and that knows its `num_data`, N.
      num_classes: K.

    Returns:
      T, a scalar of at most 0.01.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.ones((3, 2)))
      >>> posterior = l2m.laplace(jnp.ones((3, 2)), moment, num_data=100, batch_size=10)
      >>> print(f"{l2m.tuning.cold_temperature(posterior, 2):.6f}")
      0.000300
    """
    share = effective_parameters(posterior) / (jnp.asarray(posterior.num_data) * num_classes)
    return OF_CLASSES * jnp.minimum(share, 1.0)
