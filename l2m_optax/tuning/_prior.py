"""What the data say about the prior and the noise: the evidence's maxima, found safely.

Along each group of leaves the log evidence has one stationary point in the prior precision δ,
because γ(δ) = Σ F/(F+δ) falls and δ·‖θ*-θ0‖² rises. It is found by Newton steps kept inside a
bracket, so that no start fails; a maximum outside of the bracket is reported as an edge.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2m_optax._support.checks import complaint
from l2m_optax._support.trees import broadcast, fill, free, statistics_dtype
from l2m_optax._support.types import Array, ArrayLike, PyTree
from l2m_optax.posterior._posterior import Posterior, data_precision, free_deviation
from l2m_optax.tuning._fit import Fit, FitInfo

_LOG_BOUNDS = (-27.7, 27.7)


"""Prior precisions are sought between 1e-12 and 1e12."""


_MAX_ITERATIONS = 100


_TOLERANCE = 1e-5


def fit_prior_precision(
    posterior: Posterior,
    *,
    groups: PyTree | Callable[[PyTree], PyTree] | None = None,
) -> Fit:
    r"""The prior precision that maximises the evidence; needs no data.

    The maximum satisfies $\delta = \gamma / \lVert\theta^* - \theta_0\rVert^2$ with
    $\gamma = \sum F / (F + \delta)$, in each group on its own.

    Args:
      posterior: a `Posterior`; its prior precision is where the search starts.
      groups: `None` for one value, or a prefix tree of labels as in `optax.partition` (or a
        function from the parameters to one): leaves of the same label share a value. A value for
        each top-level module is ``{name: name for name in params}``, and for each leaf
        ``jax.tree_util.tree_map_with_path(lambda path, _: jax.tree_util.keystr(path), params)``.

    Returns:
      A `Fit`. Where the evidence has no maximum (θ* = θ0, or F = 0 throughout a group),
      ``info.edge`` is true and the prior precision is left as it was.

    Raises:
      ValueError: if `groups` is no prefix of the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.ones(4))
      >>> posterior = l2m.laplace(2.0 * jnp.ones(4), moment, num_data=10_000, batch_size=1)
      >>> posterior, info = l2m.fit_prior_precision(posterior)
      >>> print(f"{info.value:.3f}", info.converged, info.edge)
      0.250 True False

    Reference:
      MacKay, A practical Bayesian framework for backpropagation networks (1992).
    """
    grouping = _group(posterior, groups)
    search = _maximize_evidence(posterior, grouping.group_of_leaf)
    return Fit(
        grouping.with_prior(posterior, search.value),
        FitInfo(
            grouping.by_name(search.value),
            search.iterations,
            grouping.by_name(search.converged),
            grouping.by_name(search.edge),
        ),
    )


def fit_noise_variance(
    posterior: Posterior,
    residuals: ArrayLike,
    *,
    groups: PyTree | Callable[[PyTree], PyTree] | None = None,
) -> Fit:
    r"""The noise variance of a Gaussian likelihood, with the prior precision that goes with it.

    $s^2 = \mathrm{RSS} / (N - \gamma)$, where RSS is the sum of squares of the N residuals and γ
    the effective number of parameters, itself a function of s² through $F \propto 1/s^4$ and of
    the prior precision, which is fitted for every s². The equation has one solution, in
    $s^2 \ge \mathrm{RSS}/N$, and is solved by bisection.

    A diagonal counts too many effective parameters when many weights share what the data say. As γ
    nears N the noise comes out too large: compare the two (`effective_parameters`), and `restrict`
    the posterior or use a smaller network where they are close.

    Args:
      posterior: a posterior built for unit noise: ``loss_scale=2`` for ``mean((y-f)²)``, 1 for
        ``mean(½(y-f)²)``. Fitting again starts afresh from there.
      residuals: y - f(x; θ*) of the training data, of any shape; N is their number.
      groups: as in `fit_prior_precision`.

    Returns:
      A `Fit`; ``posterior.noise_variance`` and ``info.value`` are s².

    Raises:
      ValueError: if there are no residuals.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=0.01 * jnp.ones(2))
      >>> posterior = l2m.laplace(jnp.ones(2), moment, num_data=100, batch_size=1, loss_scale=2.0)
      >>> residuals = 0.5 * jax.random.normal(jax.random.key(0), (100,))
      >>> posterior, info = l2m.fit_noise_variance(posterior, residuals)
      >>> print(f"{posterior.noise_variance:.2f}", info.converged)
      0.23 True

    Reference:
      MacKay, Bayesian interpolation (1992), section 4.
    """
    residuals = jnp.asarray(residuals)
    if residuals.size == 0:
        remedy = "pass y - apply_fn(params, x) of the training data"
        raise ValueError(complaint("residuals", "at least one", "an empty array", remedy))
    grouping = _group(posterior, groups)
    noise, search = _solve_noise(posterior, residuals, grouping.group_of_leaf)
    fitted = grouping.with_prior(posterior, search.value)
    return Fit(
        fitted._replace(noise_variance=noise.value),
        noise._replace(converged=noise.converged & jnp.all(search.converged)),
    )


class _Search(NamedTuple):
    """Bracketed searches in log δ side by side; every array has the shape (number of groups,)."""

    low: Array
    high: Array
    log_value: Array
    converged: Array
    edge: Array
    iterations: Array

    @property
    def value(self) -> Array:
        return jnp.exp(self.log_value)


@functools.partial(jax.jit, static_argnums=1)
def _maximize_evidence(posterior: Posterior, index: tuple[int, ...]) -> _Search:
    """Newton in log δ on log γ(δ) - log δ·‖θ*-θ0‖², which falls; halving outside of the bracket.

    On logarithms it is nearly straight, so that a far start costs one step more and not a hundred.
    `index` holds the group of every leaf.
    """
    data = jax.tree.leaves(data_precision(posterior))
    norms = _sum_by_group(
        [jnp.sum(jnp.square(d)) for d in jax.tree.leaves(free_deviation(posterior))], index
    )

    def slope(log_value: Array) -> tuple[Array, Array]:
        deltas = [jnp.exp(log_value[group]) for group in index]
        shares = [f / (f + delta) for f, delta in zip(data, deltas, strict=True)]
        gamma = _sum_by_group([jnp.sum(share) for share in shares], index)
        fall = _sum_by_group([jnp.sum(share * (1.0 - share)) for share in shares], index)
        return jnp.log(gamma) - log_value - jnp.log(norms), -fall / gamma - 1.0

    def step(search: _Search) -> _Search:
        value, derivative = slope(search.log_value)
        low = jnp.where(value > 0, search.log_value, search.low)
        high = jnp.where(value > 0, search.high, search.log_value)
        newton = search.log_value - value / derivative
        proposal = jnp.where((newton > low) & (newton < high), newton, 0.5 * (low + high))
        still = (jnp.abs(proposal - search.log_value) < _TOLERANCE) | (value == 0)
        log_value = jnp.where(search.converged | (value == 0), search.log_value, proposal)
        converged = search.converged | still
        return _Search(low, high, log_value, converged, search.edge, search.iterations + 1)

    def unfinished(search: _Search) -> Array:
        return (search.iterations < _MAX_ITERATIONS) & ~jnp.all(search.converged | search.edge)

    start = _mean_log_precision(posterior, index)
    low, high = (jnp.full_like(start, bound) for bound in _LOG_BOUNDS)
    # Where the slope keeps its sign between the bounds there is no maximum to be found.
    edge = ~((slope(low)[0] > 0) & (slope(high)[0] < 0))
    inside = jnp.where(edge, start, jnp.clip(start, *_LOG_BOUNDS))
    search = _Search(low, high, inside, jnp.zeros_like(edge), edge, jnp.zeros((), jnp.int32))
    search = jax.lax.while_loop(unfinished, step, search)
    return search._replace(
        log_value=jnp.where(edge, start, search.log_value), converged=search.converged & ~edge
    )


@functools.partial(jax.jit, static_argnums=2)
def _solve_noise(
    posterior: Posterior, residuals: Array, index: tuple[int, ...]
) -> tuple[FitInfo, _Search]:
    """Halving in log s² on s²·(N - γ(s²)) - RSS, which changes its sign once."""
    number = residuals.size
    squares = jnp.sum(jnp.square(residuals.astype(statistics_dtype(residuals))))
    floor = jnp.log(squares / number)
    # F falls with the square of s²: at e^30 times RSS/N the data say nothing any more.
    ceiling = floor + 30.0

    def refit(log_noise: Array) -> tuple[_Search, Array]:
        candidate = posterior._replace(noise_variance=jnp.exp(log_noise))
        search = _maximize_evidence(candidate, index)
        gamma = sum(
            jnp.sum(f / (f + search.value[group]))
            for f, group in zip(jax.tree.leaves(data_precision(candidate)), index, strict=True)
        )
        return search, jnp.exp(log_noise) * (number - gamma) - squares

    def halve(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, steps = state
        middle = 0.5 * (low + high)
        above = refit(middle)[1] > 0
        return jnp.where(above, low, middle), jnp.where(above, middle, high), steps + 1

    edge = ~(jnp.isfinite(floor) & (refit(ceiling)[1] > 0))
    start = (floor, ceiling, jnp.zeros((), jnp.int32))
    _, log_noise, steps = jax.lax.while_loop(
        lambda state: (state[1] - state[0] > _TOLERANCE) & ~edge, halve, start
    )
    before = jnp.asarray(posterior.noise_variance, log_noise.dtype)
    noise = jnp.where(edge, before, jnp.exp(log_noise))
    return FitInfo(noise, steps, ~edge, edge), refit(jnp.log(noise))[0]


def _sum_by_group(sums: list[Array], index: tuple[int, ...]) -> Array:
    return jax.ops.segment_sum(jnp.stack(sums), jnp.array(index), max(index) + 1)


def _mean_log_precision(posterior: Posterior, index: tuple[int, ...]) -> Array:
    """Where each group's search starts: the mean of the logarithms its leaves have now."""
    now = broadcast(posterior.prior_precision, posterior.second_moment.nu)
    logs = [jnp.log(jnp.asarray(delta, jnp.float32)) for delta in jax.tree.leaves(now)]
    return _sum_by_group(logs, index) / _sum_by_group([jnp.ones(())] * len(index), index)


