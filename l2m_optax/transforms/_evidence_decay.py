"""`evidence_weight_decay`: a weight decay that the evidence finds during training."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from l2m_optax._support.checks import (
    check_alive,
    check_count,
    check_finite,
    check_floating,
    check_one_number,
    check_positive,
    complaint,
)
from l2m_optax._support.groups import Labels, by_module, group
from l2m_optax._support.trees import align
from l2m_optax._support.types import Array, ArrayLike, PyTree
from l2m_optax.moments._moment import bias_weight
from l2m_optax.moments._scale import data_scale
from l2m_optax.transforms._evidence_search import (
    WARM_UP,
    Model,
    decay_weight,
    deviation,
    residual,
    search,
)
from l2m_optax.transforms._evidence_state import EvidenceWeightDecayState, first_state
from l2m_optax.transforms._structure import Structure
from l2m_optax.transforms._track import TrackSecondMomentState, track_second_moment

SELDOM = 10
"""Updates of a structured moment for each search, which takes an eigendecomposition."""


def evidence_weight_decay(
    *,
    num_data: int,
    batch_size: int | Sequence[int],
    decay: float = 0.999,
    every: int = 10,
    groups: Labels = by_module,
    start: float = 1.0,
    loss_scale: float = 1.0,
    prior_mean: PyTree | None = None,
    likelihood: Literal["categorical", "gaussian"] = "categorical",
    with_replacement: bool = False,
    overcount: float | None = None,
    structure: Structure = "diagonal",
    max_side: int = 2048,
    max_bytes: int = 2**32,
) -> optax.GradientTransformationExtraArgs:
    r"""Add a weight decay to the gradients, as strong as the evidence says.

    With a prior $N(\theta_0, \delta^{-1})$ the mode of the posterior minimises the loss plus
    $\frac{c}{N} \frac{\delta}{2} \lVert\theta - \theta_0\rVert^2$. So a gradient $g$ becomes

    $$g + \frac{c\,\delta}{N} (\theta - \theta_0).$$

    The evidence $p(D|\delta)$ of the diagonal Laplace approximation has its maximum where

    $$\delta = \frac{\gamma}{\lVert\theta - \theta_0\rVert^2}, \qquad
      \gamma = \sum \frac{F}{F + \delta}, \qquad
      F = \frac{1}{a} \frac{N B}{c^2} \frac{N-1}{N-B} \hat\nu,$$

    in each group of leaves. $\hat\nu$ is the running mean of the squared gradients, before the
    decay is added, as `track_second_moment` keeps it. A diagonal counts what correlated weights
    share for each of them, and F is divided by $a$, the overcount. Once in `every` updates, after
    the first 100, δ takes a step towards the right side, in its logarithm and with a memory of
    about 100 updates. It stays between 1e-4 and 1e6.

    With a `structure`, as in `track_second_moment`, F is that in the eigenbases of the products
    that are kept, $a$ is 1, and the posterior has this structure. The moment is then updated once
    in `every` updates, and a search, which decomposes the products, is made once in ten times that.

    Place it before any optimizer, and before clipping:
    ``optax.chain(evidence_weight_decay(num_data=N, batch_size=B), optax.adam(1e-3))``, without
    another weight decay. Pass the parameters to ``update``. Afterwards
    ``laplace(params, opt_state, num_data=N, batch_size=B)`` has this second moment and this prior,
    and so has `fit`. `laplace` refuses numbers that make another F. `optax.MultiSteps` averages k
    gradients: inside of it pass ``batch_size=k*B`` here.

    With ``update(..., value=loss)``, the loss of the batch without the decay, ``log_evidence`` of
    the state is the log evidence itself. It shows how a training goes. It need not rank networks of
    different widths and depths, for how often a diagonal counts a parameter depends on these. The
    state's ``balance`` is 1 at a mode of the loss with this decay; `diagnose` says what it means.

    **Regression.** With ``likelihood="gaussian"`` the noise variance is found too, and `value` is
    needed. Pass the `loss_scale` for unit noise, 2 for ``mean((y-f)²)`` and 1 for
    ``mean(½(y-f)²)``. Then $c$ is that times $s^2$, and $s^2 = \mathrm{RSS} / (N - \gamma)$, with
    the RSS of the running mean of the losses. To `laplace` pass the same `loss_scale`; it takes
    $s^2$ from the state.

    ``update(..., moment_updates=)`` is passed on to `track_second_moment`. Where gradients or loss
    are NaN or infinite, the state stays as it was but for ``skipped``, which counts such updates.
    The numbers of an ensemble that `jax.vmap` trains have a leading axis.

    Args:
      num_data: N, number of training examples: of what the loss averages over, as in `laplace`.
      batch_size: B, examples behind one gradient, as in `laplace`.
      decay: β of the running means, which look back over ``(1 + β) / (1 - β)`` updates. 0.99 suits
        trainings of a thousand updates.
      every: updates between two searches, each of which costs a pass over the second moment; with
        a structure, between two updates of the moment.
      groups: which leaves share a δ: a prefix tree of labels or a function from the parameters to
        one, as in `fit_prior_precision`; `None` for one δ. By default each module has one, for its
        kernel and its bias.
      start: δ at the beginning. 10 suits trainings of 180 to 500 updates, which are over before
        δ has arrived.
      loss_scale: c, as in `laplace`.
      prior_mean: θ0, like the parameters; zero by default. In fine-tuning, the pre-trained weights.
        The state keeps a copy.
      likelihood: ``"gaussian"`` finds a noise variance; ``"categorical"`` is for any other negative
        log-likelihood.
      with_replacement: as in `laplace`.
      overcount: a, how often the second moment counts each parameter that the data determine. By
        default 10 for leaves without products, which was the best for networks, and 1 for the
        others. Pass 1 where F is diagonal.
      structure: as in `track_second_moment`: ``"diagonal"``, ``"kronecker"``, ``"full"``, labels or
        a function.
      max_side: as in `track_second_moment`.
      max_bytes: as in `track_second_moment`.

    Returns:
      A transformation whose state is an `EvidenceWeightDecayState`.

    Raises:
      TypeError: if a count is no integer, or a parameter is no real floating-point array.
      ValueError: if a number is out of its range, ``batch_size >= num_data``, labels or
        `prior_mean` do not match the parameters, or products take too much memory; from
        ``update``, if the parameters, or the loss of a regression, are missing.
      FloatingPointError: if `prior_mean` holds NaN or infinity.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import l2m_optax as l2m
      >>> params = {"w": jnp.ones(2)}
      >>> tx = optax.chain(l2m.evidence_weight_decay(num_data=100, batch_size=10), optax.sgd(0.1))
      >>> state, grads = tx.init(params), {"w": jnp.array([1.0, 2.0])}
      >>> updates, state = tx.update(grads, state, params, value=0.5)
      >>> print(updates["w"])  # -0.1 * (grads + 1 / 100 * params)
      [-0.101 -0.201]
      >>> posterior = l2m.laplace(params, state, num_data=100, batch_size=10)
      >>> print(posterior.prior_precision["w"])
      1.0

    Reference:
      MacKay, A practical Bayesian framework for backpropagation networks (1992); Immer et al.,
      Scalable marginal likelihood estimation (2021, arXiv 2104.04975), by passes over the data.
    """
    remedy = "pass a prior precision, such as 1"
    check_positive("start", start, remedy)
    check_one_number("start", start, remedy)
    check_count("every", every)
    of_moment, of_search = _periods(structure, every)
    if overcount is not None:
        check_positive("overcount", overcount, "pass 1 for the evidence as it stands")
    scale = functools.partial(data_scale, num_data, batch_size, 1, loss_scale, with_replacement)
    scale()  # refuses bad numbers now
    model = Model(num_data, loss_scale, overcount, groups, of_search)
    gaussian = _is_gaussian(likelihood)
    tracker = track_second_moment(
        decay, structure=structure, every=of_moment, max_side=max_side, max_bytes=max_bytes
    )

    def init(params: PyTree) -> EvidenceWeightDecayState:
        _check_params(params, groups)
        mean = None if prior_mean is None else _copy(prior_mean, params)
        return first_state(tracker.init(params), params, start, mean, scale(), gaussian)

    def update(
        updates: PyTree,
        state: EvidenceWeightDecayState,
        params: PyTree | None = None,
        *,
        value: ArrayLike | None = None,
        **extra: Any,
    ) -> tuple[PyTree, EvidenceWeightDecayState]:
        _check_arguments(params, value, gaussian)
        _, moment = tracker.update(updates, state.moment, params, **extra)
        state = state._replace(data_scale=scale())  # a training may go on with other batches
        before, state = state.count, _follow(model, decay, state, moment, updates, value)
        due = (state.count > before) & (state.count >= WARM_UP) & (state.count % of_search == 0)
        state = _search_if(due, model, state, updates, params)
        return _decayed(model, updates, state, params), state

    return optax.GradientTransformationExtraArgs(init, update)


def _periods(structure: Structure, every: int) -> tuple[int, int]:
    """How many updates there are from one of the moment, and from one search, to the next."""
    if isinstance(structure, str) and structure == "diagonal":
        return 1, every
    return every, SELDOM * every


def _follow(
    model: Model,
    decay: float,
    state: EvidenceWeightDecayState,
    moment: TrackSecondMomentState,
    updates: PyTree,
    value: ArrayLike | None,
) -> EvidenceWeightDecayState:
    """The state with the new moment and loss; as it was where one of them is not finite.

    The moment need not show a bad gradient: not each one is squared.
    """
    loss, losses, count = state.loss, state.losses, optax.safe_increment(state.count)
    if value is not None:
        losses = optax.safe_increment(losses)
        share = (1.0 - decay) / bias_weight(decay, losses)
        loss = (loss + share * (jnp.asarray(value, loss.dtype) - loss)).astype(loss.dtype)
    noise = state.noise_variance
    if noise is not None:
        # Nothing else is known of the noise before the first search.
        found = (count < WARM_UP) & (loss > 0)
        noise = jnp.where(found, residual(model, loss), noise).astype(noise.dtype)
    leaves = jax.tree.leaves((updates, moment.nu, moment.factors, loss))
    finite = functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in leaves])
    followed = state._replace(
        count=count, moment=moment, loss=loss, losses=losses, noise_variance=noise
    )
    skipped = state._replace(skipped=optax.safe_increment(state.skipped))
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), followed, skipped)


def _search_if(
    due: Array, model: Model, state: EvidenceWeightDecayState, updates: PyTree, params: PyTree
) -> EvidenceWeightDecayState:
    """The state after a search, where one is due.

    What a search only reads stays out of the results, for a conditional copies all of these.
    """
    nothing: Any = None

    def found(state: EvidenceWeightDecayState) -> EvidenceWeightDecayState:
        return state._replace(moment=nothing, prior_mean=nothing)

    after: EvidenceWeightDecayState = jax.lax.cond(
        due, lambda: found(search(model, state, updates, params)), lambda: found(state)
    )
    return after._replace(moment=state.moment, prior_mean=state.prior_mean)


def _decayed(
    model: Model, updates: PyTree, state: EvidenceWeightDecayState, params: PyTree
) -> PyTree:
    """The gradients plus the gradient of the prior's part of the loss."""
    weight = decay_weight(model, state)

    def add(g: Array, delta: Array, d: Array) -> Array:
        return (g + weight * delta * d).astype(g.dtype)

    deviations = deviation(params, state.prior_mean)
    return jax.tree.map(add, updates, state.prior_precision, deviations)


