r"""A network as a function of its parameters in the bases of their second moment.

In its basis a leaf, $W = L \hat W R^\top$, has independent coordinates. Where it enters one
product, $a W$, the network is written as $((a L)\, \hat W)\, R^\top$: inputs and cotangents are
rotated, and $\hat W$ is used as W was. Elsewhere W is formed, and its gradient comes out rotated.
What follows knows nothing of bases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.shardings import everywhere
from l2m_optax._support.trees import statistics_dtype
from l2m_optax._support.types import Array
from l2m_optax.jacobians._program import JaxprEqn, Program, bind, places, trace
from l2m_optax.jacobians._rules import RULES, rearrange, rearranges
from l2m_optax.moments._basis import Basis, rotate_back


def in_bases(
    program: Program, held: Sequence[Basis | None], leaves: Sequence[Array], example: Any
) -> Program:
    """The program of leaves in their bases, which has the outputs of `program` of the leaves.

    Args:
      program: outputs of one example, whose first inputs are leaves.
      held: the basis of each leaf.
      leaves: the leaves in their bases, or what has their shapes.
      example: the example, or what has its shapes.
    """
    if not any(held):
        return program
    entries = _entries(program, held)

    def outputs_of(leaves: Sequence[Array], example: Any) -> Array:
        def bind_rotated(equation: JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
            entry = entries.get(id(equation))
            if entry is None:
                return bind(equation, values)
            one, leaf = held[entry.leaf], everywhere(leaves[entry.leaf])
            outputs = entry.multiply(entry, one or Basis(), leaf, values[1 - entry.position])
            return [outputs.astype(equation.outvars[0].aval.dtype)]

        rewritten = {entry.leaf for entry in entries.values()}
        inputs = [
            jnp.zeros_like(leaf) if i in rewritten else rotate_back(one, leaf)
            for i, (one, leaf) in enumerate(zip(held, leaves, strict=True))
        ]
        atoms = program.jaxpr.invars[: len(leaves)]
        typed = [x.astype(atom.aval.dtype) for x, atom in zip(inputs, atoms, strict=True)]
        return program.run([*typed, *jax.tree.leaves(example)], bind_rotated)[0]

    return trace(outputs_of, leaves, example)


class _Entry(NamedTuple):
    """The one operation that a leaf enters, and how that reads the folded leaf.

    Attributes:
      leaf: its index.
      equation: the operation.
      position: of the leaf among its operands.
      multiply: ``multiply(entry, basis, leaf, a)``: the operation on a leaf in its basis and the
        other operand.
      turned: whether a meets the columns of the folded leaf, and not its rows.
      inner: for each entry of a row of a, the row (or column) that it meets.
      outer: for each feature of the output, the column (or row) that it comes from.
    """

    leaf: int
    equation: JaxprEqn
    position: int
    multiply: Callable[[_Entry, Basis, Array, Array], Array]
    turned: bool = False
    inner: np.ndarray | None = None
    outer: np.ndarray | None = None


def _entries(program: Program, held: Sequence[Basis | None]) -> dict[int, _Entry]:
    """By equation, the leaves that can stay in their basis there."""
    found: dict[int, _Entry] = {}
    for i, one in enumerate(held):
        entry = None if one is None else _entry(program.jaxpr, i, one)
        if entry is not None:
            found.setdefault(id(entry.equation), entry)
    return found


def _entry(jaxpr: Any, leaf: int, one: Basis) -> _Entry | None:
    """Where the leaf enters one product of matrices, if it does."""
    variable = jaxpr.invars[leaf]
    moved = np.arange(variable.aval.size).reshape(variable.aval.shape)
    while True:
        entered = places(jaxpr, variable)
        equation, position = entered[0] if len(entered) == 1 else (None, 0)
        if equation is None:
            return None
        if not rearranges(equation):
            break
        with jax.ensure_compile_time_eval():
            moved = np.asarray(rearrange(equation, jnp.asarray(moved)))
        variable = equation.outvars[0]
    read = _READ.get(equation.primitive.name)
    if read is None or any(side is not None and side.ndim > 2 for side in one):
        return None
    return read(_Entry(leaf, equation, position, _multiplied), moved, _columns(one, moved.size))


def _columns(one: Basis, size: int) -> int:
    """How many columns the folded leaf has."""
    if one.right is not None:
        return int(one.right.shape[-1])
    return size // int(one.left.shape[-1]) if one.left is not None else 1


def _folded(entry: _Entry, matrix: np.ndarray, columns: int) -> _Entry | None:
    """The entry, if the matrix that a is multiplied with is the folded leaf, or its transpose.

    Args:
      entry: what is known of it.
      matrix: for each entry of the matrix its index in the raveled leaf; a meets its rows.
      columns: of the folded leaf.
    """
    row, column = np.divmod(matrix, columns)
    for turned, (inner, outer) in enumerate([(row, column), (column, row)]):
        if np.all(inner == inner[:, :1]) and np.all(outer == outer[:1]):
            return entry._replace(turned=bool(turned), inner=inner[:, 0], outer=outer[0])
    return None


# --- operations ----------------------------------------------------------------------------------


def _read_product(entry: _Entry, moved: np.ndarray, columns: int) -> _Entry | None:
    contracted, batch = entry.equation.params["dimension_numbers"]
    if batch[0]:
        return None
    axes = contracted[entry.position]
    first = np.moveaxis(moved, axes, range(len(axes)))
    matrix = first.reshape(math.prod(moved.shape[axis] for axis in axes), -1)
    return _folded(entry, matrix, columns)


def _multiplied(entry: _Entry, one: Basis, leaf: Array, a: Array) -> Array:
    contracted, _ = entry.equation.params["dimension_numbers"]
    axes = contracted[1 - entry.position]
    last = jnp.moveaxis(a, axes, range(a.ndim - len(axes), a.ndim))
    rows = last.reshape(-1, math.prod(a.shape[axis] for axis in axes))
    y = _rotated_product(entry, one, leaf, rows)
    return (y if entry.position else y.T).reshape(entry.equation.outvars[0].aval.shape)


def _read_convolution(entry: _Entry, moved: np.ndarray, columns: int) -> _Entry | None:
    parameters = entry.equation.params
    groups = parameters["batch_group_count"], parameters["feature_group_count"]
    if entry.position != 1 or groups != (1, 1):
        return None
    ordered = np.transpose(moved, parameters["dimension_numbers"].rhs_spec)
    matrix = ordered.reshape(len(ordered), -1).T
    return _folded(entry._replace(multiply=_convolved), matrix, columns)


def _convolved(entry: _Entry, one: Basis, leaf: Array, a: Array) -> Array:
    equation = entry.equation
    patches = RULES["conv_general_dilated"][-1].residual(equation, a)[0]
    y = _rotated_product(entry, one, leaf, patches.T)
    spec = equation.params["dimension_numbers"].out_spec
    examples, features, *space = (equation.outvars[0].aval.shape[axis] for axis in spec)
    y = jnp.moveaxis(y.reshape(*space, examples, features), (-2, -1), (0, 1))
    return jnp.transpose(y, np.argsort(spec).tolist())


def _read_rows(entry: _Entry, moved: np.ndarray, columns: int) -> _Entry | None:
    rule = RULES["gather"][0]
    own = np.array_equal(moved.ravel(), np.arange(moved.size))
    if not own or columns * len(moved) != moved.size:
        return None
    takes_rows = rule.applies(entry.equation, entry.position)
    return entry._replace(multiply=_taken) if takes_rows else None


def _taken(entry: _Entry, one: Basis, leaf: Array, indices: Array) -> Array:
    """Rows of the table, of which the right side only is left to be rotated."""
    table = rotate_back(Basis(one.left, None), leaf)
    equation = entry.equation
    shaped = table.reshape(equation.invars[0].aval.shape)
    rows = bind(equation, [shaped, indices])[0]
    flat = rows.reshape(-1, _columns(one, leaf.size))
    return _times(flat, one.right, transposed=True).reshape(rows.shape)


_READ = {
    "dot_general": _read_product,
    "conv_general_dilated": _read_convolution,
    "gather": _read_rows,
}


def _rotated_product(entry: _Entry, one: Basis, leaf: Array, a: Array) -> Array:
    """Rows of a times the leaf."""
    left, right = one
    columns = _columns(one, leaf.size)
    matrix = leaf.reshape(-1, columns)
    if entry.turned:
        left, right, matrix = right, left, matrix.T
    precision = entry.equation.params["precision"]
    rotated = _times(_arranged(a, _inverse(entry.inner)), left)
    y = jnp.matmul(rotated, matrix.astype(rotated.dtype), precision=precision)
    return _arranged(_times(y, right, transposed=True), entry.outer)


def _times(a: Array, side: Array | None, transposed: bool = False) -> Array:
    if side is None:
        return a
    dtype = statistics_dtype(a, side)
    matrix = (side.T if transposed else side).astype(dtype)
    return jnp.matmul(a.astype(dtype), matrix, precision=jax.lax.Precision.HIGHEST)


def _arranged(a: Array, order: np.ndarray | None) -> Array:
    """The columns of a in another order."""
    if order is None or np.array_equal(order, np.arange(len(order))):
        return a
    return a[:, order]


def _inverse(order: np.ndarray | None) -> np.ndarray | None:
    return None if order is None else np.argsort(order)
