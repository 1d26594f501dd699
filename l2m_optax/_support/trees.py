"""Trees of which some leaves are fixed: `None` where a leaf has no second moment; and paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from l2m_optax._support.checks import complaint, path_name
from l2m_optax._support.types import Array, PyTree


def free(tree: PyTree, like: PyTree) -> PyTree:
    """The leaves of `tree` at which `like` has one; `None` elsewhere."""
    leaves, treedef = jax.tree.flatten(tree)
    pairs = zip(leaves, subtrees(like, tree), strict=True)
    return jax.tree.unflatten(treedef, [None if held is None else leaf for leaf, held in pairs])


def fill(tree: PyTree, background: PyTree) -> PyTree:
    """`tree` with each `None` replaced by the leaf of `background`: the inverse of `free`."""
    leaves, treedef = jax.tree.flatten(background)
    pairs = zip(leaves, subtrees(tree, background), strict=True)
    return jax.tree.unflatten(treedef, [leaf if held is None else held for leaf, held in pairs])


def subtrees(tree: PyTree, like: PyTree) -> list[Any]:
    """What `tree` holds where `like` has its leaves: a leaf, a subtree or `None`."""
    treedef: Any = jax.tree.structure(like)
    return list(treedef.flatten_up_to(tree))


def entry_key(entry: Any) -> Any:
    """The key in one entry of a path: of a dictionary, of a sequence, or an attribute's name."""
    for name in ("key", "idx", "name"):
        if hasattr(entry, name):
            return getattr(entry, name)
    return entry


def words(path: Iterable[Any]) -> tuple[str, ...]:
    """The keys of a path as strings, the same with and without the types of the containers.

    A last ``value`` is left out: flax nnx wraps leaves in variables, and need not wrap those of the
    parameters and of the state alike. No two leaves of a tree differ in that alone.
    """
    keys = tuple(str(entry_key(entry)) for entry in path)
    return keys[:-1] if keys[-1:] == ("value",) else keys


def broadcast(prefix: PyTree, like: PyTree) -> PyTree:
    """A prefix tree (most often one scalar) repeated for each leaf of `like`."""
    return jax.tree.unflatten(jax.tree.structure(like), for_each_leaf(prefix, like))


def for_each_leaf(
    prefix: PyTree, like: PyTree, is_leaf: Callable[[Any], bool] | None = None
) -> list[Any]:
    """The value of a prefix tree at each leaf of `like`, in order.

    Args:
      prefix: a prefix tree of `like`.
      like: any tree.
      is_leaf: which nodes of `prefix` are values, besides its leaves.
    """
    found: list[Any] = []

    def extend(value: Any, subtree: PyTree) -> None:
        found.extend([value] * len(jax.tree.leaves(subtree)))

    jax.tree.map(extend, prefix, like, is_leaf=is_leaf)
    return found


def statistics_dtype(*arrays: Any) -> jnp.dtype:
    """Float32 at least: what sums and square roots of `arrays` are computed in."""
    return jnp.promote_types(jnp.result_type(*map(_promotable, arrays)), jnp.float32)


def _promotable(array: Any) -> Any:
    """Types of 8 bits, which JAX promotes to no other, count as float32."""
    narrow = getattr(getattr(array, "dtype", None), "itemsize", 4) == 1
    return jnp.float32 if narrow else array


def total(tree: PyTree) -> Array:
    """The sum over every entry of every leaf."""
    return sum((jnp.sum(leaf) for leaf in jax.tree.leaves(tree)), start=jnp.zeros(()))


def align(tree: PyTree, params: PyTree, root: str) -> PyTree:
    """The leaves of `tree` in the structure of `params`, matched by path; `None` stays.

    Raises:
      ValueError: naming the first leaf that is missing, superfluous or of another shape.
    """
    wanted = jax.tree_util.tree_leaves_with_path(params)
    held = {
        path_name(path, ""): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None)
    }
    remedy = "pass the params the optimizer was initialised with"
    aligned = []
    for path, param in wanted:
        key = path_name(path, "")
        if key not in held:
            got = f"no such leaf ({len(held)} others)"
            raise ValueError(complaint(root + key, f"shape {jnp.shape(param)}", got, remedy))
        leaf = held.pop(key)
        if leaf is not None and jnp.shape(leaf) != jnp.shape(param):
            expected = f"shape {jnp.shape(param)}"
            raise ValueError(complaint(root + key, expected, str(jnp.shape(leaf)), remedy))
        aligned.append(leaf)
    left = [key for key, leaf in held.items() if leaf is not None]
    if left:
        raise ValueError(complaint(f"params{left[0]}", "a parameter", "none", remedy))
    return jax.tree.unflatten(jax.tree.structure(params), aligned)


def rows(tree: PyTree, index: Any) -> PyTree:
    """The same rows of every leaf."""
    return jax.tree.map(lambda x: x[index], tree)
