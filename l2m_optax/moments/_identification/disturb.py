"""A state as it may be much later: its counts ahead, and what it adapts by other numbers.

Prodigy's step size scales its moment and is constant at first, so that no gradient shows it. A
transformation that is mapped over layers has a stack of each number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np


def disturbed(
    state: Sequence[Any],
    numbers: Mapping[str, int],
    snapshots: Sequence[Sequence[np.ndarray]],
    leaves: Mapping[str, tuple[int, ...]],
    jump: int,
) -> list[Any]:
    """The state much later; what is injected stays as it is.

    A hyperparameter changes only if it is scheduled or the user changes it. What lies at the path
    of a scalar parameter is its moment, and no number that the optimizer adapts.

    Args:
      state: its leaves.
      numbers: for each path the index of the leaf, without those that are no numbers.
      snapshots: the values of these before and after the first update, in their order.
      leaves: the shapes of the gradients, by path.
      jump: by how much the counts go ahead.
    """
    growth = dict(zip(numbers, map(_growth, *snapshots), strict=True))
    shapes = {(), *(state[i].shape for path, i in numbers.items() if growth[path] > 0)}
    moments = tuple(path for path, shape in leaves.items() if shape in shapes)
    later = list(state)
    for path, i in numbers.items():
        leaf = state[i]
        if leaf.shape not in shapes or ".hyperparams[" in path:
            continue
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            later[i] = leaf + _ahead(leaf, growth[path], jump)
        elif not path.endswith(moments):
            later[i] = 1.5 * leaf
    return later


def _growth(first: np.ndarray, second: np.ndarray) -> int:
    """By how much whole numbers grow in an update; 0 if those of an array do not grow alike."""
    if not jnp.issubdtype(first.dtype, jnp.integer):
        return 0
    by = np.unique(second - first)
    return int(by[0]) if len(by) == 1 else 0


def _ahead(count: Any, grown: int, jump: int) -> int:
    """By how much a number that grows by `grown` each update goes ahead, within its type."""
    if grown < 1:
        return 0
    return min(jump, int(np.iinfo(count.dtype).max) // 2) // grown * grown
