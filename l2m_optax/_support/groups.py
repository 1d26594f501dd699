"""Which leaves share a value."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from l2m_optax._support.checks import complaint
from l2m_optax._support.trees import broadcast, free, words
from l2m_optax._support.types import Array, PyTree

Labels: TypeAlias = PyTree | Callable[[PyTree], PyTree] | None
"""A prefix tree of labels, a function from the parameters to one, or `None` for one group."""


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


def group(params: PyTree, held: PyTree, groups: Labels) -> Groups:
    """The groups that a user's labels make of the free leaves, those at which `held` has one.

    Raises:
      ValueError: if the labels are no prefix tree of the parameters.
    """
    if groups is None:
        return Groups(None, (0,) * len(jax.tree.leaves(held)))
    prefix = groups(params) if callable(groups) else groups
    try:
        labels = jax.tree.leaves(free(broadcast(prefix, params), held))
    except ValueError as error:
        remedy = "label leaves or whole modules, as in optax.partition"
        got = reprlib.repr(prefix)
        raise ValueError(complaint("groups", "a prefix of params", got, remedy)) from error
    names = tuple(sorted(set(labels), key=str))
    return Groups(names, tuple(names.index(label) for label in labels))


def by_module(params: PyTree) -> PyTree:
    """A label for each leaf: the path of what holds it, so that kernel and bias share one.

    Args:
      params: the parameters.

    Returns:
      A tree of strings like `params`.

    Example:
      >>> from l2m_optax import transforms
      >>> transforms.by_module({"Dense_0": {"kernel": 1.0, "bias": 0.0}, "scale": 1.0})
      {'Dense_0': {'bias': 'Dense_0', 'kernel': 'Dense_0'}, 'scale': ''}
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: "/".join(words(path)[:-1]), params)


def sum_by_group(leaves: list[Array], of_leaf: tuple[int, ...]) -> Array:
    """A scalar for each leaf, added up in each group: shape (number of groups,)."""
    return jax.ops.segment_sum(jnp.stack(leaves), jnp.array(of_leaf), max(of_leaf) + 1)
