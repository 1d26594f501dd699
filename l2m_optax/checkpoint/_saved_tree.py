"""The tree inside a training checkpoint of orbax, read leaf by leaf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from l2m_optax._support.checks import complaint
from l2m_optax._support.trees import words
from l2m_optax._support.types import Array, PyTree
from l2m_optax.checkpoint._directory import orbax
from l2m_optax.moments._layouts import SIBLINGS


class SavedTree:
    """The tree of a checkpoint, its leaves by the keys that lead to them, unread."""

    def __init__(self, where: Path, name: str, copies: Any) -> None:
        """Read the metadata; `copies` is the sharding of what is no parameter."""
        self.name, self._where, self._copies = name, where, copies
        self._checkpointer = orbax().PyTreeCheckpointer()
        try:
            # The checkpointer itself would look for metadata of a step, and log that it has none.
            held = self._checkpointer.handler.metadata(where)
            metadata = getattr(held, "tree", held)  # older versions give the tree itself
        except Exception as error:  # of orbax, tensorstore and json, which have no type in common
            got = f"{type(error).__name__}: {error}"
            remedy = "the files were changed or damaged; take an earlier checkpoint"
            raise ValueError(complaint(name, "a checkpoint", got[:300], remedy)) from error
        self._tree = metadata
        with_paths = jax.tree_util.tree_leaves_with_path(metadata, is_leaf=_is_array)
        self._paths = {words(path): path for path, _ in with_paths}
        self._leaves = {words(path): leaf for path, leaf in with_paths}

    def second_moment(self) -> tuple[str, ...]:
        """The keys of the one node that holds a second moment.

        Raises:
          ValueError: if there is none, or more than one.
        """
        parents = {keys[: keys.index("nu")] for keys in self._leaves if "nu" in keys}
        found = [at for at in parents if self._children(at) in SIBLINGS]
        if len(found) != 1:
            got = ", ".join(sorted(".".join(at) for at in found)) or "none"
            expected = "one node with nu, and count and mu beside it"
            remedy = "restore the optimizer state and pass it to second_moment(..., tx=tx)"
            raise ValueError(complaint(self.name, expected, got, remedy))
        return found[0]

    def optimizer_state(self, tx: optax.GradientTransformation, like: PyTree) -> PyTree:
        """The state of `tx`, leaf by leaf; leaves shaped like a parameter are sharded like it.

        Raises:
          ValueError: if it is not there, or more than once.
        """
        shapes = jax.eval_shape(tx.init, like)
        wanted = [words(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
        ends = {
            keys[: -len(w)] for w in wanted[:1] for keys in self._leaves if keys[-len(w) :] == w
        }
        found = [at for at in ends if all((*at, *keys) in self._leaves for keys in wanted)]
        if wanted and len(found) != 1:
            got = ", ".join(sorted(".".join(at) for at in found))[:200] or "none"
            remedy = "pass tx=, the optimizer that was trained with, in every wrapper that it had"
            raise ValueError(complaint(self.name, "one optimizer state of tx", got, remedy))
        return self.read(found[0], _shard_like(shapes, like)) if wanted else shapes

    def read(self, at: tuple[str, ...], like: PyTree) -> PyTree:
        """The arrays below `at`, one after the other, in the structure and sharding of `like`.

        Raises:
          ValueError: if one is missing or of another shape.
        """

        def leaf(path: Any, wanted: Any) -> Array:
            keys = (*at, *words(path))
            held = self._leaves.get(keys)
            if held is None or tuple(held.shape) != tuple(np.shape(wanted)):
                got = "no such leaf" if held is None else f"shape {tuple(held.shape)}"
                where = f"{self.name}: {'.'.join(keys)}"
                remedy = "pass like=, the parameters that were trained, and their key, params="
                raise ValueError(complaint(where, f"shape {np.shape(wanted)}", got, remedy))
            return self._array(keys, getattr(wanted, "sharding", None))

        return jax.tree_util.tree_map_with_path(leaf, like)

    def number(self, keys: tuple[str, ...]) -> Array | None:
        """A scalar, if there is one."""
        return self._array(keys, None) if keys in self._leaves else None

    def _children(self, at: tuple[str, ...]) -> frozenset[str]:
        return frozenset(
            keys[len(at)] for keys in self._leaves if keys[: len(at)] == at and len(keys) > len(at)
        )

    def _array(self, keys: tuple[str, ...], sharding: Any) -> Array:
        ocp = orbax()
        own = sharding or self._copies

        def item(path: Any, held: Any) -> Any:
            if words(path) != keys:
                return ocp.PLACEHOLDER
            return jax.ShapeDtypeStruct(held.shape, held.dtype)  # type: ignore[no-untyped-call]

        def how(_: Any) -> Any:
            return ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=own)

        wanted = ocp.args.PyTreeRestore(
            item=jax.tree_util.tree_map_with_path(item, self._tree, is_leaf=_is_array),
            restore_args=jax.tree.map(how, self._tree, is_leaf=_is_array),
        )
        try:
            restored = self._checkpointer.restore(self._where, args=wanted)
        except Exception as error:  # see __init__
            got = f"{type(error).__name__}: {error}"
            remedy = "the files were changed or damaged; take an earlier checkpoint"
            where = f"{self.name}: {'.'.join(keys)}"
            raise ValueError(complaint(where, "an array", got[:300], remedy)) from error
        leaves = jax.tree_util.tree_leaves_with_path(restored, is_leaf=lambda x: x is ...)
        return next(leaf for path, leaf in leaves if words(path) == keys)


def _shard_like(shapes: PyTree, like: PyTree) -> PyTree:
    """The shapes of a state, each that belongs to a parameter with the sharding of that one."""
    owners = {words(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(like)}

    def leaf(path: Any, wanted: Any) -> Any:
        keys = words(path)
        found = [owners[keys[i:]] for i in range(len(keys) + 1) if keys[i:] in owners]
        fits = [owner for owner in found if np.shape(owner) == wanted.shape]
        sharding = getattr(fits[0], "sharding", None) if fits else None
        return jax.ShapeDtypeStruct(wanted.shape, wanted.dtype, sharding=sharding)  # type: ignore[no-untyped-call]

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def _is_array(node: Any) -> bool:
    return hasattr(node, "shape")
