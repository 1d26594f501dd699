"""Which products of gradients a tracker keeps for each leaf, and how much memory they take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from l2m_optax._support.checks import complaint, path_name
from l2m_optax._support.trees import entry_key, for_each_leaf, statistics_dtype
from l2m_optax._support.types import PyTree
from l2m_optax.moments._eigenbasis import Factors


class Stacked(NamedTuple):
    """A structure for each matrix of a leaf that is a stack of them.

    Attributes:
      structure: "kronecker" or "full".
      axes: how many leading axes of the leaf number the matrices.
    """

    structure: str
    axes: int = 1


Structure: TypeAlias = str | Stacked | Callable[[tuple[Any, ...], tuple[int, ...]], Any] | PyTree
"""A label for all leaves, a prefix tree of labels, or a function of a leaf's path and shape."""

_Shapes: TypeAlias = tuple[tuple[int, ...] | None, tuple[int, ...] | None]
"""The shapes of the two products of one leaf, as in `Factors`."""
_LABELS = ("diagonal", "kronecker", "full")


def zero_factors(structure: Structure, params: PyTree, max_side: int, max_bytes: int) -> PyTree:
    """Zeros for the products that are kept of each leaf, `None` where there are none.

    Raises:
      ValueError: if a label is unknown, or all products together take more than `max_bytes`.
    """
    leaves, treedef = jax.tree.flatten(params)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    labels = _labels(structure, params)
    dtypes = [statistics_dtype(leaf) for leaf in leaves]
    shapes = [
        _shapes(path, label, jnp.shape(leaf), max_side)
        for path, label, leaf in zip(paths, labels, leaves, strict=True)
    ]
    _check_memory(paths, shapes, dtypes, max_bytes)
    return jax.tree.unflatten(treedef, map(_zeros, shapes, dtypes))


def _zeros(shapes: _Shapes, dtype: jnp.dtype) -> Factors | None:
    if shapes == (None, None):
        return None
    return Factors(*(None if shape is None else jnp.zeros(shape, dtype) for shape in shapes))


def _labels(structure: Structure, params: PyTree) -> list[Any]:
    """The label of each leaf.

    Raises:
      ValueError: if the labels are not a prefix tree of the parameters.
    """
    if callable(structure):
        return [
            structure(tuple(entry_key(entry) for entry in path), jnp.shape(leaf))
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        ]
    try:
        return for_each_leaf(structure, params, lambda node: isinstance(node, Stacked))
    except ValueError as error:
        remedy = "label leaves or whole modules, as in optax.partition"
        got = f"{structure!r:.200}"
        raise ValueError(
            complaint("structure", "a prefix of the parameters", got, remedy)
        ) from error


def _shapes(path: Any, label: Any, shape: tuple[int, ...], max_side: int) -> _Shapes:
    """The shapes of the products of one leaf."""
    structure, axes = label if isinstance(label, Stacked) else Stacked(label, 0)
    if structure not in _LABELS or not 0 <= axes <= len(shape):
        expected = f"one of {', '.join(_LABELS)}, or Stacked of one for a leaf of shape {shape}"
        remedy = "label each leaf, or write a function of its path and shape"
        raise ValueError(
            complaint(path_name(path, "structure"), expected, f"{label!r:.100}", remedy)
        )
    stacked, rest = shape[:axes], shape[axes:]
    if structure == "diagonal" or not math.prod(shape):
        return None, None
    whole = math.prod(rest)
    left, right = (whole, 1) if structure == "full" and whole <= max_side else _sides(rest)
    kept = [(*stacked, n, n) if 1 < n <= max_side else None for n in (left, right)]
    return kept[0], kept[1]


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """The two groups of neighbouring axes whose products take the least memory."""
    splits = [(math.prod(shape[:i]), math.prod(shape[i:])) for i in range(1, max(2, len(shape)))]
    return min(splits, key=lambda sides: sides[0] ** 2 + sides[1] ** 2)


def _check_memory(
    paths: list[Any], shapes: list[_Shapes], dtypes: list[jnp.dtype], max_bytes: int
) -> None:
    """Refuse products of more than `max_bytes`, before anything is allocated.

    Raises:
      ValueError: naming the leaf whose products are the largest.
    """
    sizes = [
        dtype.itemsize * sum(math.prod(shape) for shape in pair if shape is not None)
        for pair, dtype in zip(shapes, dtypes, strict=True)
    ]
    if sum(sizes) > max_bytes:
        largest = max(range(len(sizes)), key=sizes.__getitem__)
        where = path_name(paths[largest], "structure")
        got = f"{sum(sizes):,}, of which {sizes[largest]:,} here"
        remedy = "label this leaf 'diagonal', lower max_side, or raise max_bytes"
        raise ValueError(complaint(where, f"at most {max_bytes:,} bytes", got, remedy))
