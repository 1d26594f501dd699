"""Any optimizer state in, a `SecondMoment` aligned with the parameters out; no array is copied.

The contract: what `second_moment` returns *is* a running mean of squared gradients, or it raises.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2m_optax._support.checks import check_alive, complaint, is_concrete, path_name
from l2m_optax._support.types import ArrayLike, PyTree
from l2m_optax.moments._identify import identify
from l2m_optax.moments._moment import SecondMoment, align_moment, bias_weight
from l2m_optax.moments._probe import gradient_tree
from l2m_optax.moments._read import check_updated, read

_LONGEST_USUAL_DECAY = 0.999
_NEGLIGIBLE = 0.01


@runtime_checkable
class HoldsSecondMoment(Protocol):
    """A state that can say itself what its second moment is."""

    def read_second_moment(self) -> SecondMoment:
        """The second moment that this state holds."""
        ...


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

    With ``tx=``, what the state holds is found by running the transformation (`identify`), at any
    depth of any wrapper: means, sums (adagrad), means about the mean (adabelief, acprop), rows and
    columns (adafactor); leaves that have none (muon's matrices, masked and frozen parts) are `None`
    and become points. Anything else is refused.

    Without it a table of state types serves: those of adam, adamw, nadam, nadamw, radam, lamb,
    amsgrad, rmsprop (plain, centered, with bias correction) and this package's transformations, at
    any depth of `optax.chain`, `optax.named_chain`, `optax.inject_hyperparams` and a flax
    ``TrainState.opt_state``. A type does not say all. Adamax, yogi and adopt, whose moments are
    others, keep the state of Adam, which is refused therefore unless the caller vouches by `decay`
    for a mean of squares, or `optax.inject_hyperparams` shows that it is of Adam's family. And no
    state shows what was clipped or accumulated before it. Pass ``tx=`` whenever it is at hand.

    Args:
      opt_state: the state, or any pytree that holds exactly one state of a known type.
      params: the parameters; checks that every leaf has its moment, and gives its tree structure.
      tx: the transformation that made the state.
      decay: decay of the squares (Adam's `b2`, 0.999 by default), by which the caller vouches that
        the state holds a running mean of them. The states of optax do not hold it, so that without
        `tx` Adam's asks for it always, those of amsgrad and rmsprop as long as it matters: until
        ``0.999**count`` is below 1%.
      mean_decay: decay of the gradients (Adam's `b1`); needed for ``laplace(centered=True)``.
      count: number of updates so far; needed where the state holds none (plain `optax.rmsprop`,
        adagrad).

    Returns:
      The `SecondMoment`.

    Raises:
      TypeError: if no state of a known type is found, or more than one; if its type does not say
        what it holds; if `tx` keeps no second moment that can be read.
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
    if tx is not None:
        like = _find(opt_state).moment.nu if params is None else params
        found = identify(tx, like)
        moment = read(found, opt_state, decay=decay, mean_decay=mean_decay, count=count)
        path = "opt_state"
    else:
        path, moment = _by_type(opt_state, decay, mean_decay, count)
    check_alive(moment.nu, path)
    _warn_of_low_precision(moment.nu)
    return moment if params is None else align_moment(moment, gradient_tree(params))


def _by_type(
    opt_state: PyTree,
    decay: ArrayLike | None,
    mean_decay: ArrayLike | None,
    count: ArrayLike | None,
) -> tuple[str, SecondMoment]:
    """The moment of the one state of a known type, and its path."""
    found = _find(opt_state)
    _check_whole(found)
    return f"{found.path}.nu", _debias(found, decay, mean_decay, count)


def _check_whole(found: _Found) -> None:
    """What a mask left out may be frozen, or have its moment in another part of the state."""
    nodes = jax.tree.leaves(found.moment.nu, is_leaf=_is_masked)
    holes = sum(_is_masked(node) for node in nodes)
    if holes:
        remedy = "pass tx=, which shows whether they have a moment elsewhere or are points"
        got = f"{holes} masked out"
        raise TypeError(complaint(f"{found.path}.nu", "a moment of every leaf", got, remedy))


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _warn_of_low_precision(nu: PyTree) -> None:
    """The newest square, times 1 - decay, is rounded away where the mean has few digits."""
    low = {str(leaf.dtype) for leaf in jax.tree.leaves(nu) if leaf.dtype.itemsize < 4}
    if low:
        remedy = "chain l2m_optax.track_second_moment in front, which keeps float32"
        expected = "a mean kept in float32, for it may be off by a factor or 0 otherwise"
        message = complaint("opt_state", expected, ", ".join(sorted(low)), remedy)
        warnings.warn(message, UserWarning, stacklevel=3)


# --- states: where each type keeps its means -----------------------------------------------------


class _Layout(NamedTuple):
    """The fields of one type of state, and the hyperparameters behind its decays.

    `shared` is whether others keep something else in the same type.
    """

    mu: str | None
    steps: str | None
    decay: str
    mean_decay: str
    shared: bool = False


_LAYOUTS = {
    "ScaleByAdamState": _Layout("mu", "count", "b2", "b1", shared=True),
    "ScaleByAmsgradState": _Layout("mu", "count", "b2", "b1"),
    "ScaleByRmsState": _Layout(None, None, "decay", "decay"),
    "ScaleByRmsWithCountState": _Layout(None, "count", "decay", "decay"),
    "ScaleByRStdDevState": _Layout("mu", None, "decay", "decay"),
    "ScaleByRStdDevWithCountState": _Layout("mu", "count", "decay", "decay"),
}
"""Known states by class name, for optax does not export every class. All hold `nu`."""
_READ = "adam(w), nadam(w), radam, lamb, amsgrad, rmsprop"


class _Found(NamedTuple):
    """A state of a known type: its path, what it holds, and decays that stand beside it.

    `certain` is whether type and surroundings say that it is a mean of squares.
    """

    path: str
    moment: SecondMoment
    decay: ArrayLike | None = None
    mean_decay: ArrayLike | None = None
    needs_debiasing: bool = True
    certain: bool = True


def _find(opt_state: PyTree) -> _Found:
    """The one state of a known type inside `opt_state`."""
    hits = list(_walk(opt_state, "opt_state", {}))
    if len(hits) == 1:
        return hits[0]
    if hits:
        got = f"{len(hits)}: " + ", ".join(hit.path for hit in hits)
        remedy = "pass tx=, or the part of the state that you want read"
        raise TypeError(complaint("opt_state", "one second moment", got, remedy))
    names = sorted({type(node).__name__ for node in _named_nodes(opt_state)})
    raise TypeError(
        complaint(
            "opt_state",
            f"the state of an optimizer that keeps a second moment ({_READ})",
            ", ".join(names) or type(opt_state).__name__,
            "chain l2m_optax.track_second_moment(0.999) in front of any other optimizer",
        )
    )


def _walk(state: PyTree, path: str, hyperparams: Mapping[str, ArrayLike]) -> Iterator[_Found]:
    """Every known state in `state`, with the hyperparameters injected around it."""
    for keys, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_known):
        here = path_name(keys, path)
        if isinstance(node, SecondMoment | HoldsSecondMoment):
            moment = node if isinstance(node, SecondMoment) else node.read_second_moment()
            yield _Found(here, moment, needs_debiasing=False)
        elif _is_injected(node):
            yield from _walk(node.inner_state, f"{here}.inner_state", _constants(node))
        elif _is_listed(node):
            layout = _LAYOUTS[type(node).__name__]
            count = None if layout.steps is None else getattr(node, layout.steps)
            mu = None if layout.mu is None else getattr(node, layout.mu)
            moment = SecondMoment(node.nu, count=count, mu=mu)
            yield _Found(
                here,
                moment,
                hyperparams.get(layout.decay),
                hyperparams.get(layout.mean_decay),
                certain=not layout.shared or _is_of_adams_family(hyperparams),
            )


def _is_of_adams_family(hyperparams: Mapping[str, ArrayLike]) -> bool:
    """Adamax, yogi and adopt take no `eps_root`; `scale_by_yogi` does, and an accumulator."""
    return "eps_root" in hyperparams and "initial_accumulator_value" not in hyperparams


def _constants(node: Any) -> dict[str, ArrayLike]:
    """The hyperparameters that no schedule moves: the value held is the one that was used."""
    scheduled = getattr(node, "hyperparams_states", {})
    return {name: value for name, value in node.hyperparams.items() if name not in scheduled}


def _is_listed(node: Any) -> bool:
    return type(node).__module__.startswith("optax.") and type(node).__name__ in _LAYOUTS


def _is_injected(node: Any) -> bool:
    return hasattr(node, "hyperparams") and hasattr(node, "inner_state")


def _is_known(node: Any) -> bool:
    return (
        _is_listed(node) or isinstance(node, SecondMoment | HoldsSecondMoment) or _is_injected(node)
    )


def _named_nodes(state: PyTree) -> Iterator[Any]:
    """Every NamedTuple in `state`: what a refusal can name."""
    if hasattr(state, "_fields"):
        yield state
    children = jax.tree.leaves(state, is_leaf=lambda node: node is not state)
    yield from (found for child in children if child is not state for found in _named_nodes(child))


# --- debiasing -----------------------------------------------------------------------------------


def _debias(
    found: _Found,
    decay: ArrayLike | None,
    mean_decay: ArrayLike | None,
    count: ArrayLike | None,
) -> SecondMoment:
    """The moment with its weights, from what the state, its surroundings and the caller know."""
    moment = found.moment
    count = moment.count if count is None else count
    check_updated(found.path, count)
    if not found.needs_debiasing:
        return moment
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
    weight = jnp.ones(()) if decay is None else bias_weight(decay, count)
    if decay is None:
        _check_debiasing_is_negligible(found.path, count)
    mu_weight = 1.0 if mean_decay is None else bias_weight(mean_decay, count)
    return moment._replace(
        weight=weight, count=count, decay=decay, mu_weight=mu_weight, mu_decay=mean_decay
    )


def _refuse_ambiguous(path: str) -> NoReturn:
    expected = "a state whose type says what it holds"
    got = "ScaleByAdamState, which adamax, yogi and adopt keep as well as adam"
    remedy = (
        "pass tx=, the optimizer, or vouch for a running mean of squares by decay=0.999 (optax's "
        "default b2), to l2m_optax.second_moment"
    )
    raise TypeError(complaint(path, expected, got, remedy))


def check_decay(where: str, decay: ArrayLike | None) -> None:
    """A decay of 1, to which bfloat16 rounds 0.999, makes every weight 0."""
    if decay is None or not is_concrete(decay):
        return
    values = np.asarray(decay, np.float64)
    if not np.all((values >= 0) & (values < 1)):
        remedy = "0.999 is usual; optax.inject_hyperparams keeps it if hyperparam_dtype is float32"
        raise ValueError(complaint(where, "0 <= decay < 1", str(decay), remedy))


def _check_debiasing_is_negligible(path: str, count: ArrayLike) -> None:
    """An unknown decay may be passed over only when no usual one could matter."""
    if not is_concrete(count):
        got = "a traced count and no decay"
    elif np.any(_LONGEST_USUAL_DECAY ** np.asarray(count, np.float64) > _NEGLIGIBLE):
        got = f"none, after only {count} updates"
    else:
        return
    remedy = (
        "the mean is still biased towards 0 by 1 - decay**count: pass tx=, or decay=0.999 (optax's "
        "default for amsgrad; 0.9 for rmsprop), to l2m_optax.second_moment"
    )
    raise ValueError(complaint(f"{path}.nu", "the decay of the running mean", got, remedy))
