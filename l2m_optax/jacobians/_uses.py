"""Where each parameter is used, and whether its squared Jacobian factorises there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from l2m_optax._support.types import Array
from l2m_optax.jacobians._program import JaxprEqn, Program
from l2m_optax.jacobians._rules import RULES, Rule, rearrange, rearranges


class Use(NamedTuple):
    """The only place where a leaf is used: an operation that has a `Rule`.

    Attributes:
      moves: rearrangements between the leaf and the operation, in order.
      equation: the operation.
      position: which of its operands the leaf is.
      rule: how the operation is squared.
    """

    moves: tuple[JaxprEqn, ...]
    equation: JaxprEqn
    position: int
    rule: Rule

    @property
    def how(self) -> str:
        """In a few words."""
        return f"{self.rule.how} in {self.equation.primitive.name}"

    @property
    def size(self) -> int:
        """How many numbers a root has."""
        return self.rule.size(self.equation, self.position)

    def probe(self, leaf: Array) -> Array:
        """What is differentiated in the place of the leaf: zeros added to the output."""
        del leaf
        output: Any = self.equation.outvars[0].aval
        return jnp.zeros(output.shape, output.dtype)

    def keep(self, operands: Sequence[Array]) -> Array:
        """What `root` and `square` need of the operation's operands."""
        return self.rule.keep(self.equation, operands[1 - self.position])

    def root(self, d: Array, kept: Array) -> Array:
        """What is squared, from the probe's cotangent d."""
        return self.rule.root(self.equation, d, kept)

    def square(self, v: Array, kept: Array) -> Array:
        r"""$A(a)^{∘2} v$ for numbers v in the shape of the leaf; linear in v."""
        for move in self.moves:
            v = rearrange(move, v)
        return self.rule.square(self.equation, self.position, v, kept)


class Gradient(NamedTuple):
    """A leaf whose gradient is formed for each example and output; as a `Use`.

    Attributes:
      why: in a few words.
      size: of the leaf.
    """

    why: str
    size: int

    @property
    def how(self) -> str:
        """In a few words."""
        return f"gradient, {self.why}"

    def probe(self, leaf: Array) -> Array:
        """The leaf itself."""
        return leaf

    def root(self, d: Array, kept: None) -> Array:
        """The gradient itself."""
        del kept
        return d

    def square(self, v: Array, kept: None) -> Array:
        """The numbers themselves."""
        del kept
        return v


def find_uses(program: Program, number: int) -> list[Use | Gradient]:
    """How each of the first `number` inputs is to be squared.

    A leaf is followed through rearrangements to the one operation that it enters. Where there is
    more than one, or one without a rule, its gradient is formed, which is always right.
    """
    return [_find_use(program.jaxpr, variable) for variable in program.jaxpr.invars[:number]]


def _find_use(jaxpr: Any, leaf: Any) -> Use | Gradient:
    moves: list[JaxprEqn] = []
    variable = leaf
    while True:
        places = _places(jaxpr, variable)
        if len(places) != 1:
            why = f"used {len(places)} times" if places else "not used"
            return Gradient(why, leaf.aval.size)
        equation, position = places[0]
        if equation is None:
            return Gradient("returned as an output", leaf.aval.size)
        if not rearranges(equation):
            break
        moves.append(equation)
        variable = equation.outvars[0]
    name = equation.primitive.name
    for rule in RULES.get(name, ()):
        if rule.applies(equation, position):
            return Use(tuple(moves), equation, position, rule)
    why = f"shared by positions in {name}" if name in RULES else f"enters {name}"
    return Gradient(why, leaf.aval.size)


def _places(jaxpr: Any, variable: Any) -> Sequence[tuple[JaxprEqn | None, int]]:
    """The equations a variable enters and the positions there; no equation for an output."""
    entered = [
        (equation, position)
        for equation in jaxpr.eqns
        for position, atom in enumerate(equation.invars)
        if atom is variable
    ]
    outputs = [(None, i) for i, atom in enumerate(jaxpr.outvars) if atom is variable]
    return [*entered, *outputs]
