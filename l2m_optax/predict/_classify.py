"""Class probabilities of a network and its posterior: one call, no key, the same answer always."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2m_optax._support.checks import check_batched, complaint
from l2m_optax._support.chunks import check_chunk_size, equal_parts, over_chunks
from l2m_optax._support.trees import fill
from l2m_optax._support.types import ApplyFn, Array, PyTree
from l2m_optax.posterior._drawing import deviations
from l2m_optax.posterior._posterior import Posterior, free_mean
from l2m_optax.predict._integral import has_exact_integral, offsets_and_points, over_offsets
from l2m_optax.predict._jacobian import explained, jacobian_of
from l2m_optax.predict._outputs import (
    check_call,
    check_independent,
    check_rows,
    coupling,
    if_independent,
    relative_change,
    shape_of_outputs,
)
from l2m_optax.predict._summaries import Classification
from l2m_optax.predict._variance import covariances_and_outputs, over_examples

_PAIRS = 32
"""Mirrored pairs of draws: in all about what the exact covariance of 128 logits costs."""


def classify(
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    *,
    chunk_size: int | None = None,
) -> Classification:
    r"""Class probabilities, and how much of their entropy comes from the parameters.

    The logits of the linearised network are Gaussian with mean $f(x, \theta^*)$ and covariance
    $J \Sigma J^\top$, which `output_covariance` computes exactly. No parameters are drawn: the
    softmax is averaged over 256 fixed points of that Gaussian, see `predict.softmax_integral`.
    Where one input has more than 128 logits, as a sequence of tokens does, 64 mirrored draws of
    `linearized` stand in for the covariance, always the same ones. At temperature 0 the
    probabilities are those of the network itself, and `epistemic` is 0.

    Args:
      apply_fn: ``apply_fn(params, inputs) -> logits`` of shape (N, ..., K), with K at least 2;
        hashable, and compiled once for each function object.
      posterior: a `Posterior`.
      inputs: a tree of arrays with a leading axis of N examples.
      chunk_size: examples side by side; by default as many as a few dozen MiB hold.

    Returns:
      A `Classification` of shape (N, ...), in float32 at least.

    Raises:
      ValueError: if there are fewer than two logits, or as `output_covariance`.
      TypeError: as `output_covariance`.
      FloatingPointError: if a logit is NaN or infinite; inside `jax.jit` the result is NaN instead.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.ones((3, 2)))
      >>> posterior = l2m.laplace(jnp.eye(3, 2), moment, num_data=100, batch_size=10)
      >>> p = l2m.classify(lambda w, x: x @ w, posterior, jnp.ones((7, 3)))
      >>> p.probs.shape, p.epistemic.shape
      ((7, 2), (7,))
    """
    predicted = at_settings(apply_fn, posterior, inputs, None, chunk_size)
    check_rows(predicted.probs)
    return predicted


class Settings(NamedTuple):
    """Ways to change a predictive, arrays of one shape (S,).

    Attributes:
      temperature: multiples of the posterior's own.
      logit_scale: the logits, and all that moves them, are multiplied by it.
    """

    temperature: Array
    logit_scale: Array


def at_settings(
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    settings: Settings | None,
    chunk_size: int | None = None,
) -> Classification:
    """`classify` of the posterior as it is, or changed in S ways on a leading axis, in one go."""
    check_call(apply_fn, posterior)
    check_batched(inputs)
    shape = shape_of_outputs(apply_fn, posterior.mean, inputs).shape
    _check_classes(shape)
    if has_exact_integral(shape[1:]):
        check_chunk_size(chunk_size)
        with explained():
            predicted, coupled = _exact(apply_fn, posterior, inputs, settings, chunk_size)
    else:
        drawn = deviations(jax.random.key(0), posterior, _PAIRS)
        chunk_size = chunk_size or equal_parts(math.prod(shape[1:]), shape[0])
        predicted, coupled = _of_draws(apply_fn, posterior, inputs, drawn, settings, chunk_size)
    check_independent(coupled)
    return predicted


@functools.partial(jax.jit, static_argnums=(0, 4))
def _exact(
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    settings: Settings | None,
    chunk_size: int | None,
) -> tuple[Classification, Array]:
    """Of few enough logits, by their covariances: one program, which is compiled once."""
    reduce = covariances_and_outputs
    jacobian = jacobian_of(apply_fn, posterior, inputs, reduce.spares)
    covariance, alone = over_examples(reduce, jacobian, posterior, inputs, None, chunk_size)
    logits = apply_fn(posterior.mean, inputs)
    coupled = relative_change(logits, alone, logits)
    integral = offsets_and_points(if_independent(covariance, coupled))
    return _scaled(logits.astype(covariance.dtype), *integral, settings), coupled


@functools.partial(jax.jit, static_argnums=(0, 5))
def _of_draws(
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    drawn: PyTree,
    settings: Settings | None,
    chunk_size: int,
) -> tuple[Classification, Array]:
    """Of as many logits as draws make cheaper than covariances; the draws are always the same."""

    def of_one(example: PyTree) -> Classification:
        batch = jax.tree.map(lambda x: x[None], example)
        logits, push = jax.linearize(
            lambda free: apply_fn(fill(free, posterior.mean), batch)[0], free_mean(posterior)
        )
        return _scaled(logits, push, drawn, settings)

    coupled = coupling(apply_fn, posterior, inputs)
    predicted = over_chunks(of_one, inputs, chunk_size)
    if settings is not None:
        predicted = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), predicted)
    return jax.tree.map(lambda x: if_independent(x, coupled), predicted), coupled


def _scaled(
    logits: Array, offset_of: Callable[[Any], Array], points: PyTree, settings: Settings | None
) -> Classification:
    """The summary with logits and offsets as they are, or changed in several ways."""
    if settings is None:
        return over_offsets(logits, offset_of, points)

    def at(setting: Settings) -> Classification:
        # What does not depend on the setting, the offset itself, is computed once for all.
        moved = setting.logit_scale * jnp.sqrt(setting.temperature)
        scaled = setting.logit_scale * logits
        return over_offsets(scaled, lambda point: moved * offset_of(point), points)

    return jax.vmap(at)(settings)


def _check_classes(shape: tuple[int, ...]) -> None:
    if len(shape) < 2 or shape[-1] < 2:
        remedy = "for one binary logit return jnp.concatenate([0 * z, z], -1); for numbers: regress"
        if len(shape) < 2:
            remedy = f"give a single example a batch axis, x[None]; {remedy}"
        expected = "logits of shape (N, ..., K), K > 1"
        raise ValueError(complaint("apply_fn", expected, str(shape), remedy))
