"""`identify_declared`: what `identify` finds, except that a declared moment goes first.

A state declares its moment if it has a method `read_second_moment`, as the state of
`track_second_moment` and of `expose_second_moment`. A chain may hold a declared moment and another
one of the same parameter. That is one too many for `identify`, so the other one is hidden from it.
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
from l2m_optax.moments._layouts import declares_moment, several

_HIDING_AXES = (1,) * 8
"""Axes that hide an array: with them in front it has the shape of no parameter."""
_VERDICTS: Memory[Identification] = Memory(64)


def identify_declared(tx: Any, params: PyTree) -> Identification:
    """What `identify` finds; of the declared moments only, if the state declares any.

    Raises:
      TypeError: as `identify`; and if the state declares more than one for a parameter.
    """
    return _VERDICTS.verdict(tx, params, _identify_declared)


def _identify_declared(tx: Any, params: PyTree) -> Identification:
    declared, hidden = _declared(tx, params)
    if not declared:
        return identify(tx, params)
    try:
        return identify(_hiding(tx, hidden), params)
    except TypeError as error:
        if len(declared) == 1:
            raise
        paths = [f"opt_state{path}" for path in declared]
        remedy = "pass the part of the state that you want read"
        raise TypeError(several(paths, remedy)) from error


def with_types(opt_state: PyTree, tx: Any, params: PyTree) -> PyTree:
    """The state with the types of containers that `tx` makes, if its own were lost.

    Without types, as in some checkpoints, a state declares nothing. A state that has its types is
    returned as it is, and so is one that `tx` did not make, or whose `tx` is not known.
    """
    if tx is None or any(map(_has_type, jax.tree.leaves(opt_state, is_leaf=_has_type))):
        return opt_state
    try:
        made = _shapes_of_state(tx, params)
        arrays = {words(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(opt_state)}
        return jax.tree_util.tree_map_with_path(lambda path, _: arrays[words(path)], made)
    except Exception:  # whatever tx raises, or an array that is not there
        return opt_state


def _has_type(node: Any) -> bool:
    """Whether a node is more than a list, a tuple or a dictionary, which are left without types."""
    return hasattr(node, "_fields") or declares_moment(node)


def _declared(tx: Any, params: PyTree) -> tuple[list[str], frozenset[str]]:
    """The paths of the states that declare a moment, and the paths of the arrays to hide."""
    try:
        with plain_tracking():
            state = _shapes_of_state(tx, params)
    except Exception:  # whatever tx raises, it raises again in `identify`
        return [], frozenset()
    nodes = [(path[1:], node) for path, node in _innermost((state,))]
    declared = [path_name(path, "") for path, node in nodes if declares_moment(node)]
    owners = [path for path, _ in _arrays(gradient_tree(params))]
    inside = [
        a for path, node in nodes if declares_moment(node) for a in _owned(path, node, owners)
    ]
    outside = [
        a for path, node in nodes if not declares_moment(node) for a in _owned(path, node, owners)
    ]
    covered = {owner for _, owner in inside}
    return declared, frozenset(path for path, owner in outside if owner in covered)


def _shapes_of_state(tx: Any, params: PyTree) -> PyTree:
    """The first state of `tx`, in shapes."""
    init = extended(tx).init
    # A new function each time: JAX would reuse what it traced outside of plain tracking.
    return jax.eval_shape(lambda p: init(p), _abstract(params))


def _innermost(state: PyTree) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The innermost states inside `state` that declare a moment, and all other leaves."""

    def is_inside(node: Any) -> bool:
        return node is not state and declares_moment(node)

    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_inside):
        deeper = list(_innermost(node)) if declares_moment(node) else []
        if any(declares_moment(inner) for _, inner in deeper):
            yield from ((path + below, inner) for below, inner in deeper)
        else:
            yield path, node


def _owned(path: Any, node: Any, owners: Sequence[str]) -> list[tuple[str, str]]:
    """The floating-point arrays of a node at the path of a parameter, each with that parameter."""
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


def _hiding(tx: Any, hidden: frozenset[str]) -> optax.GradientTransformationExtraArgs:
    """`tx` with `_HIDING_AXES` in front of the arrays of its state at the paths in `hidden`."""
    inner = extended(tx)

    def reshaped(state: PyTree, added: bool) -> PyTree:
        def reshape(path: Any, leaf: Any) -> Any:
            if path_name(path, "") not in hidden:
                return leaf
            shape = jnp.shape(leaf)
            return jnp.reshape(leaf, _HIDING_AXES + shape if added else shape[len(_HIDING_AXES) :])

        return jax.tree_util.tree_map_with_path(reshape, state)

    def init(params: PyTree) -> PyTree:
        return reshaped(inner.init(params), added=True)

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        updates, state = inner.update(updates, reshaped(state, added=False), params, **extra)
        return updates, reshaped(state, added=True)

    return optax.GradientTransformationExtraArgs(init, update)
