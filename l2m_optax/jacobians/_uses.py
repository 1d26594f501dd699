"""Where each parameter is used, and whether its squared Jacobian factorises there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from l2m_optax._support.types import Array
from l2m_optax.jacobians._program import JaxprEqn, Program, places
from l2m_optax.jacobians._rules import RULES, Rule, rearrange, rearranges


class SingleUse(NamedTuple):
    """A leaf that one operation uses, which has a `Rule`.

    Attributes:
      moves: rearrangements between the leaf and the operation, in order.
      equation: the operation.
      position: which of its operands the leaf is.
      rule: how the squared gradient factorises there.
    """

    moves: tuple[JaxprEqn, ...]
    equation: JaxprEqn
    position: int
    rule: Rule

    @property
    def how(self) -> str:
        """In a few words, for `predict.tabulate`."""
        return f"{self.rule.how} in {self.equation.primitive.name}"

    @property
    def size(self) -> int:
        """The number of entries of a factor."""
        return self.rule.size(self.equation, self.position)

    def perturbation(self, leaf: Array) -> Array:
        """Zeros to be added to the operation's output."""
        del leaf
        output: Any = self.equation.outvars[0].aval
        return jnp.zeros(output.shape, output.dtype)

    @property
    def equations(self) -> list[JaxprEqn]:
        """The operations whose operands `residual` takes."""
        return [self.equation]

    def residual(self, operands: Sequence[Sequence[Array]]) -> Array:
        """What `factor` and `weights` need of the operation's operands."""
        return self.rule.residual(self.equation, operands[0][1 - self.position])

    def factor(self, d: Array, residual: Array) -> Array:
        """What is squared, from the cotangent d of the operation's output."""
        return self.rule.factor(self.equation, d, residual)

    def weights(self, v: Array, residual: Array) -> Array:
        """What stands beside the squared factor, from numbers v in the shape of the leaf."""
        for move in self.moves:
            v = rearrange(move, v)
        return self.rule.weights(self.equation, self.position, v, residual)


def _as_it_is(gradient: Array) -> Array:
    return gradient


class FullGradient(NamedTuple):
    """A leaf whose gradient is formed for each example and output; it has what `SingleUse` has.

    Attributes:
      why: in a few words.
      size: of the leaf.
      turned: what is made of the gradient before it is squared.
    """

    why: str
    size: int
    turned: Callable[[Array], Array] = _as_it_is

    @property
    def how(self) -> str:
        """In a few words, for `predict.tabulate`."""
        return f"gradient, {self.why}"

    def perturbation(self, leaf: Array) -> Array:
        """The leaf itself."""
        return leaf

    @property
    def equations(self) -> list[JaxprEqn]:
        """None."""
        return []

    def residual(self, operands: Sequence[Sequence[Array]]) -> None:
        """Nothing."""
        del operands

    def factor(self, d: Array, residual: None) -> Array:
        """The gradient itself, or turned."""
        del residual
        return self.turned(d)

    def weights(self, v: Array, residual: None) -> Array:
        """The numbers themselves."""
        del residual
        return v


def find_uses(program: Program, number: int) -> list[SingleUse | FullGradient]:
    """How the squared gradient of each of the first `number` inputs is computed.

    A leaf is followed through rearrangements to the one operation that it enters. Where there is
    more than one, or one without a rule, its gradient is formed, which is always right.
    """
    return [_find_use(program.jaxpr, variable) for variable in program.jaxpr.invars[:number]]


def _find_use(jaxpr: Any, leaf: Any) -> SingleUse | FullGradient:
    moves: list[JaxprEqn] = []
    variable = leaf
    while True:
        entered = places(jaxpr, variable)
        if len(entered) != 1:
            why = f"used {len(entered)} times" if entered else "not used"
            return FullGradient(why, leaf.aval.size)
        equation, position = entered[0]
        if equation is None:
            return FullGradient("returned as an output", leaf.aval.size)
        if not rearranges(equation):
            break
        moves.append(equation)
        variable = equation.outvars[0]
    name = equation.primitive.name
    for rule in RULES.get(name, ()):
        if rule.applies(equation, position):
            return SingleUse(tuple(moves), equation, position, rule)
    why = f"shared by positions in {name}" if name in RULES else f"enters {name}"
    return FullGradient(why, leaf.aval.size)
