r"""A basis, or products of the gradient, with a matrix for each axis: SOAP's state, and Shampoo's.

`Basis` has two sides. The axes are split into two groups of neighbours, those whose matrices take
the least memory, and the matrices of a group become one, their Kronecker product. Leading axes b
may number a stack: then each matrix is a stack too, of shape (\*b, size, size).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import jax.numpy as jnp

from l2m_optax._support.trees import statistics_dtype
from l2m_optax._support.types import Array, ArrayLike
from l2m_optax.moments._basis import Basis
from l2m_optax.moments._eigenbasis import eigen, shares
from l2m_optax.moments._moment import leading


def basis_of_axes(shape: Sequence[int], matrices: Sequence[Array | None]) -> Basis:
    r"""The basis of an array with a matrix, or `None`, for each of its axes.

    Args:
      shape: that of the array; axes in front of those with matrices number a stack.
      matrices: for each axis of shape (\*b, size, size), with as many members as the stack.
    """
    axes = len(shape) - len(matrices)
    stack, shape = tuple(shape[:axes]), tuple(shape[axes:])
    matrices = [None if m is None else restacked(m, stack) for m in matrices]
    if len(shape) == 1:
        return Basis(matrices[0], None)
    splits = range(1, len(shape))
    best = min(
        splits, key=lambda i: _entries(shape[:i], matrices) + _entries(shape[i:], matrices[i:])
    )
    left = _together(shape[:best], matrices[:best])
    return Basis(left, _together(shape[best:], matrices[best:]))


def restacked(matrices: Array, stack: Sequence[int]) -> Array:
    """A stack of matrices with other leading axes, for as many members."""
    shape = (*stack, *matrices.shape[-2:])
    return matrices if matrices.shape == shape else jnp.reshape(matrices, shape)


def _entries(shape: Sequence[int], matrices: Sequence[Array | None]) -> int:
    """The entries of the matrix of a group of axes."""
    held = [m for m, _ in zip(matrices, shape, strict=False) if m is not None]
    return math.prod(shape) ** 2 if held else 0


def _together(shape: Sequence[int], matrices: Sequence[Array | None]) -> Array | None:
    """The Kronecker product of the matrices of neighbouring axes."""
    held = [matrix for matrix in matrices if matrix is not None]
    if not held:
        return None
    dtype, stack = statistics_dtype(*held), held[0].shape[:-2]
    sides = [
        jnp.broadcast_to(jnp.eye(size, dtype=dtype), (*stack, size, size))
        if matrix is None
        else jnp.asarray(matrix, dtype)
        for size, matrix in zip(shape, matrices, strict=True)
    ]
    return reduce(_kron, sides)


def _kron(a: Array, b: Array) -> Array:
    """The Kronecker products of stacks of matrices."""
    size = a.shape[-1] * b.shape[-1]
    product = a[..., :, None, :, None] * b[..., None, :, None, :]
    return jnp.reshape(product, (*product.shape[:-4], size, size))


def moment_of_products(matrices: Sequence[Array], offset: ArrayLike) -> tuple[Array, Basis]:
    r"""The second moment that products of the gradient along each axis determine, in its basis.

    With the eigenvalues $\lambda^{(a)}$ of the product along axis a, all of which have the sum t,
    it is $t \prod_a \lambda^{(a)}_{i_a} / t$, as in `in_eigenbases`.

    Args:
      matrices: $\sum G_{(a)} G_{(a)}^\top$, for each axis one, of shape (\*b, size, size).
      offset: what each holds besides, times the identity; a number, or one for each member.

    Returns:
      The moment, with the axes b and an axis for each matrix, and the basis.
    """
    precise = [jnp.asarray(matrix, statistics_dtype(matrix)) for matrix in matrices]
    pairs = [pair for pair in eigen(precise) if pair is not None]
    values = [jnp.maximum(w - leading(offset, w), 0.0) for w, _ in pairs]  # NaN stays
    total = reduce(jnp.add, [jnp.sum(w, axis=-1) for w in values]) / len(values)
    moment = reduce(_outer, [shares(w) for w in values], total)
    return moment, basis_of_axes(moment.shape, [vectors for _, vectors in pairs])


def _outer(a: Array, b: Array) -> Array:
    """The outer products of stacks of arrays and vectors."""
    stacked = b.ndim - 1
    return a[..., None] * jnp.expand_dims(b, tuple(range(stacked, a.ndim)))
