"""The temperature and the prior precision that predict held-out data best."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from l2m_optax._support.checks import check_count, check_hashable, complaint
from l2m_optax._support.search import Descent, newton, rounds_for, zoom
from l2m_optax._support.types import ApplyFn, Array, ArrayLike, Likelihood, PyTree
from l2m_optax.posterior._posterior import Posterior
from l2m_optax.tuning._fit import Fit, FitInfo
from l2m_optax.tuning._objectives import Loss, Objective
from l2m_optax.tuning._observations import Observations
from l2m_optax.tuning._variational import kl_divergence

_BOUNDS = {"prior_precision": (1e-4, 1e8), "temperature": (1e-5, 1e3)}
_POINTS = {1: 17, 2: 9}
"""Points of an axis of the grid, by the number of axes."""

_Derivatives: TypeAlias = tuple[Array, Array, Array]
"""A value, its gradient and its Hessian."""


def tune(
    posterior: Posterior,
    apply_fn: ApplyFn,
    inputs: PyTree | Iterable[Any],
    targets: ArrayLike | None = None,
    *,
    over: str | Sequence[str] = "temperature",
    objective: str = "nll",
    kind: str = "linearized",
    likelihood: Likelihood | None = None,
    key: Array | None = None,
    num_samples: int = 32,
    bounds: tuple[float, float] | Mapping[str, tuple[float, float]] | None = None,
    chunk_size: int | None = None,
) -> Fit:
    r"""The temperature, the prior precision, or both, that predict validation data best.

    With $\Sigma(\delta, T) = T / (F + \delta)$ the objective is the negative log-likelihood of the
    predictive, $-\sum_i \log \overline{p(y_i | f_s(x_i))}$, the mean being that over draws. The
    same draws serve every candidate and every batch (common random numbers), so that candidates
    differ by what they are and not by luck. A logarithmic grid is evaluated in one compiled call
    for each batch, and refined around its best: by finer grids, or for ``kind="closed_form"``,
    which has no draws and is smooth, by Newton's method with exact derivatives.

    Args:
      posterior: a `Posterior`; what is tuned plays no part in where the search starts.
      apply_fn: ``apply_fn(params, inputs) -> outputs``: logits of shape (N, K) for classification,
        means for regression; hashable.
      inputs: validation inputs; or, without `targets`, a loader of (inputs, targets) pairs that
        can be iterated over several times, of which one batch at a time is in memory.
      targets: integer labels of shape (N,), or real targets in the shape of the outputs, whose
        Gaussian likelihood has the variance ``posterior.noise_variance``.
      over: ``"temperature"``, ``"prior_precision"`` (one value for all leaves), or both.
      objective: ``"nll"``, or ``"elbo"`` for users without validation data: `inputs` are then all
        the *training* data, and what is minimised is
        $-\sum_i \overline{\log p(y_i | f_s(x_i))} + \mathrm{KL}$, see `elbo`.
      kind: ``"linearized"`` and ``"monte_carlo"`` take draws, as the functions of these names do;
        ``"closed_form"`` uses exact covariances, with `mean_field` for labels. Real targets with
        their default likelihood need no draws for ``"linearized"`` either, so the two are one.
      likelihood: log-likelihood of observations given outputs, ``likelihood(outputs, targets)``,
        outputs with an axis of draws in front, such as `likelihoods.heteroscedastic_gaussian`;
        hashable. By default what `targets` says.
      key: a key of `jax.random`; the same for every call unless given, so that results repeat.
      num_samples: number of draws.
      bounds: lowest and highest value, or a dict of such pairs by name. By default 1e-5 to 1e3 for
        the temperature and 1e-4 to 1e8 for the prior precision.
      chunk_size: draws (without draws: inputs) worked on at a time.

    Returns:
      A `Fit` whose ``info.value`` is what was found: a scalar, or a dict by name where `over` is a
      sequence; ``info.edge`` likewise. If a best value is a bound, its ``info.edge`` is true and
      the posterior is left as it was: at the lower bound of the temperature, the data prefer the
      trained parameters alone. ``info.iterations`` counts candidates.

    Raises:
      ValueError: if shapes do not match, labels are out of range, there are no data, a loader ends
        early or can be used only once, or an argument is none of those named.
      TypeError: if `apply_fn` is not hashable, or a loader does not yield pairs.
      FloatingPointError: if the outputs of the trained parameters hold NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> x = jax.random.normal(jax.random.key(0), (200, 1))
      >>> y = 2.0 * jax.random.normal(jax.random.key(1), (200, 1))
      >>> moment = l2m.SecondMoment(nu=jnp.zeros((1, 1)).at[0].set(1e-9))
      >>> posterior = l2m.laplace(jnp.zeros((1, 1)), moment, num_data=100, batch_size=1)
      >>> posterior, info = l2m.tune(posterior, lambda w, x: x @ w, x, y)
      >>> print(bool(info.value > 1.0), info.edge)
      True False
    """
    check_hashable("apply_fn", apply_fn)
    check_count("num_samples", num_samples)
    names = _names(over)
    limits = _limits(names, bounds)
    data = Observations(apply_fn, posterior, inputs, targets, likelihood)
    goal = Objective(
        apply_fn, objective, kind, data.labels, likelihood, num_samples, chunk_size
    ).resolved()
    problem = _Problem(goal, tuple(name in names for name in _BOUNDS))
    key = jax.random.key(0) if key is None else key
    best = _minimize(problem, posterior, data, key, limits)
    places = {name: i for i, name in enumerate(_BOUNDS) if name in names}
    found = {name: jnp.exp(best.point[i]) for name, i in places.items()}
    edges = {name: best.edge[i] for name, i in places.items()}
    fit = _as_fit(posterior, found, edges, best.converged, best.steps)
    if not isinstance(over, str):
        return fit
    value, converged, edge = (x[over] for x in (fit.info.value, fit.info.converged, edges))
    return Fit(fit.posterior, FitInfo(value, fit.info.iterations, converged, edge))


def _minimize(
    problem: _Problem,
    posterior: Posterior,
    data: Observations,
    key: Array,
    limits: dict[str, tuple[float, float]],
) -> Descent:
    """The best of grids that zoom in; of one grid, and Newton's method, if there are no draws."""

    def losses(axes: Sequence[Array]) -> Array:
        sums = data.total(lambda x, y: _on_grid(problem, posterior, tuple(axes), key, x, y))
        return (sums + _penalty_on_grid(problem, posterior, tuple(axes))) / data.size

    def derivatives(point: Array) -> _Derivatives:
        sums = data.total(lambda x, y: _around(problem, posterior, point, key, x, y))
        penalty = _penalty_around(problem, posterior, point)
        return jax.tree.map(lambda a, b: (a + b) / data.size, sums, penalty)

    smooth, points = problem.objective.kind == "closed_form", _POINTS[len(limits)]
    low, high = max(limits.values(), key=lambda pair: pair[1] / pair[0])
    axes = _axes(posterior, limits, points)
    rounds = 1 if smooth else rounds_for(math.log(low), math.log(high), points)
    best = zoom(losses, axes, rounds)
    if not smooth:
        return Descent(best.point, best.edge, jnp.array(True), best.evaluations)
    corners = jnp.stack([axis[0] for axis in axes]), jnp.stack([axis[-1] for axis in axes])
    descent = newton(derivatives, best.point, best.spacing, corners)
    return descent._replace(edge=best.edge | descent.edge, steps=best.evaluations + descent.steps)


