"""The exact variances and covariances of the linearised outputs, J Σ Jᵀ, without a draw."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import (
    check_batched,
    complaint,
    is_concrete,
)
from l2m_optax._support.chunks import check_chunk_size, equal_parts, over_chunks, side_by_side
from l2m_optax._support.types import ApplyFn, Array, PyTree
from l2m_optax.jacobians._reach import Reach, Reached, identity
from l2m_optax.posterior._posterior import Posterior, free_mean, free_variance
from l2m_optax.predict._jacobian import (
    Jacobian,
    Linearised,
    any_reach,
    at,
    explained,
    jacobian_of,
    separate_reach,
)
from l2m_optax.predict._outputs import check_call, check_independent, coupling, if_independent


def output_variance(
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    *,
    chunk_size: int | None = None,
    outputs: Array | None = None,
) -> Array:
    r"""The diagonal of $J(x) \Sigma J(x)^\top$, exactly, for every input and output.

    It is what the variance of `linearized` over infinitely many draws would be:
    $\sum_p J_{kp}(x)^2\, T / (F_p + \delta_p)$ for output $k$. Layers that meet their weights once
    an example (dense layers, embeddings) need no Jacobian: with layer input a and cotangent d of
    its output, $\sum_{ij} (a_i d_{kj})^2 \sigma_{ij}^2 = \sum_j d_{kj}^2 (a^2 \sigma^2)_j$. The
    last layer needs no cotangents either, at any position of a sequence: its part of output k is
    $(a^2 \sigma^2)_k$. Of other leaves the gradient of each example and output is formed, a chunk
    at a time; `predict.tabulate` says of which.

    Where the second moment of a leaf has a basis, $\sigma^2$ is along it, and a and d are rotated:
    $a\,\text{left}$ and $d\,\text{right}$ stand in their places, for dense layers, convolutions and
    embeddings whose table is not rotated on the left. Of other leaves the gradient is rotated.

    Args:
      apply_fn: ``apply_fn(params, inputs) -> outputs``, in which each example's outputs depend on
        that example only; hashable.
      posterior: a `Posterior`.
      inputs: a tree of arrays with a leading axis of N examples.
      chunk_size: examples side by side; by default as many as keep cotangents under 32 MiB. Where
        one example's do not fit, its outputs are taken in turns.
      outputs: indices of the outputs that are wanted, of shape (k,) for all inputs or (N, k) for
        each; `apply_fn` then has outputs of shape (N, K). All of them by default.

    Returns:
      Variances in the shape of the outputs, or (N, k); float32 at least.

    Raises:
      ValueError: if `inputs` have no common leading axis, `chunk_size` is below 1, `outputs` are
        out of range, or one example's outputs depend on others (batch statistics in training
        mode). Inside `jax.jit`, where values cannot be looked at, the result is NaN instead.
      TypeError: if `apply_fn` is not hashable or returns no single array, or `outputs` are no
        integers.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.ones((3, 2)))
      >>> posterior = l2m.laplace(jnp.zeros((3, 2)), moment, num_data=2, batch_size=1)
      >>> l2m.output_variance(lambda w, x: x @ w, posterior, jnp.ones((1, 3)))
      Array([[1., 1.]], dtype=float32)
    """
    return _over_inputs(variances, apply_fn, posterior, inputs, outputs, chunk_size)


def output_covariance(
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    *,
    chunk_size: int | None = None,
    outputs: Array | None = None,
) -> Array:
    r"""The block $J(x) \Sigma J(x)^\top$ of every input, exactly: its diagonal and the rest.

    Args:
      apply_fn: ``apply_fn(params, inputs) -> outputs``; hashable.
      posterior: a `Posterior`.
      inputs: a tree of arrays with a leading axis of N examples.
      chunk_size: as in `output_variance`.
      outputs: as in `output_variance`.

    Returns:
      Covariances of shape (N, K, K), or (N, k, k); for outputs of more axes these stand twice.
      Float32 at least.

    Raises:
      ValueError: as `output_variance`.
      TypeError: as `output_variance`.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.ones((3, 1)))
      >>> posterior = l2m.laplace(jnp.zeros((3, 1)), moment, num_data=2, batch_size=1)
      >>> f = lambda w, x: x @ w @ jnp.array([[1.0, 2.0]])
      >>> l2m.output_covariance(f, posterior, jnp.ones((1, 3)))
      Array([[[1., 2.],
              [2., 4.]]], dtype=float32)
    """
    return _over_inputs(covariances, apply_fn, posterior, inputs, outputs, chunk_size)


class Reduce(NamedTuple):
    """What is made of the Jacobian at an example.

    Attributes:
      of_example: ``of_example(linearised, chosen, size, width)``: a number, or a row of them, for
        each of the chosen outputs, or of all `size`, of which `width` are taken side by side; or a
        tree of these.
      spares: which leaves need no cotangents for it.
      of_pairs: whether it has a row for each output, even where no leaf needs cotangents.
    """

    of_example: Callable[[Linearised, Array | None, int, int], PyTree]
    spares: Callable[[Reach], bool]
    of_pairs: bool


def _variance(linearised: Linearised, chosen: Array | None, size: int, width: int) -> Array:
    factors_of, weights, *_ = linearised

    def pulled(unit: Array) -> Array:
        parts = zip(factors_of(unit), weights, strict=True)
        # A product and a sum become one loop; `vdot` does not where r is a product itself.
        return _sum([jnp.sum(jnp.square(r) * s) for r, s in parts])

    through = [_over_units(pulled, chosen, size, width)] if weights else []
    return _sum([*through, *(part.variance() for part in _reached(linearised, chosen))])


def _covariance(linearised: Linearised, chosen: Array | None, size: int, width: int) -> Array:
    factors_of, weights, *_ = linearised

    def pulled(r: Array, s: Array) -> Array:
        flat = r.reshape(len(r), -1)
        return (flat * jnp.ravel(s)[None, :]) @ flat.T

    factors = _over_units(factors_of, chosen, size, width) if weights else []
    reached = (part.covariance() for part in _reached(linearised, chosen))
    return _sum([*map(pulled, factors, weights), *reached])


def _over_units(
    f: Callable[[Array], PyTree], chosen: Array | None, size: int, width: int
) -> PyTree:
    """A function of the unit vector of each output; of all, they are the same for all examples."""
    if chosen is None and width >= size:
        return over_chunks(f, identity(size), width)
    indices = jnp.arange(size) if chosen is None else chosen
    return over_chunks(lambda k: f(jax.nn.one_hot(k, size, dtype=bool)), indices, width)


def _reached(linearised: Linearised, chosen: Array | None) -> Sequence[Reached]:
    return [part if chosen is None else part.at(chosen) for part in linearised.reached]


def _sum(parts: Sequence[Array]) -> Array:
    return functools.reduce(jnp.add, parts)


variances = Reduce(_variance, any_reach, of_pairs=False)


def _covariance_and_outputs(
    linearised: Linearised, chosen: Array | None, size: int, width: int
) -> tuple[Array, Array]:
    return _covariance(linearised, chosen, size, width), linearised.outputs


covariances = Reduce(_covariance, separate_reach, of_pairs=True)
covariances_and_outputs = Reduce(_covariance_and_outputs, separate_reach, of_pairs=True)


def _over_inputs(
    reduce: Reduce,
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    outputs: Array | None,
    chunk_size: int | None,
) -> Array:
    check_call(apply_fn, posterior)
    check_batched(inputs)
    check_chunk_size(chunk_size)
    if outputs is not None and not jnp.issubdtype(jnp.result_type(outputs), jnp.integer):
        remedy = "pass indices, such as those of jax.lax.top_k"
        raise TypeError(complaint("outputs", "integers", str(jnp.result_type(outputs)), remedy))
    with explained():
        reduced, size, coupled = _compiled(reduce, apply_fn, posterior, inputs, outputs, chunk_size)
    check_independent(coupled)
    _check_in_range(outputs, size)
    return reduced


@functools.partial(jax.jit, static_argnums=(0, 1, 5))
def _compiled(
    reduce: Reduce,
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    outputs: Array | None,
    chunk_size: int | None,
) -> tuple[Array, int, Array]:
    jacobian = jacobian_of(apply_fn, posterior, inputs, reduce.spares)
    number, size = len(jax.tree.leaves(inputs)[0]), math.prod(jacobian.shape)
    chosen = None if outputs is None else _chosen(jnp.asarray(outputs), jacobian.shape, number)
    reduced: Array = over_examples(reduce, jacobian, posterior, inputs, chosen, chunk_size)
    if chosen is not None:
        reduced = _in_range(reduced, (chosen >= 0) & (chosen < size))
    shape = jacobian.shape if chosen is None else chosen.shape[1:]
    coupled = coupling(apply_fn, posterior, inputs)
    reduced = reduced.reshape(number, *shape * (reduced.ndim - 1))
    return if_independent(reduced, coupled), size, coupled


def over_examples(
    reduce: Reduce,
    jacobian: Jacobian,
    posterior: Posterior,
    inputs: PyTree,
    chosen: Array | None,
    chunk_size: int | None,
) -> PyTree:
    """What is made of the Jacobian at each input, for some outputs of each, (N, k), or for all."""
    number, size = len(jax.tree.leaves(inputs)[0]), math.prod(jacobian.shape)
    wanted = size if chosen is None else chosen.shape[1]
    rows = wanted if jacobian.pulled or reduce.of_pairs else 1
    chunk, width = _chunks(jacobian.entries, rows, number, chunk_size)
    leaves, along = (jax.tree.leaves(f(posterior)) for f in (free_mean, free_variance))

    def one(example_and_chosen: tuple[PyTree, Array | None]) -> PyTree:
        example, chosen = example_and_chosen
        return reduce.of_example(at(jacobian, leaves, along, example), chosen, size, width)

    return over_chunks(one, (inputs, chosen), chunk)


def _in_range(reduced: Array, inside: Array) -> Array:
    """NaN for an index out of range, which cannot be refused under `jit`."""
    if reduced.ndim > inside.ndim:
        inside = inside[:, :, None] & inside[:, None, :]
    return jnp.where(inside, reduced, jnp.nan)


def _chunks(entries: int, outputs: int, inputs: int, chunk_size: int | None) -> tuple[int, int]:
    """How many examples, and how many outputs of each, are taken side by side."""
    if chunk_size is None:
        chunk_size = equal_parts(entries * outputs, inputs)
    return chunk_size, side_by_side(entries * chunk_size, outputs)


def _chosen(outputs: Array, shape: tuple[int, ...], number: int) -> Array:
    """Indices of the wanted outputs of each input."""
    if len(shape) != 1:
        remedy = "leave `outputs` out, or ravel the outputs in apply_fn"
        got = f"outputs of shape {(number, *shape)}"
        raise ValueError(complaint("apply_fn", "outputs of shape (N, K)", got, remedy))
    if outputs.ndim not in (1, 2) or (outputs.ndim == 2 and len(outputs) != number):
        remedy = "pass the same indices for all inputs, or a row for each"
        expected = f"shape (k,) or ({number}, k)"
        raise ValueError(complaint("outputs", expected, str(outputs.shape), remedy))
    return jnp.broadcast_to(outputs, (number, outputs.shape[-1]))


def _check_in_range(outputs: Array | None, size: int) -> None:
    if outputs is None or not is_concrete(outputs):
        return
    indices = np.asarray(outputs)
    if np.any((indices < 0) | (indices >= size)):
        got = f"{indices.min()} to {indices.max()}"
        expected = f"indices from 0 to {int(size) - 1}"
        raise ValueError(complaint("outputs", expected, got, "count outputs from 0"))
