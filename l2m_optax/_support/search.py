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
"""The spacing of the last grid, in a logarithm: two per cent of the value."""
_TOLERANCE = 1e-4
_MAX_STEPS = 20


class Minimum(NamedTuple):
    """Where a search ended.

    Attributes:
      point: coordinates, shape (d,).
      value: what was found there; infinite or NaN if no value was finite.
      low: whether a coordinate lies on its lower bound, shape (d,); false where it cannot move.
      high: the same for the upper bound.
      converged: whether the last step was short, shape ().
      evaluations: number of points looked at.
    """

    point: Array
    value: Array
    low: Array
    high: Array
    converged: Array
    evaluations: int


def zoom(losses: Callable[[Sequence[Array]], Array], axes: Sequence[Array], rounds: int) -> Minimum:
    """The best of a grid, then of a finer one between its neighbours, and so on.

    Of equal values the first wins; NaN never does.

    Args:
      losses: the values on the grid of d axes, in an array of d axes.
      axes: the first grid, rising, whose ends are the bounds; an axis of one point stays as it is.
      rounds: number of grids, at least 1.
    """
    grid = axes
    for _ in range(rounds):
        looked_at, best = grid, _best(grid, losses(grid))
        grid = best.finer
    low, high, found = _edges(axes, looked_at, best)
    evaluations = rounds * math.prod(len(axis) for axis in axes)
    return Minimum(best.point, best.value, low, high, found, evaluations)


class _Best(NamedTuple):
    """The best point of a grid, its value, and the finer grid around it."""

    point: Array
    value: Array
    finer: list[Array]


@jax.jit
def _best(axes: Sequence[Array], values: Array) -> _Best:
    values = jnp.where(jnp.isnan(values), jnp.inf, values)
    at = jnp.unravel_index(jnp.argmin(values), values.shape)
    point = jnp.stack([axis[i] for axis, i in zip(axes, at, strict=True)])
    finer = [_between_neighbours(axis, i) for axis, i in zip(axes, at, strict=True)]
    return _Best(point, jnp.min(values), finer)


@jax.jit
def _edges(
    first: Sequence[Array], last: Sequence[Array], best: _Best
) -> tuple[Array, Array, Array]:
    """Whether the best point of the last grid is on the bounds of the first, and is a number.

    Only the last grid shows whether the minimum is on a bound, or beside it.
    """
    found = jnp.isfinite(best.value)
    finest = spacing(last)
    low, high = (found & (jnp.abs(best.point - end) < 0.5 * finest) for end in ends(first))
    return low, high, found


@jax.jit
def ends(axes: Sequence[Array]) -> tuple[Array, Array]:
    """The first and the last points of all axes, two arrays of shape (d,)."""
    return jnp.stack([axis[0] for axis in axes]), jnp.stack([axis[-1] for axis in axes])


@jax.jit
def spacing(axes: Sequence[Array]) -> Array:
    """The distance of neighbours on each axis, shape (d,); 0 on an axis of one point."""
    gaps = jnp.array([max(len(axis) - 1, 1) for axis in axes])
    first, last = ends(axes)
    return jnp.where(first == last, 0.0, last - first) / gaps


def _between_neighbours(axis: Array, i: Array) -> Array:
    """As many points as before, from the left neighbour of the i-th to the right one."""
    number = len(axis)
    if number == 1:
        return axis
    return jnp.linspace(axis[jnp.maximum(i - 1, 0)], axis[jnp.minimum(i + 1, number - 1)], number)


def rounds_for(low: float, high: float, points: int) -> int:
    """How many grids of at least 4 points it takes until the spacing is two per cent."""
    first = (high - low) / (points - 1)
    return 1 + max(0, math.ceil(math.log(first / _RESOLUTION) / math.log((points - 1) / 2)))


def rounding(value: Array) -> Array:
    """How far apart rounding may take two sums of this size that should be equal."""
    return 4 * float(np.finfo(value.dtype).eps) * jnp.abs(value)


class _State(NamedTuple):
    """Where Newton's method stands: the best point so far, and what is known of it."""

    point: Array
    value: Array
    gradient: Array
    hessian: Array
    damping: Array
    done: Array


def newton(
    derivatives: Callable[[Array], tuple[Array, Array, Array]],
    start: Array,
    reach: Array,
    bounds: tuple[Array, Array],
) -> Minimum:
    """A minimum, by damped steps from `start`; it has converged when a step is below 1e-4.

    Levenberg's damping: a step that does not descend is not taken, and the next one is shorter.

    Args:
      derivatives: value, gradient (d,) and Hessian (d, d) at a point.
      start: shape (d,).
      reach: the longest step in each coordinate, shape (d,); one of reach 0 stays as it is.
      bounds: lowest and highest coordinates, shape (d,).
    """
    state = _State(start, *derivatives(start), jnp.zeros(()), jnp.zeros((), bool))
    steps = 0
    for _ in range(_MAX_STEPS):
        steps += 1
        proposal = _proposal(state, reach, bounds)
        state = _after(state, proposal, derivatives(proposal), reach)
        if is_concrete(state.done) and bool(state.done):
            break
    low, high, converged = _ended(state, reach, bounds)
    return Minimum(state.point, state.value, low, high, converged, steps + 1)


@jax.jit
def _proposal(state: _State, reach: Array, bounds: tuple[Array, Array]) -> Array:
    """The point that a damped step leads to."""
    moves = reach > 0
    free = moves[:, None] & moves[None, :]
    hessian = jnp.where(free, state.hessian, jnp.diag(jnp.where(moves, 0.0, 1.0)))
    # Along a negative curvature Newton's step would climb; with its absolute value it descends.
    values, vectors = jnp.linalg.eigh(hessian)
    stiffness = jnp.abs(values) + state.damping * jnp.max(jnp.abs(values)) + 1e-30
    gradient = jnp.where(moves, state.gradient, 0.0)
    step = -vectors @ ((vectors.T @ gradient) / stiffness)
    step = step / jnp.maximum(1.0, jnp.max(jnp.where(moves, jnp.abs(step) / reach, 0.0)))
    return jnp.where(moves, jnp.clip(state.point + step, *bounds), state.point)


@jax.jit
def _after(
    state: _State, proposal: Array, there: tuple[Array, Array, Array], reach: Array
) -> _State:
    """Where the method stands when it has looked at a proposal: there, or where it was."""
    value, gradient, hessian = there
    # A difference by rounding alone is no ascent: near the minimum the gradient is more exact.
    better = (value <= state.value + rounding(value)) & ~state.done
    small = jnp.all((jnp.abs(proposal - state.point) < _TOLERANCE) | ~(reach > 0))
    damping = jnp.where(better, state.damping / 10, 10 * state.damping + 0.01)
    new = _State(proposal, value, gradient, hessian, damping, state.done)
    kept = state._replace(damping=damping)
    state = jax.tree.map(functools.partial(jnp.where, better), new, kept)
    return state._replace(done=state.done | small)


@jax.jit
def _ended(state: _State, reach: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    """Whether the last point is on the bounds, and whether the search has converged to a number."""
    found = jnp.isfinite(state.value)
    moves = found & (reach > 0)
    return (
        moves & (state.point <= bounds[0]),
        moves & (state.point >= bounds[1]),
        state.done & found,
    )
