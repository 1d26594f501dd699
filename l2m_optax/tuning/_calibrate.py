"""How wide `classify` and `regress` should be, by validation data: temperature, and noise."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import complaint
from l2m_optax._support.chunks import equal_parts
from l2m_optax._support.search import Minimum, rounds_for, zoom
from l2m_optax._support.trees import rows
from l2m_optax._support.types import ApplyFn, Array, ArrayLike, PyTree
from l2m_optax.posterior._posterior import Posterior
from l2m_optax.predict._classify import at_temperatures
from l2m_optax.predict._variance import output_variance
from l2m_optax.tuning._data import Dataset, check_call
from l2m_optax.tuning._fit import Fit, FitInfo, warn_if
from l2m_optax.tuning._mode import judge
from l2m_optax.tuning._noise import check_regression

_REACH = 7.0
"""The share of the parameters in the variance is searched from e^-7 to e^7 times the noise's."""
_POINTS = 33


_TEMPERATURES = np.concatenate([[0.0], 10.0 ** np.linspace(-6, 2, 41)]).astype(np.float32)
"""The mode, and five in a decade: a likelihood is flatter than that."""


def calibrate_temperature(
    apply_fn: ApplyFn, posterior: Posterior, inputs: PyTree, labels: ArrayLike
) -> Fit:
    r"""The temperature at which `classify` predicts validation labels best.

    The negative log-likelihood of the labels is looked at for 41 temperatures from 1e-6 to 100, and
    at 0, the mode, all from one computation of the output covariances. `tune` searches finer, over
    more, and for other ways to predict.

    Args:
      apply_fn: ``apply_fn(params, inputs) -> logits`` of shape (N, ..., K); hashable.
      posterior: a `Posterior`; its own temperature plays no part.
      inputs: validation inputs, a tree of arrays with a leading axis of examples.
      labels: class numbers of shape (N, ...).

    Returns:
      A `Fit`; ``posterior.temperature`` and ``info.value`` are T. ``info.edge`` says that it is 0,
      or the highest.

    Raises:
      ValueError: if labels do not have the shape of the outputs, are out of range, or are none.
      TypeError: if the arguments are in another order, or `apply_fn` is not hashable.
      FloatingPointError: if the outputs of the trained parameters hold NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> x = jax.random.normal(jax.random.key(0), (100, 2))
      >>> labels = jax.random.randint(jax.random.key(1), (100,), 0, 2)
      >>> moment = l2m.SecondMoment(nu=jnp.ones((2, 2)))
      >>> posterior = l2m.laplace(9.0 * jnp.eye(2), moment, num_data=100, batch_size=1)
      >>> f = lambda w, x: x @ w
      >>> posterior, info = l2m.tuning.calibrate_temperature(f, posterior, x, labels)
      >>> print(info.value > 100 * 0.99)  # the network is sure of labels that are random
      True
    """
    check_call(apply_fn, posterior)
    data = Dataset(apply_fn, posterior, inputs, labels)
    _check_labels(data)
    unit, y = posterior._replace(temperature=jnp.ones(())), jnp.asarray(labels)
    size = equal_parts(len(_TEMPERATURES) * math.prod(data.output_shape), data.examples)
    parts = [slice(i, i + size) for i in range(0, data.examples, size)]
    losses = sum(_losses(apply_fn, unit, rows(inputs, part), y[part]) for part in parts)
    best = jnp.argmin(losses)
    temperature = jnp.asarray(_TEMPERATURES)[best]
    edge = (best == 0) | (best == len(_TEMPERATURES) - 1)
    steps = jnp.asarray(len(_TEMPERATURES), jnp.int32)
    return Fit(
        posterior._replace(temperature=temperature), FitInfo(temperature, steps, ~edge, edge)
    )


