r"""A basis for the second moment of a leaf: rotations of one or both sides of a matrix.

A leaf is folded into a matrix G of shape (m, n), or a stack of them, and its second moment is the
mean of $(\text{left}^\top G\, \text{right})^2$. A prior precision that is one number a leaf is the
same in every basis. So sums over F, such as the evidence, need no basis. The functions here are for
single entries of the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import check_alive, check_finite, complaint, is_concrete, path_name
from l2m_optax._support.shardings import everywhere, explicit_sharding, moved_to
from l2m_optax._support.trees import for_each_leaf, statistics_dtype
from l2m_optax._support.types import Array, PyTree

_ORTHOGONAL = 0.05
"""How far an entry of QᵀQ may be from that of the identity: bfloat16 rounds by 0.01 or less."""


class Basis(NamedTuple):
    r"""Two orthogonal matrices Q, whose columns are a basis for the sides of a leaf.

    Their shapes say how the leaf is folded. Leading axes b of `left` and `right` are the leading
    axes of the leaf too: it is a stack of matrices, each with a basis of its own. The other axes of
    the leaf are split into two groups of neighbours, whose sizes multiply to m and to n. If the
    leaf is raveled, `left` has the shape (size, size), and the covariance is a full matrix.

    Attributes:
      left: of shape (\*b, m, m), or `None` for the identity.
      right: of shape (\*b, n, n), or `None` for the identity.

    Example:
      An optimizer that keeps its moment in a basis, as SOAP does, is read by hand:

      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> params = {"w": jnp.zeros((2, 2))}
      >>> left = jnp.array([[0.6, -0.8], [0.8, 0.6]])
      >>> basis = l2m.moments.Basis(left, jnp.eye(2))
      >>> nu = {"w": jnp.array([[0.0, 3.0], [1.0, 0.0]])}
      >>> moment = l2m.SecondMoment(nu, basis={"w": basis})
      >>> posterior = l2m.laplace(params, moment, num_data=101, batch_size=1)
      >>> l2m.variance(posterior)["w"].shape
      (2, 2)

    Reference:
      Vyas et al., SOAP: improving and stabilizing Shampoo using Adam (2024).
    """

    left: Array | None = None
    right: Array | None = None


def rotate_into(basis: Basis | None, x: Array) -> Array:
    r"""The leaf x in the basis, $\text{left}^\top X\, \text{right}$, in the shape of the leaf."""
    left, right = basis or Basis()
    return _between(_transposed(left), x, right)


def rotate_back(basis: Basis | None, x: Array) -> Array:
    r"""The leaf whose values in the basis are x: $\text{left}\, X\, \text{right}^\top$."""
    left, right = basis or Basis()
    return _between(left, x, _transposed(right))


def diagonal(basis: Basis | None, x: Array) -> Array:
    r"""The diagonal of $Q\,\mathrm{diag}(x)\,Q^\top$: $\text{left}^2\, X\, (\text{right}^2)^\top$.

    Each entry of `left` and `right` is squared.
    """
    left, right = basis or Basis()
    return _between(_squared(left), x, _transposed(_squared(right)))


def _between(left: Array | None, x: Array, right: Array | None) -> Array:
    """The product of three matrices, folded before and unfolded after it; float32 at least."""
    sides = [side for side in (left, right) if side is not None]
    if not sides:
        return x
    dtype = statistics_dtype(x, *sides)
    folded = fold(left, right, everywhere(x)).astype(dtype)
    if left is not None:
        folded = _product(left.astype(dtype), folded)
    if right is not None:
        folded = _product(folded, right.astype(dtype))
    return moved_to(folded.reshape(jnp.shape(x)), explicit_sharding(x))


def fold(left: Array | None, right: Array | None, x: Array) -> Array:
    r"""The leaf as matrices with sides as long as `left` and `right`, one of which may be `None`.

    Args:
      left: of shape (\*b, m, m).
      right: of shape (\*b, n, n).
      x: the leaf.

    Returns:
      Shape (\*b, m, n).
    """
    rows, columns = (-1 if side is None else side.shape[-1] for side in (left, right))
    stacked = next(side for side in (left, right) if side is not None).shape[:-2]
    return jnp.reshape(x, (*stacked, rows, columns))


def _product(a: Array, b: Array) -> Array:
    """The matrix product with all digits of float32; some devices use fewer by default."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _transposed(side: Array | None) -> Array | None:
    return None if side is None else jnp.swapaxes(side, -1, -2)


