"""The scale of the logits and the temperature at which validation labels are predicted best."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.search import rounds_for, zoom
from l2m_optax._support.types import ApplyFn, Array, ArrayLike, PyTree
from l2m_optax.posterior._posterior import Posterior
from l2m_optax.posterior._scaled import scale_leaves
from l2m_optax.predict._classify import Settings
from l2m_optax.predict._last_layer import last_layer
from l2m_optax.predict._outputs import check_call
from l2m_optax.tuning._calibrate import Sums, check_labels, is_edge, of_settings, sums_of
from l2m_optax.tuning._data import Dataset
from l2m_optax.tuning._fit import CHECK_TARGETS, Fit, FitInfo, warn_if

_BY_CHANCE = 0.2
"""How many observations with a label by chance count as one part of the validation data.

A few labels that are all predicted rightly ask for an infinite scale. From 0.1 to 0.5 all do well
on the tasks of `make bench-tasks`.
"""
_REACH = math.log(10.0)
_POINTS = 17
_TEMPERATURES = np.concatenate([[0.0], 10.0 ** np.linspace(-6, 2, 25)]).astype(np.float32)
"""The mode, and three in a decade."""
_SHARES = np.array([0.0, 0.5, 1.0], np.float32)
"""How much of the network's own scale is used, in its logarithm: the spread does the rest."""


def calibrate_logits(
    apply_fn: ApplyFn, posterior: Posterior, inputs: PyTree, labels: ArrayLike
) -> Fit:
    r"""Temperature scaling and the posterior's temperature, at once, on validation labels.

    A network that is too sure everywhere needs smaller logits; one that is too sure on some inputs
    needs the spread of a posterior. Here are both: logits $s\,[f + J(\theta - \theta^*)]$, where s
    is 1, the best scale $s_0$ of the network alone, or $\sqrt{s_0}$, and T is one of 25 values from
    1e-6 to 100, or 0. The pair of them is taken that minimises

    $$-\sum_{i=1}^n \log p(y_i | x_i)
      - \frac{w}{nK} \sum_{i=1}^n \sum_{k=1}^K \log p(k | x_i), \qquad w = 0.2 .$$

    The second term is the expected loss of w observations more, whose label is drawn by chance. It
    keeps s finite where all labels are predicted rightly, and hardly counts if there are many.

    The outputs are scaled where they are linear in the parameters: the last layer's leaves are
    multiplied by s, with their prior and their variance. So ``posterior.mean`` holds a network with
    scaled logits, for every function and for use without a posterior. Its ``training_loss`` is
    `None`, for the loss of scaled logits is another one. If there is no such layer, s is 1. If s is
    1, only the temperature changes.

    Args:
      apply_fn: ``apply_fn(params, inputs) -> logits`` of shape (N, ..., K); hashable.
      posterior: a `Posterior`; its own temperature is not used.
      inputs: validation inputs, a tree of arrays with a leading axis of examples.
      labels: class numbers of shape (N, ...).

    Returns:
      A `Fit` whose ``info.value`` is a dict of ``"logit_scale"`` and ``"temperature"``.
      ``info.edge`` says that T is 0 or the highest, or that s is 0.1 or 10, the ends of its range.
      The highest T and the ends of s also give a `UserWarning`.

    Raises:
      ValueError: if labels do not have the shape (N, ...), are out of range, or there are none.
      TypeError: if the arguments are in another order, parameters are traced, or `apply_fn` is not
        hashable.
      FloatingPointError: if the outputs of the trained parameters hold NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> x = jax.random.normal(jax.random.key(0), (500, 2))
      >>> labels = jax.random.categorical(jax.random.key(1), x)
      >>> moment = l2m.SecondMoment(nu=0.01 * jnp.ones((2, 2)))
      >>> posterior = l2m.laplace(2.0 * jnp.eye(2), moment, num_data=100, batch_size=1)
      >>> f = lambda w, x: x @ w  # twice the logits of which the labels were drawn
      >>> posterior, info = l2m.tuning.calibrate_logits(f, posterior, x, labels)
      >>> print(f"{info.value['logit_scale']:.1f} {info.value['temperature']:.1f}")
      0.7 2.2

    Reference:
      Guo, Pleiss, Sun & Weinberger, On calibration of modern neural networks (2017); Platt,
      Probabilistic outputs for support vector machines (1999), on labels by chance.
    """
    check_call(apply_fn, posterior)
    data = Dataset(apply_fn, posterior, inputs, labels)
    check_labels(data)
    labels = jnp.asarray(labels)
    leaves = _scalable(apply_fn, posterior.mean, inputs)
    found = _of_network(apply_fn, posterior.mean, inputs, labels)
    log_scales = found * _SHARES if leaves is not None else jnp.zeros(1)
    temperatures = jnp.asarray(_TEMPERATURES)
    settings = _every_pair(jnp.exp(log_scales), temperatures)
    sums = of_settings(apply_fn, posterior, inputs, labels, settings, data)
    best = jnp.argmin(smoothed(sums, data.size))
    temperature, scale = settings.temperature[best], settings.logit_scale[best]
    if leaves is not None and scale != 1.0:
        posterior = scale_leaves(posterior, leaves, scale)
    edge = is_edge(temperature, temperatures) | _is_at_an_end(scale)
    values = {"logit_scale": scale, "temperature": temperature}
    steps = jnp.asarray(len(settings.temperature), jnp.int32)
    return Fit(posterior._replace(temperature=temperature), FitInfo(values, steps, ~edge, edge))


