"""The noise variance of a regression, found together with the prior by the evidence."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import complaint, is_concrete
from l2m_optax._support.trees import statistics_dtype
from l2m_optax._support.types import ApplyFn, Array, ArrayLike, PyTree
from l2m_optax.moments._evidence import determined
from l2m_optax.posterior._posterior import Posterior, data_precision
from l2m_optax.predict._outputs import check_call
from l2m_optax.tuning._bracket import LOG_TOLERANCE, Search, maximize_evidence
from l2m_optax.tuning._data import Dataset
from l2m_optax.tuning._fit import Fit, FitInfo, warn_if
from l2m_optax.tuning._groups import grouped, with_prior


def fit_noise_variance(
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree | Iterable[Any],
    targets: ArrayLike | None = None,
    *,
    groups: PyTree | Callable[[PyTree], PyTree] | None = None,
) -> Fit:
    r"""The noise variance of a Gaussian likelihood, with the prior precision that goes with it.

    $s^2 = \mathrm{RSS} / (N - \gamma)$, where $\mathrm{RSS} = \sum_i (y_i - f(x_i, \theta^*))^2$
    is summed over the N observations, and γ is the effective number of parameters, itself a
    function of s² through $F \propto 1/s^4$ and of the prior precision, which is fitted for every
    s². The equation has one solution, in $s^2 \ge \mathrm{RSS}/N$, and is solved by bisection.

    A diagonal counts too many effective parameters if many weights are correlated. If γ is near N,
    the noise comes out too large: compare the two (`tuning.effective_parameters`), and `restrict`
    the posterior, or use a smaller network.

    Args:
      apply_fn: ``apply_fn(params, inputs) -> means``; hashable.
      posterior: a posterior built for unit noise: ``loss_scale=2`` for ``mean((y-f)²)``, 1 for
        ``mean(½(y-f)²)``. A second fit does not depend on the first.
      inputs: those of *all* the training data, as the size of F goes with their number; or,
        without `targets`, a loader of (inputs, targets) pairs that can be iterated over twice.
        If you have the means already, pass them as inputs of ``lambda params, means: means``.
      targets: real numbers in the shape of the outputs; each entry is one of the N observations.
      groups: as in `fit_prior_precision`.

    Returns:
      A `Fit`; ``posterior.noise_variance`` and ``info.value`` are s². Where all residuals are zero
      there is no solution: ``info.edge`` is true, s² is left as it was, and outside of `jit` a
      `UserWarning` says so.

    Raises:
      ValueError: if targets do not have the shape of the outputs, there are none, or they are not
        those of all training data.
      TypeError: if the arguments are in another order, or `apply_fn` is not hashable.
      FloatingPointError: if the outputs of the trained parameters hold NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> w, f = jnp.ones((2, 1)), lambda w, x: x @ w
      >>> x = jax.random.normal(jax.random.key(0), (100, 2))
      >>> y = f(w, x) + 0.5 * jax.random.normal(jax.random.key(1), (100, 1))
      >>> moment = l2m.SecondMoment(nu=0.01 * jnp.ones((2, 1)))
      >>> posterior = l2m.laplace(w, moment, num_data=100, batch_size=1, loss_scale=2.0)
      >>> posterior, info = l2m.fit_noise_variance(f, posterior, x, y)
      >>> print(f"{posterior.noise_variance:.2f}", info.converged)
      0.30 True

    Reference:
      MacKay, Bayesian interpolation (1992), section 4.
    """
    check_call(apply_fn, posterior)
    data = Dataset(apply_fn, posterior, inputs, targets)
    check_regression(data)
    _check_all(posterior, data)
    squares = data.sum(lambda x, y: _squares(apply_fn, posterior.mean, x, y), "residuals")
    grouping = grouped(posterior, groups)
    noise, search = _solve(posterior, squares, data.size, grouping.of_leaf)
    fitted = with_prior(posterior, grouping, search.value)._replace(noise_variance=noise.value)
    warn_if(
        noise.edge,
        "noise_variance",
        "residuals that differ from 0",
        "none, and leaves it as it was",
        "where the network interpolates, only validation data say how large the noise is",
    )
    return Fit(fitted, noise._replace(converged=noise.converged & jnp.all(search.converged)))


def check_regression(data: Dataset) -> None:
    """Refuse classes, which have no noise variance.

    Raises:
      ValueError: if the targets are class numbers.
    """
    if data.labels:
        remedy = "classes have no noise variance; tune finds their temperature"
        raise ValueError(complaint("targets", "real numbers", "class numbers", remedy))


def _check_all(posterior: Posterior, data: Dataset) -> None:
    """Refuse a part of the training data; `num_data` may count rows, or steps of sequences."""
    number: Any = posterior.num_data
    if number is None or not is_concrete(number):
        return
    counts = data.examples, data.examples * math.prod(data.output_shape[:-1])
    counted = np.asarray(number, np.float64)[..., None]  # one for each member of an ensemble
    if not np.all(np.any(np.isclose(counted, counts, rtol=1e-6), axis=-1)):
        remedy = "pass all training data, as a loader if they are many"
        expected = f"the {counted.flat[0]:.0f} examples of laplace's num_data"
        raise ValueError(complaint("inputs", expected, str(data.examples), remedy))


@functools.partial(jax.jit, static_argnums=0)
def _squares(apply_fn: ApplyFn, params: PyTree, inputs: PyTree, targets: Array) -> Array:
    outputs = apply_fn(params, inputs)
    dtype = statistics_dtype(outputs, targets)
    return jnp.sum(jnp.square(targets.astype(dtype) - outputs.astype(dtype)))


@functools.partial(jax.jit, static_argnums=3)
def _solve(
    posterior: Posterior, squares: Array, number: ArrayLike, of_leaf: tuple[int, ...]
) -> tuple[FitInfo, Search]:
    """Bisection in log s² of s²·(N - γ(s²)) - RSS, which has one change of sign."""
    floor = jnp.log(squares / number)
    # F falls with the square of s²: at e^30 times RSS/N the data say nothing any more.
    ceiling = floor + 30.0

    def refit(log_noise: Array) -> tuple[Search, Array]:
        candidate = posterior._replace(noise_variance=jnp.exp(log_noise))
        search = maximize_evidence(candidate, of_leaf)
        gamma = sum(
            jnp.sum(determined(f, search.value[group]))
            for f, group in zip(jax.tree.leaves(data_precision(candidate)), of_leaf, strict=True)
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
        lambda state: (state[1] - state[0] > LOG_TOLERANCE) & ~edge, halve, start
    )
    before = jnp.asarray(posterior.noise_variance, log_noise.dtype)
    # Traced targets that hold NaN cannot be refused: the result must be NaN too.
    noise = jnp.where(
        edge, before + jnp.where(jnp.isnan(squares), squares, 0.0), jnp.exp(log_noise)
    )
    return FitInfo(noise, steps, ~edge, edge), refit(jnp.log(noise))[0]
