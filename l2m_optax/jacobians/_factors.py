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

from l2m_optax._support.trees import statistics_dtype
from l2m_optax._support.types import Array
from l2m_optax.jacobians._program import JaxprEqn, Program, bind
from l2m_optax.jacobians._uses import FullGradient, SingleUse

Uses = Sequence[SingleUse | FullGradient]


def run_perturbed(
    program: Program,
    uses: Uses,
    leaves: Sequence[Any],
    perturbations: Sequence[Any],
    example: Sequence[Any],
) -> tuple[Any, list[Any]]:
    """The program's output with a perturbation for each leaf, and the residuals of each use.

    A perturbation is what the program is differentiated by: zeros added to the output of the
    operation that uses the leaf, so that their cotangent is that of the output, or the leaf itself
    where its gradient is formed.
    """
    residuals: list[Any] = [None] * len(uses)

    def bind_perturbed(equation: JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
        outputs = bind(equation, values)
        for i, use in enumerate(uses):
            if isinstance(use, SingleUse) and use.equation is equation:
                residuals[i] = use.residual(values)
                outputs = [outputs[0] + perturbations[i]]
        return outputs

    triples = zip(uses, leaves, perturbations, strict=True)
    inputs = [p if isinstance(use, FullGradient) else leaf for use, leaf, p in triples]
    return program.run([*inputs, *example], bind_perturbed)[0], residuals


def factors(uses: Uses, cotangents: Sequence[Array], residuals: Sequence[Any]) -> list[Array]:
    """The factor of each leaf from its perturbation's cotangent, in float32 at least."""
    precise = [d.astype(statistics_dtype(d)) for d in cotangents]
    return [use.factor(d, a) for use, d, a in zip(uses, precise, residuals, strict=True)]


def weights(uses: Uses, numbers: Sequence[Array], residuals: Sequence[Any]) -> list[Array]:
    """The weights of each leaf from numbers v in its shape; linear in them."""
    return [use.weights(v, a) for use, v, a in zip(uses, numbers, residuals, strict=True)]