def _is_at_an_end(scale: Array) -> Array:
    """Whether a scale is the least or the largest that is looked at, which is warned of."""
    at_an_end = jnp.abs(jnp.log(scale)) > 0.999 * _REACH
    least, most = math.exp(-_REACH), math.exp(_REACH)
    expected = f"a best value between {least:.2g} and {most:.2g}"
    got = "an end of this range, and keeps it"
    warn_if(at_an_end, "logit_scale", expected, got, CHECK_TARGETS, 4)
    return at_an_end


def smoothed(sums: Sums, size: int) -> Array:
    """The loss of an observation, with a few more whose labels are drawn by chance."""
    return (sums.loss + _BY_CHANCE * sums.by_chance / size) / size


def _every_pair(scales: Array, temperatures: Array) -> Settings:
    """At equal losses the first wins: the network as it is, T = 0."""
    pairs = jnp.meshgrid(scales, temperatures, indexing="ij")
    return Settings(pairs[1].ravel(), pairs[0].ravel())


def _scalable(apply_fn: ApplyFn, params: PyTree, inputs: PyTree) -> PyTree | None:
    """The leaves by which all outputs are multiplied if they are; `None` if there are none."""
    try:
        leaves = last_layer(apply_fn, params, inputs)
    except ValueError:  # no leaf in which the outputs are linear
        return None
    few = jax.tree.map(lambda x: jnp.asarray(x)[:8], inputs)
    doubled = jax.tree.map(lambda leaf, c: 2 * leaf if c else leaf, params, leaves)
    outputs, twice = (np.asarray(apply_fn(p, few), np.float64) for p in (params, doubled))
    left = np.max(np.abs(twice - 2 * outputs))
    return leaves if left <= 0.05 * np.max(np.abs(outputs)) else None


@functools.partial(jax.jit, static_argnums=0)
def _of_network(apply_fn: ApplyFn, params: PyTree, inputs: PyTree, labels: Array) -> Array:
    """The logarithm of the scale at which the network alone predicts the labels best."""
    logits = apply_fn(params, inputs)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def losses(axes: Sequence[Array]) -> Array:
        probs = jax.lax.map(lambda log: jax.nn.softmax(jnp.exp(log) * logits), axes[0])
        return smoothed(sums_of(probs, labels), labels.size)

    axis = jnp.asarray(np.linspace(-_REACH, _REACH, _POINTS))
    return zoom(losses, [axis], rounds_for(-_REACH, _REACH, _POINTS)).point[0]
