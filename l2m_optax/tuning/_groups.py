"""A posterior with a prior precision for each group of leaves."""

from __future__ import annotations

import jax

from l2m_optax._support.groups import Groups, Labels, group
from l2m_optax._support.trees import broadcast, fill
from l2m_optax._support.types import Array
from l2m_optax.posterior._posterior import Posterior


def grouped(posterior: Posterior, groups: Labels) -> Groups:
    """The groups that a user's labels make of a posterior's free leaves.

    Raises:
      ValueError: if the labels are no prefix tree of the parameters.
    """
    return group(posterior.mean, posterior.second_moment.nu, groups)


def with_prior(posterior: Posterior, grouping: Groups, values: Array) -> Posterior:
    """The posterior with a prior precision for each group."""
    if grouping.names is None:
        return posterior._replace(prior_precision=values[0])
    free_prior = jax.tree.unflatten(
        jax.tree.structure(posterior.second_moment.nu), [values[g] for g in grouping.of_leaf]
    )
    # A fixed leaf has no prior; what it had stays in its place.
    before = broadcast(posterior.prior_precision, posterior.mean)
    return posterior._replace(prior_precision=fill(free_prior, before))
