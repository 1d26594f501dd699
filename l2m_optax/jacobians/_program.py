"""A function of parameters and one example, as one flat list of primitive operations.

A `Program` is a jaxpr in which calls such as `jax.jit` are written out, so that where a parameter
is used can be seen, and run with one operation computed in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
from jax.extend.core import ClosedJaxpr, Literal

from l2m_optax._support.types import Array, PyTree

JaxprEqn: TypeAlias = Any
"""An equation: `jax.extend.core.JaxprEqn`, whose variables say too little of themselves."""
Bind = Callable[[JaxprEqn, Sequence[Any]], Sequence[Any]]

# Calls that only group equations. One that defines its own derivative is left as it is: what is
# inside of it is not what is differentiated.
_GROUPS = {"pjit", "jit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}


class Program(NamedTuple):
    """Operations in order, none inside of a call; the first inputs are the parameters' leaves."""

    jaxpr: Any
    consts: Sequence[Any]

    def run(self, arguments: Sequence[Any], bind: Bind) -> Sequence[Any]:
        """The outputs for flat `arguments`, each computed by `bind(equation, operands)`."""
        return _evaluate(self.jaxpr, self.consts, arguments, bind)


def trace(f: Callable[[PyTree, PyTree], Array], leaves: Sequence[Any], example: PyTree) -> Program:
    """The equations of ``f(leaves, example)``, with calls written out.

    Args:
      f: a function of a list of leaves and of one example.
      leaves: the leaves, or their shapes.
      example: a tree of arrays, or of their shapes.
    """
    nested = jax.make_jaxpr(f)(leaves, example)
    flat = jax.make_jaxpr(lambda *x: _evaluate(nested.jaxpr, nested.consts, x, _written_out))(
        *jax.tree.leaves((leaves, example))
    )
    return Program(flat.jaxpr, flat.consts)


def bind(equation: JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """What an equation computes."""
    bound = equation.primitive.get_bind_params(equation.params)
    # Until jax 0.9 the functions of a call come apart from its other parameters.
    functions, parameters = bound if isinstance(bound, tuple | list) else ((), bound)
    outputs = equation.primitive.bind(*functions, *values, **parameters)
    return outputs if equation.primitive.multiple_results else [outputs]


def places(jaxpr: Any, variable: Any) -> Sequence[tuple[JaxprEqn | None, int]]:
    """The equations a variable enters and the positions there; no equation for an output."""
    entered = [
        (equation, position)
        for equation in jaxpr.eqns
        for position, atom in enumerate(equation.invars)
        if atom is variable
    ]
    outputs = [(None, i) for i, atom in enumerate(jaxpr.outvars) if atom is variable]
    return [*entered, *outputs]


def _written_out(equation: JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    if equation.primitive.name not in _GROUPS:
        return bind(equation, values)
    inner: Any = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    closed = isinstance(inner, ClosedJaxpr)
    jaxpr, consts = (inner.jaxpr, inner.consts) if closed else (inner, ())
    return _evaluate(jaxpr, consts, values, _written_out)


def _evaluate(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], bind: Bind) -> list[Any]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        outputs = bind(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
