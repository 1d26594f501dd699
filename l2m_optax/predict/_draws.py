"""Outputs of a network under many parameter draws, wherever the draws come from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from l2m_optax._support.checks import check_count, check_hashable, complaint, path_name
from l2m_optax._support.trees import fill
from l2m_optax._support.types import ApplyFn, Array, PyTree
from l2m_optax.posterior._drawing import draw, draws, keys_and_signs
from l2m_optax.posterior._posterior import Posterior
from l2m_optax.predict._outputs import (
    check_call,
    check_independent,
    check_outputs,
    if_independent,
    influence,
)


def apply_ensemble(
    apply_fn: ApplyFn, draws: PyTree, inputs: PyTree, *, chunk_size: int | None = None
) -> Array:
    """The outputs of `apply_fn` for each of S stacked parameter trees.

    The draws may be samples of a posterior, the members of a deep ensemble, or any other stack.
    Compiled once for each `apply_fn` object: define it once, not inside a loop.

    Args:
      apply_fn: ``apply_fn(params, inputs) -> outputs``; hashable, as functions and methods are.
      draws: a tree whose leaves have a leading axis of size S.
      inputs: what `apply_fn` takes, rows being examples as in `monte_carlo`.
      chunk_size: draws run side by side; `None` for all of them. Memory grows with it.

    Returns:
      Outputs with a leading axis of size S.

    Raises:
      ValueError: if the leading axes differ or are 0, `chunk_size` is below 1, or examples depend
        on each other, as `monte_carlo`.
      TypeError: if `apply_fn` is not hashable, or returns anything but one array of real numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> stacked, inputs = jnp.ones((5, 3, 2)), jnp.ones((7, 3))
      >>> l2m.predict.apply_ensemble(lambda w, x: x @ w, stacked, inputs).shape
      (5, 7, 2)
    """
    _check_stacked(draws)
    check_hashable("apply_fn", apply_fn)
    outputs, coupled = _apply_ensemble(apply_fn, draws, inputs, chunk_size)
    check_independent(coupled)
    return outputs


def monte_carlo(
    key: Array,
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    *,
    num_samples: int,
    chunk_size: int | None = None,
    antithetic: bool = False,
) -> Array:
    r"""Outputs $f(x, \theta_s)$ of the network for draws $\theta_s$ of the posterior.

    With a `chunk_size` draws are made as they are used: at most so many of them exist at a time.
    With the prior of the evidence a diagonal posterior under-fits here; prefer `linearized` unless
    the temperature was tuned for this predictive.

    Compiled once for each `apply_fn` object: keep one function. A new lambda in each call compiles
    again, and a variable that the function closes over is read once only: pass what changes with
    the params or the inputs.

    Args:
      key: a key of `jax.random`.
      apply_fn: ``apply_fn(params, inputs) -> outputs``, one array of real numbers; hashable.
      posterior: a `Posterior`.
      inputs: what `apply_fn` takes. Where all of them have as many rows as the outputs, rows are
        examples, and no output may depend on another example. Inputs of other shapes, and networks
        that take one number of rows only, may do as they like.
      num_samples: S, number of draws.
      chunk_size: draws run side by side; `None` for all of them.
      antithetic: draw mirror images, as in `sample`.

    Returns:
      Outputs with a leading axis of size S: those of ``predict.apply_ensemble(apply_fn, draws,
      inputs)`` with ``draws = sample(key, posterior, num_samples)``.

    Raises:
      ValueError: if `num_samples` or `chunk_size` is below 1, or one example's outputs depend on
        others (batch statistics in training mode). Inside `jax.jit`, where values cannot be looked
        at, the outputs are NaN instead.
      TypeError: if `apply_fn` is not hashable, or returns anything but one array of real numbers.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.ones((3, 2)))
      >>> posterior = l2m.laplace(jnp.zeros((3, 2)), moment, num_data=100, batch_size=10)
      >>> f = lambda w, x: x @ w
      >>> l2m.monte_carlo(jax.random.key(0), f, posterior, jnp.ones((7, 3)), num_samples=4).shape
      (4, 7, 2)
    """
    check_count("num_samples", num_samples)
    check_call(apply_fn, posterior)
    stacked: PyTree
    if chunk_size is None:
        stacked = draws(key, posterior, num_samples, antithetic)
    else:
        stacked = keys_and_signs(key, num_samples, antithetic)
    outputs, coupled = _monte_carlo(apply_fn, posterior, inputs, stacked, chunk_size)
    check_independent(coupled)
    return outputs


@functools.partial(jax.jit, static_argnums=(0, 3))
def _apply_ensemble(
    apply_fn: ApplyFn, draws: PyTree, inputs: PyTree, chunk_size: int | None
) -> tuple[Array, Array]:
    coupled = influence(apply_fn, jax.tree.map(lambda x: x[0], draws), inputs)

    def one(params: PyTree) -> Array:
        return if_independent(check_outputs(apply_fn(params, inputs)), coupled)

    return over_draws(one, draws, chunk_size), coupled


@functools.partial(jax.jit, static_argnums=(0, 4))
def _monte_carlo(
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    stacked: PyTree,
    chunk_size: int | None,
) -> tuple[Array, Array]:
    """The outputs of draws, or of the keys and signs of draws that are made chunk by chunk."""
    coupled = influence(apply_fn, posterior.mean, inputs)

    def one(entry: Any) -> Array:
        made = chunk_size is None
        params = fill(entry, posterior.mean) if made else draw(entry[0], posterior, entry[1])
        return if_independent(check_outputs(apply_fn(params, inputs)), coupled)

    return over_draws(one, stacked, chunk_size), coupled


def outputs_of_draws(
    apply_fn: ApplyFn,
    posterior: Posterior,
    stacked: PyTree,
    inputs: PyTree,
    chunk_size: int | None = None,
) -> Array:
    """The outputs of stacked draws that are `None` at fixed leaves."""

    def one(moved: PyTree) -> Array:
        return check_outputs(apply_fn(fill(moved, posterior.mean), inputs))

    return over_draws(one, stacked, chunk_size)


def over_draws(f: Callable[[Any], Array], stacked: PyTree, chunk_size: int | None) -> Array:
    """`f` vmapped over a leading axis, at most `chunk_size` entries at a time."""
    if chunk_size is None:
        return jax.vmap(f)(stacked)
    check_count("chunk_size", chunk_size)
    return jax.lax.map(f, stacked, batch_size=chunk_size)


def _check_stacked(draws: PyTree) -> None:
    """Refuse draws whose leading axes differ, or that are none."""
    paths_and_leaves = jax.tree_util.tree_leaves_with_path(draws)
    first = jnp.shape(paths_and_leaves[0][1])[:1] if paths_and_leaves else ()
    some = first not in ((), (0,))
    for path, leaf in paths_and_leaves:
        if not some or jnp.shape(leaf)[:1] != first:
            sizes = f"{first}, as in the first leaf" if some else "one or more"
            expected = f"a leading axis of draws, {sizes}"
            remedy = "stack the parameter trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)"
            got = f"shape {jnp.shape(leaf)}"
            raise ValueError(complaint(path_name(path, "draws"), expected, got, remedy))
