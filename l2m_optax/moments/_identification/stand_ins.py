"""The shapes that a transformation is probed on: real where they are small, cut where not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp

from l2m_optax._support.types import PyTree
from l2m_optax.moments._identification.trace import Program, owner

MOST_ENTRIES = 2**16
"""Leaves are probed as they are, the smallest first, up to this number of entries together."""


def small_leaves(shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """The paths of the smallest leaves, which have `MOST_ENTRIES` together at most."""
    order = sorted(shapes, key=lambda path: math.prod(shapes[path]))
    totals = accumulate(math.prod(shapes[path]) for path in order)
    return {path for path, total in zip(order, totals, strict=True) if total <= MOST_ENTRIES}


def cut(program: Program, lengths: Mapping[str, int]) -> PyTree:
    """The parameters of a program in other shapes.

    Args:
      program: the program.
      lengths: for some leaves, by the path of their gradient, the longest axis that they keep.

    Returns:
      A tree of `jax.ShapeDtypeStruct`.
    """

    def shape(path: str, leaf: Any) -> Any:
        longest = lengths.get(owner(path, program.gradients) or "")
        struct: Any = jax.ShapeDtypeStruct
        return struct(leaf.shape if longest is None else cut_shape(leaf.shape, longest), leaf.dtype)

    return program.treedef.unflatten([shape(*pair) for pair in program.params.items()])


def cut_shape(shape: tuple[int, ...], longest: int) -> tuple[int, ...]:
    """Axes of at most about `longest` entries, ordered by length as those of `shape` are."""
    longer = sorted({d for d in shape if d > longest})
    return tuple(longest + longer.index(d) if d > longest else d for d in shape)


def num_entries(params: PyTree) -> int:
    """The number of entries of all leaves together."""
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params))
