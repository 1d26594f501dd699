"""The temperature and the noise at which `classify` and `regress` predict validation data best."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import complaint
from l2m_optax._support.chunks import equal_parts
from l2m_optax._support.search import rounds_for, zoom
from l2m_optax._support.trees import rows
from l2m_optax._support.types import ApplyFn, Array, ArrayLike, PyTree
from l2m_optax.posterior._posterior import Posterior
from l2m_optax.predict._classify import Settings, at_settings
from l2m_optax.predict._outputs import check_call
from l2m_optax.predict._variance import output_variance
from l2m_optax.tuning._data import Dataset
from l2m_optax.tuning._fit import CHECK_TARGETS, Fit, FitInfo, warn_if
from l2m_optax.tuning._mode import judge
from l2m_optax.tuning._noise import check_regression

_REACH = 7.0
"""The variance of the outputs is searched from e^-7 to e^7 times that of the noise, on average."""
_POINTS = 33
_TEMPERATURES = np.concatenate([[0.0], 10.0 ** np.linspace(-6, 2, 41)]).astype(np.float32)
"""The mode, and five in a decade: a likelihood is flatter than that."""


def calibrate_temperature(
    apply_fn: ApplyFn, posterior: Posterior, inputs: PyTree, labels: ArrayLike
) -> Fit:
    r"""The temperature at which `classify` predicts validation labels best.

    The negative log-likelihood of the labels is computed for 41 temperatures from 1e-6 to 100, and
    at 0, the mode. The output covariances are computed once for all. `tune` searches on a finer
    grid, over more values, and for other ways to predict.

    Args:
      apply_fn: ``apply_fn(params, inputs) -> logits`` of shape (N, ..., K); hashable.
      posterior: a `Posterior`; its own temperature is not used.
      inputs: validation inputs, a tree of arrays with a leading axis of examples.
      labels: class numbers of shape (N, ...).

    Returns:
      A `Fit`; ``posterior.temperature`` and ``info.value`` are T. ``info.edge`` says that it is 0,
      or the highest; the highest also gives a `UserWarning`.

    Raises:
      ValueError: if labels do not have the shape (N, ...), are out of range, or there are none.
      TypeError: if the arguments are in another order, or `apply_fn` is not hashable.
      FloatingPointError: if the outputs of the trained parameters hold NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> x = jax.random.normal(jax.random.key(0), (100, 2))
      >>> labels = jax.random.categorical(jax.random.key(1), x)
      >>> moment = l2m.SecondMoment(nu=0.01 * jnp.ones((2, 2)))
      >>> posterior = l2m.laplace(2.0 * jnp.eye(2), moment, num_data=100, batch_size=1)
      >>> f = lambda w, x: x @ w  # twice the logits of which the labels were drawn
      >>> posterior, info = l2m.tuning.calibrate_temperature(f, posterior, x, labels)
      >>> print(info.value > 1, info.edge)
      True False
    """
    check_call(apply_fn, posterior)
    data = Dataset(apply_fn, posterior, inputs, labels)
    check_labels(data)
    temperatures = jnp.asarray(_TEMPERATURES)
    settings = Settings(temperatures, jnp.ones_like(temperatures))
    losses = of_settings(apply_fn, posterior, inputs, jnp.asarray(labels), settings, data).loss
    best = jnp.argmin(losses)
    temperature = temperatures[best]
    edge = is_edge(temperature, temperatures)
    steps = jnp.asarray(len(_TEMPERATURES), jnp.int32)
    return Fit(
        posterior._replace(temperature=temperature), FitInfo(temperature, steps, ~edge, edge)
    )


def is_edge(temperature: Array, tried: Array) -> Array:
    """Whether a temperature is the mode, or the highest that was tried, which is warned of."""
    highest = temperature == tried[-1]
    expected = f"a best value below {float(tried[-1]):g}"
    remedy = f"pass bounds= to tune, or {CHECK_TARGETS}"
    warn_if(highest, "temperature", expected, "the upper bound, and keeps it", remedy, 4)
    return (temperature == 0) | highest


class Sums(NamedTuple):
    """Sums over observations, for each of S settings, shape (S,).

    Attributes:
      loss: the negative log-likelihood of the labels.
      by_chance: that of labels by chance: its mean over all classes.
    """

    loss: Array
    by_chance: Array


def of_settings(
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    labels: Array,
    settings: Settings,
    data: Dataset,
) -> Sums:
    """The sums over all data; the posterior's own temperature is not used."""
    unit = posterior._replace(temperature=jnp.ones(()))
    size = equal_parts(len(settings.temperature) * math.prod(data.output_shape), data.examples)
    parts = [slice(i, i + size) for i in range(0, data.examples, size)]
    sums = [
        sums_of(at_settings(apply_fn, unit, rows(inputs, part), settings).probs, labels[part])
        for part in parts
    ]
    return jax.tree.map(lambda *x: sum(x), *sums)


