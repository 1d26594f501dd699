"""A temperature for classifiers without validation data: from approximate leave-one-out logits.

What the logits of a training input would be without its label follows from the curvature of all
that was trained; the temperature that predicts the labels best from there is the answer.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import check_batched, check_count, check_hashable, complaint
from l2m_optax._support.search import rounds_for, zoom
from l2m_optax._support.trees import align, fill, statistics_dtype
from l2m_optax._support.types import ApplyFn, Array, ArrayLike, PyTree
from l2m_optax.likelihoods import categorical
from l2m_optax.posterior._posterior import Posterior, free_mean, free_variance
from l2m_optax.predict._jacobian import jacobian_of
from l2m_optax.predict._linearized import output_deviations
from l2m_optax.predict._outputs import check_independent, coupling
from l2m_optax.tuning._fit import Fit, FitInfo
from l2m_optax.tuning._objectives import mean_over_draws
from l2m_optax.tuning._observations import check_targets

_FOLDS = 5
_NUM_SAMPLES = 32
_BOUNDS = (1e-5, 1e3)
_POINTS = 17
_ENTRIES = 2**23
"""How many entries of tangents may exist at a time, unless `chunk_size` says otherwise."""


def fit_temperature(
    posterior: Posterior,
    apply_fn: ApplyFn,
    inputs: PyTree,
    labels: ArrayLike,
    *,
    num_data: int,
    trained: Posterior | None = None,
    key: Array | None = None,
    chunk_size: int | None = None,
) -> Fit:
    r"""The temperature that predicts training labels best, each approximately left out.

    Without example i the linearised network would have, at $x_i$, the logits

    $$f_{-i} = f_i + S_i (p_i - y_i), \qquad S_i = J_i (H + F + \delta)^{-1} J_i^\top,$$

    with $H = \tfrac{N}{n'} \sum_j J_j^\top \Lambda_j J_j$ over n' other inputs and
    $\Lambda = \mathrm{diag}(p) - p p^\top$: a full matrix, which knows what ties weights together,
    in the directions that these inputs show, and the diagonal F in all others. The temperature is
    then found as in `tune`, with these logits and the draws of `posterior` around them. Four fifths
    of the inputs serve the other fifth, in turns. A network that leaves no residuals
    $p_i - y_i$ gets a temperature of nearly zero.

    Where H and F both count what the data say, S is up to half too small; where neither does, too
    large. It is a heuristic, studied in docs/temperature.md: with 300 inputs for up to 5,000 data,
    and 600 for 20,000, it came close to validation on Fashion-MNIST and to the mode on digits, for
    all layers and for the last. More data need more inputs: with too few T is too high over all
    layers. T follows the prior precision too, so fit that by the evidence first, one for all
    leaves.

    Args:
      posterior: a `Posterior`, its prior fitted; its own temperature plays no part.
      apply_fn: ``apply_fn(params, inputs) -> logits`` of shape (n, K); hashable.
      inputs: n training inputs, drawn at random; a few hundred, N/30 at least. Memory grows with
        (n·K)², time with (n·K)³: at n·K = 3,000 the matrix takes 36 MB.
      labels: their classes, integers of shape (n,).
      num_data: N, the number of training examples, as in `laplace`.
      trained: the posterior over all leaves that were trained, its prior fitted, where `posterior`
        is a restricted one; without it the leaves that are points count as fixed from the start,
        and T comes out too small. By default `posterior`.
      key: a key of `jax.random` for the draws; the same for every call unless given.
      chunk_size: columns of the matrix worked on at a time, for each of which a tangent of the
        parameters exists; by default as many as keep these under 32 MiB. No Jacobian is formed.

    Returns:
      A `Fit` whose ``info.value`` is T. If the best T is a bound (1e-5 or 1e3) or there is none,
      ``info.edge`` is true and the posterior's temperature is left as it was: use the trained
      parameters alone.

    Raises:
      ValueError: if shapes do not match, labels are out of range, there are fewer than 10 inputs or
        more than `num_data`, `trained` has other parameters, or one example's outputs depend on
        others.
      TypeError: if `labels` are no integers, `apply_fn` is not hashable, or a number is no integer.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> x = jax.random.normal(jax.random.key(0), (100, 3))
      >>> y = jax.random.categorical(jax.random.key(1), x[:, :2])
      >>> too_sure = 2.0 * jnp.eye(3, 2)
      >>> moment = l2m.SecondMoment(nu=0.02 * jnp.ones((3, 2)))
      >>> posterior = l2m.laplace(too_sure, moment, num_data=100, batch_size=10)
      >>> f = lambda w, x: x @ w
      >>> posterior, info = l2m.fit_temperature(posterior, f, x, y, num_data=100)
      >>> print(bool(info.value > 1), info.converged)
      True True

    Reference:
      Rad & Maleki, A scalable estimate of the out-of-sample prediction error via approximate
      leave-one-out cross-validation (2020); Nickl et al., The memory-perturbation equation (2023).
    """
    check_hashable("apply_fn", apply_fn)
    check_batched(inputs)
    number = len(jax.tree.leaves(inputs)[0])
    check_count("examples in inputs", number, 2 * _FOLDS)
    check_count("num_data", num_data, number)
    if chunk_size is not None:
        check_count("chunk_size", chunk_size)
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        remedy = "pass class numbers; for regression use fit_noise_variance at temperature 1"
        raise TypeError(complaint("labels", "integers", str(jnp.result_type(labels)), remedy))
    check_targets(apply_fn, posterior, inputs, labels)
    trained = posterior if trained is None else trained
    align(trained.mean, posterior.mean, "trained.mean")
    key = jax.random.key(0) if key is None else key
    unit = posterior._replace(temperature=jnp.ones(()))
    value, steps, edge, coupled = _fit(
        unit, trained, apply_fn, inputs, jnp.asarray(labels), key, num_data, chunk_size
    )
    check_independent(coupled)
    kept = jnp.where(edge, posterior.temperature, value)
    return Fit(posterior._replace(temperature=kept), FitInfo(kept, steps, ~edge, edge))


@functools.partial(jax.jit, static_argnums=(2, 6, 7))
def _fit(
    posterior: Posterior,
    trained: Posterior,
    apply_fn: ApplyFn,
    inputs: PyTree,
    labels: Array,
    key: Array,
    num_data: int,
    chunk_size: int | None,
) -> tuple[Array, Array, Array, Array]:
    outputs, deviations = output_deviations(
        key, apply_fn, posterior, inputs, _NUM_SAMPLES, antithetic=True
    )
    gram = joint_covariance(trained, apply_fn, inputs, chunk_size)
    left_out = leave_out(gram, outputs, labels, num_data)

    def loss(log_temperature: Array) -> Array:
        logits = left_out + jnp.exp(0.5 * log_temperature) * deviations
        return -jnp.mean(mean_over_draws(categorical(logits, labels)))

    low, high = map(math.log, _BOUNDS)
    grid, rounds = jnp.linspace(low, high, _POINTS), rounds_for(low, high, _POINTS)
    best = zoom(lambda axes: jax.lax.map(loss, axes[0]), [grid], rounds)
    steps = jnp.asarray(best.evaluations, jnp.int32)
    return jnp.exp(best.point[0]), steps, best.edge[0], coupling(apply_fn, posterior, inputs)


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
    variance = free_variance(posterior._replace(temperature=jnp.ones(())))
    outputs, push = jax.linearize(lambda m: apply_fn(fill(m, posterior.mean), inputs), mean)
    pull = jax.linear_transpose(push, mean)
    dtype = statistics_dtype(outputs)

    def column(index: Array) -> Array:
        unit = jax.nn.one_hot(index, outputs.size, dtype=outputs.dtype)
        (pulled,) = pull(unit.reshape(outputs.shape))
        moved = jax.tree.map(lambda g, v: (g * v).astype(g.dtype), pulled, variance)
        return push(moved).astype(dtype)

    if chunk_size is None:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(mean))
        activations = len(outputs) * jacobian_of(apply_fn, posterior, inputs).entries
        chunk_size = max(1, min(outputs.size, _ENTRIES // (parameters + activations)))
    columns = jax.lax.map(column, jnp.arange(outputs.size), batch_size=chunk_size)
    return columns.reshape(outputs.shape + outputs.shape)
