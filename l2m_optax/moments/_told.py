"""`identify_told`: `identify`, where a moment that the state names itself goes before any other.

Two moments of one parameter in a chain are one too many for `identify`. If one of them is tracked
or exposed, the user has said which is meant, and the other is put out of sight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from l2m_optax._support.checks import path_name
from l2m_optax._support.trees import words
from l2m_optax._support.types import PyTree
from l2m_optax.moments._identification.memory import Memory
from l2m_optax.moments._identification.plain import plain_tracking
from l2m_optax.moments._identification.trace import extended, gradient_tree, is_within
from l2m_optax.moments._identification.verdict import Identification
from l2m_optax.moments._identify import identify
from l2m_optax.moments._layouts import says_itself, several

_OUT_OF_SIGHT = (1,) * 8
"""Axes that no parameter has: an array behind them is taken for nobody's moment."""
_VERDICTS: Memory[Identification] = Memory(64)


def identify_told(tx: Any, params: PyTree) -> Identification:
    """What `identify` finds, looking only at the moments that the state says it holds, if any.

    Raises:
      TypeError: as `identify`; and if the state says that it holds more than one.
    """
    return _VERDICTS.verdict(tx, params, _identify_told)


def _identify_told(tx: Any, params: PyTree) -> Identification:
    told, covered = _told(tx, params)
    if not told:
        return identify(tx, params)
    try:
        return identify(_showing_only(tx, covered), params)
    except TypeError as error:
        if len(told) == 1:
            raise
        paths = [f"opt_state{path}" for path in told]
        remedy = "pass the part of the state that you want read"
        raise TypeError(several(paths, remedy)) from error


def with_types(opt_state: PyTree, tx: Any, params: PyTree) -> PyTree:
    """A state whose containers lost their types, with those that `tx` makes.

    Without them nothing says itself what it holds. Others are returned as they are, and so are
    those that `tx` did not make.
    """
    if any(says_itself(node) for node in jax.tree.leaves(opt_state, is_leaf=says_itself)):
        return opt_state
    try:
        made = _shapes_of_state(tx, params)
        arrays = {words(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(opt_state)}
        return jax.tree_util.tree_map_with_path(lambda path, _: arrays[words(path)], made)
    except Exception:  # whatever tx raises, or an array that is not there
        return opt_state


def _told(tx: Any, params: PyTree) -> tuple[list[str], frozenset[str]]:
    """The paths of the states that say what they hold, and those of the arrays to be hidden."""
    try:
        with plain_tracking():
            state = _shapes_of_state(tx, params)
    except Exception:  # whatever tx raises: `identify` meets it again, and says so
        return [], frozenset()
    nodes = [(path[1:], node) for path, node in _innermost((state,))]
    told = [path_name(path, "") for path, node in nodes if says_itself(node)]
    owners = [path for path, _ in _arrays(gradient_tree(params))]
    inside = [a for path, node in nodes if says_itself(node) for a in _owned(path, node, owners)]
    outside = [
        a for path, node in nodes if not says_itself(node) for a in _owned(path, node, owners)
    ]
    covered = {owner for _, owner in inside}
    return told, frozenset(path for path, owner in outside if owner in covered)


def _shapes_of_state(tx: Any, params: PyTree) -> PyTree:
    """The first state of `tx`, in shapes."""
    init = extended(tx).init
    # A function of its own each time: JAX remembers what it traced, and plain tracking is another.
    return jax.eval_shape(lambda p: init(p), _abstract(params))


def _innermost(state: PyTree) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The states inside `state` that say what they hold and have no such inside; other leaves."""

    def is_inside(node: Any) -> bool:
        return node is not state and says_itself(node)

    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_inside):
        deeper = list(_innermost(node)) if says_itself(node) else []
        if any(says_itself(inner) for _, inner in deeper):
            yield from ((path + below, inner) for below, inner in deeper)
        else:
            yield path, node


def _owned(path: Any, node: Any, owners: Sequence[str]) -> list[tuple[str, str]]:
    """The floating arrays of a node that lie at the path of a parameter, and that parameter."""
    found = ((path_name(path, "") + below, leaf) for below, leaf in _arrays(node))
    pairs = ((where, _owner(where, leaf, owners)) for where, leaf in found if _is_float(leaf))
    return [(where, owner) for where, owner in pairs if owner is not None]


def _abstract(params: PyTree) -> PyTree:
    struct: Any = jax.ShapeDtypeStruct
    return jax.tree.map(lambda p: struct(jnp.shape(p), jnp.result_type(p)), params)


def _arrays(tree: PyTree) -> list[tuple[str, Any]]:
    return [(path_name(p, ""), leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _owner(path: str, leaf: Any, owners: Sequence[str]) -> str | None:
    """The parameter at whose path an array of the state lies, or a matrix below it."""
    if ".hyperparams[" in path:
        return None
    at = [owner for owner in owners if path.endswith(owner)]
    below = [owner for owner in owners if leaf.ndim > 1 and is_within(path, owner)]
    return max(at or below, key=len, default=None)


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _showing_only(tx: Any, hidden: frozenset[str]) -> optax.GradientTransformationExtraArgs:
    """`tx` with axes added to the arrays of its state at the paths in `hidden`."""
    inner = extended(tx)

    def reshaped(state: PyTree, added: bool) -> PyTree:
        def reshape(path: Any, leaf: Any) -> Any:
            if path_name(path, "") not in hidden:
                return leaf
            shape = jnp.shape(leaf)
            return jnp.reshape(
                leaf, _OUT_OF_SIGHT + shape if added else shape[len(_OUT_OF_SIGHT) :]
            )

        return jax.tree_util.tree_map_with_path(reshape, state)

    def init(params: PyTree) -> PyTree:
        return reshaped(inner.init(params), added=True)

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        updates, state = inner.update(updates, reshaped(state, added=False), params, **extra)
        return updates, reshaped(state, added=True)

    return optax.GradientTransformationExtraArgs(init, update)
