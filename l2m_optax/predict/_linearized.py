"""Draws of the network linearised around its trained parameters: the predictive to start from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from l2m_optax._support.checks import check_count
from l2m_optax._support.trees import fill
from l2m_optax._support.types import ApplyFn, Array, PyTree
from l2m_optax.posterior._drawing import deviation, deviations, keys_and_signs
from l2m_optax.posterior._posterior import Posterior, free_mean
from l2m_optax.predict._draws import over_draws
from l2m_optax.predict._outputs import (
    check_call,
    check_independent,
    check_outputs,
    if_independent,
    influence,
)


def linearized(
    key: Array,
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    *,
    num_samples: int,
    chunk_size: int | None = None,
    antithetic: bool = False,
) -> Array:
    r"""Draws of $f(x, \theta^*) + J(x)(\theta_s - \theta^*)$, with $J$ the Jacobian at the mode.

    The Laplace approximation is exact for the linearised network, which keeps the mode's accuracy
    where sampling the weights of the network itself loses it. One `jax.linearize` serves every
    draw, and no Jacobian is formed.

    Compiled once for each `apply_fn` object: keep one function. A new lambda in each call compiles
    again, and a variable that the function closes over is read once only: pass what changes with
    the params or the inputs.

    Args:
      key: a key of `jax.random`.
      apply_fn: ``apply_fn(params, inputs) -> outputs``, one array of real numbers; hashable.
      posterior: a `Posterior`.
      inputs: what `apply_fn` takes, rows being examples as in `monte_carlo`.
      num_samples: S, number of draws.
      chunk_size: draws run side by side; `None` for all of them.
      antithetic: draw mirror images, as in `sample`.

    Returns:
      Outputs with a leading axis of size S.

    Raises:
      ValueError: as `monte_carlo`.
      TypeError: as `monte_carlo`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.ones((3, 2)))
      >>> posterior = l2m.laplace(jnp.zeros((3, 2)), moment, num_data=100, batch_size=10)
      >>> f = lambda w, x: x @ w
      >>> l2m.linearized(jax.random.key(0), f, posterior, jnp.ones((7, 3)), num_samples=4).shape
      (4, 7, 2)

    Reference:
      Immer, Korzepa & Bauer, Improving predictions of Bayesian neural nets via local
      linearization (2021).
    """
    check_count("num_samples", num_samples)
    check_call(apply_fn, posterior)
    stacked: PyTree
    if chunk_size is None:
        stacked = deviations(key, posterior, num_samples, antithetic)
    else:
        stacked = keys_and_signs(key, num_samples, antithetic)
    outputs, coupled = _linearized(apply_fn, posterior, inputs, stacked, chunk_size)
    check_independent(coupled)
    return outputs


@functools.partial(jax.jit, static_argnums=(0, 4))
def _linearized(
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    stacked: PyTree,
    chunk_size: int | None,
) -> tuple[Array, Array]:
    """The outputs of deviations, or of the keys and signs of such made chunk by chunk."""
    tangent = _itself if chunk_size is None else _drawn(posterior)
    outputs, moves = _along(tangent, stacked, apply_fn, posterior, inputs, chunk_size)
    coupled = influence(apply_fn, posterior.mean, inputs)
    return if_independent(outputs, coupled)[None] + moves, coupled


def output_deviations(
    key: Array,
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    num_samples: int,
    chunk_size: int | None = None,
    antithetic: bool = False,
) -> tuple[Array, Array]:
    """The outputs at the mean, and S draws of $J(x)(θ_s - θ^*)$."""
    stacked = keys_and_signs(key, num_samples, antithetic)
    return _along(_drawn(posterior), stacked, apply_fn, posterior, inputs, chunk_size)


def outputs_of_deviations(
    apply_fn: ApplyFn,
    posterior: Posterior,
    stacked: PyTree,
    inputs: PyTree,
    chunk_size: int | None = None,
) -> Array:
    """The linearised outputs of S stacked deviations of the parameters."""
    outputs, moves = _along(_itself, stacked, apply_fn, posterior, inputs, chunk_size)
    return outputs[None] + moves


def _itself(deviation: PyTree) -> PyTree:
    return deviation


def _drawn(posterior: Posterior) -> Callable[[tuple[Array, Array]], PyTree]:
    """From a key and a sign to a deviation of the parameters."""
    return lambda entry: deviation(entry[0], posterior, entry[1])


def _along(
    tangent: Callable[[Any], PyTree],
    stacked: PyTree,
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    chunk_size: int | None,
) -> tuple[Array, Array]:
    """The outputs at the mean, and the Jacobian times the tangent of each stacked entry."""

    def outputs_at(free: PyTree) -> Array:
        return check_outputs(apply_fn(fill(free, posterior.mean), inputs))

    outputs, push = jax.linearize(outputs_at, free_mean(posterior))
    return outputs, over_draws(lambda entry: push(tangent(entry)), stacked, chunk_size)
