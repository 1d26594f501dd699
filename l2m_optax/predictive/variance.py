"""The exact variance of the linearised outputs: the diagonal of J Σ Jᵀ, without a draw."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from l2m_optax._checks import check_count, complaint
from l2m_optax._tree import fill
from l2m_optax._types import ApplyFn, Array, PyTree
from l2m_optax.posterior import DiagonalPosterior, free_mean, free_variance
from l2m_optax.predictive.predict import check_apply_fn

_JACOBIAN_ENTRIES = 2**25
"""How many entries of Jacobians may exist at a time, unless `chunk_size` says otherwise."""


def output_variance(
    apply_fn: ApplyFn,
    posterior: DiagonalPosterior,
    inputs: PyTree,
    *,
    chunk_size: int | None = None,
) -> Array:
    r"""The diagonal of $J(x) \Sigma J(x)^\top$, exactly, for every input and output.

    It is what the variance of `linearized` over infinitely many draws would be:
    $\sum_p J_{kp}(x)^2\, T / (F_p + \delta_p)$ for output $k$.

    Args:
      apply_fn: ``apply_fn(params, inputs) -> outputs``, in which each example's outputs depend on
        that example only; hashable.
      posterior: a `DiagonalPosterior`.
      inputs: a tree of arrays with a leading axis of N examples.
      chunk_size: examples whose Jacobians exist at a time; by default as many as keep them
        under 128 MiB.

    Returns:
      Variances in the shape of the outputs, float32 at least.

    Raises:
      ValueError: if `inputs` have no common leading axis, or `chunk_size` is below 1.
      TypeError: if `apply_fn` is not hashable.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.ones((3, 2)))
      >>> posterior = l2m.laplace(jnp.zeros((3, 2)), moment, num_data=2, batch_size=1)
      >>> l2m.output_variance(lambda w, x: x @ w, posterior, jnp.ones((1, 3)))
      Array([[1., 1.]], dtype=float32)
    """
    check_apply_fn(apply_fn)
    _check_batched(inputs)
    if chunk_size is not None:
        check_count("chunk_size", chunk_size)
    return _output_variance(apply_fn, posterior, inputs, chunk_size)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _output_variance(
    apply_fn: ApplyFn, posterior: DiagonalPosterior, inputs: PyTree, chunk_size: int | None
) -> Array:
    mean, variances = free_mean(posterior), free_variance(posterior)

    def outputs_of(moved: PyTree, example: PyTree) -> Array:
        batch = jax.tree.map(lambda x: x[None], example)
        return apply_fn(fill(moved, posterior.mean), batch)[0]

    def variance_of(example: PyTree) -> Array:
        jacobian = jax.jacrev(outputs_of)(mean, example)
        squares = jax.tree.map(
            lambda j, v: jnp.tensordot(jnp.square(j.astype(v.dtype)), v, axes=v.ndim),
            jacobian,
            variances,
        )
        return functools.reduce(jnp.add, jax.tree.leaves(squares))

    first = jax.tree.map(lambda x: x[0], inputs)
    outputs = jax.eval_shape(outputs_of, mean, first).size
    parameters = sum(leaf.size for leaf in jax.tree.leaves(mean))
    chunk = chunk_size or max(1, _JACOBIAN_ENTRIES // (outputs * parameters))
    return jax.lax.map(variance_of, inputs, batch_size=chunk)


def _check_batched(inputs: PyTree) -> None:
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(inputs)}
    if len(sizes) != 1 or () in sizes:
        got = f"leading axes {sorted(sizes)}"
        remedy = "give a single example a batch axis: x[None]"
        raise ValueError(complaint("inputs", "a common leading axis of examples", got, remedy))
