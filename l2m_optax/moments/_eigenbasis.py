r"""Running means of $G G^\top$ and $G^\top G$, and the second moment in their eigenbases.

With the eigenvalues $\lambda$ of $L = \mathbb{E}[G G^\top]$ and $\mu$ of
$R = \mathbb{E}[G^\top G]$, the moment in the eigenbases is taken to be the Kronecker product
$\lambda_i \mu_j / t$. Here $t = \mathrm{tr}\, L = \mathrm{tr}\, R = \sum \nu$ is the trace that all
three have in common. It is exact where $\mathbb{E}[\mathrm{vec}(G) \mathrm{vec}(G)^\top]$ is such a
product: for a dense layer, where inputs and cotangents are independent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.shardings import everywhere, explicit_sharding, moved_to
from l2m_optax._support.trees import subtrees
from l2m_optax._support.types import Array, PyTree
from l2m_optax.moments._basis import Basis, fold


class Factors(NamedTuple):
    r"""Mean products of the gradient of one leaf with itself; `Basis` says how it is folded.

    Attributes:
      left: the mean of $G G^\top$, of shape (\*b, m, m), or `None`.
      right: the mean of $G^\top G$, of shape (\*b, n, n), or `None`.
    """

    left: Array | None
    right: Array | None


def mean_products(like: Factors, gradients: Array) -> Factors:
    """The factors of a stack of gradients of one leaf: their mean over the leading axis."""
    g = jax.vmap(lambda one: fold(*like, one))(everywhere(gradients))
    left, right = (
        None
        if side is None
        else jnp.einsum(summed, g, g, precision=jax.lax.Precision.HIGHEST) / len(gradients)
        for side, summed in zip(like, ("s...ij,s...kj->...ik", "s...ij,s...ik->...jk"), strict=True)
    )
    return Factors(left, right)


def in_eigenbases(nu: PyTree, factors: PyTree) -> tuple[PyTree, PyTree]:
    """A second moment in the eigenbases of its factors, and these bases.

    Matrices of one size are decomposed together, which compiles once for all of them.

    Args:
      nu: the mean of squares of the gradients themselves.
      factors: `Factors` or `None` for each leaf of `nu`.

    Returns:
      The mean of squares in the bases, and a tree of `Basis` and `None`, both like `nu`.
    """
    leaves, treedef = jax.tree.flatten(nu)
    held = [one or Factors(None, None) for one in subtrees(factors, nu)]
    sides = eigen([side for one in held for side in one])
    triples = zip(leaves, sides[::2], sides[1::2], strict=True)
    pairs = [_kronecker(leaf, left, right) for leaf, left, right in triples]
    moved, basis = (jax.tree.unflatten(treedef, part) for part in zip(*pairs, strict=True))
    return moved, basis


Eigen = tuple[Array, Array] | None


@jax.jit
def _kronecker(nu: Array, left: Eigen, right: Eigen) -> tuple[Array, Basis | None]:
    """The Kronecker product of the eigenvalues with the trace of `nu`, and the eigenvectors.

    A side without a factor stays as it is, and has the sums of `nu` for eigenvalues.
    """
    if left is None and right is None:
        return nu, None
    basis = Basis(None if left is None else left[1], None if right is None else right[1])
    folded = fold(*basis, everywhere(nu))
    rows = jnp.sum(folded, axis=-1) if left is None else left[0]
    columns = jnp.sum(folded, axis=-2) if right is None else right[0]
    total = jnp.sum(folded, axis=(-2, -1))[..., None, None]
    product = shares(rows)[..., :, None] * shares(columns)[..., None, :]
    moment = jnp.reshape(total * product, nu.shape)
    return moved_to(moment, explicit_sharding(nu)), basis


def shares(values: Array) -> Array:
    """Eigenvalues divided by their sum; rounding makes some negative, and these become 0."""
    values = jnp.where(values < 0, 0.0, values)  # NaN stays
    total = jnp.sum(values, axis=-1, keepdims=True)
    return values / jnp.where(total == 0, 1.0, total)


def eigen(matrices: Sequence[Array | None]) -> list[Eigen]:
    """The eigenvalues and eigenvectors of each matrix or stack; one call for each size."""
    alike: dict[tuple[int, jnp.dtype], dict[int, Array]] = defaultdict(dict)
    for i, matrix in enumerate(matrices):
        if matrix is not None:
            alike[matrix.shape[-1], matrix.dtype][i] = matrix
    found: list[Eigen] = [None] * len(matrices)
    for members in alike.values():
        for i, pair in zip(members, _decompose(list(members.values())), strict=True):
            found[i] = pair
    return found


@jax.jit
def _decompose(matrices: list[Array]) -> list[tuple[Array, Array]]:
    """The eigenvalues and eigenvectors of matrices, or stacks of them, all of one size."""
    size = matrices[0].shape[-1]
    stacks = [jnp.reshape(matrix, (-1, size, size)) for matrix in matrices]
    values, vectors = jnp.linalg.eigh(jnp.concatenate(stacks))
    ends = np.cumsum([len(stack) for stack in stacks])[:-1]
    parts = zip(matrices, jnp.split(values, ends), jnp.split(vectors, ends), strict=True)
    return [(w.reshape(one.shape[:-1]), q.reshape(one.shape)) for one, w, q in parts]