@jax.jit
def sums_of(probs: Array, labels: Array) -> Sums:
    """Those of a batch, for each entry of the leading axis of `probs`."""
    by_chance = -jnp.mean(_log(probs), axis=-1)
    loss = -log_probs_of(probs, labels)
    return Sums(*(jnp.sum(x.reshape(len(probs), -1), axis=1) for x in (loss, by_chance)))


@jax.jit
def log_probs_of(probs: Array, labels: Array) -> Array:
    """The logarithms of the labels' probabilities; `probs` may have more leading axes."""
    index = jnp.broadcast_to(labels, probs.shape[:-1])[..., None]
    return jnp.take_along_axis(_log(probs), index, axis=-1)[..., 0]


def _log(probs: Array) -> Array:
    # What underflowed becomes the least normal number: one input must not decide alone.
    return jnp.log(jnp.maximum(probs, np.finfo(probs.dtype).tiny))


def check_labels(data: Dataset) -> None:
    """Refuse real numbers where class numbers are expected."""
    if not data.labels:
        remedy = "for real numbers use calibrate_noise"
        raise ValueError(complaint("labels", "class numbers", "real numbers", remedy))


def calibrate_noise(
    apply_fn: ApplyFn, posterior: Posterior, inputs: PyTree, targets: ArrayLike
) -> Fit:
    r"""The noise variance and the temperature that predict validation data of a regression best.

    The predictive variance is $s^2 + T v_i$ with $v_i$ the exact variance of the output at
    temperature 1. For a given $\rho = T / s^2$ the best noise is the mean of
    $r_i^2 / (1 + \rho v_i)$ over the squared residuals. So only ρ is searched, by grids of its
    logarithm; ρ = 0, the mode, is a candidate. If the network interpolates the training data, they
    cannot show how large the noise is; validation data can.

    Args:
      apply_fn: ``apply_fn(params, inputs) -> means``; hashable.
      posterior: a `Posterior`, whose precision $F + \delta$ stays as it is.
      inputs: validation inputs, a tree of arrays with a leading axis of examples.
      targets: real numbers in the shape of the outputs.

    Returns:
      A `Fit` whose ``info.value`` is a dict of ``"noise_variance"`` and ``"temperature"``.
      ``info.edge`` says that T is 0, that the noise is less than e^-7 of the variance of the
      outputs, or that all residuals are 0. In the last case the posterior is left as it was. The
      last two give a `UserWarning`.

    Raises:
      ValueError: if targets do not have the shape of the outputs, or there are none.
      TypeError: if the arguments are in another order, or `apply_fn` is not hashable.
      FloatingPointError: if the outputs of the trained parameters hold NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> x = jax.random.normal(jax.random.key(0), (500, 1))
      >>> y = 0.5 * jax.random.normal(jax.random.key(1), (500, 1))
      >>> moment = l2m.SecondMoment(nu=jnp.ones((1, 1)))
      >>> posterior = l2m.laplace(jnp.zeros((1, 1)), moment, num_data=100, batch_size=1)
      >>> posterior, info = l2m.tuning.calibrate_noise(lambda w, x: x @ w, posterior, x, y)
      >>> print(f"{info.value['noise_variance']:.2f}")
      0.26
    """
    check_call(apply_fn, posterior)
    check_regression(Dataset(apply_fn, posterior, inputs, targets))
    found = _search(apply_fn, posterior, inputs, jnp.asarray(targets))
    _warn(found)
    after = with_noise(posterior, found.noise)._replace(temperature=found.temperature)
    values = {"noise_variance": found.noise, "temperature": found.temperature}
    edge = found.mode | found.highest | found.nothing
    return Fit(after, FitInfo(values, found.steps, ~edge, edge))


