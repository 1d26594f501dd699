"""A program with probes at its parameters, whose cotangents are squared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from l2m_optax._support.trees import statistics_dtype
from l2m_optax._support.types import Array
from l2m_optax.jacobians._program import JaxprEqn, Program, bind
from l2m_optax.jacobians._uses import Gradient, Use

Uses = Sequence[Use | Gradient]


def run(
    program: Program,
    uses: Uses,
    leaves: Sequence[Any],
    probes: Sequence[Any],
    example: Sequence[Any],
) -> tuple[Any, list[Any]]:
    """The program's output with a probe for each leaf, and what each use keeps."""
    kept: list[Any] = [None] * len(uses)

    def bind_probed(equation: JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
        outputs = bind(equation, values)
        for i, use in enumerate(uses):
            if isinstance(use, Use) and use.equation is equation:
                kept[i] = use.keep(values)
                outputs = [outputs[0] + probes[i]]
        return outputs

    pairs = zip(uses, leaves, probes, strict=True)
    inputs = [probe if isinstance(use, Gradient) else leaf for use, leaf, probe in pairs]
    return program.run([*inputs, *example], bind_probed)[0], kept


def roots(uses: Uses, cotangents: Sequence[Array], kept: Sequence[Any]) -> list[Array]:
    """What is squared for each leaf, in float32 at least."""
    precise = [d.astype(statistics_dtype(d)) for d in cotangents]
    return [use.root(d, k) for use, d, k in zip(uses, precise, kept, strict=True)]


def spread(uses: Uses, numbers: Sequence[Array], kept: Sequence[Any]) -> list[Array]:
    """Numbers in the shape of the leaves as they stand beside the squared roots."""
    return [use.square(v, k) for use, v, k in zip(uses, numbers, kept, strict=True)]
