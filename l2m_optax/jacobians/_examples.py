"""Loss, gradient and squared per-example gradients of a batch, in one backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2m_optax._support.checks import (
    check_batched,
    check_floating,
    check_hashable,
    complaint,
)
from l2m_optax._support.chunks import check_chunk_size, equal_parts
from l2m_optax._support.trees import statistics_dtype
from l2m_optax._support.types import Array, PyTree
from l2m_optax.jacobians._factors import Uses, factors, run_perturbed, weights
from l2m_optax.jacobians._program import Program, trace
from l2m_optax.jacobians._uses import FullGradient, find_uses

_BUDGET = 4
"""In units of `chunks.ENTRIES`: 128 MiB of per-example gradients exist at a time."""


class RootMeanSquares(NamedTuple):
    """Roots of mean squares of gradients, which have no signs of their own.

    Attributes:
      roots: a tree like the parameters.
    """

    roots: PyTree


class ExampleMoments(NamedTuple):
    r"""What `second_moment_of_examples` found in a batch of B examples.

    Attributes:
      loss: the mean loss, of shape ().
      gradient: its gradient, like the parameters.
      sum_of_squares: $\sum_i (\nabla l_i)^2$, like the parameters, in float32 at least.
      num_examples: B.
    """

    loss: Array
    gradient: PyTree
    sum_of_squares: PyTree
    num_examples: int

    @property
    def root_mean_square(self) -> RootMeanSquares:
        """What to give to `track_second_moment` as `moment_updates`; the batch size is then 1.

        For the squares alone: roots have no signs, and a tracker that keeps products refuses them.
        """
        mean = jax.tree.map(lambda s: jnp.sqrt(s / self.num_examples), self.sum_of_squares)
        return RootMeanSquares(mean)


def second_moment_of_examples(
    loss_fn: Callable[[PyTree, PyTree], Array],
    params: PyTree,
    batch: PyTree,
    *,
    chunk_size: int | None = None,
) -> ExampleMoments:
    r"""Loss, gradient and the exact sum of squared per-example gradients of a batch.

    For a layer that meets its weights once an example, with inputs a and cotangents d of its
    output, the sum is $(a^2)^\top (d^2)$: one matrix product more than the gradient
    $a^\top d$ of the same backward pass. Of other leaves per-example gradients are formed, a chunk
    at a time.

    With it a batch of any size, even all the data, has a second moment:
    ``tx.update(found.gradient, state, params, moment_updates=found.root_mean_square)`` on
    `track_second_moment`, and then ``laplace(..., batch_size=1)``.

    Args:
      loss_fn: ``loss_fn(params, example) -> scalar``, the negative log-likelihood of one example;
        hashable, and compiled once for each function object.
      params: the parameters, real floating-point arrays.
      batch: a tree of arrays with a leading axis of B examples.
      chunk_size: examples side by side; by default all, or as many as keep what is formed for each
        under 128 MiB.

    Returns:
      An `ExampleMoments`.

    Raises:
      ValueError: if the arrays of `batch` have no common leading axis, `chunk_size` is below 1, or
        the loss is no scalar.
      TypeError: if a parameter is no real floating-point array, or `loss_fn` is not hashable.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> found = l2m.jacobians.second_moment_of_examples(
      ...     lambda w, x: w * x, jnp.ones(()), jnp.array([1.0, 3.0])
      ... )
      >>> print(found.loss, found.gradient, found.sum_of_squares)
      2.0 2.0 10.0
    """
    check_hashable("loss_fn", loss_fn)
    check_floating(params)
    check_batched(batch, "batch")
    check_chunk_size(chunk_size)
    loss, gradient, squares = _moments(loss_fn, params, batch, chunk_size)
    return ExampleMoments(loss, gradient, squares, len(jax.tree.leaves(batch)[0]))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _moments(
    loss_fn: Callable[[PyTree, PyTree], Array],
    params: PyTree,
    batch: PyTree,
    chunk_size: int | None,
) -> tuple[Array, PyTree, PyTree]:
    leaves = jax.tree.leaves(params)
    treedef: Any = jax.tree.structure(params)
    example = jax.eval_shape(lambda: jax.tree.map(lambda x: x[0], batch))
    program = trace(lambda w, e: _scalar(loss_fn(treedef.unflatten(w), e)), leaves, example)
    uses = find_uses(program, len(leaves))
    of_chunk = functools.partial(_sums, program, uses, leaves)

    number = len(jax.tree.leaves(batch)[0])
    entries = sum(use.size for use in uses)
    chunk = min(number, chunk_size or equal_parts(entries, number, times=_BUDGET))
    whole = number - number % chunk
    sums = _sum_over_chunks(of_chunk, jax.tree.map(lambda x: x[:whole], batch), chunk)
    if whole < number:
        rest = of_chunk(jax.tree.map(lambda x: x[whole:], batch))
        sums = jax.tree.map(jnp.add, sums, rest)
    loss, gradients, squares = sums
    gradients = [g / number for g in gradients]
    return loss / number, treedef.unflatten(gradients), treedef.unflatten(squares)


_Sums = tuple[Array, list[Array], list[Array]]


def _sums(program: Program, uses: Uses, leaves: list[Array], batch: PyTree) -> _Sums:
    """Sums over the examples of a chunk: of losses, gradients and squared gradients."""
    flat = jax.tree.leaves(batch)
    number = len(flat[0])
    perturbations = [
        jnp.broadcast_to(p, (number, *p.shape))
        for p in (use.perturbation(leaf) for use, leaf in zip(uses, leaves, strict=True))
    ]

    def losses(leaves: list[Array], perturbations: list[Array]) -> tuple[Array, list[Array]]:
        of_one = functools.partial(run_perturbed, program, uses, leaves)
        each, residuals = jax.vmap(of_one)(perturbations, flat)
        return jnp.sum(each), residuals

    # One pass for both: a leaf's own cotangent is the sum that a matrix product gives at once,
    # and zero for a leaf of which the gradients are formed, which has a perturbation in its place.
    loss, pull, residuals = jax.vjp(losses, leaves, perturbations, has_aux=True)
    shared, each = pull(jnp.ones_like(loss))
    squared = [jnp.square(r) for r in jax.vmap(lambda d, k: factors(uses, d, k))(each, residuals)]
    gradients = [
        jnp.sum(d, axis=0) if isinstance(use, FullGradient) else g
        for use, g, d in zip(uses, shared, each, strict=True)
    ]
    return loss, gradients, _back_on_leaves(uses, leaves, squared, residuals)


def _back_on_leaves(
    uses: Uses, leaves: list[Array], squared: list[Array], residuals: list[Array]
) -> list[Array]:
    """The transpose of `weights`: squared factors summed over examples, where the leaves are."""
    like = [jnp.zeros(leaf.shape, statistics_dtype(leaf)) for leaf in leaves]

    def forth(numbers: list[Array]) -> list[Array]:
        return jax.vmap(lambda k: weights(uses, numbers, k), axis_size=len(squared[0]))(residuals)

    (back,) = jax.linear_transpose(forth, like)(squared)
    return back


def _sum_over_chunks(of_chunk: Callable[[PyTree], _Sums], batch: PyTree, chunk: int) -> _Sums:
    stacked = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), batch)
    shapes = jax.eval_shape(of_chunk, jax.tree.map(lambda x: x[0], stacked))

    def add(total: _Sums, batch: PyTree) -> tuple[_Sums, None]:
        return jax.tree.map(jnp.add, total, of_chunk(batch)), None

    return jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), stacked)[
        0
    ]


def _scalar(loss: Array) -> Array:
    if jnp.shape(loss) != ():
        got = f"shape {jnp.shape(loss)}"
        remedy = "return the loss of the one example that is passed"
        raise ValueError(complaint("loss_fn(params, example)", "a scalar", got, remedy))
    return loss
