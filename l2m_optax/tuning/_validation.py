"""The temperature and the prior precision that predict held-out data best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from l2m_optax._support.checks import check_count, check_positive
from l2m_optax._support.chunks import check_chunk_size
from l2m_optax._support.search import Minimum
from l2m_optax._support.types import ApplyFn, ArrayLike, Likelihood, PyTree
from l2m_optax.posterior._posterior import Posterior
from l2m_optax.predict._outputs import check_call
from l2m_optax.tuning._candidates import Problem, minimize
from l2m_optax.tuning._data import Dataset, check_objective
from l2m_optax.tuning._fit import CHECK_TARGETS, Fit, FitInfo, warn_if
from l2m_optax.tuning._limits import Bounds, Logs, limits_of, names_of
from l2m_optax.tuning._mode import Verdict, judge, temperature_after
from l2m_optax.tuning._objectives import Objective


def tune(
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree | Iterable[Any],
    targets: ArrayLike | None = None,
    *,
    over: str | Sequence[str] = "temperature",
    objective: str = "nll",
    kind: str = "linearized",
    likelihood: Likelihood | None = None,
    num_samples: int = 32,
    bounds: tuple[float, float] | Mapping[str, tuple[float, float]] | None = None,
    chunk_size: int | None = None,
) -> Fit:
    r"""The temperature, the prior precision, or both, that predict validation data best.

    With $\Sigma(\delta, T) = T / (F + \delta)$ the objective is the negative log-likelihood of the
    predictive, $-\sum_i \log \overline{p(y_i | f_s(x_i))}$, where the mean is over draws. Every
    candidate, every batch and every call has the same draws, from ``jax.random.key(0)`` (common
    random numbers), so that luck makes no difference between candidates. A logarithmic grid is
    evaluated in one compiled call for each batch, and refined around its best point: by finer
    grids, or for ``kind="exact"``, which has no draws and is smooth, by Newton's method with exact
    derivatives. For ``objective="nll"`` the trained parameters alone, T = 0, are a candidate too.
    So the result predicts these data no worse than they do.

    Args:
      apply_fn: ``apply_fn(params, inputs) -> outputs``: logits of shape (N, K) for classification,
        or (N, ..., K) for several labels an input, such as one for each token; means for
        regression; hashable.
      posterior: a `Posterior`; its own values of what is tuned do not change the result.
      inputs: validation inputs; or, without `targets`, a loader of (inputs, targets) pairs that
        can be iterated over several times. One batch at a time is in memory.
      targets: integer labels in the shape of the outputs without their last axis, each of which is
        predicted on its own; or real targets in the shape of the outputs, whose Gaussian
        likelihood has the variance ``posterior.noise_variance``.
      over: ``"temperature"``, ``"prior_precision"`` (one value for all leaves), or both.
      objective: ``"nll"``, or ``"elbo"`` for users without validation data: `inputs` are then all
        the *training* data, and what is minimised is
        $-\sum_i \overline{\log p(y_i | f_s(x_i))} + \mathrm{KL}$, see `elbo`.
      kind: ``"linearized"`` and ``"monte_carlo"`` take draws, as the functions of these names do;
        ``"exact"`` uses exact covariances, with the points of `classify` for one label an
        input and at most 128 classes. For real targets with their default likelihood
        ``"linearized"`` takes no draws, and is the same as ``"exact"``.
      likelihood: log-likelihood of observations given outputs, ``likelihood(outputs, targets)``,
        outputs with an axis of draws in front, such as `likelihoods.heteroscedastic_gaussian`;
        hashable. By default categorical or Gaussian, by the dtype of the targets.
      num_samples: number of draws.
      bounds: lowest and highest value, or a dict of such pairs by name. By default 1e-5 to 1e3 for
        the temperature and 1e-4 to 1e8 for the prior precision.
      chunk_size: draws (without draws: inputs) worked on at a time.

    Returns:
      A `Fit` whose ``info.value`` is what was found: a scalar, or a dict by name where `over` is a
      sequence. ``info.edge`` has the same form; it is true where there is no best value:

      - If the trained parameters alone are as good as the best candidate, T is 0. At T = 0 every
        function uses exactly these; the prior precision has no influence, and stays as it was.
      - A T on a bound is kept. A prior precision on a bound is kept where T was tuned with it, and
        left as it was where it was tuned alone.
      - If no candidate is finite, the posterior is left as it was.

      Outside of `jit` the last two give a `UserWarning`. ``info.iterations`` counts candidates.

    Raises:
      ValueError: if shapes do not match, labels are out of range, there are no data, a loader ends
        early or can be used only once, or an argument is none of those named.
      TypeError: if the arguments are in another order, `apply_fn` is not hashable, or a loader does
        not yield pairs.
      FloatingPointError: if the outputs of the trained parameters hold NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> x = jax.random.normal(jax.random.key(0), (200, 1))
      >>> y = 2.0 * jax.random.normal(jax.random.key(1), (200, 1))
      >>> moment = l2m.SecondMoment(nu=jnp.zeros((1, 1)).at[0].set(1e-9))
      >>> posterior = l2m.laplace(jnp.zeros((1, 1)), moment, num_data=100, batch_size=1)
      >>> posterior, info = l2m.tune(lambda w, x: x @ w, posterior, x, y)
      >>> print(bool(info.value > 1.0), info.edge)
      True False
    """
    check_call(apply_fn, posterior)
    check_count("num_samples", num_samples)
    check_chunk_size(chunk_size)
    names = names_of(over)
    limits = limits_of(names, bounds)
    if "temperature" not in names:
        remedy = "at temperature 0 no prior has an influence: tune both"
        check_positive("posterior.temperature", posterior.temperature, remedy)
    data = Dataset(apply_fn, posterior, inputs, targets, likelihood)
    goal = Objective(
        apply_fn, objective, kind, data.labels, likelihood, num_samples, chunk_size
    ).resolved()
    check_objective(data, kind, likelihood)
    takes_mode = objective == "nll" and "temperature" in names
    problem = Problem(goal, "prior_precision" in names, takes_mode)
    best, mode = minimize(problem, posterior, data, limits)
    verdict = judge(best, mode)
    _warn(best, verdict, limits)
    fit = _as_fit(posterior, names, best, verdict)
    if not isinstance(over, str):
        return fit
    return Fit(fit.posterior, FitInfo(*(x[over] if isinstance(x, dict) else x for x in fit.info)))


def _as_fit(posterior: Posterior, names: tuple[str, ...], best: Minimum, verdict: Verdict) -> Fit:
    """The posterior with those of the values found that are kept."""
    logs, on_bound = Logs(*best.point), Logs(*(best.low | best.high))
    stays = verdict.mode | verdict.lost
    if "temperature" not in names:
        stays = stays | on_bound.prior_precision
    prior = jnp.exp(logs.prior_precision)
    after = posterior._replace(
        temperature=temperature_after(verdict, logs.temperature, posterior.temperature),
        prior_precision=jax.tree.map(
            lambda before: jnp.where(stays, before, prior), posterior.prior_precision
        ),
    )
    values = {name: getattr(after, name) for name in names}
    edges = {name: getattr(on_bound, name) | verdict.mode | verdict.lost for name in names}
    converged = {name: best.converged & ~edge for name, edge in edges.items()}
    steps = jnp.asarray(best.evaluations, jnp.int32)
    return Fit(posterior._replace(**values), FitInfo(values, steps, converged, edges))


def _warn(best: Minimum, verdict: Verdict, limits: Bounds) -> None:
    """Warn of values on a bound, unless the mode is better, and of losses that are not finite."""
    where = " and ".join(limits)
    remedy = f"{CHECK_TARGETS}, and at their likelihood"
    wider = f"pass wider bounds=, or {CHECK_TARGETS}"
    left, kept = "and leaves it as it was", "and keeps it"
    warn_if(verdict.lost, where, "a finite loss", f"none, {left}", remedy, 4)
    low, high = Logs(*best.low), Logs(*best.high)
    for name, bounds in limits.items():
        then = left if name == "prior_precision" and len(limits) == 1 else kept
        expected = f"a best value between {bounds[0]:g} and {bounds[1]:g}"
        for end, at in (("lower", getattr(low, name)), ("upper", getattr(high, name))):
            warn_if(at & ~verdict.mode, name, expected, f"the {end} bound, {then}", wider, 4)
