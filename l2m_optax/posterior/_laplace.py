"""`laplace`: parameters and a second moment in, the posterior pytree out; nothing is copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import (
    check_alive,
    check_finite,
    check_floating,
    check_not_negative,
    check_one_number,
    check_positive,
    check_second_moment,
    complaint,
    few,
    is_concrete,
    is_not_negative,
    is_positive,
    or_nan,
    path_name,
)
from l2m_optax._support.trees import align, broadcast
from l2m_optax._support.types import ArrayLike, PyTree
from l2m_optax.moments._basis import bases, check_basis
from l2m_optax.moments._declared import with_types
from l2m_optax.moments._identification.trace import gradient_tree
from l2m_optax.moments._moment import (
    SecondMoment,
    align_moment,
    check_updated,
    updated_weight,
)
from l2m_optax.moments._prior import Prior, align_declared, declared_prior
from l2m_optax.moments._scale import data_scale
from l2m_optax.moments._second_moment import second_moment
from l2m_optax.posterior._posterior import Posterior

_ALIKE = 0.1
"""How far F may be from that of the training: a shorter last batch makes a difference as small."""


def laplace(
    params: PyTree,
    opt_state: PyTree | SecondMoment,
    *,
    tx: Any = None,
    num_data: int,
    batch_size: int | Sequence[int],
    loss_scale: ArrayLike = 1.0,
    prior_precision: ArrayLike | PyTree | None = None,
    prior_mean: PyTree | None = None,
    temperature: ArrayLike = 1.0,
    with_replacement: bool = False,
    centered: bool = False,
    training_loss: ArrayLike | None = None,
) -> Posterior:
    r"""The Laplace posterior that a trained optimizer state already holds.

    Let $l_i$ be the negative log-likelihood of example $i$ of $N$ and let training minimise
    $c \cdot \mathrm{mean}_{i \in \text{batch}}\, l_i$ over batches of $B$. At a mode the mean
    gradient is zero, so the running mean of squared gradients tends to the variance of the
    batch gradient, $\hat\nu \to c^2 \,\mathrm{Var}_i(\nabla l_i)/B \cdot (N-B)/(N-1)$, and

    $$F = \frac{N B}{c^2} \cdot \frac{N-1}{N-B} \cdot \hat\nu, \qquad
      p(\theta | D) \approx N(\theta^*, T (F + \delta)^{-1})$$

    is the diagonal of the summed empirical Fisher, and the posterior. Building it does no
    arithmetic on arrays: its leaves are `params` and the state's own buffers. A value that `jit` or
    `vmap` traces cannot be refused. There a bad number makes all variances NaN, and a bad entry of
    the second moment makes its own variance NaN.

    Args:
      params: the trained parameters θ*, real floating-point arrays.
      opt_state: the optimizer's state, or what `second_moment` returned for it.
      tx: the optimizer, any that `second_moment` reads. A state that was tracked or exposed, and a
        `SecondMoment`, need none.
      num_data: N, number of training examples, of the kind that the loss averages over. For a mean
        over the tokens of n sequences of length T pass ``n*T``, and ``batch_size=B*T``.
      batch_size: B, number of examples behind one gradient, over all devices. If batches differ in
        size, pass the sizes of an epoch's batches, ``[32] * 46 + [1]``: B is then their harmonic
        mean. If `optax.MultiSteps` averages k batches, pass the size of one of them: k is read
        from ``tx=``, or from an exposed state.
      loss_scale: c. 1 for a mean of negative log-likelihoods; B if the loss sums over the batch;
        for Gaussian regression with noise variance s², ``2*s²`` for ``mean((y-f)²)`` and ``s²``
        for ``mean(½(y-f)²)`` (pass 2 or 1 and let `fit_noise_variance` find s²).
      prior_precision: δ > 0, a scalar or a prefix tree of `params`; `fit_prior_precision` finds it.
        By default the one that `evidence_weight_decay` found, with its noise variance; 1 if the
        state declares none, and at fixed leaves for which it declares none.
      prior_mean: θ0, like `params`; by default the state's, else zero. In fine-tuning, the
        pre-trained weights.
      temperature: T ≥ 0; `tune` finds it on validation data. 0 is exactly the mode: no variance.
      with_replacement: whether batches are drawn with replacement; then (N-1)/(N-B) is left out.
      centered: subtract the squared mean gradient, by the optimizer's running mean of gradients
        with decay b: $\mathrm{Var} = (\hat\nu - \hat\mu^2)(1+b)/(2b)$. For states far from a
        mode.
      training_loss: L, the mean negative log-likelihood of a training observation at the mode,
        in nats: what a classifier's training ended with, without penalties. Only
        `decisions.novelty` uses it, and `fit` finds it.

    Returns:
      The `Posterior`.

    Raises:
      TypeError: if a leaf is no real floating-point array, the state has no second moment, or its
        type does not show what it holds and `tx` is missing.
      ValueError: if a number is out of its range, ``batch_size >= num_data``, the batches of an
        epoch hold more than that, `params` is empty, or the state does not match it, was never
        updated, or holds negative numbers or only zeros; if the state declares a prior that was
        found with another F, or is that of an ensemble.
      FloatingPointError: if `params`, the second moment or `prior_mean` holds NaN or infinity.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import l2m_optax as l2m
      >>> params, tx = {"w": jnp.ones(2)}, optax.adam(1e-3)
      >>> opt_state = tx.init(params)
      >>> _, opt_state = tx.update({"w": jnp.array([1.0, 2.0])}, opt_state, params)
      >>> posterior = l2m.laplace(params, opt_state, tx=tx, num_data=100, batch_size=10)
      >>> posterior.mean["w"] is params["w"]
      True

    Reference:
      Perone, Silveira & Paula, L2M (arXiv 2107.04695). The scale: see the documentation.
    """
    opt_state = with_types(opt_state, tx, params)
    moment = opt_state
    if not isinstance(opt_state, SecondMoment):
        moment = second_moment(opt_state, params, tx=tx)
    params = gradient_tree(params)
    _check_params(params)
    declared = declared_prior(opt_state) or Prior()
    moment = _sound_moment(align_moment(moment, params), centered)
    scale = data_scale(num_data, batch_size, moment.micro_steps, loss_scale, with_replacement)
    if prior_precision is None:
        prior_precision = _default_precision(declared, params, moment.nu)
    if prior_mean is None and declared.mean is not None:
        prior_mean = align_declared(declared.mean, params, moment.nu, params, "prior_mean")
    if prior_mean is not None:
        prior_mean = _check_prior_mean(prior_mean, params)
    check_positive("prior_precision", prior_precision, "a prior must have a finite width")
    remedy = "pass 1 for the posterior itself, 0 for the mode"
    temperature = _not_negative("temperature", temperature, remedy)
    if training_loss is not None:
        remedy = "pass the mean negative log-likelihood, in nats, or leave it out"
        training_loss = _not_negative("training_loss", training_loss, remedy)
    _check_prior_precision(prior_precision, params, moment.basis)
    return Posterior(
        mean=params,
        second_moment=moment,
        data_scale=_of_the_training(scale, declared.data_scale),
        prior_precision=jax.tree.map(lambda x: or_nan(_scalar(x), is_positive), prior_precision),
        prior_mean=prior_mean,
        temperature=temperature,
        noise_variance=_scalar(1.0 if declared.noise_variance is None else declared.noise_variance),
        num_data=_scalar(int(num_data)),
        training_loss=training_loss,
    )


def _not_negative(name: str, value: ArrayLike, remedy: str) -> jax.Array:
    """One number of at least 0; NaN for another that is traced."""
    check_not_negative(name, value, remedy)
    check_one_number(name, value, remedy)
    return or_nan(_scalar(value), is_not_negative)


def _default_precision(declared: Prior, params: PyTree, nu: PyTree) -> PyTree:
    """The prior precision that the state declares, or else 1."""
    if declared.precision is None:
        return 1.0
    ones = jax.tree.map(lambda _: 1.0, params)
    found = align_declared(declared.precision, params, nu, ones, "prior_precision")
    for path, delta in jax.tree_util.tree_leaves_with_path(found):
        if jnp.shape(delta):
            where, got = path_name(path, "prior_precision"), f"shape {jnp.shape(delta)}"
            remedy = "for an ensemble use jax.vmap(lambda p, s: laplace(p, s, ...))(params, states)"
            raise ValueError(complaint(where, "one number from the state", got, remedy))
    return found


def _of_the_training(scale: jax.Array, declared: ArrayLike | None) -> jax.Array:
    """The data scale, which is the one with which the declared prior was found.

    Raises:
      ValueError: if it is another, for then F is not the one that the prior belongs to.
    """
    if declared is None:
        return scale
    if not (is_concrete(scale) and is_concrete(declared)):
        return jnp.where(_are_alike(scale / declared), scale, jnp.nan)
    ratio = np.asarray(scale) / np.asarray(declared)
    if not np.all(_are_alike(ratio)):
        where, expected = "num_data, batch_size or loss_scale", "those of evidence_weight_decay"
        got = f"others, with {few(np.ravel(ratio))} times the F that its prior was found with"
        remedy = "pass the same numbers, or second_moment(opt_state, params) and prior_precision="
        raise ValueError(complaint(where, expected, got, remedy))
    return scale


def _are_alike(ratio: Any) -> Any:
    return abs(ratio - 1.0) <= _ALIKE


def _check_params(params: PyTree) -> None:
    if not jax.tree.leaves(params):
        remedy = "pass the trained parameters"
        raise ValueError(complaint("params", "at least one array", "an empty tree", remedy))
    check_floating(params)
    check_alive(params, "params")
    check_finite(params, "params", "training diverged: take the parameters of an earlier step")


def _check_prior_mean(prior_mean: PyTree, params: PyTree) -> PyTree:
    """The prior's mean in the structure of `params`, with a finite array for each of them."""
    remedy = "pass the weights that training began from"
    check_alive(prior_mean, "prior_mean")
    prior_mean = align(prior_mean, params, "prior_mean")
    for path, leaf in jax.tree_util.tree_leaves_with_path(prior_mean, is_leaf=lambda x: x is None):
        if leaf is None:
            raise ValueError(complaint(path_name(path, "prior_mean"), "an array", "None", remedy))
    check_finite(prior_mean, "prior_mean", remedy)
    return prior_mean


