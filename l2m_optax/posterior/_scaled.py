"""The posterior of a network whose outputs are multiplied by a number."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from l2m_optax._support.trees import broadcast, free
from l2m_optax._support.types import Array, ArrayLike, PyTree
from l2m_optax.posterior._posterior import Posterior


def scale_leaves(posterior: Posterior, leaves: PyTree, factor: ArrayLike) -> Posterior:
    r"""The posterior of $c\,\theta$ for the parameters θ of some leaves.

    If the outputs are linear in these leaves, without a constant, they are multiplied by c. Nothing
    else changes: the variance is multiplied by c², and F, δ and the squared gradients are divided
    by it, so that every parameter is as well determined as before. The training loss of the new
    outputs is not known.

    Args:
      posterior: a `Posterior`.
      leaves: a tree of booleans like the mean.
      factor: c > 0, shape ().
    """

    def times(power: int, tree: PyTree) -> PyTree:
        chosen = free(leaves, tree)
        return jax.tree.map(lambda x, c: _times(x, factor, power) if c else x, tree, chosen)

    moment, prior = posterior.second_moment, posterior.prior_precision
    return posterior._replace(
        mean=times(1, posterior.mean),
        second_moment=moment._replace(
            nu=times(-2, moment.nu),
            offset=times(-2, broadcast(moment.offset, moment.nu)),
            mu=None if moment.mu is None else times(-1, moment.mu),
        ),
        prior_precision=times(-2, broadcast(prior, posterior.mean)),
        prior_mean=None if posterior.prior_mean is None else times(1, posterior.prior_mean),
        training_loss=None,
    )


def _times(x: ArrayLike, factor: ArrayLike, power: int) -> Array:
    x = jnp.asarray(x)
    return (x * jnp.asarray(factor) ** power).astype(x.dtype)