def _squared(side: Array | None) -> Array | None:
    return None if side is None else jnp.square(jnp.asarray(side, statistics_dtype(side)))


# --- trees ---------------------------------------------------------------------------------------


def bases(basis: PyTree, like: PyTree) -> list[Basis | None]:
    """The basis of each leaf of `like`, from a prefix tree of bases and `None`."""
    return for_each_leaf(basis, like, is_leaf=_is_one)


def over_leaves(
    function: Callable[[Basis | None, Array], Array], basis: PyTree, tree: PyTree
) -> PyTree:
    """``function(basis, leaf)`` for each leaf of a tree, such as `rotate_into`."""
    leaves, treedef = jax.tree.flatten(tree)
    pairs = zip(bases(basis, tree), leaves, strict=True)
    return jax.tree.unflatten(treedef, [function(one, leaf) for one, leaf in pairs])


def align_basis(basis: PyTree, params: PyTree) -> PyTree:
    """`basis` in the structure of `params`, matched by path, with an entry for each leaf.

    Raises:
      ValueError: naming a basis whose leaf is missing or has another shape.
    """
    held = {
        path_name(path, ""): one
        for path, one in jax.tree_util.tree_leaves_with_path(basis, is_leaf=_is_one)
        if isinstance(one, Basis)
    }
    if not held:
        return None
    wanted = jax.tree_util.tree_leaves_with_path(params)
    aligned = [_fitting(path, held.pop(path_name(path, ""), None), leaf) for path, leaf in wanted]
    for key in held:
        remedy = "pass a basis for each array, or None for what has none"
        raise ValueError(complaint(f"basis{key}", "a leaf of the parameters", "none", remedy))
    return jax.tree.unflatten(jax.tree.structure(params), aligned)


def _fitting(path: Any, one: Basis | None, leaf: Any) -> Basis | None:
    """The basis, if it folds the leaf.

    Raises:
      ValueError: if it does not.
    """
    if one is None or _folds(one, jnp.shape(leaf)):
        return one
    expected = f"square matrices that fold a leaf of shape {jnp.shape(leaf)}"
    got = ", ".join("None" if side is None else str(jnp.shape(side)) for side in one)
    remedy = "left and right are as long as two groups of neighbouring axes, see moments.Basis"
    raise ValueError(complaint(path_name(path, "basis"), expected, got, remedy))


def _folds(one: Basis, shape: tuple[int, ...]) -> bool:
    """Whether the sides are as long as two groups of neighbouring axes, after the stacked axes."""
    sides = [jnp.shape(side) for side in one if side is not None]
    if any(len(side) < 2 or side[-1] != side[-2] or side[-1] < 1 for side in sides):
        return False
    stacked = {side[:-2] for side in sides}
    if len(stacked) > 1 or any(shape[: len(b)] != b for b in stacked):
        return False
    rest = shape[sum(map(len, stacked)) :]
    rows, columns = (None if side is None else jnp.shape(side)[-1] for side in one)
    return any(
        rows in (None, math.prod(rest[:i])) and columns in (None, math.prod(rest[i:]))
        for i in range(len(rest) + 1)
    )


def check_basis(basis: PyTree) -> None:
    """Refuse sides that are not orthogonal; traced arrays pass.

    Raises:
      ValueError: if a side was donated, or its columns are not orthonormal.
      FloatingPointError: if it holds NaN or infinity.
    """
    remedy = "pass eigenvectors, as jnp.linalg.eigh returns them"
    check_alive(basis, "basis")
    check_finite(basis, "basis", remedy)
    for path, side in jax.tree_util.tree_leaves_with_path(basis):
        if is_concrete(side):
            with jax.ensure_compile_time_eval():
                off = float(_off_identity(side, np.arange(side.shape[-1])))
            if off > _ORTHOGONAL:
                got = f"one whose product with its transpose is {off:.2g} from the identity"
                where = path_name(path, "basis")
                raise ValueError(complaint(where, "an orthogonal matrix", got, remedy))


@jax.jit
def _off_identity(side: Array, places: Array) -> Array:
    """How far the columns are from orthonormal; `places` counts them.

    The identity is made from an argument: what depends on none would run at once, step by step.
    """
    side = jnp.asarray(side, statistics_dtype(side))
    product = _product(jnp.swapaxes(side, -1, -2), side)
    identity = jnp.broadcast_to(places[:, None] == places[None, :], product.shape)
    return jnp.max(jnp.abs(product - identity))


def _is_one(node: Any) -> bool:
    return node is None or isinstance(node, Basis)