class _Problem(NamedTuple):
    """What is minimised, and over which of prior precision and temperature; hashable."""

    objective: Objective
    tuned: tuple[bool, ...]

    def candidate(self, posterior: Posterior, log_prior: Array) -> Posterior:
        if not self.tuned[0]:
            return posterior
        return posterior._replace(prior_precision=jnp.exp(log_prior))

    def loss(
        self, posterior: Posterior, log_prior: Array, key: Array, inputs: PyTree, y: Array
    ) -> Loss:
        return self.objective.loss(self.candidate(posterior, log_prior), key, inputs, y)

    def penalty(self, posterior: Posterior, point: Array) -> Array:
        """What the objective holds besides a sum over data."""
        if self.objective.name == "nll":
            return jnp.zeros(())
        candidate = self.candidate(posterior, point[0])
        return kl_divergence(candidate._replace(temperature=jnp.exp(point[1])))


@functools.partial(jax.jit, static_argnums=0)
def _on_grid(
    problem: _Problem,
    posterior: Posterior,
    axes: tuple[Array, ...],
    key: Array,
    inputs: PyTree,
    y: Array,
) -> Array:
    """The sum over a batch for every pair of a prior precision and a temperature."""
    log_priors, log_temperatures = axes

    def at(log_prior: Array) -> Array:
        loss = problem.loss(posterior, log_prior, key, inputs, y)
        return jax.lax.map(loss, log_temperatures)

    return jax.lax.map(at, log_priors)


