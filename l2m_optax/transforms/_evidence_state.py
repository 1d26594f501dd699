"""What `evidence_weight_decay` keeps: a second moment, and the prior that goes with it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from l2m_optax._support.types import Array, PyTree
from l2m_optax.moments._moment import SecondMoment
from l2m_optax.moments._prior import Prior
from l2m_optax.transforms._track import TrackSecondMomentState


class EvidenceRecord(NamedTuple):
    """The numbers of an `EvidenceWeightDecayState`, of whose attributes these are copies.

    It has no moment, and is small enough to be kept of every step: ``opt_state[0].record()``.

    Attributes:
      step: number of updates.
      loss: the running mean of the loss.
      log_evidence: in nats.
      effective_parameters: γ of each leaf.
      prior_precision: δ of each leaf.
      noise_variance: s²; `None` for other likelihoods than the Gaussian.
    """

    step: Array
    loss: Array
    log_evidence: Array
    effective_parameters: PyTree
    prior_precision: PyTree
    noise_variance: Array | None


class EvidenceWeightDecayState(NamedTuple):
    r"""State of `evidence_weight_decay`.

    Numbers are float32 of shape () unless another type is said. A tree of numbers has one for each
    leaf of the parameters.

    Attributes:
      count: number of updates, int32.
      moment: the `TrackSecondMomentState` of the gradients.
      prior_precision: δ, a tree of numbers; leaves of a group have the same.
      prior_mean: θ0, like the parameters; `None` for zero.
      data_scale: the factor from the second moment to F at unit noise, which N, B and c make.
      noise_variance: s² of Gaussian observations; `None` for other likelihoods.
      loss: the running mean of the loss, 0 as long as none was passed.
      losses: number of losses in this mean, int32: not each update need have one.
      effective_parameters: γ, a tree of numbers; that of the model is their sum.
      nats_per_parameter: $N L / \gamma$, L the mean negative log-likelihood of an observation: what
        is left of the loss for each parameter that the data determine; 0 before the first search,
        and as long as no loss was passed; `None` with a noise, which has no such scale.
      slopes: shape (4,): what `balance` is made of, one array because each takes time in an update.
        How fast the loss falls as the weights move away from θ0, the mean of
        $-g \cdot (\theta - \theta_0)$ at the searches of about 100 updates, and the mean of its
        squares; the factor from their variance to that of the mean; how fast the decay's part of
        the loss rises, $c\, s^2 \sum \delta \lVert \theta - \theta_0 \rVert^2 / N$.
      edge: a tree of booleans: whether the last search found no maximum between the bounds.
      log_evidence: of the data under the model, in nats; up to the log-likelihood, which is counted
        as 0, as long as no loss was passed.
      skipped: updates that were passed over because gradients or loss were NaN or infinite, int32.
    """

    count: Array  # type: ignore[assignment]  # hides tuple.count, as in optax
    moment: TrackSecondMomentState
    prior_precision: PyTree
    prior_mean: PyTree | None
    data_scale: Array
    noise_variance: Array | None
    loss: Array
    losses: Array
    effective_parameters: PyTree
    nats_per_parameter: Array | None
    slopes: Array
    edge: PyTree
    log_evidence: Array
    skipped: Array

    @property
    def balance(self) -> Array:
        """How fast the loss falls as the weights move away from θ0, over how fast the decay rises.

        It is 1 at a mode of the two. It is larger where the weights are still on their way out, and
        smaller where δ has risen and they are on their way back; NaN before the first search.
        """
        fall, _, _, rise = jnp.moveaxis(self.slopes, -1, 0)
        return fall / rise

    @property
    def balance_error(self) -> Array:
        """The standard error of `balance` over batches; NaN before the second search."""
        fall, square, ratio, rise = jnp.moveaxis(self.slopes, -1, 0)
        spread = jnp.maximum(square - jnp.square(fall), 0.0)
        return jnp.sqrt(spread * ratio) / rise

    def read_second_moment(self) -> SecondMoment:
        """The `SecondMoment` of the gradients: the state's own arrays, or in their eigenbases."""
        return self.moment.read_second_moment()

    def read_prior(self) -> Prior:
        """The prior that the evidence found, and the noise."""
        return Prior(self.prior_precision, self.prior_mean, self.noise_variance, self.data_scale)

    def record(self) -> EvidenceRecord:
        """What `plot.training` draws of this step."""
        return EvidenceRecord(
            self.count,
            self.loss,
            self.log_evidence,
            self.effective_parameters,
            self.prior_precision,
            self.noise_variance,
        )


def first_state(
    moment: TrackSecondMomentState,
    params: PyTree,
    start: float,
    prior_mean: PyTree | None,
    data_scale: Array,
    gaussian: bool,
) -> EvidenceWeightDecayState:
    """The state before the first update."""
    return EvidenceWeightDecayState(
        count=jnp.int32(0),
        moment=moment,
        prior_precision=jax.tree.map(lambda _: jnp.float32(start), params),
        prior_mean=prior_mean,
        data_scale=data_scale,
        noise_variance=jnp.float32(1.0) if gaussian else None,
        loss=jnp.float32(0.0),
        losses=jnp.int32(0),
        effective_parameters=jax.tree.map(lambda _: jnp.float32(0.0), params),
        nats_per_parameter=None if gaussian else jnp.float32(0.0),
        slopes=jnp.zeros(4, jnp.float32),
        edge=jax.tree.map(lambda _: jnp.zeros((), bool), params),
        log_evidence=jnp.float32(0.0),
        skipped=jnp.int32(0),
    )
