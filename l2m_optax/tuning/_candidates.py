"""What `tune` minimises: the loss of candidates, on a grid and around a point, over all batches."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.search import Minimum, ends, newton, rounds_for, spacing, zoom
from l2m_optax._support.types import Array, PyTree
from l2m_optax.posterior._posterior import Posterior
from l2m_optax.tuning._data import Dataset
from l2m_optax.tuning._limits import Bounds, Logs
from l2m_optax.tuning._objectives import Loss, Objective
from l2m_optax.tuning._variational import kl_divergence

Derivatives: TypeAlias = tuple[Array, Array, Array]
"""A value, its gradient and its Hessian."""

_POINTS = {1: 17, 2: 9}
"""Points of an axis of the grid, by the number of values that are tuned."""


class Problem(NamedTuple):
    """What is minimised; hashable.

    Attributes:
      objective: an `Objective`.
      tunes_prior: whether a point's prior precision replaces the posterior's own.
      takes_mode: whether temperature 0 is looked at as well, beside a grid.
    """

    objective: Objective
    tunes_prior: bool
    takes_mode: bool

    def with_prior(self, posterior: Posterior, log_prior: Array) -> Posterior:
        """The posterior with the prior precision of a point."""
        if not self.tunes_prior:
            return posterior
        return posterior._replace(prior_precision=jnp.exp(log_prior))

    def penalty(self, posterior: Posterior, at: Logs) -> Array:
        """What the objective holds besides a sum over data."""
        if self.objective.name == "nll":
            return jnp.zeros(())
        candidate = self.with_prior(posterior, at.prior_precision)
        return kl_divergence(candidate._replace(temperature=jnp.exp(at.temperature)))


def minimize(
    problem: Problem, posterior: Posterior, data: Dataset, limits: Bounds
) -> tuple[Minimum, Array]:
    """The best point: by grids that zoom in, or without draws by one grid and Newton's method.

    With it the loss at T = 0, the mode; infinite if that is no candidate.
    """
    modes: list[Array] = []

    def losses(axes: Sequence[Array]) -> Array:
        sums = data.sum(lambda x, y: _on_grid(problem, posterior, Logs(*axes), x, y))
        grid, mode = _grid_per_example(problem, posterior, Logs(*axes), sums, float(data.size))
        modes.append(mode)
        return grid

    def derivatives(point: Array) -> Derivatives:
        sums = data.sum(lambda x, y: _around(problem, posterior, point, x, y))
        return _per_example_around(problem, posterior, point, sums, float(data.size))

    points = _POINTS[len(limits)]
    axes = _axes(posterior, limits, points)
    if problem.objective.smooth:
        best = zoom(losses, axes, rounds=1)
        descent = newton(derivatives, best.point, spacing(axes), ends(axes))
        return descent._replace(evaluations=best.evaluations + descent.evaluations), modes[0]
    logs = [(math.log(low), math.log(high)) for low, high in limits.values()]
    best = zoom(losses, axes, max(rounds_for(low, high, points) for low, high in logs))
    return best, modes[0]


@functools.partial(jax.jit, static_argnums=0)
def _on_grid(problem: Problem, posterior: Posterior, axes: Logs, inputs: PyTree, y: Array) -> Array:
    """The sum over a batch for every pair of a prior precision and a temperature.

    The mode's, where it takes part, stands last: one more point of a grid is cheaper than a program
    of its own.
    """
    beside = [-jnp.inf] if problem.takes_mode else []
    temperatures = jnp.append(axes.temperature, jnp.array(beside))

    def at(log_prior: Array) -> Array:
        loss = _loss(problem, posterior, log_prior, inputs, y)
        return jax.lax.map(loss, temperatures)

    return jax.lax.map(at, axes.prior_precision)


@functools.partial(jax.jit, static_argnums=0)
def _around(
    problem: Problem, posterior: Posterior, point: Array, inputs: PyTree, y: Array
) -> Derivatives:
    """The sum over a batch at a point, its gradient and its Hessian."""

    def at(point: Array) -> Array:
        logs = Logs(*point)
        return _loss(problem, posterior, logs.prior_precision, inputs, y)(logs.temperature)

    return _derivatives(at, point)


def _loss(
    problem: Problem, posterior: Posterior, log_prior: Array, inputs: PyTree, y: Array
) -> Loss:
    """The loss of a batch as a function of log T, with the draws that all batches share."""
    candidate = problem.with_prior(posterior, log_prior)
    return problem.objective.loss(candidate, jax.random.key(0), inputs, y)


@functools.partial(jax.jit, static_argnums=0)
def _grid_per_example(
    problem: Problem, posterior: Posterior, axes: Logs, sums: Array, size: float
) -> tuple[Array, Array]:
    """Sums over all batches, with the penalty, on average: on a grid, and at the mode.

    At the mode the prior plays no part, so that the first of the grid stands for all.
    """

    def at(log_prior: Array) -> Array:
        return jax.lax.map(
            lambda log_t: problem.penalty(posterior, Logs(log_prior, log_t)), axes.temperature
        )

    grid, beside = jnp.split(sums, [len(axes.temperature)], axis=1)
    mode = beside[0, 0] if problem.takes_mode else jnp.full((), jnp.inf)
    return (grid + jax.lax.map(at, axes.prior_precision)) / size, mode / size


@functools.partial(jax.jit, static_argnums=0)
def _per_example_around(
    problem: Problem, posterior: Posterior, point: Array, sums: Derivatives, size: float
) -> Derivatives:
    """The objective at a point, its gradient and its Hessian."""
    penalty = _derivatives(lambda p: problem.penalty(posterior, Logs(*p)), point)
    return jax.tree.map(lambda a, b: (a + b) / size, sums, penalty)


def _derivatives(function: Callable[[Array], Array], point: Array) -> Derivatives:
    """Derivatives in forward mode, which is the cheapest for one or two coordinates."""

    def with_gradient(p: Array) -> tuple[Array, tuple[Array, Array]]:
        gradient = jax.jacfwd(function)(p)
        return gradient, (function(p), gradient)

    hessian, (value, gradient) = jax.jacfwd(with_gradient, has_aux=True)(point)
    return value, gradient, hessian


def _axes(posterior: Posterior, limits: Bounds, points: int) -> list[Array]:
    """The axes of the first grid; a value that is not tuned has an axis of one point.

    For the temperature this point is the posterior's own. For the prior precision, which may be a
    tree, the point is not used: see `Problem.with_prior`.
    """
    here = Logs(jnp.zeros(()), jnp.log(posterior.temperature))
    axes = {name: jnp.atleast_1d(value) for name, value in here._asdict().items()}
    for name, (low, high) in limits.items():
        axes[name] = jnp.asarray(np.linspace(math.log(low), math.log(high), points))
    return list(axes.values())
