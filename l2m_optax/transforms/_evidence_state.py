"""What `evidence_weight_decay` keeps: a second moment, and the prior that goes with it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from l2m_optax._support.types import Array, PyTree
from l2m_optax.moments._moment import SecondMoment
from l2m_optax.moments._prior import Prior
from l2m_optax.transforms._track import TrackSecondMomentState


class EvidenceWeightDecayState(NamedTuple):
    """State of `evidence_weight_decay`.

    Numbers are float32 of shape () unless another type is said. A tree of numbers has one for each
    leaf of the parameters.

    Attributes:
      moment: the `TrackSecondMomentState` of the gradients.
      prior_precision: δ, a tree of numbers; leaves of a group have the same.
      prior_mean: θ0, like the parameters; `None` for zero.
      noise_variance: s² of Gaussian observations; `None` for other likelihoods.
      loss: the running mean of the loss, 0 as long as none was passed.
      effective_parameters: γ, a tree of numbers; that of the model is their sum.
      edge: a tree of booleans: whether the last search found no maximum between the bounds.
      log_evidence: of the data under the model, in nats; up to the log-likelihood, which is counted
        as 0, as long as no loss was passed.
      skipped: updates that were passed over because gradients or loss were NaN or infinite, int32.
    """

    moment: TrackSecondMomentState
    prior_precision: PyTree
    prior_mean: PyTree | None
    noise_variance: Array | None
    loss: Array
    effective_parameters: PyTree
    edge: PyTree
    log_evidence: Array
    skipped: Array

    def read_second_moment(self) -> SecondMoment:
        """The `SecondMoment` of the gradients, whose arrays are the state's own."""
        return self.moment.read_second_moment()

    def read_prior(self) -> Prior:
        """The prior that the evidence found, and the noise."""
        return Prior(self.prior_precision, self.prior_mean, self.noise_variance)


def first_state(
    moment: TrackSecondMomentState,
    params: PyTree,
    start: float,
    prior_mean: PyTree | None,
    gaussian: bool,
) -> EvidenceWeightDecayState:
    """The state before the first update."""
    return EvidenceWeightDecayState(
        moment=moment,
        prior_precision=jax.tree.map(lambda _: jnp.float32(start), params),
        prior_mean=prior_mean,
        noise_variance=jnp.float32(1.0) if gaussian else None,
        loss=jnp.float32(0.0),
        effective_parameters=jax.tree.map(lambda _: jnp.float32(0.0), params),
        edge=jax.tree.map(lambda _: jnp.zeros((), bool), params),
        log_evidence=jnp.float32(0.0),
        skipped=jnp.int32(0),
    )
