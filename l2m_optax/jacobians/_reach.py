r"""Leaves that reach the outputs by moves alone, as the last layer's do: no cotangent is needed.

Let y be what one product makes of a leaf, $y = A(a) w$, or the leaf itself, and let every output be
one entry of it, moved and scaled: $f_k = c_k y_{j(k)} + b_k$, with b independent of the leaf. Each
entry of y meets a weight once, so that the variance of all outputs is, at once,

$$\sum_p J_{kp}^2\, v_p = c_k^2\, (A(a)^{\circ 2} v)_{j(k)} ,$$

at every position of a sequence too. If also each weight meets one entry of y only, outputs covary
where they have the same entry: $[j(k) = j(l)]\, c_k c_l\, (A(a)^{\circ 2} v)_{j(k)}$.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from l2m_optax._support.types import Array
from l2m_optax.jacobians._moves import moves, place, scale, stays
from l2m_optax.jacobians._program import JaxprEqn, Program, places
from l2m_optax.jacobians._rules import (
    is_product,
    meets_once,
    rearrange,
    rearranges,
    weights_of_product,
)

_SMALL = 128

Step = tuple[JaxprEqn, int]
"""An operation, and the position among its operands at which a leaf enters it."""


class Reach(NamedTuple):
    """The way of a leaf to the outputs.

    Attributes:
      shape: of the leaf.
      product: that operation, or nothing.
      after: moves between y and the outputs.
      entering: ``entering(v, others)``: the variances of y, from numbers v in the shape of the leaf
        and the other operand of the product.
      mixed: whether entries of y covary.
    """

    shape: tuple[int, ...]
    product: tuple[Step, ...]
    after: tuple[Step, ...]
    entering: Callable[[Array, Sequence[Array]], Array]
    mixed: bool = False

    @property
    def how(self) -> str:
        """In a few words, for `predict.tabulate`."""
        names = [equation.primitive.name for equation, _ in self.product]
        how = f"factorised in {names[0]}" if names else "moved"
        return f"{how}, once for all outputs"

    @property
    def size(self) -> int:
        """The number of entries of y."""
        return math.prod(self._shape_of_y)

    @property
    def equations(self) -> list[JaxprEqn]:
        """The operations whose operands `reached` takes."""
        return [equation for equation, _ in (*self.product, *self.after)]

    @property
    def separate(self) -> bool:
        """Whether each weight meets one entry of y only, and these are independent."""
        return not self.mixed and all(
            meets_once(equation, position) for equation, position in self.product
        )

    @property
    def _shape_of_y(self) -> tuple[int, ...]:
        return self.product[0][0].outvars[0].aval.shape if self.product else self.shape

    def perturbation(self, leaf: Array) -> None:
        """Nothing: no cotangent is needed."""
        del leaf

    def residual(self, operands: Sequence[Sequence[Array]]) -> Sequence[Sequence[Array]]:
        """The operands themselves."""
        return operands

    def reached(self, v: Array, operands: Sequence[Sequence[Array]]) -> Reached:
        """What the outputs have of numbers v in the shape of the leaf."""
        used = len(self.product)
        steps = zip(self.product, operands[:used], strict=True)
        v = self.entering(v, [values[1 - position] for (_, position), values in steps])
        factor = jnp.ones(self._shape_of_y, v.dtype)
        # Counted from 1: moves leave 0 where an output has nothing of the leaf.
        entry = None if self._stays else jnp.arange(1, self.size + 1).reshape(self._shape_of_y)
        for (equation, position), values in zip(self.after, operands[used:], strict=True):
            factor = place(equation, position, values, factor)
            factor *= scale(equation, position, values)
            if entry is not None:
                entry = place(equation, position, values, entry)
        return Reached(
            jnp.ravel(v), None if entry is None else jnp.ravel(entry) - 1, jnp.ravel(factor)
        )

    @property
    def _stays(self) -> bool:
        """Whether the entries of y are the outputs, in the same order."""
        return all(stays(equation, position) for equation, position in self.after)


class Reached(NamedTuple):
    """What the outputs of one example have of a leaf.

    Attributes:
      variances: $A(a)^{∘2} v$, flat.
      entry: j(k), of the shape of the outputs, flat; below 0 for none. `None` where j(k) = k.
      factor: c, likewise.
    """

    variances: Array
    entry: Array | None
    factor: Array

    def at(self, k: Array) -> Reached:
        """The same of some outputs."""
        return Reached(self.variances, k if self.entry is None else self.entry[k], self.factor[k])

    def variance(self) -> Array:
        """Of each output."""
        return jnp.square(self.factor) * self._held()

    def covariance(self) -> Array:
        """Of each pair of outputs, where each weight meets one entry only."""
        if self.entry is None:
            variance = self.variance()
            return jnp.where(identity(len(variance)), variance, 0)
        row, column = self.entry[:, None], self.entry[None, :]
        same = (row == column) & (column >= 0)
        factors = self.factor[:, None] * self.factor[None, :]
        return factors * jnp.where(same, self._held()[None, :], 0)

    def _held(self) -> Array:
        if self.entry is None:
            return self.variances
        return jnp.where(self.entry >= 0, self.variances[jnp.maximum(self.entry, 0)], 0)


def identity(size: int) -> Array:
    """The identity, true and false. A small one is a constant: nothing is compiled for it."""
    eye: Any = np.eye if size <= _SMALL else jnp.eye
    return jnp.asarray(eye(size, dtype=bool))


def find_reach(program: Program, leaf: Any) -> Reach | None:
    """The way of a leaf to the outputs, if moves and one product at most lie on it."""
    way = _way(program.jaxpr, leaf)
    products = [
        i for i, (equation, position) in enumerate(way or ()) if is_product(equation, position)
    ]
    if way is None or len(products) > 1:
        return None
    first = products[0] if products else 0
    before, product = way[:first], way[first : first + len(products)]
    # An entry copied before a product would meet one output several times.
    if not all(rearranges(equation) for equation, _ in before):
        return None
    after, entering = way[first + len(products) :], functools.partial(_entering, before, product)
    return Reach(leaf.aval.shape, product, after, entering)


def _entering(
    before: Sequence[Step], product: Sequence[Step], v: Array, others: Sequence[Array]
) -> Array:
    for equation, _ in before:
        v = rearrange(equation, v)
    for (equation, position), a in zip(product, others, strict=True):
        v = weights_of_product(equation, position, v, a)
    return v


def _way(jaxpr: Any, variable: Any) -> tuple[Step, ...] | None:
    """The operations that a variable enters on its one way to the outputs."""
    way: list[Step] = []
    while True:
        entered = places(jaxpr, variable)
        if len(entered) != 1:
            return None
        equation, position = entered[0]
        if equation is None:
            return tuple(way)
        if not (moves(equation, position) or is_product(equation, position)):
            return None
        way.append((equation, position))
        (variable,) = equation.outvars
