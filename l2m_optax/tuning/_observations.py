"""Inputs with what was observed there, from arrays or from a loader, checked once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import check_batched, complaint, is_concrete
from l2m_optax._support.loaders import as_arrays, batches
from l2m_optax._support.types import ApplyFn, Array, ArrayLike, Likelihood, PyTree
from l2m_optax.posterior._posterior import Posterior


class Observations:
    """A pass over the data is a sum over `pairs`; a loader is passed over several times.

    Attributes:
      size: number of examples.
      labels: whether the targets are classes.

    Raises:
      ValueError: if there are no data, they do not fit the outputs, or can be read only once.
      TypeError: if a loader does not yield pairs.
      FloatingPointError: if the outputs of the trained parameters hold NaN.
    """

    def __init__(
        self,
        apply_fn: ApplyFn,
        posterior: Posterior,
        inputs: PyTree | Iterable[Any],
        targets: ArrayLike | None,
        likelihood: Likelihood | None,
    ) -> None:
        """Look at all of it once."""
        self._whole = None if targets is None else (inputs, jnp.asarray(targets))
        self._loader = inputs
        if targets is None:
            _check_repeatable(inputs)
        self.size, kinds = 0, set()
        for x, y in self._pairs("checking"):
            check_targets(apply_fn, posterior, x, y, likelihood)
            check_numbers(apply_fn, posterior, x, self.size)
            kinds.add(jnp.issubdtype(jnp.result_type(y), jnp.integer))
            self.size += len(y)
        if len(kinds) > 1:
            remedy = "give all batches targets of one dtype"
            raise ValueError(
                complaint("targets", "labels or real numbers", "both, in turns", remedy)
            )
        self.labels = kinds.pop()

    def total(self, sums: Callable[[PyTree, Array], Any], description: str = "tuning") -> Any:
        """`sums` of every batch, added up."""
        parts = (sums(x, y) for x, y in self._pairs(description))
        return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), parts)

    def _pairs(self, description: str) -> Iterator[tuple[PyTree, Array]]:
        if self._whole is not None:
            yield self._whole
            return
        for batch in batches(self._loader, "loader", description):
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                remedy = "let the loader yield both: [(x[i], y[i]) for i in order]"
                got = f"a {type(batch).__name__}"
                raise TypeError(complaint("loader", "pairs (inputs, targets)", got, remedy))
            inputs, y = as_arrays(tuple(batch))
            check_batched(inputs)
            yield inputs, jnp.asarray(y)


def check_targets(
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    targets: ArrayLike,
    likelihood: Likelihood | None = None,
) -> None:
    """Labels must index the outputs; real targets must have their shape, or suit `likelihood`.

    Raises:
      ValueError: if they do not, or are none.
    """
    outputs = jax.eval_shape(apply_fn, posterior.mean, inputs)
    shape = outputs.shape
    if likelihood is not None:
        _check_likelihood(likelihood, outputs, targets)
        return
    dtype, got = jnp.result_type(targets), jnp.shape(targets)
    labels = jnp.issubdtype(dtype, jnp.integer)
    expected = shape[:-1] if labels else shape
    if got != expected or math.prod(got) == 0 or (labels and len(shape) != 2):
        found = f"{dtype} of shape {got}, for outputs of shape {shape}"
        remedy = "pass integer labels of shape (N,), or real targets in the shape of the outputs"
        raise ValueError(complaint("targets", f"a non-empty {expected}", found, remedy))
    if not is_concrete(targets):
        return
    values = np.asarray(targets)
    if labels and (values.min() < 0 or values.max() >= shape[-1]):
        remedy = "number the classes from 0, as the outputs do"
        found = f"{values.min()} to {values.max()}"
        raise ValueError(complaint("targets", f"labels from 0 to {shape[-1] - 1}", found, remedy))
    if not labels and np.any(np.isnan(values)):
        found = f"{np.sum(np.isnan(values))} NaN of {values.size}"
        raise ValueError(complaint("targets", "numbers", found, "leave out what was not measured"))


def check_numbers(apply_fn: ApplyFn, posterior: Posterior, inputs: PyTree, offset: int = 0) -> None:
    """Refuse inputs at which the trained parameters themselves give NaN; traced ones pass.

    Raises:
      FloatingPointError: naming the first such input, counted from `offset`.
    """
    bad = _nan_rows(apply_fn, posterior.mean, inputs)
    if is_concrete(bad) and np.any(bad):
        first, number = int(np.argmax(bad)) + offset, int(np.sum(bad))
        got = f"NaN for input {first}" + (f" and {number - 1} more" if number > 1 else "")
        remedy = "look for NaN in this input and in the params"
        raise FloatingPointError(
            complaint("apply_fn(posterior.mean, inputs)", "numbers", got, remedy)
        )


@functools.partial(jax.jit, static_argnums=0)
def _nan_rows(apply_fn: ApplyFn, params: PyTree, inputs: PyTree) -> Array:
    outputs = apply_fn(params, inputs)
    return jnp.any(jnp.isnan(outputs), axis=tuple(range(1, outputs.ndim)))


def _check_likelihood(likelihood: Likelihood, outputs: Any, targets: ArrayLike) -> None:
    values = jax.eval_shape(likelihood, outputs, jnp.asarray(targets))
    number = outputs.shape[:1]
    if math.prod(jnp.shape(targets)) == 0 or values.shape[:1] != number:
        got = f"{values.shape}, for targets of shape {jnp.shape(targets)}"
        remedy = "return one log-likelihood for each observation, and pass at least one"
        raise ValueError(complaint("likelihood", f"a leading axis {number}", got, remedy))


def _check_repeatable(loader: Any) -> None:
    if isinstance(loader, Iterator):
        remedy = "pass a list of batches, or a loader that starts anew whenever it is iterated"
        got = f"a {type(loader).__name__}, which can be used once"
        raise ValueError(complaint("loader", "one for several passes", got, remedy))
