"""One search for the prior precision, and the noise, that the evidence asks for."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2m_optax._support.checks import is_positive
from l2m_optax._support.groups import Labels, group, sum_by_group
from l2m_optax._support.trees import statistics_dtype, subtrees, total
from l2m_optax._support.types import Array, ArrayLike, PyTree
from l2m_optax.moments._evidence import OVERCOUNT, determined, penalty
from l2m_optax.moments._moment import bias_weight, debiased, mean_variance_ratio
from l2m_optax.transforms._evidence_state import EvidenceWeightDecayState

BOUNDS = (1e-4, 1e6)
"""Prior precisions are sought between these."""
WARM_UP = 100
"""Updates before the first search: early gradients are those of a network that knows nothing."""
MEMORY = 0.99
"""How much of the logarithm of δ, or of s², and of a slope, one update leaves."""
LEAST_LEFT = 0.1
"""The share of the data that is left for the noise, however many parameters they determine."""


class Model(NamedTuple):
    """What the evidence is the evidence of.

    Attributes:
      num_data: N.
      loss_scale: c for unit noise.
      overcount: what F is divided by; `None` for `OVERCOUNT` at leaves without products.
      groups: labels of the leaves that share a prior precision.
      every: updates between two searches.
    """

    num_data: int
    loss_scale: float
    overcount: float | None
    groups: Labels
    every: int


def search(
    model: Model, state: EvidenceWeightDecayState, updates: PyTree, params: PyTree
) -> EvidenceWeightDecayState:
    r"""The state after one step of δ to $\gamma / \lVert\theta-\theta_0\rVert^2$ and of s².

    In log δ the step is one of the fixed-point iteration, damped. Its map has a slope between -1
    and 0, so that the damped iteration converges from anywhere, and does not oscillate.
    """
    nu = debiased(state.read_second_moment())  # once, for a structure decomposes matrices
    gammas = effective_parameters(model, state, nu)
    moved = deviation(params, state.prior_mean)
    squares = jax.tree.map(lambda d: jnp.sum(jnp.square(d)), moved)
    slopes = _slopes(model, state, updates, squares, moved)
    of_leaf = group(params, state.prior_precision, model.groups).of_leaf
    gamma, norms = (sum_by_group(jax.tree.leaves(tree), of_leaf) for tree in (gammas, squares))
    found = is_positive(gamma) & is_positive(norms)
    wanted = gamma / jnp.where(found, norms, 1.0)
    bounded = jnp.where(found, jnp.clip(wanted, *BOUNDS), 0.0)  # 0 is no maximum
    treedef: Any = jax.tree.structure(state.prior_precision)
    edge, target = (
        treedef.unflatten([of_group[g] for g in of_leaf])
        for of_group in ((bounded != wanted) | ~found, bounded)
    )
    state = state._replace(
        prior_precision=jax.tree.map(
            lambda old, new: _toward(old, new, model.every), state.prior_precision, target
        ),
        edge=edge,
        slopes=slopes,
        noise_variance=_noise(model, state, jnp.sum(gamma)),
    )
    gammas = effective_parameters(model, state, nu)
    return state._replace(
        effective_parameters=gammas,
        nats_per_parameter=_nats_per_parameter(model, state, total(gammas)),
        log_evidence=_log_evidence(model, state, nu, moved),
    )


def _slopes(
    model: Model, state: EvidenceWeightDecayState, updates: PyTree, squares: PyTree, moved: PyTree
) -> Array:
    """`slopes` with one more batch in the means."""
    kept, first = MEMORY**model.every, -(-WARM_UP // model.every)
    searches = state.count // model.every - first + 1
    weight = bias_weight(kept, searches)
    share = (1.0 - kept) / weight
    new = -total(jax.tree.map(lambda g, d: jnp.sum(g * d), updates, moved))
    mean = state.slopes[0] + share * (new - state.slopes[0])
    square = state.slopes[1] + share * (jnp.square(new) - state.slopes[1])
    # From the spread about the mean to the variance of the mean. One batch has no spread.
    ratio = mean_variance_ratio(kept) * (2.0 - weight) / weight
    ratio = jnp.where(searches > 1, ratio / (1.0 - ratio), jnp.inf)
    held = jax.tree.map(jnp.multiply, state.prior_precision, squares)
    slopes = [mean, square, ratio, decay_weight(model, state) * total(held)]
    return jnp.stack(slopes).astype(state.slopes.dtype)


def decay_weight(model: Model, state: EvidenceWeightDecayState) -> ArrayLike:
    r"""What δ is multiplied by in the decay, $c\, s^2 / N$."""
    noise = 1.0 if state.noise_variance is None else state.noise_variance
    return model.loss_scale * noise / model.num_data


def deviation(params: PyTree, prior_mean: PyTree | None) -> PyTree:
    """The parameters less the prior's mean, θ - θ0, in float32 at least."""
    params = jax.tree.map(lambda p: jnp.asarray(p, statistics_dtype(p)), params)
    return params if prior_mean is None else jax.tree.map(jnp.subtract, params, prior_mean)


