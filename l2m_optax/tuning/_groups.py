"""Which leaves share a prior precision."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2m_optax._support.checks import complaint
from l2m_optax._support.trees import broadcast, fill, free
from l2m_optax._support.types import Array, PyTree
from l2m_optax.posterior._posterior import Posterior


class Groups(NamedTuple):
    """The free leaves in groups.

    Attributes:
      names: the groups' labels in order; `None` where all leaves are one group without a label.
      of_leaf: for each free leaf the index of its group.
    """

    names: tuple[Hashable, ...] | None
    of_leaf: tuple[int, ...]

    def by_name(self, values: Array) -> Any:
        """One value for each group as a dict by label; without labels the value itself."""
        if self.names is None:
            return values[0]
        return dict(zip(self.names, values, strict=True))

    def with_prior(self, posterior: Posterior, values: Array) -> Posterior:
        """The posterior with a prior precision for each group."""
        if self.names is None:
            return posterior._replace(prior_precision=values[0])
        free_prior = jax.tree.unflatten(
            jax.tree.structure(posterior.second_moment.nu), [values[g] for g in self.of_leaf]
        )
        # A fixed leaf has no prior; what it had stays in its place.
        before = broadcast(posterior.prior_precision, posterior.mean)
        return posterior._replace(prior_precision=fill(free_prior, before))


def group(posterior: Posterior, groups: PyTree | Callable[[PyTree], PyTree] | None) -> Groups:
    """The groups that a user's labels make of the free leaves.

    Raises:
      ValueError: if the labels are no prefix tree of the parameters.
    """
    nu = posterior.second_moment.nu
    if groups is None:
        return Groups(None, (0,) * len(jax.tree.leaves(nu)))
    prefix = groups(posterior.mean) if callable(groups) else groups
    try:
        labels = jax.tree.leaves(free(broadcast(prefix, posterior.mean), nu))
    except ValueError as error:
        remedy = "label leaves or whole modules, as in optax.partition"
        got = reprlib.repr(prefix)
        raise ValueError(complaint("groups", "a prefix of params", got, remedy)) from error
    names = tuple(sorted(set(labels), key=str))
    return Groups(names, tuple(names.index(label) for label in labels))


def sum_by_group(leaves: list[Array], of_leaf: tuple[int, ...]) -> Array:
    """A scalar for each leaf, added up in each group: shape (number of groups,)."""
    return jax.ops.segment_sum(jnp.stack(leaves), jnp.array(of_leaf), max(of_leaf) + 1)