class _Groups(NamedTuple):
    """Which leaves share a prior precision."""

    names: tuple[Hashable, ...] | None
    group_of_leaf: tuple[int, ...]

    def by_name(self, values: Array) -> Any:
        if self.names is None:
            return values[0]
        return dict(zip(self.names, values, strict=True))

    def with_prior(self, posterior: Posterior, values: Array) -> Posterior:
        if self.names is None:
            return posterior._replace(prior_precision=values[0])
        free_prior = jax.tree.unflatten(
            jax.tree.structure(posterior.second_moment.nu), [values[g] for g in self.group_of_leaf]
        )
        # A point has no prior; what it had stays in its place.
        before = broadcast(posterior.prior_precision, posterior.mean)
        return posterior._replace(prior_precision=fill(free_prior, before))


def _group(posterior: Posterior, groups: Any) -> _Groups:
    """The groups of the leaves that are no points."""
    nu = posterior.second_moment.nu
    if groups is None:
        return _Groups(None, (0,) * len(jax.tree.leaves(nu)))
    prefix = groups(posterior.mean) if callable(groups) else groups
    try:
        labels = jax.tree.leaves(free(broadcast(prefix, posterior.mean), nu))
    except ValueError as error:
        got = str(jax.tree.structure(prefix))
        remedy = "label leaves or whole modules, as in optax.partition"
        raise ValueError(complaint("groups", "a prefix of params", got, remedy)) from error
    names = tuple(sorted(set(labels), key=str))
    return _Groups(names, tuple(names.index(label) for label in labels))
