r"""Operations that meet each weight once an example, so that the squared Jacobian factorises.

Let an operation be linear in its weight, $y = A(a) w$, and let each entry $w_p$ meet one entry
$y_{j(p)}$ only. With $d$ the cotangent of $y$, $\partial f/\partial w_p = d_{j(p)} A(a)_{j(p) p}$,
and for any numbers $v_p$

$$\sum_p (\partial f/\partial w_p)^2 v_p = \sum_j d_j^2\, (A(a)^{\circ 2} v)_j .$$

For a product $A(a)^{\circ 2}$ is the same operation on $a^2$: no gradient is formed, and what is on
the right of $d^2$ is shared by all outputs. Read backwards, $(A^{\circ 2})^\top d^2$ is the squared
gradient itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import GatherScatterMode

from l2m_optax._support.types import Array
from l2m_optax.jacobians._program import JaxprEqn, bind


class Rule(NamedTuple):
    """How the squared gradient of a weight factorises at one kind of operation.

    Below, d is the cotangent of the operation's output, and a its other operand.

    Attributes:
      how: in a few words, for `predict.tabulate`.
      applies: ``applies(equation, position)``: whether the rule holds for this equation and for the
        weight at this position among its operands.
      residual: ``residual(equation, a)``: what the next two need of a, computed once for all
        outputs.
      factor: ``factor(equation, d, residual)``: r, what is squared for each output.
      weights: ``weights(equation, position, v, residual)``: s, in the shape of r, from numbers v in
        the shape of the weight; for a product $A(a)^{∘2} v$.
      size: ``size(equation, position)``: the number of entries of r.
    """

    how: str
    applies: Callable[[JaxprEqn, int], bool]
    residual: Callable[[JaxprEqn, Array], Array]
    factor: Callable[[JaxprEqn, Array, Array], Array]
    weights: Callable[[JaxprEqn, int, Array, Array], Array]
    size: Callable[[JaxprEqn, int], int]


def _meets_one_row(equation: JaxprEqn, position: int) -> bool:
    r"""Whether a matrix product's other operand has one row only, apart from shared batch axes.

    A weight then meets one number: $y_j = \sum_i a_i w_{ij}$, and not also $y_{nj}$ for other n.
    """
    contracted, batch = equation.params["dimension_numbers"]
    other = 1 - position
    shape = equation.invars[other].aval.shape
    bound = {*contracted[other], *batch[other]}
    return math.prod(size for axis, size in enumerate(shape) if axis not in bound) == 1


def _meets_one_window(equation: JaxprEqn, position: int) -> bool:
    """Whether a convolution has one position: as many outputs as features."""
    shape = equation.outvars[0].aval.shape
    features = shape[equation.params["dimension_numbers"].out_spec[1]]
    return position == 1 and math.prod(shape) == features


def weights_of_product(equation: JaxprEqn, position: int, v: Array, a: Array) -> Array:
    r"""$A(a)^{\circ 2} v$."""
    operands = [jnp.square(a.astype(v.dtype)), v]
    parameters = equation.params | {"preferred_element_type": v.dtype}
    return equation.primitive.bind(*(operands if position else operands[::-1]), **parameters)


def _takes_rows(equation: JaxprEqn, position: int) -> bool:
    """Whether a gather takes whole rows of a table, as an embedding does."""
    table, parameters = equation.invars[0].aval, equation.params
    numbers = parameters["dimension_numbers"]
    indices = equation.invars[1].aval.shape[:-1]
    return (
        position == 0
        and tuple(numbers.start_index_map) == (0,)
        and tuple(numbers.collapsed_slice_dims) == (0,)
        and tuple(parameters["slice_sizes"]) == (1, *table.shape[1:])
        and not getattr(numbers, "operand_batching_dims", ())
        and tuple(numbers.offset_dims)
        == tuple(range(len(indices), len(indices) + len(table.shape) - 1))
    )


def _sum_of_equal_rows(equation: JaxprEqn, d: Array, indices: Array) -> Array:
    """Cotangents summed over the n positions that took the same row, divided by √n.

    The gradient of a row is that sum, g. It stands at n positions here, and n (g / √n)² = g².
    """
    rows = jnp.ravel(indices)
    if equation.params["mode"] == GatherScatterMode.CLIP:
        rows = jnp.clip(rows, 0, equation.invars[0].aval.shape[0] - 1)
    same = (rows[:, None] == rows[None, :]).astype(d.dtype)
    flat = d.reshape(rows.size, -1)
    return (same @ flat / jnp.sqrt(jnp.sum(same, axis=1, keepdims=True))).reshape(d.shape)


def _weights_of_rows(equation: JaxprEqn, position: int, v: Array, indices: Array) -> Array:
    del position
    # An index out of range meets no weight.
    return equation.primitive.bind(v, indices, **(equation.params | {"fill_value": 0}))


def _is_convolution(equation: JaxprEqn, position: int) -> bool:
    return position == 1 and equation.params["batch_group_count"] == 1


def _patches(equation: JaxprEqn, a: Array) -> Array:
    """What each position of a convolution sees, of shape (groups, window, positions).

    The kernel meets all positions, so its gradient is formed: patches times cotangents.
    """
    parameters, kernel = equation.params, equation.invars[1].aval
    numbers = parameters["dimension_numbers"]
    patches = jax.lax.conv_general_dilated_patches(
        a,
        [kernel.shape[axis] for axis in numbers.rhs_spec[2:]],
        parameters["window_strides"],
        parameters["padding"],
        parameters["lhs_dilation"],
        parameters["rhs_dilation"],
        dimension_numbers=numbers,
        precision=parameters["precision"],
    )
    return outputs_by_group(equation, patches)


def outputs_by_group(equation: JaxprEqn, y: Array) -> Array:
    """An output of a convolution in the shape (groups, features of a group, positions)."""
    numbers, groups = equation.params["dimension_numbers"], equation.params["feature_group_count"]
    examples, features = (y.shape[axis] for axis in numbers.out_spec[:2])
    grouped = jnp.transpose(y, numbers.out_spec).reshape(examples, groups, features // groups, -1)
    return jnp.moveaxis(grouped, 0, -1).reshape(groups, features // groups, -1)


def _gradient_by_group(equation: JaxprEqn, d: Array, patches: Array) -> Array:
    # g: groups, o: output features, p: entries of the window, m: positions.
    return jnp.einsum("gom,gpm->gop", outputs_by_group(equation, d), patches.astype(d.dtype))


def _kernel_by_group(equation: JaxprEqn, position: int, v: Array, patches: Array) -> Array:
    del position
    ordered = jnp.transpose(v, equation.params["dimension_numbers"].rhs_spec)
    return ordered.reshape(len(patches), -1, patches.shape[1])


def _other(equation: JaxprEqn, a: Array) -> Array:
    del equation
    return a


def _itself(equation: JaxprEqn, d: Array, a: Array) -> Array:
    del equation, a
    return d


def _output_size(equation: JaxprEqn, position: int) -> int:
    del position
    return equation.outvars[0].aval.size


def _weight_size(equation: JaxprEqn, position: int) -> int:
    return equation.invars[position].aval.size


_PRODUCT = (_other, _itself, weights_of_product, _output_size)
_ONCE = "factorised"

RULES = {
    "dot_general": [Rule(_ONCE, _meets_one_row, *_PRODUCT)],
    "conv_general_dilated": [
        Rule(_ONCE, _meets_one_window, *_PRODUCT),
        Rule(
            "gradient from patches",
            _is_convolution,
            _patches,
            _gradient_by_group,
            _kernel_by_group,
            _weight_size,
        ),
    ],
    "gather": [
        Rule(_ONCE, _takes_rows, _other, _sum_of_equal_rows, _weights_of_rows, _output_size)
    ],
}
"""By primitive, those to be preferred first."""


def is_product(equation: JaxprEqn, position: int) -> bool:
    r"""Whether an equation multiplies by A(a), each entry of which stands for one weight.

    Then $A(a)^{\circ 2} v$ is the variance of its output, whether or not weights meet several rows.
    """
    name = equation.primitive.name
    return name == "dot_general" or (
        name == "conv_general_dilated" and _is_convolution(equation, position)
    )


def meets_once(equation: JaxprEqn, position: int) -> bool:
    """Whether each weight of a product meets one entry of its output only."""
    return RULES[equation.primitive.name][0].applies(equation, position)


_REARRANGEMENTS = {
    "transpose",
    "reshape",
    "squeeze",
    "expand_dims",
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
}


def rearranges(equation: JaxprEqn) -> bool:
    """Whether an equation only moves the entries of its operand, each to one place."""
    if not equation.invars:  # as an iota, which makes its entries
        return False
    before, after = equation.invars[0].aval, equation.outvars[0].aval
    return (
        equation.primitive.name in _REARRANGEMENTS
        and before.size == after.size
        and jnp.issubdtype(after.dtype, jnp.floating)
    )


def rearrange(equation: JaxprEqn, v: Array) -> Array:
    """The same moves on numbers that belong to the entries; casts are left out."""
    if equation.primitive.name == "convert_element_type":
        return v
    return bind(equation, [v])[0]
