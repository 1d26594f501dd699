"""The maximum of the evidence in the prior precision: Newton's method inside a bracket.

In each group of leaves the log evidence has one stationary point in the prior precision δ, because
γ(δ) = Σ F/(F+δ) falls and δ·‖θ*-θ0‖² rises. Newton steps that may not leave a bracket find it from
any start. A maximum outside of the first bracket is reported as an edge.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from l2m_optax._support.groups import sum_by_group
from l2m_optax._support.trees import broadcast
from l2m_optax._support.types import Array
from l2m_optax.moments._evidence import determined
from l2m_optax.posterior._posterior import Posterior, data_precision, free_deviation

Slope: TypeAlias = Callable[[Array], tuple[Array, Array]]

LOG_TOLERANCE = 1e-5
"""How near, in its logarithm, a value must be to its maximum."""
_LOG_BOUNDS = (-27.7, 27.7)
"""Prior precisions are sought between 1e-12 and 1e12."""
_MAX_ITERATIONS = 100


class Search(NamedTuple):
    """Bracketed searches in log δ side by side.

    Attributes:
      low: lower ends of the brackets, shape (number of groups,) like the others.
      high: upper ends.
      log_value: log δ of the present step.
      converged: whether the last step was shorter than the tolerance.
      edge: whether there is no maximum in the first bracket.
      iterations: number of steps, shape ().
    """

    low: Array
    high: Array
    log_value: Array
    converged: Array
    edge: Array
    iterations: Array

    @property
    def value(self) -> Array:
        """δ of each group."""
        return jnp.exp(self.log_value)


@functools.partial(jax.jit, static_argnums=1)
def maximize_evidence(posterior: Posterior, of_leaf: tuple[int, ...]) -> Search:
    """The prior precision of each group at the evidence's maximum; at an edge, that at the start.

    Args:
      posterior: a `Posterior`.
      of_leaf: for each free leaf the index of its group.
    """
    slope = _slope(posterior, of_leaf)
    start = _mean_log_precision(posterior, of_leaf)
    low, high = (jnp.full_like(start, bound) for bound in _LOG_BOUNDS)
    # Where the slope keeps its sign between the bounds there is no maximum to be found.
    edge = ~((slope(low)[0] > 0) & (slope(high)[0] < 0))
    inside = jnp.where(edge, start, jnp.clip(start, *_LOG_BOUNDS))
    search = Search(low, high, inside, jnp.zeros_like(edge), edge, jnp.zeros((), jnp.int32))
    search = jax.lax.while_loop(_unfinished, lambda search: _step(slope, search), search)
    return search._replace(
        log_value=jnp.where(edge, start, search.log_value), converged=search.converged & ~edge
    )


def _slope(posterior: Posterior, of_leaf: tuple[int, ...]) -> Slope:
    """The function log γ(δ) - log δ·‖θ*-θ0‖² of log δ, with its derivative.

    It falls, and is nearly straight, so that a far start costs one step more and not a hundred.
    """
    data = jax.tree.leaves(data_precision(posterior))
    deviations = jax.tree.leaves(free_deviation(posterior))
    norms = sum_by_group([jnp.sum(jnp.square(d)) for d in deviations], of_leaf)

    def slope(log_value: Array) -> tuple[Array, Array]:
        deltas = [jnp.exp(log_value[group]) for group in of_leaf]
        shares = list(map(determined, data, deltas))
        gamma = sum_by_group([jnp.sum(share) for share in shares], of_leaf)
        fall = sum_by_group([jnp.sum(share * (1.0 - share)) for share in shares], of_leaf)
        return jnp.log(gamma) - log_value - jnp.log(norms), -fall / gamma - 1.0

    return slope


def _step(slope: Slope, search: Search) -> Search:
    """A step of Newton's method, or to the middle of the bracket if that step would leave it."""
    value, derivative = slope(search.log_value)
    low = jnp.where(value > 0, search.log_value, search.low)
    high = jnp.where(value > 0, search.high, search.log_value)
    newton = search.log_value - value / derivative
    proposal = jnp.where((newton > low) & (newton < high), newton, 0.5 * (low + high))
    still = (jnp.abs(proposal - search.log_value) < LOG_TOLERANCE) | (value == 0)
    log_value = jnp.where(search.converged | (value == 0), search.log_value, proposal)
    converged = search.converged | still
    return Search(low, high, log_value, converged, search.edge, search.iterations + 1)


def _unfinished(search: Search) -> Array:
    return (search.iterations < _MAX_ITERATIONS) & ~jnp.all(search.converged | search.edge)


def _mean_log_precision(posterior: Posterior, of_leaf: tuple[int, ...]) -> Array:
    """Where the search of each group starts: the mean of log δ over its leaves."""
    now = broadcast(posterior.prior_precision, posterior.second_moment.nu)
    logs = [jnp.log(jnp.asarray(delta, jnp.float32)) for delta in jax.tree.leaves(now)]
    return sum_by_group(logs, of_leaf) / sum_by_group([jnp.ones(())] * len(of_leaf), of_leaf)