class _Found(NamedTuple):
    """What the search of `calibrate_noise` came to.

    Attributes:
      noise: the noise variance.
      temperature: T.
      mode: whether the network alone, T = 0, is as good as the best.
      highest: whether the noise is as small beside the variance of the outputs as it can be.
      nothing: whether all residuals are 0.
      steps: number of candidates.
    """

    noise: Array
    temperature: Array
    mode: Array
    highest: Array
    nothing: Array
    steps: Array


def _warn(found: _Found) -> None:
    left, kept = "none, and leaves it as it was", "the upper bound, and keeps it"
    remedy = "pass data that the network was not trained on"
    warn_if(found.nothing, "noise_variance", "residuals that differ from 0", left, remedy, 4)
    expected = f"a variance of outputs below {math.exp(_REACH):.0f} times the noise's"
    warn_if(found.highest, "temperature", expected, kept, CHECK_TARGETS, 4)


def with_noise(posterior: Posterior, noise_variance: ArrayLike) -> Posterior:
    """The posterior with another noise variance and the same F."""
    # F goes as 1/s⁴: the scale takes the change back.
    ratio = jnp.square(noise_variance / posterior.noise_variance)
    return posterior._replace(
        noise_variance=jnp.asarray(noise_variance), data_scale=posterior.data_scale * ratio
    )


@functools.partial(jax.jit, static_argnums=0)
def _search(apply_fn: ApplyFn, posterior: Posterior, inputs: PyTree, targets: Array) -> _Found:
    unit = posterior._replace(temperature=jnp.ones(()))
    variance = output_variance(apply_fn, unit, inputs)
    squares = jnp.square(targets - apply_fn(posterior.mean, inputs)).astype(variance.dtype)
    mean = jnp.mean(variance)
    relative = variance / jnp.where(mean > 0, mean, 1.0)

    def noise_and_loss(ratio: Array) -> tuple[Array, Array]:
        spread = 1.0 + ratio * relative
        noise = jnp.mean(squares / spread)
        return noise, 0.5 * (jnp.log(noise) + jnp.mean(jnp.log(spread)))

    axis = jnp.asarray(np.linspace(-_REACH, _REACH, _POINTS))
    best = zoom(
        lambda axes: jax.vmap(lambda log: noise_and_loss(jnp.exp(log))[1])(axes[0]),
        [axis],
        rounds_for(-_REACH, _REACH, _POINTS),
    )
    mode = judge(best, noise_and_loss(jnp.zeros(()))[1]).mode
    (log_ratio,), (on_bound,) = best.point, best.high
    ratio = jnp.where(mode, 0.0, jnp.exp(log_ratio))
    noise = noise_and_loss(ratio)[0]
    temperature = jnp.where(mode, 0.0, ratio * noise / mean)
    nothing = ~(noise > 0)
    return _Found(
        jnp.where(nothing, posterior.noise_variance, noise),
        jnp.where(nothing, posterior.temperature, temperature),
        mode & ~nothing,
        on_bound & ~mode & ~nothing,
        nothing,
        jnp.asarray(best.evaluations, jnp.int32),
    )
