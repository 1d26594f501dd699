"""Any optimizer state in, a `SecondMoment` aligned with the parameters out; no array is copied.

The contract: what `second_moment` returns *is* a running mean of squared gradients, or it raises.
"""

from __future__ import annotations

import warnings
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2m_optax._support.checks import check_alive, complaint, is_concrete
from l2m_optax._support.types import ArrayLike, PyTree
from l2m_optax.moments._declared import identify_declared, with_types
from l2m_optax.moments._identification.trace import gradient_tree
from l2m_optax.moments._layouts import Found, find, with_declared
from l2m_optax.moments._moment import (
    NEGLIGIBLE,
    SecondMoment,
    align_moment,
    bias_weight,
    check_updated,
    updated_weight,
)
from l2m_optax.moments._read import read

_LONGEST_USUAL_DECAY = 0.999


def second_moment(
    opt_state: PyTree,
    params: PyTree | None = None,
    *,
    tx: optax.GradientTransformation | None = None,
    decay: ArrayLike | None = None,
    mean_decay: ArrayLike | None = None,
    count: ArrayLike | None = None,
) -> SecondMoment:
    r"""Read the running mean of squared gradients that an optimizer state holds.

    After $t$ updates with decay $\beta$ the state holds
    $\nu_t = (1-\beta) \sum_{s \le t} \beta^{t-s} g_s^2$, whose weights sum to $1 - \beta^t$;
    `debiased` divides by that sum. No array is copied: the leaves of ``.nu`` are the state's own.

    A state that declares its moment comes first, whatever else is in the chain: the state of
    `track_second_moment`, of `expose_second_moment`, or any with a method ``read_second_moment``.

    With ``tx=``, what the state holds is found by running the transformation (`identify`), at any
    depth of any wrapper: means, sums (adagrad), means about the mean (adabelief, acprop), rows and
    columns (adafactor); squares in a basis that the state holds (SOAP), and products of gradients
    (Shampoo), which give a moment with a basis, also of stacks of matrices; leaves that have none
    (muon's matrices, masked and frozen parts) are `None` and become fixed. Anything else is
    refused, for example a mean of gradients that were clipped or decayed before they were squared.

    Without it a table of state types serves: those of adam, adamw, nadam, nadamw, radam, lamb,
    amsgrad and rmsprop (plain, centered, with bias correction), at any depth of `optax.chain`,
    `optax.named_chain`, `optax.inject_hyperparams` and a flax ``TrainState.opt_state``. A type does
    not show everything. Adamax, yogi and adopt keep other quantities in a state of Adam's type. So
    Adam's state is refused, unless the caller passes `decay` and so confirms a mean of squares, or
    `optax.inject_hyperparams` shows that the optimizer is of Adam's family. And no type shows
    whether gradients were clipped, scaled, decayed or averaged before they were squared. This would
    make the scale of the posterior wrong, so there is a warning. Pass ``tx=`` whenever you have it.

    Args:
      opt_state: the state, or any pytree that holds exactly one state that declares its moment, or
        exactly one of a known type.
      params: the parameters; checks that every leaf has its moment, and gives its tree structure.
      tx: the transformation that made the state.
      decay: decay of the squares (Adam's `b2`, 0.999 by default). By passing it, the caller
        confirms that the state holds a running mean of squares. The states of optax do not hold it.
        Without `tx` it is always needed for Adam's state, and for those of amsgrad and rmsprop as
        long as it matters: until ``0.999**count`` is below 1%.
      mean_decay: decay of the gradients (Adam's `b1`); needed for ``laplace(centered=True)``.
      count: number of updates so far; needed where the state holds none (plain `optax.rmsprop`,
        adagrad).

    Returns:
      The `SecondMoment`. Under `jit` a state that was never updated has the weight NaN.

    Warns:
      UserWarning: if only a type shows what the state holds, or if the moment is narrower than
        float32.

    Raises:
      TypeError: if no state of a known type is found, or more than one; if its type does not say
        what it holds; if it lies inside `optax.MultiSteps` and `tx` is missing; if `tx` keeps no
        second moment that can be read.
      ValueError: if the state was never updated, the decay or the count is needed and missing, a
        decay is not in [0, 1), a buffer was donated, or `params` does not match.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import l2m_optax as l2m
      >>> params, tx = {"w": jnp.ones(3)}, optax.adam(1e-3)
      >>> opt_state = tx.init(params)
      >>> _, opt_state = tx.update({"w": jnp.array([1.0, 2.0, 3.0])}, opt_state, params)
      >>> moment = l2m.second_moment(opt_state, params, tx=tx)
      >>> print(l2m.moments.debiased(moment)["w"])
      [1. 4. 9.]

    Reference:
      Kingma & Ba, Adam (2015), section 3; Perone, Silveira & Paula, L2M (arXiv 2107.04695).
    """
    check_decay("decay", decay)
    check_decay("mean_decay", mean_decay)
    check_alive(opt_state, "opt_state")
    if tx is not None:
        moment = _by_running(tx, opt_state, params, decay, mean_decay, count)
    else:
        moment = _by_type(opt_state, decay, mean_decay, count)
    _warn_of_low_precision(moment.nu)
    return moment if params is None else align_moment(moment, gradient_tree(params))


def _by_running(
    tx: Any,
    opt_state: PyTree,
    params: PyTree | None,
    decay: ArrayLike | None,
    mean_decay: ArrayLike | None,
    count: ArrayLike | None,
) -> SecondMoment:
    """The moment that the state holds, found by running `tx`."""
    like = find(opt_state).moment.nu if params is None else params
    found = identify_declared(tx, like)
    moment = read(found, opt_state, decay=decay, mean_decay=mean_decay, count=count)
    return with_declared(moment, with_types(opt_state, tx, like))


