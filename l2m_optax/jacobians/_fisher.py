"""The exact diagonal of the empirical Fisher, from per-example gradients."""

from __future__ import annotations

from collections.abc import Callable

import jax

from l2m_optax._support.checks import check_count
from l2m_optax._support.types import Array, PyTree
from l2m_optax.jacobians._examples import second_moment_of_examples


def empirical_fisher(
    loss_fn: Callable[[PyTree, PyTree], Array],
    params: PyTree,
    batch: PyTree,
    *,
    num_data: int,
    chunk_size: int | None = None,
) -> PyTree:
    r"""The exact diagonal of the empirical Fisher, $N \cdot \mathrm{mean}_i (\nabla l_i)^2$.

    Args:
      loss_fn: ``loss_fn(params, example) -> scalar``, the negative log-likelihood of one example.
      params: the parameters.
      batch: a tree of arrays with a leading axis of examples.
      num_data: N, number of training examples.
      chunk_size: as in `second_moment_of_examples`, which does the work.

    Returns:
      F, a tree like `params`, in float32 at least.

    Raises:
      ValueError: if `num_data` or `chunk_size` is below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> w, x = jnp.ones(()), jnp.array([1.0, 3.0])
      >>> l2m.jacobians.empirical_fisher(lambda w, x: w * x, w, x, num_data=10)
      Array(50., dtype=float32)
    """
    check_count("num_data", num_data)
    found = second_moment_of_examples(loss_fn, params, batch, chunk_size=chunk_size)
    scale = num_data / found.num_examples
    return jax.tree.map(lambda squares: scale * squares, found.sum_of_squares)
