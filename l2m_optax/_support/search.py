"""Minimisers over a few logarithms: a grid that zooms in, and Newton's method in a box."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import is_concrete
from l2m_optax._support.types import Array

_RESOLUTION = 0.02
"""The spacing of the last grid: two per cent of what the logarithm is of."""
_TOLERANCE = 1e-4
_MAX_STEPS = 20


class Minimum(NamedTuple):
    """Where the least value was found.

    Attributes:
      point: coordinates, shape (d,).
      spacing: of the last grid, shape (d,).
      edge: whether the best of the first grid lay on its rim, by coordinate, shape (d,); for an
        axis of a single point false.
      evaluations: number of points looked at.
    """

    point: Array
    spacing: Array
    edge: Array
    evaluations: int


def zoom(losses: Callable[[Sequence[Array]], Array], axes: Sequence[Array], rounds: int) -> Minimum:
    """The best of a grid, then of a finer one between its neighbours, and so on.

    Args:
      losses: the values on the grid of d axes, in an array of d axes.
      axes: the first grid; an axis of one point stays as it is.
      rounds: number of grids, at least 1.
    """
    shape = tuple(len(axis) for axis in axes)
    edge = jnp.zeros(len(axes), bool)
    for number in range(rounds):
        values = losses(axes)
        # NaN is no loss at all: it must not win.
        best = jnp.argmin(jnp.where(jnp.isnan(values), jnp.inf, values))
        at = jnp.unravel_index(best, shape)
        point = jnp.stack([axis[i] for axis, i in zip(axes, at, strict=True)])
        spacing = jnp.stack([axis[-1] - axis[0] for axis in axes]) / jnp.maximum(
            jnp.array(shape) - 1, 1
        )
        if number == 0:
            rim = [(i == 0) | (i == n - 1) for i, n in zip(at, shape, strict=True)]
            found = jnp.isfinite(values.ravel()[best])
            edge = (jnp.stack(rim) | ~found) & (jnp.array(shape) > 1)
        axes = [
            axis
            if n == 1
            else jnp.linspace(axis[jnp.maximum(i - 1, 0)], axis[jnp.minimum(i + 1, n - 1)], n)
            for axis, i, n in zip(axes, at, shape, strict=True)
        ]
    return Minimum(point, spacing, edge, rounds * math.prod(shape))


def rounds_for(low: float, high: float, points: int) -> int:
    """How many grids it takes until the spacing is two per cent."""
    first = (high - low) / (points - 1)
    return 1 + max(0, math.ceil(math.log(first / _RESOLUTION) / math.log((points - 1) / 2)))


class _State(NamedTuple):
    """Where Newton's method stands: the best point so far, and what is known of it."""

    point: Array
    value: Array
    gradient: Array
    hessian: Array
    damping: Array
    done: Array


class Descent(NamedTuple):
    """Where Newton's method ended.

    Attributes:
      point: shape (d,).
      edge: whether a coordinate lies on a bound, shape (d,).
      converged: whether the last step was below 1e-4 in every coordinate.
      steps: number of steps looked at.
    """

    point: Array
    edge: Array
    converged: Array
    steps: int


def newton(
    derivatives: Callable[[Array], tuple[Array, Array, Array]],
    start: Array,
    reach: Array,
    bounds: tuple[Array, Array],
) -> Descent:
    """The minimum below `start`, by damped steps.

    Levenberg's damping: a step that does not descend is not taken, and the next one is shorter.

    Args:
      derivatives: value, gradient (d,) and Hessian (d, d) at a point.
      start: shape (d,).
      reach: the longest step in each coordinate, shape (d,); one of reach 0 stays as it is.
      bounds: lowest and highest coordinates, shape (d,).
    """
    moves = reach > 0

    def propose(state: _State) -> Array:
        free = moves[:, None] & moves[None, :]
        hessian = jnp.where(free, state.hessian, jnp.diag(jnp.where(moves, 0.0, 1.0)))
        # Along a negative curvature Newton's step would climb: its absolute value descends.
        values, vectors = jnp.linalg.eigh(hessian)
        stiffness = jnp.abs(values) + state.damping * jnp.max(jnp.abs(values)) + 1e-30
        gradient = jnp.where(moves, state.gradient, 0.0)
        step = -vectors @ ((vectors.T @ gradient) / stiffness)
        step = step / jnp.maximum(1.0, jnp.max(jnp.where(moves, jnp.abs(step) / reach, 0.0)))
        return jnp.clip(state.point + step, *bounds)

    state = _State(start, *derivatives(start), jnp.zeros(()), jnp.zeros((), bool))
    steps = 0
    for _ in range(_MAX_STEPS):
        steps += 1
        proposal = propose(state)
        value, gradient, hessian = derivatives(proposal)
        # What differs by rounding alone is no ascent: near the minimum the gradient knows better.
        rounding = 4 * float(np.finfo(value.dtype).eps) * jnp.abs(value)
        better = (value <= state.value + rounding) & ~state.done
        small = jnp.max(jnp.abs(proposal - state.point)) < _TOLERANCE
        damping = jnp.where(better, state.damping / 10, 10 * state.damping + 0.01)
        new = _State(proposal, value, gradient, hessian, damping, state.done)
        kept = state._replace(damping=damping)
        state = jax.tree.map(functools.partial(jnp.where, better), new, kept)
        state = state._replace(done=state.done | small)
        if is_concrete(state.done) and bool(state.done):
            break
    edge = moves & ((state.point <= bounds[0]) | (state.point >= bounds[1]))
    return Descent(state.point, edge, state.done, steps)
