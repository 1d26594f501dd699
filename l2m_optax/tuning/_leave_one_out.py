"""A temperature for classifiers without validation data: from approximate leave-one-out logits.

What the logits of a training input would be without its label follows from the curvature of all
that was trained; the temperature that predicts the labels best from there is the answer.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import check_batched, check_count, complaint
from l2m_optax._support.chunks import check_chunk_size, side_by_side
from l2m_optax._support.search import Minimum, rounds_for, zoom
from l2m_optax._support.trees import align, fill, statistics_dtype
from l2m_optax._support.types import ApplyFn, Array, ArrayLike, PyTree
from l2m_optax.likelihoods import categorical
from l2m_optax.posterior._posterior import Posterior, free_mean, times_covariance
from l2m_optax.predict._jacobian import jacobian_of, no_reach
from l2m_optax.predict._linearized import output_deviations
from l2m_optax.predict._outputs import check_independent, coupling
from l2m_optax.tuning._data import check_call
from l2m_optax.tuning._fit import Fit, FitInfo, warn_if
from l2m_optax.tuning._mode import Verdict, judge, temperature_after
from l2m_optax.tuning._objectives import mean_over_draws
from l2m_optax.tuning._targets import are_labels, check_classes, shape_of_outputs

_FOLDS = 5
_NUM_SAMPLES = 32
_BOUNDS = (1e-5, 1e3)
_POINTS = 17


def fit_temperature(
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    labels: ArrayLike,
    *,
    num_data: int,
    trained: Posterior | None = None,
    chunk_size: int | None = None,
) -> Fit:
    r"""The temperature that predicts training labels best, each approximately left out.

    Without example i the linearised network would have, at $x_i$, the logits

    $$f_{-i} = f_i + S_i (p_i - y_i), \qquad S_i = J_i (H + F + \delta)^{-1} J_i^\top,$$

    with $H = \tfrac{N}{n'} \sum_j J_j^\top \Lambda_j J_j$ over n' other inputs and
    $\Lambda = \mathrm{diag}(p) - p p^\top$: a full matrix, which knows what ties weights together,
    in the directions that these inputs show, and the diagonal F in all others. The temperature is
    then found as in `tune`, with these logits and the draws of `posterior` around them, from
    ``jax.random.key(0)``. Four fifths of the inputs serve the other fifth, in turns. T = 0, the
    trained parameters alone, is a candidate too, and is what a network that leaves no residuals
    $p_i - y_i$ gets.

    Where H and F both count what the data say, S is up to half too small; where neither does, too
    large. It is a heuristic, studied in docs/temperature.md: with 300 inputs for up to 5,000 data,
    and 600 for 20,000, it came close to validation on Fashion-MNIST and to the mode on digits, for
    all layers and for the last. More data need more inputs: with too few T is too high over all
    layers. T follows the prior precision too, so fit that by the evidence first, one for all
    leaves.

    Args:
      apply_fn: ``apply_fn(params, inputs) -> logits`` of shape (n, K); hashable.
      posterior: a `Posterior`, its prior fitted; its own temperature plays no part.
      inputs: n training inputs, drawn at random; a few hundred, N/30 at least. Memory grows with
        (n·K)², time with (n·K)³: at n·K = 3,000 the matrix takes 36 MB.
      labels: their classes, integers of shape (n,).
      num_data: N, the number of training examples, as in `laplace`.
      trained: the posterior over all leaves that were trained, its prior fitted, where `posterior`
        is a restricted one; without it the fixed leaves count as never trained, and T comes out too
        small. By default `posterior`.
      chunk_size: columns of the matrix worked on at a time, for each of which a tangent of the
        parameters exists; by default as many as keep these under 32 MiB. No Jacobian is formed.

    Returns:
      A `Fit` whose ``info.value`` is T. If the mode predicts the left-out labels as well as any T,
      that is 0, which every function takes as exactly the trained parameters, and ``info.edge`` is
      true. ``info.edge`` is true as well, and outside of `jit` a `UserWarning` is given, if the
      best T is the upper bound 1e3, which is kept, or if no candidate is finite: then the
      temperature is left as it was.

    Raises:
      ValueError: if shapes do not match, labels are out of range, there are fewer than 10 inputs or
        more than `num_data`, `trained` has other parameters, or one example's outputs depend on
        others.
      TypeError: if the arguments are in another order, `labels` are no integers, `apply_fn` is not
        hashable, or a number is no integer.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> x = jax.random.normal(jax.random.key(0), (100, 3))
      >>> y = jax.random.categorical(jax.random.key(1), x[:, :2])
      >>> too_sure = 2.0 * jnp.eye(3, 2)
      >>> moment = l2m.SecondMoment(nu=0.02 * jnp.ones((3, 2)))
      >>> posterior = l2m.laplace(too_sure, moment, num_data=100, batch_size=10)
      >>> f = lambda w, x: x @ w
      >>> posterior, info = l2m.fit_temperature(f, posterior, x, y, num_data=100)
      >>> print(bool(info.value > 1), info.converged)
      True True

    Reference:
      Rad & Maleki, A scalable estimate of the out-of-sample prediction error via approximate
      leave-one-out cross-validation (2020); Nickl et al., The memory-perturbation equation (2023).
    """
    check_call(apply_fn, posterior)
    check_batched(inputs)
    number = len(jax.tree.leaves(inputs)[0])
    check_count("examples in inputs", number, 2 * _FOLDS)
    check_count("num_data", num_data, number)
    check_chunk_size(chunk_size)
    labels = _check_labels(shape_of_outputs(apply_fn, posterior.mean, inputs), labels)
    trained = posterior if trained is None else trained
    align(trained.mean, posterior.mean, "trained.mean")
    unit = posterior._replace(temperature=jnp.ones(()))
    best, verdict, coupled = _fit(unit, trained, apply_fn, inputs, labels, num_data, chunk_size)
    check_independent(coupled)
    _warn(best, verdict)
    (log_temperature,) = best.point
    value = temperature_after(verdict, log_temperature, posterior.temperature)
    edge = best.low[0] | best.high[0] | verdict.mode | verdict.lost
    steps = jnp.asarray(best.evaluations, jnp.int32)
    return Fit(posterior._replace(temperature=value), FitInfo(value, steps, ~edge, edge))


def _check_labels(outputs: Any, labels: ArrayLike) -> Array:
    """One class number for each input."""
    if not are_labels(labels):
        remedy = "pass class numbers; for regression use fit_noise_variance at temperature 1"
        raise TypeError(complaint("labels", "integers", str(jnp.result_type(labels)), remedy))
    if len(outputs.shape) != 2 or outputs.shape[1] < 2:
        remedy = "let apply_fn return a column for each class; for tokens use tune"
        raise ValueError(complaint("apply_fn", "logits (n, K)", f"shape {outputs.shape}", remedy))
    if jnp.shape(labels) != outputs.shape[:1]:
        expected, got = f"shape {outputs.shape[:1]}", str(jnp.shape(labels))
        raise ValueError(complaint("labels", expected, got, "pass one for each of these inputs"))
    check_classes("labels", labels, outputs.shape[1])
    return jnp.asarray(labels)


def _warn(best: Minimum, verdict: Verdict) -> None:
    """Say that the mode did not win where there is no best temperature either."""
    expected = "a finite loss"
    remedy = "look for NaN in the inputs, the params and the second moment"
    warn_if(verdict.lost, "temperature", expected, "none, and leaves it as it was", remedy, 4)
    expected = f"a best value between {_BOUNDS[0]:g} and {_BOUNDS[1]:g}"
    remedy = "look whether these labels belong to these inputs, and at the prior precision"
    for end, at in (("lower", best.low[0]), ("upper", best.high[0])):
        got = f"the {end} bound, and keeps it"
        warn_if(at & ~verdict.mode, "temperature", expected, got, remedy, 4)


@functools.partial(jax.jit, static_argnums=(2, 5, 6))
def _fit(
    posterior: Posterior,
    trained: Posterior,
    apply_fn: ApplyFn,
    inputs: PyTree,
    labels: Array,
    num_data: int,
    chunk_size: int | None,
) -> tuple[Minimum, Verdict, Array]:
    outputs, deviations = output_deviations(
        jax.random.key(0), apply_fn, posterior, inputs, _NUM_SAMPLES, antithetic=True
    )
    gram = joint_covariance(trained, apply_fn, inputs, chunk_size)
    left_out = leave_out(gram, outputs, labels, num_data)

    def loss(log_temperature: Array) -> Array:
        logits = left_out + jnp.exp(0.5 * log_temperature) * deviations
        return -jnp.mean(mean_over_draws(categorical(logits, labels)))

    low, high = map(math.log, _BOUNDS)
    grid, rounds = jnp.linspace(low, high, _POINTS), rounds_for(low, high, _POINTS)
    best = zoom(lambda axes: jax.lax.map(loss, axes[0]), [grid], rounds)
    verdict = judge(best, -jnp.mean(categorical(left_out, labels)))
    return best, verdict, coupling(apply_fn, posterior, inputs)


def leave_out(gram: Array, logits: Array, labels: Array, num_data: int) -> Array:
    r"""The logits of each input had it not been trained on; shape (n, K), float32 at least.

    Args:
      gram: the `joint_covariance` under what is known without H, of shape (n, K, n, K).
      logits: of shape (n, K).
      labels: of shape (n,).
      num_data: N.
    """
    logits = logits.astype(statistics_dtype(logits))
    number, classes = logits.shape
    residuals = jax.nn.softmax(logits) - jax.nn.one_hot(labels, classes, dtype=logits.dtype)
    root = softmax_root(logits)
    parts = []
    for held in np.array_split(np.arange(number), _FOLDS):
        rest = np.setdiff1d(np.arange(number), held)
        scaled = math.sqrt(num_data / len(rest)) * root[rest]
        whitened = jnp.einsum("iak,iajb,jbl->ikjl", scaled, gram[rest][:, :, rest], scaled)
        cross = jnp.einsum("iak,iajb->ikjb", scaled, gram[rest][:, :, held])
        size = len(rest) * classes
        lower = jnp.linalg.cholesky(whitened.reshape(size, size) + jnp.eye(size))
        known = jax.scipy.linalg.solve_triangular(lower, cross.reshape(size, -1), lower=True)
        known = known.reshape(size, len(held), classes)
        prior = gram[held, :, held, :]
        shift = jnp.einsum("iab,ib->ia", prior, residuals[held])
        shift -= jnp.einsum("sia,sib,ib->ia", known, known, residuals[held])
        parts.append(logits[held] + shift)
    return jnp.concatenate(parts)


def softmax_root(logits: Array) -> Array:
    r"""R with $R R^\top = \mathrm{diag}(p) - p p^\top$: shape (n, K, K)."""
    probs = jax.nn.softmax(logits)
    root = jnp.sqrt(probs)
    return root[:, :, None] * jnp.eye(logits.shape[-1]) - probs[:, :, None] * root[:, None, :]


def joint_covariance(
    posterior: Posterior,
    apply_fn: ApplyFn,
    inputs: PyTree,
    chunk_size: int | None = None,
) -> Array:
    r"""The covariance of all inputs' outputs at T = 1, $J (F + \delta)^{-1} J^\top$: (n, K, n, K).

    Column by column: a product with the transposed Jacobian, then one with the Jacobian.
    """
    mean = free_mean(posterior)
    covary = times_covariance(posterior._replace(temperature=jnp.ones(())))
    outputs, push = jax.linearize(lambda m: apply_fn(fill(m, posterior.mean), inputs), mean)
    pull = jax.linear_transpose(push, mean)
    dtype = statistics_dtype(outputs)

    def column(index: Array) -> Array:
        unit = jax.nn.one_hot(index, outputs.size, dtype=outputs.dtype)
        (pulled,) = pull(unit.reshape(outputs.shape))
        moved = jax.tree.map(lambda g, m: m.astype(g.dtype), pulled, covary(pulled))
        return push(moved).astype(dtype)

    if chunk_size is None:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(mean))
        activations = len(outputs) * jacobian_of(apply_fn, posterior, inputs, no_reach).entries
        chunk_size = side_by_side(parameters + activations, outputs.size)
    columns = jax.lax.map(column, jnp.arange(outputs.size), batch_size=chunk_size)
    return columns.reshape(outputs.shape + outputs.shape)
