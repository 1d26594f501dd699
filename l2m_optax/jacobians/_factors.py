r"""Squared gradients as products: a factor for each output, and weights that all outputs share.

For one example, output k and leaf i let $g_{ki}$ be the gradient, flattened. The package needs
$\sum_p g_{kip}\, g_{lip}\, v_{ip}$ for given numbers v, such as variances. Every leaf has
*factors* $r_i(k)$ and *weights* $s_i$ of one shape with

$$\sum_p g_{kip}\, g_{lip}\, v_{ip} = \sum_j r_i(k)_j\, r_i(l)_j\, s_{ij} .$$

Where the leaf is used once, by an operation that has a rule, $r_i(k)$ is the cotangent of that
operation's output, which is much smaller than the gradient. Else it is the gradient, and $s_i$ is
$v_i$.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.extend.core import Literal

from l2m_optax._support.trees import statistics_dtype
from l2m_optax._support.types import Array
from l2m_optax.jacobians._convolution import in_order, is_convolution, pulled_in_order
from l2m_optax.jacobians._pooling import is_pooling, largest_of_windows
from l2m_optax.jacobians._program import JaxprEqn, Program, bind
from l2m_optax.jacobians._reach import Reach
from l2m_optax.jacobians._uses import FullGradient, SingleUse

Uses = Sequence[SingleUse | FullGradient]


def run_perturbed(
    program: Program,
    uses: Sequence[SingleUse | FullGradient | Reach],
    leaves: Sequence[Any],
    perturbations: Sequence[Any],
    example: Sequence[Any],
) -> tuple[Any, list[Any]]:
    """The program's output with a perturbation for each leaf, and the residuals of each use.

    A perturbation is what the program is differentiated by: zeros added to the output of the
    operation that uses the leaf, so that their cotangent is that of the output, or the leaf itself
    where its gradient is formed, or nothing where the leaf reaches the outputs by moves alone.
    """
    taken = {id(equation) for use in uses for equation in use.equations}
    operands: dict[int, Sequence[Any]] = {}
    perturbed = _perturbed(program, uses)

    def bind_perturbed(equation: JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
        outputs = _computed(equation, values, id(equation) in perturbed)
        if id(equation) in taken:
            operands[id(equation)] = values
        for use, perturbation in zip(uses, perturbations, strict=True):
            if isinstance(use, SingleUse) and use.equation is equation:
                outputs = [outputs[0] + perturbation]
        return outputs

    triples = zip(uses, leaves, perturbations, strict=True)
    inputs = [p if isinstance(use, FullGradient) else leaf for use, leaf, p in triples]
    (outputs,) = program.run([*inputs, *example], bind_perturbed)
    return outputs, [use.residual([operands[id(e)] for e in use.equations]) for use in uses]


def _perturbed(program: Program, uses: Sequence[SingleUse | FullGradient | Reach]) -> set[int]:
    """The operations whose first operand depends on a perturbation."""
    leaves = program.jaxpr.invars[: len(uses)]
    pairs = zip(uses, leaves, strict=True)
    moving = {leaf for use, leaf in pairs if isinstance(use, FullGradient)}
    added = {id(use.equation) for use in uses if isinstance(use, SingleUse)}
    found: set[int] = set()
    for equation in program.jaxpr.eqns:
        inputs = [atom for atom in equation.invars if not isinstance(atom, Literal)]
        if id(equation) in added or not moving.isdisjoint(inputs):
            moving.update(equation.outvars)
        if inputs and equation.invars[0] is inputs[0] and inputs[0] in moving:
            found.add(id(equation))
    return found


def _computed(equation: JaxprEqn, values: Sequence[Any], pulled: bool) -> Sequence[Any]:
    """What an equation computes, in a way whose derivative costs little."""
    if is_pooling(equation):
        return [largest_of_windows(equation, *values)]
    if is_convolution(equation):
        return [(pulled_in_order if pulled else in_order)(equation, *values)]
    return bind(equation, values)


def factors(uses: Uses, cotangents: Sequence[Array], residuals: Sequence[Any]) -> list[Array]:
    """The factor of each leaf from its perturbation's cotangent, in float32 at least."""
    precise = [d.astype(statistics_dtype(d)) for d in cotangents]
    return [use.factor(d, a) for use, d, a in zip(uses, precise, residuals, strict=True)]


def weights(uses: Uses, numbers: Sequence[Array], residuals: Sequence[Any]) -> list[Array]:
    """The weights of each leaf from numbers v in its shape; linear in them."""
    return [use.weights(v, a) for use, v, a in zip(uses, numbers, residuals, strict=True)]
