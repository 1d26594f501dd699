"""The moment of a leaf for which a state keeps matrices, in their basis.

Axes in front of those that have a matrix number a stack: layers that `jax.lax.scan` goes through,
experts, the members of an ensemble. The state may hold them, and all other axes, merged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from l2m_optax._support.checks import complaint
from l2m_optax._support.types import Array, ArrayLike
from l2m_optax.moments._axes import basis_of_axes, moment_of_products, restacked
from l2m_optax.moments._basis import Basis
from l2m_optax.moments._identification.verdict import LeafMoment

_REMEDY = "pass the transformation that made the state, as tx"


def with_basis(
    moment: LeafMoment,
    squares: Any,
    matrices: Sequence[Any],
    offset: ArrayLike,
    shape: tuple[int, ...],
) -> tuple[Array, Basis]:
    """The second moment of a leaf, and its basis.

    Args:
      moment: what was found.
      squares: the array at its path; `None` if the matrices are products, which determine it.
      matrices: what is held at the paths of its matrices.
      offset: what each product holds besides, times the identity.
      shape: the shape of the leaf, without the axes of an ensemble.

    Raises:
      TypeError: naming an array that does not have the shape that it should have.
    """
    if squares is None:
        _check_matrices(moment.matrices, matrices, _of_products(matrices))
        nu, basis = moment_of_products(matrices, offset)
    else:
        _check_matrices(moment.matrices, matrices, jnp.shape(squares))
        nu, basis = squares, basis_of_axes(jnp.shape(squares), matrices)
    shape = _with_members(moment.path, shape, jnp.shape(nu))
    return nu if jnp.shape(nu) == shape else jnp.reshape(nu, shape), _of_leaf(basis, shape)


def _of_products(matrices: Sequence[Any]) -> tuple[int, ...]:
    """The shape of the moment that products along all axes determine."""
    return (*jnp.shape(matrices[0])[:-2], *(jnp.shape(m)[-1] for m in matrices))


def _check_matrices(
    paths: Sequence[str | None], matrices: Sequence[Any], shape: tuple[int, ...]
) -> None:
    """Refuse matrices that do not go with the axes of an array.

    Raises:
      TypeError: naming the first of them.
    """
    axes = len(shape) - len(matrices)
    for path, matrix, size in zip(paths, matrices, shape[axes:], strict=True):
        if matrix is None:
            continue
        *stack, rows, columns = jnp.shape(matrix)
        if (math.prod(stack), rows, columns) != (math.prod(shape[:axes]), size, size):
            expected = f"shape {(*shape[:axes], size, size)}, for an array of shape {shape}"
            got = str(jnp.shape(matrix))
            raise TypeError(complaint(f"opt_state{path}", expected, got, _REMEDY))


def _with_members(path: str, shape: tuple[int, ...], held: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a leaf, after the axes of an ensemble if what is held of the leaf has them.

    Raises:
      TypeError: if what is held is neither of one leaf nor of an ensemble of it.
    """
    size = math.prod(shape)
    axes = next((i for i in range(len(held) + 1) if math.prod(held[i:]) == size), None)
    if axes is None:
        expected, got = f"what is held of a leaf of shape {shape}", f"that of shape {held}"
        raise TypeError(complaint(f"opt_state{path}", expected, got, _REMEDY))
    return held[:axes] + shape


def _of_leaf(basis: Basis, shape: tuple[int, ...]) -> Basis:
    """The basis whose stack has the leading axes of the leaf."""
    size = next(math.prod(side.shape[:-2]) for side in basis if side is not None)
    axes = next(i for i in range(len(shape) + 1) if math.prod(shape[:i]) == size)
    left, right = (None if side is None else restacked(side, shape[:axes]) for side in basis)
    return Basis(left, right)