def _sound_moment(moment: SecondMoment, centered: bool) -> SecondMoment:
    """The moment after all checks; it keeps `mu` only if that will be subtracted."""
    check_second_moment(moment.nu)
    check_basis(moment.basis)
    check_updated("moment", moment.count)
    check_positive("moment.weight", moment.weight, "pass what the weights of the mean sum to")
    weight = jax.tree.map(lambda w: or_nan(w, is_positive), moment.weight)
    moment = moment._replace(weight=updated_weight(weight, moment.count))
    return _with_sound_mean(moment) if centered else moment._replace(mu=None)


def _with_sound_mean(moment: SecondMoment) -> SecondMoment:
    """The moment after the checks of its running mean of gradients."""
    if moment.mu is None or moment.mu_decay is None:
        got = "no running mean" if moment.mu is None else "an unknown decay"
        remedy = "pass second_moment(opt_state, tx=tx), or mean_decay= (Adam's b1, 0.9 by default)"
        expected = "the running mean of gradients and its decay"
        raise ValueError(complaint("centered=True", expected, got, remedy))
    decay = moment.mu_decay
    if is_concrete(decay) and not np.all(_remembers(np.asarray(decay))):
        expected, got = "a decay between 0 and 1", f"{np.min(np.asarray(decay)):g}"
        remedy = "a mean of one gradient shows nothing of the others: leave centered=True out"
        raise ValueError(complaint("centered=True", expected, got, remedy))
    check_positive("moment.mu_weight", moment.mu_weight, "pass what the weights of mu sum to")
    weight = or_nan(moment.mu_weight, is_positive)
    return moment._replace(mu_decay=or_nan(decay, _remembers), mu_weight=weight)


def _remembers(decay: Any) -> Any:
    """Where a running mean with this decay holds more than the newest gradient."""
    return (decay > 0) & (decay < 1)


def _check_prior_precision(prior_precision: PyTree, params: PyTree, basis: PyTree) -> None:
    try:
        priors = broadcast(prior_precision, params)
    except ValueError as error:
        remedy = "pass one number, or a tree of numbers that is a prefix of params"
        got = str(jax.tree.structure(prior_precision))
        raise ValueError(complaint("prior_precision", "a prefix of params", got, remedy)) from error
    paths = jax.tree_util.tree_leaves_with_path(priors)
    for (path, prior), one in zip(paths, bases(basis, params), strict=True):
        if one is not None and jnp.size(prior) != 1:
            # Only a multiple of the identity is the same in every basis.
            where, got = path_name(path, "prior_precision"), f"shape {jnp.shape(prior)}"
            remedy = "pass one number, or track this leaf with structure='diagonal'"
            expected = "one number for a leaf whose moment has a basis"
            raise ValueError(complaint(where, expected, got, remedy))


def _scalar(value: ArrayLike) -> jax.Array:
    return jnp.asarray(value, jnp.float32)
