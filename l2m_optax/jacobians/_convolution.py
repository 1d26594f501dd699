"""Convolutions with their axes in the one order that compilers are fast with everywhere.

On CPUs XLA puts axes in order by itself outside of loops only. Inside of one, where chunks of
examples are, a convolution in another order is thirty times slower, and so is the derivative of
each with respect to its inputs, which has the two axes of its kernel exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import ConvDimensionNumbers

from l2m_optax._support.types import Array
from l2m_optax.jacobians._program import JaxprEqn, bind, trace


def is_convolution(equation: JaxprEqn) -> bool:
    """Whether an equation is a convolution."""
    return equation.primitive.name == "conv_general_dilated"


def in_order(equation: JaxprEqn, x: Array, kernel: Array) -> Array:
    """What the equation computes: examples, space, features; the kernel space, in, out."""
    numbers = equation.params["dimension_numbers"]
    last = (0, x.ndim - 1, *range(1, x.ndim - 1))
    ordered = ConvDimensionNumbers(last, (x.ndim - 1, x.ndim - 2, *range(x.ndim - 2)), last)
    if numbers == ordered:
        return bind(equation, [x, kernel])[0]
    # The compiler would take a transposed kernel back into the convolution.
    kernel = _moved(kernel, numbers.rhs_spec, ordered.rhs_spec)
    kernel = jax.lax.optimization_barrier(kernel)  # type: ignore[no-untyped-call]
    parameters = equation.params | {"dimension_numbers": ordered}
    y = equation.primitive.bind(_moved(x, numbers.lhs_spec, last), kernel, **parameters)
    return _moved(y, last, numbers.out_spec)


def pulled_in_order(equation: JaxprEqn, x: Array, kernel: Array) -> Array:
    """The same, with a derivative with respect to x that is in order, too."""

    @jax.custom_vjp
    def convolve(x: Array, kernel: Array) -> Array:
        return in_order(equation, x, kernel)

    def forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return in_order(equation, x, kernel), (x, kernel)

    def backward(kept: tuple[Array, Array], d: Array) -> tuple[Array, Array]:
        x, kernel = kept
        _, of_kernel = jax.vjp(lambda kernel: bind(equation, [x, kernel])[0], kernel)
        return _pulled(equation, x, kernel, d), of_kernel(d)[0]

    convolve.defvjp(forward, backward)
    return convolve(x, kernel)


def _pulled(equation: JaxprEqn, x: Array, kernel: Array, d: Array) -> Array:
    """The cotangent of x from that of the output."""

    def back(kernel: Array, d: Array) -> Array:
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)  # type: ignore[no-untyped-call]
        return jax.linear_transpose(lambda x: bind(equation, [x, kernel])[0], shape)(d)[0]

    program: Any = trace(back, kernel, d)  # type: ignore[arg-type]
    return program.run([kernel, d], _bound_in_order)[0]


def _bound_in_order(equation: JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    if is_convolution(equation):
        return [in_order(equation, *values)]
    return bind(equation, values)


def _moved(x: Array, before: Sequence[int], after: Sequence[int]) -> Array:
    """An array whose axes have a place for each meaning, with these places changed."""
    return jnp.transpose(jnp.transpose(x, before), np.argsort(after).tolist())