def _copy(prior_mean: PyTree, params: PyTree) -> PyTree:
    """The prior's mean like `params`, in arrays of its own, for states may be donated."""
    remedy = "pass the weights that training began from"
    check_alive(prior_mean, "prior_mean")
    prior_mean = align(prior_mean, params, "prior_mean")
    check_finite(prior_mean, "prior_mean", remedy)
    return jax.tree.map(lambda p: jnp.array(p, copy=True), prior_mean)


def _check_params(params: PyTree, groups: Labels) -> None:
    check_floating(params)
    if not jax.tree.leaves(params):
        remedy = "pass the parameters that are trained"
        raise ValueError(complaint("params", "at least one array", "an empty tree", remedy))
    group(params, params, groups)


def _check_arguments(params: PyTree | None, value: ArrayLike | None, gaussian: bool) -> None:
    if params is None:
        remedy = "call tx.update(grads, state, params)"
        raise ValueError(complaint("params", "the parameters, which decay", "None", remedy))
    if value is None and gaussian:
        remedy = "call tx.update(grads, state, params, value=loss)"
        raise ValueError(complaint("value", "the loss, which shows the noise", "None", remedy))
    if value is not None:
        check_one_number("value", value, "pass the mean over the batch")


def _is_gaussian(likelihood: str) -> bool:
    if likelihood not in ("categorical", "gaussian"):
        remedy = "'gaussian' finds a noise variance, 'categorical' is for all other likelihoods"
        expected = "'categorical' or 'gaussian'"
        raise ValueError(complaint("likelihood", expected, repr(likelihood), remedy))
    return likelihood == "gaussian"
