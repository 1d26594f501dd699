r"""The Jacobian of a leaf in the basis of its second moment, $W = L \hat W R^\top$.

In its basis a leaf has independent coordinates. Where it enters one product, $y = a W$, with d the
cotangent of y, $a L$ and $d R$ stand in the places of a and d: the network runs as it is, and only
what is squared is rotated, a once for all outputs. Of other leaves the gradient is rotated.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.shardings import everywhere
from l2m_optax._support.trees import statistics_dtype
from l2m_optax._support.types import Array
from l2m_optax.jacobians._program import JaxprEqn, places
from l2m_optax.jacobians._reach import Reach
from l2m_optax.jacobians._rules import RULES, Rule, outputs_by_group, rearrange, rearranges
from l2m_optax.jacobians._uses import FullGradient, SingleUse
from l2m_optax.moments._basis import Basis, diagonal, rotate_into


def use_in_basis(
    jaxpr: Any, leaf: Any, use: SingleUse | FullGradient, one: Basis | None
) -> SingleUse | FullGradient:
    """How the squared gradient of a leaf in its basis is computed.

    Args:
      jaxpr: of the network.
      leaf: its variable there.
      use: how it is computed of the leaf itself.
      one: the basis.
    """
    if one is None:
        return use
    rule = _rule_of_rows(jaxpr, leaf, use, one)
    entry = None if rule else _entry(jaxpr, leaf, one)
    if entry is not None:
        rule = _rule(entry)
    if rule is not None:
        equation, position = _entered(jaxpr, leaf)[0]
        return SingleUse((), equation, position, rule)
    why = "which its basis folds in another way" if isinstance(use, SingleUse) else use.why
    return FullGradient(why, leaf.aval.size, functools.partial(_turned, one))


def _turned(one: Basis, gradient: Array) -> Array:
    """A gradient in a basis. That of a vector is a row, as the outputs of products are."""
    left, right = one
    if right is None and left is not None and left.shape == (gradient.size, gradient.size):
        return _times(gradient.reshape(1, -1), left).reshape(gradient.shape)
    return rotate_into(one, gradient)


def way_in_basis(jaxpr: Any, leaf: Any, way: Reach | None, one: Basis | None) -> Reach | None:
    """The way of a leaf in its basis to the outputs, from that of the leaf itself."""
    if way is None or one is None:
        return way
    if not way.product:
        return way._replace(entering=lambda v, _: diagonal(one, everywhere(v)), mixed=True)
    entry = _entry(jaxpr, leaf, one)
    if entry is None:
        return None
    return way._replace(entering=entry.variances, mixed=entry.right is not None)


class _Entry(NamedTuple):
    r"""The product that a leaf enters, $y = a W$, for the leaf folded as its basis folds it.

    Attributes:
      equation: the product.
      position: of the leaf among its operands.
      rows_of: ``rows_of(equation, position, a)``: the rows of a.
      outputs_of: ``outputs_of(equation, position, y)``: the rows of y, or of its cotangent.
      columns: of the folded leaf.
      turned: whether a meets the columns of the folded leaf, and not its rows.
      inner: for each entry of a row of a, the row (or column) that it meets.
      outer: for each entry of a row of y, the column (or row) that it comes from.
      left: the side of the basis that a meets.
      right: the side that y meets.
    """

    equation: JaxprEqn
    position: int
    rows_of: Callable[[JaxprEqn, int, Array], Array]
    outputs_of: Callable[[JaxprEqn, int, Array], Array]
    columns: int
    turned: bool
    inner: np.ndarray
    outer: np.ndarray
    left: Array | None
    right: Array | None

    @property
    def rows(self) -> int:
        """Of a, and of y."""
        return self.equation.outvars[0].aval.size // len(self.outer)

    def inputs(self, a: Array) -> Array:
        """The rows of a L."""
        rows = self.rows_of(self.equation, self.position, a)
        return _times(_arranged(rows, self.inner), self.left)

    def cotangents(self, d: Array) -> Array:
        """The rows of d R."""
        return _times(self._folded_outputs(d), self.right)

    def numbers(self, v: Array) -> Array:
        """Numbers that belong to the coordinates, in the shape of the leaf, as a matrix."""
        matrix = everywhere(v).reshape(-1, self.columns)
        return matrix.T if self.turned else matrix

    def multiply(self, a: Array, b: Array) -> Array:
        """A product of matrices, as precise as that of the network."""
        return jnp.matmul(a, b, precision=self.equation.params["precision"])

    def variances(self, v: Array, others: Sequence[Array]) -> Array:
        r"""The variances of y, $((a L)^{\circ 2} V) (R^{\circ 2})^\top$."""
        y = self.multiply(jnp.square(self.inputs(others[0])), self.numbers(v))
        y = _times(y, None if self.right is None else jnp.square(self.right.T))
        # Outputs are only moved to rows, so that the transpose is the way back.
        shape = self.equation.outvars[0].aval.shape
        like = jax.ShapeDtypeStruct(shape, y.dtype)  # type: ignore[no-untyped-call]
        (back,) = jax.linear_transpose(self._folded_outputs, like)(y)
        return back

    def _folded_outputs(self, y: Array) -> Array:
        rows = self.outputs_of(self.equation, self.position, y)
        return _arranged(rows, self.outer)


def _times(a: Array, side: Array | None) -> Array:
    if side is None:
        return a.astype(statistics_dtype(a))
    dtype = statistics_dtype(a, side)
    return jnp.matmul(a.astype(dtype), side.astype(dtype), precision=jax.lax.Precision.HIGHEST)


def _arranged(rows: Array, places: np.ndarray) -> Array:
    """Each column of some rows at its place."""
    if np.array_equal(places, np.arange(len(places))):
        return rows
    return rows[:, np.argsort(places)]


# --- rules ---------------------------------------------------------------------------------------


def _rule(entry: _Entry) -> Rule:
    """How squared gradients of the coordinates factorise, or are formed of rotated rows."""
    sizes = len(entry.inner), len(entry.outer)
    if entry.rows == 1:
        return Rule(
            "factorised",
            _always,
            lambda _, a: entry.inputs(a),
            lambda _, d, rotated: entry.cotangents(d),
            lambda _, position, v, rotated: entry.multiply(jnp.square(rotated), entry.numbers(v)),
            lambda *_: sizes[1],
        )
    patches = entry.rows_of is _patches_of
    return Rule(
        "gradient from patches" if patches else "gradient, shared by positions",
        _always,
        lambda _, a: entry.inputs(a),
        lambda _, d, rotated: entry.multiply(rotated.T, entry.cotangents(d)),
        lambda _, position, v, rotated: entry.numbers(v),
        lambda *_: math.prod(sizes),
    )


def _always(equation: JaxprEqn, position: int) -> bool:
    del equation, position
    return True


def _rule_of_rows(jaxpr: Any, leaf: Any, use: SingleUse | FullGradient, one: Basis) -> Rule | None:
    """That of a table of which whole rows are taken, and only the right side is rotated."""
    if not isinstance(use, SingleUse) or use.equation.primitive.name != "gather":
        return None
    if one.left is not None or one.right is None or one.right.ndim > 2:
        return None
    _, moved = _entered(jaxpr, leaf)
    columns = one.right.shape[-1]
    if not np.array_equal(moved.ravel(), np.arange(moved.size)) or columns != moved[0].size:
        return None
    plain = use.rule

    def factor(equation: JaxprEqn, d: Array, indices: Array) -> Array:
        rows = plain.factor(equation, d, indices).reshape(-1, columns)
        return _times(rows, one.right)

    def weights(equation: JaxprEqn, position: int, v: Array, indices: Array) -> Array:
        table = everywhere(v).reshape(moved.shape)
        return plain.weights(equation, position, table, indices).reshape(-1, columns)

    return plain._replace(factor=factor, weights=weights)


# --- products ------------------------------------------------------------------------------------


def _entry(jaxpr: Any, leaf: Any, one: Basis) -> _Entry | None:
    """Where the leaf enters one product of matrices, if it does."""
    (equation, position), moved = _entered(jaxpr, leaf)
    read = None if equation is None else _READ.get(equation.primitive.name)
    if read is None or any(side is not None and side.ndim > 2 for side in one):
        return None
    found = read(equation, position, moved)
    return None if found is None else _folded(equation, position, one, *found)


def _entered(jaxpr: Any, leaf: Any) -> tuple[tuple[JaxprEqn | None, int], np.ndarray]:
    """The one operation that the leaf enters, and of each entry there its index in the leaf."""
    moved = np.arange(leaf.aval.size).reshape(leaf.aval.shape)
    variable = leaf
    while True:
        entered = places(jaxpr, variable)
        equation, position = entered[0] if len(entered) == 1 else (None, 0)
        if equation is None or not rearranges(equation):
            return (equation, position), moved
        with jax.ensure_compile_time_eval():
            moved = np.asarray(rearrange(equation, jnp.asarray(moved)))
        variable = equation.outvars[0]


_Rows = Callable[[JaxprEqn, int, Array], Array]


def _folded(
    equation: JaxprEqn, position: int, one: Basis, matrix: np.ndarray, a: _Rows, y: _Rows
) -> _Entry | None:
    """The entry, if the matrix that a is multiplied with is the folded leaf, or its transpose.

    Args:
      equation: the product.
      position: of the leaf.
      one: the basis.
      matrix: for each entry of the matrix its index in the raveled leaf; a meets its rows.
      a: what makes rows of the other operand.
      y: what makes rows of the output.
    """
    columns = _columns(one, matrix.size)
    row, column = np.divmod(matrix, columns)
    sides = (row, column, one.left, one.right), (column, row, one.right, one.left)
    for turned, (inner, outer, left, right) in enumerate(sides):
        if np.all(inner == inner[:, :1]) and np.all(outer == outer[:1]):
            held = columns, bool(turned), inner[:, 0], outer[0], left, right
            return _Entry(equation, position, a, y, *held)
    return None


def _columns(one: Basis, size: int) -> int:
    """How many columns the folded leaf has."""
    if one.right is not None:
        return int(one.right.shape[-1])
    return size // int(one.left.shape[-1]) if one.left is not None else 1


def _read_product(
    equation: JaxprEqn, position: int, moved: np.ndarray
) -> tuple[np.ndarray, _Rows, _Rows] | None:
    contracted, batch = equation.params["dimension_numbers"]
    if batch[0]:
        return None
    axes = contracted[position]
    first = np.moveaxis(moved, axes, range(len(axes)))
    matrix = first.reshape(math.prod(moved.shape[axis] for axis in axes), -1)
    return matrix, _rows_of, functools.partial(_outputs_of, matrix.shape[1])


def _rows_of(equation: JaxprEqn, position: int, a: Array) -> Array:
    axes = equation.params["dimension_numbers"][0][1 - position]
    last = jnp.moveaxis(a, axes, range(a.ndim - len(axes), a.ndim))
    return last.reshape(-1, math.prod(a.shape[axis] for axis in axes))


def _outputs_of(columns: int, equation: JaxprEqn, position: int, y: Array) -> Array:
    del equation
    return y.reshape(-1, columns) if position else y.reshape(columns, -1).T


def _read_convolution(
    equation: JaxprEqn, position: int, moved: np.ndarray
) -> tuple[np.ndarray, _Rows, _Rows] | None:
    parameters = equation.params
    groups = parameters["batch_group_count"], parameters["feature_group_count"]
    if position != 1 or groups != (1, 1):
        return None
    ordered = np.transpose(moved, parameters["dimension_numbers"].rhs_spec)
    return ordered.reshape(len(ordered), -1).T, _patches_of, _positions_of


def _patches_of(equation: JaxprEqn, position: int, a: Array) -> Array:
    del position
    return RULES["conv_general_dilated"][-1].residual(equation, a)[0].T


def _positions_of(equation: JaxprEqn, position: int, y: Array) -> Array:
    del position
    return outputs_by_group(equation, y)[0].T


_READ = {"dot_general": _read_product, "conv_general_dilated": _read_convolution}
