"""What a transformation computes, as expressions that can be compared without running it.

Each array of the next state is an expression: a primitive and the expressions that it is applied
to, down to the gradients, the parameters and the state before. Two expressions that differ in the
lengths of axes alone are one here. What goes by the size of a leaf shows in another number or
another primitive. What goes by the place of an entry shows in a primitive that names places, whose
lengths do count, or in an array that was closed over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax.moments._identification.trace import Program

_CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")
_RESHAPING = ("broadcast_in_dim", "reshape", "convert_element_type")
_PLACED = ("scatter", "gather", "dynamic", "slice", "iota", "rev", "sort", "cum", "arg", "pad")

Outputs = dict[str, int]
"""For each path into the state the number of the expression of its first and its next value."""


class Expressions:
    """Expressions, each with a number; equal ones have the same number.

    `parts` holds for each number what it is made of: a label, and smaller numbers.
    """

    def __init__(self) -> None:
        self.parts: list[tuple[tuple[Any, ...], tuple[int, ...]]] = []
        self._numbers: dict[tuple[tuple[Any, ...], tuple[int, ...]], int] = {}

    def number(self, label: tuple[Any, ...], *operands: int) -> int:
        """The number of an expression."""
        key = (label, operands)
        if key not in self._numbers:
            self._numbers[key] = len(self.parts)
            self.parts.append(key)
        return self._numbers[key]

    def read(self, program: Program, naming: Callable[[str], str] = str) -> Outputs:
        """The expressions of a program, whose inputs are called what `naming` makes of a path."""
        inputs = {"state": program.state, "gradient": program.gradients, "params": program.params}
        arguments = [
            self.number((kind, naming(path))) for kind, leaves in inputs.items() for path in leaves
        ]
        values = _Reader(self).outputs(program.closed, arguments)
        half = len(program.state)
        pairs = zip(program.state, values[:half], values[half:], strict=True)
        return {path: self.number(("first, next",), *pair) for path, *pair in pairs}

    def inputs(self, numbers: Iterable[int]) -> set[str]:
        """The paths into the state that expressions are made of."""
        seen, waiting = set(numbers), list(numbers)
        while waiting:
            new = set(self.parts[waiting.pop()][1]) - seen
            seen |= new
            waiting += new
        return {self.parts[i][0][1] for i in seen if self.parts[i][0][0] == "state"}


def different(one: Outputs, other: Outputs, expressions: Expressions) -> set[str]:
    """The paths whose values, now or after several updates, come about in different ways."""
    paths = one.keys() | other.keys()
    found = {path for path in paths if one.get(path) != other.get(path)}
    return _affected(one, expressions, found, lambda label: False)


def placed(outputs: Outputs, expressions: Expressions) -> set[str]:
    """The paths whose values may go by the place of an entry."""
    return _affected(outputs, expressions, set(), lambda label: label[0] in ("placed", "array"))


def _affected(
    outputs: Outputs,
    expressions: Expressions,
    paths: set[str],
    is_cause: Callable[[tuple[Any, ...]], bool],
) -> set[str]:
    """`paths`, and those whose values depend on them or on a cause."""
    while True:
        # Parts come before what they are part of: one pass carries everything upwards.
        touched: list[bool] = []
        for label, operands in expressions.parts:
            here = (label[0] == "state" and label[1] in paths) or is_cause(label)
            touched.append(here or any(touched[i] for i in operands))
        more = {path for path, number in outputs.items() if touched[number]} - paths
        if not more:
            return paths
        paths = paths | more


class _Reader:
    """Reads the equations of a traced function into expressions."""

    def __init__(self, expressions: Expressions) -> None:
        self.number = expressions.number
        self.terms: dict[int, int] = {}  # of sums, how many there are

    def outputs(self, closed: Any, arguments: Sequence[int]) -> list[int]:
        """The expressions of what a `ClosedJaxpr` returns for those of its arguments."""
        constants = [self._constant(value) for value in closed.consts]
        values = dict(zip(closed.jaxpr.constvars, constants, strict=True))
        values |= dict(zip(closed.jaxpr.invars, arguments, strict=True))

        def read(variable: Any) -> int:
            is_literal = hasattr(variable, "val")
            return self._constant(variable.val) if is_literal else values[variable]

        for equation in closed.jaxpr.eqns:
            results = self._apply(equation, [read(variable) for variable in equation.invars])
            values |= dict(zip(equation.outvars, results, strict=True))
        return [read(variable) for variable in closed.jaxpr.outvars]

    def _apply(self, equation: Any, operands: list[int]) -> list[int]:
        """The expressions of the results of one equation."""
        name, parameters = equation.primitive.name, equation.params
        inner = parameters.get("jaxpr", parameters.get("call_jaxpr"))
        if name in _CALLS and hasattr(inner, "jaxpr"):
            return self.outputs(inner, operands)
        if name == "cond":
            branches = [self.outputs(branch, operands[1:]) for branch in parameters["branches"]]
            return [self.number(("cond",), operands[0], *of) for of in zip(*branches, strict=True)]
        if name == "div" and self._is_mean(equation, operands[0]):
            return [self.number(("mean",), operands[0])]
        label = _label(equation)
        found = [self.number((*label, i), *operands) for i in range(len(equation.outvars))]
        if name == "reduce_sum":
            self.terms[found[0]] = _size(equation.invars[0]) // max(_size(equation.outvars[0]), 1)
        return found

    def _is_mean(self, equation: Any, numerator: int) -> bool:
        """Whether a sum is divided by the number of its terms, which is another for each shape."""
        divisor = getattr(equation.invars[1], "val", None)
        return divisor is not None and self.terms.get(numerator) == divisor

    def _constant(self, value: Any) -> int:
        dtype = jnp.result_type(value)
        if jnp.issubdtype(dtype, jax.dtypes.extended):  # a random key
            return self.number(("array", object()))
        array = np.asarray(value)
        if array.size == 1:
            return self.number(("number", array.item()))
        return self.number(("array", array.shape, sha256(array.tobytes()).digest()))


def _label(equation: Any) -> tuple[Any, ...]:
    """A primitive with what it is told besides its operands, less lengths of axes."""
    name = equation.primitive.name
    if name.startswith(_PLACED):
        shapes = [v.aval.shape for v in (*equation.invars, *equation.outvars)]
        return ("placed", name, str(equation.params), str(shapes))
    lengths = ("shape", "new_sizes", "sharding") if name in _RESHAPING else ()
    told = sorted((k, str(value)) for k, value in equation.params.items() if k not in lengths)
    return (name, str(told))


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)
