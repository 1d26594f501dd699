"""The temperature that predicts held-out data best."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._checks import check_count, check_hashable, complaint, is_concrete
from l2m_optax._tree import statistics_dtype
from l2m_optax._types import ApplyFn, Array, ArrayLike, PyTree
from l2m_optax.posterior import DiagonalPosterior
from l2m_optax.predictive.linearized import output_deviations
from l2m_optax.predictive.variance import output_variance
from l2m_optax.prior import Fit, FitInfo

_POINTS = 17
_ROUNDS = 3


def tune(
    posterior: DiagonalPosterior,
    apply_fn: ApplyFn,
    inputs: PyTree,
    targets: ArrayLike,
    *,
    key: Array | None = None,
    num_samples: int = 32,
    bounds: tuple[float, float] = (1e-5, 1e3),
    chunk_size: int | None = None,
) -> Fit:
    r"""The temperature with the lowest negative log-likelihood on validation data.

    The linearised predictive at temperature T is $f + \sqrt{T} J \Sigma_1^{1/2} \epsilon_s$, so one
    set of draws serves every T: they are made once and a logarithmic grid of T is evaluated on
    them, then twice more around its best, all in one compiled call.

    Args:
      posterior: a `DiagonalPosterior`; its own temperature plays no part.
      apply_fn: ``apply_fn(params, inputs) -> outputs``: logits of shape (N, K) for classification,
        means for regression; hashable.
      inputs: validation inputs.
      targets: integer labels of shape (N,), or real targets in the shape of the outputs, whose
        Gaussian likelihood has the variance ``posterior.noise_variance`` (and needs no draws).
      key: a key of `jax.random`; the same for every call unless given, so that results repeat.
      num_samples: number of draws.
      bounds: lowest and highest temperature.
      chunk_size: draws (for regression: inputs) worked on at a time.

    Returns:
      A `Fit` whose ``info.value`` is T. If the best T is a bound, ``info.edge`` is true and the
      posterior's temperature is left as it was: at the lower one the validation data prefer the
      trained parameters alone.

    Raises:
      ValueError: if shapes do not match, labels are out of range, or there are no data.
      TypeError: if `apply_fn` is not hashable.

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
    _check_bounds(bounds)
    check_targets(apply_fn, posterior, inputs, targets)
    key = jax.random.key(0) if key is None else key
    unit = posterior._replace(temperature=jnp.ones(()))
    value, steps, edge = _tune(
        unit, apply_fn, inputs, jnp.asarray(targets), key, num_samples, bounds, chunk_size
    )
    kept = jnp.where(edge, posterior.temperature, value)
    return Fit(posterior._replace(temperature=kept), FitInfo(kept, steps, ~edge, edge))


@functools.partial(jax.jit, static_argnums=(1, 5, 6, 7))
def _tune(
    posterior: DiagonalPosterior,
    apply_fn: ApplyFn,
    inputs: PyTree,
    targets: Array,
    key: Array,
    num_samples: int,
    bounds: tuple[float, float],
    chunk_size: int | None,
) -> tuple[Array, Array, Array]:
    if jnp.issubdtype(targets.dtype, jnp.integer):
        outputs, deviations = output_deviations(
            key, apply_fn, posterior, inputs, num_samples, chunk_size, antithetic=True
        )

        def loss(log_temperature: Array) -> Array:
            logits = outputs + jnp.exp(0.5 * log_temperature) * deviations
            return categorical_loss(logits, targets)
    else:
        outputs = apply_fn(posterior.mean, inputs)
        epistemic = output_variance(apply_fn, posterior, inputs, chunk_size=chunk_size)

        def loss(log_temperature: Array) -> Array:
            total = posterior.noise_variance + jnp.exp(log_temperature) * epistemic
            return jnp.mean(0.5 * (jnp.log(total) + jnp.square(targets - outputs) / total))

    return search(loss, math.log(bounds[0]), math.log(bounds[1]))


def categorical_loss(logits: Array, labels: Array) -> Array:
    """Negative log of the mean probability over draws: logits (S, N, K), labels (N,)."""
    log_probs = jax.nn.log_softmax(logits.astype(statistics_dtype(logits)))
    chosen = jnp.take_along_axis(log_probs, labels[None, :, None], axis=-1)[..., 0]
    return -jnp.mean(jax.nn.logsumexp(chosen, axis=0) - math.log(chosen.shape[0]))


def search(loss: Callable[[Array], Array], low: float, high: float) -> tuple[Array, Array, Array]:
    """The best of a grid, then of a finer grid between its neighbours, and so on."""
    grid = jnp.linspace(low, high, _POINTS)
    edge = jnp.zeros((), bool)
    best = grid[0]
    for round_number in range(_ROUNDS):
        losses = jax.lax.map(loss, grid)
        # NaN is no loss at all: it must not win.
        at = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))
        if round_number == 0:
            edge = (at == 0) | (at == _POINTS - 1) | ~jnp.isfinite(losses[at])
        best = grid[at]
        grid = jnp.linspace(
            grid[jnp.maximum(at - 1, 0)], grid[jnp.minimum(at + 1, _POINTS - 1)], _POINTS
        )
    return jnp.exp(best), jnp.asarray(_POINTS * _ROUNDS, jnp.int32), edge


def _check_bounds(bounds: tuple[float, float]) -> None:
    if not 0 < bounds[0] < bounds[1] < math.inf:
        remedy = "pass the lowest and the highest temperature"
        raise ValueError(complaint("bounds", "0 < low < high", str(bounds), remedy))


def check_targets(
    apply_fn: ApplyFn, posterior: DiagonalPosterior, inputs: PyTree, targets: ArrayLike
) -> None:
    """Labels must index the outputs; real targets must have their shape."""
    outputs = jax.eval_shape(apply_fn, posterior.mean, inputs).shape
    dtype, shape = jnp.result_type(targets), jnp.shape(targets)
    labels = jnp.issubdtype(dtype, jnp.integer)
    expected = outputs[:-1] if labels else outputs
    if shape != expected or math.prod(shape) == 0 or (labels and len(outputs) != 2):
        got = f"{dtype} of shape {shape}, for outputs of shape {outputs}"
        remedy = "pass integer labels of shape (N,), or real targets in the shape of the outputs"
        raise ValueError(complaint("targets", f"a non-empty {expected}", got, remedy))
    if labels and is_concrete(targets):
        labels_on_host = np.asarray(targets)
        low, high = labels_on_host.min(), labels_on_host.max()
        if low < 0 or high >= outputs[-1]:
            expected_labels = f"labels from 0 to {outputs[-1] - 1}"
            remedy = "number the classes from 0, as the outputs do"
            raise ValueError(complaint("targets", expected_labels, f"{low} to {high}", remedy))
