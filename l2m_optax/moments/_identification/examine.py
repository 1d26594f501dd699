"""The verdict of one probe: the moments, or why there are none, as far as that can be found out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np

from l2m_optax._support.checks import complaint
from l2m_optax._support.types import PyTree
from l2m_optax.moments._identification.assign import assign
from l2m_optax.moments._identification.attempt import TRACK, attempt
from l2m_optax.moments._identification.clipping import clipping_effect
from l2m_optax.moments._identification.in_bases import holds_matrices
from l2m_optax.moments._identification.plan import SCALES
from l2m_optax.moments._identification.probe import (
    MOST_MICRO_STEPS,
    Arrays,
    Probe,
    Scope,
    record,
)
from l2m_optax.moments._identification.scheduled import changing_law
from l2m_optax.moments._identification.trace import Program
from l2m_optax.moments._identification.verdict import Moments

_BEHIND = (
    "or pass what stands behind it to l2m_optax.fit, which measures the scale: "
    "of chain({}, adam) the state's part opt_state[1], and tx=adam"
)


def examine(program: Program, scope: Scope) -> Moments:
    """The moments that a probe of a program shows, by the path of the parameter.

    Raises:
      TypeError: if it shows none, with the reason.
    """
    probe = attempt(record, program, scope)
    found = assign(probe)
    if isinstance(found, str):
        _refuse(program, scope, probe, found)
    return found


def _refuse(program: Program, scope: Scope, probe: Probe, reason: str) -> NoReturn:
    behind = assign(_runs(_of_many_entries(probe), [int(np.argmin(SCALES))]))
    remedy, changing = TRACK, changing_law(probe)
    if changing is not None:
        got = changing
    elif not isinstance(behind, str):
        effect = clipping_effect(probe, behind)
        got = f"one of gradients that are clipped when they are large: {effect}"
        remedy = f"{TRACK}, before the clipping; {_BEHIND.format('clip')}"
    elif not isinstance(assign(attempt(record, program, scope, size=0.0)), str):
        got = "one of gradients to which weight decay, or something else of the weights, was added"
        remedy = f"put the decay behind the moment, or {TRACK}; {_BEHIND.format('decay')}"
    else:
        got = _other(probe) or f"{reason}, in {_names(program) or _size(program)}"
        if holds_matrices(program):
            got += ", and none in a basis of the matrices that are kept"
    expected = "a running mean of the squares of the gradients it is given"
    raise TypeError(complaint("tx", expected, got, remedy))


def _other(probe: Probe) -> str | None:
    """What is wrong with a moment of which some entries or some updates look right."""
    if probe.waits:
        return f"no update of any second moment in {MOST_MICRO_STEPS} calls"
    places = slice(None, 1), slice(-1, None)
    if any(not isinstance(assign(_entry(probe, place)), str) for place in places):
        return "one that treats the entries of a leaf in different ways"
    still = next((path for path, n in probe.states.items() if _stands_still(path, n, probe)), None)
    if still is not None:
        return f"a moment, opt_state{still}, that some updates leave as it is"
    return None


def _stands_still(path: str, n: np.ndarray, probe: Probe) -> bool:
    """Whether a nonnegative array of a parameter moves in some updates, and not in others."""
    if (
        not (n.ndim > 2 or path.endswith(tuple(probe.means)))
        or n.dtype.kind != "f"
        or np.any(n < 0)
    ):
        return False
    axes = tuple(range(1, n.ndim))
    moved = np.any(np.diff(n, axis=0) != 0, axis=axes)
    return bool(np.any(moved) and not np.all(moved))


def _of_many_entries(probe: Probe) -> Probe:
    """Without the parameters of one entry, if there are others.

    In a single run their first moment may rise and fall like a mean of squares.
    """
    many = [path for path, g in probe.means.items() if g[0, 0].size > 1] or list(probe.means)
    means, lasts = ({path: of[path] for path in many} for of in (probe.means, probe.lasts))
    return probe._replace(means=means, lasts=lasts)


def _runs(probe: Probe, runs: list[int]) -> Probe:
    """Some runs alone."""
    return _map(probe, lambda array: array[:, runs])


def _entry(probe: Probe, place: slice) -> Probe:
    """One entry of every array alone."""
    return _map(probe, lambda a: a if a.ndim == 2 else a.reshape(*a.shape[:2], -1)[..., place])


def _map(probe: Probe, function: Callable[[np.ndarray], np.ndarray]) -> Probe:
    def each(arrays: Arrays) -> Arrays:
        return {path: function(array) for path, array in arrays.items()}

    return probe._replace(
        states=each(probe.states), means=each(probe.means), lasts=each(probe.lasts)
    )


def _names(program: Program) -> str:
    state = jax.eval_shape(
        lambda p: program.init(p), program.treedef.unflatten(program.params.values())
    )
    return ", ".join(sorted({type(node).__name__ for node in _nodes(state)}))


def _size(program: Program) -> str:
    """What is said of a state without names."""
    return f"a state of {len(program.state)} arrays" if program.state else "an empty state"


def _nodes(state: PyTree) -> Iterator[Any]:
    """Every NamedTuple in `state`."""
    if hasattr(state, "_fields"):
        yield state
    children = jax.tree.leaves(state, is_leaf=lambda node: node is not state)
    yield from (found for child in children if child is not state for found in _nodes(child))