def _losses(apply_fn: ApplyFn, unit: Posterior, inputs: PyTree, labels: Array) -> Array:
    """The sum over a batch at each candidate."""
    probs = at_temperatures(apply_fn, unit, inputs, jnp.asarray(_TEMPERATURES)).probs
    return _sums(probs, labels)


@jax.jit
def _sums(probs: Array, labels: Array) -> Array:
    """The negative log-likelihood of a batch for each entry of the leading axis of `probs`."""
    return -jnp.sum(log_probs_of(probs, labels).reshape(len(probs), -1), axis=1)


@jax.jit
def log_probs_of(probs: Array, labels: Array) -> Array:
    """The logarithms of the labels' probabilities; `probs` may have more axes in front."""
    index = jnp.broadcast_to(labels, probs.shape[:-1])[..., None]
    of_label = jnp.take_along_axis(probs, index, axis=-1)[..., 0]
    # The least normal number stands for what underflowed: one input must not decide.
    return jnp.log(jnp.maximum(of_label, np.finfo(probs.dtype).tiny))


def _check_labels(data: Dataset) -> None:
    if not data.labels:
        remedy = "for real numbers use calibrate_noise"
        raise ValueError(complaint("labels", "class numbers", "real numbers", remedy))


def calibrate_noise(
    apply_fn: ApplyFn, posterior: Posterior, inputs: PyTree, targets: ArrayLike
) -> Fit:
    r"""The noise variance and the temperature that predict validation data of a regression best.

    The predictive variance is $s^2 + T v_i$ with $v_i$ the exact variance of the output at
    temperature 1. For a given $\rho = T / s^2$ the best noise is the mean of
    $r_i^2 / (1 + \rho v_i)$ over the squared residuals, so that one number is left to search, by
    grids of its logarithm; ρ = 0, the mode, is a candidate. The training data cannot say how large
    the noise is where the network interpolates them; these can.

    Args:
      apply_fn: ``apply_fn(params, inputs) -> means``; hashable.
      posterior: a `Posterior`, whose precision $F + \delta$ stays as it is.
      inputs: validation inputs, a tree of arrays with a leading axis of examples.
      targets: real numbers in the shape of the outputs.

    Returns:
      A `Fit` whose ``info.value`` is a dict of ``"noise_variance"`` and ``"temperature"``, with
      ``info.edge`` as in `tune`. Where all residuals are 0 the posterior is left as it was.

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
    noise, temperature, best, nothing = _search(apply_fn, posterior, inputs, jnp.asarray(targets))
    warn_if(
        nothing,
        "noise_variance",
        "residuals that differ from 0",
        "none, and leaves it as it was",
        "pass data that the network was not trained on",
    )
    after = with_noise(posterior, noise)._replace(temperature=temperature)
    edge = best.high[0] | (temperature == 0)
    values = {"noise_variance": noise, "temperature": temperature}
    steps = jnp.asarray(best.evaluations, jnp.int32)
    return Fit(after, FitInfo(values, steps, best.converged & ~nothing, edge | nothing))


def with_noise(posterior: Posterior, noise_variance: ArrayLike) -> Posterior:
    """The posterior with another noise variance and the same F, which goes as its square."""
    ratio = jnp.square(noise_variance / posterior.noise_variance)
    return posterior._replace(
        noise_variance=jnp.asarray(noise_variance), data_scale=posterior.data_scale * ratio
    )


@functools.partial(jax.jit, static_argnums=0)
def _search(
    apply_fn: ApplyFn, posterior: Posterior, inputs: PyTree, targets: Array
) -> tuple[Array, Array, Minimum, Array]:
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
    ratio = jnp.where(mode, 0.0, jnp.exp(best.point[0]))
    noise = noise_and_loss(ratio)[0]
    nothing = ~(noise > 0)
    temperature = jnp.where(mode, 0.0, ratio * noise / mean)
    noise = jnp.where(nothing, posterior.noise_variance, noise)
    return noise, jnp.where(nothing, posterior.temperature, temperature), best, nothing