@functools.partial(jax.jit, static_argnums=0)
def _around(
    problem: _Problem,
    posterior: Posterior,
    point: Array,
    key: Array,
    inputs: PyTree,
    y: Array,
) -> _Derivatives:
    """The sum over a batch at a point, its gradient and its Hessian."""
    return _derivatives(lambda p: problem.loss(posterior, p[0], key, inputs, y)(p[1]), point)


@functools.partial(jax.jit, static_argnums=0)
def _penalty_on_grid(problem: _Problem, posterior: Posterior, axes: tuple[Array, ...]) -> Array:
    points = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)
    penalty = functools.partial(problem.penalty, posterior)
    return jax.lax.map(lambda row: jax.lax.map(penalty, row), points)


@functools.partial(jax.jit, static_argnums=0)
def _penalty_around(problem: _Problem, posterior: Posterior, point: Array) -> _Derivatives:
    return _derivatives(functools.partial(problem.penalty, posterior), point)


def _derivatives(function: Callable[[Array], Array], point: Array) -> _Derivatives:
    """Forward over forward: two coordinates are cheaper to push than to pull."""

    def with_gradient(p: Array) -> tuple[Array, tuple[Array, Array]]:
        gradient = jax.jacfwd(function)(p)
        return gradient, (function(p), gradient)

    hessian, (value, gradient) = jax.jacfwd(with_gradient, has_aux=True)(point)
    return value, gradient, hessian


def _as_fit(
    posterior: Posterior,
    found: dict[str, Array],
    edges: dict[str, Array],
    converged: Array,
    candidates: int,
) -> Fit:
    """The posterior with what was found, or as it was if that lies on an edge."""
    edge = functools.reduce(jnp.logical_or, edges.values())

    def kept(before: Any, value: Array) -> Any:
        return jax.tree.map(lambda b: jnp.where(edge, b, value), before)

    posterior = posterior._replace(
        **{name: kept(getattr(posterior, name), value) for name, value in found.items()}
    )
    values = {name: getattr(posterior, name) for name in found}
    at_maximum = {name: converged & ~at_edge for name, at_edge in edges.items()}
    steps = jnp.asarray(candidates, jnp.int32)
    return Fit(posterior, FitInfo(values, steps, at_maximum, edges))


def _axes(posterior: Posterior, limits: dict[str, tuple[float, float]], points: int) -> list[Array]:
    """The first grid; where the search stays, what the posterior has (of a tree it is not used)."""
    here = {"prior_precision": jnp.ones(()), "temperature": posterior.temperature}
    axes = {name: jnp.log(jnp.atleast_1d(value)) for name, value in here.items()}
    for name, (low, high) in limits.items():
        axes[name] = jnp.linspace(math.log(low), math.log(high), points)
    return list(axes.values())


def _names(over: str | Sequence[str]) -> tuple[str, ...]:
    names = (over,) if isinstance(over, str) else tuple(over)
    if not names or len(set(names)) < len(names) or not set(names) <= set(_BOUNDS):
        remedy = "pass one of these, or both"
        raise ValueError(complaint("over", f"names among {', '.join(_BOUNDS)}", str(over), remedy))
    return names


def _limits(
    names: tuple[str, ...],
    bounds: tuple[float, float] | Mapping[str, tuple[float, float]] | None,
) -> dict[str, tuple[float, float]]:
    given = bounds if isinstance(bounds, Mapping) else {} if bounds is None else {names[0]: bounds}
    if (bounds is not None and not isinstance(bounds, Mapping) and len(names) > 1) or not set(
        given
    ) <= set(names):
        remedy = "pass bounds={name: (low, high), ...} for what is in over"
        raise ValueError(complaint("bounds", f"pairs for {', '.join(names)}", str(bounds), remedy))
    for pair in given.values():
        if not 0 < pair[0] < pair[1] < math.inf:
            remedy = "pass the lowest and the highest value"
            raise ValueError(complaint("bounds", "0 < low < high", str(pair), remedy))
    return {name: given.get(name, _BOUNDS[name]) for name in names}
