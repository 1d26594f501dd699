"""The losses of a posterior on observed data, one for each way of predicting.

A *loss* here is a function of log T that returns a sum over a batch. The outputs and their spread
at T = 1 do not depend on T, so they are computed once, before the loss is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from l2m_optax._support.checks import complaint
from l2m_optax._support.types import ApplyFn, Array, Likelihood, PyTree
from l2m_optax.likelihoods import categorical, gaussian
from l2m_optax.posterior._posterior import Posterior
from l2m_optax.predict._integral import offsets
from l2m_optax.predict._kinds import KINDS, Kind
from l2m_optax.predict._variance import output_covariance, output_variance

Loss: TypeAlias = Callable[[Array], Array]


class Objective(NamedTuple):
    """What is minimised; hashable, so that it can be a static argument of `jit`.

    Attributes:
      apply_fn: the network.
      name: "nll", the log of the mean over draws, or "elbo", the mean of the log.
      kind: how to predict, see `tune`.
      labels: whether the targets are classes.
      likelihood: a function, or `None` for the default of such targets.
      num_samples: number of draws.
      chunk_size: draws, or without draws inputs, that are computed at a time.
    """

    apply_fn: ApplyFn
    name: str
    kind: str
    labels: bool
    likelihood: Likelihood | None
    num_samples: int
    chunk_size: int | None

    def resolved(self) -> Objective:
        """The same objective, with an exact way of predicting in place of draws if there is one.

        Raises:
          ValueError: if the name or the kind is unknown, or there is no exact way.
        """
        _check_one_of("objective", self.name, ("nll", "elbo"))
        _check_one_of("kind", self.kind, tuple(_WAYS))
        gaussian_by_default = self.likelihood is None and not self.labels
        if gaussian_by_default:
            return self._replace(kind=_WAYS[self.kind].exactly)
        of_labels = self.labels and self.name == "nll" and self.likelihood is None
        if self.smooth and not of_labels:
            got = f"objective={self.name!r} of " + ("a likelihood" if self.likelihood else "labels")
            remedy = "pass kind='linearized', which takes draws"
            raise ValueError(
                complaint(f"kind={self.kind!r}", "an objective without draws", got, remedy)
            )
        return self

    @property
    def smooth(self) -> bool:
        """Whether there are no draws, so that the loss has derivatives that help."""
        return _WAYS[self.kind].smooth

    def loss(self, posterior: Posterior, key: Array, inputs: PyTree, y: Array) -> Loss:
        """The loss of a batch; the posterior's own temperature is not used."""
        unit = posterior._replace(temperature=jnp.ones(()))
        return _WAYS[self.kind].loss(self, unit, key, inputs, y)


def _with_draws(kind: Kind) -> OfObjective:
    """A function that makes losses from the outputs of draws."""

    def of_objective(
        objective: Objective, posterior: Posterior, key: Array, inputs: PyTree, y: Array
    ) -> Loss:
        outputs_at = kind.of_temperature(
            key,
            objective.apply_fn,
            posterior,
            inputs,
            objective.num_samples,
            objective.chunk_size,
        )
        return lambda log_temperature: _of_draws(
            objective, posterior, outputs_at(log_temperature), y
        )

    return of_objective


def _exact(
    objective: Objective, posterior: Posterior, key: Array, inputs: PyTree, y: Array
) -> Loss:
    del key  # no draws
    apply_fn, chunk_size = objective.apply_fn, objective.chunk_size
    outputs = apply_fn(posterior.mean, inputs)
    if objective.labels:
        moves = offsets(output_covariance(apply_fn, posterior, inputs, chunk_size=chunk_size))
        return lambda log_temperature: _of_draws(
            objective, posterior, outputs[None] + jnp.exp(0.5 * log_temperature) * moves, y
        )
    epistemic = output_variance(apply_fn, posterior, inputs, chunk_size=chunk_size)
    noise = posterior.noise_variance

    def of_numbers(log_temperature: Array) -> Array:
        spread = jnp.exp(log_temperature) * epistemic
        if objective.name == "nll":
            return -jnp.sum(gaussian(outputs, y, noise + spread))
        return -jnp.sum(gaussian(outputs, y, noise) - 0.5 * spread / noise)

    return of_numbers


OfObjective: TypeAlias = Callable[[Objective, Posterior, Array, PyTree, Array], Loss]


class _Way(NamedTuple):
    """How one `kind` predicts.

    Attributes:
      loss: makes the loss of an objective.
      exactly: the kind that does the same without draws for Gaussian targets; else its own name.
      smooth: whether it takes no draws.
    """

    loss: OfObjective
    exactly: str
    smooth: bool = False


_WAYS = {
    "linearized": _Way(_with_draws(KINDS["linearized"]), "exact"),
    "monte_carlo": _Way(_with_draws(KINDS["monte_carlo"]), "monte_carlo"),
    "exact": _Way(_exact, "exact", smooth=True),
}


def _of_draws(objective: Objective, posterior: Posterior, outputs: Array, y: Array) -> Array:
    """The sum over observations, from outputs of shape (S, N, ...) and targets."""
    if objective.likelihood is not None:
        log_probs = objective.likelihood(outputs, y)
    elif objective.labels:
        log_probs = categorical(outputs, y)
    else:
        log_probs = gaussian(outputs, y, posterior.noise_variance)
    if objective.name == "elbo":
        return -jnp.sum(jnp.mean(log_probs, axis=0))
    return -jnp.sum(mean_over_draws(log_probs))


def mean_over_draws(log_probs: Array) -> Array:
    """The logarithm of the mean probability over the first axis."""
    mean = jax.nn.logsumexp(log_probs, axis=0) - math.log(len(log_probs))
    # XLA on CPU can lose a NaN that is a constant of the network in an exp fused with it.
    return jnp.where(jnp.any(jnp.isnan(log_probs), axis=0), jnp.nan, mean)


def _check_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        remedy = "pass one of these names"
        raise ValueError(complaint(name, f"one of {', '.join(allowed)}", repr(value), remedy))
