"""The known types of optimizer state: the names of their fields, and the search for them.

This is the only table of types. `identify` finds what a type does not show.
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
    """The fields of one type of state besides `nu`, and the hyperparameters that are its decays.

    Attributes:
      optimizers: the optimizers with this state whose `nu` is a running mean of squares.
      mu: the field of the running mean of the gradients.
      steps: the field that counts updates.
      decay: the hyperparameter that is the decay of `nu`.
      mean_decay: the hyperparameter that is the decay of `mu`.
      others: further fields.
      shared: whether other optimizers keep another quantity in a state of this type.
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
"""The known types by class name, because optax does not export every class. All have `nu`."""
SIBLINGS = frozenset(layout.siblings for layout in LAYOUTS.values())
"""The field names of each type, with `nu`: a checkpoint without types keeps only these."""


@runtime_checkable
class HoldsSecondMoment(Protocol):
    """A state that declares its second moment."""

    def read_second_moment(self) -> SecondMoment:
        """The second moment that this state holds."""
        ...


class Found(NamedTuple):
    """A state that holds a second moment.

    Attributes:
      path: where the state is, as in ``"opt_state[0]"``.
      moment: its second moment.
      decay: decay of the squares, if `optax.inject_hyperparams` around the state holds it.
      mean_decay: the same for the mean of the gradients.
      declared: whether the state declares its moment; otherwise its type is known.
      certain: whether the type and its surroundings show that it is a mean of squares.
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
    """The one state inside `opt_state` that holds a second moment; declared moments come first.

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
    """The message about more than one second moment."""
    shown = ", ".join(paths[:4]) + (", ..." if len(paths) > 4 else "")
    return complaint("opt_state", "one second moment", f"{len(paths)}: {shown}", remedy)


def with_declared(moment: SecondMoment, state: PyTree) -> SecondMoment:
    """`moment` with what the state declares and running its transformation cannot show.

    This is the decay, if running it showed none, and the bases of the leaves, with `nu` in them.
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
    """For each leaf with a basis, by path: the basis, and the moment in it."""
    leaves = jax.tree_util.tree_leaves_with_path(moment.nu)
    pairs = zip(leaves, bases(moment.basis, moment.nu), strict=True)
    return {path_name(path, ""): (one, nu) for (path, nu), one in pairs if one is not None}


def walk(state: PyTree, path: str) -> Iterator[Found]:
    """Every state inside `state` that declares its moment, or whose type is known."""
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
    """The moment of a state whose type is known, with the decays that are injected around it."""
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
    """Whether hyperparameters are those of Adam's family.

    Adamax, yogi and adopt have no `eps_root`; `scale_by_yogi` has one, and an initial accumulator.
    """
    return "eps_root" in hyperparams and "initial_accumulator_value" not in hyperparams


def _constants(node: Any) -> dict[str, ArrayLike]:
    """The hyperparameters without a schedule: every update used the value that the state holds."""
    scheduled = getattr(node, "hyperparams_states", {})
    return {name: value for name, value in node.hyperparams.items() if name not in scheduled}


def declares_moment(node: Any) -> bool:
    """Whether a state declares its second moment."""
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
    """Every NamedTuple in `state`, to name them in an error."""
    if hasattr(state, "_fields"):
        yield state
    children = jax.tree.leaves(state, is_leaf=lambda node: node is not state)
    yield from (found for child in children if child is not state for found in _named_nodes(child))
