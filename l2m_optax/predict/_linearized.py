"""Draws of the network linearised around its trained parameters: the predictive to start from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from l2m_optax._support.checks import check_count, check_hashable
from l2m_optax._support.trees import fill
from l2m_optax._support.types import ApplyFn, Array, PyTree
from l2m_optax.posterior._posterior import Posterior, free_mean
from l2m_optax.posterior._drawing import deviation, keys_and_signs
from l2m_optax.predict._draws import over_draws


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

    Args:
      key: a key of `jax.random`.
      apply_fn: ``apply_fn(params, inputs) -> outputs``; hashable.
      posterior: a `Posterior`.
      inputs: what `apply_fn` takes.
      num_samples: S, number of draws.
      chunk_size: draws run side by side; `None` for all of them.
      antithetic: draw mirror images, as in `sample`.

    Returns:
      Outputs with a leading axis of size S.

    Raises:
      ValueError: if `num_samples` or `chunk_size` is below 1.
      TypeError: if `apply_fn` is not hashable.

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
    check_hashable("apply_fn", apply_fn)
    return _linearized(key, apply_fn, posterior, inputs, num_samples, chunk_size, antithetic)


@functools.partial(jax.jit, static_argnums=(1, 4, 5, 6))
def _linearized(
    key: Array,
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    num_samples: int,
    chunk_size: int | None,
    antithetic: bool,
) -> Array:
    outputs, deviations = output_deviations(
        key, apply_fn, posterior, inputs, num_samples, chunk_size, antithetic
    )
    return outputs + deviations


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

    def tangent(key_and_sign: tuple[Array, Array]) -> PyTree:
        return deviation(key_and_sign[0], posterior, key_and_sign[1])

    drawn = keys_and_signs(key, num_samples, antithetic)
    return _along(tangent, drawn, apply_fn, posterior, inputs, chunk_size)


def deviations_along(
    tangents: PyTree,
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    chunk_size: int | None = None,
) -> tuple[Array, Array]:
    """`output_deviations` for S stacked deviations of the parameters, made before."""
    return _along(lambda t: t, tangents, apply_fn, posterior, inputs, chunk_size)


def _along(
    tangent: Callable[[Any], PyTree],
    stacked: PyTree,
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    chunk_size: int | None,
) -> tuple[Array, Array]:
    mean = free_mean(posterior)
    outputs, push = jax.linearize(lambda moved: apply_fn(fill(moved, posterior.mean), inputs), mean)

    def one(entry: Any) -> Array:
        return push(jax.tree.map(lambda t, m: t.astype(m.dtype), tangent(entry), mean))

    return outputs, over_draws(one, stacked, chunk_size)