def residual(model: Model, loss: Array) -> Array:
    r"""The mean squared residual, where the loss is $c / 2$ times it."""
    return 2.0 * loss / model.loss_scale


def effective_parameters(model: Model, state: EvidenceWeightDecayState, nu: PyTree) -> PyTree:
    """γ of each leaf, from the debiased moment."""

    def gamma(f: Array, delta: Array) -> Array:
        return jnp.sum(determined(f, delta)).astype(delta.dtype)

    return jax.tree.map(gamma, _data_precision(model, state, nu), state.prior_precision)


def _data_precision(model: Model, state: EvidenceWeightDecayState, nu: PyTree) -> PyTree:
    """F, divided by the overcount."""
    noise = 1.0 if state.noise_variance is None else state.noise_variance
    scale = state.data_scale / jnp.square(noise)
    return jax.tree.map(lambda mean, a: scale / a * mean, nu, _overcounts(model, state, nu))


def _overcounts(model: Model, state: EvidenceWeightDecayState, nu: PyTree) -> PyTree:
    """What F of each leaf is divided by."""
    factors = state.moment.factors
    if model.overcount is not None or factors is None:
        one = OVERCOUNT if model.overcount is None else model.overcount
        return jax.tree.map(lambda _: one, nu)
    treedef: Any = jax.tree.structure(nu)
    return treedef.unflatten([1.0 if kept else OVERCOUNT for kept in subtrees(factors, nu)])


def _toward(old: Array, wanted: Array, updates: int) -> Array:
    """`old` after some updates on its way to `wanted`, in the logarithm; where that is one."""
    is_one, kept = is_positive(wanted), MEMORY**updates
    moved = jnp.exp(kept * jnp.log(old) + (1.0 - kept) * jnp.log(jnp.where(is_one, wanted, old)))
    return jnp.where(is_one, moved, old).astype(old.dtype)


def _noise(model: Model, state: EvidenceWeightDecayState, gamma: Array) -> Array | None:
    """The noise variance after a step towards RSS / (N - γ)."""
    if state.noise_variance is None:
        return None
    left = jnp.maximum(1.0 - gamma / model.num_data, LEAST_LEFT)
    return _toward(state.noise_variance, residual(model, state.loss) / left, model.every)


def _log_evidence(
    model: Model, state: EvidenceWeightDecayState, nu: PyTree, moved: PyTree
) -> Array:
    """The log-likelihood of all data, by the running mean of the loss, less the penalties."""
    data = _data_precision(model, state, nu)
    penalties = jax.tree.map(penalty, data, state.prior_precision, moved)
    likelihood = -model.num_data * _mean_nll(model, state)
    return (likelihood - total(penalties)).astype(state.log_evidence.dtype)


def _nats_per_parameter(
    model: Model, state: EvidenceWeightDecayState, gamma: Array
) -> Array | None:
    """The loss of all data for each parameter that they determine, where they determine any."""
    if state.nats_per_parameter is None:
        return None
    is_some = is_positive(gamma)
    ratio = model.num_data * _mean_nll(model, state) / jnp.where(is_some, gamma, 1.0)
    return jnp.where(is_some, ratio, 0.0).astype(state.nats_per_parameter.dtype)


def _mean_nll(model: Model, state: EvidenceWeightDecayState) -> Array:
    """The negative log-likelihood of an observation."""
    if state.noise_variance is None:
        return state.loss / model.loss_scale
    noise = state.noise_variance
    return 0.5 * (jnp.log(2.0 * jnp.pi * noise) + residual(model, state.loss) / noise)
