"""The product that a leaf enters, in the basis of the leaf's second moment."""

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
from l2m_optax.jacobians._rules import RULES, outputs_by_group, rearrange, rearranges
from l2m_optax.moments._basis import Basis


class Entry(NamedTuple):
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
        return times(_arranged(rows, self.inner), self.left)

    def cotangents(self, d: Array) -> Array:
        """The rows of d R."""
        return times(self._folded_outputs(d), self.right)

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
        y = times(y, None if self.right is None else jnp.square(self.right.T))
        # Outputs are only moved to rows, so that the transpose is the way back.
        shape = self.equation.outvars[0].aval.shape
        like = jax.ShapeDtypeStruct(shape, y.dtype)  # type: ignore[no-untyped-call]
        (back,) = jax.linear_transpose(self._folded_outputs, like)(y)
        return back

    def _folded_outputs(self, y: Array) -> Array:
        rows = self.outputs_of(self.equation, self.position, y)
        return _arranged(rows, self.outer)


def times(a: Array, side: Array | None) -> Array:
    """``a @ side`` with all digits, in float32 at least; `None` is the identity."""
    if side is None:
        return a.astype(statistics_dtype(a))
    dtype = statistics_dtype(a, side)
    return jnp.matmul(a.astype(dtype), side.astype(dtype), precision=jax.lax.Precision.HIGHEST)


def _arranged(rows: Array, places: np.ndarray) -> Array:
    """Each column of some rows at its place."""
    if np.array_equal(places, np.arange(len(places))):
        return rows
    return rows[:, np.argsort(places)]


def entry_of(jaxpr: Any, leaf: Any, one: Basis) -> Entry | None:
    """Where the leaf enters one product of matrices, if it does."""
    (equation, position), moved = entered_by(jaxpr, leaf)
    read = None if equation is None else _READ.get(equation.primitive.name)
    if read is None or any(side is not None and side.ndim > 2 for side in one):
        return None
    found = read(equation, position, moved)
    return None if found is None else _folded(equation, position, one, *found)


def entered_by(jaxpr: Any, leaf: Any) -> tuple[tuple[JaxprEqn | None, int], np.ndarray]:
    """The one operation that the leaf enters, and of each entry there its index in the leaf."""
    moved = np.arange(leaf.aval.size).reshape(leaf.aval.shape)
    variable = leaf
    while True:
        uses = places(jaxpr, variable)
        equation, position = uses[0] if len(uses) == 1 else (None, 0)
        if equation is None or not rearranges(equation):
            return (equation, position), moved
        with jax.ensure_compile_time_eval():
            moved = np.asarray(rearrange(equation, jnp.asarray(moved)))
        variable = equation.outvars[0]


_Rows = Callable[[JaxprEqn, int, Array], Array]


def _folded(
    equation: JaxprEqn, position: int, one: Basis, matrix: np.ndarray, a: _Rows, y: _Rows
) -> Entry | None:
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
            return Entry(equation, position, a, y, *held)
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
    return ordered.reshape(len(ordered), -1).T, patches_of, _positions_of


def patches_of(equation: JaxprEqn, position: int, a: Array) -> Array:
    """The windows of a convolution's inputs, one a row."""
    del position
    return RULES["conv_general_dilated"][-1].residual(equation, a)[0].T


def _positions_of(equation: JaxprEqn, position: int, y: Array) -> Array:
    del position
    return outputs_by_group(equation, y)[0].T


_READ = {"dot_general": _read_product, "conv_general_dilated": _read_convolution}
