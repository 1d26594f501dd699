"""One compiled predictive, made once and called often."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from l2m_optax._support.checks import check_count, check_hashable, complaint, is_concrete
from l2m_optax._support.chunks import check_chunk_size
from l2m_optax._support.types import ApplyFn, Array, PyTree
from l2m_optax.posterior._posterior import Posterior
from l2m_optax.predict._kinds import KINDS, KindName
from l2m_optax.predict._outputs import check_call, check_independent, if_independent, influence

Shapes: TypeAlias = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Predictive:
    """A posterior ready to predict: call it. Made by `make_predictive`.

    It is a pytree of the posterior and its draws, so `jax.jit` takes it as an argument, and
    checkpoints and shardings reach its arrays; what `jax.jit` of it closes over becomes part of
    the program, as `jax.export` needs it.

    Attributes:
      posterior: the `Posterior`.
      draws: S stacked trees, `None` at fixed leaves: parameters (``"monte_carlo"``) or their
        deviations from the mean (``"linearized"``).
      apply_fn: the network.
      kind: ``"linearized"`` or ``"monte_carlo"``.
      summary: made of the outputs of the draws; `None` for these themselves.
      chunk_size: draws side by side.
    """

    posterior: Posterior
    draws: PyTree
    apply_fn: ApplyFn
    kind: KindName
    summary: Callable[[Array], Any] | None
    chunk_size: int | None
    _looked_at: set[Shapes] = dataclasses.field(
        default_factory=set, init=False, repr=False, compare=False
    )
    """The shapes of inputs whose examples were found not to depend on each other."""

    def __call__(self, inputs: PyTree) -> Any:
        """What `summary` makes of the outputs of S draws.

        Args:
          inputs: what `apply_fn` takes.

        Returns:
          The summary, or outputs with a leading axis of size S.

        Raises:
          TypeError: if `apply_fn` returns anything but one array of real numbers.
          ValueError: if one example's outputs depend on others, as in `monte_carlo`, which is
            looked at once for inputs of a shape. Inside `jax.jit`, where values cannot be looked
            at, the result is NaN instead.
        """
        shapes = tuple(jnp.shape(x) for x in jax.tree.leaves(inputs))
        if shapes in self._looked_at:
            return _predict(self, inputs)
        coupled = influence(self.apply_fn, self.posterior.mean, inputs)
        if not is_concrete(coupled):
            return _if_independent(_predict(self, inputs), coupled)
        check_independent(coupled)
        self._looked_at.add(shapes)
        return _predict(self, inputs)

    def outputs(self, inputs: PyTree) -> Array:
        """The outputs of each draw, with a leading axis of size S."""
        outputs_of = KINDS[self.kind].outputs
        return outputs_of(self.apply_fn, self.posterior, self.draws, inputs, self.chunk_size)


jax.tree_util.register_dataclass(
    Predictive,
    data_fields=["posterior", "draws"],
    meta_fields=["apply_fn", "kind", "summary", "chunk_size"],
)


def make_predictive(
    key: Array,
    apply_fn: ApplyFn,
    posterior: Posterior,
    *,
    kind: KindName = "linearized",
    num_samples: int = 32,
    summary: Callable[[Array], Any] | None = None,
    chunk_size: int | None = None,
) -> Predictive:
    """A compiled predictive: ``predictive(inputs)``.

    The S draws are made now and reused by every call, which then costs S forward passes (or one
    forward and S directional derivatives) and no random numbers; the same input gets the same
    answer. They take the memory of S trees of parameters. For fresh draws in each call use
    `linearized` or `monte_carlo`.

    The first call with inputs of a shape also looks at a few of them: whether one example's outputs
    depend on others, as with batch statistics in training mode, is refused.

    Compiled once for each `apply_fn` and `summary`: keep one function of each. New lambdas compile
    again, and a variable that a function closes over is read once only.

    Args:
      key: a key of `jax.random`.
      apply_fn: ``apply_fn(params, inputs) -> outputs``, one array of real numbers; hashable.
      posterior: a `Posterior`.
      kind: ``"linearized"`` or ``"monte_carlo"``, the functions of these names.
      num_samples: S, number of draws.
      summary: what to make of outputs of shape (S, N, ...): `classification`, or
        ``lambda f: l2m.regression(f, noise_variance)``; hashable. `None` for the outputs
        themselves.
      chunk_size: draws run side by side; `None` for all of them.

    Returns:
      A `Predictive`.

    Raises:
      ValueError: if `kind` is none of the two, or a number is below 1.
      TypeError: if a function is not hashable.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.ones((3, 2)))
      >>> posterior = l2m.laplace(jnp.zeros((3, 2)), moment, num_data=100, batch_size=10)
      >>> predictive = l2m.make_predictive(
      ...     jax.random.key(0), lambda w, x: x @ w, posterior, summary=l2m.classification
      ... )
      >>> predictive(jnp.ones((7, 3))).probs.shape
      (7, 2)
    """
    check_call(apply_fn, posterior)
    check_hashable("summary", summary)
    check_count("num_samples", num_samples)
    check_chunk_size(chunk_size)
    if kind not in KINDS:
        expected, remedy = f"one of {', '.join(KINDS)}", "pass one of these names"
        raise ValueError(complaint("kind", expected, repr(kind), remedy))
    draws = KINDS[kind].draws(key, posterior, num_samples)
    return Predictive(posterior, draws, apply_fn, kind, summary, chunk_size)


@jax.jit
def _predict(predictive: Predictive, inputs: PyTree) -> Any:
    outputs = predictive.outputs(inputs)
    return outputs if predictive.summary is None else predictive.summary(outputs)


def _if_independent(predicted: Any, coupled: Array) -> Any:
    """NaN in all real arrays of a prediction, if examples depend on each other."""

    def each(x: Array) -> Array:
        return if_independent(x, coupled) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(each, predicted)
