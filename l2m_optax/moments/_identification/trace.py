"""A transformation as JAX traces it: the program of its first state and of one update."""

from __future__ import annotations

import re
from collections.abc import Collection, Container
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2m_optax._support.checks import path_name
from l2m_optax._support.types import PyTree

_KEY_START = re.compile(r"[.\[]")


class Program(NamedTuple):
    """What a transformation computes on leaves of given shapes.

    Attributes:
      init: its own function, of parameters.
      closed: the `ClosedJaxpr` ``state, gradients, params -> first state, next state`` of leaves.
      state: the leaves of the state by path, as `jax.ShapeDtypeStruct`.
      gradients: those of the gradients.
      params: those of the parameters.
      treedef: the structure of the parameters.
    """

    init: Any
    closed: Any
    state: dict[str, Any]
    gradients: dict[str, Any]
    params: dict[str, Any]
    treedef: Any


def gradient_tree(params: PyTree) -> PyTree:
    """The part of `params` that gradients are taken for: `optax.lookahead` keeps two copies."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def extended(tx: Any) -> optax.GradientTransformationExtraArgs:
    """`tx` as a transformation that takes extra arguments; `optax.MultiSteps` is none itself."""
    if hasattr(tx, "gradient_transformation"):
        tx = tx.gradient_transformation()
    return optax.with_extra_args_support(tx)


def trace(tx: Any, params: PyTree) -> Program:
    """The program of `tx`, for parameters with the shapes of `params`.

    It is in float64 where that is enabled, and in float32 elsewhere.

    Args:
      tx: the transformation.
      params: the parameters, or anything that has their shapes.

    Returns:
      The `Program`.
    """
    try:
        return _trace(tx, params, value=jnp.ones(()))  # some ask for the value of the loss
    except TypeError:  # some, as optax.contrib.sam, take no extra argument
        return _trace(tx, params)


def _trace(tx: Any, params: PyTree, **extra: Any) -> Program:
    transformation = extended(tx)
    like: Any = jax.tree.map(_abstract, params)
    # JAX keeps weak references to functions it is given; `init` may be an object that has none.
    state = jax.eval_shape(lambda p: transformation.init(p), like)
    inputs = (state, gradient_tree(like), like)

    def both(state: PyTree, gradients: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        following = transformation.update(gradients, state, params, **extra)[1]
        return transformation.init(params), following

    closed = jax.make_jaxpr(both)(*inputs)
    by_path = [named(tree) for tree in inputs]
    structure = jax.tree.structure(like)
    return Program(transformation.init, closed, by_path[0], by_path[1], by_path[2], structure)


def named(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by path."""
    return {path_name(p, ""): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def suffixes(where: str) -> list[str]:
    """What a path may end with, from itself to nothing; a parameter's path is among them."""
    starts = [match.start() for match in _KEY_START.finditer(where)]
    return [where[start:] for start in [*starts, len(where)]]


def owner(path: str, leaves: Container[str]) -> str | None:
    """The leaf that an array belongs to: the one whose path ends its own; or `None`."""
    return next((suffix for suffix in suffixes(path) if suffix in leaves), None)


def owner_around(path: str, leaves: Collection[str]) -> str | None:
    """The leaf that an array belongs to, at whose path it lies or below."""
    below = (leaf for leaf in leaves if is_within(path, leaf))
    return owner(path, leaves) or max(below, key=len, default=None)


def renamed(path: str, leaf: str, other: str) -> str:
    """The path of an array of one leaf, as that of another one's; others keep theirs."""
    if leaf not in path:
        return path
    before, _, after = path.rpartition(leaf) if leaf else (path, "", "")
    return before + other + after


def is_within(path: str, leaf: str) -> bool:
    """Whether the path of an array goes through that of a parameter, and may end behind it."""
    if not leaf:
        return True
    _, here, after = path.rpartition(leaf)
    return bool(here) and after[:1] in ("", ".", "[")


def _abstract(leaf: Any) -> Any:
    """A leaf in the widest float; one entry stands in where there is none."""
    struct: Any = jax.ShapeDtypeStruct
    return struct(tuple(max(d, 1) for d in jnp.shape(leaf)), jnp.result_type(float))
