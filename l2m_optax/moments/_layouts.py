"""Which type of optimizer state keeps what under which name, and the walk that finds them.

This is the one table of types; only what a type cannot say is left to `identify`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from l2m_optax._support.checks import complaint, path_name
from l2m_optax._support.types import ArrayLike, PyTree
from l2m_optax.moments._basis import Basis, bases
from l2m_optax.moments._moment import SecondMoment


class Layout(NamedTuple):
    """The fields of one type of state beside `nu`, and the hyperparameters behind its decays.

    Attributes:
      optimizers: those that keep it and whose `nu` is a running mean of squares.
      mu: the field of the running mean of the gradients.
      steps: the field that counts updates.
      decay: the hyperparameter that is the decay of `nu`.
      mean_decay: the hyperparameter that is the decay of `mu`.
      others: further fields.
      shared: whether other optimizers keep something else in the same type.
    """

    optimizers: str
    mu: str | None
    steps: str | None
    decay: str
    mean_decay: str
    others: tuple[str, ...] = ()
    shared: bool = False

    @property
    def siblings(self) -> frozenset[str]:
        """The names of all fields, `nu` among them."""
        return frozenset({"nu", *self.others, *(name for name in (self.mu, self.steps) if name)})


_ADAM = "adam(w), nadam(w), radam, lamb"
LAYOUTS = {
    "ScaleByAdamState": Layout(_ADAM, "mu", "count", "b2", "b1", shared=True),
    "ScaleByAmsgradState": Layout("amsgrad", "mu", "count", "b2", "b1", others=("nu_max",)),
    "ScaleByRmsState": Layout("rmsprop", None, None, "decay", "decay"),
    "ScaleByRmsWithCountState": Layout("rmsprop", None, "count", "decay", "decay"),
    "ScaleByRStdDevState": Layout("rmsprop", "mu", None, "decay", "decay"),
    "ScaleByRStdDevWithCountState": Layout("rmsprop", "mu", "count", "decay", "decay"),
}
"""Known states by class name, for optax does not export every class. All hold `nu`."""
SIBLINGS = frozenset(layout.siblings for layout in LAYOUTS.values())
"""The names of the fields, `nu` among them: all that a checkpoint without types keeps of them."""


@runtime_checkable
class HoldsSecondMoment(Protocol):
    """A state that can say itself what its second moment is."""

    def read_second_moment(self) -> SecondMoment:
        """The second moment that this state holds."""
        ...


class Found(NamedTuple):
    """A state that holds a second moment.

    Attributes:
      path: where it sits, as in ``"opt_state[0]"``.
      moment: what it holds.
      decay: decay of the squares, where it is injected around it.
      mean_decay: decay of the gradients' mean, likewise.
      declared: whether the state says itself what its moment is; otherwise its type tells.
      certain: whether type and surroundings say that it is a mean of squares.
      accumulated: whether it lies inside `optax.MultiSteps`.
    """

    path: str
    moment: SecondMoment
    decay: ArrayLike | None = None
    mean_decay: ArrayLike | None = None
    declared: bool = False
    certain: bool = True
    accumulated: bool = False


def find(opt_state: PyTree) -> Found:
    """The one state inside `opt_state` that holds a second moment; those that say so come first.

    Raises:
      TypeError: if there is none, or more than one.
    """
    hits = list(walk(opt_state, "opt_state"))
    hits = [hit for hit in hits if hit.declared] or hits
    if len(hits) == 1:
        return hits[0]
    if hits:
        remedy = "pass the part of the state that you want read"
        remedy = remedy if hits[0].declared else f"pass tx=, or {remedy}"
        raise TypeError(several([hit.path for hit in hits], remedy))
    names = sorted({type(node).__name__ for node in _named_nodes(opt_state)})
    read = ", ".join(dict.fromkeys(layout.optimizers for layout in LAYOUTS.values()))
    raise TypeError(
        complaint(
            "opt_state",
            f"the state of an optimizer that keeps a second moment ({read})",
            ", ".join(names) or type(opt_state).__name__,
            "chain l2m_optax.track_second_moment(0.999) in front of any other optimizer",
        )
    )


def several(paths: list[str], remedy: str) -> str:
    """The complaint about more than one moment."""
    shown = ", ".join(paths[:4]) + (", ..." if len(paths) > 4 else "")
    return complaint("opt_state", "one second moment", f"{len(paths)}: {shown}", remedy)


def with_declared(moment: SecondMoment, state: PyTree) -> SecondMoment:
    """`moment` with what the state itself says of it, and running it cannot show.

    That is its decay, where running it showed none, and the bases of leaves, with `nu` in them.
    """
    declared = [hit.moment for hit in walk(state, "") if hit.declared]
    if moment.decay is None and len(declared) == 1:
        moment = moment._replace(decay=declared[0].decay)
    found = {path: pair for one in declared for path, pair in _in_bases(one).items()}
    if not found:
        return moment

    def of(path: Any, nu: Any) -> tuple[Any, Any]:
        return found.get(path_name(path, ""), (None, nu))

    return moment._replace(
        basis=jax.tree_util.tree_map_with_path(lambda path, nu: of(path, nu)[0], moment.nu),
        nu=jax.tree_util.tree_map_with_path(lambda path, nu: of(path, nu)[1], moment.nu),
    )


def _in_bases(moment: SecondMoment) -> dict[str, tuple[Basis | None, Any]]:
    """By the path of a leaf that has one: its basis, and its moment there."""
    leaves = jax.tree_util.tree_leaves_with_path(moment.nu)
    pairs = zip(leaves, bases(moment.basis, moment.nu), strict=True)
    return {path_name(path, ""): (one, nu) for (path, nu), one in pairs if one is not None}


def walk(state: PyTree, path: str) -> Iterator[Found]:
    """Every state inside `state` that says what it holds, or whose type is known."""
    yield from _walk(state, path, {}, accumulated=False)


def _walk(
    state: PyTree, path: str, hyperparams: Mapping[str, ArrayLike], accumulated: bool
) -> Iterator[Found]:
    for keys, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_known):
        here = path_name(keys, path)
        if declares_moment(node):
            moment = node if isinstance(node, SecondMoment) else node.read_second_moment()
            yield Found(here, moment, declared=True, accumulated=accumulated)
        elif _accumulates(node):
            inside = f"{here}.inner_opt_state"
            yield from _walk(node.inner_opt_state, inside, hyperparams, accumulated=True)
        elif _is_injected(node):
            inside = f"{here}.inner_state"
            yield from _walk(node.inner_state, inside, _constants(node), accumulated)
        elif _is_listed(node):
            yield _listed(node, here, hyperparams)._replace(accumulated=accumulated)


def _listed(node: Any, path: str, hyperparams: Mapping[str, ArrayLike]) -> Found:
    """What a state of a known type holds, with the hyperparameters injected around it."""
    layout = LAYOUTS[type(node).__name__]
    count = None if layout.steps is None else getattr(node, layout.steps)
    mu = None if layout.mu is None else getattr(node, layout.mu)
    return Found(
        path,
        SecondMoment(node.nu, count=count, mu=mu),
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


def declares_moment(node: Any) -> bool:
    """Whether a state says itself what its second moment is."""
    return isinstance(node, SecondMoment | HoldsSecondMoment)


def _is_listed(node: Any) -> bool:
    return type(node).__module__.startswith("optax.") and type(node).__name__ in LAYOUTS


def _is_injected(node: Any) -> bool:
    return hasattr(node, "hyperparams") and hasattr(node, "inner_state")


def _accumulates(node: Any) -> bool:
    return hasattr(node, "acc_grads") and hasattr(node, "inner_opt_state")


def _is_known(node: Any) -> bool:
    return declares_moment(node) or _is_listed(node) or _is_injected(node) or _accumulates(node)


def _named_nodes(state: PyTree) -> Iterator[Any]:
    """Every NamedTuple in `state`: what a refusal can name."""
    if hasattr(state, "_fields"):
        yield state
    children = jax.tree.leaves(state, is_leaf=lambda node: node is not state)
    yield from (found for child in children if child is not state for found in _named_nodes(child))