def _by_type(
    opt_state: PyTree,
    decay: ArrayLike | None,
    mean_decay: ArrayLike | None,
    count: ArrayLike | None,
) -> SecondMoment:
    """The moment of the one state that declares it, or whose type is known."""
    found = find(opt_state)
    _check_not_accumulated(found)
    _check_whole(found)
    if found.declared:
        moment = found.moment
        held = moment.count if count is None else count
        check_updated(found.path, held)
        moment = moment._replace(count=held)
    else:
        moment = _debiased(found, decay, mean_decay, count)
        _warn_of_the_unseen(found.path)
    weight = updated_weight(moment.weight, moment.count)
    return moment._replace(weight=weight)


def _check_not_accumulated(found: Found) -> None:
    """Refuse a state inside `optax.MultiSteps`: only `tx` shows how many gradients it averages."""
    if found.accumulated:
        expected = "a state that shows how many batches one update saw"
        remedy = (
            "pass tx=, the optax.MultiSteps, or the state inside of it, its inner_opt_state, and "
            "to laplace a batch_size that counts all that one update saw"
        )
        got = "one inside a MultiStepsState"
        raise TypeError(complaint(found.path, expected, got, remedy))


def _check_whole(found: Found) -> None:
    """Refuse masked leaves: they may be frozen, or have a moment in another part of the state."""
    nodes = jax.tree.leaves(found.moment.nu, is_leaf=_is_masked)
    masked = sum(_is_masked(node) for node in nodes)
    if masked:
        remedy = "pass tx=, which shows whether they have a moment elsewhere or are fixed"
        got = f"{masked} masked out"
        raise TypeError(complaint(f"{found.path}.nu", "a moment of every leaf", got, remedy))


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _warn_of_the_unseen(path: str) -> None:
    """Warn that a type does not show what was done to the gradients before they were squared."""
    expected = "squares of the gradients themselves"
    got = "a state that cannot show whether they were clipped, scaled, decayed or averaged before"
    remedy = "pass tx=, which shows it"
    warnings.warn(complaint(path, expected, got, remedy), UserWarning, stacklevel=4)


def _warn_of_low_precision(nu: PyTree) -> None:
    """Warn of a mean with few digits: they round the newest square, times 1 - decay, away."""
    low = {str(leaf.dtype) for leaf in jax.tree.leaves(nu) if leaf.dtype.itemsize < 4}
    if low:
        remedy = "chain l2m_optax.track_second_moment in front, which keeps float32"
        expected = "a mean in float32 (a narrower one may be off by a factor, or 0)"
        message = complaint("opt_state", expected, ", ".join(sorted(low)), remedy)
        warnings.warn(message, UserWarning, stacklevel=3)


def _debiased(
    found: Found,
    decay: ArrayLike | None,
    mean_decay: ArrayLike | None,
    count: ArrayLike | None,
) -> SecondMoment:
    """The moment with its weights, from the state, its surroundings and the caller's arguments."""
    count = found.moment.count if count is None else count
    check_updated(found.path, count)
    if not found.certain and decay is None:
        _refuse_ambiguous(found.path)
    decay = found.decay if decay is None else decay
    check_decay(f"{found.path}: hyperparams", decay)
    mean_decay = found.mean_decay if mean_decay is None else mean_decay
    if count is None:
        raise ValueError(
            complaint(
                f"{found.path}.count",
                "the number of updates",
                "a state that does not count (optax.rmsprop without bias_correction)",
                "pass count=, or wrap the optimizer in l2m_optax.expose_second_moment",
            )
        )
    if decay is None:
        _check_debiasing_is_negligible(found.path, count)
    return found.moment._replace(
        weight=jnp.ones(()) if decay is None else bias_weight(decay, count),
        count=count,
        decay=decay,
        mu_weight=1.0 if mean_decay is None else bias_weight(mean_decay, count),
        mu_decay=mean_decay,
    )


def _refuse_ambiguous(path: str) -> NoReturn:
    expected = "a state whose type says what it holds"
    got = "ScaleByAdamState, which adamax, yogi and adopt keep as well as adam"
    remedy = (
        "pass tx=, the optimizer, to laplace or second_moment; or confirm a running mean of "
        "squares by second_moment(..., decay=0.999), optax's default b2"
    )
    raise TypeError(complaint(path, expected, got, remedy))


def check_decay(where: str, decay: ArrayLike | None) -> None:
    """Refuse decays outside of [0, 1): 1, to which bfloat16 rounds 0.999, makes every weight 0."""
    if decay is None or not is_concrete(decay):
        return
    values = np.asarray(decay, np.float64)
    if not np.all((values >= 0) & (values < 1)):
        remedy = "0.999 is usual; optax.inject_hyperparams keeps it if hyperparam_dtype is float32"
        raise ValueError(complaint(where, "0 <= decay < 1", str(decay), remedy))


def _check_debiasing_is_negligible(path: str, count: ArrayLike) -> None:
    """Refuse an unknown decay, unless the bias is negligible with every usual one."""
    if not is_concrete(count):
        got = "a traced count and no decay"
    elif np.any(_LONGEST_USUAL_DECAY ** np.asarray(count, np.float64) > NEGLIGIBLE):
        got = f"none, after only {count} updates"
    else:
        return
    remedy = (
        "the mean is still biased towards 0 by 1 - decay**count: pass tx= to laplace or "
        "second_moment, or second_moment(..., decay=0.999), optax's default for amsgrad (0.9 for "
        "rmsprop)"
    )
    raise ValueError(complaint(f"{path}.nu", "the decay of the running mean", got, remedy))
