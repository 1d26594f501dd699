r"""Operations that move entries to other places and scale them: each output comes from one entry.

Of such an operation's output, $y'_k = c_k\, y_{j(k)} + b_k$, where c, j and b do not depend on y.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from l2m_optax._support.trees import statistics_dtype
from l2m_optax._support.types import Array
from l2m_optax.jacobians._program import JaxprEqn, bind


class Move(NamedTuple):
    """What one kind of operation does to the operand at a position.

    Attributes:
      positions: those among the operands for which this holds; `None` for all.
      place: ``place(equation, position, operands, x)``: numbers x that belong to the entries of the
        operand, at the places to which these go; 0 where another operand goes.
      scale: ``scale(position, operands)``: c, which broadcasts against the output.
    """

    positions: Callable[[int], bool]
    place: Callable[[JaxprEqn, int, Sequence[Array], Array], Array]
    scale: Callable[[int, Sequence[Array]], Array | float]


def moves(equation: JaxprEqn, position: int) -> bool:
    """Whether each output of an equation is one scaled entry of this operand, or has none of it."""
    move = _MOVES.get(equation.primitive.name)
    floating = jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.floating)
    return move is not None and move.positions(position) and floating


def stays(equation: JaxprEqn, position: int) -> bool:
    """Whether the entries of this operand are the outputs, in the same order."""
    before, after = equation.invars[position].aval, equation.outvars[0].aval
    reshaped = before.size == after.size and equation.params.get("dimensions") is None
    name = equation.primitive.name
    return (name in _RESHAPES and reshaped) or (name in _IN_PLACE and before.shape == after.shape)


def place(equation: JaxprEqn, position: int, operands: Sequence[Array], x: Array) -> Array:
    """Numbers that belong to the entries of an operand, where these go; 0 at other places."""
    return _MOVES[equation.primitive.name].place(equation, position, operands, x)


def scale(equation: JaxprEqn, position: int, operands: Sequence[Array]) -> Array | float:
    """By what the entries are multiplied."""
    precise = [x.astype(statistics_dtype(x)) for x in map(jnp.asarray, operands)]
    return _MOVES[equation.primitive.name].scale(position, precise)


def _as_itself(equation: JaxprEqn, position: int, operands: Sequence[Array], x: Array) -> Array:
    """By the operation itself, all other operands being as they are."""
    return bind(equation, [*operands[:position], x, *operands[position + 1 :]])[0]


def _gathered(equation: JaxprEqn, position: int, operands: Sequence[Array], x: Array) -> Array:
    del position
    return equation.primitive.bind(x, *operands[1:], **(equation.params | {"fill_value": 0}))


def _beside_zeros(equation: JaxprEqn, position: int, operands: Sequence[Array], x: Array) -> Array:
    """Values only: of a selection the predicate, which is no value, stays."""
    others = [
        y if y.dtype == bool or jnp.issubdtype(y.dtype, jnp.integer) else jnp.zeros_like(y, x.dtype)
        for y in map(jnp.asarray, operands)
    ]
    return _as_itself(equation, position, others, x)


def _entry_by_entry(
    equation: JaxprEqn, position: int, operands: Sequence[Array], x: Array
) -> Array:
    del position, operands
    return jnp.broadcast_to(x, equation.outvars[0].aval.shape)


def _one(position: int, operands: Sequence[Array]) -> float:
    del position, operands
    return 1.0


def _first(position: int) -> bool:
    return position == 0


def _any(position: int) -> bool:
    del position
    return True


_MOVED = Move(_first, _as_itself, _one)
_ADDED = Move(_any, _entry_by_entry, _one)

_RESHAPES = {"reshape", "squeeze", "expand_dims", "copy"}
_IN_PLACE = {"add", "add_any", "sub", "neg", "mul", "div", "convert_element_type"}

_MOVES = {
    **dict.fromkeys(
        ["transpose", "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "tile", "copy"],
        _MOVED,
    ),
    **dict.fromkeys(["slice", "dynamic_slice", "rev"], _MOVED),
    **dict.fromkeys(["add", "add_any"], _ADDED),
    "convert_element_type": Move(_first, _entry_by_entry, _one),
    "sub": Move(_any, _entry_by_entry, lambda position, _: -1.0 if position else 1.0),
    "neg": Move(_first, _entry_by_entry, lambda *_: -1.0),
    "mul": Move(_any, _entry_by_entry, lambda position, operands: operands[1 - position]),
    "div": Move(_first, _entry_by_entry, lambda _, operands: 1 / operands[1]),
    "gather": Move(_first, _gathered, _one),
    "pad": Move(_first, _beside_zeros, _one),
    "concatenate": Move(_any, _beside_zeros, _one),
    "select_n": Move(lambda position: position > 0, _beside_zeros, _one),
}
"""By primitive. What is no leaf's descendant may be anything: masks, positions, temperatures."""
