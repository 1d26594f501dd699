"""Inputs and targets, from arrays or from a loader: checked once, then used in sums."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import check_batched, complaint, is_concrete
from l2m_optax._support.loaders import as_arrays, pairs
from l2m_optax._support.types import ApplyFn, Array, ArrayLike, Likelihood, PyTree
from l2m_optax.posterior._posterior import Posterior
from l2m_optax.predict._integral import MOST_LOGITS, has_exact_integral
from l2m_optax.predict._outputs import check_independent, influence, shape_of_outputs
from l2m_optax.tuning._targets import are_labels, are_one_hot, check_targets


class Dataset:
    """All inputs and targets; every sum iterates over the loader again.

    Attributes:
      examples: number of inputs.
      size: number of observations, each of which has a log-likelihood.
      labels: whether the targets are class numbers.
      one_hot: whether the targets are real numbers that look like classes in one-hot code.
      output_shape: of the outputs for one input.

    Raises:
      ValueError: if there are no data, they do not fit the outputs, they can be read only once, or
        one example's outputs depend on others.
      TypeError: if a loader does not yield pairs.
      FloatingPointError: if the outputs of the trained parameters hold NaN.
    """

    def __init__(
        self,
        apply_fn: ApplyFn,
        posterior: Posterior,
        inputs: PyTree | Iterable[Any],
        targets: ArrayLike | None,
        likelihood: Likelihood | None = None,
    ) -> None:
        """Check everything once."""
        self._arrays = None if targets is None else (inputs, _array(targets))
        self._loader = inputs
        if targets is None:
            _check_loader(inputs)
        self.examples, self.size, labels, one_hot = 0, 0, set(), []
        for x, y in self._batches("checking"):
            check_batched(x)
            outputs = shape_of_outputs(apply_fn, posterior.mean, x)
            self.size += check_targets(outputs, y, likelihood)
            check_numbers(apply_fn, posterior, x, self.examples)
            if self.examples == 0:
                check_independent(influence(apply_fn, posterior.mean, x))
            self.examples += outputs.shape[0]
            self.output_shape = outputs.shape[1:]
            labels.add(are_labels(y))
            one_hot.append(are_one_hot(outputs, y))
        if len(labels) > 1:
            remedy = "give all batches targets of one dtype"
            got = "both, in different batches"
            raise ValueError(complaint("targets", "class numbers or real numbers", got, remedy))
        self.labels = labels.pop()
        self.one_hot = all(one_hot)

    def sum(self, function: Callable[[PyTree, Array], Any], description: str = "tuning") -> Any:
        """What `function` gives for the inputs and targets of every batch, added up."""
        parts = (function(x, y) for x, y in self._batches(description))
        return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), parts)

    def _batches(self, description: str) -> Iterator[tuple[PyTree, Array]]:
        if self._arrays is not None:
            yield self._arrays
            return
        for inputs, y in pairs(self._loader, "loader", description):
            yield inputs, jnp.asarray(y)


def check_objective(data: Dataset, kind: str, likelihood: Likelihood | None) -> None:
    """Refuse what the default likelihoods cannot judge.

    Raises:
      ValueError: for classes in one-hot code, and for exact covariances of several labels an input.
    """
    if likelihood is not None:
        return
    if data.one_hot:
        got = "real numbers that are one-hot"
        remedy = "pass targets.argmax(-1); for numbers that are 0 or 1 pass likelihood="
        raise ValueError(complaint("targets", "class numbers", got, remedy))
    if kind == "exact" and data.labels and not has_exact_integral(data.output_shape):
        got = f"outputs of shape (N, {', '.join(map(str, data.output_shape))})"
        remedy = "pass kind='linearized', which takes draws"
        expected = f"logits of shape (N, K), K up to {MOST_LOGITS}"
        raise ValueError(complaint("kind='exact'", expected, got, remedy))


def check_numbers(apply_fn: ApplyFn, posterior: Posterior, inputs: PyTree, offset: int = 0) -> None:
    """Refuse inputs at which the trained parameters themselves give NaN; traced ones pass.

    Raises:
      FloatingPointError: naming the first such input, counted from `offset`.
    """
    bad = _nan_rows(apply_fn, posterior.mean, inputs)
    if is_concrete(bad) and np.any(bad := np.asarray(bad)):
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


def _array(targets: ArrayLike) -> Array:
    return jnp.asarray(as_arrays(targets) if isinstance(targets, np.ndarray) else targets)


def _check_loader(inputs: Any) -> None:
    """Refuse what cannot be a loader of pairs, or not one for several passes."""
    if isinstance(inputs, jax.Array | np.ndarray | Mapping):
        got = f"none, with a {type(inputs).__name__} of inputs"
        remedy = "pass inputs and targets, or a loader of pairs alone"
        raise TypeError(complaint("targets", "an array", got, remedy))
    if isinstance(inputs, Iterator):
        remedy = "pass a list of batches, or a loader that starts anew whenever it is iterated"
        got = f"a {type(inputs).__name__}, which can be used once"
        raise ValueError(complaint("loader", "one for several passes", got, remedy))
