"""One compiled predictive, made once and called often."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax

from l2m_optax._support.checks import check_count, check_hashable, complaint
from l2m_optax._support.trees import fill, free
from l2m_optax._support.types import ApplyFn, Array, PyTree
from l2m_optax.posterior._posterior import Posterior, free_mean
from l2m_optax.posterior._drawing import deviation, draw, keys_and_signs
from l2m_optax.predict._draws import monte_carlo, over_draws
from l2m_optax.predict._linearized import deviations_along, linearized

Kind: TypeAlias = Literal["linearized", "monte_carlo"]


@dataclasses.dataclass(frozen=True)
class Predictive:
    """A posterior ready to predict: call it. Made by `make_predictive`.

    It is a pytree of the posterior and its draws, so `jax.jit` takes it as an argument, and
    checkpoints and shardings reach its arrays; what `jax.jit` of it closes over becomes part of
    the program, as `jax.export` needs it.

    Attributes:
      posterior: the `Posterior`.
      draws: S stacked trees, `None` at points: parameters (``"monte_carlo"``) or their deviations
        from the mean (``"linearized"``); `None` where each call brings its key.
      apply_fn: the network.
      kind: ``"linearized"`` or ``"monte_carlo"``.
      num_samples: S.
      summary: made of the outputs of the draws; `None` for these themselves.
      chunk_size: draws side by side.
    """

    posterior: Posterior
    draws: PyTree | None
    apply_fn: ApplyFn
    kind: Kind
    num_samples: int
    summary: Callable[[Array], Any] | None
    chunk_size: int | None

    def __call__(self, inputs: PyTree, *, key: Array | None = None) -> Any:
        """What `summary` makes of the outputs of S draws.

        Args:
          inputs: what `apply_fn` takes.
          key: for fresh draws, where the predictive was made without a key.

        Returns:
          The summary, or outputs with a leading axis of size S.

        Raises:
          ValueError: if draws were made once and a key is passed, or neither.
        """
        if (self.draws is None) == (key is None):
            expected, got = "no key: the draws were made once", "a key"
            if key is None:
                expected, got = "a key for the draws of this call", "none"
            remedy = "give make_predictive a key for draws made once, or each call its own"
            raise ValueError(complaint("key", expected, got, remedy))
        return _predict(self, inputs, key)

    def outputs(self, inputs: PyTree, key: Array | None) -> Array:
        """The outputs of each draw, with a leading axis of size S."""
        if key is not None:
            function = linearized if self.kind == "linearized" else monte_carlo
            return function(
                key,
                self.apply_fn,
                self.posterior,
                inputs,
                num_samples=self.num_samples,
                chunk_size=self.chunk_size,
            )
        if self.kind == "linearized":
            outputs, deviations = deviations_along(
                self.draws, self.apply_fn, self.posterior, inputs, self.chunk_size
            )
            return outputs + deviations

        def one(moved: PyTree) -> Array:
            return self.apply_fn(fill(moved, self.posterior.mean), inputs)

        return over_draws(one, self.draws, self.chunk_size)


jax.tree_util.register_dataclass(
    Predictive,
    data_fields=["posterior", "draws"],
    meta_fields=["apply_fn", "kind", "num_samples", "summary", "chunk_size"],
)


def make_predictive(
    apply_fn: ApplyFn,
    posterior: Posterior,
    *,
    kind: Kind = "linearized",
    num_samples: int = 32,
    key: Array | None = None,
    summary: Callable[[Array], Any] | None = None,
    chunk_size: int | None = None,
) -> Predictive:
    """A compiled predictive: ``predictive(inputs)``.

    With a key the S draws are made now and reused by every call, which then costs S forward passes
    (or one forward and S directional derivatives) and no random numbers; the same input gets the
    same answer. They take the memory of S trees of parameters. Without one, each call brings its
    own: ``predictive(inputs, key=key)``.

    Args:
      apply_fn: ``apply_fn(params, inputs) -> outputs``; hashable.
      posterior: a `Posterior`.
      kind: ``"linearized"`` or ``"monte_carlo"``, the functions of these names.
      num_samples: S, number of draws.
      key: a key of `jax.random` for draws made once.
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
      ...     lambda w, x: x @ w, posterior, key=jax.random.key(0), summary=l2m.classification
      ... )
      >>> predictive(jnp.ones((7, 3))).probs.shape
      (7, 2)
    """
    check_hashable("apply_fn", apply_fn)
    check_hashable("summary", summary)
    check_count("num_samples", num_samples)
    if chunk_size is not None:
        check_count("chunk_size", chunk_size)
    if kind not in ("linearized", "monte_carlo"):
        remedy = "pass one of these names"
        raise ValueError(complaint("kind", "linearized or monte_carlo", repr(kind), remedy))
    draws = None if key is None else _DRAWS[kind](key, posterior, num_samples)
    return Predictive(posterior, draws, apply_fn, kind, num_samples, summary, chunk_size)


@functools.partial(jax.jit, static_argnums=2)
def _deviations(key: Array, posterior: Posterior, num_samples: int) -> PyTree:
    """S draws less the mean, in the parameters' dtype; `None` at points."""
    mean = free_mean(posterior)

    def one(key: Array) -> PyTree:
        return jax.tree.map(lambda d, m: d.astype(m.dtype), deviation(key, posterior), mean)

    return jax.vmap(one)(keys_and_signs(key, num_samples)[0])


@functools.partial(jax.jit, static_argnums=2)
def _moved(key: Array, posterior: Posterior, num_samples: int) -> PyTree:
    """S draws; `None` at points, which are not repeated."""

    def one(key: Array) -> PyTree:
        return free(draw(key, posterior), posterior.second_moment.nu)

    return jax.vmap(one)(keys_and_signs(key, num_samples)[0])


_DRAWS = {"linearized": _deviations, "monte_carlo": _moved}


@jax.jit
def _predict(predictive: Predictive, inputs: PyTree, key: Array | None) -> Any:
    outputs = predictive.outputs(inputs, key)
    return outputs if predictive.summary is None else predictive.summary(outputs)
