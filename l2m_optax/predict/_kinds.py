"""The two ways to predict with draws, each as one object that others are built on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, TypeAlias

import jax.numpy as jnp

from l2m_optax._support.types import ApplyFn, Array, PyTree
from l2m_optax.posterior._drawing import deviations, draws
from l2m_optax.posterior._posterior import Posterior
from l2m_optax.predict._draws import monte_carlo, outputs_of_draws
from l2m_optax.predict._linearized import output_deviations, outputs_of_deviations
from l2m_optax.predict._outputs import if_independent, influence

KindName: TypeAlias = Literal["linearized", "monte_carlo"]
AtTemperature: TypeAlias = Callable[[Array], Array]
"""From log T to the outputs of the same draws at the temperature T."""


class OfTemperature(Protocol):
    """Outputs of S draws, mirror images included, as a function of log T."""

    def __call__(
        self,
        key: Array,
        apply_fn: ApplyFn,
        posterior: Posterior,
        inputs: PyTree,
        num_samples: int,
        chunk_size: int | None,
    ) -> AtTemperature: ...


class Kind(NamedTuple):
    """A way to predict with draws.

    Attributes:
      draws: ``draws(key, posterior, num_samples)``: S stacked trees, `None` at fixed leaves.
      outputs: ``outputs(apply_fn, posterior, draws, inputs, chunk_size)``: of shape (S, N, ...).
      of_temperature: the same outputs for any temperature; what does not depend on it, is computed
        before.
    """

    draws: Callable[[Array, Posterior, int], PyTree]
    outputs: Callable[[ApplyFn, Posterior, PyTree, PyTree, int | None], Array]
    of_temperature: OfTemperature


def _linearized_at(
    key: Array,
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    num_samples: int,
    chunk_size: int | None,
) -> AtTemperature:
    unit = posterior._replace(temperature=jnp.ones(()))
    outputs, moves = output_deviations(
        key, apply_fn, unit, inputs, num_samples, chunk_size, antithetic=True
    )
    moves = if_independent(moves, influence(apply_fn, unit.mean, inputs))
    return lambda log_temperature: outputs[None] + jnp.exp(0.5 * log_temperature) * moves


def _monte_carlo_at(
    key: Array,
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    num_samples: int,
    chunk_size: int | None,
) -> AtTemperature:
    return lambda log_temperature: monte_carlo(
        key,
        apply_fn,
        posterior._replace(temperature=jnp.exp(log_temperature)),
        inputs,
        num_samples=num_samples,
        chunk_size=chunk_size,
        antithetic=True,
    )


KINDS: dict[str, Kind] = {
    "linearized": Kind(deviations, outputs_of_deviations, _linearized_at),
    "monte_carlo": Kind(draws, outputs_of_draws, _monte_carlo_at),
}
